"""Experiments: a TOML file plus dotted overrides becomes one frozen, validated config.

    python -m room.verb EXPERIMENT.toml [key=value ...] [--print | --estimate]

An override's value is read as TOML where it parses as TOML (numbers, booleans, lists, quoted strings), else as the
bare string. File and overrides are merged first and validated once, as a whole.
"""

import json
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quire.errors import UserError


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Prices(Config):
    """What an hour costs of what a step uses, in any currency."""

    cpu_hour: float = Field(default=0.0, ge=0, description="of one core")
    gpu_hour: float = Field(default=0.0, ge=0, description="of one GPU")
    currency: str = "USD"


class Runtime(Config):
    """Where and with what a step runs. Never part of the fingerprint: it must not change a result."""

    root: str = "artifacts"
    num_workers: int | None = Field(default=None, gt=0)
    prices: Prices | None = Field(default=None, description="to tell in the manifest what a step cost")


class GpuRuntime(Runtime):
    """Of a step whose workers can use GPUs."""

    num_gpus: float | None = Field(
        default=None,
        ge=0,
        description="per worker; default: 1 where the cluster has GPUs and the step can use them, else 0",
    )


C = TypeVar("C", bound=Config)


def recipe(config: Config) -> dict[str, Any]:
    """What the fingerprint covers: the config without `runtime` and without the artefact's own `name`."""
    return config.model_dump(mode="json", exclude={"runtime", "name"})


def load(config_class: type[C], path: str | None, overrides: Sequence[str] = ()) -> C:
    """Read a TOML experiment (or nothing, for `path=None`), apply `key=value` overrides, validate.

    Raises UserError that lists every problem with its dotted key, the value and what is allowed.
    """
    values = read_toml(path) if path is not None else {}
    return build(config_class, merge(values, parse_overrides(overrides)), source=path or "overrides")


def read_toml(path: str) -> dict[str, Any]:
    """A TOML file as a dictionary. Raises UserError when it is missing or not TOML."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"experiment file {path!r} does not exist (looked in {Path.cwd()})")
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["chunk.size=20", "name=books"]` as nested dictionaries. Later ones win."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals or not key or any(not part for part in key.split(".")):
            raise UserError(f"override {override!r}: expected dotted.key=value")
        nested: Any = _toml_value(raw)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = merge(values, nested)
    return values


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it; tables merge, everything else is replaced.

    A table that changes its `kind` is replaced too: the settings of the old kind mean nothing to the new one.
    """
    if "kind" in base and change.get("kind", base["kind"]) != base["kind"]:
        return dict(change)
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def build(config_class: type[C], values: Mapping[str, Any], source: str) -> C:
    """Validate `values` as a whole. Strict as JSON is strict: `"14"` is not 14, but 1 is a float and a list a tuple."""
    try:
        return config_class.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        lines = [_explain(config_class, detail) for detail in error.errors()]
        raise UserError(f"{source}: {len(lines)} problem(s) in the config\n" + "\n".join(lines)) from error


def _explain(config_class: type[Config], detail: Mapping[str, Any]) -> str:
    parts, models = _locate(config_class, [str(part) for part in detail["loc"]])
    key = ".".join(parts)
    if detail["type"] == "extra_forbidden":
        allowed = sorted({name for model in models for name in model.model_fields})
        return f"  {key}: unknown key; allowed here: {', '.join(allowed)}"
    if detail["type"] == "missing":
        return f"  {key}: missing, and it has no default"
    if detail["type"] == "value_error":  # of a validator of ours, whose words name the keys; the input may be all of it
        return f"  {key + ': ' if key else ''}{detail['ctx']['error']}"
    return f"  {key} = {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _locate(config_class: type[Config], location: Sequence[str]) -> tuple[list[str], list[type[Config]]]:
    """The dotted key of an error, and the configs that its last part was looked for in.

    Pydantic puts the tag of a union (a `kind`) among the keys; the user never wrote it there.
    """
    parts: list[str] = []
    models = [config_class]
    for place, part in enumerate(location):
        tagged = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tagged and len(models) > 1:
            models = tagged
            continue
        parts.append(part)
        if place < len(location) - 1:
            inner = (
                [f for m in models for f in _models(m.model_fields[part].annotation)]
                if any(part in m.model_fields for m in models)
                else []
            )
            models = inner or models
    return parts, models


def _models(annotation: Any) -> list[type[Config]]:
    """The config classes inside an annotation such as `Source | None`."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models(inner)]


def to_toml(config: Config) -> str:
    """The resolved config as TOML, ready to be saved as an experiment. Unset (None) keys are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def main(
    config_class: type[C],
    run: Callable[[C], Any],
    arguments: Sequence[str] | None = None,
    *,
    estimate: Callable[[C], str] | None = None,
) -> None:
    """The whole command line of an entry point; exits 2 with a plain message on a mistake of the user.

    `--print` shows the config and runs nothing; `--estimate` tells what `estimate`, where there is one, measures on a
    sample.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    allowed = ("--print", "--estimate") if estimate else ("--print",)
    words = [word for word in arguments if word not in allowed]
    show = "--print" in arguments
    try:
        flags = [word for word in words if word.startswith("-")]
        if flags:
            raise UserError(f"unknown flag {flags[0]!r}; here there is {', '.join(allowed)}; settings are key=value")
        files = [word for word in words if "=" not in word]
        if len(files) > 1:
            raise UserError(f"one experiment file, not {len(files)}: {', '.join(files)}")
        if not files and not words and not show:
            raise UserError(f"usage: EXPERIMENT.toml [key=value ...] [{' | '.join(allowed)}]")
        config = load(config_class, files[0] if files else None, [word for word in words if "=" in word])
        if show:
            print(to_toml(config), end="")
            return
        if estimate and "--estimate" in arguments:
            print(estimate(config))
            return
        started = time.time()
        print(run(config).told(started), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
