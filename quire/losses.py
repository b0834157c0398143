"""Contrastive and pair losses over a batch of embeddings.

Shape letters: B rows of the (gathered) batch, D width.
"""

import torch
import torch.nn.functional as F


def supervised_info_nce(
    embeddings: torch.Tensor, works: torch.Tensor, inverse_temperature: torch.Tensor
) -> torch.Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv:2004.11362), eq. 2, as a scalar.

    `embeddings` (B, D) normalised, `works` (B,) int64: rows with equal works are positives. A row without a positive
    has no target and is left out of the mean (it still serves as a negative); 0 if no row has one.
    """
    similarity = inverse_temperature * embeddings @ embeddings.T
    itself = torch.eye(len(works), dtype=torch.bool, device=works.device)
    log_probability = F.log_softmax(similarity.masked_fill(itself, float("-inf")), dim=1)
    positive = (works[:, None] == works[None, :]) & ~itself
    num_positives = positive.sum(1)
    per_row = -log_probability.masked_fill(~positive, 0.0).sum(1) / num_positives.clamp(min=1)
    has_positive = num_positives > 0
    return per_row[has_positive].sum() / has_positive.sum().clamp(min=1)


def balanced_pair_loss(logits: torch.Tensor, works: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over all pairs of a batch, positives and negatives weighing one half each, as a scalar.

    `logits` (B, B) symmetric pair logits, `works` (B,) int64. The diagonal is left out.
    """
    upper = torch.ones_like(logits, dtype=torch.bool).triu(1)
    same = works[:, None] == works[None, :]
    positive, negative = logits[same & upper], logits[~same & upper]
    parts = [
        F.softplus(-positive).mean() if len(positive) else None,
        F.softplus(negative).mean() if len(negative) else None,
    ]
    present = [part for part in parts if part is not None]
    return sum(present) / len(present)
