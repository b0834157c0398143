"""Who wrote the disputed texts? The question of the Federalist papers, by the rates of function words.

    python -m trainers.attribute trainers/experiments/federalist.toml source=FEDERALIST.jsonl [key=value ...]

First each known text is attributed by a model of the others, which shows what the method is worth; then the disputed
ones. No trained model is needed: a page, a table and some seconds.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy.special import expit

from quire import artifact, attribution, config, plots, readers, report
from quire.artifact import Artifact
from quire.errors import UserError
from quire.report import Plot, Section
from quire.storage import Storage

_SHOWN_WORDS = 8


class AttributeConfig(config.Config):
    """What `trainers.attribute` computes."""

    name: str
    source: str = Field(description="a file of {id, author, text} a line")
    candidates: tuple[str, str] = Field(description="two authors, as the file names them")
    disputed: str = Field(description="what stands for the author of a disputed text")
    begin: str | None = Field(default=None, description="a pattern: what stands up to its first match is not read")
    end: str | None = Field(default=None, description="a pattern: nor what stands from its last match on")
    strength: float = Field(default=0.1, gt=0, description="of the evidence against the prior, scikit-learn's C")
    runtime: config.Runtime = config.Runtime()


CONFIG = AttributeConfig


def run(settings: AttributeConfig) -> Artifact:
    """Make the `reports` artefact: results.json, table.txt, index.html."""
    folder, _, name = settings.source.rpartition("/")
    inputs = {"source": readers.contents(Storage(folder or "."), [name])} if Path(settings.source).is_file() else {}
    texts = _texts(settings)
    draft = artifact.begin_step(settings, "reports", inputs)
    if draft.published:
        return draft.published
    results = attributed(texts, settings)
    text = table(results)
    draft.storage.write_json(f"{draft.folder}/results.json", results)
    for file, content in {"table.txt": text, "index.html": report.render(page(results, settings))}.items():
        draft.storage.write_bytes(f"{draft.folder}/{file}", content.encode())
    where = draft.storage.uri(f"{draft.folder}/index.html")
    return draft.publish(summary=f"{text}\nreport: {where}", facts={"results": results})


def _texts(settings: AttributeConfig) -> list[dict[str, str]]:
    """The texts of the file, without what stands before and behind them. Raises UserError naming line and field."""
    if not Path(settings.source).is_file():
        raise UserError(f"source = {settings.source!r}: no such file (looked in {Path.cwd()})")
    found = []
    for number, line in enumerate(Path(settings.source).read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{settings.source}, line {number}: not JSON in UTF-8: {error}") from error
        for field in ("id", "author", "text"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise UserError(f"{settings.source}, line {number}: {field}: expected a string")
        found.append({"id": row["id"], "author": row["author"], "text": _body(row["text"], settings)})
    for author in (*settings.candidates, settings.disputed):
        if not any(row["author"] == author for row in found):
            there = ", ".join(sorted({row["author"] for row in found}))
            raise UserError(f"{settings.source}: no text by {author!r}; its authors are {there}")
    return found


def _body(text: str, settings: AttributeConfig) -> str:
    begin = re.search(settings.begin, text) if settings.begin else None
    text = text[begin.end() :] if begin else text
    ends = list(re.finditer(settings.end, text)) if settings.end else []
    return text[: ends[-1].start()] if ends else text


def attributed(texts: list[dict[str, str]], settings: AttributeConfig) -> dict[str, Any]:
    """Log-odds of every text for the second candidate; those of a known one by a model of the other known ones."""
    first, second = settings.candidates
    known = [row for row in texts if row["author"] in settings.candidates]
    asked = [row for row in texts if row["author"] == settings.disputed]
    rates = attribution.rates([row["text"] for row in known])
    is_second = np.asarray([row["author"] == second for row in known])
    tested = attribution.leave_one_out(rates, is_second, settings.strength)
    found = attribution.attribute(
        rates, is_second, attribution.rates([row["text"] for row in asked]), settings.strength
    )
    telling = np.argsort(-np.abs(found.weights))[:_SHOWN_WORDS]
    mean = {name: np.square(rates[is_second == (name == second)]).mean(0) for name in settings.candidates}
    return {
        "candidates": [first, second],
        "known": _rows(known, tested),
        "disputed": _rows(asked, found.log_odds),
        "accuracy": float(((tested > 0) == is_second).mean()),
        "words": [
            {
                "word": attribution.WORDS[place],
                "weight": float(found.weights[place]),
                **{name: float(mean[name][place]) for name in settings.candidates},
            }
            for place in telling
        ],
    }


def _rows(texts: list[dict[str, str]], log_odds: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"id": row["id"], "author": row["author"], "log_odds": float(odds), "probability": float(expit(odds))}
        for row, odds in zip(texts, log_odds, strict=True)
    ]


def table(results: dict[str, Any]) -> str:
    """The disputed texts as a table for the terminal."""
    first, second = results["candidates"]
    right = round(results["accuracy"] * len(results["known"]))
    lines = [f"{right} of {len(results['known'])} known texts get their author from a model of the others"]
    lines.append(f"{'disputed':<18}{'P(' + second + ')':>14}   by")
    for row in results["disputed"]:
        by = second if row["log_odds"] > 0 else first
        lines.append(f"{row['id']:<18}{row['probability']:>14.3f}   {by}")
    return "\n".join(lines)


def page(results: dict[str, Any], settings: AttributeConfig) -> report.Report:
    """The same as a page, with a plot."""
    first, second = results["candidates"]
    groups = {
        first: [row["log_odds"] for row in results["known"] if row["author"] == first],
        second: [row["log_odds"] for row in results["known"] if row["author"] == second],
        "disputed": [row["log_odds"] for row in results["disputed"]],
    }
    count = sum(row["log_odds"] > 0 for row in results["disputed"])
    right = round(results["accuracy"] * len(results["known"]))
    wrong = [row for row in results["known"] if (row["log_odds"] > 0) != (row["author"] == second)]
    told = f"Wrong: {', '.join(row['id'] for row in wrong)}." if wrong else "None is wrong."
    return report.Report(
        title=f"Who wrote it: {settings.name}",
        question=f"{first} or {second}?",
        headline=(
            f"{count} of {len(results['disputed'])} disputed texts speak for {second}. The method finds the author of "
            f"{right} of the {len(results['known'])} texts whose author is known."
        ),
        plots=[
            Plot(
                "Every text by its log-odds",
                plots.strips(groups, f"log-odds of {second} against {first}"),
                f"Right of 0 a text speaks for {second}. Each known text is judged by a model that has not read it.",
            )
        ],
        tables=[
            Section(
                "Disputed texts",
                f"Probabilities when {first} and {second} are as likely beforehand.",
                ("Text", f"P({second})", "log-odds", "by"),
                [
                    (
                        r["id"],
                        f"{r['probability']:.3f}",
                        f"{r['log_odds']:+.2f}",
                        second if r["log_odds"] > 0 else first,
                    )
                    for r in results["disputed"]
                ],
            ),
            Section(
                "The words that tell them apart",
                f"How often each stands in 1,000 words. A weight above 0 speaks for {second}.",
                ("Word", first, second, "weight"),
                [(w["word"], f"{w[first]:.2f}", f"{w[second]:.2f}", f"{w['weight']:+.2f}") for w in results["words"]],
            ),
        ],
        sections=[
            Section(
                "Known texts",
                f"Each by a model of the others. {told}",
                ("Text", "author", f"P({second})"),
                [(r["id"], r["author"], f"{r['probability']:.3f}") for r in results["known"]],
            ),
        ],
    )


if __name__ == "__main__":
    config.main(CONFIG, run)
