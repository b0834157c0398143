"""A killed step goes on to the same bytes, and never with shards that were cut otherwise."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines import chunk, embed, index, labelled, mine, neighbors, pan, score, shards, teach, workers
from quire import artifact, config, schema
from quire.artifact import Draft, Shard
from quire.errors import UserError
from quire.storage import Storage

ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    pass


def begun(root: Path) -> Draft:
    return artifact.begin(str(root), "chunks", "c", recipe={}, inputs={})


def work(draft: Draft, items: list, process: Callable[[object], Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does with the items, in this process."""
    monkeypatch.setattr(workers.time, "process_time", lambda: 0.0)
    workers.Worker(lambda: process, (), draft, items)({"index": np.arange(len(items))})


def bytes_of(draft: Draft) -> dict[str, bytes]:
    return {name: draft.storage.read_bytes(f"{draft.folder}/{name}") for name in draft.storage.files(draft.folder)}


def chunked(part: int) -> Shard:
    """One work a shard: a text of its own, one that all four have, one that three have, and a reject of the first."""
    texts = [f"only {part}", "common to all four", *(["common to three"] if part else [])]
    rows = {"text": texts, "work_id": [f"w{part}"] * len(texts), "chunk_id": [f"{part}:{i}" for i in range(len(texts))]}
    rows |= {"start": list(range(len(texts))), "end": list(range(1, len(texts) + 1))}
    rejects = schema.rejects([{"id": "x", "reason": "short"}] * (part % 2))
    return Shard(table=pa.table(rows), rows_in=len(texts) + part % 2, rejects=rejects, facts={"part": part})


def marked(draft: Draft, part: int) -> Shard:
    """`chunked`, with what the step leaves beside a shard."""
    shard = chunked(part)
    chunk._mark(draft, part, shard.table)
    return shard


def named(_draft: Draft, part: int) -> Shard:
    """Documents of which two share an id inside the shard, and one with the shard before."""
    return Shard(table=pa.table({"document_id": [f"d{part}", f"e{part}", f"e{part}", f"d{part - 1}"]}))


@pytest.mark.parametrize(
    ("process", "drop", "reason"),
    [
        (marked, lambda draft: chunk._drop_repeated(draft, 4, 3), "repeated"),
        (named, lambda draft: labelled.drop_repeated(draft, 4), "repeated_id"),
    ],
)
def test_rows_dropped_over_several_shards_are_the_same_wherever_the_run_is_killed(
    process: Callable, drop: Callable, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(range(4))

    def run(name: str, writes: int) -> dict[str, bytes]:
        draft = begun(tmp_path / name)
        work(draft, items, partial(process, draft), monkeypatch)
        left, write = iter(range(writes)), Storage.write_bytes

        def dying(*arguments: object) -> None:
            if next(left, None) is None:
                raise Killed
            write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write_bytes", dying)
            try:
                drop(draft)
            except Killed:
                patch.setattr(Storage, "write_bytes", write)
                shards.run_shards(draft, items, lambda: partial(process, draft))
                drop(draft)
        return {name: data for name, data in bytes_of(draft).items() if name != "_draft.json"}

    whole = run("whole", 1_000)
    record = begun(tmp_path / "whole").finished_shards()[1]
    assert record["dropped"][reason] == (1 if process is marked else 2)
    assert record["facts"] == ({"part": 1} if process is marked else {})
    for writes in range(20):
        assert run(str(writes), writes) == whole, writes


def test_a_shard_whose_worker_died_before_it_told_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, made = begun(tmp_path), []

    def process(item: str) -> Shard:
        made.append(item)
        return Shard(facts={"item": item})

    work(draft, ["a"], process, monkeypatch)
    before = bytes_of(draft)
    work(draft, ["a", "b"], process, monkeypatch)
    assert made == ["a", "b"] and before.items() <= bytes_of(draft).items()


@pytest.mark.parametrize("items", [["a", "b", "c"], ["a"], ["a", "other"]])
def test_shards_that_were_cut_otherwise_are_refused(
    items: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = begun(tmp_path)
    work(draft, ["a", "bc"], lambda item: Shard(facts={"item": item}), monkeypatch)
    shards.run_shards(draft, ["a", "bc"], lambda: None)
    with pytest.raises(UserError, match=r"1 of 2 finished shards hold other items.*first shard 1: give the setting"):
        shards.run_shards(draft, items, lambda: None)


def test_a_stage_without_gpus_is_refused_unless_workers_are_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(shards.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(shards.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**30}}])
    assert (shards._places(0, None), shards._places(0, 9)) == (4, 4)
    with pytest.raises(UserError, match="the cluster has no GPU; .* set runtime.num_workers"):
        shards._places(1.0, None)
    assert shards._places(1.0, 2) == 1
    assert "no GPU yet" in capsys.readouterr().err
    assert shards._places(0, None, 2**30) == 4 and not capsys.readouterr().err
    assert shards._places(0, None, 3 * 2**30) == 4
    assert "needs 3.0 GiB of memory, the largest node has 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "can_use", "cluster", "held"),
    [
        (None, True, 2, 1),
        (None, True, 0, 0),
        (None, False, 2, 0),
        (0, True, 2, 0),
        (0.25, True, 2, 0.25),
        (1, True, 0, 1),
    ],
)
def test_a_worker_holds_a_gpu_where_the_cluster_has_one_and_the_step_can_use_it(
    asked: float | None, can_use: bool, cluster: int, held: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "connect", lambda: None)
    monkeypatch.setattr(shards.ray, "cluster_resources", lambda: {"CPU": 4.0} | ({"GPU": cluster} if cluster else {}))
    assert shards.gpus(asked, can_use) == held
    hidden = {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}
    assert shards._holding(held, can_use) == ({"num_gpus": held} if held else hidden if can_use else {})


