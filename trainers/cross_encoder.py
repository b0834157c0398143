"""Train the cross-encoder on pairs: stage two of the matcher, and the teacher.

python -m trainers.cross_encoder trainers/experiments/books/cross_encoder.toml [key=value ...]
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn

from quire import artifact, config, hub, loop, sampler
from quire.artifact import Artifact, Draft
from quire.cross_encoder import CrossEncoder, build_model, check_length, features, tokenize_pairs
from quire.errors import UserError
from quire.packing import pad
from quire.training_sets import PairSet, flops_per_token, mean_auc, set_dropout
from trainers.fit import TrainRuntime, fit, publish, save


class CrossEncoderConfig(config.Config):
    """What `trainers.cross_encoder` computes."""

    name: str
    chunks: str
    pairs: str
    model: str = hub.MINILM
    typed_marks: bool = Field(
        default=True, description="typeset quotes and dashes are read as typed ones, _italics_ as plain words"
    )
    start: str | None = Field(
        default=None, description="a trained bi-encoder (models artefact) to start from, not `model`"
    )
    max_length: int = Field(default=512, ge=16, description="tokens of both texts together, once trained")
    train_length: int | None = Field(default=None, ge=16, description="tokens in training, where shorter is faster")
    batch_size: int = Field(default=16, ge=2, description="pairs, over all workers")
    imitation_weight: float = Field(
        default=0.0, ge=0, description="of the loss that keeps token vectors near those of each text read alone"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_eval_pairs: int = Field(default=400, gt=0)
    loop: loop.LoopConfig
    runtime: TrainRuntime = TrainRuntime()


CONFIG = CrossEncoderConfig


def run(settings: CrossEncoderConfig) -> Artifact:
    """Make the `models` artefact, a folder that `CrossEncoder(path)` loads."""
    folder = hub.find_model(settings.model)
    if settings.start:
        folder = str(artifact.open_artifact(settings.runtime.root, "models", settings.start).local())
    check_length(folder, settings.max_length)
    check_workers(settings, settings.runtime.num_workers or 1)
    draft = artifact.begin_step(settings, "models", inputs(settings))
    if draft.published:
        return draft.published
    fit("trainers.cross_encoder", settings, draft)
    return publish(draft)


def check_workers(settings: CrossEncoderConfig, world: int) -> None:
    """Every worker takes the same number of pairs, so that their mean gradient is that of the global batch."""
    if settings.batch_size % world:
        raise UserError(f"batch_size = {settings.batch_size}: does not divide by {world} workers (runtime.num_workers)")


def inputs(settings: CrossEncoderConfig) -> dict[str, Artifact | str]:
    """What the model is made from, besides the recipe."""
    root = settings.runtime.root
    found = {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
    }
    if settings.start:
        found["start"] = artifact.open_artifact(root, "models", settings.start)
    else:
        found["model_weights"] = hub.weights_sha256(hub.find_model(settings.model))
    return found


class Module(nn.Module):
    """Binary cross-entropy of the pair logit, and the imitation loss.

    A pretrained encoder has never read two texts at once: each text's vectors blur when the other stands beside it.
    The imitation loss, the squared error to the vectors that the starting encoder gives each text alone (over their
    variance), says a hundred thousand numbers a batch where the labels say sixteen bits, so the ability to keep two
    texts apart comes back in minutes.
    """

    def __init__(self, model: nn.Sequential, imitation_weight: float):
        super().__init__()
        transformer, pooling, hidden, score = model
        self.body, self.head = nn.Sequential(transformer, pooling), nn.Sequential(hidden, score)
        self.imitation_weight = imitation_weight
        self.alone = (
            [copy.deepcopy(transformer).requires_grad_(False).eval()] if imitation_weight else []
        )  # not trained

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        labels = batch.pop("labels")
        apart = {key: batch.pop(key) for key in ("alone_ids", "alone_mask", "place", "alone_place") if key in batch}
        out = self.head(self.body(batch))
        pair = nn.functional.binary_cross_entropy_with_logits(out["scores"][:, 0].float(), labels)
        if not self.alone:
            return {"loss": pair}
        with torch.no_grad():
            alone = {"input_ids": apart["alone_ids"], "attention_mask": apart["alone_mask"]}
            target = self.alone[0].to(labels.device)(alone)["token_embeddings"]
        wanted = target.flatten(0, 1)[apart["alone_place"]].float()
        found = out["token_embeddings"].flatten(0, 1)[apart["place"]].float()
        imitation = share_of_variance(found, wanted)
        return {"loss": pair + self.imitation_weight * imitation, "pair": pair, "imitation": imitation}


def share_of_variance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error over the variance of `wanted`, both of the global batch.

    Workers hold different numbers of tokens. The mean of what they return, and of its gradient, is that of one worker
    with all of them.
    """
    size = torch.tensor(wanted.numel(), dtype=torch.float64, device=wanted.device)
    sums = torch.stack([size, wanted.double().sum(), wanted.double().square().sum()])
    world = loop.rank_and_world()[1]
    if world > 1:
        dist.all_reduce(sums)
    count, total, squares = sums
    variance = (squares - total.square() / count) / (count - 1)
    return (found - wanted).square().sum() * (world / (count * variance)).float()


