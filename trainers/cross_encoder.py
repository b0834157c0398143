"""Train the cross-encoder on pairs: stage two of the matcher, and the teacher.

python -m trainers.cross_encoder trainers/experiments/books/cross_encoder.toml [key=value ...]
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from quire import artifact, config, hub, loop, sampler
from quire.artifact import Artifact, Draft
from quire.cross_encoder import CrossEncoder, build_model, features, tokenize_pairs
from quire.training_sets import PairSet, flops_per_token, mean_auc, set_dropout
from trainers.fit import TrainRuntime, fit, publish, save


class CrossEncoderConfig(config.Config):
    """What `trainers.cross_encoder` computes."""

    name: str
    chunks: str
    pairs: str
    model: str = hub.MINILM
    max_length: int = Field(default=512, ge=16, description="tokens of both texts together")
    batch_size: int = Field(default=16, ge=2, description="pairs, over all workers")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_eval_pairs: int = Field(default=400, gt=0)
    loop: loop.LoopConfig
    runtime: TrainRuntime = TrainRuntime()


CONFIG = CrossEncoderConfig


def run(settings: CrossEncoderConfig) -> Artifact:
    """Make the `models` artefact, a folder that `CrossEncoder(path)` loads."""
    root = settings.runtime.root
    inputs = {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
        "model_weights": hub.weights_sha256(hub.find_model(settings.model)),
    }
    draft = artifact.begin(root, "models", settings.name, recipe=config.recipe(settings), inputs=inputs)
    if draft.published:
        return draft.published
    fit("trainers.cross_encoder", settings, draft)
    return publish(draft)


class Module(nn.Module):
    """Binary cross-entropy of the pair logit."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        labels = batch.pop("labels")
        logits = self.model(**batch).logits[:, 0].float()
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels)}


class CrossEncoderTask:
    """Batches of half positives, half negatives, in random order of the two sides."""

    def __init__(self, settings: CrossEncoderConfig):
        root = settings.runtime.root
        chunks = artifact.open_artifact(root, "chunks", settings.chunks)
        pairs = artifact.open_artifact(root, "pairs", settings.pairs)
        self.settings = settings
        model, tokenizer = build_model(hub.find_model(settings.model), settings.max_length)
        set_dropout(model, settings.dropout)
        self.cross = CrossEncoder(model, tokenizer)
        self.module = Module(model)
        self.train, self.validation = (PairSet(chunks, pairs, split) for split in ("train", "validation"))
        self.validation = self.validation.spaced(settings.max_eval_pairs)
        seed = settings.loop.seed
        self.batches = sampler.PairBatches(self.train.labels, batch_size=settings.batch_size, seed=seed)
        self.flops_per_token = flops_per_token(model)

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        rows, swapped = self.batches.plan(step, micro, self.settings.loop.accumulation)
        mine = np.arange(len(rows))[rank::world]
        texts = [self.train.texts(int(rows[i]), swapped=bool(swapped[i])) for i in mine]
        tokens, types = tokenize_pairs(self.cross.tokenizer, texts)
        inputs = features(tokens, types, self.cross.tokenizer.pad_token_id, self.cross.model)
        labels = torch.from_numpy(self.train.labels[rows[mine]].astype(np.float32))
        return {**inputs, "labels": labels}

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token(batch["attention_mask"].shape[1]) * self.num_tokens(batch)

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        mine = range(rank, len(self.validation.labels), world)
        logits = self.cross.one_order([self.validation.texts(row) for row in mine])
        scores = np.asarray(loop.over_ranks(dict(zip(mine, logits.tolist(), strict=True)), len(self.validation.labels)))
        return mean_auc(self.validation, scores)


def work(settings: CrossEncoderConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    torch.manual_seed(settings.loop.seed)  # the new head's initial weights
    task = CrossEncoderTask(settings)
    state = loop.train(task, settings.loop, draft, log)
    save(draft, state, settings.loop, task.cross.save)


if __name__ == "__main__":
    config.main(CONFIG, run)
