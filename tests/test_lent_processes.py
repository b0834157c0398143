"""Processes that Ray lends to one step after another: each loads a step once, and lets go of it."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from pipelines import shards, workers
from quire import artifact
from quire.artifact import Draft, Shard
from quire.errors import UserError


def begun(root: Path) -> Draft:
    return artifact.begin(str(root), "chunks", "c", recipe={}, inputs={})


def given(draft: Draft, log: Path, mistakes: int = 0) -> np.ndarray:
    """What a lent process is given of a step: loading it adds to a log, and the first `mistakes` times it fails."""

    def make() -> Callable[[int], Shard]:
        log.write_text((log.read_text() if log.exists() else "") + "loaded ")
        if log.read_text().count("loaded") <= mistakes:
            raise UserError("no such column") if log.read_text() == "loaded " else OSError("the disk is busy")
        return lambda item: Shard(facts={"item": item})

    return np.frombuffer(ray.cloudpickle.dumps((make, (), draft, ["x", "y", "z"])), np.uint8)


def test_a_lent_process_loads_once_for_a_step_and_again_after_another_s_turn(tmp_path: Path) -> None:
    here, drafts = workers.Lent(), {name: begun(tmp_path / name) for name in "ab"}
    logs = {name: tmp_path / f"{name}.log" for name in "ab"}
    for name, shard in [("a", 0), ("a", 1), ("b", 0), ("a", 2)]:
        here(name, given(drafts[name], logs[name]), {"index": np.array([shard])})
    assert [log.read_text() for log in logs.values()] == ["loaded loaded ", "loaded "]
    assert [sorted(draft.finished_shards()) for draft in drafts.values()] == [[0, 1, 2], [0]]


def test_a_lent_process_lets_go_of_what_it_loaded_when_no_shard_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_KEPT", 0.05)
    here = workers.Lent()
    here("a", given(begun(tmp_path), tmp_path / "log"), {"index": np.array([0])})
    here.timer.join(5)
    assert here.worker is None
    here("a", given(begun(tmp_path), tmp_path / "log"), {"index": np.array([1])})
    assert sorted(begun(tmp_path).finished_shards()) == [0, 1]


def test_a_timer_that_comes_late_takes_nothing_away(tmp_path: Path) -> None:
    here = workers.Lent()
    here("a", given(begun(tmp_path), tmp_path / "log"), {"index": np.array([0])})
    here.let_go()  # as by a timer of before, which had waited for the lock
    assert here.worker is not None


def test_a_lent_process_tells_what_kept_it_from_loading_and_loads_again(tmp_path: Path) -> None:
    here, draft = workers.Lent(), begun(tmp_path)
    step = given(draft, tmp_path / "log", mistakes=2)
    told = [here("a", step, {"index": np.array([0])}) for _ in range(3)]
    assert told[0]["mistake"].tolist() == ["no such column"] and not told[0]["trace"][0]
    assert "the disk is busy" in told[1]["trace"][0] and not told[1]["mistake"][0]
    assert not told[2]["trace"][0] and sorted(draft.finished_shards()) == [0]


@pytest.mark.ray
def test_one_step_after_another_is_done_by_the_processes_that_are_there(tmp_path: Path, local_ray: None) -> None:
    def make() -> Callable[[int], Shard]:
        def process(item: int) -> Shard:
            time.sleep(0.2)
            return Shard(facts={"process_begun": psutil.Process().create_time()})

        return process

    def begins(name: str, count: int) -> set[float]:
        draft = begun(tmp_path / name)
        shards.run_shards(draft, list(range(count)), make)
        return {record["facts"]["process_begun"] for record in draft.finished_shards().values()}

    first, second = begins("first", 30), time.time()  # so many that there is time for two processes to begin
    assert len(first) >= 2 and max(begins("second", 6)) < second
