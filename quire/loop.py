"""The training loop that every trainer shares: one step after another, exactly resumable, on one worker or many.

A trainer gives a `Task`: a module whose forward takes a batch and returns the loss, a stateless source of batches
(step, micro-batch, rank) -> batch, and an evaluation. The loop gives the rest. It needs torch.distributed only when
a process group is there (Ray Train sets one up), and never Ray.
"""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quire import checkpoint, device
from quire.artifact import Draft
from quire.config import Config
from quire.errors import UserError
from quire.optimizer import learning_rate_factor, optimizer_for

Batch = dict[str, torch.Tensor]


class LoopConfig(Config):
    """What the loop computes. All of it is part of the recipe."""

    max_steps: int | None = Field(default=None, gt=0, description="optimiser steps; the schedule ends here")
    max_tokens: int | None = Field(default=None, gt=0, description="a budget instead of max_steps")
    learning_rate: float = Field(gt=0)
    head_multiplier: float = Field(
        default=1.0, gt=0, description="learning rate of `head.` parameters, which start anew"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    min_learning_rate_share: float = Field(default=0.0, ge=0, le=1, description="of the peak, where the schedule ends")
    warmup_steps: int = Field(default=0, ge=0, description="optimiser steps, whatever the accumulation")
    accumulation: int = Field(default=1, gt=0, description="micro-batches per optimiser step")
    clip_norm: float = Field(default=1.0, gt=0)
    eval_every: int = Field(default=100, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    patience: int | None = Field(default=None, gt=0, description="evaluations without improvement before stopping")
    min_delta: float = Field(default=0.0, ge=0, description="less is no improvement")
    ema_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the past in the metric that decides")
    keep_every: int | None = Field(default=None, gt=0, description="steps between models that are kept")
    geometric_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="keep a model whenever the metric fell below this share of the last kept"
    )
    metric: str = "loss"
    higher_is_better: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _one_budget(self) -> "LoopConfig":
        if (self.max_steps is None) == (self.max_tokens is None):
            raise ValueError("set exactly one of max_steps and max_tokens")
        if self.geometric_ratio and self.higher_is_better:
            raise ValueError("geometric_ratio needs a metric that falls")
        return self

    def with_steps(self, tokens_per_step: int) -> "LoopConfig":
        """The same with a token budget turned into steps. Raises UserError when it does not pay for one."""
        if self.max_tokens is None:
            return self
        steps = self.max_tokens // tokens_per_step
        if not steps:
            raise UserError(f"loop.max_tokens = {self.max_tokens:,}: one step takes {tokens_per_step:,} tokens")
        return self.model_copy(update={"max_steps": steps, "max_tokens": None})


class Task(Protocol):
    """What a trainer supplies."""

    module: nn.Module  # forward(batch) -> {"loss": scalar, **other scalars}

    def batch(self, step: int, micro: int, rank: int, world: int) -> Batch:
        """This rank's slice of the global micro-batch; a function of its arguments alone."""

    def num_tokens(self, batch: Batch) -> int:
        """Tokens in the batch, padding left out."""

    def flops(self, batch: Batch) -> float:
        """FLOPs of forward and backward for the batch, for the model's FLOP utilisation."""

    def evaluate(self, rank: int, world: int) -> dict[str, float | list[float]]:
        """Metrics on a frozen set; every rank calls it and every rank gets the same numbers."""

    def save_model(self, folder: Path) -> None:
        """Write the model as published. Needed for models that are kept on the way."""


class NonFinite(RuntimeError):
    """Loss or gradient became NaN or infinite; the batch is saved for inspection."""


@dataclass
class State:
    """All that a resumed run must know besides tensors."""

    step: int = 0
    best: float | None = None
    average: float | None = None  # of the metric, exponentially weighted
    kept: float | None = None  # the metric when a model was last kept for having fallen
    best_step: int = 0
    bad_evaluations: int = 0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # no clock times: equal runs give equal histories
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of workers; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def over_ranks(values: "dict[int, float]", count: int) -> list[float]:
    """Each rank's part of `count` numbers, by position, put together on every rank."""
    whole = torch.zeros(count, dtype=torch.float64, device=device.device())
    for position, value in values.items():
        whole[position] = value
    if rank_and_world()[1] > 1:
        dist.all_reduce(whole)
    return whole.tolist()


def train(task: Task, config: LoopConfig, draft: Draft, log: Any = print) -> State:
    """Train until the step budget or early stopping; leave the best weights in `task.module`.

    Resumes from the draft's newest checkpoint. `log` is called with a dict: per step on rank 0, per
    evaluation on every rank.
    Raises NonFinite after saving the offending batch.
    """
    if config.max_steps is None:
        raise UserError("loop.max_tokens: this trainer's steps differ in tokens; set loop.max_steps instead")
    rank, world = rank_and_world()
    module = task.module.to(device.device()).train()
    optimizer = optimizer_for(module, config)
    state = checkpoint.load_latest(draft, module, optimizer, State) or State()
    wrapped = DistributedDataParallel(module, broadcast_buffers=False) if world > 1 else module
    if state.step == 0 and not state.history:
        _evaluate(task, config, state, draft, rank, world, log)
    batches = Ahead(task, config, rank, world)
    while state.step < config.max_steps and not state.stopped:
        _step(task, wrapped, optimizer, config, state, draft, rank, world, log, batches)
        last = state.step == config.max_steps
        if state.step % config.eval_every == 0 or last:
            _evaluate(task, config, state, draft, rank, world, log)
        if config.keep_every and state.step % config.keep_every == 0:
            keep_model(task, draft, state, rank)
        if state.step % config.checkpoint_every == 0 or last or state.stopped:
            checkpoint.save(draft, module, optimizer, state, rank)
    batches.close()
    checkpoint.load_best(draft, module)
    return state


class Ahead:
    """Prepares the next batch on a thread while the model works. A batch is a function of its place alone, so this
    changes nothing but the time."""

    def __init__(self, task: Task, config: LoopConfig, rank: int, world: int):
        self.make = lambda step, micro: task.batch(step, micro, rank, world)
        self.config, self.pool = config, ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.next: tuple[tuple[int, int], Future[Batch]] | None = None
        self.waited = 0.0  # seconds, since last asked

    def get(self, step: int, micro: int) -> Batch:
        """The batch of this place; the one after it is begun."""
        started = time.perf_counter()
        ready = self.next[1].result() if self.next and self.next[0] == (step, micro) else self.make(step, micro)
        self.waited += time.perf_counter() - started
        after = (step, micro + 1) if micro + 1 < self.config.accumulation else (step + 1, 0)
        if after[0] < self.config.max_steps:
            self.next = (after, self.pool.submit(self.make, *after))
        return ready

    def close(self) -> None:
        """Wait for what was begun."""
        self.pool.shutdown()


def keep_model(task: Task, draft: Draft, state: State, rank: int) -> None:
    """Rank 0 writes the model of this step into the artefact, where it stays."""
    if rank == 0:
        with draft.storage.local_folder(f"{draft.folder}/checkpoints/step-{state.step:08d}") as folder:
            task.save_model(folder)


def _step(task, wrapped, optimizer, config, state, draft, rank, world, log, batches) -> None:
    started = time.perf_counter()
    # One generator state per (seed, step, rank): dropout is the same after a resume, and differs between ranks.
    torch.manual_seed((config.seed * 1_000_003 + state.step) * 4096 + rank)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * group["multiplier"] * learning_rate_factor(config, state.step)
    sums: dict[str, torch.Tensor] = {}
    tokens, flops = 0, 0.0
    for micro in range(config.accumulation):
        batch = batches.get(state.step, micro)
        tokens, flops = tokens + task.num_tokens(batch), flops + task.flops(batch)
        on_device = {key: tensor.to(device.device(), non_blocking=True) for key, tensor in batch.items()}
        last_micro = micro == config.accumulation - 1
        with _no_sync(wrapped, last_micro), device.autocast():
            out = wrapped(on_device)
        with _no_sync(wrapped, last_micro):
            (out["loss"] / config.accumulation).backward()
        for key, value in out.items():
            sums[key] = sums.get(key, 0.0) + value.detach().double() / config.accumulation
    norm = nn.utils.clip_grad_norm_(wrapped.parameters(), config.clip_norm)
    metrics = _mean_over_ranks({**sums, "grad_norm": norm.detach().double()}, world)
    if not all(math.isfinite(metrics[key]) for key in ("loss", "grad_norm")):
        where = checkpoint.save_batch(draft, batch, state.step, rank)
        raise NonFinite(
            f"step {state.step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; batch in {where}"
        )
    optimizer.step()
    weights = [p.detach() for p in wrapped.parameters()]
    metrics["parameter_norm"] = float(torch.stack(torch._foreach_norm(weights)).norm())
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    seconds = time.perf_counter() - started
    state.tokens, state.seconds, state.flops = (
        state.tokens + tokens * world,
        state.seconds + seconds,
        state.flops + flops,
    )
    rate = config.learning_rate * learning_rate_factor(config, state.step - 1)
    record = {"step": state.step, "learning_rate": rate, **metrics}
    state.history.append(record)
    if rank == 0:
        speed = {
            "tokens_per_second": tokens * world / seconds,
            "mfu": flops / seconds / device.peak_flops(device.precision()),
            "data_share": batches.waited / seconds,
        }
        log({**record, **speed})
    batches.waited = 0.0


def _no_sync(wrapped: nn.Module, last_micro: bool) -> Any:
    """Only the last micro-batch exchanges gradients."""
    return nullcontext() if last_micro or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()


def _mean_over_ranks(values: dict[str, torch.Tensor], world: int) -> dict[str, float]:
    stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in values.values()])
    if world > 1:
        stacked = stacked.to(device.device())
        dist.all_reduce(stacked)
        stacked = stacked.cpu() / world
    return dict(zip(values, stacked.tolist(), strict=True))


def _evaluate(task, config, state, draft, rank, world, log) -> None:
    task.module.eval()
    metrics = task.evaluate(rank, world)
    task.module.train()
    if config.metric not in metrics:
        raise UserError(f"loop.metric = {config.metric!r}: the evaluation gives {', '.join(sorted(metrics))}")
    raw = metrics[config.metric]
    share = 0.0 if state.average is None else config.ema_smoothing
    value = state.average = raw if not share else share * state.average + (1 - share) * raw
    gain = math.inf if state.best is None else (value - state.best) * (1 if config.higher_is_better else -1)
    if gain > config.min_delta:
        state.best, state.best_step, state.bad_evaluations = value, state.step, 0
        checkpoint.save_best(draft, task.module, state.step, rank)
    else:
        state.bad_evaluations += 1
        state.stopped = config.patience is not None and state.bad_evaluations >= config.patience
    if config.geometric_ratio and (state.kept is None or raw < config.geometric_ratio * state.kept):
        state.kept = raw
        keep_model(task, draft, state, rank)
    record = {"step": state.step, **{f"eval_{key}": number for key, number in metrics.items()}}
    state.history.append(record)
    log({**record, "best": state.best, "best_step": state.best_step})
