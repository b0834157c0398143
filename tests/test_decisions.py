"""Decisions: one threshold decides all; a promise decides its own side, and says why it does not decide the other."""

import pytest

from quire import decisions
from quire.certify import Certificate
from quire.errors import UserError


def certificate(side: str, threshold: float | None, prior: float = 0.5) -> Certificate:
    return Certificate(side, 0.9, 0.95, "author", prior, threshold, 0.91, 60, 59, 100, 100)


BOTH = (certificate("same", 0.8), certificate("different", 0.1))
HALF = (certificate("same", None), certificate("different", 0.1))
TABLE = [
    ((), 0.6, ("same", None)),
    ((), 0.59, ("different", None)),
    (BOTH, 0.8, ("same", None)),
    (BOTH, 0.79, ("undecided", None)),
    (BOTH, 0.11, ("undecided", None)),
    (BOTH, 0.1, ("different", None)),
    (HALF, 0.99, ("undecided", "cannot_certify")),
    (HALF, 0.3, ("undecided", None)),
    (HALF, 0.05, ("different", None)),
    (BOTH[:1], 0.01, ("undecided", None)),  # nobody asked for "different"
]


@pytest.mark.parametrize(("certificates", "probability", "answer"), TABLE)
def test_each_probability_has_its_decision(certificates: tuple, probability: float, answer: tuple) -> None:
    assert decisions.Rule(0.6, certificates, 0.5).decide(probability) == answer


def test_a_promise_says_nothing_of_what_is_not_calibrated() -> None:
    assert decisions.Rule(0.6, BOTH, 0.5).decide(0.99, calibrated=False) == ("undecided", "not_calibrated")
    assert decisions.Rule(0.6, (), 0.5).decide(0.99, calibrated=False) == ("same", None)


def test_at_another_prior_one_side_keeps_its_promise_and_the_other_says_so() -> None:
    higher = decisions.rule(0.6, "accuracy", BOTH, 0.5, 0.9)
    assert higher.decide(0.999) == ("same", None) and higher.decide(0.001) == ("undecided", "cannot_certify")
    assert higher.limit("same") == pytest.approx(0.8 * 9 / (0.8 * 9 + 0.2))  # Bayes: the odds times nine
    lower = decisions.rule(0.6, "accuracy", BOTH, 0.5, 0.1)
    assert lower.decide(0.999) == ("undecided", "cannot_certify") and lower.decide(0.001) == ("different", None)


def test_a_threshold_that_reached_its_target_at_one_prior_is_not_used_at_another() -> None:
    with pytest.raises(UserError, match="calibrate with prior=0.1"):
        decisions.rule(0.6, "recall", (), 0.5, 0.1)
    assert decisions.rule(0.6, "recall", (), 0.5, 0.5).decide(0.7) == ("same", None)
    assert decisions.rule(0.6, "accuracy", (), 0.5, 0.1).limit("same") == 0.6
    with pytest.raises(UserError, match="prior = 1.5"):
        decisions.rule(0.6, "accuracy", BOTH, 0.5, 1.5)
