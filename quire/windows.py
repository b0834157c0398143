"""Random windows of a token store as a stateless function of (seed, step, slot), and the frozen ones to evaluate on.

Any number of workers sees the same global batch, seeking costs nothing, and a checkpoint stores the step alone.
Shape letters: B slots, L tokens of a window, N windows.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from quire.errors import UserError
from quire.sampler import generator
from quire.tokens import TokenStore


def choose_categories(names: Sequence[str], k: int, seed: int) -> list[str]:
    """K of the names, sorted; for one seed the sets are nested in K.

    The sorted names are shuffled by CPython's Mersenne twister, the first K taken: the choice of the earlier system,
    whose published sets are reproduced. Raises UserError unless 1 <= k <= len(names).
    """
    shuffled = sorted(names)
    if not 1 <= k <= len(shuffled):
        raise UserError(
            f"k = {k}: there are {len(shuffled)} categories: {', '.join(shuffled)}; choose 1 to {len(shuffled)}"
        )
    random.Random(seed).shuffle(shuffled)
    return sorted(shuffled[:k])


class Windows:
    """Random windows of L tokens of one split and some categories, never across documents.

    `component`: category, then document, then start, each uniform. `token`: every window start alike, so that long
    documents and large categories come up more. A fixed budget of tokens is read by `quire.fixed_budget.FixedWindows`.
    Raises UserError for an unknown category, or when no document is long enough.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        categories: Sequence[str],
        sequence_length: int,
        weighting: Literal["component", "token"] = "component",
        seed: int = 0,
    ):
        self.store, self.sequence_length, self.weighting, self.seed = store, sequence_length, weighting, seed
        self.categories = list(categories)
        pools = [_long_enough(store, split, category, sequence_length) for category in categories]
        self.left_out = sum(pool.left_out for pool in pools)
        self.rows = np.concatenate([pool.rows for pool in pools])
        self.lengths = store.lengths[self.rows]
        self.first = np.concatenate([[0], np.cumsum([len(pool.rows) for pool in pools])])  # of each category
        self.ends = np.cumsum(self.lengths - sequence_length + 1)  # window starts up to and with each document

    def plan(self, step: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the store and starts in the documents, (B,) int64 each, of the windows of these slots."""
        draws = generator(self.seed, step).random((int(slots.max()) + 1, 3))[slots]
        if self.weighting == "token":
            place = (draws[:, 0] * self.ends[-1]).astype(np.int64)
            which = np.searchsorted(self.ends, place, side="right")
            starts = place - (self.ends[which] - (self.lengths[which] - self.sequence_length + 1))
            return self.rows[which], starts
        component = (draws[:, 0] * (len(self.first) - 1)).astype(np.int64)
        size = self.first[component + 1] - self.first[component]
        which = self.first[component] + (draws[:, 1] * size).astype(np.int64)
        starts = (draws[:, 2] * (self.lengths[which] - self.sequence_length + 1)).astype(np.int64)
        return self.rows[which], starts

    def batch(self, step: int, slots: np.ndarray) -> np.ndarray:
        """Token ids (B, L) int64 of the windows of these slots."""
        rows, starts = self.plan(step, slots)
        return _gather(self.store, rows, starts, self.sequence_length)

    def distinct_tokens(self, num_steps: int, num_slots: int) -> dict[str, int]:
        """Different tokens of each category in the windows of the first steps, `num_slots` each.

        Drawn again, not read: eight bytes a window, and seconds for ten million of them.
        """
        begins: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in self.categories}
        for step in range(num_steps):
            rows, starts = self.plan(step, np.arange(num_slots))
            places, category = self.store.offsets[rows] + starts, self.store.categories[rows]
            for name in self.categories:
                begins[name].append(places[category == name])
        return {name: _covered(np.concatenate(found), self.sequence_length) for name, found in begins.items()}


def evaluation_windows(
    store: TokenStore, split: str, categories: Sequence[str], sequence_length: int, num_windows: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Token ids (N, L) int64 of the windows that every run is evaluated on, by category.

    A category's windows depend on store, split, length and seed, never on its company.
    """
    plans = evaluation_plan(store, split, categories, sequence_length, num_windows, seed)
    return {name: _gather(store, rows, starts, sequence_length) for name, (rows, starts) in plans.items()}


def evaluation_plan(
    store: TokenStore, split: str, categories: Sequence[str], sequence_length: int, num_windows: int, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows in the store and starts, (N,) int64 each, of those windows.

    Documents in a seeded order, each once before any comes again; the start uniform.
    """
    found = {}
    for category in categories:
        pool = _long_enough(store, split, category, sequence_length).rows
        draw = generator(seed, number_of(f"{split} {category}"), stream=1)
        rows = pool[draw.permutation(len(pool))[np.arange(num_windows) % len(pool)]]
        starts = (draw.random(num_windows) * (store.lengths[rows] - sequence_length + 1)).astype(np.int64)
        found[category] = rows, starts
    return found


class _Pool(NamedTuple):
    rows: np.ndarray
    left_out: int


def _long_enough(store: TokenStore, split: str, category: str, sequence_length: int) -> _Pool:
    rows = np.flatnonzero((store.splits == split) & (store.categories == category))
    if not len(rows):
        raise UserError(
            f"category {category!r}: not in split {split!r}, which has {', '.join(store.names(split))}; "
            "choose categories= among these, or tokenize again with a larger share for the split"
        )
    long = rows[store.lengths[rows] >= sequence_length]
    if not len(long):
        raise UserError(
            f"sequence_length = {sequence_length}: the longest of {len(rows)} documents of {category!r} in {split!r} "
            f"has {int(store.lengths[rows].max())} tokens; choose a shorter window"
        )
    return _Pool(long, len(rows) - len(long))


def number_of(text: str) -> int:
    """A number of 64 bits for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _covered(begins: np.ndarray, length: int) -> int:
    """How many places intervals of one length cover."""
    apart = np.diff(np.sort(begins))
    return int(np.minimum(apart, length).sum()) + length * bool(len(begins))


def _gather(store: TokenStore, rows: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    places = (store.offsets[rows] + starts)[:, None] + np.arange(length)
    return store.tokens[places].astype(np.int64)
