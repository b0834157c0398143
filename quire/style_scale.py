"""Cosines to probabilities of "the same author": a logistic or an isotonic curve, chosen by cross-validation.

Shape letters: n pairs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.isotonic import isotonic_regression

from quire import calibration
from quire.calibration import Scale
from quire.errors import UserError

Method = Literal["logistic", "isotonic"]
Criterion = Literal["brier", "log_loss"]
METHODS: tuple[Method, Method] = ("logistic", "isotonic")


@dataclass(frozen=True)
class Isotonic:
    """Probability by straight lines between knots of rising x, flat beyond the first and the last."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def probability(self, cosines: np.ndarray) -> np.ndarray:
        """Probabilities (n,) float64."""
        return np.interp(np.asarray(cosines, np.float64), self.x, self.y)


Curve = Scale | Isotonic


@dataclass(frozen=True)
class Chosen:
    """The curve of the better method, and what both are worth on authors that their curves have not seen."""

    method: Method
    curve: Curve
    cross_validated: dict[str, dict[str, float]]  # method -> brier and log_loss; empty where one was asked for
    num_judged: int  # pairs that could be cross-validated


def fit_curve(method: Method, cosines: np.ndarray, labels: np.ndarray, *, must_rise: bool = True) -> Curve:
    """sigmoid(a cosine + b) as `calibration.fit_scale`, or the rising steps of least squared error.

    Both have Platt's smoothed targets, so that no pair of cosines gets a probability of 0 or 1. Raises UserError where
    a higher cosine is no sign of the same author, or, without `must_rise`, gives one probability for every pair.
    """
    scale = calibration.fit_scale(cosines, labels, must_rise=False)
    if scale.slope <= 0 and must_rise:
        raise UserError(
            "the cosine does not rise with the label: pairs of one author are no more alike than others; "
            "see whether the pairs are drawn by author (pipelines.pairs positives=author) and the model is trained"
        )
    if method == "logistic" or scale.slope <= 0:
        return scale
    x, inverse, sizes = np.unique(np.asarray(cosines, np.float64), return_inverse=True, return_counts=True)
    targets = calibration.smoothed(np.asarray(labels).astype(bool))
    y = isotonic_regression(np.bincount(inverse, weights=targets) / sizes, sample_weight=sizes)
    # A step needs the knots at its two ends alone.
    ends = np.flatnonzero(np.append(True, y[1:] != y[:-1]) | np.append(y[1:] != y[:-1], True))
    return Isotonic(tuple(x[ends].tolist()), tuple(y[ends].tolist()))


def cross_validated(
    method: Method,
    cosines: np.ndarray,
    labels: np.ndarray,
    groups: tuple[Sequence[str], Sequence[str]],
    num_folds: int,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities (n,) by curves that have seen neither author of the pair; NaN where no curve could be fitted.

    `groups`: the author groups of both sides, which are dealt into folds by hash; `calibration.left_out` says which
    pairs are judged by which.
    """
    cosines, labels = np.asarray(cosines, np.float64), np.asarray(labels).astype(bool)
    names = sorted({*groups[0], *groups[1]}, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    fold_of = {name: place % num_folds for place, name in enumerate(names)}
    a, b = (np.fromiter((fold_of[name] for name in side), np.int64, len(side)) for side in groups)
    found = np.full(len(labels), np.nan)
    for judged, fitted in calibration.left_out(a, b, num_folds):
        if 0 < labels[fitted].sum() < fitted.sum():
            curve = fit_curve(method, cosines[fitted], labels[fitted], must_rise=False)
            found[judged] = curve.probability(cosines[judged])
    return found


def choose_curve(
    cosines: np.ndarray,
    labels: np.ndarray,
    groups: tuple[Sequence[str], Sequence[str]],
    *,
    method: Method | Literal["auto"] = "auto",
    criterion: Criterion = "brier",
    num_folds: int = 5,
    seed: int = 0,
) -> Chosen:
    """The curve of n pairs by the better method on unseen authors, fitted on all of them; or by the one asked for.

    Of equal ones, the logistic, which is the simpler. Raises UserError for scores that fall, and where too few authors
    leave nothing to compare the methods on.
    """
    if method != "auto":
        return Chosen(method, fit_curve(method, cosines, labels), {}, 0)
    labels = np.asarray(labels).astype(bool)
    scores: dict[str, dict[str, float]] = {}
    for name in METHODS:
        found = cross_validated(name, cosines, labels, groups, num_folds, seed)
        judged = ~np.isnan(found)
        if not 0 < labels[judged].sum() < judged.sum():
            raise UserError(
                f"num_folds = {num_folds}: {len({*groups[0], *groups[1]})} author groups are too few to compare the "
                "methods on authors left out; give more authors, or choose: method=logistic"
            )
        quality = calibration.quality(labels[judged], found[judged])
        scores[name] = {"brier": quality["brier"], "log_loss": quality["nll"]}
    best = min(METHODS, key=lambda name: scores[name][criterion])
    return Chosen(best, fit_curve(best, cosines, labels), scores, int(judged.sum()))
