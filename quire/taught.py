"""Pairs that a teacher judged once, for a student's batches."""

import numpy as np
import pyarrow.compute as pc
import torch

from quire import sampler
from quire.artifact import Artifact
from quire.errors import UserError
from quire.training_sets import PairSet


class TaughtPairs:
    """Training pairs with the teacher's logits: half positives, half negatives, every pair of a class once an epoch."""

    def __init__(self, chunks: Artifact, predictions: Artifact, *, batch_size: int, seed: int, accumulation: int):
        """`predictions` of `pipelines.teach`. Raises UserError for others, and for such about other chunks."""
        asked = f"teacher = {predictions.name!r}"
        if "teacher_sha256" not in predictions.manifest["facts"]:
            raise UserError(f"{asked}: these predictions are not of pipelines.teach; make some with it")
        if predictions.manifest["inputs"]["chunks"]["content"] != chunks.content:
            raise UserError(f"{asked}: it judged pairs of other chunks than {chunks.name!r}; teach from these")
        self.pairs = PairSet(chunks, predictions, "train")
        table = predictions.read(["split", "logit"])
        self.logits = table.filter(pc.equal(table["split"], "train"))["logit"].to_numpy().astype(np.float32)
        self.accumulation = accumulation
        self.batches = sampler.PairBatches(self.pairs.labels, batch_size=batch_size, seed=seed, stream=sampler.TAUGHT)

    def plan(self, step: int, micro: int, rank: int, world: int) -> tuple[list[str], list[str], torch.Tensor]:
        """First texts, second texts and logits (P / world,) of one rank's pairs in a global micro-batch."""
        rows = self._rows(step, micro, rank, world)
        texts = [self.pairs.texts(int(row)) for row in rows]
        return [a for a, _ in texts], [b for _, b in texts], torch.from_numpy(self.logits[rows])

    def named(self, step: int, micro: int, rank: int, world: int) -> list[str]:
        """Both chunk ids of each pair of `plan`."""
        return [self.pairs.named(int(row)) for row in self._rows(step, micro, rank, world)]

    def _rows(self, step: int, micro: int, rank: int, world: int) -> np.ndarray:
        return self.batches.plan(step, micro, self.accumulation)[0][rank::world]  # a symmetric head: no swapping
