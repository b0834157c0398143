"""Train a language model from random weights on a mixture of K categories of a token store.

python -m trainers.lm trainers/experiments/arxiv/lm.toml [key=value ...]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from quire import artifact, config, hub, lm, loop, mixture, next_token
from quire.artifact import Artifact, Draft
from quire.errors import UserError
from quire.fixed_budget import FixedWindows
from quire.loop_config import LoopConfig
from quire.tokens import TokenStore
from quire.windows import Windows, evaluation_plan, evaluation_windows
from trainers.fit import TrainRuntime, fit, publish, save


class LmRuntime(TrainRuntime):
    """Where and with what it runs."""

    mfu_with_embeddings: bool = Field(
        default=False, description="count the input embedding, which is looked up and not multiplied, into the MFU"
    )
    compile: bool = Field(default=False, description="torch.compile the transformer; needs a C++ compiler, or Triton")


class LmLoop(LoopConfig):
    """The loop with AdamW's betas as language models are trained with (GPT-3, Brown et al. 2020, appendix B)."""

    betas: tuple[float, float] = (0.9, 0.95)


class LmConfig(config.Config):
    """What `trainers.lm` computes. Three seeds: `category_seed`, `init_seed`, and `loop.seed` for the data's order."""

    name: str
    tokens: str
    model: lm.LmModel = lm.LmModel()
    sequence_length: int = Field(default=128, ge=2)
    k: int | None = Field(default=None, description="categories in the mixture; default: all")
    category_seed: int = Field(default=0, ge=0)
    init_seed: int = Field(default=0, ge=0)
    categories: tuple[str, ...] | None = Field(default=None, description="to choose from; default: all of the store")
    weighting: Literal["component", "token"] = Field(
        default="component", description="categories alike, or by their tokens; with distinct_tokens both are the same"
    )
    distinct_tokens: int | None = Field(
        default=None, gt=0, description="in all, each of them read every epoch; each category gives 1/k of them"
    )
    shuffle_labels: int | None = Field(default=None, ge=0, description="control: permute the labels by this seed")
    batch_size: int = Field(default=32, gt=0, description="windows of a micro-batch, over all workers")
    num_eval_windows: int = Field(default=64, gt=0, description="validation windows of each category")
    eval_seed: int = Field(default=0, ge=0, description="the same for runs that are to be compared")
    loop: LmLoop
    runtime: LmRuntime = LmRuntime()


CONFIG = LmConfig


def run(settings: LmConfig) -> Artifact:
    """Make the `models` artefact, a folder that `AutoModelForCausalLM` loads."""
    check(settings)
    draft = artifact.begin_step(settings, "models", inputs(settings))
    if draft.published:
        return draft.published
    fit("trainers.lm", settings.model_copy(update={"loop": in_steps(settings)}), draft)
    facts = draft.storage.read_json(f"{draft.folder}/mixture.json")
    said = f"; {sum(facts['distinct_tokens_read'].values()):,} different tokens read"
    left_out = facts["left_out"]
    return publish(draft, said + (f"; {left_out:,} documents shorter than a window are not read" if left_out else ""))


def inputs(settings: LmConfig) -> dict[str, Artifact | str]:
    """What the model is made from, besides the recipe."""
    found = {"tokens": artifact.open_artifact(settings.runtime.root, "tokens", settings.tokens)}
    if settings.model.weights is not None:
        found["model_weights"] = hub.weights_sha256(hub.find_model(settings.model.weights))
    return found


def in_steps(settings: LmConfig) -> LmLoop:
    """The loop with its budget in optimiser steps. Raises UserError when a token budget does not pay for one."""
    return settings.loop.in_steps(settings.batch_size * settings.sequence_length * settings.loop.accumulation)


def num_tokens(settings: LmConfig) -> int:
    """What a run reads in training when it is not stopped early."""
    return in_steps(settings).max_steps * settings.batch_size * settings.sequence_length * settings.loop.accumulation


