"""Strata of an evaluation: which pairs are compared with which, so that easy and hard ones are never blended.

Shape letters: n pairs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire.errors import UserError
from quire.metrics import any_couple, auc

CALIPER = 0.05  # of the topic score's deviation; Austin 2011 (Pharmaceutical Statistics 10) finds 0.2 narrow enough
COLUMNS = ("label", "negative_type", "distance", "chars_a", "chars_b", "author_a", "author_b")


class Stratum(NamedTuple):
    """Pairs that are measured together. `classes` (n,) says which of them count as positives."""

    title: str
    rows: np.ndarray  # (n,) bool
    classes: np.ndarray  # (n,) bool

    def is_measurable(self, groups: np.ndarray) -> bool:
        """Both classes are there, in one of the groups (n,) at least."""
        return any_couple(self.classes[self.rows], groups[self.rows])


def strata(
    table: pa.Table, topic: np.ndarray, groups: np.ndarray | None = None, mined: np.ndarray | None = None
) -> dict[str, Stratum]:
    """The strata of a table of predictions, in the order of a report; those without both classes are left out.

    `groups` (n,): which model scored a pair; both classes must be there in one of them. `mined` (n,) bool: `nearest`.

    All pairs; all positives against each type of negative, and against the mined ones; near and far positives (up to
    the median distance, and beyond it) against all negatives; the pairs whose shorter text is of the shortest, middle
    and longest third; and `topic_matched`, see there. `topic` (n,): a score of how much two texts are about the same.
    Raises UserError when a column is missing.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"predictions lack the column {missing[0]!r}: make them again with pipelines.score")
    labels, kinds = table["label"].to_numpy() == 1, negative_types(table)
    found = {"overall": Stratum("All pairs", np.ones(len(labels), bool), labels)}
    for kind in sorted(set(kinds[~labels])):
        title = f"Against {kind.replace('_', ' ')} negatives"
        found[kind] = Stratum(title, labels | (kinds == kind), labels)
    if mined is not None:
        found["mined"] = Stratum("Against mined negatives: a text's nearest in another book", labels | mined, labels)
    distance = table["distance"].fill_null(0).to_numpy()
    if labels.any():
        middle = int(np.median(distance[labels]))
        near = distance <= middle
        found["near"] = Stratum(f"Positives near each other (at most {middle:,} characters)", near | ~labels, labels)
        found["far"] = Stratum(f"Positives far apart (over {middle:,} characters)", ~near | ~labels, labels)
    length = np.minimum(table["chars_a"].to_numpy(), table["chars_b"].to_numpy())
    lower, upper = (int(bound) for bound in np.quantile(length, (1 / 3, 2 / 3)))
    found["short"] = Stratum(f"Short texts (at most {lower:,} characters)", length <= lower, labels)
    found["medium"] = Stratum(
        f"Medium texts (up to {upper:,} characters)", (length > lower) & (length <= upper), labels
    )
    found["long"] = Stratum(f"Long texts (over {upper:,} characters)", length > upper, labels)
    matched = topic_matched(labels, topic, by_others(table))
    found["topic_matched"] = Stratum("Another author, topic matched", matched, labels)
    return _measurable(found, groups)


def negative_types(table: pa.Table) -> np.ndarray:
    """The type of each negative, and "positive": (n,) of strings. Raises UserError for a negative without one."""
    kinds = np.asarray(table["negative_type"].fill_null("").to_pylist(), dtype=object)
    negative = table["label"].to_numpy() == 0
    untyped = np.flatnonzero(negative & ((kinds == "") | (kinds == "overall")))
    if len(untyped):
        raise UserError(f"negative_type[{untyped[0]}] = {kinds[untyped[0]]!r}: each negative needs a type of its own")
    return np.where(negative, kinds, "positive")


def nearest(table: pa.Table, neighbors: pa.Table) -> np.ndarray:
    """Negatives (n,) bool that a search found: one of the two chunks is the other's nearest in another book.

    `neighbors`: the rows (schema.NEIGHBORS) that the pairs were drawn by; their search leaves a chunk's own book out.
    """
    of_chunks = neighbors.filter(pc.equal(neighbors["level"], "chunk"))
    columns = (of_chunks[name].to_pylist() for name in ("id", "neighbor_ids"))
    first = {name: ids[0] for name, ids in zip(*columns, strict=True) if ids}
    sides = table["chunk_a"].to_pylist(), table["chunk_b"].to_pylist()
    found = [first.get(a) == b or first.get(b) == a for a, b in zip(*sides, strict=True)]
    return np.array(found, bool) & (table["label"].to_numpy() == 0)


def by_others(table: pa.Table) -> np.ndarray:
    """Negatives (n,) bool of two authors."""
    same = np.asarray(table["author_a"].to_pylist(), object) == np.asarray(table["author_b"].to_pylist(), object)
    return (table["label"].to_numpy() == 0) & ~same


def topic_matched(labels: np.ndarray, topic: np.ndarray, negatives: np.ndarray, caliper: float = CALIPER) -> np.ndarray:
    """Positives and negatives (n,) bool in couples that are equally much about the same, so that topic says nothing.

    As many couples as can be made one to one with topic scores (n,) at most `caliper` deviations apart: both classes
    are walked through by rising score (caliper matching without replacement: Austin 2014, Statistics in Medicine 33).
    """
    chosen = np.zeros(len(labels), bool)
    width = caliper * np.std(topic[labels | negatives]) if (labels | negatives).any() else 0.0
    ours, theirs = (rows[np.argsort(topic[rows], kind="stable")] for rows in map(np.flatnonzero, (labels, negatives)))
    i = j = 0
    while i < len(ours) and j < len(theirs):
        apart = topic[ours[i]] - topic[theirs[j]]
        if abs(apart) <= width:
            chosen[[ours[i], theirs[j]]] = True
        i, j = i + (apart <= width), j + (apart >= -width)
    return chosen


def pair_types(table: pa.Table, groups: np.ndarray | None = None) -> dict[str, Stratum]:
    """The three comparisons of three pair types, as far as they can be made; `groups` (n,): as in `strata`.

    SB: the same book; SA: the same author's other book; DA: a random book of another author. SA against DA has the
    pairs of one author as positives: what a system knows of authors, books apart.
    """
    kinds = negative_types(table)
    of = {"SB": kinds == "positive", "SA": kinds == "same_author", "DA": kinds == "random"}
    made = {
        f"{one} vs {other}": Stratum(f"{one} vs {other}", of[one] | of[other], of[one])
        for one, other in (("SB", "DA"), ("SB", "SA"), ("SA", "DA"))
    }
    return _measurable(made, groups)


def _measurable(found: dict[str, Stratum], groups: np.ndarray | None) -> dict[str, Stratum]:
    return {
        name: stratum
        for name, stratum in found.items()
        if stratum.is_measurable(np.zeros(len(stratum.rows), int) if groups is None else groups)
    }


def described(found: Mapping[str, Stratum], topic: np.ndarray) -> dict[str, dict[str, Any]]:
    """Title and counts of each stratum, and how well the topic score (n,) alone tells its classes apart: .5 is not."""
    return {
        name: {
            "title": s.title,
            "num_positives": int(np.count_nonzero(s.classes[s.rows])),
            "num_negatives": int(np.count_nonzero(~s.classes[s.rows])),
            "topic_auc": auc(s.classes[s.rows], topic[s.rows]),
        }
        for name, s in found.items()
    }
