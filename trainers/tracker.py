"""Weights & Biases: a run per artefact with its config, its numbers and its report; offline unless told otherwise."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from quire import config
from quire.artifact import Draft


class TrackedRuntime(config.Runtime):
    """Whether and where a step is tracked. `wandb sync FOLDER/wandb/offline-*` uploads what was logged offline."""

    wandb: str = Field(default="offline", pattern="^(offline|online|disabled)$")
    wandb_project: str = "quire"
    wandb_folder: str | None = Field(
        default=None, description="default: the root; where that is remote, `artifacts` on the node that runs"
    )


def folder(runtime: TrackedRuntime) -> Path:
    """Where offline runs are kept, absolute."""
    remote = "://" in runtime.root
    return Path(runtime.wandb_folder or ("artifacts" if remote else runtime.root)).absolute()


def start(settings: Any, draft: Draft) -> Any:
    """The `wandb` run of this artefact, continued if it was begun before; None when tracking is disabled.

    The API key is read by wandb itself, from its own environment variable or file; the config holds no secret.
    """
    runtime: TrackedRuntime = settings.runtime
    if runtime.wandb == "disabled":
        return None
    import wandb  # slow to import, and only one worker needs it

    where = folder(runtime)
    where.mkdir(parents=True, exist_ok=True)  # else wandb falls back to another folder
    return wandb.init(
        project=runtime.wandb_project,
        name=draft.name,
        id=f"{draft.name}-{draft.fingerprint[:12]}",
        resume="allow",
        mode=runtime.wandb,
        dir=str(where),
        config=settings.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off"),
    )


def loggable(value: Any) -> Any:
    """A number as it is; a list of numbers, such as the loss by position, as a table of (position, value) rows."""
    if not isinstance(value, list):
        return value
    import wandb

    return wandb.Table(columns=["position", "value"], data=[[i, number] for i, number in enumerate(value, 1)])


def log_report(
    settings: Any,
    draft: Draft,
    page: str,
    results: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """The report page as an artefact of the run, shown as well, and each number of the nested `results` in the run's
    summary, named by its keys: `system/stratum/metric`. `tables` are rows of the same keys, by name."""
    run = start(settings, draft)
    if run is None:
        return
    import wandb

    run.summary.update(dict(_numbers(results)))
    kept = wandb.Artifact(draft.name, type="report")
    with kept.new_file("index.html", encoding="utf-8") as file:
        file.write(page)
    run.log_artifact(kept)
    made = {
        name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        for name, rows in (tables or {}).items()
    }
    run.log({"report": wandb.Html(page, inject=False), **made})
    run.finish()


def _numbers(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
