"""The trials of a sweep on Ray Tune: as many at once as the cluster holds, retried, and halved where asked."""

import importlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
from pydantic import Field
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from quire import config
from quire.artifact import WORK, Draft
from quire.errors import UserError
from quire.loop_config import LoopConfig
from trainers import fit

NUMBER = "number"  # of a trial, its parameter for Tune, whose tables have room for no more


class Asha(config.Config):
    """Asynchronous successive halving (Li et al. 2020): at every rung the best 1/n of the trials so far go on."""

    grace_evaluations: int = Field(default=1, gt=0, description="before the first rung; the untrained one is none")
    reduction_factor: float = Field(default=3.0, gt=1, description="n; each rung is n times as far as the last")


class SweepRuntime(config.Runtime):
    """How many trials run at once follows from what one trial's `num_workers` workers hold.

    These settings stand in for the `[runtime]` of the experiment, which is for a run by itself.
    """

    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="below 1: several trials to one GPU; default: 1 where the cluster has GPUs"
    )
    max_failures: int = Field(default=2, ge=0, description="new starts of a trial, from its checkpoint")
    time_limit: float | None = Field(
        default=None, gt=0, description="seconds; what is then unfinished goes on when the sweep is started again"
    )


def run(settings: Any, draft: Draft, trials: Mapping[str, Any]) -> dict[str, str]:
    """Run `settings.trainer` with each config; why a trial did not finish, by name.

    What finished is published; what the halving stopped is in `stopped(draft)`. Both may be among the names returned.
    """
    trainer = importlib.import_module(settings.trainer)
    names, loops = list(trials), [loop_in_steps(trainer, trial) for trial in trials.values()]
    halving = Halving(settings.asha, draft, names, loops) if settings.asha else None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="WARNING")  # the trials' own lines would bury the table
    runtime, started = settings.runtime, time.monotonic()
    fit.stay_in_folder()
    tuner = tune.Tuner(
        # The trainer's workers hold what a trial takes; Tune wants a trial to hold something itself.
        tune.with_resources(_trial(settings.trainer, loops[0], list(trials.values())), {"CPU": 0, "memory": 2**20}),
        param_space={NUMBER: tune.grid_search(list(range(len(names))))},
        tune_config=tune.TuneConfig(
            metric=loops[0].judged_by,
            mode="max" if loops[0].higher_is_better else "min",
            trial_name_creator=lambda trial: names[trial.config[NUMBER]].removeprefix(f"{settings.name}-"),
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_concurrent_trials=places(runtime, fit.reachable()),
            time_budget_s=runtime.time_limit,
            scheduler=halving,
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{int(time.time())}",
            storage_path=draft.storage.path(f"{draft.folder}/{WORK}/tune"),
            storage_filesystem=draft.storage.filesystem,
            failure_config=tune.FailureConfig(max_failures=runtime.max_failures),
            verbose=1,
        ),
    )
    errors = {names[result.config[NUMBER]]: _error(result) for result in tuner.fit()}
    over = runtime.time_limit is not None and time.monotonic() - started >= runtime.time_limit
    unfinished = f"not finished within time_limit = {runtime.time_limit} s" if over else "not finished"
    return {name: errors.get(name) or unfinished for name in trials}


def loop_in_steps(trainer: Any, trial: Any) -> LoopConfig:
    """A trial's loop with its budget in optimiser steps, whatever the experiment gives it in."""
    return trainer.in_steps(trial) if trial.loop.max_steps is None else trial.loop


def places(runtime: SweepRuntime, cluster: Mapping[str, float]) -> int:
    """Trials that the cluster's resources hold at once. Raises UserError when they cannot hold one."""
    workers, gpus = runtime.num_workers or 1, runtime.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU", 0) >= 1 else 0.0
    needs = {"CPU": runtime.cpus_per_worker, "GPU": gpus}
    held = min(int(cluster.get(what, 0) / (workers * need) + 1e-9) for what, need in needs.items() if need)
    if not held:
        needed = ", ".join(f"{workers * need:g} {what}" for what, need in needs.items() if need)
        found = ", ".join(f"{cluster.get(what, 0):g} {what}" for what in needs)
        raise UserError(
            f"a trial needs {needed}; the cluster has {found}: lower runtime.num_workers or what each holds"
        )
    return held


