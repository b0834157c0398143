"""Train the bi-encoder by contrast: stage one of the matcher, and its embedding.

    python -m trainers.bi_encoder trainers/experiments/books/bi_encoder.toml [key=value ...]

Shape letters: B rows of the global batch, D embedding width, F pair features of the views.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn

from quire import artifact, bi_encoder, config, encoder, hub, loop, losses, packing, sampler
from quire.artifact import Artifact, Draft
from quire.bi_encoder import BiEncoder, PairHead
from quire.errors import UserError
from quire.training_sets import PairSet, flops_per_token, mean_auc, related_works, rows_by_work, set_dropout
from quire.views import NAMES as ALL_VIEWS
from quire.views import Name as ViewName
from quire.views import Views
from trainers.fit import TrainRuntime, fit, publish, save


class BiEncoderConfig(config.Config):
    """What `trainers.bi_encoder` computes."""

    name: str
    chunks: str
    pairs: str
    neighbors: str
    model: str = hub.MINILM
    pooling: Literal["mean", "cls"] = "mean"
    max_seq_length: int = Field(default=256, ge=8, description="tokens of one text, once trained")
    train_seq_length: int | None = Field(default=None, ge=8, description="tokens in training, where shorter is faster")
    works_per_batch: int = Field(default=16, ge=2, description="over all workers")
    chunks_per_work: int = Field(default=4, ge=2)
    hard_share: float = Field(default=0.5, ge=0, le=1, description="chance that the next work is related to the last")
    initial_temperature: float = Field(default=0.07, gt=0)
    pair_weight: float = Field(default=1.0, ge=0, description="of the pair loss beside the contrastive one")
    head_size: int = Field(default=128, gt=0)
    views: tuple[ViewName, ...] = Field(default=ALL_VIEWS, description="what the pair head sees beside the vectors")
    max_view_chunks: int = Field(default=4000, gt=0, description="training chunks that the views are fitted on")
    max_start_pairs: int = Field(default=4000, gt=1, description="training pairs that the head's start is fitted on")
    max_start_encoded: int = Field(default=200, gt=1, description="of them, those that are encoded for it")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_eval_pairs: int = Field(default=400, gt=0)
    loop: loop.LoopConfig
    runtime: TrainRuntime = TrainRuntime()


CONFIG = BiEncoderConfig


def run(settings: BiEncoderConfig) -> Artifact:
    """Make the `models` artefact, a folder that `SentenceTransformer(path)` and `BiEncoder.load` load."""
    draft = artifact.begin_step(settings, "models", inputs(settings))
    if draft.published:
        return draft.published
    fit("trainers.bi_encoder", settings, draft)
    return publish(draft)


def inputs(settings: BiEncoderConfig) -> dict[str, Artifact | str]:
    """What the model is made from, besides the recipe."""
    root = settings.runtime.root
    found = {
        kind: artifact.open_artifact(root, kind, getattr(settings, kind)) for kind in ("chunks", "pairs", "neighbors")
    }
    found["model_weights"] = hub.weights_sha256(hub.find_model(settings.model))
    return found


class Gather(torch.autograd.Function):
    """Rows of all ranks in rank order, with gradients: each rank's slice receives the sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may use it elsewhere
        dist.all_reduce(gradient)
        rank, world = loop.rank_and_world()
        return gradient.chunk(world)[rank]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(B / world, ...) to (B, ...)."""
    return Gather.apply(rows) if loop.rank_and_world()[1] > 1 else rows


class Module(nn.Module):
    """Contrastive loss and pair loss over the whole global batch, computed alike on every rank.

    DDP averages gradients over ranks. Each rank's loss is that of the global batch, and `gather` sums what all ranks
    send back, so the average is exactly the gradient of one worker with the global batch.
    """

    def __init__(self, model: nn.Module, head: PairHead, initial_temperature: float, pair_weight: float):
        super().__init__()
        self.model, self.head, self.pair_weight = model, head, pair_weight
        self.log_inverse_temperature = nn.Parameter(torch.tensor(math.log(1 / initial_temperature)))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        embeddings = gather(self.model(inputs)["sentence_embedding"].float())
        works = gather(batch["works"])
        inverse = self.log_inverse_temperature.clamp(0.0, math.log(bi_encoder.MAX_INVERSE_TEMPERATURE)).exp()
        contrastive = losses.supervised_info_nce(embeddings, works, inverse)
        sides = torch.broadcast_tensors(embeddings[:, None], embeddings[None])
        pair = losses.balanced_pair_loss(self.head(*sides, batch["features"]), works)
        total = contrastive + self.pair_weight * pair
        return {"loss": total, "contrastive": contrastive, "pair": pair, "inverse_temperature": inverse}


class BiEncoderTask:
    """Book-balanced batches; evaluation on the frozen validation pairs."""

    def __init__(self, settings: BiEncoderConfig):
        self.settings, root = settings, settings.runtime.root
        chunks, pairs, neighbors = (
            artifact.open_artifact(root, kind, getattr(settings, kind)) for kind in ("chunks", "pairs", "neighbors")
        )
        folder = hub.find_model(settings.model)
        model = bi_encoder.build_encoder(folder, pooling=settings.pooling, max_seq_length=settings.max_seq_length)
        set_dropout(model[0].model, settings.dropout)
        rows, self.chunk_texts = rows_by_work(chunks, "train")
        every = np.concatenate(list(rows.values()))[:, 0]
        sample = every[:: max(1, len(every) // settings.max_view_chunks)]
        fitted = Views.fit([self.chunk_texts[int(row)].as_py() for row in sample], settings.views)
        head = PairHead(model.get_embedding_dimension(), settings.head_size, len(fitted.feature_names))
        self.bi = BiEncoder(model.eval(), head, fitted)
        training = PairSet(chunks, pairs, "train").spaced(settings.max_start_pairs)
        sides = zip(*(training.texts(row) for row in range(len(training.labels))), strict=True)
        self.bi.start_head(*sides, training.labels, training.negative_types, settings.max_start_encoded)
        self.module = Module(model, head, settings.initial_temperature, settings.pair_weight)
        self.validation = PairSet(chunks, pairs, "validation").spaced(settings.max_eval_pairs)
        self.batches = sampler.BookBatches(
            rows,
            related_works(chunks, neighbors, "train"),
            works_per_batch=settings.works_per_batch,
            chunks_per_work=settings.chunks_per_work,
            hard_share=settings.hard_share,
            seed=settings.loop.seed,
        )
        self.flops_per_token = flops_per_token(model[0].model)

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        rows, works = self.batches.plan(step, micro)
        if len(rows) % world:
            raise UserError(f"works_per_batch x chunks_per_work = {len(rows)} is not a multiple of {world} workers")
        mine = slice(rank * len(rows) // world, (rank + 1) * len(rows) // world)
        texts = [self.chunk_texts[int(row)].as_py() for row in rows]
        length = self.settings.train_seq_length or self.settings.max_seq_length
        tokens = encoder.tokenize(self.bi.model, texts[mine], length)
        ids, mask = packing.pad(tokens, self.bi.model.tokenizer.pad_token_id)
        read = self.bi.views.rows(texts)  # of the whole global batch, on every rank alike
        features = torch.from_numpy(self.bi.views.all_pairs(read, read))
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "features": features,  # (B, B, F)
            "works": torch.from_numpy(works[mine]),
        }

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token(batch["attention_mask"].shape[1]) * self.num_tokens(batch)

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        mine = range(rank, len(self.validation.labels), world)
        texts = [self.validation.texts(row) for row in mine]
        logits = self.bi.score([a for a, _ in texts], [b for _, b in texts]) if texts else np.zeros(0)
        scores = np.asarray(loop.over_ranks(dict(zip(mine, logits.tolist(), strict=True)), len(self.validation.labels)))
        return mean_auc(self.validation, scores)

    def save(self, folder: Path) -> None:
        self.bi.save(folder)


def work(settings: BiEncoderConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    torch.manual_seed(settings.loop.seed)  # the head's initial weights
    task = BiEncoderTask(settings)
    state = loop.train(task, settings.loop, draft, log)
    save(draft, state, settings.loop, task.save)


if __name__ == "__main__":
    config.main(CONFIG, run)