def check(settings: LmConfig) -> None:
    """Raise UserError for whatever would stop the training later: sizes, categories, windows, budget, workers."""
    in_steps(settings)
    check_workers(settings, settings.runtime.num_workers or 1)
    data = LmData(settings)
    _check_whole(settings, data)
    lm.check_fits(settings.model, settings.sequence_length, data.store.vocab_size)
    evaluation_plan(data.store, "test", data.mixture.universe, settings.sequence_length, 1)  # else found after training


def _check_whole(settings: LmConfig, data: "LmData") -> None:
    """A fixed budget is one only if the run is long enough to read all of it."""
    if not isinstance(data.train, FixedWindows):
        return
    slots, needed = num_tokens(settings) // settings.sequence_length, data.train.slots_per_epoch
    if slots < needed:
        raise UserError(
            f"distinct_tokens = {settings.distinct_tokens}: to read each of them takes {needed:,} windows "
            f"({needed * settings.sequence_length:,} tokens), the run reads {slots:,}; raise loop.max_tokens (or "
            "loop.max_steps), or lower distinct_tokens"
        )


def check_workers(settings: LmConfig, world: int) -> None:
    """Every worker takes the same number of windows, so that their mean gradient is that of the global batch."""
    if settings.batch_size % world:
        raise UserError(f"batch_size = {settings.batch_size}: does not divide by {world} workers (runtime.num_workers)")


class LmData:
    """The run's mixture, its training windows, and the frozen evaluation windows (K x n, L) with their category."""

    def __init__(self, settings: LmConfig):
        opened = artifact.open_artifact(settings.runtime.root, "tokens", settings.tokens)
        self.tokenizer = opened.local() / "tokenizer"
        store = TokenStore.open(opened)
        self.mixture = mixture.choose_mixture(
            store, settings.categories, settings.k, settings.category_seed, settings.distinct_tokens
        )
        if settings.shuffle_labels is not None:
            store = mixture.shuffle_labels(store, self.mixture.universe, settings.shuffle_labels)
        self.store = store
        names, length = self.mixture.categories, settings.sequence_length
        self.train = Windows(store, "train", names, length, settings.weighting, settings.loop.seed)
        if self.mixture.tokens_per_category is not None:
            self.train = FixedWindows(
                store,
                "train",
                names,
                length,
                settings.loop.seed,
                tokens_per_category=self.mixture.tokens_per_category,
                slots_per_step=settings.batch_size * settings.loop.accumulation,
                pool_seed=settings.category_seed,
            )
        self.asked = (store, "validation", names, length, settings.num_eval_windows, settings.eval_seed)
        frozen = evaluation_windows(*self.asked)
        self.evaluation = np.concatenate([frozen[name] for name in names])
        self.category = np.repeat(np.arange(len(names)), [len(frozen[name]) for name in names])

    def described(self, chosen: np.ndarray) -> list[str]:
        """Of these rows of `evaluation`: the category, the document, and the token that the window begins at."""
        plan = evaluation_plan(*self.asked)
        rows, starts = (np.concatenate([plan[name][part] for name in self.mixture.categories]) for part in (0, 1))
        names, ids = self.mixture.categories, self.store.document_ids
        return [f"{names[self.category[i]]} {ids[rows[i]]} from token {starts[i]}" for i in chosen]


