"""How good probabilities of "same book" are: by negative type, with author-cluster bootstrap intervals.

Shape letters: n pairs.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score

from quire.errors import UserError

NUM_BINS = 15


def check(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) as bool and probabilities (n,) as float64. Raises UserError for what cannot be measured."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.shape != probabilities.shape:
        raise UserError(f"{labels.shape[0]} labels but {probabilities.shape[0]} probabilities: one each, in one order")
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        raise UserError(f"labels[{wrong[0]}] = {labels[wrong[0]]}: expected 1 (same book) or 0")
    if not np.isfinite(probabilities).all() or ((probabilities < 0) | (probabilities > 1)).any():
        raise UserError("probabilities must be numbers from 0 to 1: calibrate the scores first")
    if len(set(labels.tolist())) < 2:
        raise UserError(f"all {len(labels)} labels are {labels[0] if len(labels) else 'missing'}: need both classes")
    return labels.astype(bool), probabilities


def auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Share of (positive, negative) couples that the scores (n,) order rightly, equal scores counting half.

    The area under the ROC curve (Hanley & McNeil 1982), as scikit-learn's roc_auc_score gives it, 7 to 20 times
    faster, which the bootstrap needs. `weights` (n,): how often each pair counts.
    """
    order = np.argsort(scores, kind="stable")
    weights = np.ones(len(scores)) if weights is None else weights[order]
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positives = np.cumsum(weights * labels[order])[last_of_ties]
    negatives = np.cumsum(weights)[last_of_ties] - positives
    new_positives, new_negatives = np.diff(positives, prepend=0.0), np.diff(negatives, prepend=0.0)
    return float(np.sum(new_positives * (negatives - new_negatives / 2)) / (positives[-1] * negatives[-1]))


def calibration_bins(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of positives and number of pairs of each equal-mass bin, by rising probability.

    Equal-mass bins after Nixon et al. 2019 (arXiv:1904.01685). Equal probabilities stay in one bin, so that a
    constant prediction is one bin.
    """
    distinct, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    bins = ((before * num_bins) // len(probabilities))[inverse]
    sizes = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=values, minlength=num_bins) for values in (probabilities, labels)]
    used = sizes > 0
    return sums[0][used] / sizes[used], sums[1][used] / sizes[used], sizes[used]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """ECE of P(label = 1): |mean probability - share of positives| of each of `calibration_bins`, weighted by size."""
    mean_probability, share_positive, sizes = calibration_bins(labels, probabilities, num_bins)
    return float(np.average(np.abs(mean_probability - share_positive), weights=sizes))


def quality(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Negative log-likelihood (nats a pair), Brier score and ECE: what calibration changes."""
    labels, probabilities = check(labels, probabilities)
    clipped = probabilities.clip(1e-12, 1 - 1e-12)
    likelihood = np.where(labels, np.log(clipped), np.log1p(-clipped))
    return {
        "nll": float(-likelihood.mean()),
        "brier": float(np.square(probabilities - labels).mean()),
        "ece": expected_calibration_error(labels, probabilities),
    }


def metrics(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, float]:
    """Ranking, decision and probability metrics; the decision is `probability >= threshold`."""
    labels, probabilities = check(labels, probabilities)
    said = probabilities >= threshold
    true_positive, false_positive = int((said & labels).sum()), int((said & ~labels).sum())
    false_negative, true_negative = int((~said & labels).sum()), int((~said & ~labels).sum())
    recall = true_positive / (true_positive + false_negative)
    return {
        "auc": auc(labels, probabilities),
        "average_precision": float(average_precision_score(labels, probabilities)),
        "f1": 2 * true_positive / (2 * true_positive + false_positive + false_negative),
        "accuracy": (true_positive + true_negative) / len(labels),
        "balanced_accuracy": (recall + true_negative / (true_negative + false_positive)) / 2,
        "precision": true_positive / max(1, true_positive + false_positive),
        "recall": recall,
        **quality(labels, probabilities),
        "num_positives": int(labels.sum()),
        "num_negatives": int((~labels).sum()),
    }


def by_negative_type(
    labels: np.ndarray, negative_types: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, dict[str, float]]:
    """`overall`, and all positives against each type of negative: the types are never blended.

    `negative_types` (n,) is not looked at for positives. Raises UserError as `check`, or for a negative without type.
    """
    labels, probabilities = check(labels, probabilities)
    negative_types = np.asarray(negative_types, dtype=object)
    if len(negative_types) != len(labels):
        raise UserError(f"{len(labels)} labels but {len(negative_types)} negative types: one each, in one order")
    untyped = [row for row in np.flatnonzero(~labels) if negative_types[row] in (None, "", "overall")]
    if untyped:
        raise UserError(
            f"negative_types[{untyped[0]}] = {negative_types[untyped[0]]!r}: each negative needs a type, "
            "and 'overall' is the name of all of them"
        )
    rows = {"overall": metrics(labels, probabilities, threshold)}
    for kind in sorted(set(negative_types[~labels].tolist())):
        chosen = labels | (negative_types == kind)
        rows[kind] = metrics(labels[chosen], probabilities[chosen], threshold)
    return rows


def author_bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    authors_a: Sequence[str],
    authors_b: Sequence[str],
    statistic: str = "auc",
    num_samples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the AUC when authors are drawn with replacement.

    A pair within one author weighs as often as the author was drawn, a pair of two authors the product of both (the
    vertex bootstrap of Snijders & Borgatti 1999, Connections 22; its theory: Davezies, D'Haultfoeuille & Guyonvarch
    2021, Annals of Statistics 49). Pairs of one author are not independent; treating them so gives intervals that are
    too narrow. A draw without a pair of either class has no AUC and is drawn anew.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    check(labels, np.zeros(len(labels)))
    if not len(labels) == len(scores) == len(authors_a) == len(authors_b) or not np.isfinite(scores).all():
        raise UserError(f"{len(labels)} labels: need a finite score and two authors for each")
    if statistic != "auc":
        raise UserError(f"statistic = {statistic!r}: only 'auc'")
    names, codes = np.unique(np.concatenate([authors_a, authors_b]).astype(str), return_inverse=True)
    order = np.argsort(scores, kind="stable")  # sorted once, every draw is sorted already
    labels, scores, a, b = labels[order], scores[order], codes[: len(labels)][order], codes[len(labels) :][order]
    draw = np.random.default_rng(seed)
    values: list[float] = []
    while (
        len(values) < num_samples
    ):  # ends: one positive and one negative hold 4 authors at most, all drawn in 9 % or more
        drawn = np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(a == b, drawn[a], drawn[a] * drawn[b]).astype(np.float64)
        present = np.flatnonzero(weights)
        if 0 < np.count_nonzero(labels[present]) < len(present):
            values.append(auc(labels[present], scores[present], weights[present]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
