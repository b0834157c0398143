"""Thresholds with a promise: "of the pairs called the same book, at least this share is", at a stated confidence.

Exact binomial bounds (Clopper & Pearson 1934) on independent pairs, tested in a sequence fixed beforehand (Bauer 1991;
"learn then test", Angelopoulos et al. 2021, arXiv:2110.01052). Shape letters: n pairs.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta

from quire.errors import UserError

Side = Literal["same", "different"]
Unit = Literal["author", "pair"]
SIDES: tuple[Side, Side] = ("same", "different")
# Probabilities of the side that is decided, from strict to lax, the same whatever the data; below one half a decision
# would go against its own probability.
GRID = (0.998, 0.995, 0.99, 0.985, *(round(0.98 - step / 100, 2) for step in range(48)))
# Chains fail when their first test has hardly more pairs than an error-free certificate needs, since one error is then
# too many. So a chain begins where an eighth of all pairs are decided, or three times that least number.
FIRST_SHARE, FIRST_TIMES = 8, 3
MOST_NEEDED = 1_000_000  # decided pairs that an estimate of what would do looks at


@dataclass(frozen=True)
class Certificate:
    """What is promised of one side, or, without a threshold, that nothing can be.

    `confidence`: the share of calibration sets for which the promise holds, of this side at this level by itself (of
    several sides and levels together: as many times the misses at most). `unit`: whom it speaks of: pairs of authors
    never seen (author), or further pairs of the calibration authors (pair). `prior`: the share of same-book pairs for
    which it was made.
    """

    side: Side
    target: float  # least share of right decisions
    confidence: float
    unit: Unit
    prior: float
    threshold: float | None  # of P(same book) at that prior; None: cannot certify
    bound: float  # lower bound of the share of right decisions at the threshold; without one, the best of any
    num_decided: int  # of the independent pairs, at the threshold or where the bound is best
    num_right: int
    num_pairs: int  # independent pairs that it rests on
    num_needed: int | None  # about so many would do; None: no number would, as far as these pairs tell

    def holds_at(self, prior: float) -> bool:
        """Whether it certifies anything where `prior` of the pairs are of the same book.

        At one and the same cut on the scores, the more same-book pairs there are, the larger is the share of right ones
        among those called the same (p TPR / (p TPR + (1 - p) FPR) rises with p), and the smaller among those called
        different. So "same" holds at this prior and every higher one, "different" at this and every lower one.
        """
        if self.threshold is None:
            return False
        slack = 1e-9  # the same number by two ways of computing it
        return prior >= self.prior - slack if self.side == "same" else prior <= self.prior + slack

    def told(self) -> str:
        """One line for people."""
        asked = f"{self.side}: precision {self.target:g} at confidence {self.confidence:g}"
        seen = f"{self.num_right} of {self.num_decided} right among {self.num_pairs} independent pairs"
        if self.threshold is not None:
            sign = ">=" if self.side == "same" else "<="
            return f"{asked} certified for P {sign} {self.threshold:.3f} (bound {self.bound:.3f}, {seen})"
        what = "more pairs alone will not do" if self.num_needed is None else f"about {self.num_needed} would be needed"
        return f"{asked} cannot be certified (best bound {self.bound:.3f}, {seen}; {what})"


def lower_bound(num_right: int, num: int, confidence: float) -> float:
    """The one-sided Clopper-Pearson bound: a lower share has less chance than 1 - confidence of so many right ones."""
    return float(_bounds(np.asarray([num_right]), np.asarray([num]), confidence)[0])


def _bounds(right: np.ndarray, num: np.ndarray, confidence: float) -> np.ndarray:
    some = right > 0
    return np.where(some, beta.ppf(1 - confidence, np.where(some, right, 1), num - right + 1), 0.0)


def least_decided(target: float, confidence: float) -> int:
    """So many decisions, all of them right, certify `target`; fewer never do (target^n <= 1 - confidence)."""
    return math.ceil(math.log(1 - confidence) / math.log(target) - 1e-9)


def certify(
    labels: np.ndarray,
    probabilities: np.ndarray,
    side: Side,
    target: float,
    confidence: float = 0.95,
    *,
    unit: Unit = "author",
    prior: float | None = None,
) -> Certificate:
    """The laxest threshold of `GRID` whose precision is at least `target`, at the stated confidence.

    `labels`, `probabilities` (n,): pairs drawn independently (see `independent_pairs`) that no scale or threshold was
    fitted on. `prior` says how the pairs are mixed (default: as the labels are).

    The thresholds are tested from strict to lax, each at the full level, up to the first that fails, so that the chance
    of a broken promise does not add up over them. Those that decide too few pairs to begin with are passed over. That
    the first test depends on how many pairs are decided costs nothing where stricter thresholds are not less precise:
    a late beginning means that few of the sure pairs came, which makes passing less likely, not more.

    Raises UserError for a target or a confidence that is no share.
    """
    _check_share(f"{side}_precision", target)
    _check_share("confidence", confidence)
    labels, probabilities = np.asarray(labels).astype(bool), np.asarray(probabilities, dtype=np.float64)
    prior = float(labels.mean()) if prior is None else prior
    values = np.asarray(GRID if side == "same" else [round(1 - value, 6) for value in GRID])
    said = probabilities[:, None] >= values if side == "same" else probabilities[:, None] <= values
    right = labels if side == "same" else ~labels
    decided, correct = said.sum(0), (said & right[:, None]).sum(0)
    bounds = _bounds(correct, decided, confidence)
    least = least_decided(target, confidence)
    first = max(least, min(FIRST_TIMES * least, len(labels) // FIRST_SHARE))
    chosen = None
    for place in np.flatnonzero(decided >= first):
        if bounds[place] < target:
            break
        chosen = place
    shown = int(np.argmax(bounds)) if chosen is None else int(chosen)
    return Certificate(
        side=side,
        target=target,
        confidence=confidence,
        unit=unit,
        prior=prior,
        threshold=None if chosen is None else float(values[chosen]),
        bound=float(bounds[shown]),
        num_decided=int(decided[shown]),
        num_right=int(correct[shown]),
        num_pairs=len(labels),
        num_needed=_needed(decided, correct, len(labels), target, confidence) if chosen is None else len(labels),
    )


def _needed(decided: np.ndarray, correct: np.ndarray, num: int, target: float, confidence: float) -> int | None:
    """The fewest pairs with which some threshold would pass if it went on deciding as often and as rightly."""
    promising = correct > target * decided
    if not promising.any():
        return None
    share = correct[promising] / decided[promising]
    sizes = np.unique(np.geomspace(least_decided(target, confidence), MOST_NEEDED, 400).astype(int))
    low, high = np.full(len(share), -1), np.full(len(share), len(sizes) - 1)  # the least size that will do: (low, high]
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = _bounds(np.floor(share * sizes[middle] + 1e-9), sizes[middle], confidence) >= target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    # Where all of them passed at some threshold that the sequence never reached, a few more than there are.
    return max(math.ceil((sizes[high] * num / decided[promising]).min()), num + 1)


def independent_pairs(
    strata: Sequence[str],
    clusters_a: Sequence[str],
    clusters_b: Sequence[str],
    shares: dict[str, float],
    seed: int = 0,
) -> np.ndarray:
    """Rows, rising, of pairs that are independent draws: no cluster (an author) stands in two of them.

    Pairs of one author share its difficulty, and so do (a, b) and (a, c): a bound that counts them all as independent
    is broken far more often than it says. A design effect (Kish 1965; Korn & Graubard 1998 for these bounds) would keep
    more pairs, but it is itself estimated, from as few authors as there are, and is 0/0 where no error was seen, which
    is where certificates are made. So each author is used once: what is left is few pairs, and the bound is exact.

    The kinds of pairs (`strata`, (n,)) are drawn one after the other with the chances `shares`, whatever their number
    among the n, so that the pairs are mixed as where the promise is to hold; as many as the authors suffice for.
    Labels and scores are not looked at.
    """
    draw = np.random.default_rng([seed, *b"certify"])
    order = draw.permutation(len(strata))
    kinds = sorted(kind for kind, share in shares.items() if share > 0)
    rows = {kind: _one_a_couple([int(r) for r in order if strata[r] == kind], clusters_a, clusters_b) for kind in kinds}
    missing = [kind for kind in kinds if not rows[kind]]
    if missing:
        raise UserError(f"prior: no pair of the kind {missing[0]!r} to certify with")
    weights = np.asarray([shares[kind] for kind in kinds])
    sequence = draw.choice(len(kinds), size=len(strata), p=weights / weights.sum())
    rows = {kind: [found[i] for i in draw.permutation(len(found))] for kind, found in rows.items()}
    # Pairs within one author are the harder to find once authors are used, so they choose first.
    kinds_first = sorted(kinds, key=lambda kind: (len(rows[kind]), kind))
    low, high, best = 0, min(len(strata), len({*clusters_a, *clusters_b})) + 1, []
    while high - low > 1:
        middle = (low + high) // 2
        wanted = np.bincount(sequence[:middle], minlength=len(kinds)).tolist()
        counts = {kind: wanted[kinds.index(kind)] for kind in kinds_first}
        chosen = _disjoint(rows, counts, clusters_a, clusters_b)
        low, high, best = (middle, high, chosen) if chosen is not None else (low, middle, best)
    return np.asarray(sorted(best), dtype=np.int64)


def _one_a_couple(rows: list[int], clusters_a: Sequence[str], clusters_b: Sequence[str]) -> list[int]:
    """The first row of each couple of clusters, so that authors of many pairs come no earlier than others."""
    couples: dict[tuple[str, str], int] = {}
    for row in rows:
        a, b = clusters_a[row], clusters_b[row]
        couples.setdefault((a, b) if a <= b else (b, a), row)
    return list(couples.values())


def _disjoint(
    rows: dict[str, list[int]], counts: dict[str, int], clusters_a: Sequence[str], clusters_b: Sequence[str]
) -> list[int] | None:
    """So many rows of each kind without a common cluster, taken greedily in order; None where they run out."""
    used: set[str] = set()
    chosen: list[int] = []
    for kind, count in counts.items():
        for row in rows[kind]:
            if not count:
                break
            if clusters_a[row] not in used and clusters_b[row] not in used:
                used |= {clusters_a[row], clusters_b[row]}
                chosen.append(row)
                count -= 1
        if count:
            return None
    return chosen


def held_back(clusters: Sequence[str], share: float, seed: int = 0) -> set[str]:
    """So large a part of the distinct clusters (authors), at least one, chosen by hash: those that certify.

    A threshold is certified on pairs that no scale was fitted on.
    """
    names = sorted(set(clusters), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    return set(names[: max(1, round(share * len(names)))])


def shift(probabilities: np.ndarray | float, prior: float, new_prior: float) -> np.ndarray:
    """Probabilities made for one share of same-book pairs as they are for another.

    Bayes' rule for a changed prior (Saerens, Latinne & Decaestecker 2002, Neural Computation 14): the logit moves by
    the difference of the priors' logits. It holds where same-book pairs, and different-book pairs, look as they did.
    """
    return np.asarray(expit(logit(probabilities) + logit(new_prior) - logit(prior)))


def at_prior(certificate: Certificate, prior: float) -> Certificate:
    """The same certificate with its threshold on the scale of probabilities for another prior; the cut stays."""
    if certificate.threshold is None:
        return certificate
    return replace(certificate, threshold=float(shift(certificate.threshold, certificate.prior, prior)))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(f"{name} = {value}: a share above 0 and below 1")
