"""Length-sorted packing: batches under a budget of padded tokens."""

from collections.abc import Sequence

import numpy as np
import torch


def pack(lengths: np.ndarray, max_batch_tokens: int) -> list[np.ndarray]:
    """Row indices in batches, longest first, each of at most `max_batch_tokens` padded tokens (rows x longest).

    `lengths` is (n,) int. Every row stands in exactly one batch; a row longer than the budget is a batch of its own.
    Longest first, so that a batch too large for the memory shows at once and not at the end.
    """
    order = np.lexsort((np.arange(len(lengths)), -lengths))
    batches, start = [], 0
    while start < len(order):
        rows = max(1, max_batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def pad(sequences: Sequence[np.ndarray | Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged token ids to (rows, longest) int64 and the attention mask of the same shape."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
