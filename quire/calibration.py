"""Logits to probabilities, and thresholds that keep what they promise on the data they were chosen on.

Shape letters: n pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from quire.errors import UserError
from quire.metrics import check, quality

__all__ = [
    "Fusion",
    "Scale",
    "Threshold",
    "choose_prefilter",
    "choose_threshold",
    "earns",
    "fit_fusion",
    "fit_scale",
    "fit_temperature",
    "left_out",
    "prior_weights",
    "quality",
    "smoothed",
]
OBJECTIVES = ("accuracy", "balanced_accuracy", "f1", "precision", "recall")


@dataclass(frozen=True)
class Scale:
    """probability = sigmoid(slope * logit + bias)."""

    slope: float
    bias: float

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n,) float64."""
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.bias)


def fit_scale(logits: np.ndarray, labels: np.ndarray, *, must_rise: bool = True) -> Scale:
    """Platt scaling (Platt 1999): slope and bias of least cross-entropy, with Platt's smoothed targets.

    The targets (n+ + 1)/(n+ + 2) and 1/(n- + 2) keep the solution finite for separable data. The solve is
    convex, on standardised logits, and must converge: an early stop leaves the temperature where it began.
    Scores worse than chance raise UserError; without `must_rise` (a system that is shown and not served) they get
    slope 0 and the base rate, which says as much.
    """
    logits, labels = _inputs(logits, labels)
    center, spread = logits.mean(), max(logits.std(), 1e-12)
    x = (logits - center) / spread
    slope, bias = _solve(np.stack([x, np.ones_like(x)], axis=1), smoothed(labels))
    if slope <= 0 and not must_rise:
        return Scale(0.0, float(logit(smoothed(labels).mean())))
    slope = _rising(slope / spread)
    return Scale(slope, float(bias - slope * center))


@dataclass(frozen=True)
class Fusion:
    """Second-stage probability = sigmoid(cross_slope * cross_logit + bi_slope * bi_logit + bias)."""

    cross_slope: float
    bi_slope: float
    bias: float

    def probability(self, cross_logits: np.ndarray, bi_logits: np.ndarray) -> np.ndarray:
        """Probabilities (n,) float64."""
        cross, bi = (np.asarray(logits, dtype=np.float64) for logits in (cross_logits, bi_logits))
        return expit(self.cross_slope * cross + self.bi_slope * bi + self.bias)


