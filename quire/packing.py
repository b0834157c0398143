"""Length-sorted packing: batches under a budget of padded tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Budget:
    """Padded tokens that a batch may have; lowered where the memory does not hold them."""

    tokens: int
    lowered: int = 0  # times

    def lower(self, failed: int) -> None:
        """To half of what a batch of `failed` padded tokens had."""
        self.tokens, self.lowered = max(1, failed // 2), self.lowered + 1


def pack(lengths: np.ndarray, budget: Budget) -> Iterator[np.ndarray]:
    """Row indices in batches, longest first, each within the budget of padded tokens (rows x longest) as it then is.

    `lengths` is (n,) int. Every row stands in exactly one batch; a row longer than the budget is a batch of its own.
    Longest first, so that a batch too large for the memory shows at once and not at the end.
    """
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    start = 0
    while start < len(order):
        rows = max(1, budget.tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def pad(
    sequences: Sequence[np.ndarray | Sequence[int]], value: int, longest: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged token ids to (rows, longest) int64 and the attention mask of the same shape.

    `longest` is that of the sequences if it is less.
    """
    longest = max(longest, *(len(sequence) for sequence in sequences))
    ids = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
