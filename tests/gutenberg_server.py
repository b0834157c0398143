"""A Project Gutenberg on loopback: real books at the Project's addresses, and every way in which a server misbehaves.

Raw sockets, since no server library can be made to send half a body and reset the connection.
"""

import gzip
import json
import os
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Self

import tiny

SHARED = Path(__file__).parents[2] / "shared" / "data" / "books"
LAST_MODIFIED = "Tue, 01 Sep 2020 10:00:00 GMT"
_HTML = b"<!DOCTYPE html>\n<html><head><title>Sorry</title></head><body>Are you a robot?</body></html>\n"


def marked(title: str, author: str, text: str, charset: str = "UTF-8") -> str:
    """A book between the Project's header and its licence, as it lies on the Project's server."""
    return (
        f"The Project Gutenberg EBook of {title}, by {author}\r\n\r\nTitle: {title}\r\n\r\nAuthor: {author}\r\n\r\n"
        f"Language: English\r\n\r\nCharacter set encoding: {charset}\r\n\r\n"
        f"*** START OF THE PROJECT GUTENBERG EBOOK {title[:60]} ***\r\n\r\n{text}\r\n\r\n"
        f"*** END OF THE PROJECT GUTENBERG EBOOK {title[:60]} ***\r\n\r\nSTART: FULL LICENSE\r\n\r\n"
        "The Project Gutenberg licence.\r\n"
    )


def small_book(number: int, num_sentences: int = 40) -> bytes:
    """A book of its own for each number."""
    topic = sorted(tiny.TOPICS)[number % len(tiny.TOPICS)]
    text = tiny.book(topic, f"w{number}", num_sentences, seed=number)
    return marked(f"Book {number}", f"Author {number % 7}", text).encode()


def real_books() -> dict[int, bytes]:
    """The shared books by their Gutenberg ids (above 900,000 where a file states none); none without them."""
    if not SHARED.is_dir():
        return {}
    rows = [json.loads(line) for line in (SHARED / "manifest.jsonl").read_text("utf-8").splitlines()]
    return {
        row.get("gutenberg_id") or 900_001 + place: (SHARED / row["file"]).read_bytes()
        for place, row in enumerate(rows)
        if (SHARED / row["file"]).is_file()
    }


@dataclass(frozen=True)
class Fault:
    """How an id is answered: `times` requests so, then as it should be. `value` is what the kind needs."""

    kind: str
    times: float = float("inf")
    value: str = ""


