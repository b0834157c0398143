"""One trainer run on Ray Train: workers with a process group, restarted from our own checkpoints when one dies.

Ray is imported where a run starts: a trainer's task can be built, measured and debugged without it.
"""

import importlib
import math
import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from quire import checkpoint, device
from quire.artifact import WORK, Artifact, Draft
from quire.errors import UserError
from quire.loop import LoopConfig, NonFinite, State, Task, rank_and_world
from trainers import tracker

SECONDS_BETWEEN_LINES = 30


class TrainRuntime(tracker.TrackedRuntime):
    """Where and with what a trainer runs. With GPUs, one worker per GPU; without, one worker with all CPUs."""

    num_workers: int | None = Field(default=None, gt=0)
    use_gpu: bool | None = Field(default=None, description="default: if the cluster has one")
    cpus_per_worker: int | None = Field(default=None, gt=0, description="default: an equal part of the cluster's")
    gpus_per_worker: float = Field(default=1.0, ge=0, description="where GPUs are used; below 1 several runs share one")
    in_sweep: bool = Field(default=False, description="report every evaluation to Ray Tune")
    max_failures: int = Field(default=3, ge=0, description="restarts from the newest checkpoint")


def fit(module: str, settings: Any, draft: Draft) -> None:
    """Run `module.work(settings, draft, log)` on every worker. Raises when it failed more often than allowed."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    if settings.loop.max_steps is None:
        raise UserError("loop.max_tokens: this trainer's batches differ in size; set loop.max_steps")
    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level="WARNING")
    runtime: TrainRuntime = settings.runtime
    total, live = reachable(), ray.cluster_resources()
    use_gpu = total.get("GPU", 0) >= 1 if runtime.use_gpu is None else runtime.use_gpu
    workers = runtime.num_workers or (max(1, int(live.get("GPU", 0))) if use_gpu else 1)
    cpus = runtime.cpus_per_worker or max(1, int(live.get("CPU", 1)) // workers)
    for what, need in (("GPU", workers * use_gpu * runtime.gpus_per_worker), ("CPU", workers * cpus)):
        if need > total.get(what, 0):
            raise UserError(
                f"runtime.num_workers = {workers}: needs {need} {what}, the cluster has {total.get(what, 0):g}"
            )
    stay_in_folder()
    places = {"root": draft.storage.root, "wandb_folder": str(tracker.folder(runtime))}
    settings = settings.model_copy(update={"runtime": runtime.model_copy(update=places)})
    resources = {"CPU": cpus, **({"GPU": runtime.gpus_per_worker} if use_gpu else {})}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"module": module, "settings": settings.model_dump_json(), "draft": draft, "threads": cpus},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # A fresh name each time: Ray would silently continue an old run of this name. Ours resumes by the draft.
            name=f"run-{uuid.uuid4().hex[:12]}",
            storage_path=draft.storage.path(f"{draft.folder}/{WORK}/ray"),
            storage_filesystem=draft.storage.filesystem,
            failure_config=FailureConfig(max_failures=runtime.max_failures),
            callbacks=[TuneReportCallback()] if runtime.in_sweep else [],
        ),
    )
    mistake = trainer.fit().return_value
    if mistake is not None:
        raise UserError(mistake)


def stay_in_folder() -> None:
    """Have Ray leave workers and trials where they start: in a folder of their own no relative path leads anywhere."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")


def reachable() -> dict[str, float]:
    """What the cluster holds, or will hold at most where an autoscaler starts nodes when they are asked for."""
    import ray
    from ray._private.state import state  # as Ray Train itself asks; there is no public way

    live, most = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    return {key: max(live.get(key, 0), most.get(key, 0)) for key in live.keys() | most.keys()}


def _worker(loop: dict[str, Any]) -> str | None:
    import ray.train

    torch.set_num_threads(loop["threads"])
    module = importlib.import_module(loop["module"])
    settings = module.CONFIG.model_validate_json(loop["settings"])
    rank = ray.train.get_context().get_world_rank()
    log, finish = tracking(settings, loop["draft"], rank)
    try:
        module.work(settings, loop["draft"], log)
    except (UserError, NonFinite) as error:
        return str(error)  # the same on every attempt, so not a failure to restart from
    finally:
        finish()
    return None


