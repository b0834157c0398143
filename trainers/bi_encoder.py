"""Train the bi-encoder by contrast: stage one of the matcher, and its embedding.

    python -m trainers.bi_encoder trainers/experiments/books/bi_encoder.toml [key=value ...]
    python -m trainers.bi_encoder trainers/experiments/books/style_bi_encoder.toml    # same author, other book

Shape letters: B rows of the global batch, F pair features of the views, P taught pairs of a rank.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from quire import adversary, artifact, bi_encoder, config, encoder, hub, levels, loop, packing, sampler
from quire import training_sets as sets
from quire import views as view  # the config has a field of that name
from quire.artifact import Artifact, Draft
from quire.author_batches import AuthorBatches
from quire.baselines import fit_regression
from quire.bi_encoder import BiEncoder, PairHead
from quire.contrastive import Module
from quire.errors import UserError
from quire.proper_names import masked
from quire.taught import TaughtPairs
from trainers.fit import TrainRuntime, fit, publish, save


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
    typed_marks: bool = Field(
        default=True, description="typeset quotes and dashes are read as typed ones, _italics_ as plain words"
    )
    start: str | None = Field(default=None, description="a trained bi-encoder (models artefact) to go on from")
    pooling: Literal["mean", "cls", "attention"] = "mean"
    max_seq_length: int = Field(default=256, ge=8, description="tokens of one text, once trained")
    train_seq_length: int | None = Field(default=None, ge=8, description="tokens in training, where shorter is faster")
    positives: Literal["work", "author"] = Field(
        default="work", description="author: chunks of the author's other works; pairs by pipelines.pairs likewise"
    )
    mask_names: bool = Field(default=False, description="every name becomes one word, wherever the model reads")
    mask_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the batches in which every name is masked, so that texts that come masked are known: the "
        "views then have weights of their own for them",
    )
    works_per_batch: int = Field(default=16, ge=2, description="over all workers")
    works_per_author: int = Field(default=2, ge=2, description="of a batch, where positives are by author")
    lone_share: float = Field(
        default=0.25, ge=0, lt=1, description="of those works by authors of one work or unknown ones: negatives alone"
    )
    chunks_per_work: int = Field(default=4, ge=2)
    hard_share: float = Field(
        default=0.0, ge=0, le=1, description="chance that the next work of a batch is near the last"
    )
    negatives: str | None = Field(default=None, description="negatives artefact, mined for single chunks")
    num_hard_negatives: int = Field(default=1, gt=0, description="mined ones for each chunk of a batch")
    relative_margin: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="keep of them those below their query's positive score by this part of it; none is mined instead",
    )
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
    views: tuple[view.Name, ...] = Field(default=view.DEFAULT, description="what the pair head sees beside the vectors")
    max_view_chunks: int = Field(default=4000, gt=0, description="training chunks that the views are fitted on")
    max_start_pairs: int = Field(default=4000, gt=1, description="training pairs that the head's start is fitted on")
    max_start_encoded: int = Field(default=200, gt=1, description="of them, those that are encoded for it")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_eval_pairs: int = Field(default=400, gt=0)
    eval_splits: tuple[Literal["validation", "calibration"], ...] = Field(
        default=("validation",), min_length=1, description="a sweep that is calibrated by others may look at both"
    )
    loop: loop.LoopConfig
    runtime: BiEncoderRuntime = BiEncoderRuntime()

    @model_validator(mode="after")
    def _judged_by_author(self) -> Self:
        for key in ("negatives", "teacher"):
            if self.positives == "author" and getattr(self, key):
                raise ValueError(f"{key} = {getattr(self, key)!r}: tells books apart; leave it out where by author")
        return self

    @model_validator(mode="after")
    def _margin_of_mined(self) -> Self:
        if self.relative_margin is not None and not self.negatives:
            raise ValueError(f"relative_margin = {self.relative_margin}: of mined negatives; name some by negatives")
        return self

    @model_validator(mode="after")
    def _masked_once(self) -> Self:
        if self.mask_names and self.mask_share:
            raise ValueError(f"mask_share = {self.mask_share}: mask_names masks all there is; leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.start and self.model != hub.MINILM:
            raise ValueError(
                f"model = {self.model!r}: start = {self.start!r} is trained further; leave one of them out"
            )
        return self


CONFIG = BiEncoderConfig


def run(settings: BiEncoderConfig) -> Artifact:
    """Make the `models` artefact, a folder that `SentenceTransformer(path)` and `BiEncoder.load` load."""
    check_workers(settings, settings.runtime.num_workers or 1)
    recipe = config.recipe(settings) | {levels.LIE: levels.STRANGERS}
    draft = artifact.begin_step(settings, "models", inputs(settings), recipe)
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
    drawn = found["pairs"].manifest["recipe"].get("positives", "work")
    if drawn != settings.positives:
        raise UserError(
            f"positives = {settings.positives!r}: pairs {settings.pairs!r} have positives by {drawn}; "
            f"draw others with pipelines.pairs positives={settings.positives}"
        )
    has_masked = not settings.start or found["start"].manifest["recipe"].get("mask_share")
    if settings.mask_share and settings.views and not has_masked:
        raise UserError(
            f"mask_share = {settings.mask_share}: the views of start = {settings.start!r} have no weights for masked "
            "texts; set mask_share = 0, or start from a model trained with one"
        )
    if settings.relative_margin is not None:
        least = found["negatives"].manifest["recipe"].get("relative_margin") or 0.0
        if settings.relative_margin < least:
            raise UserError(
                f"relative_margin = {settings.relative_margin}: negatives {settings.negatives!r} were mined with "
                f"{least}; ask for as much or more, or mine them with less"
            )
    if not settings.start:
        found["model_weights"] = hub.weights_sha256(hub.find_model(settings.model))
    return found


def begin(settings: BiEncoderConfig, sample: list[str], training: sets.PairSet) -> BiEncoder:
    """A pretrained encoder, with views of the training texts `sample` and a head that starts from a regression on
    `training` pairs."""
    model = bi_encoder.build_encoder(
        hub.find_model(settings.model),
        pooling=settings.pooling,
        max_seq_length=settings.max_seq_length,
        typed_marks=settings.typed_marks,
    )
    model.mask_names = settings.mask_names
    read = [masked(text) for text in sample] if settings.mask_names else sample
    fitted = view.Views.fit(read, settings.views, masked_apart=settings.mask_share > 0)
    head = PairHead(model.get_embedding_dimension(), settings.head_size, len(fitted.feature_names))
    found = BiEncoder(model.eval(), head, fitted)
    sides = zip(*(training.texts(row) for row in range(len(training.labels))), strict=True)
    found.start_head(*sides, training.labels, training.negative_types, settings.max_start_encoded)
    return found


def go_on(settings: BiEncoderConfig) -> BiEncoder:
    """The model named `start`, with its own views and head. Raises UserError where it is not as the settings say."""
    folder = artifact.open_artifact(settings.runtime.root, "models", settings.start).local()
    found = BiEncoder.go_on(folder, settings.max_seq_length)
    asked = {key: getattr(settings, key) for key in ("typed_marks", "pooling", "head_size", "mask_names")}
    asked["views"] = view.Views(settings.views).names
    has = {"typed_marks": encoder.reads_typed(found.model[0]), "pooling": bi_encoder.pooling_of(found.model)}
    has |= {"head_size": found.head.hidden_size, "mask_names": encoder.masks_names(found.model)}
    has["views"] = found.views.names
    for key, value in asked.items():
        if value != has[key]:
            raise UserError(f"{key} = {value!r}: start = {settings.start!r} has {has[key]!r}; set that")
    return found


def batches(
    settings: BiEncoderConfig, rows: dict[str, np.ndarray], chunks: Artifact, neighbors: Artifact
) -> sampler.BookBatches | AuthorBatches:
    """Batches whose classes are the works, or the authors, of the training split; `rows` as `rows_by_work` has them."""
    sizes = {key: getattr(settings, key) for key in ("works_per_batch", "chunks_per_work", "hard_share")}
    sizes["seed"] = settings.loop.seed
    if settings.positives == "work":
        return sampler.BookBatches(rows, sets.related_works(chunks, neighbors, "train"), **sizes)
    of_authors = {"works_per_author": settings.works_per_author, "lone_share": settings.lone_share}
    near = sets.near_works(neighbors, "train")
    return AuthorBatches(rows, sets.authors_of_works(chunks, "train"), near, **sizes, **of_authors)


def _part(count: int, rank: int, world: int) -> slice:
    """A worker's rows of a global batch."""
    return slice(rank * count // world, (rank + 1) * count // world)


class BiEncoderTask:
    """Book-balanced batches, mined negatives and taught pairs beside; evaluation on the frozen validation pairs."""

    mfu_key = "mfu_without_embeddings"

    def __init__(self, settings: BiEncoderConfig):
        self.settings, root = settings, settings.runtime.root
        chunks, pairs, neighbors = (
            artifact.open_artifact(root, kind, getattr(settings, kind)) for kind in ("chunks", "pairs", "neighbors")
        )
        self.length = settings.train_seq_length or settings.max_seq_length
        self.chunks = chunks
        rows, self.chunk_texts = sets.rows_by_work(chunks, "train")
        if settings.start:
            self.bi = go_on(settings)
        else:
            training = sets.PairSet(chunks, pairs, "train").spaced(settings.max_start_pairs)
            self.bi = begin(settings, self._sample(rows), training)
        sets.set_dropout(self.bi.model[0].model, settings.dropout)
        self.validation = sets.PairSet(chunks, pairs, *settings.eval_splits).spaced(settings.max_eval_pairs)
        self.batches = batches(settings, rows, chunks, neighbors)
        self.mined = self._mined(chunks) if settings.negatives else None
        self.taught = self._taught(chunks) if settings.teacher else None
        self.words, topics = None, None
        if settings.adversary_weight:
            self.words = adversary.content_words(
                encoder.tokenize(self.bi.model, self._sample(rows), self.length), settings.adversary_words
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
        margin = self.settings.relative_margin
        mined = sets.mined_negatives(chunks, negatives, split="train", relative_margin=margin)
        made = sampler.HardNegatives(mined, self.batches, self.settings.num_hard_negatives)
        if not made.covered:
            kept = "" if margin is None else f" with relative_margin = {margin}; lower it, or mine more of them"
            raise UserError(f"negatives = {negatives.name!r}: none for a training chunk of {chunks.name!r}{kept}")
        return made

    def _taught(self, chunks: Artifact) -> TaughtPairs:
        predictions = artifact.open_artifact(self.settings.runtime.root, "predictions", self.settings.teacher)
        size, optimisation = self.settings.distill_pairs, self.settings.loop
        return TaughtPairs(
            chunks, predictions, batch_size=size, seed=optimisation.seed, accumulation=optimisation.accumulation
        )

    def _sample(self, rows: dict[str, np.ndarray]) -> list[str]:
        """Training texts, evenly spaced."""
        every = np.concatenate(list(rows.values()))[:, 0]
        return self._texts(every[:: max(1, len(every) // self.settings.max_view_chunks)])

    def _texts(self, rows: np.ndarray) -> list[str]:
        return [self.chunk_texts[int(row)].as_py() for row in rows]

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        rows, works = self.batches.plan(step, micro)
        if len(rows) % world:
            raise UserError(f"works_per_batch x chunks_per_work = {len(rows)} is not a multiple of {world} workers")
        mine = _part(len(rows), rank, world)
        read_as = masked if self._is_masked(step, micro) else str
        whole = [read_as(text) for text in self._texts(rows)]
        read = self.bi.rows(whole)  # of the global batch, on every rank alike
        features = torch.from_numpy(self.bi.views.all_pairs(read, read))  # (B, B, F)
        beside = {"works": torch.from_numpy(works[mine]), "features": features}
        if isinstance(self.batches, AuthorBatches):
            beside["authors"] = torch.from_numpy(self.batches.authors[works[mine]])
            beside["groups"] = torch.from_numpy(self.batches.groups[works[mine]])
        texts, count = whole[mine], len(whole[mine])
        if self.mined:
            negatives, negative_works = self.mined.plan(step, micro, rows)
            mined = _part(len(negatives), rank, world)
            texts += [read_as(text) for text in self._texts(negatives[mined])]
            beside["negative_works"] = torch.from_numpy(negative_works[mined])
        if self.taught:
            first, second, beside["teacher"] = self.taught.plan(step, micro, rank, world)
            read = (self.bi.rows(texts_of_side) for texts_of_side in (first, second))
            beside["taught_features"] = torch.from_numpy(self.bi.views.pairs(*read))
            texts += [*first, *second]
        tokens = encoder.tokenize(self.bi.model, texts, self.length)
        if self.words is not None:
            beside["topics"] = adversary.presence(tokens[:count], self.words)
        ids, mask = packing.pad(tokens, self.bi.model.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, **beside}

    def _is_masked(self, step: int, micro: int) -> bool:
        """Whether this batch has its names masked, on every rank alike. Taught pairs stay as the teacher read them."""
        drawn = sampler.generator(self.settings.loop.seed, step, sampler.MASKED + micro).random()
        return bool(drawn < self.settings.mask_share)

    def describe(self, step: int, micro: int, rank: int, world: int) -> list[str]:
        """A worker's chunks of a batch, those mined for them, and both chunks of each taught pair."""
        rows, _ = self.batches.plan(step, micro)
        ids = self.chunks.read(["chunk_id"])["chunk_id"]
        told = ids.take(rows[_part(len(rows), rank, world)]).to_pylist()
        told += ["(names masked in this batch)"] if self._is_masked(step, micro) else []
        if self.mined:
            negatives, _ = self.mined.plan(step, micro, rows)
            mined = ids.take(negatives[_part(len(negatives), rank, world)]).to_pylist()
            told += [f"{chunk} (mined)" for chunk in mined]
        if self.taught:
            told += [f"{pair} (taught)" for pair in self.taught.named(step, micro, rank, world)]
        return told

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token(batch["attention_mask"].shape[1]) * self.num_tokens(batch)

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        """AUC as the model would be saved now: its views and the rest weighed by these very pairs, as they are; masked
        texts choose neither the step nor these two weights."""
        mine = range(rank, len(self.validation.labels), world)
        texts = [self.validation.texts(row) for row in mine]
        parts = self.bi.parts([a for a, _ in texts], [b for _, b in texts]) if texts else np.zeros((0, 2))
        whole = np.stack(
            [
                loop.over_ranks(dict(zip(mine, part.tolist(), strict=True)), len(self.validation.labels))
                for part in parts.T
            ],
            axis=1,
        )
        if not self.bi.head.num_features:
            return sets.mean_auc(self.validation, whole.sum(1))
        both = fit_regression(whole, self.validation.labels, self.validation.negative_types)
        return sets.mean_auc(self.validation, whole @ bi_encoder.part_weights(both))

    def save(self, folder: Path) -> None:
        """Write the model as it is now, weighed; training goes on from what is not."""
        training = self.module.training
        self.module.eval()
        sides = zip(*(self.validation.texts(row) for row in range(len(self.validation.labels))), strict=True)
        self.bi.weighed(*sides, self.validation.labels, self.validation.negative_types).save(folder)
        self.module.train(training)


def work(settings: BiEncoderConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    check_workers(settings, loop.rank_and_world()[1])
    torch.manual_seed(settings.loop.seed)  # the head's initial weights
    task = BiEncoderTask(settings)
    state = loop.train(task, settings.loop, draft, log)
    save(draft, state, settings.loop, task)


if __name__ == "__main__":
    config.main(CONFIG, run)
