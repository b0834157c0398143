"""How good probabilities of "same book" are: by stratum, with author-cluster bootstrap intervals.

Shape letters: n pairs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.isotonic import isotonic_regression

from quire.errors import UserError

NUM_BINS = 15
UNANSWERED = 0.5  # how PAN writes "I do not know"


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
    if not 0 < np.count_nonzero(labels) < len(labels):
        raise UserError(f"all {len(labels)} labels are {labels[0] if len(labels) else 'missing'}: need both classes")
    return labels.astype(bool), probabilities


def auc(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None, groups: np.ndarray | None = None
) -> float:
    """Share of (positive, negative) couples that the scores (n,) order rightly, equal scores counting half.

    The area under the ROC curve (Hanley & McNeil 1982), as scikit-learn's roc_auc_score gives it, 7 to 20 times
    faster, which the bootstrap needs. `weights` (n,): how often each pair counts. `groups` (n,): couples are of one
    group alone, since scores of several models need not mean the same (Forman & Scholz 2010, SIGKDD Explorations 12).
    """
    if groups is None or (groups == groups[0]).all():
        right, couples = _couples(labels, scores, weights)
    else:
        of = [groups == group for group in np.unique(groups)]
        each = [_couples(labels[o], scores[o], None if weights is None else weights[o]) for o in of]
        right, couples = map(sum, zip(*each, strict=True))
    return float(right / couples)


def _couples(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Couples of a positive and a negative that are ordered rightly, and all there are."""
    order = np.argsort(scores, kind="stable")
    weights = np.ones(len(scores)) if weights is None else weights[order]
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positives = np.cumsum(weights * labels[order])[last_of_ties]
    negatives = np.cumsum(weights)[last_of_ties] - positives
    new_positives, new_negatives = np.diff(positives, prepend=0.0), np.diff(negatives, prepend=0.0)
    return np.sum(new_positives * (negatives - new_negatives / 2)), positives[-1] * negatives[-1]


def average_precision(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None = None) -> float:
    """The mean precision at each positive of the ranking by scores (n,), equal scores being one step of it.

    As scikit-learn's average_precision_score gives it, without the checks, which take most of its time. `groups` (n,):
    as in `auc`; each positive is ranked among the pairs of its group, those of groups that have no negative are not.
    """
    if groups is not None and (groups != groups[0]).any():
        both = np.intersect1d(groups[labels == 1], groups[labels == 0])
        of = [groups == group for group in both]
        each = [(average_precision(labels[o], scores[o]), np.count_nonzero(labels[o])) for o in of]
        return float(sum(value * count for value, count in each) / sum(count for _, count in each))
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    positives = np.cumsum(labels[order])[last_of_ties]
    return float(np.sum(np.diff(positives, prepend=0) * positives / (last_of_ties + 1)) / positives[-1])


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