class Module(nn.Module):
    """The mean next-token loss of a batch of windows, in nats."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": next_token.mean_loss(self.model, batch["windows"])}


class LmTask:
    """Windows of the mixture for training; loss by position and by category on the frozen ones."""

    def __init__(self, settings: LmConfig):
        self.settings, self.data = settings, LmData(settings)
        model = lm.build_lm(settings.model, self.data.store.vocab_size, settings.init_seed)
        if settings.runtime.compile:
            model.base_model.compile()  # in place: the weights keep their names
        self.module = Module(model)
        counted = settings.runtime.mfu_with_embeddings
        self.mfu_key = f"mfu_{'with' if counted else 'without'}_embeddings"
        self.flops_per_token = lm.flops_per_token(model, settings.sequence_length, counted)

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        windows = torch.from_numpy(self.data.train.batch(step, self._slots(micro, rank, world)))
        return {"windows": windows.pin_memory() if torch.cuda.is_available() else windows}

    def describe(self, step: int, micro: int, rank: int, world: int) -> list[str]:
        """The document of each window, and the token that the window begins at."""
        rows, starts = self.data.train.plan(step, self._slots(micro, rank, world))
        ids = self.data.store.document_ids
        return [f"{ids[row]} from token {start}" for row, start in zip(rows, starts, strict=True)]

    def _slots(self, micro: int, rank: int, world: int) -> np.ndarray:
        """Slots of a step are numbered through its micro-batches."""
        first = micro * self.settings.batch_size
        return np.arange(first + rank, first + self.settings.batch_size, world)

    def num_tokens(self, batch: loop.Batch) -> int:
        return batch["windows"].numel()

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token * batch["windows"].numel()

    def evaluate(self, rank: int, world: int) -> dict[str, Any]:
        """`loss`, `perplexity`, `loss_<category>`, and the curve `position_losses` of L - 1 nats."""
        names, category = self.data.mixture.categories, self.data.category
        sums = np.zeros((len(names), self.settings.sequence_length - 1))
        mine = slice(rank, None, world)
        losses = next_token.position_losses(self.module.model, self.data.evaluation[mine])
        self.bad = np.zeros(len(category))
        self.bad[mine] = ~np.isfinite(losses).all(1)
        np.add.at(sums, category[mine], losses)
        means = loop.summed(sums) / np.bincount(category, minlength=len(names))[:, None]  # (K, L - 1)
        loss = float(means.mean())  # every category weighs the same
        by_category = {f"loss_{name}": float(row.mean()) for name, row in zip(names, means, strict=True)}
        curve = means.mean(axis=0).tolist()
        return {"loss": loss, "perplexity": next_token.perplexity(loss), **by_category, "position_losses": curve}

    def bad_evaluation(self, rank: int, world: int) -> tuple[loop.Batch, list[str]]:
        """The windows of the last evaluation whose losses are no numbers."""
        chosen = np.flatnonzero(loop.summed(self.bad))
        return {"windows": torch.from_numpy(self.data.evaluation[chosen])}, self.data.described(chosen)

    def save(self, folder: Path) -> None:
        lm.save_lm(self.module.model, self.data.tokenizer, folder)


def work(settings: LmConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    rank, world = loop.rank_and_world()
    check_workers(settings, world)
    task = LmTask(settings)
    state = loop.train(task, in_steps(settings), draft, log)
    save(draft, state, settings.loop, task)
    if rank == 0:
        described = {
            **task.data.mixture.described(),
            "category_seed": settings.category_seed,
            "init_seed": settings.init_seed,
            "data_seed": settings.loop.seed,
            "shuffle_labels": settings.shuffle_labels,
            "left_out": task.data.train.left_out,
            "distinct_tokens_read": task.data.train.distinct_tokens(
                state.step, settings.batch_size * settings.loop.accumulation
            ),
        }
        draft.storage.write_json(f"{draft.folder}/mixture.json", described)
        draft.storage.write_json(f"{draft.folder}/profiles.json", profiles(state, task.data.mixture.categories))


def profiles(state: loop.State, names: list[str]) -> list[dict[str, Any]]:
    """Loss by position and by category at every evaluation of a run."""
    return [
        {
            "step": record["step"],
            "losses": record["eval_position_losses"],
            "categories": {name: record[f"eval_loss_{name}"] for name in names},
        }
        for record in state.history
        if "eval_position_losses" in record
    ]


if __name__ == "__main__":
    config.main(CONFIG, run)
