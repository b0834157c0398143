"""A finished artefact to a data set of the hub, which `datasets.load_dataset(repo)` then reads.

    python -m pipelines.push kind=embeddings name=corpus repo=OWNER/NAME [private=false] [runtime.root=artifacts]

The token is the one that `hf auth login` keeps or HF_TOKEN holds. A hub that stays away is tried again; killed or given
up, the same line goes on with what the hub does not have yet, and the manifest goes last.
"""

import time
from dataclasses import dataclass

from pydantic import Field

from quire import artifact, config, push


class PushConfig(config.Config):
    """What `pipelines.push` sends, and where to."""

    kind: str
    name: str
    repo: str = Field(description="OWNER/NAME of a data set")
    private: bool = Field(default=True, description="of a data set that is new")
    attempts: int = Field(default=20, gt=0, description="of each request")
    first_wait: float = Field(default=5.0, ge=0, description="seconds after the first failure; doubled with each")
    runtime: config.Runtime = config.Runtime()


CONFIG = PushConfig


@dataclass(frozen=True)
class Told:
    """What was sent, for the terminal."""

    pushed: push.Pushed

    def told(self, started: float) -> str:
        """`started` in seconds since the epoch."""
        sent, kept = len(self.pushed.sent), len(self.pushed.kept)
        took = time.time() - started
        return (
            f"      {sent} file(s) sent in {took:.1f} s, {kept} were there, {self.pushed.failures} failed attempt(s)\n"
            f"      {self.pushed.address}"
        )


def run(settings: PushConfig) -> Told:
    """Send it. Raises UserError when it is not published, or the hub refuses or stays away."""
    made = artifact.open_artifact(settings.runtime.root, settings.kind, settings.name)
    patience = push.Patience(settings.attempts, settings.first_wait)
    return Told(push.push(made, settings.repo, private=settings.private, patience=patience))


if __name__ == "__main__":
    config.main(CONFIG, run)
