"""Exact nearest neighbours outside one's own group, the same to the bit however the work is cut into blocks.

Which candidates win is decided by inner products in double precision, because the last bits of a matrix product in
single precision depend on how many queries share it. On processors that multiply bfloat16, `quire.sieve` finds the
candidates; the queries for which it cannot, and all of them elsewhere, are FAISS's. A query's answer stands once no
vector that FAISS left out can still reach it, given the error bound of single precision; else FAISS is asked for more.
"""

from functools import cached_property
from typing import Any

import faiss
import numpy as np

from quire.errors import UserError

# FAISS's GPU indexes return at most 2,048 neighbours a query and take no selector. On a processor such a k
# costs twice as much as k = 50 (50,000 x 384: .56 s against .28 s for 512 queries).
MAX_FETCH = 2048

# Candidates beyond k, so that near-ties at the k-th place seldom need a second search.
SLACK = 16

# Fewer queries than this are answered by a FAISS index that is there before the corpus is rounded to bfloat16.
SIEVE_QUERIES = 16
_SIEVE_BLOCK = 1024  # queries at a time at most: their products take 16 MiB


_RANK_VALUES = 2**22  # candidate values in double precision at a time: 32 MiB


def centroids(embeddings: np.ndarray, group_index: np.ndarray) -> np.ndarray:
    """Mean of each group's embeddings, scaled to length 1: (g, d) float32 from (n, d).

    `group_index` (n,) holds numbers 0..g-1 and every one of them occurs. A mean of exactly zero stays zero.
    """
    embeddings, group_index = np.asarray(embeddings), np.asarray(group_index)
    _check_matrix("embeddings", embeddings, group_index)
    if not len(group_index):
        return np.zeros((0, embeddings.shape[1]), np.float32)
    counts = np.bincount(group_index) if group_index.min() >= 0 else np.zeros(1)
    if not counts.all():
        raise UserError(f"group_index: group {int(np.argmin(counts))} has no rows; number the groups 0, 1, 2 ...")
    if (group_index[1:] < group_index[:-1]).any():
        embeddings = embeddings[np.argsort(group_index, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(embeddings, starts, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def search(
    queries: np.ndarray,
    corpus: np.ndarray,
    *,
    k: int,
    query_groups: np.ndarray,
    corpus_groups: np.ndarray,
    gpu: bool | None = None,
    block_size: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """The k corpus rows of other groups with the highest inner products: ids (q, k) int64, scores (q, k)
    float32.

    Ordered by (score descending, id ascending); padded with id -1 and score -inf only where fewer than k rows
    of other groups exist. `queries` (q, d) and `corpus` (n, d) float32, groups integers. `block_size` queries
    are searched at a time and bound the memory beyond that of the corpus and half as much again where bfloat16 is
    multiplied, as much again where FAISS searches. `gpu`: None uses one where FAISS finds one; True without one is a
    UserError.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    corpus = np.ascontiguousarray(corpus, np.float32)
    query_groups, corpus_groups = np.asarray(query_groups), np.asarray(corpus_groups)
    _check_matrix("queries", queries, query_groups)
    _check_matrix("corpus", corpus, corpus_groups)
    if queries.shape[1] != corpus.shape[1]:
        raise UserError(f"queries have {queries.shape[1]} values, the corpus {corpus.shape[1]}: use one model")
    if k < 1 or block_size < 1:
        raise UserError(f"k = {k}, block_size = {block_size}: give 1 or more")
    return search_grouped(grouped(corpus, corpus_groups, gpu=gpu), queries, query_groups, k=k, block_size=block_size)


def search_flat(
    queries: np.ndarray, flat: faiss.IndexFlatIP, *, k: int, gpu: bool | None = None, block_size: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of a flat FAISS index with the highest inner products, as `search` finds them among its corpus."""
    queries = np.ascontiguousarray(queries, np.float32)
    nobody = np.full(len(queries), -1)
    _check_matrix("queries", queries, nobody)
    index = GroupedIndex(flat_vectors(flat), np.zeros(flat.ntotal, np.int8), use_gpu(gpu), flat)
    return search_grouped(index, queries, nobody, k=k, block_size=block_size)


def search_grouped(
    index: "GroupedIndex", queries: np.ndarray, query_groups: np.ndarray, *, k: int, block_size: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """`search` in what `grouped` has made of the corpus, which may be asked again; searched until every query's answer
    is certain."""
    ids = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    if not len(index.groups):
        return ids, scores
    order = np.argsort(query_groups, kind="stable")
    if index.sieves(len(queries), k):
        unsure = [order[:0]]
        for rows in _split(order, min(block_size, _SIEVE_BLOCK)):
            row, position, sure = index.sieve.candidates(queries[rows], *index.ranges(query_groups[rows]), k)
            top_ids, top_scores = _ranked(index, queries[rows], row, position, k)
            ids[rows[sure]], scores[rows[sure]] = top_ids[sure], top_scores[sure]
            unsure.append(rows[~sure])
        order = np.concatenate(unsure)
    pending = [(rows, k + SLACK) for rows in _split(order, block_size)]
    while pending:
        rows, fetch = pending.pop()
        top_ids, top_scores, certain = _rank(index, queries[rows], query_groups[rows], k, fetch)
        ids[rows[certain]], scores[rows[certain]] = top_ids[certain], top_scores[certain]
        rest, fetch = rows[~certain], 4 * fetch
        if len(rest):
            num_parts = min(len(rest), 1 + len(rest) * fetch // (block_size * MAX_FETCH))
            pending.extend((part, fetch) for part in np.array_split(rest, num_parts))
    return ids, scores


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def flat_vectors(flat: faiss.IndexFlatIP) -> np.ndarray:
    """The vectors of a flat index, (n, d) float32: its own memory, gone with it and moved by what is added to it."""
    return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


def grouped(corpus: np.ndarray, groups: np.ndarray, *, gpu: bool | None = None) -> "GroupedIndex":
    """The corpus (n, d) float32 and its groups (n,) integers, to be searched by `search_grouped`; it is not copied and
    must stay as it is."""
    return GroupedIndex(corpus, groups, use_gpu(gpu))


class GroupedIndex:
    """The corpus (n, d) and how its rows stand when sorted by group, so that a group is one range of positions.

    What searches it is made when it is first asked for. `flat`: an index that holds the corpus already, all of one
    group.
    """

    def __init__(
        self, corpus: np.ndarray, groups: np.ndarray, gpu: bool, flat: faiss.IndexFlatIP | None = None
    ) -> None:
        self.corpus, self.gpu, self.given = corpus, gpu, flat
        self.row_id = np.argsort(groups, kind="stable")  # at each position
        self.groups = groups[self.row_id]

    def sieves(self, num_queries: int, k: int) -> bool:
        """Whether so many queries are the sieve's first."""
        if self.gpu or (self.given is not None and num_queries < SIEVE_QUERIES):
            return False
        from quire import device, sieve  # these bring torch, which a search of a few queries does without

        return k <= sieve.MAX_K and device.cpu_multiplies_bfloat16()

    @cached_property
    def sieve(self) -> Any:
        from quire.sieve import Sieve

        return Sieve(self.corpus, self.row_id)

    @cached_property
    def flat(self) -> faiss.IndexFlatIP:
        if self.given is not None:
            return self.given
        flat = faiss.IndexFlatIP(self.corpus.shape[1])
        for start in range(0, len(self.corpus), 65536):
            flat.add(self.corpus[self.row_id[start : start + 65536]])
        return flat

    @cached_property
    def fast(self) -> Any:
        return faiss.index_cpu_to_all_gpus(self.flat) if self.gpu else self.flat

    @cached_property
    def longest(self) -> float:
        """The length of the longest vector, and what squares that were flushed to zero may have hidden of it."""
        squares = np.einsum("nd,nd->n", self.corpus, self.corpus).max(initial=0)
        return float(np.sqrt(squares)) + self.corpus.shape[1] ** 0.5 * 2.0**-62

    def ranges(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of these groups (q,) begins and ends: positions (q,), (q,)."""
        return np.searchsorted(self.groups, groups, side="left"), np.searchsorted(self.groups, groups, side="right")

    def candidates(self, queries: np.ndarray, groups: np.ndarray, fetch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the `fetch` best rows of other groups (q, m), -1 where there is none; bound (q,).

        No row left out scores above `bound` (-inf: none was left out). Where a group is small, it is searched
        along and dropped from the answer, for all queries in one matrix product; else the rows before and
        those behind the group are searched.
        """
        first, last = self.ranges(groups)
        num_others = len(self.groups) - (last - first)
        width = int(min(fetch, num_others.max(initial=0)))
        positions = np.full((len(queries), width), -1, np.int64)
        scores = np.full((len(queries), width), -np.inf, np.float32)
        small = last - first + fetch <= MAX_FETCH
        if small.any():
            k = min(len(self.groups), fetch + int((last - first)[small].max()))
            found = self.fast.search(queries[small], k)
            positions[small], scores[small] = drop_range(*found, first[small], last[small], width)
        for group in np.unique(groups[~small]):  # not by `first`: an empty group begins where another does
            rows = np.flatnonzero(groups == group)
            before = self._search_range(queries[rows], width, 0, first[rows[0]])
            behind = self._search_range(queries[rows], width, last[rows[0]], len(self.groups))
            positions[rows], scores[rows] = _best(*map(np.hstack, zip(before, behind, strict=True)), width)
        bound = np.where(num_others > width, scores[:, -1] if width else -np.inf, -np.inf)
        return positions, bound

    def _search_range(self, queries: np.ndarray, k: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        k = int(min(k, end - start))
        if k < 1:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        selector = faiss.IDSelectorRange(int(start), int(end))
        return self.flat.search(queries, k, params=faiss.SearchParameters(sel=selector))


def drop_range(
    scores: np.ndarray, positions: np.ndarray, first: np.ndarray, last: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's answer (q, m) without each query's own range [first, last): positions, scores (q, width)."""
    inside = (positions >= first[:, None]) & (positions < last[:, None])
    return _best(np.where(inside, -np.inf, scores), np.where(inside, -1, positions), width)


def _best(scores: np.ndarray, positions: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The `width` highest of each row: positions padded with -1, scores with -inf."""
    padding = ((0, 0), (0, max(0, width - scores.shape[1])))
    positions = np.pad(positions, padding, constant_values=-1)
    scores = np.where(positions < 0, -np.inf, np.pad(scores, padding))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _ranked(
    index: GroupedIndex, queries: np.ndarray, row: np.ndarray, position: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates in the final order, (q, k) and (q, k), of those at `position` (c,) for query `row` (c,)."""
    ids = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    names, exact = index.row_id[position], np.empty(len(row), np.float32)
    step = max(1, _RANK_VALUES // queries.shape[1])
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        # A sum in double precision of products of single ones is good to 1e-16: rounded, equal vectors tie.
        ours, theirs = queries[row[part]].astype(np.float64), index.corpus[names[part]].astype(np.float64)
        exact[part] = np.vecdot(ours, theirs)
    order = np.lexsort((names, -exact, row))
    row = row[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    top = place < k
    ids[row[top], place[top]] = names[order[top]]
    scores[row[top], place[top]] = exact[order[top]]
    return ids, scores


def _rank(
    index: GroupedIndex, queries: np.ndarray, groups: np.ndarray, k: int, fetch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best of FAISS's candidates in the final order, and of which queries the answer is certain: (q,) bool."""
    positions, bound = index.candidates(queries, groups, fetch)
    row, column = np.nonzero(positions >= 0)
    ids, scores = _ranked(index, queries, row, positions[row, column], k)
    # The error of a product of length d in single precision, in any order of summation (Higham 2002, section
    # 3.1), that of rounding the score, and what a processor that flushes tiny numbers to zero may lose.
    lengths, dim = np.linalg.norm(queries.astype(np.float64), axis=1), queries.shape[1]
    error = 1.01 * (dim + 2) * (2.0**-24 * lengths * index.longest + 2.0**-126)
    certain = (bound == -np.inf) | (scores[:, -1] > bound + error)
    return ids, scores, certain


def built_for_gpus() -> bool:
    """Whether this FAISS could use a GPU, be there one here or not."""
    return hasattr(faiss, "StandardGpuResources")


def use_gpu(gpu: bool | None) -> bool:
    """Whether FAISS is to use a GPU: None means where it finds one. True without one is a UserError."""
    num_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if gpu and not num_gpus:
        raise UserError("gpu = true: FAISS finds no GPU; install faiss-gpu in place of faiss-cpu, or leave it out")
    return bool(num_gpus) if gpu is None else gpu


def _check_matrix(name: str, matrix: np.ndarray, groups: np.ndarray) -> None:
    if matrix.ndim != 2 or groups.shape != matrix.shape[:1]:
        raise UserError(f"{name}: {matrix.shape} with groups of {groups.shape}, wanted (n, d) with (n,)")
    if len(groups) and groups.dtype.kind not in "iu":
        raise UserError(f"{name}: groups of type {groups.dtype}, wanted integers")
    for start in range(0, len(matrix), 65536):
        block = matrix[start : start + 65536]
        if np.isfinite(np.vdot(block, block)):  # several times faster than to look at each value
            continue
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():  # else the sum overflows
            raise UserError(f"{name}: row {start + int(np.argmin(finite))} is not finite; embed it again")
