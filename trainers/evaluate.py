"""Evaluate every system once on the test split: JSON, a table, and a self-contained HTML report.

python -m trainers.evaluate trainers/experiments/books/evaluate.toml [key=value ...]
"""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from quire import artifact, config, decisions, matcher, metrics, plots, report
from quire.artifact import Artifact
from quire.calibration import Fusion, Scale
from trainers.tracker import TrackedRuntime, log_report

TITLES = {
    "two_stage": "two-stage",
    "bi_encoder": "bi-encoder",
    "cross_encoder": "cross-encoder",
    "untrained": "untrained encoder",
    "char_4gram": "character 4-grams",
}


class EvaluateConfig(config.Config):
    """What `trainers.evaluate` computes."""

    name: str
    predictions: str
    matcher: str
    num_bootstraps: int = Field(default=500, gt=0)
    seed: int = 0
    runtime: TrackedRuntime = TrackedRuntime()


CONFIG = EvaluateConfig


def run(settings: EvaluateConfig) -> Artifact:
    """Make the `reports` artefact: results.json, table.txt, index.html."""
    root = settings.runtime.root
    inputs = {
        "predictions": artifact.open_artifact(root, "predictions", settings.predictions),
        "matcher": artifact.open_artifact(root, "models", settings.matcher),
    }
    draft = artifact.begin_step(settings, "reports", inputs)
    if draft.published:
        return draft.published
    table = inputs["predictions"].read()
    test = table.filter(pc.equal(table["split"], "test"))
    labels = test["label"].to_numpy()
    kinds = np.asarray(test["negative_type"].fill_null("positive").to_pylist(), dtype=object)
    calibration = inputs["matcher"].read_json("calibration.json")
    spec = inputs["matcher"].read_json("matcher.json")
    probabilities, thresholds = system_probabilities(test, calibration, spec)
    rows = {
        TITLES[name]: metrics.by_negative_type(labels, kinds, probabilities[name], thresholds[name]) for name in TITLES
    }
    authors = [np.asarray(test[side].to_pylist(), dtype=object) for side in ("author_a", "author_b")]
    for name, title in TITLES.items():
        for stratum, values in rows[title].items():
            chosen = np.ones(len(labels), bool) if stratum == "overall" else (labels == 1) | (kinds == stratum)
            values["auc_interval"] = list(
                metrics.author_bootstrap(
                    labels[chosen],
                    probabilities[name][chosen],
                    authors[0][chosen],
                    authors[1][chosen],
                    "auc",
                    num_samples=settings.num_bootstraps,
                    seed=settings.seed,
                )
            )
    ancestry = ancestors(root, inputs)
    text = report.table(rows, ("auc", "average_precision", "f1", "brier", "ece"))
    page = report.render(_page(settings, rows, labels, kinds, probabilities, calibration, ancestry))
    draft.storage.write_json(f"{draft.folder}/results.json", rows)
    draft.storage.write_bytes(f"{draft.folder}/table.txt", text.encode())
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    log_report(settings, draft, page, rows)
    where = draft.storage.uri(f"{draft.folder}/index.html")
    return draft.publish(summary=f"{text}\nreport: {where}", facts={"results": rows})


def system_probabilities(table: Any, calibration: dict, spec: dict) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Calibrated probability of every system for each pair (n,), and each system's threshold."""
    scales = {name: Scale(**facts["scale"]) for name, facts in calibration["systems"].items()}
    probabilities = {name: scale.probability(table[name].to_numpy()) for name, scale in scales.items()}
    logits = (table[name].to_numpy() for name in ("bi_encoder", "cross_encoder"))
    fusion = Fusion(**spec["fusion"])
    probabilities["two_stage"] = matcher.two_stage(scales["bi_encoder"], fusion, spec["prefilter"], *logits)
    # The same cut on the scores, on the scale of these probabilities, which are for the calibration pairs' own prior.
    threshold = decisions.at_prior(np.asarray(spec["threshold"]), spec["prior"], spec["calibration_prior"])
    return probabilities, {**calibration["thresholds"], "two_stage": float(threshold)}


def ancestors(root: str, inputs: dict[str, Artifact]) -> list[Artifact]:
    """Every artefact that the inputs came from, oldest first."""
    found: dict[str, Artifact] = {}
    waiting = list(inputs.values())
    while waiting:
        item = waiting.pop()
        found.pop(item.folder, None)
        found[item.folder] = item
        for described in item.manifest["inputs"].values():
            if isinstance(described, dict):
                waiting.append(artifact.open_artifact(root, described["kind"], described["name"]))
    return sorted(found.values(), key=lambda item: item.manifest["ended"])


