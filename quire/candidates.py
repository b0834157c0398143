"""The nearest rows of other groups, two ways behind one call: exactly, block by block; or in a saved inverted file.

Both give rows of a `Corpus` and cosines, ordered by (score descending, row ascending) and padded with -1 and -inf, and
the same ones however the queries are cut, as long as a document's queries are asked for together.
"""

from collections.abc import Callable, Iterable

import faiss
import numpy as np

from quire import index, neighbors
from quire.mining_corpus import Corpus

Found = tuple[np.ndarray, np.ndarray]  # rows (q, k) int64, scores (q, k) float32
_QUERIES = 1024  # at a time
_RANK_ROWS = 2**15  # candidates whose vectors are read at a time


class Exact:
    """Every row is compared. Memory holds one block of the corpus, read again for each call unless it is all there
    is."""

    def __init__(self, corpus: Corpus, groups: np.ndarray, *, k: int, block_rows: int, gpu: bool | None = None):
        self.corpus, self.groups, self.k, self.gpu = corpus, groups, k, gpu
        self.starts = range(0, corpus.num_rows, block_rows)
        self.held: neighbors.GroupedIndex | None = None

    def __call__(self, rows: np.ndarray) -> Found:
        """Candidates of these rows (q,), ascending."""
        queries, groups = self.corpus.some(rows), np.asarray(self.groups[rows])
        answers = np.full((len(rows), self.k), -1), np.full((len(rows), self.k), -np.inf, np.float32)
        for start in self.starts:
            block = self._block(start)
            found, scores = neighbors.search_grouped(block, queries, groups, k=self.k, block_size=_QUERIES)
            answers = index.merge([answers, (np.where(found < 0, -1, found + start), scores)], self.k)
        return answers

    def _block(self, start: int) -> neighbors.GroupedIndex:
        if self.held is not None:
            return self.held
        last = min(self.corpus.num_rows, start + self.starts.step)
        groups = np.asarray(self.groups[start:last])
        block = neighbors.grouped(self.corpus.vectors(start, last), groups, gpu=self.gpu)
        if len(self.starts) == 1:
            self.held = block
        return block


class Inverted:
    """A part of the lists is searched; rows of the query's own group and of other splits are left out inside them.

    FAISS's order is put right by exact cosines. `shards` opens the parts of the index, one after the other.
    """

    def __init__(
        self,
        corpus: Corpus,
        groups: np.ndarray,
        *,
        k: int,
        shards: Callable[[], Iterable[faiss.Index]],
        num_probes: int,
    ):
        self.corpus, self.k, self.shards, self.num_probes = corpus, k, shards, num_probes
        self.groups, self.source_row = groups, corpus.column("source_row")
        self.by_group = np.argsort(groups, kind="stable")
        self.sorted_groups = np.asarray(groups[self.by_group])
        allowed = np.zeros(int(self.source_row[-1]) + 1, bool)
        allowed[self.source_row] = True
        self.bits = np.packbits(allowed, bitorder="little")

    def __call__(self, rows: np.ndarray) -> Found:
        """Candidates of these rows (q,), which are of one group."""
        queries = self.corpus.some(rows)
        others = self._others(int(self.groups[rows[0]]))  # named, since FAISS only points to it
        parameters = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(others), nprobe=self.num_probes)
        k = self.k + neighbors.SLACK
        best = np.full((len(rows), k), -1), np.full((len(rows), k), -np.inf, np.float32)
        for shard in self.shards():
            scores, found = shard.search(queries, k, params=parameters)
            best = index.merge([best, (found, np.where(found < 0, -np.inf, scores))], k)
        found = np.where(best[0] < 0, -1, np.searchsorted(self.source_row, best[0]))
        return self._ranked(queries, found)

    def _others(self, group: int) -> np.ndarray:
        """A bit for each row of the embeddings: whether it may be found."""
        first, last = (np.searchsorted(self.sorted_groups, group, side) for side in ("left", "right"))
        own = np.asarray(self.source_row[self.by_group[first:last]])
        bits = self.bits.copy()
        np.bitwise_and.at(bits, own >> 3, ~(np.uint8(1) << (own & 7).astype(np.uint8)))
        return bits

    def _ranked(self, queries: np.ndarray, found: np.ndarray) -> Found:
        scores = np.full(found.shape, -np.inf, np.float32)
        row, column = np.nonzero(found >= 0)
        for at in range(0, len(row), _RANK_ROWS):
            i, j = row[at : at + _RANK_ROWS], column[at : at + _RANK_ROWS]
            theirs = self.corpus.some(found[i, j]).astype(np.float64)
            scores[i, j] = np.vecdot(queries[i].astype(np.float64), theirs)
        return index.merge([(found, scores)], self.k)
