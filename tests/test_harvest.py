"""Every book that can be had arrives once and byte for byte, each other has its reason, however often it is killed."""

import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gutenberg_world
import harvesting
import pytest
from gutenberg_server import Fault, Server, number_of, path_of, real_books, small_book
from gutenberg_world import World, needs_books

from pipelines import harvest as workers
from quire import harvest
from quire.errors import UserError

NUMBERS = range(1, 151)


@dataclass(frozen=True)
class Outcome:
    """Of two harvests of one world into one folder, one after another."""

    world: World
    root: Path
    requests: list[str]
    asked_again: list[str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    world, root = gutenberg_world.build(NUMBERS, real_books()), tmp_path_factory.mktemp("harvest") / "root"
    with Server(world.files, world.faults) as server:
        wanted = harvesting.wanted(server.base, world.numbers)
        found = harvesting.harvest(root, wanted)
        requests = list(server.paths)
        assert harvesting.harvest(root, wanted) == found
        return Outcome(world, root, requests, server.paths[len(requests) :])


def test_every_book_that_can_be_had_arrives_byte_for_byte_each_other_has_its_reason(outcome: Outcome) -> None:
    shelf, world = harvesting.shelf(outcome.root), outcome.world
    records = {number: shelf.record(f"pg{number}") for number in world.numbers}
    assert {n: (record.status, record.reason) for n, record in records.items()} == world.outcomes()
    assert {n: shelf.body(records[n]) for n in world.lies} == world.bodies()


@needs_books
def test_every_real_book_is_among_them(outcome: Outcome) -> None:
    real = real_books()
    assert len(real) >= 65
    assert {number: (outcome.root / f"raw/pg{number}.txt").read_bytes() for number in real} == real


def test_nothing_stands_outside_whatever_a_book_is_called(outcome: Outcome) -> None:
    expected = sorted(f"pg{number}.txt" for number in outcome.world.lies)
    assert sorted(file.name for file in (outcome.root / "raw").iterdir()) == expected
    assert {entry.name for entry in outcome.root.iterdir()} == {"raw", "records"}
    assert {entry.name for entry in outcome.root.parent.iterdir()} == {"root"}


def test_no_answer_that_was_good_is_asked_for_again(outcome: Outcome) -> None:
    world, asked = outcome.world, Counter(outcome.requests)
    assert {n: asked[path] for n, path in world.lies.items()} == {n: world.requests_of_good(n) for n in world.lies}
    assert not outcome.asked_again


def test_so_many_requests_are_open_at_once_and_never_more(tmp_path: Path) -> None:
    files = {path_of(n): small_book(n, 8) for n in range(1, 13)}
    with Server(files, dict.fromkeys(range(1, 13), Fault("together", value="3"))) as server:
        found = harvesting.harvest(tmp_path, harvesting.wanted(server.base, range(1, 13)), concurrency=3)
        assert set(found.values()) == {"done"} and server.max_open == 3


def test_killed_again_and_again_it_asks_for_nothing_twice_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    numbers, draw = range(1, 201), random.Random(0)
    files = {path_of(n): small_book(n, 10) for n in numbers if n % 9}
    command = [sys.executable, harvesting.__file__]
    with Server(files) as server:
        harvesting.harvest(tmp_path / "whole", harvesting.wanted(server.base, numbers))
    with Server(files) as server:
        shelf = harvesting.shelf(tmp_path / "killed")
        asked_after_settled: list[str] = []
        for _ in range(3):
            settled, begun = shelf.settled(), len(server.paths)
            goal = len(settled) + draw.randrange(5, 40)
            run = subprocess.Popen([*command, server.base, str(tmp_path / "killed"), "1", "200"])
            while len(shelf.settled()) < goal and run.poll() is None:
                time.sleep(draw.random() / 50)
            run.kill()
            run.wait()
            asked_after_settled += [p for p in server.paths[begun:] if f"pg{number_of(p)}" in settled]
        assert not asked_after_settled and len(shelf.settled()) < 200
        settled, begun = shelf.settled(), len(server.paths)
        harvesting.harvest(tmp_path / "killed", harvesting.wanted(server.base, numbers))
        assert not [p for p in server.paths[begun:] if f"pg{number_of(p)}" in settled]
    for number in numbers:
        records = [harvesting.shelf(tmp_path / name).record(f"pg{number}") for name in ("whole", "killed")]
        assert records[0].sha256 == records[1].sha256 and records[0].status == records[1].status
        if records[0].status == "done":
            assert shelf.body(records[1]) == files[path_of(number)]


def test_failures_alone_are_tried_again(tmp_path: Path) -> None:
    files = {path_of(n): small_book(n) for n in (1, 2)}
    with Server(files, {2: Fault("status", 10, "500 Broken")}) as server:
        books = harvesting.wanted(server.base, [1, 2, 3])
        assert harvesting.harvest(tmp_path, books) == {"pg1": "done", "pg2": "failed", "pg3": "missing"}
        assert harvesting.harvest(tmp_path, books)["pg2"] == "failed"
        failed = harvesting.shelf(tmp_path).failed()
        assert [(record.key, record.reason) for record in failed] == [("pg2", "server_error")]
        harvesting.shelf(tmp_path).forget(failed)
        begun = len(server.paths)
        assert harvesting.harvest(tmp_path, books) == {"pg1": "done", "pg2": "done", "pg3": "missing"}
        assert {number_of(path) for path in server.paths[begun:]} == {2}


def test_a_second_harvest_is_sent_only_what_changed(tmp_path: Path) -> None:
    files = {path_of(n): small_book(n) for n in (1, 2)} | {path_of(3, "pg{id}-8.txt"): small_book(3)}
    with Server(files) as server:
        books = harvesting.wanted(server.base, [1, 2, 3])
        harvesting.harvest(tmp_path / "a", books)
        old = harvesting.shelf(tmp_path / "a")
        server.files[path_of(2)] = small_book(22)
        begun = len(server.paths)
        known = {key: old.record(key) for key in old.settled()}
        harvesting.harvest(tmp_path / "b", books, previous=old, known=known)
        assert len(server.paths) == begun + 3  # the address that had it is asked first
    new = harvesting.shelf(tmp_path / "b")
    bodies = {key: new.body(new.record(key)) for key in new.settled()}
    assert bodies == {"pg1": small_book(1), "pg2": small_book(22), "pg3": small_book(3)}
    (tmp_path / "a/raw/pg1.txt").write_bytes(b"spoiled")
    with pytest.raises(UserError, match="has changed since it was fetched"):
        harvesting.harvest(tmp_path / "c", books, previous=old, known=known)


def test_failures_in_a_row_end_the_harvest_and_a_host_that_answers_in_between_goes_on() -> None:
    patience = harvest.Patience(3)
    for reason in ("html", "reset", "", "html", "truncated", "absent", "timeout", "server_error"):
        status = {"": "done", "absent": "missing"}.get(reason, "failed")
        patience.told(harvest.Record("pg1", status, reason))
    with pytest.raises(
        UserError, match=r"last 3 books failed \(timeout 1, .*reset 1\).*: no route\n.*runtime.patience"
    ):
        patience.told(harvest.Record("pg1", "failed", "reset", "no route"))


@pytest.mark.parametrize(
    ("fault", "named", "most"),
    [(Fault("html"), r"\(html 6\)", 5), (Fault("status", value="403 Forbidden"), r"\(refused_by_host 6\)", 1)],
    ids=["captcha", "forbidden"],
)
def test_a_host_that_turns_to_blocking_is_soon_left_alone(tmp_path: Path, fault: Fault, named: str, most: int) -> None:
    files = {path_of(n): small_book(n, 8) for n in range(1, 101)}
    with Server(files, dict.fromkeys(range(11, 101), fault)) as server:
        books = harvesting.wanted(server.base, range(1, 101))
        with pytest.raises(UserError, match=f"{named}.*{server.base}/.*\n.*retry_failed=true"):
            harvesting.harvest(tmp_path, books, concurrency=2, patience=harvest.Patience(6))
        # Of each book so many addresses; the last good one may be told late, and two are in hand at the end.
        assert len(server.paths) <= 10 + (5 + 6 + 2) * most
        server.faults.clear()
        harvesting.shelf(tmp_path).forget(harvesting.shelf(tmp_path).failed())
        assert set(harvesting.harvest(tmp_path, books, patience=harvest.Patience(6)).values()) == {"done"}


def test_progress_counts_what_was_settled_before_and_says_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Worker:
        """Settles a book in a fifth of a second, in place of an actor."""

        class settle:
            @staticmethod
            def remote(book: harvest.Wanted) -> harvest.Record:
                time.sleep(0.2)
                return harvest.Record(book.key, "done")

    monkeypatch.setattr(workers.ray, "wait", lambda running, num_returns: (running[:1], running[1:]))
    monkeypatch.setattr(workers.ray, "get", lambda record: record)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    workers._settle(harvesting.wanted("http://a", range(7, 13)), [Worker], 1, harvest.Patience(3), 12, "documents/g")
    told = capsys.readouterr().err
    assert re.match(r"\s*documents/g: +50%.* 6/12 \[00:00<\?", told) and "12/12" in told
    assert re.search(r" (?:7|8|9|10|11)/12 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ ?(?:book/s|s/book)\]", told)


def test_lists_of_addresses_are_keyed_by_their_ids() -> None:
    text = """# books
        https://www.gutenberg.org/files/1342/1342-0.txt
        https://mirror.example/cache/epub/1342/pg1342.txt
        https://www.gutenberg.org/ebooks/84.txt.utf-8

        https://example.org/a/../../../etc/passwd
    """
    found = harvest.read_urls(text, "list.txt")
    assert [book.key for book in found[:2]] == ["pg1342", "pg84"] and len(found[0].urls) == 2
    assert found[2].key.startswith("url-") and found[2].key[4:].isalnum()
    assert found == harvest.read_urls(text + text, "list.txt")
    with pytest.raises(UserError, match=r"list.txt, line 2: 'ftp://x/1' is no http"):
        harvest.read_urls("\nftp://x/1", "list.txt")


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://aleph.gutenberg.org/1/3/4/1342/1342-0.txt", "pg1342"),
        ("https://gutenberg.pglaf.org/dirs/0/7/7.txt", "pg7"),
        ("https://gutenberg.pglaf.org/cache/generated/1342/pg1342.txt.utf8", "pg1342"),
        ("https://www.gutenberg.org/cache/epub/84/pg84-images.html", "pg84"),
        ("https://example.org/letters/12/12.txt", None),
        ("https://example.org/1/3/4/1342/84.txt", None),
    ],
)
def test_an_address_of_a_mirror_is_keyed_by_its_id(url: str, key: str | None) -> None:
    (book,) = harvest.read_urls(url, "list.txt")
    assert book.key == key if key else book.key.startswith("url-")


@pytest.mark.parametrize("url", ["http://[bad/1.txt", "http://host:port/1.txt", "http://999.1.1.1/", "http:///1.txt"])
def test_an_address_that_nobody_can_ask_is_refused_with_its_line(url: str) -> None:
    with pytest.raises(UserError, match=r"list.txt, line 2: 'http.* is no .*; mend or leave out the line"):
        harvest.read_urls(f"# books\n{url}", "list.txt")


def test_every_mirror_has_a_name_before_the_next_name_is_tried() -> None:
    assert harvest.urls_of(7, ["http://a/x/", "http://b"])[:3] == (
        "http://a/x/7/pg7.txt",
        "http://b/7/pg7.txt",
        "http://a/x/7/pg7-0.txt",
    )
    assert harvest.urls_of(7, ["http://a"], utf8_first=True)[0] == "http://a/7/pg7-0.txt"
    assert sorted(harvest.urls_of(7, ["http://a"])) == sorted(harvest.urls_of(7, ["http://a"], utf8_first=True))
