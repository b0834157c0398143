"""A local mirror of Project Gutenberg's books by rsync, which `pipelines.gutenberg source.kind=mirror` then reads.

    python -m pipelines.mirror folder=mirror [key=value ...]
    python -m pipelines.gutenberg pipelines/experiments/gutenberg/documents.toml source.kind=mirror source.folder=mirror

Started again it sends only what has changed since, deletes what the host has deleted, and goes on where it was killed.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator
from tqdm import tqdm

from quire import config, rsync
from quire.errors import UserError


class MirrorConfig(config.Config):
    """What `pipelines.mirror` copies, from where, and how many top-level folders at a time."""

    folder: str
    remotes: tuple[str, ...] = Field(
        default=("rsync://aleph.gutenberg.org/gutenberg/", "rsync://gutenberg.pglaf.org/gutenberg/"),
        min_length=1,
        description="asked in order: the next one where one fails",
    )
    only: tuple[str, ...] = Field(default=(), description="top-level folders, of 0 to 9; default all")
    shards: int = Field(default=2, gt=0, le=10, description="folders at a time")
    utf8_only: bool = Field(default=False, description="files in UTF-8 alone; a book without one never comes")
    excludes: tuple[str, ...] = Field(default=("old/",), description="patterns of rsync, before all else")
    timeout: int = Field(default=60, gt=0, description="seconds without a byte, and to connect")

    @field_validator("remotes")
    @classmethod
    def _check_remotes(cls, remotes: tuple[str, ...]) -> tuple[str, ...]:
        for remote in remotes:
            if not rsync.is_address(remote):
                raise ValueError(f"{remote!r}: need rsync://host/module/, with a slash at its end")
        return remotes

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        if "://" in folder or not folder or folder.startswith("-"):
            raise ValueError(f"{folder!r}: need a folder of this machine; rsync writes nowhere else")
        return folder


CONFIG = MirrorConfig


@dataclass(frozen=True)
class Mirrored:
    """What came, by top-level folder."""

    folder: str
    copied: list[rsync.Copied]

    def told(self, started: float) -> str:
        """For the terminal."""
        files, size, deleted = (sum(getattr(c, key) for c in self.copied) for key in ("files", "size", "deleted"))
        lines = [
            f"{files:,} files, {size / 1e6:,.1f} MB came, {deleted:,} went; {len(self.copied)} folders are as there"
        ]
        return "\n".join([*lines, f"mirror: {self.folder}"])


def run(settings: MirrorConfig) -> Mirrored:
    """Bring the mirror up to date. Raises UserError naming the folders that could not be had from any remote."""
    wanted = rsync.UTF8 if settings.utf8_only else rsync.TEXTS
    rules = rsync.Rules(wanted, settings.excludes, settings.timeout, settings.timeout)
    folders = rsync.folders(settings.remotes, rules)
    missing = sorted(set(settings.only) - set(folders))
    if missing:
        raise UserError(f"only = {missing[0]!r}: the remote has {', '.join(folders)}")
    folders = [name for name in folders if not settings.only or name in settings.only]
    Path(settings.folder).mkdir(parents=True, exist_ok=True)

    def copy(name: str) -> rsync.Copied:
        return rsync.copy(name, settings.remotes, settings.folder, rules)

    with ThreadPoolExecutor(settings.shards) as pool:
        done = list(
            tqdm(pool.map(copy, folders), total=len(folders), unit="folder", desc="      rsync", file=sys.stderr)
        )
    failed = [f"  {copied.folder}: {copied.error}" for copied in done if copied.error]
    if failed:
        lines = "\n".join(failed)
        raise UserError(
            f"{len(failed)} of {len(done)} folders did not come:\n{lines}\nThe others are here; start it again."
        )
    return Mirrored(settings.folder, done)


if __name__ == "__main__":
    config.main(CONFIG, run)
