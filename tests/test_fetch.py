"""A body comes whole and byte for byte, or a reason comes in its place; a host is asked no oftener than it bears."""

import asyncio
import threading
import time
from email.utils import formatdate

import pytest
from gutenberg_server import LAST_MODIFIED, Clock, Fault, Server, path_of, small_book

from quire import fetch, harvest
from quire.errors import UserError
from quire.fetch import Client, Fetched, Known, Limits, NotFetched
from quire.pace import Pace

BOOK = small_book(5)
FILES = {path_of(5): BOOK, "/mirror/5.txt": BOOK}


def get(server: Server, *urls: str, clock: Clock | None = None, **changes: object) -> Fetched:
    """What a client makes of the addresses, by default of book 5's only one; waiting costs no time."""
    clock = clock or Clock()
    limits = {"read": 5.0, "total": 10.0, "attempts": 3} | changes
    known, max_bytes, rate = (limits.pop(key, other) for key, other in (("known", {}), ("size", 10**6), ("rate", 1e9)))

    async def run() -> Fetched:
        pace = Pace(rate, clock)
        options = {"sleep": clock.sleep, "draw": lambda: 0.5, "now": lambda: clock.now}
        async with Client(
            pace, Limits(**limits), agent="test", hosts=[server.host], max_bytes=max_bytes, **options
        ) as client:
            return await client.first(urls or (f"{server.base}/5/pg5.txt",), harvest.check_book, known)

    return asyncio.run(run())


def trouble(server: Server, *urls: str, **changes: object) -> NotFetched:
    with pytest.raises(NotFetched) as caught:
        get(server, *urls, **changes)
    return caught.value


def test_a_book_comes_byte_for_byte_and_says_where_it_was() -> None:
    with Server(FILES) as server:
        found = get(server)
    assert (found.body, found.url, found.last_modified) == (BOOK, f"{server.base}/5/pg5.txt", LAST_MODIFIED)
    assert server.headers[0]["user-agent"] == "test"


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        (Fault("status", value="404 Not Found"), "absent", 1),
        (Fault("status", value="410 Gone"), "absent", 1),
        (Fault("status", value="403 Forbidden"), "refused_by_host", 1),
        (Fault("status", value="429 Too Many Requests"), "throttled", 3),
        (Fault("status", value="503 Busy"), "throttled", 3),
        (Fault("status", value="500 Broken"), "server_error", 3),
        (Fault("status", value="502 Bad Gateway"), "server_error", 3),
        (Fault("html"), "html", 1),
        (Fault("html", value="text/plain"), "html", 1),
        (Fault("bytes", value=""), "empty", 1),
        (Fault("bytes", value="\0\1\2"), "binary", 1),
        (Fault("half"), "truncated", 3),
        (Fault("half", value="short"), "truncated", 3),
        (Fault("half", value="close"), "truncated", 3),
        (Fault("half_gzip"), "truncated", 3),
        (Fault("reset"), "reset", 3),
        (Fault("reset", value="late"), "reset", 3),
        (Fault("endless"), "too_large", 1),
        (Fault("bomb"), "too_large", 1),
        (Fault("redirect", value=path_of(5)), "redirect_loop", 1),
        (Fault("redirect", value="on"), "redirect_loop", 4),
        (Fault("redirect", value="http://localhost:1/5.txt"), "foreign_host", 1),
        (Fault("redirect", value="http://host:port/"), "bad_redirect", 1),
        (Fault("redirect", value="file:///etc/passwd"), "foreign_host", 1),
    ],
    ids=lambda value: f"{value.kind} {value.value[:20]!a}" if isinstance(value, Fault) else None,
)
def test_what_is_no_book_has_its_reason_and_is_asked_for_only_as_often_as_makes_sense(
    fault: Fault, reason: str, requests: int
) -> None:
    with Server(FILES, {5: fault}) as server:
        assert trouble(server).reason == reason
        assert len(server.paths) == requests


@pytest.mark.parametrize(("kind", "reason"), [("stall", "timeout"), ("drip", "too_slow")])
def test_a_slow_host_is_left_in_time(kind: str, reason: str) -> None:
    with Server(FILES, {5: Fault(kind)}) as server:
        assert trouble(server, attempts=2, read=0.2, total=0.4).reason == reason
        assert len(server.paths) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 2, "503 Busy"),
        Fault("status", 2, "429 Slow down|7"),
        Fault("status", 2, "500 Broken"),
        Fault("reset", 2),
        Fault("reset", 2, "late"),
        Fault("half", 2),
        Fault("half", 2, "close"),
        Fault("half_gzip", 2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.value}",
)
def test_what_passes_is_waited_for(fault: Fault) -> None:
    with Server(FILES, {5: fault}) as server:
        assert get(server).body == BOOK
        assert len(server.paths) == 3