def fit_fusion(
    cross_logits: np.ndarray,
    bi_logits: np.ndarray,
    labels: np.ndarray,
    authors: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Fusion:
    """Platt scaling of two logits together (linear score fusion by logistic regression, Pigeon et al. 2000).

    The second stage keeps what the first one knew: a weak cross-encoder gets a small slope, and one that is worse than
    chance beside the other, or with `authors` of both sides one that does not earn its place (`earns`), gets none, so
    that it does no harm.
    """
    cross, labels = _inputs(cross_logits, labels)
    bi, _ = _inputs(bi_logits, labels)
    columns = [((x - x.mean()) / max(x.std(), 1e-12), x.mean(), max(x.std(), 1e-12)) for x in (cross, bi)]
    design = np.stack([columns[0][0], columns[1][0], np.ones(len(labels))], axis=1)
    *slopes, bias = _solve(design, smoothed(labels))
    if slopes[0] < 0 or (authors is not None and not earns(cross_logits, bi_logits, labels, authors)):
        alone = fit_scale(bi, labels)
        return Fusion(0.0, alone.slope, alone.bias)
    slopes = [float(slope / spread) for slope, (_, _, spread) in zip(slopes, columns, strict=True)]
    bias -= sum(slope * mean for slope, (_, mean, _) in zip(slopes, columns, strict=True))
    return Fusion(*slopes, float(bias))


def earns(
    cross_logits: np.ndarray, bi_logits: np.ndarray, labels: np.ndarray, authors: tuple[Sequence[str], Sequence[str]]
) -> bool:
    """Whether the second stage tells more of authors left out than the first one alone: a lower cross-entropy, by more
    than a standard error over the authors (the one-standard-error rule, Breiman et al. 1984, section 3.4.3).

    `authors`: of both texts of n pairs. They are dealt into `_PARTS`, and both are fitted on pairs that touch no author
    of the part that is judged (`left_out`). With less than two authors a part nothing can be left out, and it earns its
    place. A pair counts for the author of its first text.
    """
    names, codes = np.unique(np.concatenate(authors).astype(str), return_inverse=True)
    if len(names) < 2 * _PARTS:
        return True
    author, other = np.split(codes, 2)
    cross, bi, labels = (np.asarray(values, np.float64) for values in (cross_logits, bi_logits, labels))
    gained = np.zeros(len(labels))
    for judged, fitted in left_out(author % _PARTS, other % _PARTS, _PARTS):
        if len(np.unique(labels[fitted])) < 2:
            return True
        alone, both = fit_scale(bi[fitted], labels[fitted]), fit_fusion(cross[fitted], bi[fitted], labels[fitted])
        said = np.stack([alone.probability(bi[judged]), both.probability(cross[judged], bi[judged])])
        said = said.clip(1e-12, 1 - 1e-12)
        losses = -np.where(labels[judged] == 1, np.log(said), np.log1p(-said))
        gained[judged] = losses[0] - losses[1]
    counts = np.bincount(author)
    by_author = np.bincount(author, gained)[counts > 0] / counts[counts > 0]
    return bool(by_author.mean() > by_author.std(ddof=1) / len(by_author) ** 0.5)


def left_out(a: np.ndarray, b: np.ndarray, num_parts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs to judge and pairs to fit on, both bool (n,), for every two of the parts that hold their sides: (n,) each.

    The pairs between two parts (or within one) are judged by what is fitted on the pairs that touch neither. A pair of
    which one side stands in training is an easier one than users bring (Park & Marcotte 2012, Nature Methods 9, their
    class C3 against C2); and every pair is judged once, while keeping only pairs inside a part would lose most pairs of
    two authors, and with them the mixture that the probabilities are for.
    """
    for first in range(num_parts):
        for second in range(first, num_parts):
            judged = ((a == first) & (b == second)) | ((a == second) & (b == first))
            if judged.any():
                yield judged, ~(np.isin(a, (first, second)) | np.isin(b, (first, second)))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Scale:
    """Temperature scaling (Guo et al. 2017, arXiv:1706.04599): slope 1/T of least cross-entropy, no bias.

    The targets are smoothed as in `fit_scale`: without, separable data have T = 0.
    """
    logits, labels = _inputs(logits, labels)
    spread = max(np.abs(logits).max(), 1e-12)
    (slope,) = _solve((logits / spread)[:, None], smoothed(labels))
    return Scale(_rising(slope / spread), 0.0)


def _rising(slope: float) -> float:
    # A falling scale would turn the ranking round, and its AUC with it. Scores worse than chance mean swapped labels
    # or an untrained model: refused, since a slope clamped at 0 would silently make one constant of all scores.
    if not slope > 0:
        raise UserError(
            f"logits: higher ones are no more often the same book (slope {slope:.3g}); "
            "see whether the labels are swapped and the model is trained"
        )
    return float(slope)


def smoothed(labels: np.ndarray) -> np.ndarray:
    """Platt's targets (n,) of bool labels: as if one more pair of each class had been seen."""
    positives, negatives = int(labels.sum()), int((~labels).sum())
    return np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _inputs(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels).astype(bool)
    if logits.shape != labels.shape or not np.isfinite(logits).all():
        raise UserError(f"{len(logits)} logits for {len(labels)} labels: need one finite number each")
    if labels.all() or not labels.any():
        raise UserError(f"calibration needs both classes, all {len(labels)} labels are {int(labels.any())}")
    return logits, labels


def _solve(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of least mean cross-entropy, by Newton steps in a trust region."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = design @ weights
        return float((np.logaddexp(0, z) - target * z).mean()), design.T @ (expit(z) - target) / len(target)

    def hessian(weights: np.ndarray) -> np.ndarray:
        p = expit(design @ weights)
        return (design * (p * (1 - p))[:, None]).T @ design / len(target)

    solved = minimize(
        loss, np.zeros(design.shape[1]), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
    )
    if np.abs(solved.jac).max() > 1e-6:
        raise UserError(
            f"calibration did not converge (gradient {np.abs(solved.jac).max():.1e}): are the labels separable?"
        )
    return solved.x


@dataclass(frozen=True)
class Threshold:
    """Decide "same" when probability >= value; `achieved` are the metrics on the data it was chosen on."""

    value: float
    objective: str
    target: float | None
    achieved: dict[str, float]


def choose_threshold(
    labels: np.ndarray,
    probabilities: np.ndarray,
    objective: str = "accuracy",
    target: float | None = None,
    weights: np.ndarray | None = None,
) -> Threshold:
    """The best threshold among all that give different decisions, midway between neighbouring probabilities.

    `precision` and `recall` need a target: the lowest threshold that reaches the precision, the highest that
    reaches the recall, on these pairs; quire.certify promises a precision on others. `weights` (n,): how often each
    pair counts (`prior_weights`). Raises UserError naming the best that can be had when the target cannot be met.
    """
    labels, probabilities = check(labels, probabilities)
    if objective not in OBJECTIVES:
        raise UserError(f"objective = {objective!r}: one of {', '.join(OBJECTIVES)}")
    if (objective in ("precision", "recall")) != (target is not None):
        raise UserError(
            f"target = {target!r}: objective {objective!r} {'needs one' if target is None else 'takes none'}"
        )
    if target is not None and not 0 < target <= 1:
        raise UserError(f"target = {target}: {objective} can be above 0 and at most 1")
    values, table = _all_thresholds(labels, probabilities, np.ones(len(labels)) if weights is None else weights)
    if target is None:
        best = int(np.argmax(table[objective]))
    else:
        feasible = np.flatnonzero(table[objective] >= target)
        if not len(feasible):
            top = float(table[objective].max())
            raise UserError(f"target = {target}: {objective} reaches {top:.4f} at most on these {len(labels)} pairs")
        best = int(feasible[-1] if objective == "precision" else feasible[0])
    achieved = {name: float(column[best]) for name, column in table.items()}
    return Threshold(float(values[best]), objective, target, achieved)


def prior_weights(labels: np.ndarray, prior: float) -> np.ndarray:
    """Weights (n,) with which `prior` of the pairs are of the same book; their mean is 1."""
    labels = np.asarray(labels).astype(bool)
    share = labels.mean()
    return np.where(labels, prior / share, (1 - prior) / (1 - share))


def _all_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Thresholds in falling order, each saying "same" to one more distinct probability, and what each achieves.

    The last one says it to none: it wins only where it is strictly better.
    """
    order = np.argsort(-probabilities, kind="stable")
    p, y, w = probabilities[order], labels[order], weights[order]
    last = np.flatnonzero(np.r_[p[1:] != p[:-1], True])  # the last row of each distinct probability
    below = np.r_[p[1:], 0.0][last]
    middle = (p[last] + below) / 2
    # Between neighbouring floats there is no middle, and rounding may give the lower one, which would let it in.
    values = np.append(np.where(middle > below, middle, p[last]), max((p[0] + 1) / 2, np.nextafter(p[0], 2)))
    true_positive = np.append(np.cumsum(w * y)[last], 0.0)
    false_positive = np.append(np.cumsum(w * ~y)[last], 0.0)
    positives, negatives = true_positive[-2], false_positive[-2]
    recall = true_positive / positives
    return values, {
        "accuracy": (true_positive + negatives - false_positive) / (positives + negatives),
        "balanced_accuracy": (recall + 1 - false_positive / negatives) / 2,
        "f1": 2 * true_positive / (true_positive + false_positive + positives),
        "precision": true_positive / np.maximum(true_positive + false_positive, np.finfo(float).tiny),
        "recall": recall,
    }


_PARTS = 4  # that authors are dealt into, to ask what is worth its place
NONE_PASSES = float(np.nextafter(1.0, 2.0))  # a prefilter above every probability


def choose_prefilter(labels: np.ndarray, probabilities: np.ndarray, recall: float) -> float:
    """The highest first-stage threshold that still lets `recall` of the positives through to the second stage."""
    return choose_threshold(labels, probabilities, "recall", recall).value
