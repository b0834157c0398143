"""Metrics and calibration on data whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from quire import calibration, metrics
from quire.errors import UserError
from quire.views import Views


def sample(count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True logits and labels drawn from them."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0.3, 2.0, count)
    return logits, (draw.random(count) < expit(logits)).astype(int)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0, 5.0, 10.0])
def test_the_true_temperature_is_recovered(temperature: float) -> None:
    logits, labels = sample()
    assert 1 / calibration.fit_temperature(logits * temperature, labels).slope == pytest.approx(temperature, rel=0.04)


def test_scale_and_bias_are_recovered_wherever_the_scores_lie() -> None:
    logits, labels = sample()
    found = calibration.fit_scale(0.01 * logits + 0.7, labels)  # such as cosines
    np.testing.assert_allclose(found.probability(0.01 * logits + 0.7), expit(logits), atol=0.02)


def test_separable_scores_give_finite_scales() -> None:
    scores, labels = np.r_[np.zeros(50), np.ones(50)], np.r_[np.zeros(50), np.ones(50)]
    assert np.isfinite(calibration.fit_scale(scores, labels).slope)
    # Smoothed targets of 50 a class: the best probability of a positive is 51 / 52, wherever the scores lie.
    assert calibration.fit_temperature(scores - 0.5, labels).probability(0.5) == pytest.approx(51 / 52, abs=1e-6)
    fusion = calibration.fit_fusion(scores, -scores, labels)
    assert np.isfinite([fusion.cross_slope, fusion.bi_slope, fusion.bias]).all()


@pytest.mark.parametrize("fit", [calibration.fit_scale, calibration.fit_temperature])
def test_scores_that_rank_the_wrong_way_round_are_refused_not_reversed(fit) -> None:
    logits, labels = sample(1000)
    for wrong in (-logits, np.zeros(1000)):
        with pytest.raises(UserError, match="labels are swapped"):
            fit(wrong, labels)


def test_fusion_ignores_a_second_stage_that_knows_nothing() -> None:
    logits, labels = sample()
    noise = np.random.default_rng(5).normal(size=len(labels))
    fusion = calibration.fit_fusion(noise, logits, labels)
    assert abs(fusion.cross_slope) < 0.1 and fusion.bi_slope == pytest.approx(1.0, abs=0.05)


def test_calibration_lowers_nll_and_ece_of_overconfident_scores() -> None:
    logits, labels = sample()
    before = metrics.quality(labels, expit(3 * logits))
    after = metrics.quality(labels, calibration.fit_scale(3 * logits, labels).probability(3 * logits))
    assert after["nll"] < before["nll"] and after["ece"] < 0.02 < before["ece"]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=4, max_size=40),
    st.sampled_from(["accuracy", "balanced_accuracy", "f1"]),
)
def test_no_threshold_beats_the_chosen_one(rows: list[tuple[bool, int]], objective: str) -> None:
    labels = np.asarray([int(label) for label, _ in rows])
    probabilities = np.asarray([value / 10 for _, value in rows])
    if len(set(labels.tolist())) < 2:
        return
    chosen = calibration.choose_threshold(labels, probabilities, objective)
    assert metrics.metrics(labels, probabilities, chosen.value)[objective] == pytest.approx(chosen.achieved[objective])
    for value in np.arange(0.0, 1.1, 0.05):  # "same" to all of them, to some, to none
        assert metrics.metrics(labels, probabilities, value)[objective] <= chosen.achieved[objective] + 1e-12


def test_a_target_is_met_or_refused_with_the_best_that_can_be_had() -> None:
    labels, probabilities = np.asarray([1, 0, 1, 1, 0, 0]), np.asarray([0.8, 0.9, 0.7, 0.6, 0.5, 0.1])
    assert calibration.choose_threshold(labels, probabilities, "recall", 1.0).value == pytest.approx(0.55)
    assert calibration.choose_threshold(labels, probabilities, "precision", 0.75).value == pytest.approx(0.55)
    with pytest.raises(UserError, match="precision reaches 0.75"):
        calibration.choose_threshold(labels, probabilities, "precision", 0.9)


def test_the_threshold_between_neighbouring_floats_parts_them() -> None:
    low = np.nextafter(np.nextafter(0.7, 0), 0)
    probabilities, labels = np.asarray([low, np.nextafter(low, 1)]), np.asarray([0, 1])
    assert ((probabilities >= calibration.choose_threshold(labels, probabilities).value) == labels).all()


@pytest.mark.parametrize("target", [0.0, -1.0, 1.5, float("nan")])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        calibration.choose_threshold(np.asarray([0, 1]), np.asarray([0.1, 0.9]), "recall", target)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 4)), min_size=2, max_size=30))
def test_the_weighted_auc_is_that_of_scikit_learn(rows: list[tuple[bool, int, int]]) -> None:
    labels, scores, weights = (np.asarray(column, dtype=float) for column in zip(*rows, strict=True))
    if len(set(labels.tolist())) == 2:
        expected = roc_auc_score(labels, scores, sample_weight=weights)
        assert metrics.auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_couples_of_one_group_alone_are_compared() -> None:
    logits, labels = sample(600)
    groups, weights = np.repeat([0, 1, 2], [100, 200, 300]), np.random.default_rng(0).integers(0, 3, 600)
    of = [groups == group for group in range(3)]
    couples = [weights[o] @ labels[o] * (weights[o] @ (1 - labels[o])) for o in of]
    each = [metrics.auc(labels[o], logits[o], weights[o]) for o in of]
    apart = logits + np.array([0.0, 50.0, -50.0])[groups]  # models whose scores mean different things
    found = metrics.auc(labels, apart, weights, groups)
    assert found == pytest.approx(np.average(each, weights=couples))
    assert metrics.auc(labels, apart, weights) < found - 0.1
    authors = [np.random.default_rng(seed).choice([f"a{i}" for i in range(9)], 600) for seed in (1, 2)]
    draws = {"num_samples": 50, "groups": groups}
    assert metrics.author_bootstrap(labels, apart, *authors, **draws) == pytest.approx(
        metrics.author_bootstrap(labels, logits, *authors, **draws)
    )
    intervals = metrics.metric_intervals(labels, expit(logits), *authors, 0.5, ranking=apart, **draws)
    assert intervals["auc"] == pytest.approx(metrics.author_bootstrap(labels, logits, *authors, **draws))


def test_groups_without_a_couple_are_refused_rather_than_drawn_for_ever() -> None:
    labels, authors = np.asarray([1, 1, 0, 0]), ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="no fold holds pairs of both labels"):
        metrics.author_bootstrap(labels, np.arange(4), authors, authors, groups=labels)


# ten answers, worked by hand: 3 true positives, 1 false negative, 1 unanswered positive; 2 true negatives, 1 false
# positive, 2 unanswered negatives
TEN = np.asarray([1, 1, 1, 1, 1, 0, 0, 0, 0, 0]), np.asarray([0.9, 0.8, 0.7, 0.4, 0.5, 0.2, 0.1, 0.6, 0.5, 0.5])


def test_the_metrics_of_pan_are_those_worked_by_hand() -> None:
    found = metrics.pan(*TEN)
    # 25 couples: .9 .8 .7 beat all five; .5 beats .2 and .1 and ties with two; .4 beats two
    assert found["auc"] == pytest.approx((15 + 3 + 2) / 25)
    assert found["c_at_1"] == pytest.approx((5 + 3 * 5 / 10) / 10)
    assert found["f05u"] == pytest.approx(1.25 * 3 / (1.25 * 3 + 0.25 * (1 + 3) + 1))
    assert found["f1"] == pytest.approx(6 / 8)
    assert found["brier"] == pytest.approx(1 - (0.01 + 0.04 + 0.09 + 0.36 + 0.25 + 0.04 + 0.01 + 0.36 + 0.5) / 10)
    assert found["overall"] == pytest.approx(np.mean([found[key] for key in ("auc", "c_at_1", "f05u", "f1", "brier")]))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=2, max_size=40))
def test_the_metrics_of_pan_are_those_of_a_naive_loop(rows: list[tuple[bool, int]]) -> None:
    labels, answers = np.asarray([int(label) for label, _ in rows]), np.asarray([value / 10 for _, value in rows])
    if len(set(labels.tolist())) < 2:
        return
    correct = left = tp = fn = fp = 0
    for label, answer in zip(labels, answers, strict=True):
        if answer == 0.5:
            left += 1
            continue
        correct += (answer > 0.5) == (label == 1)
        tp += answer > 0.5 and label == 1
        fn += answer < 0.5 and label == 1
        fp += answer > 0.5 and label == 0
    found, n = metrics.pan(labels, answers), len(rows)
    assert found["c_at_1"] == pytest.approx((1 / n) * (correct + left * correct / n))
    assert found["f05u"] == pytest.approx((1.25 * tp) / (1.25 * tp + 0.25 * (fn + left) + fp))
    answered = answers != 0.5
    expected = f1_score(labels[answered], answers[answered] > 0.5, zero_division=0) if answered.any() else 0
    assert found["f1"] == pytest.approx(expected)
    assert found["brier"] == pytest.approx(1 - brier_score_loss(labels, answers))


def test_the_likelihood_ratio_cost_is_that_of_the_definition() -> None:
    labels, probabilities = np.asarray([1, 1, 0, 0, 0]), np.asarray([0.9, 0.6, 0.5, 0.2, 0.1])
    odds = probabilities / (1 - probabilities)
    half = np.mean([np.log2(1 + 1 / odds[0]), np.log2(1 + 1 / odds[1])]), np.log2(1 + odds[2:]).mean()
    assert metrics.log_likelihood_ratio_cost(labels, probabilities) == pytest.approx(sum(half) / 2)
    # What says nothing costs one bit, whatever the prior that it repeats.
    for prior in (0.5, 0.3):
        assert metrics.log_likelihood_ratio_cost(labels, np.full(5, prior), prior) == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"prior = 1\.0"):
        metrics.log_likelihood_ratio_cost(labels, probabilities, 1.0)


def test_the_least_cost_is_that_of_the_ranking_alone() -> None:
    logits, labels = sample()
    honest = metrics.log_likelihood_ratio_cost(labels, expit(logits), labels.mean())
    least = metrics.least_log_likelihood_ratio_cost(labels, logits)
    assert least == pytest.approx(honest, abs=0.005) and least < honest
    assert metrics.least_log_likelihood_ratio_cost(labels, 9 * logits + 3) == pytest.approx(least)
    assert metrics.log_likelihood_ratio_cost(labels, expit(3 * logits), labels.mean()) > honest + 0.05
    assert metrics.least_log_likelihood_ratio_cost(labels, labels) == 0
    assert metrics.least_log_likelihood_ratio_cost(labels, np.zeros(len(labels))) == pytest.approx(1.0)


def test_equal_probabilities_share_a_bin_and_the_bins_are_those_of_a_naive_loop() -> None:
    draw = np.random.default_rng(4)
    probabilities = np.round(draw.random(997), 2)  # about ten ties each
    labels = (draw.random(997) < probabilities**2).astype(int)
    order = np.argsort(probabilities, kind="stable")
    bins: dict[int, list[int]] = {}
    for place, row in enumerate(order):
        first = next(i for i, other in enumerate(order) if probabilities[other] == probabilities[row])
        bins.setdefault(first * 15 // 997, []).append(row)
        assert place >= first
    expected = sum(abs(probabilities[rows].mean() - labels[rows].mean()) * len(rows) for rows in bins.values()) / 997
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(expected)


def test_one_author_a_pair_gives_the_interval_over_pairs() -> None:
    logits, labels = sample(2000)
    authors = [str(i) for i in range(2000)]
    low, high = metrics.author_bootstrap(labels, logits, authors, authors, seed=3)
    value, positives, negatives = metrics.auc(labels, logits), labels.sum(), (1 - labels).sum()
    # Hanley & McNeil 1982, eq. 1, holds for exponential scores; near enough for a tenth or two of the width.
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (positives - 1) * (q1 - value**2) + (negatives - 1) * (q2 - value**2)
    width = 2 * 1.96 * np.sqrt(variance / (positives * negatives))
    assert high - low == pytest.approx(width, rel=0.2)


def test_a_constant_prediction_is_one_bin() -> None:
    labels = np.asarray([1] * 30 + [0] * 70)
    assert metrics.expected_calibration_error(labels, np.full(100, 0.3)) == pytest.approx(0.0)
    assert metrics.expected_calibration_error(labels, np.full(100, 0.8)) == pytest.approx(0.5)


def test_the_interval_of_every_metric_holds_its_value_and_that_of_the_auc_is_the_weighted_one() -> None:
    logits, labels = sample(600)
    authors = [np.random.default_rng(seed).choice([f"a{i}" for i in range(9)], 600) for seed in (1, 2)]
    found = metrics.metrics(labels, expit(logits), 0.5)
    intervals = metrics.metric_intervals(labels, expit(logits), *authors, 0.5, num_samples=200, seed=5)
    assert set(intervals) == {name for name in found if not name.startswith("num_")}
    assert all(low < found[name] < high for name, (low, high) in intervals.items() if name != "ece")
    weighted = metrics.author_bootstrap(labels, logits, *authors, num_samples=200, seed=5)
    # One seed draws the same authors, and a pair that counts three times is the same as three pairs.
    assert intervals["auc"] == pytest.approx(weighted)


def test_what_a_flat_scale_made_one_probability_is_ranked_by_its_scores() -> None:
    logits, labels = sample(600)
    flat, authors = np.full(600, 1 / 3), np.repeat([f"a{i}" for i in range(10)], 60)
    found = metrics.metrics(labels, flat, 0.5, ranking=logits)
    assert found["auc"] == metrics.auc(labels, logits) > 0.6 and metrics.metrics(labels, flat, 0.5)["auc"] == 0.5
    assert found["average_precision"] == metrics.average_precision(labels, logits)
    assert found["brier"] == metrics.metrics(labels, flat, 0.5)["brier"] and found["f1"] == 0
    bounds = metrics.metric_intervals(labels, flat, authors, authors, 0.5, num_samples=50, ranking=logits)
    assert bounds["auc"][0] < found["auc"] < bounds["auc"][1]


def test_intervals_over_authors_hold_the_value_and_are_wider_than_over_pairs() -> None:
    draw = np.random.default_rng(0)
    authors = np.repeat([f"a{i}" for i in range(12)], 50)
    shift = np.repeat(draw.normal(0, 1.5, 12), 50)  # pairs of one author share their difficulty
    labels = draw.integers(0, 2, 600)
    scores = expit(labels + shift + draw.normal(0, 0.5, 600))
    low, high = metrics.author_bootstrap(labels, scores, authors, authors, seed=1)
    pairs = [f"p{i}" for i in range(600)]
    low_pairs, high_pairs = metrics.author_bootstrap(labels, scores, pairs, pairs, seed=1)
    value = metrics.metrics(labels, scores, 0.5)["auc"]
    assert low < value < high and high - low > high_pairs - low_pairs


@pytest.mark.parametrize(
    ("labels", "probabilities", "words"),
    [
        ([1, 1], [0.2, 0.3], "both classes"),
        ([1, 0], [0.2, 1.2], "from 0 to 1"),
        ([2, 0], [0.2, 0.3], "expected 1"),
        ([1, float("nan")], [0.2, 0.3], "expected 1"),
        ([1, 0], [0.2], "one each"),
        ([1, 0], [0.2, float("nan")], "from 0 to 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(labels: list, probabilities: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        metrics.metrics(np.asarray(labels), np.asarray(probabilities), 0.5)


def test_character_n_grams_tell_same_book_from_another_author_on_real_novels() -> None:
    books = Path(__file__).parents[2] / "shared" / "data" / "books"
    if not books.is_dir():
        pytest.skip(f"no novels at {books}")
    rows = [json.loads(line) for line in (books / "manifest.jsonl").read_text("utf-8").splitlines()]
    rows = sorted({row["author_slug"]: row for row in rows}.values(), key=lambda row: row["file"])  # one book an author
    texts = [(books / row["file"]).read_text("utf-8") for row in rows]
    first, second = ([text[start : start + 2000] for text in texts] for start in (60_000, 90_000))
    fitted, tested = first[:15] + second[:15], range(15, len(texts))
    pairs = [(i, j) for i in tested for j in tested]
    scores = Views.fit(fitted, ["characters"]).compare([first[i] for i, _ in pairs], [second[j] for _, j in pairs])[
        :, 0
    ]
    assert metrics.auc(np.asarray([i == j for i, j in pairs], dtype=int), scores) > 0.7


def test_a_system_worse_than_chance_is_shown_as_one_probability_and_has_no_say_in_the_second_stage() -> None:
    draw = np.random.default_rng(0)
    labels = (np.arange(400) % 4 == 0).astype(int)
    good, bad = labels + draw.normal(0, 1, 400), -labels + draw.normal(0, 1, 400)
    flat = calibration.fit_scale(bad, labels, must_rise=False)
    assert flat.slope == 0 and flat.probability(bad) == pytest.approx(np.full(400, 0.25), abs=0.01)
    fusion = calibration.fit_fusion(bad, good, labels)
    assert fusion.cross_slope == 0
    np.testing.assert_allclose(fusion.probability(bad, good), calibration.fit_scale(good, labels).probability(good))


def test_average_precision_is_scikit_learns_ties_and_all() -> None:
    draw = np.random.default_rng(3)
    for _ in range(50):
        scores = draw.integers(0, 6, 30) / 5
        labels = np.append(draw.random(29) < 0.4, True)
        expected = average_precision_score(labels, scores)
        assert metrics.average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_groups_ranks_each_positive_among_its_own() -> None:
    draw = np.random.default_rng(2)
    labels, groups = draw.integers(0, 2, 400), np.repeat([0, 1, 2, 3], [50, 100, 150, 100])
    labels[groups == 0], labels[groups == 3] = 0, 1  # nothing to find, and nothing to tell apart
    scores = draw.normal(size=400) + labels
    parts = [(average_precision_score(labels[of], scores[of]), labels[of].sum()) for of in (groups == 1, groups == 2)]
    expected = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    apart = scores + 100 * groups
    assert metrics.average_precision(labels, apart, groups) == pytest.approx(expected, abs=1e-12)
    assert metrics.average_precision(labels, apart) != pytest.approx(expected, abs=1e-3)


def test_a_second_stage_earns_its_place_by_what_it_tells_of_authors_left_out() -> None:
    draw = np.random.default_rng(0)
    authors = np.repeat([f"a{n}" for n in range(24)], 20)
    labels = draw.integers(2, size=len(authors))
    bi = 1.5 * labels + draw.normal(size=len(authors))
    telling, noise = 1.5 * labels + draw.normal(size=len(authors)), draw.normal(size=len(authors))
    of_one = np.where(authors == "a0", 20.0 * labels - 10, noise)  # and of nobody else
    others = np.where(labels == 1, authors, draw.permutation(authors))
    for sides in ((authors, authors), (authors, others), (others, authors)):
        assert calibration.earns(telling, bi, labels, sides)
        assert not calibration.earns(noise, bi, labels, sides)
    assert not calibration.earns(of_one, bi, labels, (authors, others))
    assert calibration.fit_fusion(of_one, bi, labels).cross_slope > 0  # on all pairs it seems to tell something
    few = np.where(np.arange(len(authors)) % 2, "a0", "a1")
    assert calibration.earns(noise, bi, labels, (few, few))  # of two authors nobody can be left out


def test_what_is_fitted_for_a_pair_has_seen_neither_of_its_sides() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(4, size=(2, 200))
    judged_by = np.zeros(200, int)
    for judged, fitted in calibration.left_out(a, b, 4):
        judged_by += judged
        sides = {*a[judged], *b[judged]}
        assert fitted.any() and not sides & {*a[fitted], *b[fitted]}
    assert (judged_by == 1).all()