def alone(tokens: list[np.ndarray], types: list[np.ndarray], padding: int) -> dict[str, torch.Tensor]:
    """Each text of B joint sequences by itself, (2B, T'), and where the same tokens stand in both, flattened."""
    apart, place, alone_place = [], [], []
    for ids, kinds in zip(tokens, types, strict=True):
        first = int((kinds == 0).sum())  # [CLS] a [SEP]
        apart += [ids[:first], np.concatenate([ids[:1], ids[first:]])]
    ids, mask = pad(apart, padding)
    joint_width, width = max(map(len, tokens)), ids.shape[1]
    for row, (a, b) in enumerate(zip(apart[::2], apart[1::2], strict=True)):
        for number, start, length in ((2 * row, 0, len(a)), (2 * row + 1, len(a) - 1, len(b))):
            inside = np.arange(1, length - 1)  # without [CLS] and [SEP]
            place.append(row * joint_width + start + inside)
            alone_place.append(number * width + inside)
    places = (torch.from_numpy(np.concatenate(p)) for p in (place, alone_place))
    return dict(zip(("alone_ids", "alone_mask", "place", "alone_place"), (ids, mask, *places), strict=True))


class CrossEncoderTask:
    """Batches of half positives, half negatives, in random order of the two sides."""

    mfu_key = "mfu_without_embeddings"

    def __init__(self, settings: CrossEncoderConfig):
        root = settings.runtime.root
        chunks = artifact.open_artifact(root, "chunks", settings.chunks)
        pairs = artifact.open_artifact(root, "pairs", settings.pairs)
        self.settings = settings
        start = settings.start and artifact.open_artifact(root, "models", settings.start).local()
        folder = str(start or hub.find_model(settings.model))
        model = build_model(folder, settings.max_length, settings.typed_marks)
        set_dropout(model[0].model, settings.dropout)
        self.cross = CrossEncoder(model)
        self.module = Module(model, settings.imitation_weight)
        self.train, self.validation = (PairSet(chunks, pairs, split) for split in ("train", "validation"))
        self.validation = self.validation.spaced(settings.max_eval_pairs)
        seed = settings.loop.seed
        self.batches = sampler.PairBatches(self.train.labels, batch_size=settings.batch_size, seed=seed)
        sample, _ = self.batches.plan(0, 0, 1)
        self.cross.standardise([self.train.texts(int(row)) for row in sample])
        self.flops_per_token = flops_per_token(model[0].model)

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        rows, swapped = self._plan(step, micro, rank, world)
        texts = [self.train.texts(row, swapped=order) for row, order in zip(rows, swapped, strict=True)]
        length = min(self.settings.train_length or self.settings.max_length, self.settings.max_length)
        tokens, types = tokenize_pairs(self.cross.model, texts, length)
        inputs = features(tokens, types, self.cross.model)
        if self.settings.imitation_weight:
            inputs |= alone(tokens, types, self.cross.model.tokenizer.pad_token_id or 0)
        labels = torch.from_numpy(self.train.labels[rows].astype(np.float32))
        return {**inputs, "labels": labels}

    def describe(self, step: int, micro: int, rank: int, world: int) -> list[str]:
        """The two chunks of each pair."""
        return [self.train.named(*pair) for pair in zip(*self._plan(step, micro, rank, world), strict=True)]

    def _plan(self, step: int, micro: int, rank: int, world: int) -> tuple[list[int], list[bool]]:
        """A worker's rows of the training pairs, and whether each is read the other way round."""
        rows, swapped = self.batches.plan(step, micro, self.settings.loop.accumulation)
        return rows[rank::world].tolist(), swapped[rank::world].tolist()

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token(batch["attention_mask"].shape[1]) * self.num_tokens(batch)

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        mine = range(rank, len(self.validation.labels), world)
        logits = self.cross.one_order([self.validation.texts(row) for row in mine])
        scores = np.asarray(loop.over_ranks(dict(zip(mine, logits.tolist(), strict=True)), len(self.validation.labels)))
        return mean_auc(self.validation, scores)

    def save(self, folder: Path) -> None:
        self.cross.save(folder)


def work(settings: CrossEncoderConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    check_workers(settings, loop.rank_and_world()[1])
    torch.manual_seed(settings.loop.seed)  # the new head's initial weights
    task = CrossEncoderTask(settings)
    state = loop.train(task, settings.loop, draft, log)
    save(draft, state, settings.loop, task)


if __name__ == "__main__":
    config.main(CONFIG, run)
