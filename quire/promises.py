"""Promises of a calibration: which pairs fit the scales, which certify, and what can be certified of these.

Shape letters: n pairs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from quire import certify
from quire.certify import Certificate
from quire.errors import UserError


@dataclass(frozen=True)
class Promises:
    """The precisions that are asked for, and how they are to be certified."""

    precisions: Mapping[certify.Side, float]  # of the sides for which one is asked
    confidence: float
    unit: certify.Unit
    share: float  # of the authors (or pairs) that nothing is fitted on
    seed: int


Clusters = tuple[Sequence[str], Sequence[str]]


def clusters(table: pa.Table, groups: Mapping[str, str]) -> Clusters:
    """What each pair's two sides must share with no other pair: author groups, or without any the pair itself."""
    if not groups:
        return table["pair_id"].to_pylist(), table["pair_id"].to_pylist()
    a, b = ([groups[work] for work in table[side].to_pylist()] for side in ("work_a", "work_b"))
    return a, b


def divided(found: Clusters, kinds: np.ndarray, asked: Promises) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs (n,) are fitted on, and which certify.

    A pair of a fitted and a certifying author does neither. That takes away pairs of two authors alone, so of the
    other kinds as large a part is left out: the kinds stay mixed as they were, and so do the probabilities. Raises
    UserError when too few authors are left.
    """
    held = certify.held_back([*found[0], *found[1]], asked.share, asked.seed)
    a, b = (np.fromiter((name in held for name in side), bool, len(side)) for side in found)
    order = np.random.default_rng(asked.seed).permutation(np.flatnonzero(~a & ~b))
    names, wanted = np.unique(kinds.astype(str), return_counts=True)
    rows = {name: order[kinds[order] == name] for name in names}
    part = min(len(rows[name]) / count for name, count in zip(names, wanted, strict=True))
    fitted = np.zeros(len(kinds), bool)
    for name, count in zip(names, wanted, strict=True):
        fitted[rows[name][: round(part * count)]] = True
    if not part:
        raise UserError(
            f"certify_share = {asked.share:g}: of {len(set(found[0]))} authors too few are left to fit "
            "the scales on; give more authors, or another share or seed"
        )
    return fitted, a & b


def certificates(
    labels: np.ndarray,
    kinds: np.ndarray,
    found: Clusters,
    held: np.ndarray,
    probabilities: Callable[[np.ndarray], np.ndarray],
    prior: float,
    asked: Promises,
) -> tuple[Certificate, ...]:
    """A certificate of each side that was asked for, certified or not, from the pairs that were held back, (n,) bool.

    `probabilities` gives those of some rows at the prior. Raises UserError when a kind of pairs is missing.
    """
    counts = Counter(kind for kind in kinds if kind != "positive")
    shares = {kind: (1 - prior) * count / counts.total() for kind, count in counts.items()} | {"positive": prior}
    rows = np.flatnonzero(held)
    sides = [[side[row] for row in rows] for side in found]
    here = {kinds[row] for row in rows}
    absent = [kind for kind in shares if kind not in here]
    if absent:
        raise UserError(
            f"certify_share = {asked.share:g}: the {len(rows)} pairs held back have none of the kind "
            f"{absent[0]!r}; give more authors, or another share or seed"
        )
    rows = rows[certify.independent_pairs([kinds[row] for row in rows], *sides, shares, asked.seed)]
    return tuple(
        certify.certify(
            labels[rows], probabilities(rows), side, precision, asked.confidence, unit=asked.unit, prior=prior
        )
        for side, precision in asked.precisions.items()
    )
