"""Metrics, calibration and the classical baseline on data whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from quire import baselines, calibration, metrics
from quire.errors import UserError


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
    for fit in (calibration.fit_scale,):
        assert np.isfinite(fit(scores, labels).slope)
    fusion = calibration.fit_fusion(scores, -scores, labels)
    assert np.isfinite([fusion.cross_slope, fusion.bi_slope, fusion.bias]).all()


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
    for value in np.arange(0.0, 1.0, 0.05):
        if (probabilities >= value).any():
            assert metrics.metrics(labels, probabilities, value)[objective] <= chosen.achieved[objective] + 1e-12


def test_a_target_is_met_or_refused_with_the_best_that_can_be_had() -> None:
    labels, probabilities = np.asarray([1, 0, 1, 1, 0, 0]), np.asarray([0.8, 0.9, 0.7, 0.6, 0.5, 0.1])
    assert calibration.choose_threshold(labels, probabilities, "recall", 1.0).value == pytest.approx(0.55)
    assert calibration.choose_threshold(labels, probabilities, "precision", 0.75).value == pytest.approx(0.55)
    with pytest.raises(UserError, match="precision reaches 0.75"):
        calibration.choose_threshold(labels, probabilities, "precision", 0.9)


def test_a_constant_prediction_is_one_bin() -> None:
    labels = np.asarray([1] * 30 + [0] * 70)
    assert metrics.expected_calibration_error(labels, np.full(100, 0.3)) == pytest.approx(0.0)
    assert metrics.expected_calibration_error(labels, np.full(100, 0.8)) == pytest.approx(0.5)


def test_negative_types_are_never_blended() -> None:
    labels = np.asarray([1, 1, 0, 0])
    kinds = np.asarray(["positive", "positive", "random", "neighbor"], dtype=object)
    rows = metrics.by_negative_type(labels, kinds, np.asarray([0.6, 0.7, 0.1, 0.9]), 0.5)
    assert (rows["random"]["auc"], rows["neighbor"]["auc"], rows["overall"]["auc"]) == (1.0, 0.0, 0.5)
    assert rows["random"]["num_negatives"] == 1 and rows["overall"]["num_negatives"] == 2


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
        ([1, 0], [0.2], "one each"),
        ([1, 0], [0.2, float("nan")], "from 0 to 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(labels: list, probabilities: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        metrics.metrics(np.asarray(labels), np.asarray(probabilities), 0.5)


def test_texts_that_share_phrases_are_nearer_than_texts_that_do_not() -> None:
    corpus = ["the whale and the sea", "a court of law", "the ship at sea", "the judge of the court"]
    a, b = ["The  whale\nship"] * 3, ["the whale ship", "the ship", "jury duty"]
    same, near, far = baselines.char_tfidf(corpus, a, b)
    assert same == pytest.approx(1.0, abs=1e-6) and same > near > far
