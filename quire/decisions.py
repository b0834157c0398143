"""From probabilities to "same", "different" or "undecided": where something was promised, only that is decided."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quire import certify
from quire.certify import Certificate
from quire.errors import UserError

CODES = {
    "cannot_certify": "the precision that was asked for on this side is not certified, or not for this prior",
    "not_calibrated": "the probability is not calibrated for texts of this length, so nothing is certified of it",
}


@dataclass(frozen=True)
class Rule:
    """How a probability becomes a decision where `prior` of the pairs are of the same book.

    Without certificates one threshold decides every pair. With them each side is decided from its own threshold on,
    and what lies between, or on a side that has none, is undecided. Thresholds are on the probabilities' own scale.
    """

    threshold: float
    certificates: tuple[Certificate, ...]  # of the sides for which a precision was asked
    prior: float

    def limit(self, side: certify.Side) -> float | None:
        """The side is decided from this probability on; None where it never is."""
        if not self.certificates:
            return self.threshold
        found = [c for c in self.certificates if c.side == side and c.holds_at(self.prior)]
        return certify.at_prior(found[0], self.prior).threshold if found else None

    def decide(self, probability: float, calibrated: bool = True) -> tuple[str, str | None]:
        """`same`, `different` or `undecided`, and for the last why, as a key of `CODES`, or None: between the sides."""
        same, different = self.limit("same"), self.limit("different")
        if not self.certificates:
            return ("same" if probability >= self.threshold else "different"), None
        if not calibrated:
            return "undecided", "not_calibrated"
        if same is not None and probability >= same:
            return "same", None
        if different is not None and probability <= different:
            return "different", None
        side = "same" if probability >= 0.5 else "different"
        asked = side in {certificate.side for certificate in self.certificates}
        return "undecided", "cannot_certify" if asked and self.limit(side) is None else None


def rule(
    threshold: float, objective: str, certificates: Sequence[Certificate], prior: float, new_prior: float | None
) -> Rule:
    """The rule that was calibrated for one prior, as it is used at another (default: the same).

    `accuracy`: the threshold stays where it is on the probabilities, so the cut on the scores moves with the prior
    (Bayes' rule for equal costs of both errors). Any other objective reaches its value at its own prior alone, so
    without certificates another one raises UserError.
    """
    if new_prior is None or abs(new_prior - prior) < 1e-9:
        return Rule(threshold, tuple(certificates), prior)
    if not 0 < new_prior < 1:
        raise UserError(f"prior = {new_prior}: a share above 0 and below 1")
    if objective != "accuracy" and not certificates:
        raise UserError(
            f"prior = {new_prior}: the threshold was chosen for objective {objective!r} at prior {prior:.3f}; "
            f"calibrate with prior={new_prior}"
        )
    return Rule(threshold, tuple(certificates), new_prior)


def at_prior(probabilities: np.ndarray, prior: float, new_prior: float) -> np.ndarray:
    """`certify.shift`, and the very same numbers where the prior stays."""
    return probabilities if new_prior == prior else certify.shift(probabilities, prior, new_prior)
