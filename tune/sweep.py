"""Run a trainer at every point of a sweep, as many at once as the cluster holds.

    python -m tune.sweep tune/experiments/arxiv/k_by_seed.toml [key=value ...]

A trial is one run of the trainer and one artefact. What is published is not run again; a killed sweep goes on where
it was, its unfinished trials from their checkpoints; a trial that fails for good is named, and the sweep fails.
"""

import importlib
import json
import time
from typing import Any, Literal

import pyarrow as pa
import ray
from pydantic import Field
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler

from quire import artifact, config, sweeps
from quire.artifact import MANIFEST, WORK, Artifact, Draft
from quire.errors import UserError
from quire.storage import Storage


class Asha(config.Config):
    """Asynchronous successive halving (Li et al. 2020): the worse part of the trials is stopped at every rung."""

    grace_evaluations: int = Field(default=1, gt=0)
    reduction_factor: float = Field(default=3.0, gt=1)
    max_evaluations: int = Field(default=100, gt=0)


class SweepRuntime(config.Runtime):
    """How many trials at once follows from what one trial's workers hold."""

    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0, description="below 1: several trials to one GPU")
    max_failures: int = Field(default=2, ge=0, description="new starts of a trial, from its checkpoint")
    time_limit: float | None = Field(default=None, gt=0, description="seconds for the whole sweep")


class SweepConfig(config.Config):
    """What `tune.sweep` computes."""

    name: str
    trainer: Literal["trainers.lm", "trainers.bi_encoder", "trainers.cross_encoder"]
    experiment: str
    set: dict[str, Any] = Field(default_factory=dict, description="changes of the experiment for every trial")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="dotted key -> values; all combinations")
    search: dict[str, sweeps.Search] = Field(
        default_factory=dict, description="dotted key -> choice, uniform, loguniform"
    )
    num_samples: int = Field(default=1, gt=0, description="of the search, at each point of the grid")
    seed: int = 0
    asha: Asha | None = None
    runtime: SweepRuntime = SweepRuntime()


CONFIG = SweepConfig


def run(settings: SweepConfig) -> Artifact:
    """Make the `sweeps` artefact: trials.json and a table of the same. Raises UserError naming the failed trials."""
    trials = configs(settings)
    root = settings.runtime.root
    trainer = importlib.import_module(settings.trainer)
    recipe = {**config.recipe(settings), "base": config.recipe(next(iter(trials.values()))[1])}
    draft = artifact.begin(
        root, "sweeps", settings.name, recipe=recipe, inputs=trainer.inputs(next(iter(trials.values()))[1])
    )
    if draft.published:
        return draft.published
    print(announce(settings, trials), flush=True)
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="WARNING")  # the trials' own lines would bury the table
    failures = _run_pending(settings, draft, {name: c for name, (_, c) in trials.items()})
    rows = _results(draft.storage, settings, trials, failures)
    if any(row["state"] == "failed" for row in rows):
        failed = "\n".join(f"  {row['trial']}: {row['error']}" for row in rows if row["state"] == "failed")
        raise UserError(
            f"{failed.count(chr(10)) + 1} of {len(rows)} trials failed for good:\n{failed}\nThe others are kept."
        )
    draft.storage.write_json(f"{draft.folder}/trials.json", rows)
    draft.storage.write_table(f"{draft.folder}/trials.parquet", pa.Table.from_pylist([_flat(row) for row in rows]))
    return draft.publish(summary=_table(settings, rows))


def configs(settings: SweepConfig) -> dict[str, tuple[sweeps.Point, Any]]:
    """Trial name -> (point, validated config of the trainer). Every mistake shows before the first trial starts."""
    trainer = importlib.import_module(settings.trainer)
    base = config.merge(config.read_toml(settings.experiment), settings.set)
    runtime = settings.runtime
    workers = {
        "root": Storage(runtime.root).root,
        "num_workers": runtime.num_workers or 1,
        "cpus_per_worker": runtime.cpus_per_worker,
        "gpus_per_worker": runtime.gpus_per_worker,
        "use_gpu": runtime.gpus_per_worker > 0,
        "wandb_folder": str(Storage(base.get("runtime", {}).get("wandb_folder", "artifacts")).root),
        "in_sweep": settings.asha is not None,
    }
    made: dict[str, tuple[sweeps.Point, Any]] = {}
    for point in sweeps.points(settings.grid, settings.search, settings.num_samples, settings.seed):
        name = sweeps.trial_name(settings.name, point)
        if name in made:
            raise UserError(
                f"two trials would be called {name!r}: their varied values differ too little to be told apart"
            )
        values = config.merge(config.merge(base, sweeps.nested(point)), {"name": name})
        values = config.merge({"runtime": workers}, values) | {"runtime": {**values.get("runtime", {}), **workers}}
        made[name] = (point, config.build(trainer.CONFIG, values, source=f"trial {name}"))
    return made


def announce(settings: SweepConfig, trials: dict[str, tuple[sweeps.Point, Any]]) -> str:
    """What the sweep is about to cost."""
    first = next(iter(trials.values()))[1]
    loop = first.loop
    varied = ", ".join([*settings.grid, *settings.search]) or "nothing"
    if loop.max_tokens:
        total = sum(c.loop.max_tokens for _, c in trials.values())
        each = f"{loop.max_tokens:,} tokens each, {total:,} in all"
    else:
        each = f"{loop.max_steps:,} steps each, {sum(c.loop.max_steps for _, c in trials.values()):,} in all"
    return f"      {len(trials)} trials of {settings.trainer} over {varied}: {each}"


