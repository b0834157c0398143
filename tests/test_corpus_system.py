"""Any corpus to an index as users run it, killed over and over: the same line goes on and ends with the same bytes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster import Head, head, wait_for

from quire.artifact import open_artifact
from quire.storage import Storage

pytestmark = pytest.mark.system
STEPS = ("chunks", "embeddings", "index")  # of what each makes, always under the name of the experiment files
_KILLS = 2  # of each step
_RESULTS = ("fingerprint", "files", "rows_in", "rows_out", "dropped", "facts")  # of a manifest; no clock stands there


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head(tmp_path_factory.mktemp("h")) as started:
        yield started


@pytest.fixture(scope="module")
def words(encoder_folder: str, books_folder: Path) -> list[str]:
    """The flow with a tiny model on 36 files, each a shard, which is then some tenths of a second's work."""
    changes = {
        "chunks.source.folder": books_folder,
        "chunks.source.shard_bytes": 5_000,
        "chunks.model": encoder_folder,
        "chunks.max_tokens": 60,
        "chunks.overlap": 10,
        "embed.model": encoder_folder,
        "embed.runtime.check_rows": 50,
        "index.method": "ivf",
        "index.shard_bytes": 10_000,
        "index.num_queries": 2_000,
    }
    return ["quire.flow", "flows/corpus.toml", *(f"{key}={value}" for key, value in changes.items())]


def contents(root: Path) -> dict[str, bytes]:
    """Every file but those that hold clock times."""
    files = (file for file in root.rglob("*") if file.is_file() and file.name not in ("manifest.json", "ledger.html"))
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def results(root: Path) -> dict[str, dict]:
    made = {kind: open_artifact(Storage(str(root)), kind, "corpus").manifest for kind in STEPS}
    return {kind: {key: manifest[key] for key in _RESULTS} for kind, manifest in made.items()}


def test_killed_again_and_again_the_same_line_ends_with_the_bytes_of_a_run_never_killed(
    ray_head: Head, words: list[str], tmp_path: Path
) -> None:
    whole, struck = tmp_path / "whole", tmp_path / "struck"
    undisturbed = ray_head.driver(*words, f"root={whole}")
    output, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, output

    draw, hits = np.random.default_rng(0), dict.fromkeys(STEPS, 0)
    for kind in STEPS:
        folder = struck / kind / "corpus"
        for _ in range(_KILLS):
            finished = lambda: len(list(folder.glob("_shards/*.json")))  # noqa: B023, E731
            wanted = finished() + int(draw.integers(1, 8))
            driver = ray_head.driver(*words, f"root={struck}")
            wait_for(lambda: finished() >= wanted or (folder / "manifest.json").exists(), 120, f"{wanted} of {kind}")  # noqa: B023
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()
            assert driver.returncode == -signal.SIGKILL
            hits[kind] += not (folder / "manifest.json").exists()
    assert all(hits.values()), hits

    last = ray_head.driver(*words, f"root={struck}")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert results(struck) == results(whole)
    assert contents(struck) == contents(whole)