def pan(labels: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """What PAN's verification tasks report of answers (n,): AUC, c@1, F0.5u, F1, 1 - Brier, and their plain mean.

    As their evaluator of 2021 and later defines them: above .5 is "same", below "different", .5 itself unanswered (the
    one of 2020 lacks Brier, and took .5 for "same" in F0.5u). c@1 (Penas & Rodrigo 2011, ACL, p. 1415) gives what is
    unanswered the accuracy of the whole; F0.5u (Bevendorff et al. 2019, NAACL, p. 654) counts it as missed and asks for
    precision first; F1 leaves it out, and is 0 where it cannot be had.
    """
    labels, answers = check(labels, answers)
    num_pairs, unanswered = len(labels), int((answers == UNANSWERED).sum())
    same, different = answers > UNANSWERED, answers < UNANSWERED
    true_positive, false_positive = int((same & labels).sum()), int((same & ~labels).sum())
    false_negative, true_negative = int((different & labels).sum()), int((different & ~labels).sum())
    correct, wrong = true_positive + true_negative, false_positive + false_negative
    values = {
        "auc": auc(labels, answers),
        "c_at_1": (correct + unanswered * correct / num_pairs) / num_pairs,
        "f05u": 1.25 * true_positive / (1.25 * true_positive + 0.25 * (false_negative + unanswered) + false_positive),
        "f1": 2 * true_positive / max(1, 2 * true_positive + wrong),
        "brier": 1 - float(np.square(answers - labels).mean()),
    }
    return {**values, "overall": float(np.mean(list(values.values())))}


def log_likelihood_ratio_cost(labels: np.ndarray, probabilities: np.ndarray, prior: float = 0.5) -> float:
    """Cllr in bits (Bruemmer & du Preez 2006, Computer Speech and Language 20): 0 is perfect, 1 says nothing.

    The mean cost of the likelihood ratios, both classes counting half, so that it does not move with the share of
    positives. `prior`: the share of positives on which the probabilities (n,) were fitted. Raises UserError as `check`
    and for a prior that is no share.
    """
    labels, probabilities = check(labels, probabilities)
    if not 0 < prior < 1:
        raise UserError(f"prior = {prior}: a share above 0 and below 1")
    clipped = probabilities.clip(1e-12, 1 - 1e-12)
    ratio = np.log(clipped) - np.log1p(-clipped) - np.log(prior / (1 - prior))
    return _ratio_cost(labels, ratio)


def least_log_likelihood_ratio_cost(labels: np.ndarray, scores: np.ndarray) -> float:
    """Cllr of the scores (n,) after the rising scale that suits these very pairs best (pool adjacent violators).

    What is left of Cllr when calibration is perfect: the cost of the ranking alone.
    """
    labels, _ = check(labels, np.zeros(len(labels)))
    # Equal scores are one step of the scale.
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    shares = isotonic_regression(np.bincount(inverse, weights=labels) / sizes, sample_weight=sizes)[inverse]
    prior = labels.mean()
    with np.errstate(divide="ignore"):
        ratio = np.log(shares) - np.log1p(-shares) - np.log(prior / (1 - prior))
    return _ratio_cost(labels, ratio)


def _ratio_cost(labels: np.ndarray, log_ratios: np.ndarray) -> float:
    """Cllr of natural logarithms of likelihood ratios (n,), which may be infinite."""
    costs = np.logaddexp(0, np.where(labels, -log_ratios, log_ratios)) / np.log(2)
    return float((costs[labels].mean() + costs[~labels].mean()) / 2)


def metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    prior: float = 0.5,
    ranking: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, float]:
    """Ranking, decision and probability metrics; the decision is `probability >= threshold`, but PAN's is at .5.

    `prior`: as in `log_likelihood_ratio_cost`. `ranking` (n,): the scores behind the probabilities, by which `auc` and
    `average_precision` rank; a scale that the calibration pairs refused makes one probability of them all. `groups`
    (n,): as in `auc`, for these two.
    """
    labels, probabilities = check(labels, probabilities)
    ranking = probabilities if ranking is None else ranking
    said = probabilities >= threshold
    true_positive, false_positive = int((said & labels).sum()), int((said & ~labels).sum())
    false_negative, true_negative = int((~said & labels).sum()), int((~said & ~labels).sum())
    recall = true_positive / (true_positive + false_negative)
    official = pan(labels, probabilities)
    return {
        "auc": auc(labels, ranking, groups=groups),
        "average_precision": average_precision(labels, ranking, groups),
        "f1": 2 * true_positive / (2 * true_positive + false_positive + false_negative),
        "accuracy": (true_positive + true_negative) / len(labels),
        "balanced_accuracy": (recall + true_negative / (true_negative + false_positive)) / 2,
        "precision": true_positive / max(1, true_positive + false_positive),
        "recall": recall,
        **quality(labels, probabilities),
        **{name: official[name] for name in ("c_at_1", "f05u")},
        "pan": official["overall"],
        "cllr": log_likelihood_ratio_cost(labels, probabilities, prior),
        "least_cllr": least_log_likelihood_ratio_cost(labels, probabilities),
        "num_positives": int(labels.sum()),
        "num_negatives": int((~labels).sum()),
    }