def _places(runtime: SweepRuntime) -> int:
    """Trials that the cluster holds at once. Raises UserError when it cannot hold one."""
    total, workers = ray.cluster_resources(), runtime.num_workers or 1
    needs = {"CPU": workers * runtime.cpus_per_worker, "GPU": workers * runtime.gpus_per_worker}
    places = min(int(total.get(what, 0) / need + 1e-9) for what, need in needs.items() if need)
    if not places:
        needed = ", ".join(f"{need:g} {what}" for what, need in needs.items() if need)
        raise UserError(
            f"a trial needs {needed}; the cluster has {total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU"
        )
    return places


def _run_pending(settings: SweepConfig, draft: Draft, trials: dict[str, Any]) -> dict[str, str]:
    """Run what is not published; errors by trial name."""
    pending = [name for name in trials if not draft.storage.exists(f"models/{name}/{MANIFEST}")]
    if not pending:
        return {}
    payload = {name: trials[name].model_dump_json() for name in pending}
    trainer, metric = settings.trainer, trials[pending[0]].loop

    def trial(point: dict[str, Any]) -> None:
        module = importlib.import_module(trainer)
        made = module.run(module.CONFIG.model_validate_json(payload[point["trial"]]))
        facts = made.read_json("history.json")
        ray_tune.report({metric.metric: facts["best"], "step": facts["best_step"]})

    scheduler = settings.asha and ASHAScheduler(
        time_attr="training_iteration",
        grace_period=settings.asha.grace_evaluations,
        reduction_factor=settings.asha.reduction_factor,
        max_t=settings.asha.max_evaluations,
    )
    tuner = ray_tune.Tuner(
        # The trainer's workers hold what a trial takes; Tune wants a trial to hold something itself.
        ray_tune.with_resources(trial, {"CPU": 0, "memory": 2**20}),
        param_space={"trial": ray_tune.grid_search(pending)},
        tune_config=ray_tune.TuneConfig(
            metric=metric.metric,
            mode="max" if metric.higher_is_better else "min",
            max_concurrent_trials=_places(settings.runtime),
            time_budget_s=settings.runtime.time_limit,
            scheduler=scheduler,
        ),
        run_config=ray_tune.RunConfig(
            name=f"sweep-{int(time.time())}",
            storage_path=draft.storage.path(f"{draft.folder}/{WORK}/tune"),
            storage_filesystem=draft.storage.filesystem,
            failure_config=ray_tune.FailureConfig(max_failures=settings.runtime.max_failures),
            verbose=1,
        ),
    )
    results = tuner.fit()
    return {result.config["trial"]: str(result.error).strip().splitlines()[-1] for result in results if result.error}


def _results(
    storage: Storage, settings: SweepConfig, trials: dict[str, tuple[sweeps.Point, Any]], failures: dict[str, str]
) -> list[dict[str, Any]]:
    """A row a trial: its values, state, best metric, steps and what it took."""
    rows = []
    for name, (point, _) in trials.items():
        row: dict[str, Any] = {"trial": name, "values": point}
        if storage.exists(f"models/{name}/{MANIFEST}"):
            made = artifact.open_artifact(storage, "models", name)
            facts, timing = made.read_json("history.json"), made.manifest["facts"]
            row |= {
                "state": "finished",
                "metric": facts["metric"],
                "best": facts["best"],
                "best_step": facts["best_step"],
            }
            row |= {"steps": facts["steps"], "tokens": timing["tokens"], "seconds": timing["seconds"], "error": None}
            row |= {"fingerprint": made.fingerprint}
        else:
            stopped = settings.asha is not None and name not in failures
            error = None if stopped else failures.get(name, "not run: the time limit was over")
            row |= {"state": "stopped" if stopped else "failed", "error": error}
        rows.append(row)
    return rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{k: v for k, v in row.items() if k != "values"},
        **{k: json.loads(json.dumps(v)) for k, v in row["values"].items()},
    }


def _table(settings: SweepConfig, rows: list[dict[str, Any]]) -> str:
    keys = [*settings.grid, *settings.search]
    done = [row for row in rows if row["state"] == "finished"]
    lines = [
        "  ".join([*(f"{key.split('.')[-1]:>14}" for key in keys), f"{'best':>8}", f"{'step':>6}", f"{'seconds':>8}"])
    ]
    for row in done:
        values = (
            f"{row['values'][key]:>14.4g}" if isinstance(row["values"][key], float) else f"{row['values'][key]!s:>14}"
            for key in keys
        )
        lines.append("  ".join([*values, f"{row['best']:>8.4f}", f"{row['best_step']:>6}", f"{row['seconds']:>8.1f}"]))
    stopped = len(rows) - len(done)
    tokens = sum(row["tokens"] for row in done)
    lines.append(f"{len(done)} trials, {tokens:,} tokens" + (f"; {stopped} stopped early" if stopped else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    config.main(CONFIG, run)
