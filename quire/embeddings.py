"""Embeddings of chunks as rows: which chunks, what is stored of a vector, how near it is to float32."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash

from quire import schema
from quire.evenly import evenly


def spaced(documents: Sequence[str], max_chunks: int) -> list[int]:
    """Row numbers of at most `max_chunks` rows of each document, evenly spaced over it, in order."""
    if not documents:
        return []
    names = np.asarray(documents, dtype=object)
    bounds = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    chosen: list[int] = []
    for start, end in zip(bounds, np.r_[bounds[1:], len(names)], strict=True):
        chosen += (start + evenly(end - start, max_chunks)).tolist()
    return chosen


def marks(ids: Sequence[str]) -> np.ndarray:
    """(n,) uint64, XXH3 of each id: to compare or to draw by, 8 bytes each."""
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids))


def sample(ids: Sequence[str], count: int) -> np.ndarray:
    """Rows of at most `count` ids, ascending: those of the least hashes, the same in any order of the ids."""
    return np.sort(np.argsort(marks(ids), kind="stable")[:count])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) float64 of the rows of two (n, D) matrices; 0 where one is the zero vector."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)


def table(chunk_ids: Sequence[str], vectors: np.ndarray, num_tokens: Sequence[int]) -> pa.Table:
    """Rows by `schema.embeddings`; `vectors` is (n, D), float32 or float16, and stored as it is."""
    rows = schema.lists(vectors)
    columns = [pa.array(chunk_ids, pa.string()), rows, pa.array(num_tokens, pa.int32())]
    return pa.Table.from_arrays(columns, schema=schema.embeddings(vectors.shape[1], rows.type.value_type))


def known(rows: pa.Table, earlier: Sequence[tuple[pa.Table, pa.Table]]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the chunks `rows` (chunk_id, text) earlier ones hold, with the same id and text.

    `earlier` are pairs of chunks (chunk_id, text) and their embeddings (chunk_id, ...). Returns the table (n,) int64 in
    which each stands, -1 for none, and its row there (n,) int64.
    """
    tables, places = np.full(rows.num_rows, -1), np.full(rows.num_rows, -1)
    ids, texts = rows["chunk_id"].to_pylist(), rows["text"].to_pylist()
    for number, (chunks, embedded) in enumerate(earlier):
        place = {name: at for at, name in enumerate(embedded["chunk_id"].to_pylist())}
        there = dict(zip(chunks["chunk_id"].to_pylist(), chunks["text"].to_pylist(), strict=True))
        for row, (name, text) in enumerate(zip(ids, texts, strict=True)):
            if name in place and there.get(name) == text:
                tables[row], places[row] = number, place[name]
    return tables, places
