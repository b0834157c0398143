"""From the nearest chunks of other works to negatives: filters in a stated order, a reason for every rejected one.

A candidate is rejected by the first of these that speaks against it: range_min, no_positive, min_score, max_score,
absolute_margin, relative_margin, near_duplicate, cross_min_score, cross_max_score; the surplus is not_sampled. The two
that must read texts look only at as many as are needed, in the order in which negatives are sampled.

Option names and rules are those of `mine_hard_negatives` of sentence-transformers 6.2, with three differences: ranks
are those of the search, before any filter; scores are always cosines, and the cross-encoder has a band of its own; and
a query's positive score is by default the mean over its positives, not the lowest (`positive_scores`).

Shape letters: q queries, k candidates of each, the nearest first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from quire.dedup import mixed
from quire.errors import UserError
from quire.works import MIN_GAP

REASONS = (
    "range_min",
    "no_positive",
    "min_score",
    "max_score",
    "absolute_margin",
    "relative_margin",
    "near_duplicate",
    "cross_min_score",
    "cross_max_score",
    "not_sampled",
)
CHOSEN, ABSENT = -1, -2  # beside places in REASONS; ABSENT where there are fewer than k candidates
POSITIVES = {"mean": np.mean, "lowest": np.min, "best": np.max}
SHINGLE_SIZE = 8  # words: a run that two works share by quoting, or by being one
# Of the shorter text's runs: what an edition with one word in four wrong keeps (.75^8), and in a chunk of 250 words a
# passage of 32 copied words.
NEAR_DUPLICATE = 0.1
# Candidates for each negative asked for where filters may reject some, as in sentence-transformers.
_DEPTH = 10
_BLOCK = 256  # queries of one document at a time
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# (queries, their candidates), two (m,) arrays of places in (q, k), to a number for each: (m,)
Look = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rules:
    """Which candidates become negatives. Scores are cosines, of -1 to 1; ranks count from 0, `range_max` exclusive."""

    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    min_score: float | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    duplicate_share: float = NEAR_DUPLICATE  # 0: none is rejected for its text
    cross_min_score: float | None = None
    cross_max_score: float | None = None
    num_rescored: int = 12
    sampling_strategy: str = "top"

    @property
    def depth(self) -> int:
        """k: how many candidates the search must give."""
        if self.range_max is not None:
            return self.range_max
        filters = (
            self.min_score,
            self.max_score,
            self.absolute_margin,
            self.relative_margin,
            self.duplicate_share or None,
        )
        bands = (self.cross_min_score, self.cross_max_score)
        filtered = any(value is not None for value in (*filters, *bands))
        return self.range_min + self.num_negatives * (_DEPTH if filtered else 1)

    def check(self, *, cross: bool) -> None:
        """Raise UserError for a window, a band or, with a cross-encoder, a budget that cannot hold."""
        if self.depth - self.range_min < self.num_negatives:
            left = max(0, self.depth - self.range_min)
            raise UserError(
                f"num_negatives = {self.num_negatives}: range_min = {self.range_min} to range_max = {self.depth} leaves"
                f" {left} candidates; widen the range"
            )
        for low, high in (("min_score", "max_score"), ("cross_min_score", "cross_max_score")):
            bounds = getattr(self, low), getattr(self, high)
            if None not in bounds and bounds[0] > bounds[1]:
                raise UserError(f"{low} = {bounds[0]}: above {high} = {bounds[1]}, nothing lies between")
        if cross and self.num_rescored < self.num_negatives:
            raise UserError(f"num_rescored = {self.num_rescored}: below num_negatives = {self.num_negatives}; raise it")


@dataclass(frozen=True)
class Mined:
    """What became of the candidates, (q, k) each: a place in REASONS, CHOSEN or ABSENT; and what was looked at, else
    NaN."""

    reason: np.ndarray  # int8
    shared: np.ndarray  # float32, share of common runs of words
    cross: np.ndarray  # float32, probability of one book

    def chosen(self) -> tuple[np.ndarray, np.ndarray]:
        """Places (queries, columns) of the negatives, query by query, the nearest first."""
        return np.nonzero(self.reason == CHOSEN)

    def counts(self) -> dict[str, int]:
        """Candidates by reason, the negatives as `chosen`."""
        counts = np.bincount(self.reason.ravel() - ABSENT, minlength=len(REASONS) - ABSENT)[1:]
        return dict(zip(("chosen", *REASONS), counts.tolist(), strict=True))


def keys(ids: Sequence[str], seed: int) -> np.ndarray:
    """A random number for each query, (q,) uint64, by its id alone: other queries come and go, its sample stays."""
    digest = xxhash.xxh3_64_intdigest
    return mixed(np.fromiter((digest(f"{seed}:{i}".encode()) for i in ids), np.uint64, len(ids)))


def draws(keys: np.ndarray, k: int, stream: int = 0) -> np.ndarray:
    """Random numbers of the candidates, (q, k) uint64, by query and rank."""
    counter = np.arange(stream * 2**32 + 1, stream * 2**32 + k + 1, dtype=np.uint64)
    return mixed(keys[:, None] + _GOLDEN * counter)


def drawn(keys: np.ndarray, count: int) -> np.ndarray:
    """Places of at most `count` queries, ascending: those with the lowest keys."""
    return np.sort(np.argsort(keys, kind="stable")[:count])


def positive_scores(
    vectors: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    rows: np.ndarray,
    *,
    how: str = "mean",
    min_gap: int = MIN_GAP,
) -> np.ndarray:
    """How near each query is to its own document: (q,) float32, NaN where no chunk is far enough away.

    `vectors` (m, d) of all embedded chunks of one document, `start` and `end` (m,) their characters, `rows` (q,) the
    queries among them. Its positives are the chunks that `quire.pairs` would pair it with: `min_gap` characters away or
    more, so that they neither overlap nor touch. Of their cosines `how` takes the mean, which is what a positive drawn
    at random is expected to have, and so neither grows nor falls with the length of the book, as the best and the
    lowest do. Not only the positives that the pairs artefact happens to hold: most chunks are in none.
    """
    scores = np.full(len(rows), np.nan, np.float32)
    exact = vectors.astype(np.float64)
    for at in range(0, len(rows), _BLOCK):
        mine = rows[at : at + _BLOCK]
        far = (start[None] >= end[mine, None] + min_gap) | (end[None] + min_gap <= start[mine, None])
        cosines = exact[mine] @ exact.T
        for i in np.flatnonzero(far.any(axis=1)):
            scores[at + i] = POSITIVES[how](cosines[i, far[i]])
    return scores


def mine(
    scores: np.ndarray,
    positive: np.ndarray,
    keys: np.ndarray,
    rules: Rules,
    *,
    shared: Look | None = None,
    cross: Look | None = None,
) -> Mined:
    """Judge the candidates of q queries and sample their negatives.

    `scores` (q, k) descending, -inf where there is none; `positive` (q,) of `positive_scores`; `keys` (q,) of `keys`.
    `shared` tells which share of their runs of words two texts have in common, `cross` the cross-encoder's probability
    that they are of one book. With `cross`, "top" takes the most probable within the band; without, the nearest.
    """
    reason = judge(scores, positive, rules)
    looked = np.full(scores.shape, np.nan, np.float32)
    probable = np.full(scores.shape, np.nan, np.float32)
    order, num_passing = _order(reason, keys, rules)
    wanted = rules.num_rescored if cross else rules.num_negatives
    queries, columns = _hold(order, num_passing, wanted, reason, looked, shared, rules)
    if cross:
        probable[queries, columns] = cross(queries, columns)
        found = probable[queries, columns]
        for name, outside in (
            ("cross_min_score", found < _or(rules.cross_min_score, -np.inf)),
            ("cross_max_score", found > _or(rules.cross_max_score, np.inf)),
        ):
            fresh = outside & (reason[queries, columns] == CHOSEN)
            reason[queries[fresh], columns[fresh]] = REASONS.index(name)
        held = reason[queries, columns] == CHOSEN
        queries, columns = _best(queries[held], columns[held], probable, rules)
    surplus = reason == CHOSEN
    surplus[queries, columns] = False
    reason[surplus] = REASONS.index("not_sampled")
    return Mined(reason, looked, probable)


def judge(scores: np.ndarray, positive: np.ndarray, rules: Rules) -> np.ndarray:
    """The reason of what ranks and scores alone reject, CHOSEN for what passes: (q, k) int8."""
    reason = np.where(np.isneginf(scores), ABSENT, CHOSEN).astype(np.int8)
    exact, near = scores.astype(np.float64), positive.astype(np.float64)[:, None]
    margins = rules.absolute_margin is not None or rules.relative_margin is not None
    against = {
        "range_min": np.broadcast_to(np.arange(scores.shape[1]) < rules.range_min, scores.shape),
        "no_positive": np.broadcast_to(np.isnan(near) & margins, scores.shape),
        "min_score": exact < _or(rules.min_score, -np.inf),
        "max_score": exact > _or(rules.max_score, np.inf),
    }
    if rules.absolute_margin is not None:
        against["absolute_margin"] = exact + rules.absolute_margin > near
    if rules.relative_margin is not None:
        against["relative_margin"] = exact > near - np.abs(near) * rules.relative_margin
    for name, rejected in against.items():
        reason[(reason == CHOSEN) & rejected] = REASONS.index(name)
    return reason


def sample_rejected(mined: Mined, keys: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Places (queries, columns) of a few rejected candidates: of a share of the queries, one for each reason."""
    sampled = (draws(keys, 1, stream=1)[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share
    queries, columns = np.nonzero((mined.reason >= 0) & sampled[:, None])
    reason = mined.reason[queries, columns].astype(np.int64)
    chance = draws(keys, mined.reason.shape[1], stream=2)[queries, columns]
    order = np.lexsort((chance, reason, queries))
    first = order[np.unique((queries * len(REASONS) + reason)[order], return_index=True)[1]]
    return queries[first], columns[first]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _order(reason: np.ndarray, keys: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """The columns in the order in which they are taken (q, k), and how many of a row pass: (q,)."""
    passing = reason == CHOSEN
    turn = np.broadcast_to(np.arange(reason.shape[1]), reason.shape)
    if rules.sampling_strategy == "random":
        turn = draws(keys, reason.shape[1])
    return np.lexsort((turn, ~passing)), passing.sum(axis=1)


def _hold(
    order: np.ndarray,
    num_passing: np.ndarray,
    wanted: int,
    reason: np.ndarray,
    looked: np.ndarray,
    shared: Look | None,
    rules: Rules,
) -> tuple[np.ndarray, np.ndarray]:
    """The first `wanted` candidates of each query that are no near duplicates; the others get their reason."""
    taken = np.zeros(len(order), np.int64)
    lack = np.full(len(order), wanted)
    held: list[tuple[np.ndarray, np.ndarray]] = []
    while True:
        count = np.minimum(lack, num_passing - taken)
        queries = np.repeat(np.arange(len(order)), count)
        if not len(queries):
            break
        nth = np.arange(len(queries)) - np.repeat(np.cumsum(count) - count, count)
        columns = order[queries, taken[queries] + nth]
        taken += count
        good = np.ones(len(queries), bool)
        if shared:
            looked[queries, columns] = shared(queries, columns)
            good = ~(looked[queries, columns] >= (rules.duplicate_share or np.inf))
            reason[queries[~good], columns[~good]] = REASONS.index("near_duplicate")
        held.append((queries[good], columns[good]))
        lack -= np.bincount(queries[good], minlength=len(lack))
    empty = np.zeros(0, np.int64)
    found = [np.concatenate(part) for part in zip(*held, strict=True)] if held else [empty, empty]
    by_query = np.argsort(found[0], kind="stable")
    return found[0][by_query], found[1][by_query]


def _best(
    queries: np.ndarray, columns: np.ndarray, probable: np.ndarray, rules: Rules
) -> tuple[np.ndarray, np.ndarray]:
    """Of the candidates within the band, num_negatives a query: the most probable, or the first in drawn order."""
    if rules.sampling_strategy == "top":
        order = np.lexsort((columns, -probable[queries, columns], queries))
        queries, columns = queries[order], columns[order]
    first = np.searchsorted(queries, queries)
    kept = np.arange(len(queries)) - first < rules.num_negatives
    return queries[kept], columns[kept]
