"""Run a trainer at every point of a sweep, as many at once as the cluster holds.

    python -m tune.sweep tune/experiments/arxiv/k_by_seed.toml [key=value ...]

A trial is one run of the trainer and one artefact. What is published is not run again; a killed sweep goes on where
it was, its unfinished trials from their checkpoints; a trial that fails for good is named, and the sweep fails.
"""

import importlib
import itertools
import json
import statistics
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from quire import artifact, config, sweeps
from quire.artifact import MANIFEST, Artifact, Draft
from quire.errors import UserError
from quire.storage import Storage
from trainers import tracker
from tune import trials as running

Grid = dict[str, tuple[Any, ...]]
VARIANT = "variant"  # the key of a point that names one


class SweepConfig(config.Config):
    """What `tune.sweep` computes."""

    name: str
    trainer: Literal["trainers.lm", "trainers.bi_encoder", "trainers.cross_encoder"]
    experiment: str
    set: dict[str, Any] = Field(default_factory=dict, description="changes of the experiment for every trial")
    grid: Grid | tuple[Grid, ...] = Field(
        default=(), description="dotted key -> values, all combinations; or a list of grids, all of each"
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="by name, changes that each meet every point of the grid: an ablation; the first is compared to",
    )
    search: dict[str, sweeps.Search] = Field(
        default_factory=dict, description="dotted key -> choice, uniform, loguniform, int, logint or normal"
    )
    num_samples: int = Field(default=1, gt=0, description="of the search, at each point of the grid")
    seed: int = Field(default=0, ge=0)
    asha: running.Asha | None = None
    runtime: running.SweepRuntime = running.SweepRuntime()

    def grids(self) -> tuple[Grid, ...]:
        """The grids, one or several."""
        return (self.grid,) if isinstance(self.grid, dict) else self.grid

    def varied(self) -> list[str]:
        """The dotted keys that trials differ in."""
        variant = [VARIANT] if self.variants else []
        return [*variant, *dict.fromkeys(key for grid in self.grids() for key in grid), *self.search]


CONFIG = SweepConfig


def run(settings: SweepConfig) -> Artifact:
    """Make the `sweeps` artefact: trials.json and a table of the same. Raises UserError naming the failed trials."""
    trials = configs(settings)
    trainer = importlib.import_module(settings.trainer)
    base = next(iter(trials.values())).config
    # The experiment's content counts, not where its file stands.
    recipe = {k: v for k, v in config.recipe(settings).items() if k != "experiment"} | {"base": config.recipe(base)}
    draft = artifact.begin_step(settings, "sweeps", _inputs(trainer, base, trials), recipe=recipe)
    if draft.published:
        return draft.published
    published = {name for name, trial in trials.items() if _is_published(draft.storage, trainer, trial.config)}
    done = published | running.stopped(draft).keys()
    print(announce(settings, trials, done), flush=True)
    pending = {name: trial.config for name, trial in trials.items() if name not in done}
    errors = running.run(settings, draft, pending) if pending else {}
    rows = _results(draft, trials, errors)
    draft.storage.write_json(f"{draft.folder}/trials.json", rows)
    draft.storage.write_table(f"{draft.folder}/trials.parquet", pa.table(_columns(rows)))
    failed = [f"  {row['trial']}: {row['error']}" for row in rows if row["state"] == "failed"]
    if failed:
        lines = "\n".join(failed)
        raise UserError(f"{len(failed)} of {len(rows)} trials failed:\n{lines}\nThe others are kept; start it again.")
    summary, facts = table(settings, rows, base.loop.higher_is_better), {"tokens": _sum(rows, "tokens")}
    return draft.publish(summary=summary, facts=facts, cost={key: _sum(rows, key) for key in ("cpu", "gpu")})


def _inputs(trainer: Any, base: Any, trials: dict[str, "Trial"]) -> dict[str, Any]:
    """What the experiment is made from, and what a variant is beside that."""
    found = trainer.inputs(base)
    for variant, settings in {t.point[VARIANT]: t.config for t in trials.values() if VARIANT in t.point}.items():
        more = trainer.inputs(settings).items()
        found |= {f"{role} of {variant}": given for role, given in more if role not in found or found[role] != given}
    return found


class Trial(NamedTuple):
    """A point of the sweep, and the trainer's config there."""

    point: sweeps.Point
    config: Any


def configs(settings: SweepConfig) -> dict[str, Trial]:
    """Trials by name, every one checked as far as its trainer can: a mistake shows before the first one starts."""
    trainer = importlib.import_module(settings.trainer)
    base = config.merge(config.read_toml(settings.experiment), settings.set)
    runtime = settings.runtime
    workers = {
        "root": Storage(runtime.root).root,
        "num_workers": runtime.num_workers or 1,
        "cpus_per_worker": runtime.cpus_per_worker,
        "gpus_per_worker": 1.0 if runtime.gpus_per_worker is None else runtime.gpus_per_worker,
        "use_gpu": None if runtime.gpus_per_worker is None else runtime.gpus_per_worker > 0,
        "in_sweep": True,
        "prices": None if runtime.prices is None else runtime.prices.model_dump(),
        "max_failures": 0,  # Tune starts a failed trial again; both together would multiply the attempts
    }
    made: dict[str, Trial] = {}
    points = sweeps.points(settings.grids(), settings.search, settings.num_samples, settings.seed)
    variants = [({VARIANT: name}, changes) for name, changes in settings.variants.items()] or [({}, {})]
    for (variant, changes), values in itertools.product(variants, points):
        point = variant | values
        name = sweeps.trial_name(settings.name, point)
        if name in made:
            raise UserError(
                f"two trials would be called {name!r}: their varied values differ too little to be told apart"
            )
        values = config.merge(config.merge(base, changes), sweeps.nested(values)) | {"name": name}
        values |= {"runtime": {**values.get("runtime", {}), **workers}}
        values["runtime"].setdefault("wandb_folder", str(tracker.folder(tracker.TrackedRuntime(root=runtime.root))))
        made[name] = Trial(point, config.build(trainer.CONFIG, values, source=f"trial {name}"))
        if hasattr(trainer, "check"):
            trainer.check(made[name].config)
    return made


