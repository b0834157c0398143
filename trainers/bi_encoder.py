"""Train the bi-encoder by contrast: stage one of the matcher, and its embedding.

    python -m trainers.bi_encoder trainers/experiments/books/bi_encoder.toml [key=value ...]

Shape letters: B rows of the global batch, D embedding width, S style features, P taught pairs.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import checkpoint

from quire import (
    adversary,
    artifact,
    bi_encoder,
    config,
    encoder,
    gradcache,
    hub,
    loop,
    losses,
    packing,
    sampler,
    style,
)
from quire import training_sets as sets
from quire.artifact import Artifact, Draft
from quire.bi_encoder import BiEncoder, PairHead
from quire.errors import UserError
from quire.gather import gather
from quire.taught import TaughtPairs
from trainers.fit import TrainRuntime, fit, publish, save

MAX_PAIRS = 1 << 16  # whose inputs to the head (about 3 KB each for MiniLM) are held at once
NUM_FIT_CHUNKS = 4000  # training chunks that style statistics and the adversary's words come from


class BiEncoderRuntime(TrainRuntime):
    """Where and with what it runs: what fits the memory and what is fast there changes no result."""

    cache_chunk_size: int | None = Field(
        default=None,
        gt=0,
        description="texts whose graphs the memory holds; of more, GradCache embeds each twice",
    )
    gradient_checkpointing: bool = Field(default=False, description="compute layers again in the backward pass")
    compile: bool = Field(default=False, description="torch.compile the transformer; needs a C++ compiler, or Triton")


class BiEncoderConfig(config.Config):
    """What `trainers.bi_encoder` computes."""

    name: str
    chunks: str
    pairs: str
    neighbors: str
    model: str = hub.MINILM
    start: str | None = Field(default=None, description="a trained bi-encoder (models artefact) to go on from")
    pooling: Literal["mean", "cls", "attention"] = "mean"
    max_seq_length: int = Field(default=256, ge=8, description="tokens of one text, once trained")
    train_seq_length: int | None = Field(default=None, ge=8, description="tokens in training, where shorter is faster")
    works_per_batch: int = Field(default=16, ge=2, description="over all workers")
    chunks_per_work: int = Field(default=4, ge=2)
    hard_share: float = Field(default=0.5, ge=0, le=1, description="chance that the next work is related to the last")
    negatives: str | None = Field(default=None, description="negatives artefact, mined for single chunks")
    num_hard_negatives: int = Field(default=1, gt=0, description="mined ones for each chunk of a batch")
    teacher: str | None = Field(default=None, description="predictions artefact of pipelines.teach, to learn from")
    distill_weight: float = Field(default=1.0, gt=0, description="of the teacher's loss beside the contrastive one")
    distill_pairs: int = Field(default=32, ge=2, description="judged pairs of a batch, over all workers")
    distill_temperature: float = Field(default=2.0, gt=0, description="that both logits are divided by")
    adversary_weight: float = Field(
        default=0.0, ge=0, description="of the reversed gradient of guessing content words from the embedding"
    )
    adversary_words: int = Field(default=512, gt=0)
    initial_temperature: float = Field(default=0.07, gt=0)
    pair_weight: float = Field(default=1.0, ge=0, description="of the pair loss beside the contrastive one")
    head_size: int = Field(default=128, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_eval_pairs: int = Field(default=400, gt=0)
    loop: loop.LoopConfig
    runtime: BiEncoderRuntime = BiEncoderRuntime()


CONFIG = BiEncoderConfig


def run(settings: BiEncoderConfig) -> Artifact:
    """Make the `models` artefact, a folder that `SentenceTransformer(path)` and `BiEncoder.load` load."""
    check_workers(settings, settings.runtime.num_workers or 1)
    draft = artifact.begin_step(settings, "models", inputs(settings))
    if draft.published:
        return draft.published
    fit("trainers.bi_encoder", settings, draft)
    return publish(draft)


def check_workers(settings: BiEncoderConfig, world: int) -> None:
    """Every worker takes the same number of pairs, so that their mean gradient is that of the global batch."""
    if settings.teacher and settings.distill_pairs % world:
        raise UserError(
            f"distill_pairs = {settings.distill_pairs}: does not divide by {world} workers (runtime.num_workers)"
        )


def inputs(settings: BiEncoderConfig) -> dict[str, Artifact | str]:
    """What the model is made from, besides the recipe."""
    kinds = {"chunks": "chunks", "pairs": "pairs", "neighbors": "neighbors", "negatives": "negatives"}
    kinds |= {"teacher": "predictions", "start": "models"}
    names = {role: getattr(settings, role) for role in kinds}
    found = {
        role: artifact.open_artifact(settings.runtime.root, kinds[role], name) for role, name in names.items() if name
    }
    if not settings.start:
        found["model_weights"] = hub.weights_sha256(hub.find_model(settings.model))
    return found


class Module(gradcache.Contrastive):
    """Contrastive loss and pair loss over the whole global batch, computed alike on every rank.

    DDP averages gradients over ranks. Each rank's loss is that of the global batch, and `gather` sums what all ranks
    send back, so the average is exactly the gradient of one worker with the global batch. What is a mean over single
    texts or pairs (teacher, adversary) every rank takes over its own. The texts of a rank stand in this order: the
    chunks of its works, their mined negatives, the first and the second texts of the teacher's pairs.
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
        self.log_inverse_temperature = nn.Parameter(torch.tensor(math.log(1 / initial_temperature)))
        self.topics = topics

    def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return self.model(inputs)["sentence_embedding"].float()

    def loss(self, embeddings: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        num_mined, num_taught = (len(batch.get(key, ())) for key in ("negative_works", "teacher"))
        sizes = [len(batch["works"]), num_mined, num_taught, num_taught]
        own, mined, *taught = embeddings.split(sizes)
        own_style, _, *taught_style = batch["style"].split(sizes)
        whole, features, works = gather(own), gather(own_style), gather(batch["works"])
        negatives = (gather(mined), gather(batch["negative_works"])) if num_mined else ()
        inverse = self.log_inverse_temperature.clamp(0.0, math.log(bi_encoder.MAX_INVERSE_TEMPERATURE)).exp()
        contrastive = losses.supervised_info_nce(whole, works, inverse, *negatives)
        pair = losses.balanced_pair_loss(self.all_pairs(whole, features), works)
        out = {"contrastive": contrastive, "pair": pair, "inverse_temperature": inverse}
        total = contrastive + self.pair_weight * pair
        if num_taught:
            weight, temperature = self.distill
            out["distill"] = losses.distillation_loss(self.head(*taught, *taught_style), batch["teacher"], temperature)
            total = total + weight * out["distill"]
        if self.topics is not None:
            out["adversary"] = self.topics(own, batch["topics"])
            total = total + out["adversary"]
        return {"loss": total, **out}

    def all_pairs(self, embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, B). Of many the head holds `MAX_PAIRS` at a time and computes them again for the gradient."""

        def rows(some: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            u, v, s, t = some[:, None], embeddings[None], theirs[:, None], features[None]
            return self.head(*torch.broadcast_tensors(u, v), *torch.broadcast_tensors(s, t))

        size = max(1, MAX_PAIRS // len(embeddings))
        if size >= len(embeddings):
            return rows(embeddings, features)
        blocks = zip(embeddings.split(size), features.split(size), strict=True)
        return torch.cat([checkpoint(rows, *block, use_reentrant=False) for block in blocks])


def begin(settings: BiEncoderConfig, sample: list[str]) -> BiEncoder:
    """The model that training begins with: pretrained, or the one named `start`; `sample` are training texts."""
    if settings.start:
        folder = artifact.open_artifact(settings.runtime.root, "models", settings.start).local()
        found = BiEncoder.go_on(folder, settings.max_seq_length)
        has = {"pooling": bi_encoder.pooling_of(found.model), "head_size": found.head.hidden_size}
        for key, value in has.items():
            asked = getattr(settings, key)
            if asked != value:
                raise UserError(f"{key} = {asked!r}: start = {settings.start!r} has {value!r}; set that")
    else:
        folder = hub.find_model(settings.model)
        model = bi_encoder.build_encoder(folder, pooling=settings.pooling, max_seq_length=settings.max_seq_length)
        found = BiEncoder(model, PairHead(model.get_embedding_dimension(), settings.head_size))
        found.head.fit_style(style.style_features(sample))
    sets.set_dropout(found.model[0].model, settings.dropout)
    return found


class BiEncoderTask:
    """Book-balanced batches, mined negatives and taught pairs beside; evaluation on the frozen validation pairs."""

    def __init__(self, settings: BiEncoderConfig):
        self.settings, root = settings, settings.runtime.root
        chunks, pairs, neighbors = (
            artifact.open_artifact(root, kind, getattr(settings, kind)) for kind in ("chunks", "pairs", "neighbors")
        )
        self.length = settings.train_seq_length or settings.max_seq_length
        rows, self.chunk_texts = sets.rows_by_work(chunks, "train")
        every = np.concatenate(list(rows.values()))[:, 0]
        sample = self._texts(every[:: max(1, len(every) // NUM_FIT_CHUNKS)])
        self.bi = begin(settings, sample)
        self.validation = sets.PairSet(chunks, pairs, "validation").spaced(settings.max_eval_pairs)
        self.batches = sampler.BookBatches(
            rows,
            sets.related_works(chunks, neighbors, "train"),
            works_per_batch=settings.works_per_batch,
            chunks_per_work=settings.chunks_per_work,
            hard_share=settings.hard_share,
            seed=settings.loop.seed,
        )
        self.mined = self._mined(chunks) if settings.negatives else None
        self.taught = self._taught(chunks) if settings.teacher else None
        self.words, topics = None, None
        if settings.adversary_weight:
            self.words = adversary.content_words(
                encoder.tokenize(self.bi.model, sample, self.length), settings.adversary_words
            )
            topics = adversary.Adversary(self.bi.head.width, len(self.words), settings.adversary_weight)
        distill = (settings.distill_weight, settings.distill_temperature)
        self.module = Module(
            self.bi.model, self.bi.head, settings.initial_temperature, settings.pair_weight, distill, topics
        )
        self.module.chunk_size = settings.runtime.cache_chunk_size
        transformer = self.bi.model[0].model
        self.flops_per_token = sets.flops_per_token(transformer)
        if settings.runtime.gradient_checkpointing:  # not the reentrant way, which DDP does not stand
            transformer.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if settings.runtime.compile:
            transformer.compile()  # in place: the weights keep their names

    def _mined(self, chunks: Artifact) -> sampler.HardNegatives:
        negatives = artifact.open_artifact(self.settings.runtime.root, "negatives", self.settings.negatives)
        mined = sets.mined_negatives(chunks, negatives, split="train")
        made = sampler.HardNegatives(mined, self.batches, self.settings.num_hard_negatives)
        if not made.covered:
            raise UserError(f"negatives = {negatives.name!r}: none for a training chunk of {chunks.name!r}")
        return made

    def _taught(self, chunks: Artifact) -> TaughtPairs:
        predictions = artifact.open_artifact(self.settings.runtime.root, "predictions", self.settings.teacher)
        size, optimisation = self.settings.distill_pairs, self.settings.loop
        return TaughtPairs(
            chunks, predictions, batch_size=size, seed=optimisation.seed, accumulation=optimisation.accumulation
        )

    def _texts(self, rows: np.ndarray) -> list[str]:
        return [self.chunk_texts[int(row)].as_py() for row in rows]

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        rows, works = self.batches.plan(step, micro)
        if len(rows) % world:
            raise UserError(f"works_per_batch x chunks_per_work = {len(rows)} is not a multiple of {world} workers")
        mine = slice(rank * len(rows) // world, (rank + 1) * len(rows) // world)
        texts, beside = self._texts(rows[mine]), {"works": torch.from_numpy(works[mine])}
        count = len(texts)
        if self.mined:
            negatives, negative_works = self.mined.plan(step, micro, rows)
            mined = slice(rank * len(negatives) // world, (rank + 1) * len(negatives) // world)
            texts += self._texts(negatives[mined])
            beside["negative_works"] = torch.from_numpy(negative_works[mined])
        if self.taught:
            first, second, beside["teacher"] = self.taught.plan(step, micro, rank, world)
            texts += [*first, *second]
        tokens = encoder.tokenize(self.bi.model, texts, self.length)
        if self.words is not None:
            beside["topics"] = adversary.presence(tokens[:count], self.words)
        ids, mask = packing.pad(tokens, self.bi.model.tokenizer.pad_token_id)
        features = torch.from_numpy(style.style_features(texts))
        return {"input_ids": ids, "attention_mask": mask, "style": features, **beside}

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token(batch["attention_mask"].shape[1]) * self.num_tokens(batch)

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        mine = range(rank, len(self.validation.labels), world)
        texts = [self.validation.texts(row) for row in mine]
        logits = self.bi.score([a for a, _ in texts], [b for _, b in texts]) if texts else np.zeros(0)
        scores = np.asarray(loop.over_ranks(dict(zip(mine, logits.tolist(), strict=True)), len(self.validation.labels)))
        return sets.mean_auc(self.validation, scores)

    def save(self, folder: Path) -> None:
        self.bi.save(folder)


def work(settings: BiEncoderConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    check_workers(settings, loop.rank_and_world()[1])
    torch.manual_seed(settings.loop.seed)  # the head's initial weights
    task = BiEncoderTask(settings)
    state = loop.train(task, settings.loop, draft, log)
    save(draft, state, settings.loop, task.save)


if __name__ == "__main__":
    config.main(CONFIG, run)
