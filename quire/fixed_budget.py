"""The fixed budget: windows that read a pool of exactly so many different tokens of each category, whole, in turn.

Like those of quire.windows a stateless function of (seed, step, slot). Shape letters: B slots, W windows of a category.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from quire.errors import UserError
from quire.sampler import generator
from quire.tokens import TokenStore
from quire.windows import Windows, number_of


class FixedWindows(Windows):
    """Windows of L tokens that cover a pool of exactly `tokens_per_category` tokens of each category, every epoch anew.

    `pool_seed` chooses the pool. Each of its documents is cut into windows that follow one another; what is left of it
    at the end is shorter than a window, so the last one is shifted back, over tokens of the one before: every token
    is read at least once an epoch, none outside the pool ever, and no window crosses documents. Slots are numbered
    through the steps, `slots_per_step` each, and dealt to the categories in turn, so that their shares of any stretch
    of slots differ by one at most. A category's windows come in an order of its own for every epoch, a permutation by
    (seed, epoch, category); a category whose windows are fewer begins its next epoch earlier. Seeking costs one
    permutation; two epochs of each category are kept, 16 bytes a window.

    Raises UserError for what `Windows` does, and for a pool that the documents cannot give.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        categories: Sequence[str],
        sequence_length: int,
        seed: int = 0,
        *,
        tokens_per_category: int,
        slots_per_step: int,
        pool_seed: int = 0,
    ):
        super().__init__(store, split, categories, sequence_length, seed=seed)
        self.slots_per_step = slots_per_step
        used = [
            _pool(store, category, rows, tokens_per_category, sequence_length, pool_seed)
            for category, rows in zip(categories, np.split(self.rows, self.first[1:-1]), strict=True)
        ]
        self.rows = np.concatenate([rows for rows, _ in used])
        self.lengths = np.concatenate([lengths for _, lengths in used])  # usable tokens of each document
        self.first = np.concatenate([[0], np.cumsum([len(rows) for rows, _ in used])])  # document of each category
        self.ends = np.cumsum(-(-self.lengths // sequence_length))  # windows up to and with each document
        bounds = np.concatenate([[0], self.ends])[self.first]
        self.first_window, self.num_windows = bounds[:-1], np.diff(bounds)  # (K,), of each category
        self._order = lru_cache(maxsize=2 * len(used))(self._drawn_order)

    @property
    def slots_per_epoch(self) -> int:
        """Slots after which every category has read its whole pool."""
        return int(self.num_windows.max()) * len(self.num_windows)

    def plan(self, step: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the store and starts in the documents, (B,) int64 each, of the windows of these slots."""
        turn, category = np.divmod(step * self.slots_per_step + slots, len(self.num_windows))
        epoch, place = np.divmod(turn, self.num_windows[category])
        window = np.empty(len(slots), np.int64)
        for number, time in np.unique(np.stack([category, epoch], axis=1), axis=0).tolist():
            mine = (category == number) & (epoch == time)
            window[mine] = self.first_window[number] + self._order(number, time)[place[mine]]
        which = np.searchsorted(self.ends, window, side="right")
        in_document = window - np.concatenate([[0], self.ends])[which]
        starts = np.minimum(in_document * self.sequence_length, self.lengths[which] - self.sequence_length)
        return self.rows[which], starts

    def _drawn_order(self, category: int, epoch: int) -> np.ndarray:
        draw = generator(self.seed, epoch, stream=number_of(self.categories[category]))
        return draw.permutation(int(self.num_windows[category]))


def _pool(
    store: TokenStore, category: str, rows: np.ndarray, num_tokens: int, sequence_length: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents and usable lengths that add up to exactly `num_tokens`, every one long enough for a window.

    Documents come in the order of hash(seed, document_id); the last is cut. What would be left too short for a
    window is filled up from what the documents before it can spare.
    """
    if num_tokens < sequence_length:
        raise UserError(
            f"distinct_tokens / k = {num_tokens}: fewer than a window of {sequence_length}; raise distinct_tokens"
        )
    order = sorted(range(len(rows)), key=lambda i: number_of(f"{seed} {store.document_ids[rows[i]]}"))
    rows = rows[order]
    lengths = store.lengths[rows].copy()
    if int(lengths.sum()) < num_tokens:
        raise UserError(
            f"category {category!r} has {int(lengths.sum()):,} tokens in documents long enough, {num_tokens:,} are "
            "asked for: lower distinct_tokens, or leave the category out"
        )
    count = int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1
    rows, lengths = rows[:count], lengths[:count]
    lengths[-1] -= int(lengths.sum()) - num_tokens
    lack = max(0, sequence_length - int(lengths[-1]))
    lengths[-1] += lack
    for i in range(count - 2, -1, -1):
        given = min(lack, int(lengths[i]) - sequence_length)
        lengths[i] -= given
        lack -= given
    if lack:
        raise UserError(
            f"distinct_tokens / k = {num_tokens}: cannot be cut from documents of {category!r} that each keep a window "
            f"of {sequence_length}; ask for a few more"
        )
    return rows, lengths
