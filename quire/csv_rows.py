"""Rows of CSV and TSV files in ranges of bytes that end where rows do: a quoted field may hold ends of lines.

Read strictly by RFC 4180: what is quoted wrongly is an error of its row, not guessed at. Every value is a string, an
empty one is None.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

SUFFIXES = {".csv": ",", ".tsv": "\t"}
# Characters of a field, so that a quote that is never closed takes no more than that with it; the limit is Python's own
# and of the whole process.
csv.field_size_limit(max(csv.field_size_limit(), 2**26))


class Range(NamedTuple):
    """Bytes [start, end) of a file, and the number of its first row, the header not counted."""

    start: int
    end: int
    first_row: int


class Trouble(NamedTuple):
    """Why a row is not used: a word to count by, and a sentence to read."""

    reason: str
    detail: str


def header(stream: BinaryIO, delimiter: str) -> list[str]:
    """The names of the columns, from the beginning of a file. Raises csv.Error for none, or for a name twice."""
    return _header(_rows(stream, 0, delimiter))[0]


def cut(stream: BinaryIO, delimiter: str, piece_bytes: int, *, whole: bool = True) -> tuple[list[str], list[Range]]:
    """The columns, and ranges of about `piece_bytes` that tile the rows; `stream` stands at the file's beginning.

    Of a file that is cut off (not `whole`) the last row is left out, since it may be half a row. Raises csv.Error as
    `header` does.
    """
    rows = _rows(stream, 0, delimiter)
    names, last = _header(rows)
    ranges: list[Range] = []
    before, number = last, 0  # where the row before the last one ends; rows so far
    for end, fields in rows:
        if not ranges or last - ranges[-1].start >= piece_bytes:
            ranges.append(Range(last, last, number))
        ranges[-1] = ranges[-1]._replace(end=end)
        before, last, number = last, end, number + bool(fields)
    if ranges and not whole:
        ranges[-1] = ranges[-1]._replace(end=before)
    return names, [part for part in ranges if part.start < part.end]


def records(
    stream: BinaryIO, part: Range, names: Sequence[str], delimiter: str, wanted: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any] | Trouble]]:
    """(row, its `wanted` columns or what is wrong with it) of a range; `stream` stands at the range's start."""
    number = part.first_row
    for end, fields in _rows(stream, part.start, delimiter):
        if end > part.end:
            return
        if fields:  # a blank line is no row
            yield number, fields if isinstance(fields, Trouble) else _record(fields, names, wanted)
            number += 1
        if end == part.end:
            return


def _rows(stream: BinaryIO, place: int, delimiter: str) -> Iterator[tuple[int, list[str] | Trouble]]:
    """(the byte behind it, its fields or what is wrong with it) of each row from `place` on."""

    def lines() -> Iterator[str]:
        nonlocal place
        while line := stream.readline():
            text = line.decode("utf-8", "surrogateescape")
            text = text if place else text.removeprefix("\ufeff")
            place += len(line)
            yield text

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        begun = place
        try:
            fields: list[str] | Trouble | None = next(reader, None)
        except csv.Error as error:  # the reader goes on with the next line
            fields = Trouble("not_csv", f"{error}, in bytes {begun} to {place}")
        if fields is None:
            return
        yield place, fields


def _header(rows: Iterator[tuple[int, list[str] | Trouble]]) -> tuple[list[str], int]:
    end, names = next(rows, (0, []))
    if isinstance(names, Trouble):
        raise csv.Error(names.detail)
    if not names:
        raise csv.Error("no header in the first line")
    for name in names:
        if names.count(name) > 1:
            raise csv.Error(f"the header names {name!r} twice")
    if not _is_utf8(names):
        raise csv.Error(f"a header that is not UTF-8: {names!r:.80}")
    return names, end


def _record(fields: list[str], names: Sequence[str], wanted: Sequence[str] | None) -> dict[str, Any] | Trouble:
    if len(fields) != len(names):
        return Trouble("wrong_columns", f"{len(fields)} fields, the header has {len(names)}: {fields!r:.80}")
    found = {n: field or None for n, field in zip(names, fields, strict=True) if wanted is None or n in wanted}
    return found if _is_utf8(filter(None, found.values())) else Trouble("bad_encoding", f"not UTF-8: {fields!r:.80}")


def _is_utf8(texts: Iterable[str]) -> bool:
    """A byte that is not UTF-8 has become half a surrogate pair."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
