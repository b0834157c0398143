"""A flow is a TOML list of steps; this runs them in order and skips what is already published.

    python -m quire.flow flows/books.toml [root=s3://bucket/prefix] [STEP.key=value ...] [--print | --estimate]

`STEP.key=value` overrides a key of one step by its name; `root=`, `num_workers=` and `prices.cpu_hour=` (or `gpu_hour`,
`currency`) reach every step. `--estimate` tells what steps would take, by a sample, and runs none.

A flow may say `each.fold = [0, 1, 2]`: steps in a row whose names hold `{fold}` then stand once for each value, which
is written for `{fold}` in all that they set. `chunk_{fold}.size=20` overrides all of them, `chunk_0.size=20` one.
"""

import importlib
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pydantic import Field

from quire import accounts, ledger
from quire.artifact import Artifact
from quire.config import Config, Prices, build, merge, parse_overrides, read_toml, to_toml
from quire.errors import UserError
from quire.storage import Storage

ROOMS = ("pipelines", "trainers", "tune", "serve")
SHARED = ("root", "num_workers", "prices")


class Step(Config):
    """One step: a module with `CONFIG` and `run`, an experiment file, and what to change in it."""

    name: str
    run: str
    experiment: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class Flow(Config):
    """The steps in order, and the settings that they share."""

    root: str = "artifacts"
    num_workers: int | None = None
    prices: Prices | None = None
    each: dict[str, tuple[Any, ...]] = Field(default_factory=dict, max_length=1)
    steps: list[Step]


def load_flow(path: str, overrides: Sequence[str] = ()) -> Flow:
    """Read a flow and lay the overrides over its steps. Raises UserError for an unknown step."""
    values, changes = read_toml(path), parse_overrides(overrides)
    shared = {key: changes.pop(key) for key in SHARED if key in changes}
    flow = build(Flow, merge(values, shared), source=path)
    templates, names = {step.name for step in flow.steps}, [step.name for step in _expanded(flow)]
    if len(set(names)) != len(names):
        raise UserError(f"{path}: two steps share a name: {', '.join(names)}")
    for name, change in changes.items():
        if name not in templates.union(names) or not isinstance(change, dict):
            raise UserError(
                f"override {name!r}: expected {', '.join(SHARED)} or STEP.key= with STEP in {', '.join(names)}"
            )
    flow = flow.model_copy(update={"steps": _expanded(_changed(flow, changes))})
    return _changed(flow, {name: change for name, change in changes.items() if name not in templates})


def _changed(flow: Flow, changes: dict[str, Any]) -> Flow:
    """With the overrides of the steps that it has."""
    steps = [step.model_copy(update={"set": merge(step.set, changes.get(step.name, {}))}) for step in flow.steps]
    return flow.model_copy(update={"steps": steps})


def _expanded(flow: Flow) -> list[Step]:
    """The steps, those in a row that hold the key of `each` once for each of its values."""
    if not flow.each:
        return flow.steps
    ((key, values),) = flow.each.items()
    mark, steps = f"{{{key}}}", []
    for repeated, block in groupby(flow.steps, lambda step: mark in step.name):
        found = list(block)
        for value in values if repeated else (None,):
            steps += [Step(**_filled(step.model_dump(), mark, value)) if repeated else step for step in found]
    return steps


def _filled(found: Any, mark: str, value: Any) -> Any:
    """With the value for the mark: itself where the mark stands alone, else within the text."""
    match found:
        case dict():
            return {key: _filled(inner, mark, value) for key, inner in found.items()}
        case list() | tuple():
            return [_filled(inner, mark, value) for inner in found]
        case str() if found == mark:
            return value
        case str():
            return found.replace(mark, str(value))
        case _:
            return found


def configs(flow: Flow) -> list[tuple[Step, Any, Config]]:
    """Each step with its module and its validated config, so that every mistake shows before anything runs."""
    prepared = []
    for step in flow.steps:
        if step.run.split(".")[0] not in ROOMS:
            raise UserError(f"steps.{step.name}.run = {step.run!r}: a module of {', '.join(ROOMS)}")
        module = importlib.import_module(step.run)
        values = read_toml(step.experiment) if step.experiment else {}
        runtime = flow.model_dump(include=set(SHARED), exclude_none=True)
        values = merge(merge(values, {"runtime": runtime}), step.set)
        prepared.append((step, module, build(module.CONFIG, values, source=f"step {step.name}")))
    return prepared


def run(flow: Flow) -> dict[str, Artifact]:
    """Run every step, and write what all below the root cost to its `ledger.html`; the artefacts by step name.

    `pipelines.push` makes none, and has no line in the table.
    """
    made: dict[str, Artifact] = {}
    prepared = configs(flow)
    begun = time.time()
    for number, (step, module, config) in enumerate(prepared, start=1):
        print(f"[{number}/{len(prepared)}] {step.name}: {step.run}", flush=True)
        started = time.time()
        done = module.run(config)
        print(done.told(started), flush=True)
        if isinstance(done, Artifact):
            made[step.name] = done
    print(ledger.table({name: artifact.manifest for name, artifact in made.items()}))
    for root in dict.fromkeys(artifact.storage.root for artifact in made.values()):
        print(f"all that lies there: {accounts.write(Storage(root)).uri}")
    print(f"flow finished in {time.time() - begun:.1f} s", flush=True)
    return made


def estimate(flow: Flow) -> None:
    """Tell what each step that can say so would take; none is run, and nothing is written below the root.

    A step is measured on a sample of what the one before it would make.
    """
    prepared = configs(flow)
    drawn: dict[str, ledger.Drawn] = {}
    for number, (step, module, config) in enumerate(prepared, start=1):
        print(f"[{number}/{len(prepared)}] {step.name}: {step.run}", flush=True)
        if not hasattr(module, "estimate"):
            print("      has no estimate", flush=True)
            continue
        try:
            print(module.estimate(config, drawn), flush=True)
        except UserError as error:  # of a step whose input is not there: the others still tell theirs
            print(f"      no estimate: {error}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits 2 with a plain message on a mistake of the user."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    flags = {"--print", "--estimate"}.intersection(words)
    words = [word for word in words if word not in flags]
    files = [word for word in words if "=" not in word]
    try:
        if len(files) != 1 or files[0].startswith("-"):
            raise UserError(
                "usage: python -m quire.flow FLOW.toml [root=...] [STEP.key=value ...] [--print | --estimate]"
            )
        flow = load_flow(files[0], [word for word in words if "=" in word])
        if "--print" in flags:
            for step, _, config in configs(flow):
                print(f"# {step.name}: python -m {step.run}\n{to_toml(config)}")
            return
        estimate(flow) if "--estimate" in flags else run(flow)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