def announce(settings: SweepConfig, trials: dict[str, Trial], done: set[str]) -> str:
    """What the sweep is about to cost: in tokens where the trainer knows them before it runs, else in steps."""
    trainer = importlib.import_module(settings.trainer)
    known = hasattr(trainer, "num_tokens")
    costs = {name: trainer.num_tokens(t.config) if known else t.config.loop.max_steps for name, t in trials.items()}
    unit, least, most = "tokens" if known else "steps", min(costs.values()), max(costs.values())
    each = f"{least:,} {unit} each" if least == most else f"{least:,} to {most:,} {unit} each"
    varied = ", ".join(settings.varied()) or "nothing"
    line = f"      {len(trials)} trials of {settings.trainer} over {varied}: {each}, {sum(costs.values()):,} in all"
    left = sum(cost for name, cost in costs.items() if name not in done)
    return line + (f"; {len(done)} are done, {left:,} {unit} to go" if done else "")


def _is_published(storage: Storage, trainer: Any, settings: Any) -> bool:
    """Whether the trial's model is there. Raises UserError when another recipe's stands (or was begun) in its place."""
    if not storage.files(f"models/{settings.name}"):
        return False
    inputs, recipe = trainer.inputs(settings), config.recipe(settings)
    return artifact.begin(storage, "models", settings.name, recipe=recipe, inputs=inputs).published is not None


def _results(draft: Draft, trials: dict[str, Trial], errors: dict[str, str]) -> list[dict[str, Any]]:
    """A row a trial: its values, state, best metric, steps and what it took; the last metric of a stopped one."""
    rows, stopped = [], running.stopped(draft)
    for name, trial in trials.items():
        empty = dict.fromkeys(("best", "best_step", "steps", "tokens", "seconds", "cpu", "gpu", "fingerprint", "error"))
        row = {"trial": name, "values": trial.point, "metric": trial.config.loop.judged_by, **empty}
        if draft.storage.exists(f"models/{name}/{MANIFEST}"):
            made = artifact.open_artifact(draft.storage, "models", name)
            facts, timing = made.read_json("history.json"), made.manifest["facts"]
            row |= {"state": "finished", "fingerprint": made.fingerprint}
            row |= {key: facts[key] for key in ("best", "best_step", "steps")}
            row |= {key: timing[key] for key in ("tokens", "seconds")}
            row |= {key: made.manifest["cost"][key] for key in ("cpu", "gpu")}
        elif name in stopped:
            row |= {"state": "stopped", **stopped[name]}
        else:
            row |= {"state": "failed", "error": errors[name]}
        rows.append(row)
    return rows


def _sum(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] or 0 for row in rows)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The rows as columns of one type each; a varied value that is neither a number nor a string is JSON."""
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "values"}
    for key in rows[0]["values"]:
        values = [row["values"][key] for row in rows]
        plain = any(all(isinstance(value, kind) for value in values) for kind in (bool, int, float, str))
        columns[key] = values if plain else [json.dumps(value) for value in values]
    return columns


def table(settings: SweepConfig, rows: list[dict[str, Any]], higher_is_better: bool) -> str:
    """The trials as text, in the order of the grid; where the sweep searches, the best first."""
    keys = settings.varied()
    if settings.search:
        rows = sorted(rows, key=lambda row: -row["best"] if higher_is_better else row["best"])
    lines = ["".join(f"{key.split('.')[-1]:>15}" for key in keys) + f"{rows[0]['metric']:>10}{'step':>8}{'seconds':>9}"]
    for row in rows:
        values = "".join(f"{_shown(row['values'][key]):>15}" for key in keys)
        ended = f"{row['seconds']:>9.1f}" if row["state"] == "finished" else f"{row['state']:>9}"
        lines.append(f"{values}{row['best']:>10.4f}{row['best_step']:>8}{ended}")
    finished = [row for row in rows if row["state"] == "finished"]
    if settings.variants:
        lines += _compared(settings, finished)
    lines.append(f"{len(finished)} trials finished, {_sum(finished, 'tokens'):,} tokens")
    return "\n".join(lines)


def _compared(settings: SweepConfig, finished: list[dict[str, Any]]) -> list[str]:
    """Each variant's mean and standard deviation, and by how much it is above the first at the same points."""
    first, *_ = settings.variants
    best: dict[str, dict[str, float]] = {variant: {} for variant in settings.variants}
    for row in finished:
        point = {key: value for key, value in row["values"].items() if key != VARIANT}
        best[row["values"][VARIANT]][json.dumps(point)] = row["best"]
    lines = [f"{VARIANT:<30}{'mean':>9}{'sd':>8}{'runs':>6}   beside {first!r}, mean and sd"]
    for variant, found in best.items():
        gains = [found[point] - best[first][point] for point in found if point in best[first]]
        beside = "" if variant == first or not gains else f"   {_mean_and_sd(gains, '+')}"
        lines.append(f"{variant:<30}{_mean_and_sd(list(found.values())):>17}{len(found):>6}{beside}")
    return lines


def _mean_and_sd(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):{sign}.4f}" + (f"  {statistics.stdev(values):.4f}" if values[1:] else "")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    config.main(CONFIG, run)