def tracking(settings: Any, draft: Draft, rank: int) -> tuple[Callable[[dict[str, Any]], None], Callable[[], None]]:
    """Where a run's numbers go on rank 0: a line to the terminal now and then, and every one to Weights & Biases."""
    runtime: TrainRuntime = settings.runtime
    if runtime.in_sweep:
        import ray.train

    def report(record: dict[str, Any]) -> None:
        # Not after the last step: a scheduler that stopped a trial there would stop it before it is published.
        last, metric = record["step"] == settings.loop.max_steps, settings.loop.judged_by
        if runtime.in_sweep and f"eval_{metric}" in record and not last:
            ray.train.report({metric: record[f"eval_{metric}"], "step": record["step"]})

    if rank != 0:
        return report, (lambda: None)
    run = tracker.start(settings, draft)
    shown_at = -math.inf

    def track(record: dict[str, Any]) -> None:
        values = {key: tracker.loggable(value) for key, value in record.items() if key != "step"}
        run.log(values, step=record["step"])

    if run is not None:
        # What a killed process had logged offline may never have reached its file. A server knows how far it has come.
        for record in checkpoint.history(draft):
            if record["step"] >= run.starting_step:
                track(record)

    def log(record: dict[str, Any]) -> None:
        nonlocal shown_at
        if any(key.startswith("eval_") for key in record) or time.monotonic() - shown_at > SECONDS_BETWEEN_LINES:
            shown_at = time.monotonic()
            shown = "  ".join(f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, int | float))
            sys.stdout.write(f"      {draft.name}: {shown}\n")  # print would show twice: Ray Train logs it as well
        if run is not None:
            track(record)
        report(record)

    return log, (run.finish if run is not None else lambda: None)


def save(draft: Draft, state: State, settings: LoopConfig, task: Task) -> None:
    """Rank 0 writes the model folder, the loss history and what the training took."""
    if rank_and_world()[0] != 0:
        return
    with draft.storage.local_folder(draft.folder) as folder:
        task.save(folder)
    judged_by = f"eval_{settings.judged_by}"
    first = next(record for record in state.history if judged_by in record)
    draft.storage.write_json(
        f"{draft.folder}/history.json",
        {
            "metric": settings.judged_by,
            "best": state.best,
            "best_step": state.best_step,
            "steps": state.step,
            "untrained": first[judged_by],
            # curves stand in files of their own
            "history": [{k: v for k, v in record.items() if not isinstance(v, list)} for record in state.history],
        },
    )
    seconds = max(state.seconds, 1e-9)
    timing = {
        "tokens": state.tokens,
        "seconds": seconds,
        task.mfu_key: device.utilisation(state.flops, seconds),
        "data_share": state.data_seconds / seconds,
        "cpu": seconds * torch.get_num_threads() * rank_and_world()[1],
        "gpu": seconds * rank_and_world()[1] if device.device().type == "cuda" else 0.0,
    }
    draft.storage.write_json(f"{draft.folder}/{WORK}/timing.json", timing)


def publish(draft: Draft, remark: str = "") -> Artifact:
    """The manifest of a trained model, with what its training took; `remark` ends the summary."""
    facts = draft.storage.read_json(f"{draft.folder}/history.json")
    summary = (
        f"best {facts['metric']} {facts['best']:.4f} on validation at step {facts['best_step']} of {facts['steps']}, "
        f"untrained {facts['untrained']:.4f}"
    )
    timing = draft.storage.read_json(f"{draft.folder}/{WORK}/timing.json")
    mfu = next(key for key in timing if key.startswith("mfu"))
    summary += f"; {timing['tokens'] / timing['seconds']:,.0f} tokens/s"
    summary += f", {mfu.replace('mfu', 'MFU').replace('_', ' ')} {timing[mfu]:.1%}"
    summary += f", {timing['data_share']:.1%} of the time waiting for data{remark}"
    return draft.publish(summary=summary, facts=timing, cost={key: timing[key] for key in ("cpu", "gpu")})
