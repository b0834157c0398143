"""A few pieces from all over a corpus, for an estimate: no file is looked into but theirs, no large one to its end."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from quire import csv_rows, grouping, readers, streams
from quire.evenly import evenly
from quire.readers import Piece
from quire.storage import Storage

_RATIO = 5  # of text to its compressed bytes, about


def pieces(storage: Storage, files: Sequence[str], piece_bytes: int, count: int) -> tuple[list[Piece], float]:
    """About `count` pieces of `readers.cut`, or as much in small files, evenly spaced; and their share of all bytes.

    Of a compressed file that is larger than a piece only the beginning is read.
    """
    with ThreadPoolExecutor(4) as pool:
        sizes = dict(zip(files, pool.map(storage.size, files), strict=True))
    together = grouping.groups([_text_bytes(file, sizes) for file in files], piece_bytes)
    chosen = spaced([[files[place] for place in group] for group in together], count)
    each = -(-count // len(chosen))
    found: list[Piece] = []
    read = 0.0
    for group in chosen:
        first = group[0]
        if _compressed(first) and _text_bytes(first, sizes) > piece_bytes:
            beginning, share = head(storage, first, piece_bytes)
            found, read = found + beginning, read + share * sizes[first]
            continue
        cut = readers.cut(storage, group, piece_bytes)
        few = cut if len(group) > 1 else spaced(cut, each)
        found, read = found + few, read + sum(sizes[file] for file in group) * len(few) / max(1, len(cut))
    whole = sum(sizes.values())
    return found, min(1.0, read / whole) if whole else 1.0


def _compressed(file: str) -> bool:
    return file.endswith(tuple(streams.CODECS))


def _text_bytes(file: str, sizes: dict[str, int]) -> int:
    return sizes[file] * (_RATIO if _compressed(file) else 1)


def spaced(items: list[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, the first among them."""
    return items[:: max(1, len(items) // count)][:count]


def rows(table: pa.Table, count: int) -> pa.Table:
    """At most `count` rows, evenly spaced."""
    return table.take(pa.array(evenly(table.num_rows, count)))


def head(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], float]:
    """The beginning of a file of lines or of CSV, compressed or not, as pieces, and its share of the file's bytes."""
    if _compressed(file):
        size, share = streams.head(storage, file, piece_bytes)
    else:
        size = min(piece_bytes, whole := storage.size(file))
        share = size / max(1, whole)
    delimiter = readers.csv_delimiter(file)
    if not delimiter:
        return [{"file": file, "start": 0, "end": size}], share
    with streams.opened(storage, file, size) as stream:
        names, ranges = csv_rows.cut(stream, delimiter, size, whole=share == 1)
    return [{"file": file, "columns": names, **part._asdict(), "readable": size} for part in ranges], share
