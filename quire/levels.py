"""Levels: how many passages are read of either text, and the scales that were fitted on pairs of as many.

What k x k cells say together spreads otherwise than the logit of one, so that no scale serves both. Shape letters: k
passages that are read of either text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire.artifact import Artifact
from quire.calibration import Fusion, Scale
from quire.certify import Certificate
from quire.errors import UserError
from quire.evenly import evenly

# What `evidence` computes of which texts; scales of another one do not fit.
EVIDENCE = "beside strangers at -1 and each text's own but neighbours, of texts of all lengths; single logits drawn in"
STRANGERS = -1.0  # the mean logit of passages of two books, where `BiEncoder.weighed` puts it
SAYS = "says"  # the key of that in the recipe of predictions
LIE = "strangers"  # the key of where they lie in the recipe of a bi-encoder
_TAIL = 2.0  # beyond which a single logit claims more than it keeps


@dataclass(frozen=True)
class Level:
    """What turns the stages' evidence from k passages a side into probabilities and decisions.

    The scales give probabilities for pairs mixed as the calibration pairs, of which `calibration_prior` are of the same
    book; the threshold and the certificates are for the prior of the whole matcher.
    """

    k: int
    bi_scale: Scale
    fusion: Fusion
    prefilter: float
    threshold: float
    calibration_prior: float
    num_calibration_pairs: int  # that the scales and the threshold were fitted on; a certificate counts its own
    certificates: tuple[Certificate, ...] = ()  # of the sides for which a precision was asked


@dataclass(frozen=True)
class Question:
    """What is read of two texts: k passages of either, as many as the level says."""

    level: Level
    a: list[str]
    b: list[str]
    calibrated: bool  # whether the texts are as those that the level's scales were fitted on


def read(values: Mapping[str, Any]) -> Level:
    """A level from its JSON. Raises TypeError for a key that is missing or unknown."""
    parts = {
        "bi_scale": Scale(**values.get("bi_scale", {})),
        "fusion": Fusion(**values.get("fusion", {})),
        "certificates": tuple(Certificate(**certificate) for certificate in values.get("certificates", ())),
    }
    return Level(**{**values, **parts})


def exactly(levels: Sequence[Level], k: int) -> Level:
    """The level of k passages. Raises UserError when there is none."""
    for level in levels:
        if level.k == k:
            return level
    known = ", ".join(str(level.k) for level in levels)
    raise UserError(f"k = {k}: the matcher is calibrated for {known} passages a side; calibrate it for {k}, too")


def question(levels: Sequence[Level], min_chars: int, a: Sequence[str], b: Sequence[str]) -> Question:
    """Two texts, each given as all of its passages, at the largest level that both have passages for.

    Of a text with more passages than that, evenly spaced ones are read. One that is shorter than a passage may be
    (`min_chars`) is like nothing that was fitted on.
    """
    level = max((level for level in levels if level.k <= min(len(a), len(b))), key=lambda level: level.k)
    read_a, read_b = ([side[place] for place in evenly(len(side), level.k)] for side in (a, b))
    return Question(level, read_a, read_b, calibrated=min(len(a[0]), len(b[0])) >= min_chars)


def evidence(between: np.ndarray, within: Sequence[np.ndarray]) -> float:
    """What the first stage says of two texts, by its logits (k, k) of the passages of one with those of the other, and
    of each text's with its own (two of (k, k), of which the diagonals tell nothing).

    Passages of some books are far more alike than those of others, which both texts show without a label. So the mean
    logit is told on the way from `STRANGERS`, 0, to what the texts have within themselves, 1: as a cosine is a product
    in units of both lengths. A single passage a side has nothing within: `drawn_in`. Neighbours are left out of what a
    text has within, except where there are only two passages: in a short text they share sentences, and the two texts
    of a pair never do.
    """
    k = len(between)
    if k == 1:
        return float(drawn_in(between[0, 0]))
    others = np.abs(np.subtract.outer(np.arange(k), np.arange(k))) > (k > 2)
    own = np.mean([logits[others].mean() for logits in within])
    return float((between.mean() - STRANGERS) / (max(own, 0.0) - STRANGERS))


def check_says(made: Artifact) -> None:
    """Raises UserError for predictions whose scores are not this evidence, by an older or newer `pipelines.score`."""
    if (says := made.manifest["recipe"].get(SAYS)) != EVIDENCE:
        raise UserError(
            f"predictions = {made.name!r}: their scores are {says or 'mean logits'!r}, now they are {EVIDENCE!r}; "
            "score again under another name, and calibrate with that"
        )


def check_strangers(bi_encoder: Artifact) -> None:
    """Raises UserError for a bi-encoder whose strangers lie elsewhere, so that `evidence` does not fit its logits."""
    if bi_encoder.manifest["recipe"].get(LIE) != STRANGERS:
        raise UserError(
            f"bi_encoder = {bi_encoder.name!r}: its logits are on a scale of before; train it again under another name"
        )


def drawn_in(logits: np.ndarray) -> np.ndarray:
    """Logits (...) of single passages in the same order, growing as a logarithm beyond +-2: a pair head is sure of what
    it has rarely seen, and no straight line of `calibration.Scale` takes that back."""
    return _TAIL * np.arcsinh(np.asarray(logits, np.float64) / _TAIL)


def cells(logits: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Places of at most `count` cells that tell the most: the highest logits (k, k) and, one fewer at most, the lowest.

    The highest say what speaks for one book, the lowest what speaks against it. Equal logits go by place, in an order
    in which (i, j) and (j, i) are neighbours; that pair of ties alone may fall otherwise when the texts are swapped, so
    matchers give the two texts in one order.
    """
    i, j = np.indices(logits.shape).reshape(2, -1)
    order = np.lexsort((i, np.abs(i - j), i + j, logits.reshape(-1)))[::-1]  # the last key counts first
    count = min(count, len(order))
    chosen = np.concatenate([order[: (count + 1) // 2], order[len(order) - count // 2 :]])
    return list(zip(i[chosen].tolist(), j[chosen].tolist(), strict=True))


def scored(predictions: pa.Table) -> list[int]:
    """The levels of a table of predictions, rising from 1.

    All of them belong together: which texts a level is asked for, and so which it was scored on, depends on the next.
    Raises UserError when the predictions know no levels, or none of single passages.
    """
    found = sorted(set(_column(predictions).to_pylist()))
    if found[:1] != [1]:
        raise UserError(f"predictions: of {found} passages a side, none of single ones; score those, too")
    return found


def of_level(predictions: pa.Table, k: int) -> pa.Table:
    """The rows of pairs of k chunks a side, in their order. Raises UserError when the predictions know no levels."""
    return predictions.filter(pc.equal(_column(predictions), k))


def _column(predictions: pa.Table) -> pa.ChunkedArray:
    if "k" not in predictions.column_names:
        raise UserError("predictions lack the column 'k': make them again with pipelines.score")
    return predictions["k"]