def author_bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    authors_a: Sequence[str],
    authors_b: Sequence[str],
    statistic: str = "auc",
    num_samples: int = 500,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[float, float]:
    """95 % percentile interval of the AUC when authors are drawn with replacement, `author_aucs`."""
    if statistic != "auc":
        raise UserError(f"statistic = {statistic!r}: only 'auc'")
    return interval(author_aucs(labels, scores, authors_a, authors_b, num_samples, seed, groups))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of bootstrap values (num_samples,)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def author_aucs(
    labels: np.ndarray,
    scores: np.ndarray,
    authors_a: Sequence[str],
    authors_b: Sequence[str],
    num_samples: int = 500,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The AUC (num_samples,) of each draw of authors with replacement: of the same draws for every system's scores of
    the same pairs, so that their differences have an interval of their own.

    A pair within one author weighs as often as the author was drawn, a pair of two authors the product of both (the
    vertex bootstrap of Snijders & Borgatti 1999, Connections 22; its theory: Davezies, D'Haultfoeuille & Guyonvarch
    2021, Annals of Statistics 49). Pairs of one author are not independent; treating them so gives intervals that are
    too narrow. A draw without a couple to compare has no AUC and is drawn anew. `groups` (n,): as in `auc`.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    check(labels, np.zeros(len(labels)))
    if not len(labels) == len(scores) == len(authors_a) == len(authors_b) or not np.isfinite(scores).all():
        raise UserError(f"{len(labels)} labels: need a finite score and two authors for each")
    order = np.argsort(scores, kind="stable")  # sorted once, every draw is sorted already
    labels, scores = labels[order], scores[order]
    a, b = (np.asarray(authors, dtype=object)[order] for authors in (authors_a, authors_b))
    groups = np.zeros(len(labels), int) if groups is None else np.asarray(groups)[order]
    return np.array(
        [
            auc(labels[present], scores[present], weights[present], groups[present])
            for present, weights in _author_draws(labels, a, b, num_samples, seed, groups)
        ]
    )


def metric_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    authors_a: Sequence[str],
    authors_b: Sequence[str],
    threshold: float,
    prior: float = 0.5,
    num_samples: int = 500,
    seed: int = 0,
    ranking: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """The interval of `author_bootstrap` for each of `metrics`: every draw repeats the pairs as often as they weigh.

    That of ECE lies high: repeated pairs make every bin noisier, and noise adds to it.
    """
    labels, probabilities = check(labels, probabilities)
    ranking = probabilities if ranking is None else ranking
    groups = np.zeros(len(labels), int) if groups is None else np.asarray(groups)
    rows = [
        metrics(labels[repeated], probabilities[repeated], threshold, prior, ranking[repeated], groups[repeated])
        for repeated in (
            np.repeat(present, weights[present].astype(np.int64))
            for present, weights in _author_draws(labels, authors_a, authors_b, num_samples, seed, groups)
        )
    ]
    names = [name for name in rows[0] if not name.startswith("num_")]
    return {name: interval(np.array([row[name] for row in rows])) for name in names}


def _author_draws(
    labels: np.ndarray,
    authors_a: Sequence[str],
    authors_b: Sequence[str],
    num_samples: int,
    seed: int,
    groups: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of the pairs that a draw of authors holds, and how often each of all pairs (n,) counts. Some group of a
    draw has a couple of a positive and a negative. Raises UserError where none of all pairs has."""
    if not any_couple(labels, groups):
        raise UserError("no fold holds pairs of both labels here: give more pairs, or deal fewer folds")
    names, codes = np.unique(np.concatenate([authors_a, authors_b]).astype(str), return_inverse=True)
    a, b = codes[: len(labels)], codes[len(labels) :]
    draw = np.random.default_rng(seed)
    while num_samples:  # ends: a positive and a negative hold 4 authors at most, all drawn in 9 % or more
        drawn = np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(a == b, drawn[a], drawn[a] * drawn[b]).astype(np.float64)
        present = np.flatnonzero(weights)
        if any_couple(labels[present], groups[present]):
            num_samples -= 1
            yield present, weights


def any_couple(labels: np.ndarray, groups: np.ndarray) -> bool:
    """Whether some group holds a positive and a negative."""
    positives = groups[labels.astype(bool)]
    return bool(np.isin(positives, groups[~labels.astype(bool)]).any())
