"""Mined negatives as training pairs beside the drawn ones, a stated share of all negatives; the drawn ones stay."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire import mining
from quire.errors import UserError
from quire.pairs import SCHEMA


def mined_pairs(
    drawn: pa.Table, negatives: pa.Table, chunks: pa.Table, *, share: float, seed: int
) -> tuple[pa.Table, dict[str, int]]:
    """Pairs that make `share` of all negatives mined ones, sorted by the query's work; and how many are missing, why.

    `drawn`: the training pairs, of `pairs.SCHEMA`. `negatives`: of schema.NEGATIVES. `chunks`: chunk_id, work_id and
    author of the training chunks. A work gets mined negatives in proportion to its positives, as it gets drawn ones,
    so that it is not recognisable by its label; which of them, and which side comes first, is drawn by the pair's
    ids and the seed. No two chunks make a pair twice. Raises UserError for a share outside [0, 1) and for a negative of
    which a side is no training chunk.
    """
    if not 0 <= share < 1:
        raise UserError(f"mined_share = {share}: give a share from 0 to below 1")
    ids = chunks["chunk_id"].combine_chunks()
    ours, theirs = (_places(negatives[side], ids) for side in ("chunk_id", "negative_id"))
    names = zip(negatives["chunk_id"].to_pylist(), negatives["negative_id"].to_pylist(), strict=True)
    keys = mining.keys(["|".join(pair) for pair in names], seed)
    before = _code(*(_places(drawn[side], ids) for side in ("chunk_a", "chunk_b")), len(ids))
    code = _code(ours, theirs, len(ids))
    fresh = ~np.isin(code, before)
    order = np.argsort(keys, kind="stable")
    order = order[fresh[order]]
    once = order[np.sort(np.unique(code[order], return_index=True)[1])]  # a pair mined from both sides
    missing = {"mined_drawn_before": int((~fresh).sum()), "mined_from_both_sides": len(order) - len(once)}
    work = pc.dictionary_encode(chunks["work_id"].combine_chunks())
    work_of = work.indices.to_numpy()
    quota = _quota(drawn, work.dictionary, share)
    by_work = once[np.argsort(work_of[ours[once]], kind="stable")]
    works = work_of[ours[by_work]]
    turn = np.arange(len(by_work)) - np.searchsorted(works, works)
    kept = by_work[turn < quota[works]]
    missing["mined_too_few"] = int(quota.sum()) - len(kept)
    table = _table(chunks, ours[kept], theirs[kept], keys[kept] % 2 == 1, negatives["negative_type"].take(kept))
    return table, {reason: count for reason, count in missing.items() if count}


def _quota(drawn: pa.Table, works: pa.Array, share: float) -> np.ndarray:
    """How many mined negatives each work is to get: (w,)."""
    positive = drawn.filter(pc.equal(drawn["label"], 1))
    if not positive.num_rows:
        return np.zeros(len(works), np.int64)
    place = pc.index_in(positive["work_a"], value_set=works).to_numpy()
    count = np.bincount(place, minlength=len(works))
    each = (drawn.num_rows - positive.num_rows) / positive.num_rows * share / (1 - share)
    return np.rint(count * each).astype(np.int64)


def _table(chunks: pa.Table, ours: np.ndarray, theirs: np.ndarray, swapped: np.ndarray, kinds: pa.Array) -> pa.Table:
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for side, other, name in ((ours, theirs, "a"), (theirs, ours, "b")):
        rows = chunks.take(np.where(swapped, other, side))
        columns |= {f"{to}_{name}": rows[column] for to, column in _COLUMNS.items()}
    columns["pair_id"] = pc.binary_join_element_wise(columns["chunk_a"], columns["chunk_b"], "|")
    columns["label"] = pa.array(np.zeros(len(ours), np.int8))
    columns["negative_type"] = kinds
    columns["distance"] = pa.nulls(len(ours), pa.int64())
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


_COLUMNS = {"chunk": "chunk_id", "work": "work_id", "author": "author"}


def _places(column: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    places = pc.index_in(column, value_set=ids)
    if places.null_count:
        stranger = column.filter(pc.is_null(places))[0].as_py()
        raise UserError(f"negatives: {stranger!r} is no training chunk; mine these chunks")
    return places.to_numpy().astype(np.int64)


def _code(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """A number for two chunks, whichever comes first."""
    return np.minimum(a, b) * size + np.maximum(a, b)
