"""The verification sets of PAN (2020 and later): pairs of texts, the truth about them, and answers.

pairs   {"id": "...", "pair": ["text", "text"], "fandoms": [...]}      a line, plain or .gz
truth   {"id": "...", "same": true, "authors": ["...", "..."]}
answers {"id": "...", "value": 0.73}                                   .5 means "I do not know"
"""

import gzip
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from quire.errors import UserError


class Problem(NamedTuple):
    """Two texts."""

    id: str
    a: str
    b: str


class Truth(NamedTuple):
    """Whether the author is the same; the authors, or the problem's own id twice where the set does not tell them."""

    same: bool
    authors: tuple[str, str]


class Problems:
    """The problems of a file by its lines. Going forward, no line is read twice."""

    def __init__(self, path: str):
        self.path, self._next = path, 0
        self._lines: Iterator[tuple[str, bytes]] | None = None

    def read(self, start: int = 0, stop: int | None = None) -> list[Problem]:
        """Those of the lines [start, stop). Raises UserError naming file, line and field."""
        if self._lines is None or start < self._next:
            self._next, self._lines = 0, _lines(self.path)
        lines, self._lines = self._lines, None  # an error leaves them nowhere
        wanted = islice(lines, start - self._next, None if stop is None else stop - self._next)
        found = [_problem(line, where) for where, line in wanted]
        self._next, self._lines = start + len(found), lines
        return found


def ids(path: str) -> set[str]:
    """The problems' ids, one a line. Raises UserError for a file without one, and for an id that stands twice."""
    seen: set[str] = set()
    for where, row in _rows(path):
        name = _id(row, where)
        if name in seen:
            raise UserError(f"{where}: id: {name!r} stands twice")
        seen.add(name)
    if not seen:
        raise UserError(f"{path}: no problem in it")
    return seen


def truth(path: str) -> dict[str, Truth]:
    """The truth by problem. Raises UserError naming file, line and field, also for a problem that stands twice."""
    found: dict[str, Truth] = {}
    for where, row in _rows(path):
        name, same = _id(row, where), _field(row, "same", bool, where)
        authors = row.get("authors", [name, name])
        if not isinstance(authors, list) or len(authors) != 2:
            raise UserError(f"{where}: authors: expected two, got {json.dumps(authors)[:80]}")
        if name in found:
            raise UserError(f"{where}: id: {name!r} stands twice")
        found[name] = Truth(same, (str(authors[0]), str(authors[1])))
    if not found:
        raise UserError(f"{path}: no truth in it")
    return found


def answers(ids: Iterable[str], values: Iterable[float]) -> str:
    """answers.jsonl as PAN's evaluators read it. Raises UserError for a value that is no probability."""
    lines = []
    for name, value in zip(ids, values, strict=True):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise UserError(f"value of {name!r} = {value}: expected a number from 0 to 1")
        lines.append(json.dumps({"id": name, "value": round(float(value), 6)}) + "\n")
    return "".join(lines)


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((where, _parsed(line, where)) for where, line in _lines(path))


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
    """Where each line stands, and the line."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file (looked in {Path.cwd()})")
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                yield f"{path}, line {number}", line
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: cut off or not gzip ({error}); fetch it again") from error


def _problem(line: bytes, where: str) -> Problem:
    row = _parsed(line, where)
    pair = _field(row, "pair", list, where)
    if len(pair) != 2 or not all(isinstance(text, str) and text.strip() for text in pair):
        raise UserError(f"{where}: pair: expected two texts that are not empty")
    return Problem(_id(row, where), *pair)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{where}: not JSON in UTF-8: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, got {type(row).__name__}")
    return row


def _id(row: dict[str, Any], where: str) -> str:
    return _field(row, "id", str, where)


def _field(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in row:
        raise UserError(f"{where}: {name}: missing; the line has {', '.join(row) or 'nothing'}")
    if not isinstance(row[name], kind):
        raise UserError(f"{where}: {name}: expected {kind.__name__}, got {json.dumps(row[name])[:80]}")
    return row[name]
