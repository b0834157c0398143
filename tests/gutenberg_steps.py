"""The step `pipelines.gutenberg` and those behind it in this process, and what its tests read of what it made."""

from pathlib import Path

import harvesting
from gutenberg_server import Server, path_of, small_book
from gutenberg_world import World

from pipelines import gutenberg as step
from quire import config
from quire.artifact import Artifact
from quire.harvest import Patience

NUMBERS = range(1, 13)
FILES = {path_of(n): small_book(n) for n in NUMBERS if n != 9}


def fetch_here(wanted, plan, *, concurrency, patience, known=None, **_) -> None:
    options = {
        "patience": Patience(patience),
        "previous": plan.previous,
        "known": known,
        "may_lack_end": plan.may_lack_end,
    }
    harvesting.harvest_on(plan.shelf, wanted, concurrency=concurrency, limits=plan.limits, hosts=plan.hosts, **options)


def settings(root: Path | str, server: Server | None, *changes: str) -> step.GutenbergConfig:
    base = f'runtime.base_urls=["{server.base}"]' if server else "runtime.rate=1000"
    given = ["name=g", f"runtime.root={root}", base, "runtime.contact=tests@example.org", "runtime.rate=1000000"]
    given += ["shard_books=5", "runtime.limits.attempts=2", "runtime.limits.first_wait=0.01", "runtime.limits.read=2"]
    return config.load(step.CONFIG, None, [*given, *changes])


def metadata(made: Artifact) -> list[dict]:
    files = [name for name in made.manifest["files"] if name.startswith("metadata-")]
    return [row for name in files for row in made.storage.read_table(f"{made.folder}/{name}").to_pylist()]


def contents(made: Artifact) -> dict[str, object]:
    """SHA-256 of every file; of the metadata, which say when a book was fetched, all but that."""
    digests = {name: facts["sha256"] for name, facts in made.manifest["files"].items() if "metadata" not in name}
    return digests | {"metadata": [row | {"fetched_at": None} for row in metadata(made)]}


def check_world(world: World, made: Artifact, root: Path) -> None:
    """Below a local root: each book that can be had once and byte for byte, of each other its reason, nothing else."""
    rows = metadata(made)
    assert [row["gutenberg_id"] for row in rows] == world.numbers
    assert {row["gutenberg_id"]: (row["status"], row["reason"] or "") for row in rows} == world.outcomes()
    raw = root / made.folder / "raw"
    assert {int(file.stem[2:]): file.read_bytes() for file in raw.iterdir()} == world.bodies()
    assert made.read(["document_id"])["document_id"].to_pylist() == [f"pg{number}" for number in sorted(world.lies)]
    assert made.manifest["rows_in"] == len(world.numbers)
    assert sum(made.manifest["dropped"].values()) == len(world.reasons)
