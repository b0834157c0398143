"""Two thousand books fetched by the real command from a server with every trouble there is, killed ten times."""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import cluster
import gutenberg_world
import pytest
from gutenberg_server import Server, number_of, real_books
from gutenberg_steps import check_world, contents
from gutenberg_world import World, needs_books

from quire import artifact
from quire.artifact import Artifact

pytestmark = pytest.mark.system
NUM_IDS = 2000
KILLS = 10  # while books are fetched
WRITTEN = (0, 0.3, 0.7, 1)  # and once so much of the shards is written
COMMAND = ["pipelines.gutenberg", "keep_raw=true", "max_bytes=4000000", "runtime.contact=tests@example.org"]
COMMAND += ["runtime.concurrency=8", "runtime.limits.first_wait=0.01", "runtime.limits.attempts=2"]
COMMAND += ["runtime.limits.read=5", "runtime.limits.total=10"]  # of these the slow answers take four at most
RATE = 100  # requests a second: slow enough to be killed ten times


@dataclass(frozen=True)
class Outcome:
    """Of one world fetched twice below one root: undisturbed, and killed again and again."""

    world: World
    root: Path
    asked_again: list[str]  # of books that had a record
    num_settled: int  # at the last kill while books were fetched
    killed_writing: list[int]  # shards there were at each kill after all were

    def made(self, name: str) -> Artifact:
        return artifact.open_artifact(str(self.root), "documents", name)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    real, root, draw = real_books(), tmp_path_factory.mktemp("books") / "root", random.Random(1)
    others = [number for number in range(1, NUM_IDS + 1) if number not in real]
    world = gutenberg_world.build(others[: NUM_IDS - len(real)], real, num_sentences=8)
    asked = [f"select.ids={world.numbers}", f"runtime.max_failed={world.failed()}", f"runtime.rate={RATE}"]

    def settled() -> set[str]:
        return {file.stem for file in (root / "documents/killed/_work/records").glob("pg*.json")}

    def written() -> list[Path]:
        return list((root / "documents/killed").glob("part-*"))

    with cluster.head(tmp_path_factory.mktemp("h")) as head:

        def start(server: Server, name: str):
            where = [f"name={name}", f"runtime.root={root}", f'runtime.base_urls=["{server.base}"]']
            return head.driver(*COMMAND, *asked, *where)

        def finish(server: Server, name: str) -> None:
            driver = start(server, name)
            output, _ = driver.communicate(timeout=900)
            assert driver.returncode == 0, output

        with Server(world.files, world.faults) as first:
            finish(first, "whole")
        with Server(world.files, world.faults, first.port) as server:  # its addresses stand in the artefact
            asked_again: list[str] = []
            for _ in range(KILLS):
                known, begun = settled(), len(server.paths)
                goal = len(known) + draw.randrange(10, 190)
                driver = start(server, "killed")
                cluster.wait_for(lambda: len(settled()) >= goal, 240, f"{goal} books")  # noqa: B023
                time.sleep(draw.random() / 10)  # anywhere between two books
                os.killpg(driver.pid, signal.SIGKILL)
                driver.communicate()
                asked_again += [path for path in server.paths[begun:] if f"pg{number_of(path)}" in known]
            known, begun = settled(), len(server.paths)
            killed_writing = []
            for share in WRITTEN:
                driver = start(server, "killed")
                goal = share * len(list((root / "documents/whole").glob("part-*")))
                cluster.wait_for(lambda: len(settled()) == NUM_IDS or written(), 240, "every book")
                cluster.wait_for(lambda: len(written()) >= goal, 240, "shards")  # noqa: B023
                time.sleep(draw.random() / 20)
                os.killpg(driver.pid, signal.SIGKILL)
                driver.communicate()
                killed_writing.append(len(written()))
            finish(server, "killed")
            asked_again += [path for path in server.paths[begun:] if f"pg{number_of(path)}" in known]
    return Outcome(world, root, asked_again, len(known), killed_writing)


def test_killed_again_and_again_it_ends_in_the_bytes_of_an_undisturbed_run(outcome: Outcome) -> None:
    killed, whole = outcome.made("killed"), outcome.made("whole")
    found = contents(killed)
    assert found == contents(whole)  # SHA-256 of documents, rejects and raw; all of the metadata but the time
    assert {name.partition("-")[0] for name in found} >= {"part", "rejects"}
    assert killed.manifest["dropped"] == whole.manifest["dropped"] and killed.manifest["rows_in"] == NUM_IDS
    assert outcome.killed_writing[0] < outcome.killed_writing[-1]


def test_nothing_that_was_settled_is_asked_for_again(outcome: Outcome) -> None:
    assert not outcome.asked_again and outcome.num_settled < NUM_IDS


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_every_book_that_can_be_had_is_there_once_and_each_other_has_its_reason(outcome: Outcome, name: str) -> None:
    check_world(outcome.world, outcome.made(name), outcome.root)


@needs_books
def test_every_real_book_is_among_them(outcome: Outcome) -> None:
    raw = outcome.root / "documents/killed/raw"
    assert {number: (raw / f"pg{number}.txt").read_bytes() for number in real_books()} == real_books()
    ids = outcome.made("killed").read(["document_id"])["document_id"].to_pylist()
    assert {f"pg{number}" for number in real_books()} <= set(ids)


def test_nothing_stands_outside_whatever_a_book_is_called(outcome: Outcome) -> None:
    assert {entry.name for entry in outcome.root.parent.iterdir()} == {"root"}
    assert {entry.name for entry in outcome.root.iterdir()} == {"documents"}
    assert {entry.name for entry in (outcome.root / "documents").iterdir()} == {"whole", "killed"}
