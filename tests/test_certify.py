"""Certified thresholds: the promise is kept over resampled calibration sets, and looser ways of choosing break it."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, binomtest

from quire import calibration, certify
from quire.errors import UserError

TARGET, CONFIDENCE, SETS = {"same": 0.9, "different": 0.96}, 0.95, 200
# More broken promises than this among 200 would come with chance .001 if each had chance 1 - CONFIDENCE.
MOST_BROKEN = int(binom.ppf(0.999, SETS, 1 - CONFIDENCE))
STRATA = {"positive": 1 / 3, "same_author": 1 / 3, "random": 1 / 3}
NAMES = np.asarray(list(STRATA), dtype=object)


def world(draw: np.random.Generator, num_authors: int, num_pairs: int) -> tuple[np.ndarray, ...]:
    """Strata, labels, probabilities and authors (n,) of pairs; each author is easy or hard in all of its pairs."""
    ease = draw.normal(0, 1.5, num_authors)
    kind = draw.integers(3, size=num_pairs)
    a, b = (draw.integers(num_authors, size=num_pairs) for _ in range(2))
    b = np.where(kind < 2, a, np.where(a == b, (b + 1) % num_authors, b))
    labels = kind == 0
    logits = np.where(labels, 1.5, -2.0) + (ease[a] + ease[b]) / 2 + draw.normal(0, 1.0, num_pairs)
    return NAMES[kind], labels, expit(logits), a, b


def independent(draw: np.random.Generator, num_pairs: int) -> tuple[np.ndarray, ...]:
    """The same world with pairs that have nothing in common: two new authors each."""
    return world(draw, 20 * num_pairs, num_pairs)


def true_precision(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the whole world: probabilities of the side, falling, and the precision of deciding down to each."""
    _, labels, probabilities, *_ = independent(np.random.default_rng(99), 200_000)
    right, sure = (labels, probabilities) if side == "same" else (~labels, 1 - probabilities)
    order = np.argsort(-sure)
    return sure[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)


PRECISION = {side: true_precision(side) for side in certify.SIDES}


def is_broken(side: str, threshold: float | None) -> bool:
    """Whether a threshold's precision in the whole world is below the target. Deciding nothing breaks no promise."""
    if threshold is None:
        return False
    sure, precision = PRECISION[side]
    num_decided = np.searchsorted(-sure, -(threshold if side == "same" else 1 - threshold), side="right")
    return bool(num_decided) and bool(precision[num_decided - 1] < TARGET[side])


def broken(draw_set: Callable, choose: Callable, side: str = "same") -> tuple[int, int]:
    """Over 200 calibration sets: how many promises are broken, and how many are made."""
    draws = (np.random.default_rng([seed, 7]) for seed in range(SETS))
    thresholds = [choose(*draw_set(draw)) for draw in draws]
    return sum(is_broken(side, t) for t in thresholds), sum(t is not None for t in thresholds)


def searched(_: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, *authors: np.ndarray) -> float:
    return calibration.choose_threshold(labels, probabilities, "precision", TARGET["same"]).value


def all_pairs(side: str) -> Callable:
    return lambda _, y, p, *authors: certify.certify(y, p, side, TARGET[side], CONFIDENCE).threshold


def one_pair_an_author(side: str) -> Callable:
    def choose(strata: np.ndarray, y: np.ndarray, p: np.ndarray, a: np.ndarray, b: np.ndarray) -> float | None:
        rows = certify.independent_pairs(strata, a.tolist(), b.tolist(), STRATA)
        return certify.certify(y[rows], p[rows], side, TARGET[side], CONFIDENCE).threshold

    return choose


@pytest.mark.parametrize("side", certify.SIDES)
@pytest.mark.parametrize("num_pairs", [300, 1000])
def test_the_promise_is_broken_no_more_often_than_stated(side: str, num_pairs: int) -> None:
    count, made = broken(lambda draw: independent(draw, num_pairs), all_pairs(side), side)
    assert count <= MOST_BROKEN and made >= SETS // 5


def test_a_searched_threshold_breaks_it_several_times_as_often() -> None:
    count, _ = broken(lambda draw: independent(draw, 1000), searched)  # 107 of 200, and the certified ones 5
    assert count > 3 * MOST_BROKEN


