"""Contrastive, pair and distillation losses over a batch of embeddings.

Shape letters: B rows of the (gathered) batch, M mined negatives, D width, P pairs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Authors(NamedTuple):
    """Who wrote the rows, where the classes of a loss are authors: (B,) int64 each."""

    authors: torch.Tensor  # below zero where nobody is known, who is the same author as no other
    groups: torch.Tensor  # authors linked by common works


def relations(works: torch.Tensor, authors: Authors | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows are positives of each other, and which are negatives: (B, B) bool each, both False on the diagonal.

    By `works` (B,) alone: those of one work, and all others. With `authors`: positives are of one author and of two
    works, negatives of two author groups. What is left, two texts of one work or of authors who once wrote together,
    is neither: the one is too easy a sign of the author, of the other nobody knows.
    """
    itself = torch.eye(len(works), dtype=torch.bool, device=works.device)
    same_work = works[:, None] == works[None, :]
    if authors is None:
        return same_work & ~itself, ~same_work
    known = authors.authors >= 0
    same_author = (authors.authors[:, None] == authors.authors[None, :]) & known[:, None]
    return same_author & ~same_work, (authors.groups[:, None] != authors.groups[None, :]) & ~same_work


def supervised_info_nce(
    embeddings: torch.Tensor,
    works: torch.Tensor,
    inverse_temperature: torch.Tensor,
    negatives: torch.Tensor | None = None,
    negative_works: torch.Tensor | None = None,
    authors: Authors | None = None,
) -> torch.Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv:2004.11362), eq. 2, as a scalar.

    `embeddings` (B, D) normalised, `works` (B,) int64: positives and negatives of a row are those of `relations`, and
    what is neither is no candidate. A row without a positive has no target and is left out of the mean (it still serves
    as a negative); 0 if no row has one. `negatives` (M, D) of `negative_works` (M,) are further candidates for every
    row, whoever they were mined for (as in DPR, Karpukhin et al. 2020, arXiv:2004.04906, section 3.2), but those of the
    row's own work, which are no candidates at all.
    """
    positive, negative = relations(works, authors)
    # Not minus infinity: a row without any candidate would have no finite gradient, though it counts for nothing.
    similarity = inverse_temperature * embeddings @ embeddings.T
    candidates = similarity.masked_fill(~(positive | negative), torch.finfo(similarity.dtype).min)
    if negatives is not None:
        mined = inverse_temperature * embeddings @ negatives.T
        own = works[:, None] == negative_works[None, :]
        candidates = torch.cat([candidates, mined.masked_fill(own, torch.finfo(mined.dtype).min)], dim=1)
    log_probability = F.log_softmax(candidates, dim=1)[:, : len(works)]
    num_positives = positive.sum(1)
    per_row = -log_probability.masked_fill(~positive, 0.0).sum(1) / num_positives.clamp(min=1)
    has_positive = num_positives > 0
    return per_row[has_positive].sum() / has_positive.sum().clamp(min=1)


def balanced_pair_loss(logits: torch.Tensor, works: torch.Tensor, authors: Authors | None = None) -> torch.Tensor:
    """Binary cross-entropy over all pairs of a batch, positives and negatives weighing one half each, as a scalar.

    `logits` (B, B) symmetric pair logits, `works` (B,) int64; which pairs are what, `relations` says.
    """
    upper = torch.ones_like(logits, dtype=torch.bool).triu(1)
    positive, negative = (logits[chosen & upper] for chosen in relations(works, authors))
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
