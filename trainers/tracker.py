"""Weights & Biases: a run per artefact with its config, its numbers and its report; offline unless told otherwise."""

from pathlib import Path
from typing import Any

from pydantic import Field

from quire import config
from quire.artifact import Draft


class TrackedRuntime(config.Runtime):
    """Whether and where a step is tracked. `wandb sync FOLDER/wandb/offline-*` uploads what was logged offline."""

    wandb: str = Field(default="offline", pattern="^(offline|online|disabled)$")
    wandb_project: str = "quire"
    wandb_folder: str = "artifacts"


def start(settings: Any, draft: Draft) -> Any:
    """The `wandb` run of this artefact, continued if it was begun before; None when tracking is disabled.

    The API key is read by wandb itself, from its own environment variable or file; the config holds no secret.
    """
    runtime: TrackedRuntime = settings.runtime
    if runtime.wandb == "disabled":
        return None
    import wandb  # slow to import, and only one worker needs it

    Path(runtime.wandb_folder).mkdir(parents=True, exist_ok=True)  # else wandb falls back to another folder
    return wandb.init(
        project=runtime.wandb_project,
        name=draft.name,
        id=f"{draft.name}-{draft.fingerprint[:12]}",
        resume="allow",
        mode=runtime.wandb,
        dir=runtime.wandb_folder,
        config=settings.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off"),
    )


def log_report(settings: Any, draft: Draft, page: str, results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """The report page as an artefact of the run, shown as well, and each figure of `results` as `system/stratum/metric`
    in the run's summary."""
    run = start(settings, draft)
    if run is None:
        return
    import wandb

    for system, strata in results.items():
        for stratum, values in strata.items():
            run.summary.update({f"{system}/{stratum}/{key}": value for key, value in values.items()})
    kept = wandb.Artifact(draft.name, type="report")
    with kept.new_file("index.html", encoding="utf-8") as file:
        file.write(page)
    run.log_artifact(kept)
    run.log({"report": wandb.Html(page, inject=False)})
    run.finish()