def clustered(draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    return world(draw, 250, 5000)


@pytest.mark.parametrize("side", certify.SIDES)
def test_pairs_of_few_authors_keep_it_when_each_author_is_used_once(side: str) -> None:
    count, made = broken(clustered, one_pair_an_author(side), side)
    assert count <= MOST_BROKEN and made >= SETS // 20


def test_pairs_of_few_authors_counted_as_independent_break_it() -> None:
    assert broken(clustered, all_pairs("same"))[0] > MOST_BROKEN  # 37


def test_independent_pairs_share_no_author_and_are_mixed_as_asked() -> None:
    strata, _, _, a, b = world(np.random.default_rng(1), 1000, 20_000)
    rows = certify.independent_pairs(strata, a.tolist(), b.tolist(), STRATA)
    used = [author for row in rows for author in {int(a[row]), int(b[row])}]
    assert len(used) == len(set(used)) and len(rows) > 700  # 4/3 authors a pair: 750 at most
    for prior in (0.05, 1 / 3, 0.8):
        shares = {"positive": prior, "same_author": (1 - prior) / 2, "random": (1 - prior) / 2}
        rows = certify.independent_pairs(strata, a.tolist(), b.tolist(), shares)
        found = Counter(strata[rows])
        for kind, share in shares.items():
            assert binomtest(found[kind], len(rows), share).pvalue > 1e-3
    again = certify.independent_pairs(strata, a.tolist(), b.tolist(), shares)
    np.testing.assert_array_equal(rows, again)


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    for right, num in ((0, 5), (59, 59), (58, 59), (700, 800)):
        exact = binomtest(right, num, alternative="greater").proportion_ci(0.95, "exact").low
        assert certify.lower_bound(right, num, 0.95) == pytest.approx(exact)
    assert certify.least_decided(0.95, 0.95) == 59  # .95^59 < .05 < .95^58
    assert certify.lower_bound(59, 59, 0.95) >= 0.95 > certify.lower_bound(58, 58, 0.95)


def test_what_cannot_be_certified_says_the_best_bound_and_what_it_would_take() -> None:
    labels, probabilities = np.arange(40) % 2, np.where(np.arange(40) % 2, 0.999, 0.001)
    found = certify.certify(labels, probabilities, "same", 0.95, 0.95)
    assert found.threshold is None and found.bound == pytest.approx(certify.lower_bound(20, 20, 0.95))
    assert found.num_needed == 118  # 59 decided, one pair in two
    assert not found.holds_at(0.5)
    many = certify.certify(np.tile(labels, 3), np.tile(probabilities, 3), "same", 0.95, 0.95)
    assert many.threshold == certify.GRID[-1] and many.num_decided == 60
    guessing = certify.certify(labels, np.full(40, 0.9), "same", 0.95, 0.95)
    assert guessing.threshold is None and guessing.num_needed is None


def test_a_shifted_probability_is_right_where_the_classes_are_mixed_otherwise() -> None:
    draw = np.random.default_rng(3)
    labels = draw.random(400_000) < 0.1
    scores = np.where(labels, 1.0, -1.0) + draw.normal(0, 1.0, len(labels))
    at_a_half = expit(2 * scores)  # the exact posterior for equal shares of these two normals
    shifted = certify.shift(at_a_half, 0.5, 0.1)
    assert calibration.quality(labels, shifted)["ece"] < 0.003 < 0.05 < calibration.quality(labels, at_a_half)["ece"]
    np.testing.assert_allclose(certify.shift(shifted, 0.1, 0.5), at_a_half)


def test_a_certificate_holds_for_more_of_its_own_class_and_not_for_less() -> None:
    labels = np.arange(400) % 2
    same, different = (certify.certify(labels, np.where(labels, 0.99, 0.01), side, 0.9, 0.95) for side in certify.SIDES)
    assert [same.holds_at(prior) for prior in (0.4, 0.5, 0.6)] == [False, True, True]
    assert [different.holds_at(prior) for prior in (0.4, 0.5, 0.6)] == [True, True, False]
    # The threshold of P(same) at another prior is the same cut on the scores.
    moved = certify.at_prior(same, 0.8)
    assert moved.threshold == pytest.approx(float(certify.shift(same.threshold, 0.5, 0.8)))


@pytest.mark.parametrize(("target", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.9, 1.0), (float("nan"), 0.95)])
def test_a_promise_that_is_no_share_is_refused(target: float, confidence: float) -> None:
    with pytest.raises(UserError, match=r"above 0 and below 1"):
        certify.certify(np.array([0, 1]), np.array([0.1, 0.9]), "same", target, confidence)


def test_authors_held_back_are_the_same_whatever_the_order() -> None:
    names = [f"a{i}" for i in range(50)]
    assert certify.held_back(names, 0.5) == certify.held_back(names[::-1] * 2, 0.5)
    assert len(certify.held_back(names, 0.5)) == 25 and len(certify.held_back(["a"], 0.1)) == 1
