"""A node of the cluster is lost while a step is under way: the same command ends, with the same bytes."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import ray
from cluster import ROOT, below, wait_for
from ray._private.node import Node
from ray.cluster_utils import Cluster

from pipelines import shards, token_chunks
from quire import config
from quire.artifact import Shard, begin, open_artifact

pytestmark = pytest.mark.system


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head and another node with one CPU each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    try:
        made.add_node(**node)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def raylet(node: Node) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def lose(cluster: Cluster, node: Node) -> None:
    """As when a machine loses its power: all that runs on it is gone at once, and says goodbye to nobody."""
    running = raylet(node).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for process in running:
        if process.is_running():
            process.kill()


def embed(root: Path, model: str) -> subprocess.Popen:
    """The step as users run it; encoding its sample one by one, a shard takes some tenths of a second."""
    words = ["name=e", "chunks=c", f"model={model}", f"runtime.root={root}", "runtime.check_rows=100"]
    command = [sys.executable, "-m", "pipelines.embed", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def parts(folder: Path) -> dict[str, tuple[int, int]]:
    """Of the shards that are recorded: the file and the time of its writing, which another writing would change."""
    numbers = [record.stem for record in sorted((folder / "_shards").glob("*.json"))]
    found = {f"part-{number}.parquet": (folder / f"part-{number}.parquet").stat() for number in numbers}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_node_that_dies_while_texts_are_encoded_costs_no_finished_shard_and_no_byte(
    cluster: Cluster, books_folder: Path, encoder_folder: str, tmp_path: Path
) -> None:
    given = ["name=c", f"source.folder={books_folder}", f"model={encoder_folder}", "max_tokens=60", "overlap=10"]
    given += ["source.shard_bytes=5000", f"runtime.root={tmp_path / 'whole'}"]
    chunks = token_chunks.run(config.load(token_chunks.CONFIG, None, given))
    shutil.copytree(tmp_path / "whole", tmp_path / "struck")
    undisturbed = embed(tmp_path / "whole", encoder_folder)
    output, _ = undisturbed.communicate(timeout=180)
    assert undisturbed.returncode == 0, output

    folder, (node,) = tmp_path / "struck/embeddings/e", cluster.worker_nodes
    driver = embed(tmp_path / "struck", encoder_folder)
    finished = lambda: list(folder.glob("_shards/*.json"))  # noqa: E731
    under_way = lambda: below(raylet(node).pid, "MapWorker(MapBatches(Worker)).submit")  # noqa: E731
    wait_for(lambda: len(finished()) >= 6 and under_way(), 120, "a shard on the node that is to die, after six others")
    before = parts(folder)
    lose(cluster, node)
    assert 6 <= len(before) < len(chunks.parts) - 4  # there is work left
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, output

    made, whole = (open_artifact(str(tmp_path / root), "embeddings", "e") for root in ("struck", "whole"))
    for name in whole.manifest["files"]:
        assert (folder / name).read_bytes() == (tmp_path / "whole/embeddings/e" / name).read_bytes(), name
    assert made.manifest["files"] == whole.manifest["files"]
    after = {name: (folder / name).stat() for name in before}
    assert before == {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in after.items()}


def test_a_node_that_dies_under_processes_that_ray_lends_costs_no_finished_shard(
    cluster: Cluster, tmp_path: Path
) -> None:
    def make() -> Callable[[int], Shard]:
        def process(item: int) -> Shard:
            time.sleep(1)
            return Shard(table=pa.table({"a": [item]}), facts={"node": ray.get_runtime_context().get_node_id()})

        return process

    draft, (node,) = begin(str(tmp_path), "chunks", "c", recipe={}, inputs={}), cluster.worker_nodes
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(shards.run_shards, draft, range(16), make)
        made_there = lambda: node.node_id in {r["facts"]["node"] for r in draft.finished_shards().values()}  # noqa: E731
        wait_for(lambda: run.done() or made_there(), 120, "a shard made on the node that is to die")
        before = parts(tmp_path / "chunks/c")
        lose(cluster, node)
        assert len(before) < 12  # there is work left, some of it under way on that node
        run.result(180)
    assert sorted(draft.finished_shards()) == list(range(16))
    after = parts(tmp_path / "chunks/c")
    assert {name: after[name] for name in before} == before
