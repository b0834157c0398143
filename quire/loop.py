"""The training loop that every trainer shares: one step after another, exactly resumable, on one worker or many.

A trainer gives a `Task`: a module whose forward takes a batch and returns the loss, a stateless source of batches
(step, micro-batch, rank) -> batch, and an evaluation. The loop gives the rest. It needs torch.distributed only when
a process group is there (Ray Train sets one up), and never Ray.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quire import checkpoint, cpu_attention, device, gradcache
from quire.ahead import Ahead
from quire.artifact import Draft
from quire.errors import UserError
from quire.loop_config import LoopConfig, learning_rate_factor

Batch = dict[str, torch.Tensor]
_SHOWN = 8  # rows of a bad batch in its message; all of them stand beside it


class Task(Protocol):
    """What a trainer supplies."""

    module: nn.Module  # forward(batch) -> {"loss": scalar, **other scalars}
    mfu_key: str  # what the model's FLOP utilisation is logged as: `mfu...`, and whether `flops` counts embeddings

    def batch(self, step: int, micro: int, rank: int, world: int) -> Batch:
        """This rank's slice of the global micro-batch; a function of its arguments alone."""

    def num_tokens(self, batch: Batch) -> int:
        """Tokens in the batch, padding left out."""

    def flops(self, batch: Batch) -> float:
        """FLOPs of forward and backward for the batch, which is this rank's slice."""

    def evaluate(self, rank: int, world: int) -> dict[str, Any]:
        """Metrics on a frozen set; every rank calls it and every rank gets the same numbers.

        A list is a curve.
        """

    def save(self, folder: Path) -> None:
        """Write the model as its users load it. Only where checkpoints are kept."""

    def describe(self, step: int, micro: int, rank: int, world: int) -> list[str]:
        """What each row of that batch was made from, to be named when its loss is no number. A task may lack it."""

    def bad_evaluation(self, rank: int, world: int) -> tuple[Batch, list[str]]:
        """What of the last evaluation had no finite loss, the same on every rank, and what each row of it was made
        from. Every rank calls it. A task may lack it."""


class NonFinite(RuntimeError):
    """Loss or gradient became NaN or infinite; the batch is saved for inspection."""


@dataclass
class State:
    """All that a resumed run must know besides tensors."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    ema: float | None = None  # moving average of the metric
    geometric: float | None = None  # the metric at the last checkpoint kept for its loss
    bad_evaluations: int = 0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # no clock times: equal runs give equal histories
    tokens: int = 0  # of all workers
    seconds: float = 0.0
    flops: float = 0.0  # of this worker alone, as `device.utilisation` takes them
    data_seconds: float = 0.0  # of `seconds`, spent waiting for batches


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of workers; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def optimizer_for(module: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases, norms and scalars are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    wrong = [name for name, p in named if p.dtype != torch.float32]
    if wrong:  # bf16 weights lose updates smaller than 1/256 of themselves, silently
        raise UserError(f"parameter {wrong[0]} is not float32: master weights must be, autocast does the rest")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((".head." in f".{name}", parameter.ndim >= 2), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "multiplier": config.head_multiplier if is_head else 1.0,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (is_head, is_matrix), parameters in sorted(groups.items())
    ]
    return torch.optim.AdamW(settings, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def summed(values: np.ndarray) -> np.ndarray:
    """The float64 sum of every rank's array, on every rank."""
    whole = torch.from_numpy(np.asarray(values, dtype=np.float64)).to(device.device())
    if rank_and_world()[1] > 1:
        dist.all_reduce(whole)
    return whole.cpu().numpy()


def over_ranks(values: "dict[int, float]", count: int) -> list[float]:
    """Each rank's part of `count` numbers, by position, put together on every rank."""
    whole = np.zeros(count)
    for position, value in values.items():
        whole[position] = value
    return summed(whole).tolist()