def test_the_next_address_is_tried_where_the_trouble_is_of_the_file_alone() -> None:
    second = path_of(5, "pg{id}-0.txt")
    for fault in (Fault("html"), Fault("status", value="500 Broken"), Fault("half")):
        with Server(FILES | {second: BOOK}, {path_of(5): fault}) as server:
            assert get(server, f"{server.base}/5/pg5.txt", f"{server.base}/5/pg5-0.txt").asked.endswith("-0.txt")
    with Server(FILES | {second: BOOK}, {path_of(5): Fault("status", value="503 Busy")}) as server:
        found = trouble(server, f"{server.base}/5/pg5.txt", f"{server.base}/5/pg5-0.txt")
        assert found.reason == "throttled" and second not in server.paths  # a busy host is not asked for more


def test_another_mirror_is_asked_where_one_is_in_trouble() -> None:
    with Server(FILES, {5: Fault("status", value="503 Busy")}) as busy, Server(FILES) as other:
        found = get(busy, f"{busy.base}/5/pg5.txt", f"{other.base}/5/pg5.txt")
        assert found.url == f"{other.base}/5/pg5.txt"


def test_absent_is_what_no_address_has() -> None:
    with Server({}) as server:
        urls = harvest.urls_of(5, [server.base])
        assert trouble(server, *urls).reason == "absent"
        assert server.paths == [
            path_of(5, name)
            for name in ("pg{id}.txt", "pg{id}-0.txt", "pg{id}.txt.utf-8", "pg{id}-utf8.txt", "pg{id}-8.txt")
        ]


def test_waits_double_with_jitter_and_never_fall_below_what_is_asked_for() -> None:
    clock = Clock()
    with Server(FILES, {5: Fault("reset")}) as server:
        trouble(server, clock=clock, attempts=4, first_wait=0.5)
    assert clock.slept == [0.75, 1.5, 3.0]  # the draw of the tests is a half
    clock = Clock()
    with Server(FILES, {5: Fault("status", 1, "429 Slow down|40")}) as server:
        get(server, clock=clock)
    assert clock.slept[0] == 40


def test_a_pause_asked_for_by_date_is_kept() -> None:
    date = formatdate(1_000_000 + 90, usegmt=True)
    assert fetch.retry_after(date, 1_000_000) == 90
    assert fetch.retry_after(date, 2_000_000) == 0
    assert fetch.retry_after("120", 0) == 120
    assert fetch.retry_after("soon", 0) is None and fetch.retry_after(None, 0) is None


def test_a_date_without_a_zone_is_of_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert fetch.retry_after("Thu Jan  1 00:02:00 1970", 60) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_pause_asked_for_at_the_last_attempt_is_kept_for_the_next_book(attempts: int) -> None:
    clock = Clock()
    pace = Pace(1e9, clock)
    with Server(FILES, {5: Fault("status", value="429 Slow down|40")}) as server:

        async def run() -> tuple[float, float]:
            options = {"agent": "t", "hosts": [], "max_bytes": 10**6, "sleep": clock.sleep, "now": clock}
            async with Client(pace, Limits(attempts=attempts), **options) as client:
                with pytest.raises(NotFetched, match="throttled"):
                    await client.get(f"{server.base}/5/pg5.txt", harvest.check_book)
            return (await pace.turn()).wait, sum(clock.slept)

        wait, slept = asyncio.run(run())
        assert wait == 40 and slept == pytest.approx(40 * (attempts - 1))
        assert len(server.paths) == attempts
    long = Server(FILES, {5: Fault("status", value="503 Busy|7200")})
    with long as server, pytest.raises(UserError, match="left alone for 7,200 s"):
        get(server, attempts=1)


def test_a_host_that_asks_for_a_longer_pause_ends_the_run() -> None:
    with Server(FILES, {5: Fault("status", value="503 Busy|7200")}) as server:
        with pytest.raises(UserError, match="left alone for 7,200 s, longer than max_wait = 60: run the same line"):
            get(server, f"{server.base}/5/pg5.txt", f"{server.base}/5/pg5-0.txt", max_wait=60.0)
        assert len(server.paths) == 1


def test_a_throttled_request_pauses_every_other() -> None:
    clock = Clock()
    pace = Pace(1e9, clock)
    with Server(FILES, {5: Fault("status", 1, "503 Busy|30")}) as server:

        async def run() -> float:
            options = {"agent": "t", "hosts": [], "max_bytes": 10**6, "now": clock}
            gate = asyncio.Event()

            async def sleep(seconds: float) -> None:
                gate.set()
                await asyncio.sleep(0)
                clock.now += seconds

            async with Client(pace, Limits(), sleep=sleep, **options) as client:
                task = asyncio.create_task(client.get(f"{server.base}/5/pg5.txt", harvest.check_book))
                await gate.wait()
                wait = (await pace.turn()).wait
                await task
                return wait

        assert asyncio.run(run()) == 30