def _page(
    settings: EvaluateConfig,
    rows: dict,
    labels: np.ndarray,
    kinds: np.ndarray,
    probabilities: dict[str, np.ndarray],
    calibration: dict,
    ancestry: list[Artifact],
) -> report.Report:
    two, low_high = rows["two-stage"]["overall"], rows["two-stage"]["overall"]["auc_interval"]
    provenance = ("recipe", "inputs", "fingerprint", "git_commit", "versions")
    return report.Report(
        title=f"Book matcher: {settings.name}",
        question="Do two passages come from the same book?",
        headline=(
            f"Two-stage AUC {two['auc']:.3f} (95 % interval over authors {low_high[0]:.3f} to {low_high[1]:.3f}) on "
            f"{len(labels)} pairs of {_apart(ancestry)}s that no model has seen; ECE {two['ece']:.3f}."
        ),
        rows=rows,
        plots=_figures(labels, kinds, probabilities, ancestry),
        sections=[_calibration_table(calibration), *_tables(ancestry)],
        details={f"{a.folder}: recipe and provenance": {key: a.manifest[key] for key in provenance} for a in ancestry},
    )


def _figures(
    labels: np.ndarray, kinds: np.ndarray, probabilities: dict[str, np.ndarray], ancestry: list[Artifact]
) -> list[report.Plot]:
    systems = {title: (labels, probabilities[name]) for name, title in TITLES.items()}
    trained = {title: systems[title] for title in ("two-stage", "bi-encoder", "cross-encoder")}
    made = [a for a in ancestry if "history.json" in a.manifest["files"]]
    histories = {a.name: a.read_json("history.json")["history"] for a in made}
    scores = plots.score_histograms(labels, kinds, probabilities["two_stage"])
    figures = [
        ("ROC", plots.roc(systems), "The further to the upper left, the better; the diagonal is guessing."),
        (
            "Precision and recall",
            plots.precision_recall(systems),
            "How many are right among those called the same book, as more are found.",
        ),
        ("Reliability", plots.reliability(trained), "On the diagonal, a stated probability is what happens."),
        ("Scores by negative type", scores, "Two-stage probabilities; negatives far to the right are the mistakes."),
        (
            "Losses",
            plots.losses(histories),
            "Training loss falls, validation AUC rises; where they part, training overfits.",
        ),
    ]
    return [report.Plot(*figure) for figure in figures]


def _calibration_table(calibration: dict) -> report.Section:
    return report.Section(
        "Calibration",
        "On the calibration split: before is the sigmoid of the raw score, after the fitted scale.",
        ("System", "NLL before", "after", "Brier before", "after", "ECE before", "after"),
        [
            (TITLES[name], *(f"{facts[when][q]:.3f}" for q in ("nll", "brier", "ece") for when in ("before", "after")))
            for name, facts in calibration["systems"].items()
        ],
    )


def _apart(ancestry: list[Artifact]) -> str:
    """What the splits keep apart: `author` or `work`."""
    return next((a.manifest["recipe"]["split"]["by"] for a in ancestry if a.kind == "chunks"), "author")


def _tables(ancestry: list[Artifact]) -> list[report.Section]:
    """What the data were, how long each stage took, what was dropped and why."""
    splits = next((a.manifest["facts"]["splits"] for a in ancestry if a.kind == "chunks"), {})
    data = [(split, *(f"{count:,}" for count in counts.values())) for split, counts in splits.items()]
    names = tuple(next(iter(splits.values()))) if splits else ()
    stages = [
        (
            a.folder,
            f"{a.manifest['cost']['wall']:.1f}",
            f"{a.manifest['cost']['cpu']:.1f}",
            f"{a.manifest['cost']['gpu']:.1f}",
            f"{a.manifest['rows_out']:,}",
            a.manifest["summary"].splitlines()[-1] if a.manifest["summary"] else "",
        )
        for a in ancestry
    ]
    dropped = [(a.folder, reason, f"{count:,}") for a in ancestry for reason, count in a.manifest["dropped"].items()]
    return [
        report.Section("Data", f"No {_apart(ancestry)} stands in two splits.", ("Split", *names), data),
        report.Section("Stages", "Seconds.", ("Artefact", "wall", "CPU", "GPU", "rows", "summary"), stages),
        report.Section(
            "Dropped rows",
            "Each stands with its reason in rejects-*.parquet." if dropped else "Nothing was dropped.",
            ("Artefact", "reason", "rows") if dropped else (),
            dropped,
        ),
    ]


if __name__ == "__main__":
    config.main(CONFIG, run)
