"""Curves of style: rising, never certain, chosen by what they are worth on authors that they have not seen."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from quire.calibration import Scale, quality
from quire.errors import UserError
from quire.style_scale import Isotonic, choose_curve, cross_validated, fit_curve


def world(num_authors: int = 30, each: int = 40, own: float = 0.0, seed: int = 0, steps: bool = False):
    """Cosines, labels and author groups of pairs; `own`: how much the authors themselves differ."""
    draw = np.random.default_rng(seed)
    level = draw.normal(0, own, num_authors)
    a = np.repeat(np.arange(num_authors), each)
    labels = np.tile(np.arange(each) % 2, num_authors)
    b = np.where(labels == 1, a, (a + draw.integers(1, num_authors, len(a))) % num_authors)
    x = draw.uniform(-1, 1, len(a))
    if steps:  # a probability of two levels, which no sigmoid follows
        labels = (draw.random(len(a)) < np.where(x > 0.6, 0.95, 0.3)).astype(int)
        b = np.where(labels == 1, a, (a + 1) % num_authors)
        return x, labels, ([str(n) for n in a], [str(n) for n in b])
    cosines = 0.25 * (2 * labels - 1) + level[a] + level[b] + draw.normal(0, 0.3, len(a))
    return cosines, labels, ([str(n) for n in a], [str(n) for n in b])


def test_the_isotonic_curve_is_that_of_scikit_learn_on_smoothed_targets() -> None:
    cosines, labels, _ = world()
    curve = fit_curve("isotonic", cosines.round(2), labels)
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(cosines.round(2), targets)
    asked = np.linspace(-2, 2, 301)
    np.testing.assert_allclose(curve.probability(asked), theirs.predict(asked), atol=1e-9)
    assert len(curve.x) < len(np.unique(cosines.round(2))) / 2
    assert min(curve.y) > 0 and max(curve.y) < 1 and list(curve.y) == sorted(curve.y)


def test_the_logistic_curve_finds_the_slope_that_made_the_labels() -> None:
    draw = np.random.default_rng(1)
    x = draw.uniform(-1, 1, 40_000)
    labels = (draw.random(len(x)) < Scale(4.0, -1.0).probability(x)).astype(int)
    curve = fit_curve("logistic", x, labels)
    assert (curve.slope, curve.bias) == (pytest.approx(4.0, rel=0.05), pytest.approx(-1.0, abs=0.06))


@pytest.mark.parametrize("method", ["logistic", "isotonic", "auto"])
def test_scores_that_fall_are_refused(method: str) -> None:
    cosines, labels, groups = world()
    with pytest.raises(UserError, match="does not rise"):
        choose_curve(-cosines, labels, groups, method=method)
    flat = fit_curve("isotonic", -cosines, labels, must_rise=False)
    assert set(flat.probability(cosines).round(6)) == {0.5}


def test_no_author_of_a_judged_pair_has_a_say_in_its_probability() -> None:
    cosines, labels, (a, b) = world(num_authors=8)
    before = cross_validated("isotonic", cosines, labels, (a, b), 4)
    assert not np.isnan(before).any()
    touched = np.asarray([("3" in pair) for pair in zip(a, b, strict=True)])
    changed = np.where(touched, draw_again(cosines), cosines)
    after = cross_validated("isotonic", changed, labels, (a, b), 4)
    # Pairs of author 3 judge none of his pairs: where his cosines stay as they were, so do his probabilities.
    again = cross_validated("isotonic", np.where(touched, cosines, draw_again(cosines)), labels, (a, b), 4)
    assert not np.array_equal(before[~touched], after[~touched])
    own = np.flatnonzero(touched)[0]
    alone = cosines.copy()
    alone[np.flatnonzero(touched)[1:]] = 9.0
    assert cross_validated("isotonic", alone, labels, (a, b), 4)[own] == before[own]
    assert not np.array_equal(again[touched], before[touched])


def draw_again(cosines: np.ndarray) -> np.ndarray:
    return np.random.default_rng(9).permutation(cosines)


def test_authors_that_differ_make_the_cross_validated_score_worse_than_the_one_on_seen_pairs() -> None:
    cosines, labels, groups = world(own=0.3, num_authors=12)
    chosen = choose_curve(cosines, labels, groups)
    seen = quality(labels, chosen.curve.probability(cosines))["brier"]
    assert chosen.cross_validated[chosen.method]["brier"] > seen and chosen.num_judged == len(labels)


def test_steps_are_given_to_the_isotonic_curve_and_a_sigmoid_to_the_logistic() -> None:
    for criterion in ("brier", "log_loss"):
        stepped = choose_curve(*world(steps=True, each=200), criterion=criterion)
        smooth = choose_curve(*world(num_authors=10, each=20, seed=4), criterion=criterion)
        assert isinstance(stepped.curve, Isotonic) and stepped.method == "isotonic"
        assert isinstance(smooth.curve, Scale) and smooth.method == "logistic"
        assert stepped.cross_validated["isotonic"][criterion] < stepped.cross_validated["logistic"][criterion]


def test_three_authors_cannot_choose_and_are_told_what_to_do() -> None:
    cosines, labels, groups = world(num_authors=3)
    with pytest.raises(UserError, match="3 author groups are too few .* method=logistic"):
        choose_curve(cosines, labels, groups, num_folds=3)
    assert choose_curve(cosines, labels, groups, method="logistic").cross_validated == {}