def test_redirects_are_followed_on_allowed_hosts() -> None:
    with Server(FILES, {5: Fault("redirect", value="/mirror/5.txt")}) as server:
        found = get(server)
        assert (found.body, found.url) == (BOOK, f"http://{server.host}/mirror/5.txt")
        assert found.asked == f"{server.base}/5/pg5.txt"


def test_every_request_takes_a_turn_redirects_too() -> None:
    clock = Clock()
    with Server(FILES, {5: Fault("redirect", value="/mirror/5.txt")}) as server:
        get(server, clock=clock, rate=0.5)
    assert sum(clock.slept) == 2


def test_bytes_stay_as_they_are_whatever_charset_the_server_claims() -> None:
    latin = BOOK.replace(b"UTF-8", b"ISO-8859-1") + "Café\r\n".encode("latin-1")
    with Server({path_of(5): latin}, {5: Fault("charset", value="utf-8")}) as server:
        assert get(server).body == latin
    damaged = "Πίνακας περιεχομένων ".encode() * 50 + b"\xcf"
    with Server({path_of(5): damaged}) as server:
        assert trouble(server).reason == "undecodable"


def test_a_half_is_none_where_neither_a_length_nor_an_end_line_proves_the_whole() -> None:
    unmarked = b"A line of a book that has no marks.\r\n" * 200
    with Server({path_of(5): unmarked}, {5: Fault("half", 2, "close")}) as server:
        assert get(server).body == unmarked
        assert len(server.paths) == 3
    harvest.check_book(BOOK, "text/plain", whole=False)
    harvest.check_book(unmarked, "text/plain", whole=False, may_lack_end=True)
    with pytest.raises(NotFetched, match="neither a Content-Length nor an END line proves"):
        harvest.check_book(unmarked, "text/plain", whole=False)


@pytest.mark.parametrize(
    "body",
    [
        b"\n<!DOCTYPE  HTML PUBLIC>",
        b"\xef\xbb\xbf<html lang=en>",
        b"<!-- x --><html>",
        b"<head><title>503 Service Unavailable</title></head>",
        b'<?xml version="1.0"?><!-- a -->\n<!-- b --><html xmlns="x">',
        b"<TITLE>Robot?</TITLE>",
        b"<!-- " + b"a long licence " * 500 + b"--><body>",
    ],
    ids=lambda body: ascii(body[:20]),
)
def test_a_page_is_no_book_however_it_begins(body: bytes) -> None:
    with pytest.raises(NotFetched, match="a page in place of a text"):
        harvest.check_book(body, "text/plain")


@pytest.mark.parametrize(
    "text", ["<i>A tale</i> of <html>", "<!-- -->" * 3_000 + "A tale", "<titled> <bodyguard>", "<!--"]
)
def test_a_book_that_begins_like_a_page_is_a_book(text: str) -> None:
    harvest.check_book(text.encode(), "text/plain")


@pytest.mark.parametrize("kind", ["application/json", "application/problem+json; charset=utf-8", "text/xml"])
def test_a_message_to_programs_is_no_book(kind: str) -> None:
    with pytest.raises(NotFetched, match="no_text.*the host says that it is .*rate limit"):
        harvest.check_book(b'{"error": "rate limit exceeded, try again in a while"}', kind)


@pytest.mark.parametrize("kind", ["", "text/plain; charset=utf-8", "application/octet-stream", "text/x-json-notes"])
def test_a_book_is_one_whatever_a_host_that_does_not_know_calls_it(kind: str) -> None:
    harvest.check_book(BOOK, kind)


def test_a_body_is_looked_at_beside_the_requests_not_between_them() -> None:
    threads = []
    with Server(FILES) as server:

        async def run() -> None:
            async with Client(Pace(1e9), Limits(), agent="t", hosts=[], max_bytes=10**6) as client:
                await client.get(f"{server.base}/5/pg5.txt", lambda *_: threads.append(threading.get_ident()))

        asyncio.run(run())
    assert threads and threads[0] != threading.get_ident()


def test_what_is_known_is_asked_for_only_if_it_changed() -> None:
    with Server(FILES) as server:
        first = get(server)
        known = {first.asked: Known(first.etag, first.last_modified)}
        again = get(server, known=known)
        assert again.unchanged and not again.body
        server.files[path_of(5)] = BOOK.replace(b"Book 5", b"Book V")
        assert get(server, known=known).body == server.files[path_of(5)]
        assert get(server, known={first.asked: Known('"\xe9"', "am 1. Mai \xff")}).body  # as no header can say


@pytest.mark.parametrize("body", [BOOK.partition(b"*** END")[0], BOOK[: len(BOOK) // 2]])
def test_a_book_without_its_end_is_taken_only_where_that_is_allowed(body: bytes) -> None:
    with pytest.raises(NotFetched, match="no END line"):
        harvest.check_book(body, "text/plain")
    harvest.check_book(body, "text/plain", may_lack_end=True)
    harvest.check_book(b"A text that never was between START and END.", "text/plain")