class Server:
    """Serves `files`, path -> bytes, with a fault per path or Gutenberg id. Notes every request."""

    def __init__(self, files: Mapping[str, bytes], faults: Mapping[str | int, Fault] | None = None, port: int = 0):
        """`port`: 0 for any that is free."""
        self.address = ("127.0.0.1", port)
        self.files, self.faults = dict(files), dict(faults or {})
        self.paths: list[str] = []  # one for each request, in order
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.robots = b""
        self.etags = True
        self.modified: dict[str, str] = {}  # of a path, where it is not LAST_MODIFIED
        self.max_open = self.open = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._seen: Counter[str | int] = Counter()

    def __enter__(self) -> Self:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer._handle(self)

        class Listener(socketserver.ThreadingTCPServer):
            daemon_threads = allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A client that goes away is no matter here."""

        self.listener = Listener(self.address, Handler)
        threading.Thread(target=self.listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.listener.shutdown()
        self.listener.server_close()

    @property
    def port(self) -> int:
        return self.listener.server_address[1]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def base(self) -> str:
        """What `base_urls` takes."""
        return f"http://{self.host}/cache/epub"

    def requests_of(self, number: int) -> list[str]:
        return [path for path in self.paths if number_of(path) == number]

    def _handle(self, handler: socketserver.StreamRequestHandler) -> None:
        line = handler.rfile.readline().decode("latin-1").split()
        if len(line) < 2:
            return
        headers: dict[str, str] = {}
        while (header := handler.rfile.readline().decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        path = line[1]
        if path == "/robots.txt":  # not noted: what tests count are books
            status = "200 OK" if self.robots else "404 Not Found"
            handler.wfile.write(_head(status, content_length=len(self.robots)) + self.robots)
            return
        with self.lock:
            self.paths.append(path)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.open += 1
            self.max_open = max(self.max_open, self.open)
            fault = self._fault(path)
        held = b""
        try:
            for block in _ANSWERS[fault.kind](self, path, headers, fault):
                handler.wfile.write(held)
                held = block
        except _Reset:
            handler.wfile.write(held)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(handler.connection.detach())  # socketserver would end it in order first
            return
        finally:
            with self.lock:
                self.open -= 1
        handler.wfile.write(held)  # only now can the client know that it is answered, and ask again

    def _fault(self, path: str) -> Fault:
        """Of the path itself, else of its book."""
        for key in (path.partition("?")[0], number_of(path)):
            if key in self.faults:
                self._seen[key] += 1
                if self._seen[key] <= self.faults[key].times:
                    return self.faults[key]
        return Fault("none")


def number_of(path: str) -> int | None:
    parts = path.split("/")
    return int(parts[3]) if path.startswith("/cache/epub/") and parts[3].isdecimal() else None


class _Reset(Exception):
    pass


Answer = Callable[[Server, str, dict[str, str], Fault], Iterator[bytes]]


def _head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _etag(body: bytes) -> str:
    return f'"{len(body)}-{sum(body[:4096])}"'


def _plain(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    body = server.files.get(path)
    if body is None:
        yield _head("404 Not Found", content_length=0)
        return
    modified = server.modified.get(path, LAST_MODIFIED)
    known = {"etag": _etag(body)} if server.etags else {}
    if server.etags and headers.get("if-none-match") == _etag(body):
        yield _head("304 Not Modified", **known)
    elif not server.etags and headers.get("if-modified-since") == modified:
        yield _head("304 Not Modified")
    else:
        known |= {"last_modified": modified, "content_type": f"text/plain; charset={fault.value or 'utf-8'}"}
        if "gzip" in headers.get("accept-encoding", "") and path.endswith((".txt", ".csv")):
            packed = gzip.compress(body, 1)
            yield _head("200 OK", content_length=len(packed), content_encoding="gzip", **known)
            yield packed
        else:
            yield _head("200 OK", content_length=len(body), **known)
            yield body


def _status(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """`value`: the status line, then after a bar the value of Retry-After (`date:3` for the date in 3 s)."""
    status, _, pause = fault.value.partition("|")
    if pause.startswith("date:"):
        pause = formatdate(time.time() + float(pause[5:]), usegmt=True)
    yield _head(status, content_length=0, **({"retry_after": pause} if pause else {}))


def _html(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    yield _head("200 OK", content_length=len(_HTML), content_type=fault.value or "text/html; charset=utf-8")
    yield _HTML


def _bytes(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """`value` as the whole body."""
    body = fault.value.encode("latin-1")
    yield _head("200 OK", content_length=len(body), content_type="text/plain")
    yield body


def _together(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """As it should be, once `value` requests have been open at once, and a moment later, in which more may come."""
    while server.max_open < int(fault.value) and not server.closing.wait(0.01):
        pass
    server.closing.wait(0.1)
    yield from _plain(server, path, headers, Fault("none"))


def _half(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """Half the body under a Content-Length of the whole, of the half (`short`), or none at all (`close`)."""
    body = server.files[path]
    length = {"short": {"content_length": len(body) // 2}, "close": {}}.get(fault.value, {"content_length": len(body)})
    yield _head("200 OK", content_type="text/plain", **length)
    yield body[: len(body) // 2]


def _half_gzip(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    packed = gzip.compress(server.files[path])[:-20]
    yield _head("200 OK", content_type="text/plain", content_encoding="gzip", content_length=len(packed))
    yield packed


def _reset(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """Before the answer, or in the middle of it (`late`)."""
    if fault.value == "late":
        body = server.files[path]
        yield _head("200 OK", content_type="text/plain", content_length=len(body))
        yield body[: len(body) // 2]
    raise _Reset


def _stall(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    server.closing.wait(30)
    yield b""


def _drip(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """A byte now and then: never silent for long, never done."""
    yield _head("200 OK", content_type="text/plain", content_length=len(server.files[path]))
    for byte in server.files[path]:
        yield bytes([byte])
        if server.closing.wait(0.02):
            return


def _endless(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    yield _head("200 OK", content_type="text/plain")
    while not server.closing.is_set():
        yield b"and so on and on \n" * 4_000


def _bomb(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    packed = gzip.compress(b"a" * 50_000_000, 1)
    yield _head("200 OK", content_type="text/plain", content_encoding="gzip", content_length=len(packed))
    yield packed


def _redirect(server: Server, path: str, headers: dict[str, str], fault: Fault) -> Iterator[bytes]:
    """To `value`; to itself with a longer query for `on`, so that no address comes twice."""
    yield _head("302 Found", location=f"{path}?{len(path)}" if fault.value == "on" else fault.value, content_length=0)


_ANSWERS: dict[str, Answer] = {
    "none": _plain,
    "charset": _plain,
    "status": _status,
    "html": _html,
    "bytes": _bytes,
    "together": _together,
    "half": _half,
    "half_gzip": _half_gzip,
    "reset": _reset,
    "stall": _stall,
    "drip": _drip,
    "endless": _endless,
    "bomb": _bomb,
    "redirect": _redirect,
}


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now: float = 1_000_000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def path_of(number: int, name: str = "pg{id}.txt") -> str:
    return f"/cache/epub/{number}/{name.format(id=number)}"
