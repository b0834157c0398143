"""Every book that can be had arrives once and byte for byte, each other has its reason, however often it is killed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import harvesting
import pytest
from gutenberg_server import Fault, Server, number_of, path_of, real_books, small_book

from quire import harvest
from quire.errors import UserError

TITLES = {"../../etc/x": 700_001, "t" * 10_000: 700_002}
PASSING = [  # each of these ends before the attempts do
    Fault("status", 1, "503 Busy|0"),
    Fault("status", 1, "429 Slow down|date:0"),
    Fault("status", 1, "500 Broken"),
    Fault("reset", 1),
    Fault("reset", 1, "late"),
    Fault("half", 1),
    Fault("half", 1, "close"),
    Fault("half_gzip", 1),
    Fault("charset", value="koi8-r"),
]
LASTING = {
    800_001: (Fault("stall"), "timeout"),
    800_002: (Fault("drip"), "too_slow"),
    800_003: (Fault("reset"), "reset"),
    800_004: (Fault("half"), "truncated"),
    800_005: (Fault("status", value="500 Broken"), "server_error"),
    800_006: (Fault("html"), "html"),
    800_007: (Fault("html", value="text/plain"), "html"),
    800_008: (Fault("endless"), "too_large"),
    800_009: (Fault("redirect", value="on"), "redirect_loop"),
    800_010: (Fault("redirect", value="http://localhost:9/x.txt"), "foreign_host"),
    800_011: (Fault("status", value="403 Forbidden"), "refused_by_host"),
    800_012: (Fault("bytes", value=""), "empty"),
    800_013: (Fault("status", value="429 Slow down"), "throttled"),
}


def test_every_book_that_can_be_had_arrives_once_and_byte_for_byte_each_other_has_its_reason(tmp_path: Path) -> None:
    books = real_books()
    names = ("pg{id}.txt", "pg{id}-0.txt", "pg{id}.txt.utf-8", "pg{id}-utf8.txt", "pg{id}-8.txt")
    files = {path_of(number, names[place % 5]): body for place, (number, body) in enumerate(books.items())}
    faults: dict[str | int, Fault] = {
        path_of(number, names[place % 5]): PASSING[place // 2 % len(PASSING)]
        for place, number in enumerate(books)
        if place % 2
    }
    for title, number in TITLES.items():
        files[path_of(number)] = small_book(number).replace(f"Book {number}".encode(), title.encode())
        files[path_of(number + 2)] = files[path_of(number)]  # the same title and author under two ids
    for number, (fault, _) in LASTING.items():
        files[path_of(number)] = small_book(number)
        faults |= {path_of(number, name): fault for name in names}
    numbers = [*books, *(n for title in TITLES.values() for n in (title, title + 2)), *LASTING, 600_001, 600_002]
    with Server(files, faults) as server:
        found = harvesting.harvest(tmp_path / "root", harvesting.wanted(server.base, numbers))
        requests = list(server.paths)
        assert harvesting.harvest(tmp_path / "root", harvesting.wanted(server.base, numbers)) == found
        assert server.paths == requests  # the second time nothing was asked for
    shelf = harvesting.shelf(tmp_path / "root")
    records = {number: shelf.record(f"pg{number}") for number in numbers}
    had = {number_of(path): body for path, body in files.items() if number_of(path) not in LASTING}
    assert {n for n, record in records.items() if record.status == "done"} == set(had)
    assert all(shelf.body(records[number]) == body for number, body in had.items())
    assert {n: record.reason for n, record in records.items() if record.status == "failed"} == {
        number: reason for number, (_, reason) in LASTING.items()
    }
    assert [n for n, record in records.items() if record.status == "missing"] == [600_001, 600_002]
    assert sorted(file.name for file in (tmp_path / "root/raw").iterdir()) == sorted(f"pg{n}.txt" for n in had)
    assert {entry.name for entry in tmp_path.iterdir()} == {"root"}  # nothing stands outside
    for number in had:  # no answer that was good was asked for again
        good = [path for path in requests if path in files and number_of(path) == number]
        assert len(good) == 1 + (good[0] in faults and faults[good[0]].times == 1), number


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


def test_a_host_that_cannot_be_had_ends_the_harvest_and_bad_books_do_not() -> None:
    patience = harvest.Patience(3)
    for reason in ("unreachable", "throttled", "html", "unreachable", "throttled"):
        patience.told(harvest.Record("pg1", "failed", reason))
    with pytest.raises(UserError, match="the last 3 books failed since no host could be had, of the last: no route"):
        patience.told(harvest.Record("pg1", "failed", "unreachable", "no route"))


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


def test_every_mirror_has_a_name_before_the_next_name_is_tried() -> None:
    assert harvest.urls_of(7, ["http://a/x/", "http://b"])[:3] == (
        "http://a/x/7/pg7.txt",
        "http://b/7/pg7.txt",
        "http://a/x/7/pg7-0.txt",
    )
    assert harvest.urls_of(7, ["http://a"], utf8_first=True)[0] == "http://a/7/pg7-0.txt"
    assert sorted(harvest.urls_of(7, ["http://a"])) == sorted(harvest.urls_of(7, ["http://a"], utf8_first=True))
