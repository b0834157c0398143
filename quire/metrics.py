"""How good probabilities of "same book" are: by negative type, with author-cluster bootstrap intervals.

Shape letters: n pairs.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from quire.errors import UserError

NUM_BINS = 15


def check(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) as bool and probabilities (n,) as float64. Raises UserError for what cannot be measured."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.shape != probabilities.shape:
        raise UserError(
            f"{labels.shape[0]} labels but {probabilities.shape[0]} probabilities: one each, in one order"
        )
    if not np.isfinite(probabilities).all() or ((probabilities < 0) | (probabilities > 1)).any():
        raise UserError("probabilities must be numbers from 0 to 1: calibrate the scores first")
    if len(set(labels.tolist())) < 2:
        raise UserError(
            f"all {len(labels)} labels are {labels[0] if len(labels) else 'missing'}: need both classes"
        )
    return labels.astype(bool), probabilities


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, num_bins: int = NUM_BINS
) -> float:
    """ECE of P(label = 1) over equal-mass bins: sum over bins of their share x |mean probability - share of
    positives|.

    Equal-mass bins after Nixon et al. 2019 (arXiv:1904.01685). Equal probabilities stay in one bin, so that a
    constant prediction is one bin.
    """
    distinct, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    bins = ((before * num_bins) // len(probabilities))[inverse]
    error = 0.0
    for number in np.unique(bins):
        inside = bins == number
        error += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    return float(error)


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
        "auc": float(roc_auc_score(labels, probabilities)),
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
    """`overall`, and all positives against each type of negative: the types are never blended."""
    labels = np.asarray(labels)
    rows = {"overall": metrics(labels, probabilities, threshold)}
    for kind in sorted(set(np.asarray(negative_types)[labels == 0].tolist())):
        chosen = (labels == 1) | (negative_types == kind)
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

    A pair within one author weighs as often as the author was drawn, a pair of two authors the product of
    both (the pigeonhole bootstrap of Owen 2007, doi:10.1214/07-AOAS122). Pairs of one author are not
    independent; treating them so gives intervals that are too narrow.
    """
    if statistic != "auc":
        raise UserError(f"statistic = {statistic!r}: only 'auc'")
    names, codes = np.unique(np.concatenate([authors_a, authors_b]).astype(str), return_inverse=True)
    a, b = codes[: len(labels)], codes[len(labels) :]
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(num_samples):
        drawn = np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(a == b, drawn[a], drawn[a] * drawn[b]).astype(np.float64)
        present = weights > 0
        if len(set(np.asarray(labels)[present].tolist())) == 2:
            values.append(roc_auc_score(labels[present], scores[present], sample_weight=weights[present]))
    if not values:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
