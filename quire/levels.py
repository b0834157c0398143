"""Levels: how many passages are read of either text, and the scales that were fitted on pairs of as many.

A mean over k x k cells spreads less than the logit of one, so that no scale serves both. Shape letters: k passages that
are read of either text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire.calibration import Fusion, Scale
from quire.certify import Certificate
from quire.errors import UserError
from quire.evenly import evenly


@dataclass(frozen=True)
class Level:
    """What turns mean logits over k passages a side into probabilities and decisions.

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


def scored(predictions: pa.Table, asked: Sequence[int] | None = None) -> list[int]:
    """The levels of a table of predictions, rising from 1, or those of them that are asked for.

    Raises UserError when the predictions know no levels, or not these.
    """
    found = sorted(set(_column(predictions).to_pylist()))
    wanted = found if asked is None else sorted(set(asked))
    lacking = [k for k in wanted if k not in found]
    if lacking or wanted[:1] != [1]:
        raise UserError(
            f"levels = {wanted}: from 1 on, and of those that the predictions have, {found}; score the others"
        )
    return wanted


def of_level(predictions: pa.Table, k: int) -> pa.Table:
    """The rows of pairs of k chunks a side, in their order. Raises UserError when the predictions know no levels."""
    return predictions.filter(pc.equal(_column(predictions), k))


def _column(predictions: pa.Table) -> pa.ChunkedArray:
    if "k" not in predictions.column_names:
        raise UserError("predictions lack the column 'k': make them again with pipelines.score")
    return predictions["k"]
