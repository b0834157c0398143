"""The loss of the bi-encoder over a global batch: contrast, pairs, and what a teacher or an adversary adds.

Shape letters: B rows of the global batch, D embedding width, F pair features of the views, P taught pairs of a rank.
"""

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quire import adversary, gradcache, losses
from quire.bi_encoder import MAX_INVERSE_TEMPERATURE, SCALAR_GAIN, PairHead
from quire.gather import gather

MAX_PAIRS = 1 << 16  # whose inputs to the head (about 3 KB each for MiniLM) are held at once


class Module(gradcache.Contrastive):
    """Contrastive loss and pair loss over the whole global batch, computed alike on every rank.

    DDP averages gradients over ranks. Each rank's loss is that of the global batch, and `gather` sums what all ranks
    send back, so the average is exactly the gradient of one worker with the global batch. What is a mean over single
    texts or pairs (teacher, adversary) every rank takes over its own. A batch with `authors` and `groups` has authors
    for classes (`losses.relations`), else works. The texts of a rank stand in this order: the chunks of its works,
    their mined negatives, the first and the second texts of the teacher's pairs. `features` (B, B, F) is that of the
    global batch on every rank, `taught_features` (P, F) of the rank's own pairs.
    """

    def __init__(
        self,
        model: nn.Module,
        head: PairHead,
        initial_temperature: float,
        pair_weight: float,
        distill: tuple[float, float] = (0.0, 1.0),  # weight, temperature
        topics: adversary.Adversary | None = None,
    ):
        super().__init__()
        self.model, self.head, self.pair_weight, self.distill = model, head, pair_weight, distill
        # stands for SCALAR_GAIN times itself: learnt at the rate of the weights, it would stay where it began
        self.log_inverse_temperature = nn.Parameter(torch.tensor(math.log(1 / initial_temperature) / SCALAR_GAIN))
        self.topics = topics

    def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return self.model(inputs)["sentence_embedding"].float()

    def inverse_temperature(self) -> torch.Tensor:
        """What cosines are multiplied by, from 1 to `MAX_INVERSE_TEMPERATURE`, as a scalar."""
        # In place: a clamp within the graph has no gradient beyond its bounds, and what steps past them stays there.
        with torch.no_grad():
            self.log_inverse_temperature.clamp_(0.0, math.log(MAX_INVERSE_TEMPERATURE) / SCALAR_GAIN)
        return (SCALAR_GAIN * self.log_inverse_temperature).exp()

    def loss(self, embeddings: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        num_mined, num_taught = (len(batch.get(key, ())) for key in ("negative_works", "teacher"))
        sizes = [len(batch["works"]), num_mined, num_taught, num_taught]
        own, mined, *taught = embeddings.split(sizes)
        whole, works = gather(own), gather(batch["works"])
        negatives = (gather(mined), gather(batch["negative_works"])) if num_mined else (None, None)
        authors = (
            losses.Authors(*(gather(batch[key]) for key in losses.Authors._fields)) if "authors" in batch else None
        )
        inverse = self.inverse_temperature()
        contrastive = losses.supervised_info_nce(whole, works, inverse, *negatives, authors)
        pair = losses.balanced_pair_loss(self.all_pairs(whole, batch["features"]), works, authors)
        out = {"contrastive": contrastive, "pair": pair, "inverse_temperature": inverse}
        total = contrastive + self.pair_weight * pair
        if num_taught:
            weight, temperature = self.distill
            logits = self.head(*taught, batch["taught_features"])
            out["distill"] = losses.distillation_loss(logits, batch["teacher"], temperature)
            total = total + weight * out["distill"]
        if self.topics is not None:
            out["adversary"] = self.topics(own, batch["topics"])
            total = total + out["adversary"]
        return {"loss": total, **out}

    def all_pairs(self, embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, B) from (B, D) and (B, B, F). Of many the head holds `MAX_PAIRS` at a time and computes them again
        for the gradient."""

        def rows(some: torch.Tensor, compared: torch.Tensor) -> torch.Tensor:
            return self.head(*torch.broadcast_tensors(some[:, None], embeddings[None]), compared)

        size = max(1, MAX_PAIRS // len(embeddings))
        if size >= len(embeddings):
            return rows(embeddings, features)
        blocks = zip(embeddings.split(size), features.split(size), strict=True)
        return torch.cat([checkpoint(rows, *block, use_reentrant=False) for block in blocks])
