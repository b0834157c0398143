"""Contrastive, pair and distillation losses over a batch of embeddings.

Shape letters: B rows of the (gathered) batch, M mined negatives, D width, P pairs.
"""

import torch
import torch.nn.functional as F


def supervised_info_nce(
    embeddings: torch.Tensor,
    works: torch.Tensor,
    inverse_temperature: torch.Tensor,
    negatives: torch.Tensor | None = None,
    negative_works: torch.Tensor | None = None,
) -> torch.Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv:2004.11362), eq. 2, as a scalar.

    `embeddings` (B, D) normalised, `works` (B,) int64: rows with equal works are positives. A row without a positive
    has no target and is left out of the mean (it still serves as a negative); 0 if no row has one. `negatives` (M, D)
    of `negative_works` (M,) are further candidates for every row, whoever they were mined for (as in DPR, Karpukhin et
    al. 2020, arXiv:2004.04906, section 3.2), but those of the row's own work, which are no candidates at all.
    """
    similarity = inverse_temperature * embeddings @ embeddings.T
    itself = torch.eye(len(works), dtype=torch.bool, device=works.device)
    candidates = similarity.masked_fill(itself, float("-inf"))
    if negatives is not None:
        mined = inverse_temperature * embeddings @ negatives.T
        own = works[:, None] == negative_works[None, :]
        candidates = torch.cat([candidates, mined.masked_fill(own, float("-inf"))], dim=1)
    log_probability = F.log_softmax(candidates, dim=1)[:, : len(works)]
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


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) between the probabilities of "same book" at temperature T, the mean over pairs.

    `student`, `teacher` (P,) logits of the same pairs. Hinton et al. 2015 (arXiv:1503.02531), section 2, for two
    classes; a cross-encoder's KL divergence beside a contrastive loss is how SimLM (Wang et al. 2022, arXiv:2207.02578,
    section 3.3) teaches its bi-encoder. Margins between a query's candidates (MarginMSE) would need candidates that
    share a query; here every pair has a logit on one scale.
    """
    target = torch.sigmoid(teacher / temperature)
    cross_entropy = F.binary_cross_entropy_with_logits(student / temperature, target)
    entropy = F.binary_cross_entropy_with_logits(teacher / temperature, target)
    return temperature**2 * (cross_entropy - entropy)