@pytest.mark.parametrize(("cluster", "hides"), [({"CPU": 4.0}, False), ({"CPU": 4.0, "GPU": 1.0}, True)])
def test_a_ray_of_its_own_without_a_gpu_has_none_to_hide(
    cluster: dict[str, float], hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_alone", True)
    monkeypatch.setattr(shards.ray, "cluster_resources", lambda: cluster)
    assert bool(shards._holding(0, can_use=True)) == hides


QUIET_WORKERS = """
import os
import subprocess
import sys
import ray
from pipelines import shards

shards.connect()
told = ray.get(ray.remote(lambda: [os.environ.get(name) for name in shards.QUIET]).remote())
print(told, [name in os.environ for name in shards.QUIET], shards._alone)
"""


@pytest.mark.ray
def test_workers_are_quiet_and_the_driver_s_environment_stays_as_it_was(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in shards.QUIET} | {"RAY_ADDRESS": "local"}
    found = subprocess.run(
        [sys.executable, "-c", QUIET_WORKERS], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
    )
    assert found.stdout.strip().splitlines()[-1] == "['1', '1'] [False, False] True"


@pytest.mark.parametrize("step", [embed, index, mine, neighbors, pan, score, teach])
def test_who_holds_gpus_is_no_part_of_a_recipe(step: ModuleType) -> None:
    names = {name: "x" for name, field in step.CONFIG.model_fields.items() if field.is_required()}
    one, none = (step.CONFIG(**names, runtime=config.GpuRuntime(num_gpus=given).model_dump()) for given in (1.0, None))
    assert config.recipe(one) == config.recipe(none) and none.runtime.num_gpus is None


@pytest.mark.parametrize("num_gpus", [0.0, 0.25, 2.0])
def test_the_ledger_bills_the_gpus_that_a_worker_holds(
    num_gpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=10.0)
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(clock))
    draft = begun(tmp_path)
    workers.Worker(lambda: lambda item: Shard(), (), draft, ["a"], num_gpus)({"index": np.arange(1)})
    assert draft.finished_shards()[0]["gpu"] == 10 * num_gpus


