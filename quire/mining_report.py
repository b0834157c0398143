"""Are mined negatives true ones? Counts over all of them, and the most suspicious ones with both texts, as one page.

No time stands on it: the same input and recipe give the same bytes.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire import plots, report
from quire.mining import NEAR_DUPLICATE, REASONS, SHINGLE_SIZE

SAME = 0.5  # probability from which the cross-encoder holds two texts for one book
# What may make a negative a false one, and what it means.
SIGNS = {
    "near_duplicate": f"the texts share {NEAR_DUPLICATE:.0%} or more of the shorter one's runs of {SHINGLE_SIZE} words",
    "common_run": f"the texts share a run of {SHINGLE_SIZE} words",
    "cross_same": f"the cross-encoder says one book, with a probability of {SAME} or more",
    "above_positive": "the cosine is above the query's positive score",
    "same_author": "one author wrote both: no false negative, but the hardest kind",
}
_EDGES = np.linspace(-1, 1, 41)
_WIDTH = 110  # characters of a line of text


def signs(table: pa.Table) -> dict[str, np.ndarray]:
    """Which negatives show which sign: bools (n,) by name. `table` has the columns of schema.NEGATIVES."""
    score, positive, cross, shared = (
        _floats(table[name]) for name in ("score", "positive_score", "cross_score", "shared")
    )
    return {
        "near_duplicate": shared >= NEAR_DUPLICATE,
        "common_run": shared > 0,
        "cross_same": cross >= SAME,
        "above_positive": score > positive,
        "same_author": table["same_author"].to_numpy(),
    }


def audit(table: pa.Table) -> dict[str, Any]:
    """Counts that add up over shards: negatives, those with each sign, and a histogram of score - positive score."""
    counts = {name: int(found.sum()) for name, found in signs(table).items()}
    margins = _floats(table["score"]) - _floats(table["positive_score"])
    histogram = np.histogram(margins[~np.isnan(margins)].clip(-1, 1), _EDGES)[0]
    rescored = table.num_rows - table["cross_score"].null_count
    return {"negatives": table.num_rows, "rescored": rescored, **counts, "margins": histogram.tolist()}


def added(audits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several audits."""
    return {key: np.sum([found[key] for found in audits], axis=0).tolist() for key in audits[0]} if audits else {}


def most_suspicious(table: pa.Table, count: int) -> pa.Table:
    """The `count` negatives most likely to be false: near duplicates first, then what the cross-encoder or the cosine
    holds for one book, in each kind the strongest first."""
    found = signs(table)
    score, positive, cross, shared = (
        _floats(table[name]) for name in ("score", "positive_score", "cross_score", "shared")
    )
    strength = np.nan_to_num(score - positive, nan=-2), np.nan_to_num(cross, nan=-1), shared
    flags = [found[name] for name in ("above_positive", "cross_same", "near_duplicate")]
    order = np.lexsort((*(-key for key in strength), *(~flag for flag in flags)))
    return table.take(order[:count])


def page(name: str, facts: Mapping[str, Any], suspicious: Sequence[Mapping[str, Any]]) -> str:
    """A self-contained page. `suspicious`: rows of schema.NEGATIVES with `text` and `negative_text`."""
    audit = facts["audit"]
    rows = [[sign, f"{audit[sign]:,}", f"{share(audit, sign):.2%}", meaning] for sign, meaning in SIGNS.items()]
    candidates = facts["candidates"]
    total = max(1, sum(candidates.values()))
    judged = [[key, f"{candidates[key]:,}", f"{candidates[key] / total:.2%}"] for key in ("chosen", *REASONS)]
    sections = [
        report.Section("False negatives", "Of all mined negatives.", ("Sign", "Negatives", "Share", "Meaning"), rows),
        report.Section(
            "Candidates",
            "What became of each; a rejected one is counted under the first rule that it breaks, in this order.",
            ("Rule", "Candidates", "Share"),
            judged,
        ),
    ]
    margins = plots.bars("margins", _EDGES.tolist(), audit["margins"], "cosine minus positive score")
    how = "Right of zero a negative is nearer than the query's own document is on average."
    return report.render(
        report.Report(
            title=f"Negatives: {name}",
            question="Are these chunks, which look like the query's book, truly of other books?",
            headline=f"{audit['negatives']:,} negatives of {facts['queries']:,} queries, drawn from "
            f"{facts['training_chunks']:,} training chunks; {share(audit, 'near_duplicate'):.2%} are near duplicates",
            plots=[report.Plot("Margins", margins, how)],
            sections=sections,
            details={_title(number, row): _both(row) for number, row in enumerate(suspicious, start=1)},
        )
    )


def share(audit: Mapping[str, Any], sign: str) -> float:
    """Of the negatives; what the cross-encoder says, of those that it has read."""
    return audit[sign] / max(1, audit["rescored" if sign == "cross_same" else "negatives"])


def _title(number: int, row: Mapping[str, Any]) -> str:
    shown = {"cosine": "score", "positive": "positive_score", "shared": "shared", "cross-encoder": "cross_score"}
    facts = [f"{name} {row[key]:.3f}" for name, key in shown.items() if row[key] is not None]
    return f"{number}. {row['chunk_id']} and {row['negative_id']}: {', '.join(facts)}"


def _both(row: Mapping[str, Any]) -> str:
    texts = (textwrap.fill(" ".join(row[key].split()), _WIDTH) for key in ("text", "negative_text"))
    return "\n\n".join(texts)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) float64, NaN for null."""
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
