"""The chunk table by work: whose it is, where its chunks lie, which works and chunks of others are near.

Shape letters: n chunks, w works, m neighbours of all works together.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire.errors import UserError

_COLUMNS = ("chunk_id", "document_id", "work_id", "author", "author_group", "anonymous", "start", "end")
# Characters. In 65 novels at most 71 stand between two sentences that follow each other (white space around verse and
# headings), so that a wider gap holds a sentence; a sentence has 100 on average.
MIN_GAP = 80


@dataclass(frozen=True)
class Works:
    """The chunk table by work. n chunks, sorted by work and in reading order; w works, sorted by id."""

    table: pa.Table  # (n,) rows
    names: list[str]  # (w,)
    keys: list[int]  # (w,) of the random numbers
    work: np.ndarray  # (n,) work of each chunk
    offset: np.ndarray  # (w + 1,) first chunk of each work
    by_author: np.ndarray  # (w,) works sorted by group and author, an anonymous work being an author of its own
    place: np.ndarray  # (w,) where by_author holds each work
    author_first: np.ndarray  # (w,) where by_author holds the first and, exclusive, the last work
    author_last: np.ndarray  # (w,) of the same author
    group_first: np.ndarray  # (w,) and of the same group of authors
    group_last: np.ndarray  # (w,)


def sorted_by_work(chunks: pa.Table, seed: int) -> Works:
    """The chunks of one split by work, with keys of random numbers by seed and work.

    Raises UserError for a column that is missing or has holes, and for chunk ids that repeat.
    """
    _check(chunks)
    work, names = _codes(chunks["work_id"])
    order = np.argsort(work, kind="stable")
    table, work = chunks.select(_COLUMNS).take(order), work[order]
    offset = np.searchsorted(work, np.arange(len(names) + 1))
    author, authors = _codes(table["author"])
    # The author of a work is that of its first chunk with a name.
    named = np.flatnonzero(~numbers(table["anonymous"]))
    named_work, first = np.unique(work[named], return_index=True)
    work_author = len(authors) + np.arange(len(names))
    work_author[named_work] = author[named[first]]
    group, _ = _codes(table["author_group"])
    work_group = group[offset[:-1]]  # the documents of a work are in one group
    by_author = np.lexsort((work_author, work_group))
    place = np.empty_like(by_author)
    place[by_author] = np.arange(len(by_author))
    keys_of_works = (work_group * (int(work_author.max(initial=-1)) + 1) + work_author, work_group)
    bounds = [np.searchsorted(key[by_author], key, side) for key in keys_of_works for side in ("left", "right")]
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest() for name in names)
    keys = [int.from_bytes(digest, "big") for digest in digests]
    return Works(table, names, keys, work, offset, by_author, place, *bounds)


def documents(document_id: pa.ChunkedArray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each chunk's document and the place behind that document's last chunk: (n,) each.

    Raises UserError where the chunks are not in reading order, document by document.
    """
    code, names = _codes(document_id)
    document = np.concatenate([np.zeros(min(1, len(code)), np.int64), np.cumsum(code[1:] != code[:-1])])
    num_runs = int(document.max(initial=-1)) + 1
    if num_runs != len(names):
        raise UserError(f"chunks: {len(names)} documents in {num_runs} pieces; sort the chunks by document")
    back = np.flatnonzero((start[1:] < start[:-1]) & (document[1:] == document[:-1]))
    if len(back):
        raise UserError(f"chunks: {names[code[back[0]]]!r} is not in reading order; sort its chunks by start")
    return document, np.searchsorted(document, document, side="right")


def first_apart(document: np.ndarray, start: np.ndarray, end: np.ndarray, min_gap: int = MIN_GAP) -> np.ndarray:
    """The first place behind each chunk, (n,), that is `min_gap` characters or more from it: another chunk of its
    document, or the place behind the document's last."""
    # One rising number line for all documents: binary search finds it.
    span = int(end.max(initial=0)) + min_gap + 1
    found = np.searchsorted(document * span + start, document * span + end + min_gap, side="left")
    return np.maximum(found, np.arange(len(start)) + 1)


def neighbor_lists(
    works: Works, neighbor_works: Mapping[str, Sequence[str]], kin: np.ndarray, missing: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each work's neighbours begin (w + 1,), and those of all works in one row (m,).

    Works of equal `kin` (w,), such as those of one author group, are no neighbours.
    """
    owner, neighbor = _links(neighbor_works, pa.array(works.names, pa.string()))
    missing["neighbor_work_outside_split"] += int((neighbor < 0).sum())
    kept = (neighbor >= 0) & (kin[neighbor] != kin[owner])
    owner, neighbor = owner[kept], neighbor[kept]
    order = np.argsort(owner, kind="stable")
    return np.searchsorted(owner[order], np.arange(len(works.names) + 1)), neighbor[order]


def nearest_chunks(
    works: Works, neighbor_chunks: Mapping[str, Sequence[str]], kin: np.ndarray, missing: Counter[str]
) -> np.ndarray:
    """The first candidate of each chunk that is in a work of this split that has another `kin` (w,), else -1: (n,)."""
    nearest = np.full(len(works.work), -1)
    owner, candidate = _links(neighbor_chunks, works.table["chunk_id"])
    missing["neighbor_chunk_outside_split"] += int((candidate < 0).sum())
    owner, candidate = owner[candidate >= 0], candidate[candidate >= 0]
    other = kin[works.work[owner]] != kin[works.work[candidate]]
    chunk, first = np.unique(owner[other], return_index=True)
    nearest[chunk] = candidate[other][first]
    return nearest


def _links(lists: Mapping[str, Sequence[str]], ids: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """id -> ids as two columns of places in `ids`, in order; -1 for a target that is not there."""
    owner = _places(pa.array(lists.keys(), pa.string()), ids)
    length = np.fromiter(map(len, lists.values()), np.int64, len(lists))
    target = _places(pa.array([t for targets in lists.values() for t in targets], pa.string()), ids)
    owner = np.repeat(owner, length)
    return owner[owner >= 0], target[owner >= 0]


def _places(values: pa.Array, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return numbers(pc.fill_null(pc.index_in(values, value_set=ids), -1))


def _check(chunks: pa.Table) -> None:
    for name in _COLUMNS:
        if name not in chunks.column_names:
            raise UserError(f"chunks: no column {name!r}, wanted {', '.join(_COLUMNS)}")
        if chunks[name].null_count:
            raise UserError(f"chunks: {chunks[name].null_count} rows without {name}; fill them")
    num_repeats = len(chunks) - pc.count_distinct(chunks["chunk_id"]).as_py()
    if num_repeats:
        raise UserError(f"chunks: {num_repeats} chunk ids repeat; give each chunk once")


def numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    values = np.asarray(column)
    return values if values.dtype == bool else values.astype(np.int64)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The place of each value among the sorted distinct values, and those."""
    encoded = pa.chunked_array(column).combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return rank[np.asarray(encoded.indices)], [values[i] for i in order]