def stopped(draft: Draft) -> dict[str, dict[str, Any]]:
    """What the halving stopped, now or before the sweep was interrupted: last metric and step by trial."""
    return _by_trial(draft, "stopped")


def _by_trial(draft: Draft, what: str) -> dict[str, Any]:
    folder = f"{draft.folder}/{WORK}/{what}"
    return {
        name.removesuffix(".json"): draft.storage.read_json(f"{folder}/{name}") for name in draft.storage.files(folder)
    }


def _trial(trainer: str, loop: LoopConfig, trials: Sequence[Any]) -> Any:
    """The function that Tune runs: the trainer's own `run`, whose artefact resumes by itself."""
    configs = [trial.model_dump_json() for trial in trials]

    def trial(point: dict[str, Any]) -> None:
        module = importlib.import_module(trainer)
        try:
            made = module.run(module.CONFIG.model_validate_json(configs[point[NUMBER]]))
        except UserError as error:  # the same on every attempt, so reported and not raised: nothing to retry
            tune.report({loop.judged_by: -math.inf if loop.higher_is_better else math.inf, "mistake": str(error)})
        else:
            facts = made.read_json("history.json")
            tune.report({loop.judged_by: facts["best"], "step": facts["steps"]})

    return trial


def _error(result: Any) -> str | None:
    if result.error:
        return str(result.error).strip().splitlines()[-1]
    return (result.metrics or {}).get("mistake")


class _Known(NamedTuple):
    """A trial as the halving knows it: Tune's ids change when a sweep is started again, its names do not."""

    trial_id: str


class Halving(ASHAScheduler):
    """Halving that keeps its reports and whom it stopped, so that a sweep started again goes on with both.

    Rungs are counted in optimiser steps: a trial that was resumed has fewer reports than steps would tell.
    """

    def __init__(self, asha: Asha, draft: Draft, names: Sequence[str], loops: Sequence[LoopConfig]):
        most = max(loop.max_steps for loop in loops)
        grace = asha.grace_evaluations * min(loop.eval_every for loop in loops)
        if grace >= most:
            raise UserError(
                f"asha.grace_evaluations = {asha.grace_evaluations}: the first rung at step {grace} of {most} stops "
                "nothing early; lower it or loop.eval_every"
            )
        super().__init__(time_attr="step", grace_period=grace, reduction_factor=asha.reduction_factor, max_t=most)
        self.draft, self.names, self.loss = draft, names, loops[0].judged_by
        self.reports: dict[str, list[dict[str, Any]]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        known = super().set_search_properties(metric, mode, **spec)
        for name, reports in _by_trial(self.draft, "reports").items():
            self.reports[name] = reports
            super().on_trial_add(None, _Known(name))
            for report in reports:
                super().on_trial_result(None, _Known(name), report)
        return known

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, self._known(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        known = self._known(trial)
        decision = super().on_trial_result(tune_controller, known, result)
        if self.loss in result and "step" in result:
            self.reports.setdefault(known.trial_id, []).append({"step": result["step"], self.loss: result[self.loss]})
            self._write("reports", known, self.reports[known.trial_id])
        if decision == self.STOP:
            facts = {"best": result[self.loss], "best_step": result["step"], "steps": result["step"]}
            self._write("stopped", known, facts)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, self._known(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, self._known(trial))

    def _known(self, trial: Any) -> _Known:
        return _Known(self.names[trial.config[NUMBER]])

    def _write(self, what: str, trial: _Known, value: Any) -> None:
        self.draft.storage.write_json(f"{self.draft.folder}/{WORK}/{what}/{trial.trial_id}.json", value)