@pytest.mark.parametrize(
    ("alone", "options", "kept"),
    [(True, {}, False), (False, {}, True), (True, {"can_use_gpus": True}, True), (True, {"num_gpus": 0.5}, True)],
)
def test_ray_queues_all_shards_only_where_no_node_can_join_and_no_gpu_is_used(
    alone: bool, options: dict[str, object], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_failure(pending: list[int], how: dict[str, object], *_: object) -> None:
        seen.append((ray.data.DataContext.get_current().op_resource_reservation_enabled, how["fn"] is workers.Worker))

    seen: list[tuple[bool, bool]] = []
    monkeypatch.setattr(shards, "_alone", alone)
    monkeypatch.setattr(shards, "connect", lambda: None)
    monkeypatch.setattr(shards.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(shards.ray, "nodes", lambda: [{"Alive": True, "Resources": {"memory": 2.0**40}}])
    monkeypatch.setattr(shards, "_first_failure", first_failure)
    shards.run_shards(begun(tmp_path), [1, 2], lambda: None, **options)
    assert seen == [(kept, bool(options))]
    assert ray.data.DataContext.get_current().op_resource_reservation_enabled


@pytest.mark.ray
def test_a_worker_without_gpus_sees_none(tmp_path: Path, local_ray: None) -> None:
    def seen(item: int = 0) -> Shard:
        return Shard(facts={name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")})

    draft = begun(tmp_path)
    shards.run_shards(draft, [0], lambda: seen, can_use_gpus=True)
    for facts in (draft.finished_shards()[0]["facts"], shards.on_a_worker(seen, num_gpus=0).facts):
        assert facts["CUDA_VISIBLE_DEVICES"] == "" and facts["PYTHONPATH"]  # that of the job stays

    def wrong() -> None:
        raise UserError("wrong")

    with pytest.raises(UserError, match="^wrong$"):
        shards.on_a_worker(wrong, num_gpus=0)
    with pytest.raises(UserError, match="the cluster has no GPU"):
        shards.on_a_worker(seen, num_gpus=1)


@pytest.mark.system
def test_a_stage_begins_on_a_cluster_without_workers_and_grows_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))

    def make() -> Callable[[int], Shard]:
        def process(item: int) -> Shard:
            time.sleep(3)
            return Shard(facts={"node": shards.ray.get_runtime_context().get_node_id()})

        return process

    node = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    try:
        shards.ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        draft = begun(tmp_path)
        run = threading.Thread(target=shards.run_shards, args=(draft, range(10), make), daemon=True)
        run.start()
        for _ in range(2):
            cluster.add_node(num_cpus=1, **node)
        run.join(120)
        records = draft.finished_shards().values()
        assert (len(records), len({record["facts"]["node"] for record in records})) == (10, 2)
    finally:
        shards.ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("raised", "told"), [(RuntimeError("broken"), "shard 0 failed"), (UserError("wrong"), "wrong")]
)
def test_a_failed_run_gives_its_workers_back_at_once(
    raised: Exception, told: str, tmp_path: Path, local_ray: None
) -> None:
    def make() -> Callable[[int], Shard]:
        def process(item: int) -> Shard:
            time.sleep(item)
            raise raised

        return process

    gc.collect()
    gc.disable()  # as in a process with a large heap, which hardly ever looks for cycles
    try:
        with pytest.raises(type(raised), match=told) as caught:
            shards.run_shards(begun(tmp_path), list(range(3)), make)
        until = time.monotonic() + 8  # a shard under way still ends; Ray itself looks for garbage every 10 seconds
        while ray.available_resources().get("CPU") != 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert ray.available_resources().get("CPU") == 2
    finally:
        gc.enable()
    assert str(raised) in str(caught.value)


@pytest.mark.ray
def test_a_run_without_hope_ends_after_a_few_shards(tmp_path: Path, local_ray: None) -> None:
    def make() -> Callable[[int], Shard]:
        return lambda item: (time.sleep(0.2), Shard(table=pa.table({"x": [item]}), rows_in=1))[1]

    draft = begun(tmp_path)
    with pytest.raises(UserError, match=r"^enough after \d+$"):
        shards.run_shards(
            draft,
            list(range(200)),
            make,
            hopeless=lambda: f"enough after {found}" if (found := len(draft.finished_shards())) >= 4 else None,
        )
    assert 4 <= len(draft.finished_shards()) < 40


@pytest.mark.ray
def test_what_a_worker_is_asked_first_is_answered_or_its_mistake_is_told(local_ray: None) -> None:
    def mistaken() -> None:
        raise UserError("wrong")

    assert shards.on_a_worker(lambda a, b: a**b, 2, 3, num_gpus=0) == 8
    with pytest.raises(UserError, match="^wrong$"):
        shards.on_a_worker(mistaken, num_gpus=0)


@pytest.mark.ray
def test_a_shard_that_kills_every_worker_ends_the_run(tmp_path: Path, local_ray: None) -> None:
    def make() -> Callable[[int], Shard]:
        def process(item: int) -> Shard:
            if item:
                os._exit(1)
            return Shard(table=pa.table({"a": [item]}))

        return process

    with pytest.raises(ray.exceptions.RayError):
        shards.run_shards(begun(tmp_path), [0, 1], make)
    assert set(begun(tmp_path).finished_shards()) <= {0}
