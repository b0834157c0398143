"""Show what would be deleted below a root, and delete it once that root is confirmed by name.

    python -m pipelines.wipe root=artifacts                                    # shows, deletes nothing
    python -m pipelines.wipe root=artifacts confirm=artifacts                  # all but models and fetched books
    python -m pipelines.wipe root=artifacts kinds='["models"]' names='["old"]' confirm=artifacts
    python -m pipelines.wipe root=artifacts kinds='["documents"]' names='["gutenberg"]' confirm=artifacts

Models are kept unless `kinds` names them, and fetched books (documents of a harvest, finished or not) unless `names`
does; caches, and all else that is no artefact, always.
"""

from dataclasses import dataclass

from pydantic import Field

from quire import config, wipe
from quire.artifact import KINDS
from quire.errors import UserError
from quire.storage import Storage


class WipeConfig(config.Config):
    """What `pipelines.wipe` deletes."""

    root: str
    kinds: tuple[str, ...] = Field(default=tuple(kind for kind in KINDS if kind != "models"), min_length=1)
    names: tuple[str, ...] = Field(
        default=(), description="of artefacts; default: every one of these kinds, but no fetched books"
    )
    confirm: str | None = Field(default=None, description="the root once more, exactly as root= gives it")


CONFIG = WipeConfig


@dataclass(frozen=True)
class Wiped:
    """What was found, and whether it is gone."""

    storage: Storage
    found: list[wipe.Found]
    deleted: bool

    def told(self, started: float) -> str:
        """For the terminal: a line for each artefact that goes, then what stays."""
        going = [entry for entry in self.found if not entry.left]
        staying = [entry for entry in self.found if entry.left]
        verb = "deleted" if self.deleted else "would delete"
        lines = [f"{_size(entry.num_bytes)}  {entry.num_files:>7,} files  {entry.path}" for entry in going]
        total = sum(entry.num_bytes for entry in going)
        lines.append(f"{verb} {len(going)} artefact(s), {total / 1e6:,.1f} MB, below {self.storage.uri()}")
        lines += [f"{_size(entry.num_bytes)}  stays: {entry.path} ({entry.left})" for entry in staying]
        if going and not self.deleted:
            lines.append("nothing was deleted; to delete, repeat the line with confirm= and the root as you gave it")
        return "\n".join(f"      {line}" for line in lines)


def run(settings: WipeConfig) -> Wiped:
    """Find, and with the right `confirm` delete. Raises UserError when `confirm` names another root."""
    if settings.confirm is not None and settings.confirm != settings.root:
        raise UserError(f"confirm = {settings.confirm!r}: not the root ({settings.root!r}); nothing was deleted")
    storage = Storage(settings.root)
    found = wipe.find(storage, settings.kinds, settings.names)
    if settings.confirm is not None:
        wipe.delete(storage, found)
    return Wiped(storage, found, settings.confirm is not None)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:>10,.2f} MB"


if __name__ == "__main__":
    config.main(CONFIG, run)