def train(task: Task, config: LoopConfig, draft: Draft, log: Any = print) -> State:
    """Train until the step budget or early stopping; leave the best weights in `task.module`.

    Resumes from the draft's newest checkpoint. `log` is called with a dict: per step on rank 0, per evaluation
    on every rank.
    Raises NonFinite after saving the offending batches, UserError when the budget is not in steps (`in_steps`).
    """
    if config.max_steps is None:
        raise UserError("loop.max_tokens: this trainer's batches differ in size; set loop.max_steps")
    rank, world = rank_and_world()
    module = task.module.to(device.device()).train()
    cpu_attention.use(module)
    optimizer = optimizer_for(module, config)
    state = checkpoint.load_latest(draft, module, optimizer, State) or State()
    wrapped = distributed(module)
    if state.step == 0 and not state.history:
        _evaluate(task, config, state, draft, rank, world, log)

    def make(number: int) -> Batch:
        return task.batch(*divmod(number, config.accumulation), rank, world)

    first, stop = state.step * config.accumulation, config.max_steps * config.accumulation
    with Ahead(make, first, stop, begin=device.for_threads()) as batches:
        while state.step < config.max_steps and not state.stopped:
            _step(task, wrapped, optimizer, config, state, draft, rank, world, log, batches)
            last = state.step == config.max_steps
            if state.step % config.eval_every == 0 or last:
                with batches.lock:
                    _evaluate(task, config, state, draft, rank, world, log)
            last = last or state.stopped
            if (config.keep_every and state.step % config.keep_every == 0) or (config.keep_last and last):
                checkpoint.keep(draft, task.save, state.step, rank)
            if state.step % config.checkpoint_every == 0 or last:
                checkpoint.save(draft, module, optimizer, state, rank)
    checkpoint.load_best(draft, module, state.best_step)
    return state


def distributed(module: nn.Module) -> nn.Module:
    """The module as the loop trains it: its gradients are averaged over the workers, where there are several."""
    return DistributedDataParallel(module, broadcast_buffers=False) if rank_and_world()[1] > 1 else module


