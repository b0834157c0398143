"""The topic adversary: it guesses a text's content words from its embedding, and the encoder learns to hide them.

Topic labels by keywords are mostly noise, so the target is the text itself: which of a few hundred words of medium
frequency stand in it. Shape letters: B texts, D embedding width, V words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from quire.errors import UserError

LEAST_SHARE, MOST_SHARE = 0.005, 0.1  # of the texts that have a content word: rarer is a name, commoner says no topic


def content_words(tokens: Sequence[np.ndarray], num_words: int) -> np.ndarray:
    """The ids of the `num_words` commonest tokens that stand in half a percent to a tenth of the texts, (V,) int64.

    Raises UserError when there is none.
    """
    ids, counts = np.unique(np.concatenate([np.unique(text) for text in tokens]), return_counts=True)
    share = counts / len(tokens)
    medium = (share >= LEAST_SHARE) & (share <= MOST_SHARE)
    ids, counts = ids[medium], counts[medium]
    if not len(ids):
        raise UserError(
            f"adversary_weight: no token stands in {LEAST_SHARE:.1%} to {MOST_SHARE:.0%} of the texts; set 0"
        )
    return ids[np.lexsort((ids, -counts))][:num_words].astype(np.int64)


def presence(tokens: Sequence[np.ndarray], words: np.ndarray) -> torch.Tensor:
    """Which words stand in which text, (B, V) float32 of 0 and 1."""
    return torch.from_numpy(np.stack([np.isin(words, text) for text in tokens]).astype(np.float32))


class _Reverse(torch.autograd.Function):
    """Gradient reversal (Ganin & Lempitsky 2015, arXiv:1409.7495, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, embeddings: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.weight * gradient, None


class Adversary(nn.Module):
    """Words from embeddings. Its own gradient is whole from the first step on; the encoder gets `weight` times the
    opposite. Not part of the saved model."""

    def __init__(self, width: int, num_words: int, weight: float):
        super().__init__()
        self.weight, self.unit = weight, width**0.5  # components of a normalised vector are of size 1/sqrt(D)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_words))

    def forward(self, embeddings: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) normalised, what `presence` gave (B, V); the mean binary cross-entropy."""
        logits = self.head(self.unit * _Reverse.apply(embeddings, self.weight))
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), present)
