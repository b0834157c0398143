"""Train a language model from random weights on a mixture of K categories.

    python -m trainers.lm trainers/experiments/arxiv/lm.toml k=3 category_seed=1 [key=value ...]

Every batch is a function of (seed, step, slot); every evaluation reads the same frozen windows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from transformers import AutoTokenizer

from quire import artifact, config, lm, loop, windows
from quire.artifact import Artifact, Draft
from quire.errors import UserError
from quire.tokens import TokenStore
from quire.training_sets import flops_per_token
from trainers.fit import TrainRuntime, fit, publish, save


class LmConfig(config.Config):
    """What `trainers.lm` computes."""

    name: str
    tokens: str
    model: lm.LmModel = lm.LmModel()
    sequence_length: int = Field(default=256, ge=2, description="tokens of a window; one prediction less")
    k: int | None = Field(default=None, gt=0, description="categories in the mixture; default: all")
    categories: tuple[str, ...] | None = Field(default=None, description="to choose from; default: all of the store")
    category_seed: int = Field(default=0, description="which K categories")
    init_seed: int = Field(default=0, description="the first weights; loop.seed is the order of the data")
    weighting: Literal["component", "token"] = "component"
    distinct_tokens: int | None = Field(
        default=None, gt=0, description="exactly this many different tokens, an equal part from each category"
    )
    shuffle_labels: int | None = Field(default=None, description="control: categories permuted over documents, by seed")
    batch_size: int = Field(default=32, gt=0, description="windows, over all workers")
    num_eval_windows: int = Field(default=64, gt=0, description="per category")
    eval_seed: int = 0
    loop: loop.LoopConfig
    runtime: TrainRuntime = TrainRuntime()


CONFIG = LmConfig


def run(settings: LmConfig) -> Artifact:
    """Make the `models` artefact, a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises UserError before training for what the store cannot give: categories, window length, vocabulary, budget.
    """
    found = inputs(settings)
    draft = artifact.begin(settings.runtime.root, "models", settings.name, recipe=config.recipe(settings), inputs=found)
    if draft.published:
        return draft.published
    Mixture(settings, TokenStore.open(found["tokens"]))  # every mistake shows here, before workers are placed
    fit("trainers.lm", settings, draft)
    return publish(draft)


def inputs(settings: LmConfig) -> dict[str, Artifact]:
    """What the model is made from, besides the recipe."""
    return {"tokens": artifact.open_artifact(settings.runtime.root, "tokens", settings.tokens)}


class Mixture:
    """The K categories of a run, its training windows and its frozen evaluation windows."""

    def __init__(self, settings: LmConfig, store: TokenStore):
        if settings.sequence_length > settings.model.max_positions:
            raise UserError(
                f"sequence_length = {settings.sequence_length}: the model has {settings.model.max_positions} positions"
            )
        universe = settings.categories or tuple(store.names())
        self.categories = windows.choose_categories(universe, settings.k or len(universe), settings.category_seed)
        budget = settings.distinct_tokens
        if budget is not None and budget % len(self.categories):
            raise UserError(f"distinct_tokens = {budget}: not a multiple of the {len(self.categories)} categories")
        trained_on = store if settings.shuffle_labels is None else store.shuffled(settings.shuffle_labels)
        self.train = windows.Windows(
            trained_on,
            "train",
            self.categories,
            settings.sequence_length,
            weighting=settings.weighting,
            seed=settings.loop.seed,
            tokens_per_category=None if budget is None else budget // len(self.categories),
        )
        frozen = windows.evaluation_windows(
            store,
            "validation",
            self.categories,
            settings.sequence_length,
            settings.num_eval_windows,
            settings.eval_seed,
        )
        self.validation = np.concatenate([frozen[name].ids for name in self.categories])


class Module(nn.Module):
    """Mean cross-entropy of the next token, in nats."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = batch["input_ids"]
        return {"loss": lm.token_losses(self.model(input_ids=ids).logits, ids).mean()}


class LmTask:
    """Random windows to train on; frozen windows of the run's own categories to evaluate on."""

    def __init__(self, settings: LmConfig):
        self.settings = settings
        store = TokenStore.open(artifact.open_artifact(settings.runtime.root, "tokens", settings.tokens))
        self.mixture = Mixture(settings, store)
        self.tokenizer = AutoTokenizer.from_pretrained(store.folder / "tokenizer")
        self.module = Module(lm.build_lm(settings.model, store.vocab_size, settings.init_seed))
        self.flops_per_token = flops_per_token(self.module.model)  # embeddings not counted, the output matrix is

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        slots = micro * self.settings.batch_size + np.arange(self.settings.batch_size)[rank::world]
        return {"input_ids": torch.from_numpy(self.mixture.train.batch(step, slots))}

    def num_tokens(self, batch: loop.Batch) -> int:
        return batch["input_ids"].numel()

    def flops(self, batch: loop.Batch) -> float:
        return self.flops_per_token(batch["input_ids"].shape[1]) * self.num_tokens(batch)

    def evaluate(self, rank: int, world: int) -> dict[str, float | list[float]]:
        """`loss`, the plain mean over categories; `loss_<category>`; `positions`, the mean loss of each prediction."""
        ids = self.mixture.validation
        mine = np.arange(rank, len(ids), world)
        width = ids.shape[1] - 1
        found = lm.position_losses(self.module.model, ids[mine])
        places = (mine[:, None] * width + np.arange(width)).ravel()
        whole = loop.over_ranks(dict(zip(places.tolist(), found.ravel().tolist(), strict=True)), len(ids) * width)
        losses = np.asarray(whole).reshape(len(self.mixture.categories), -1, width)
        by_category = dict(zip(self.mixture.categories, losses.mean((1, 2)).tolist(), strict=True))
        return {
            "loss": float(losses.mean()),
            **{f"loss_{name}": value for name, value in by_category.items()},
            "positions": losses.mean((0, 1)).tolist(),
        }

    def save_model(self, folder: Path) -> None:
        """Weights (safetensors), config and tokenizer."""
        self.module.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def work(settings: LmConfig, draft: Draft, log: Callable[[dict[str, Any]], None]) -> None:
    """What each Ray Train worker does."""
    task = LmTask(settings)
    config = settings.loop.with_steps(settings.batch_size * settings.sequence_length * settings.loop.accumulation)
    _, world = loop.rank_and_world()
    if settings.batch_size % world:
        raise UserError(f"batch_size = {settings.batch_size}: not a multiple of {world} workers")
    state = loop.train(task, config, draft, log)
    save(draft, state, config, task.save_model)
    if loop.rank_and_world()[0] == 0:
        evaluated = [record for record in state.history if "eval_positions" in record]
        profiles = [
            {
                "step": record["step"],
                "losses": record["eval_positions"],
                "categories": {name: record[f"eval_loss_{name}"] for name in task.mixture.categories},
            }
            for record in evaluated
        ]
        draft.storage.write_json(f"{draft.folder}/profiles.json", profiles)
        seeds = {"category_seed": settings.category_seed, "init_seed": settings.init_seed, "data_seed": config.seed}
        facts = {"categories": task.mixture.categories, "k": len(task.mixture.categories), **seeds}
        facts |= {"documents_too_short": task.mixture.train.left_out}
        draft.storage.write_json(f"{draft.folder}/mixture.json", facts)


if __name__ == "__main__":
    config.main(CONFIG, run)
