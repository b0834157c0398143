"""A Project Gutenberg with every trouble there is: its books, how each is answered, and what must become of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
import tiny
from gutenberg_server import SHARED, Fault, marked, path_of, small_book

NAMES = ("pg{id}.txt", "pg{id}-0.txt", "pg{id}.txt.utf-8", "pg{id}-utf8.txt", "pg{id}-8.txt")
PASSING = [  # each of these ends before the attempts do
    Fault("status", 1, "503 Busy|0"),
    Fault("status", 1, "429 Slow down|date:0"),
    Fault("status", 1, "500 Broken"),
    Fault("reset", 1),
    Fault("reset", 1, "late"),
    Fault("half", 1),
    Fault("half_gzip", 1),
    Fault("charset", value="koi8-r"),
    Fault("half", 1, "close"),  # only the missing END line shows that such a half is one
]
LASTING = [  # what never ends, and the reason that must be recorded
    (Fault("drip"), "too_slow"),
    (Fault("stall"), "timeout"),
    (Fault("reset"), "reset"),
    (Fault("reset", value="late"), "reset"),
    (Fault("half"), "truncated"),
    (Fault("half", value="short"), "truncated"),
    (Fault("half", value="close"), "truncated"),
    (Fault("half_gzip"), "truncated"),
    (Fault("status", value="403 Forbidden"), "refused_by_host"),
    (Fault("status", value="404 Not Found"), "absent"),
    (Fault("status", value="410 Gone"), "absent"),
    (Fault("status", value="429 Slow down"), "throttled"),
    (Fault("status", value="503 Busy|0"), "throttled"),
    (Fault("status", value="500 Broken"), "server_error"),
    (Fault("html"), "html"),
    (Fault("html", value="text/plain"), "html"),
    (Fault("bytes", value="<!-- no book --><html><body>Sorry</body></html>"), "html"),
    (Fault("bytes", value="<head><title>503 Service Unavailable</title></head>"), "html"),
    (Fault("bytes", value='<?xml version="1.0"?><!-- a --> <!-- b -->\n<html>'), "html"),
    (Fault("bytes", value=""), "empty"),
    (Fault("bytes", value="\0\1\2"), "binary"),
    (Fault("bytes", value=("Πίνακας περιεχομένων ".encode() * 50 + b"\xcf").decode("latin-1")), "undecodable"),
    (Fault("endless"), "too_large"),
    (Fault("bomb"), "too_large"),
    (Fault("redirect", value="/cache/epub/{id}/pg{id}.txt"), "redirect_loop"),
    (Fault("redirect", value="on"), "redirect_loop"),
    (Fault("redirect", value="http://localhost:9/{id}.txt"), "foreign_host"),
    (Fault("redirect", value="file:///etc/passwd"), "foreign_host"),
    (Fault("redirect", value="http://host:port/"), "bad_redirect"),
]
# One address of the book answers so, and the others say 404; of the other faults every address has them.
_OF_ONE_ADDRESS = ("drip", "stall", "endless", "bomb", "half", "half_gzip", "reset")
needs_books = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared books")


def titled(title: str, author: str, seed: int) -> Callable[[int], bytes]:
    """A book long enough that cleaning keeps more than half of it, whatever its title."""
    return lambda number: marked(title, author, tiny.book("sea", "w", 800, seed=seed)).encode()


def latin(number: int) -> bytes:
    """Bytes that are no UTF-8, though the server says so."""
    text = small_book(number).decode().replace("UTF-8", "ISO-8859-1").replace("*** END", "Café.\r\n*** END")
    return text.encode("latin-1")


ODD = [  # books that can be had, and invite mistakes
    titled("../../etc/x", "../../../tmp/y", 1),
    titled("t" * 10_000, "a" * 5_000, 2),
    titled("/etc/passwd", "C:\\windows", 3),
    titled("One title", "One Author", 4),  # and the same under another id: the same text, and another one
    titled("One title", "One Author", 4),
    titled("One title", "One Author", 5),
    latin,
]


@dataclass(frozen=True)
class World:
    """What a server serves, and what a harvest of all its numbers must end in."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str | int, Fault] = field(default_factory=dict)
    lies: dict[int, str] = field(default_factory=dict)  # the path of every book that can be had
    reasons: dict[int, str] = field(default_factory=dict)  # of every other

    @property
    def numbers(self) -> list[int]:
        return sorted({*self.lies, *self.reasons})

    def bodies(self) -> dict[int, bytes]:
        """Of every book that can be had."""
        return {number: self.files[path] for number, path in self.lies.items()}

    def outcomes(self) -> dict[int, tuple[str, str]]:
        """The status and the reason of every number."""
        others = {n: ("missing" if reason == "absent" else "failed", reason) for n, reason in self.reasons.items()}
        return others | dict.fromkeys(self.lies, ("done", ""))

    def failed(self) -> int:
        return sum(status == "failed" for status, _ in self.outcomes().values())

    def requests_of_good(self, number: int) -> int:
        """How often the address where a book lies is asked when nobody is killed: once more for a fault that passes."""
        return 1 + (self.faults.get(self.lies[number], Fault("none")).times == 1)


def build(numbers: Sequence[int], real: Mapping[int, bytes], num_sentences: int = 40) -> World:
    """A world of these ids and of the real books by theirs, its troubles spread over them evenly."""
    made = World()
    free = [number for number in numbers if number not in real]
    spots = free[:: len(free) // (len(LASTING) + len(ODD) + 1)]
    for number, (fault, reason) in zip(spots, LASTING, strict=False):
        made.files[path_of(number)] = small_book(number)
        key = path_of(number) if fault.kind in _OF_ONE_ADDRESS else number
        made.faults[key] = replace(fault, value=fault.value.replace("{id}", str(number)))
        made.reasons[number] = reason
    for number, book in zip(spots[len(LASTING) :], ODD, strict=False):
        _place(made, number, path_of(number), book(number))
    moved = spots[len(LASTING) + len(ODD)]
    _place(made, moved, f"/mirror/{moved}.txt", small_book(moved))
    made.faults[moved] = Fault("redirect", value=f"/mirror/{moved}.txt")
    for place, number in enumerate(sorted({*free, *real} - {*made.lies, *made.reasons})):
        if number not in real and place % 11 == 10:
            made.reasons[number] = "absent"
            continue
        path = path_of(number, NAMES[place // 5 % 5 if place % 5 == 0 else 0])
        _place(made, number, path, real.get(number) or small_book(number, num_sentences))
        if place % 3 == 1:
            made.faults[path] = PASSING[place // 3 % len(PASSING)]
    return made


def _place(made: World, number: int, path: str, body: bytes) -> None:
    made.files[path], made.lies[number] = body, path