def _step(task, wrapped, optimizer, config, state, draft, rank, world, log, batches) -> None:
    started, waited = time.perf_counter(), batches.waited
    # One generator state per (seed, step, rank): dropout is the same after a resume, and differs between ranks.
    torch.manual_seed((config.seed * 1_000_003 + state.step) * 4096 + rank)
    rate = config.learning_rate * learning_rate_factor(config, state.step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
    sums, used, losses = _gradients(task, wrapped, config, batches)
    norms = {
        "parameter_norm": nn.utils.get_total_norm([p.detach() for p in wrapped.parameters()]),
        "grad_norm": nn.utils.clip_grad_norm_(wrapped.parameters(), config.clip_norm).detach(),
    }
    metrics = _mean_over_ranks({**sums, **norms}, world)
    if not all(math.isfinite(metrics[key]) for key in ("loss", "grad_norm")):
        raise _non_finite(task, state.step, metrics, used, losses, draft)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    tokens, flops = sum(map(task.num_tokens, used)) * world, sum(map(task.flops, used))
    seconds, waited = time.perf_counter() - started, batches.waited - waited
    state.tokens, state.flops = state.tokens + tokens, state.flops + flops
    state.seconds, state.data_seconds = state.seconds + seconds, state.data_seconds + waited
    record = {"step": state.step, "learning_rate": rate, **metrics}
    state.history.append(record)
    if rank == 0:
        mfu = {task.mfu_key: device.utilisation(flops, seconds)}
        log({**record, "tokens_per_second": tokens / seconds, **mfu, "data_share": waited / seconds})


def _non_finite(
    task: Task, step: int, metrics: dict[str, float], used: list[Batch], losses: list[torch.Tensor], draft: Draft
) -> NonFinite:
    """The error that names the micro-batches at fault, of all workers alike; each worker saves its own of them.

    Where every loss is a number and the gradient is none, any of them may be at fault.
    """
    rank, world = rank_and_world()
    count = len(used)
    of_all = over_ranks({rank * count + micro: float(loss) for micro, loss in enumerate(losses)}, world * count)
    bad = [place for place, loss in enumerate(of_all) if not math.isfinite(loss)] or range(world * count)
    lines = [f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"]
    for worker, micro in (divmod(place, count) for place in bad):
        rows = task.describe(step, micro, worker, world) if hasattr(task, "describe") else []
        where = checkpoint.batch_name(draft, step, micro, worker)
        if worker == rank:
            checkpoint.save_batch(draft, used[micro], rows, where)
        lines.append(
            f"  micro-batch {micro} of worker {worker}, loss {of_all[worker * count + micro]}: "
            f"{draft.storage.uri(where)}{'.safetensors, made from ' if rows else '.safetensors'}{_shown(rows)}"
        )
    return NonFinite("\n".join(lines))


def _non_finite_evaluation(task: Task, step: int, metric: str, metrics: dict[str, Any], draft: Draft) -> NonFinite:
    """The error that names which numbers of the evaluation are none and the rows at fault, which rank 0 saves."""
    rank, world = rank_and_world()
    others = [key for key, v in metrics.items() if key != metric and isinstance(v, float) and not math.isfinite(v)]
    line = f"step {step}: the evaluation's {metric} is {metrics[metric]}; lower loop.learning_rate"
    lines = [line, *([f"  not a number either: {', '.join(others)}"] if others else [])]
    batch, rows = task.bad_evaluation(rank, world) if hasattr(task, "bad_evaluation") else ({}, [])
    if rows:
        where = checkpoint.evaluation_name(draft, step)
        if rank == 0:
            checkpoint.save_batch(draft, batch, rows, where)
        lines.append(f"  {draft.storage.uri(where)}.safetensors, made from {_shown(rows)}")
    return NonFinite("\n".join(lines))


def _shown(rows: list[str]) -> str:
    return ", ".join(rows[:_SHOWN]) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")


def _gradients(task, wrapped, config, batches) -> tuple[dict[str, torch.Tensor], list[Batch], list[torch.Tensor]]:
    """Add up the gradients of one optimiser step; the mean of what the module returned, the batches it saw, and the
    loss of each."""
    sums: dict[str, torch.Tensor] = {}
    used, losses = [], []
    for micro in range(config.accumulation):
        batch = batches.next()
        used.append(batch)
        on_device = {key: tensor.to(device.device(), non_blocking=True) for key, tensor in batch.items()}
        last_micro = micro == config.accumulation - 1
        if isinstance(task.module, gradcache.Contrastive):
            on_device = gradcache.all_but_last(task.module, on_device, 1 / config.accumulation)
        with _no_sync(wrapped, last_micro), device.autocast():
            out = wrapped(on_device)
        with _no_sync(wrapped, last_micro):
            (out["loss"] / config.accumulation).backward()
        losses.append(out["loss"].detach())
        for key, value in out.items():
            sums[key] = sums.get(key, 0.0) + value.detach().double() / config.accumulation
    return sums, used, losses


def _no_sync(wrapped: nn.Module, last_micro: bool) -> Any:
    """Only the last micro-batch exchanges gradients."""
    return nullcontext() if last_micro or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()


def _mean_over_ranks(values: dict[str, torch.Tensor], world: int) -> dict[str, float]:
    stacked = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64).to(device.device()) for value in values.values()]
    )
    if world > 1:
        dist.all_reduce(stacked)
    return dict(zip(values, (stacked.cpu() / world).tolist(), strict=True))  # one wait for the GPU, not one a value


def _evaluate(task, config, state, draft, rank, world, log) -> None:
    task.module.eval()
    metrics = task.evaluate(rank, world)
    task.module.train()
    if config.metric not in metrics:
        raise UserError(f"loop.metric = {config.metric!r}: the evaluation gives {', '.join(sorted(metrics))}")
    value = metrics[config.metric]
    if not math.isfinite(value):
        raise _non_finite_evaluation(task, state.step, config.metric, metrics, draft)
    if config.geometric_ratio and (state.geometric is None or value < config.geometric_ratio * state.geometric):
        state.geometric = value
        checkpoint.keep(draft, task.save, state.step, rank)
    record = {"step": state.step, **{f"eval_{key}": number for key, number in metrics.items()}}
    if config.ema_smoothing is not None:
        share = config.ema_smoothing
        state.ema = value if state.ema is None else share * value + (1.0 - share) * state.ema
        value = record[f"eval_{config.judged_by}"] = state.ema
    gain = math.inf if state.best is None else (value - state.best) * (1 if config.higher_is_better else -1)
    if gain > config.min_delta:
        state.best, state.best_step, state.bad_evaluations = value, state.step, 0
        checkpoint.save_best(draft, task.module, state.step, rank)
    else:
        state.bad_evaluations += 1
        state.stopped = config.patience is not None and state.bad_evaluations >= config.patience
    state.history.append(record)
    log({**record, "best": state.best, "best_step": state.best_step})
