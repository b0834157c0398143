"""A harvest over Ray workers, some of which are killed in its middle: a book is settled once, and the pace holds."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cluster
import harvesting
import pytest
from gutenberg_server import Fault, Server, number_of, path_of, small_book

from pipelines.harvest import Plan, fetch_all
from quire.errors import UserError
from quire.fetch import Limits

pytestmark = pytest.mark.ray
NUMBERS = range(1, 121)
RATE, WORKERS, CONCURRENCY = 25, 2, 3
POLITENESS = {"rate": RATE, "concurrency": CONCURRENCY, "num_workers": WORKERS}
LIMITS = Limits(first_wait=0.01)


def plan(server: Server, folder: Path) -> Plan:
    shelf = harvesting.shelf(folder)
    return Plan(shelf=shelf, limits=LIMITS, agent="test", hosts=(server.host,), max_bytes=2**23)


def test_a_host_that_wants_to_be_left_alone_ends_the_run_in_plain_words(tmp_path: Path, local_ray: None) -> None:
    with Server({path_of(1): small_book(1)}, {1: Fault("status", value="503 Busy|7200")}) as server:
        with pytest.raises(UserError) as caught:
            fetch_all(harvesting.wanted(server.base, [1]), plan(server, tmp_path), rate=RATE, concurrency=1)
        assert str(caught.value).startswith(f"{server.base}/1/pg1.txt: 503: the host asks to be left alone for 7,200 s")


def test_killed_workers_cost_what_they_had_in_hand_and_no_more(tmp_path: Path, local_ray: None) -> None:
    files = {path_of(n, "pg{id}.txt" if n % 5 else "pg{id}-0.txt"): small_book(n) for n in NUMBERS if n % 11}
    shelf = harvesting.shelf(tmp_path)
    asked_again: list[str] = []
    with (
        Server(files, {7: Fault("status", 1, "503 Busy|0"), 8: Fault("html")}) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        books = harvesting.wanted(server.base, NUMBERS)
        run = pool.submit(fetch_all, books, plan(server, tmp_path), **POLITENESS)
        for goal in (10, 40):
            cluster.wait_for(lambda: len(shelf.settled()) >= goal or run.done(), 240, f"{goal} books")  # noqa: B023
            cluster.wait_for(lambda: cluster.below(os.getpid(), "ray::_Worker"), 60, "a worker")
            settled, begun = shelf.settled(), len(server.paths)
            cluster.below(os.getpid(), "ray::_Worker")[0].kill()
            assert len(settled) < len(NUMBERS)
            cluster.wait_for(lambda: len(shelf.settled()) > goal + 5 or run.done(), 240, "more books")  # noqa: B023
            asked_again += [path for path in server.paths[begun:] if f"pg{number_of(path)}" in settled]
        run.result(240)
        requests, times = list(server.paths), sorted(server.times)
        fetch_all(books, plan(server, tmp_path), **POLITENESS)
        assert server.paths == requests  # all is settled
    records = {number: shelf.record(f"pg{number}") for number in NUMBERS}
    assert {n: record.reason for n, record in records.items() if record.status == "failed"} == {8: "html"}
    assert [n for n, record in records.items() if record.status == "missing"] == [n for n in NUMBERS if not n % 11]
    bodies = {number_of(path): body for path, body in files.items() if number_of(path) != 8}
    assert {n: shelf.body(record) for n, record in records.items() if record.status == "done"} == bodies
    assert not asked_again
    twice = {path: count for path, count in Counter(requests).items() if count > 1 and number_of(path) not in (7, 8)}
    assert len({number_of(path) for path in twice}) <= 2 * CONCURRENCY  # what two workers had in hand
    assert times[-1] - times[0] >= (len(times) - 1) / RATE * 0.8  # on average: the way to the server varies
