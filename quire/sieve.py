"""Every row that can be among a query's k best, by a matrix product in bfloat16: many times faster than one in float32.

The product is wrong by what rounding the vectors has lost, which is known to the bit, so by Cauchy and Schwarz it is
bounded: with q', x' the rounded vectors, |qx - q'x'| <= |q - q'| |x| + |q'| |x - x'|. A row that is twice this bound
below the k-th best so far cannot catch up; whoever asks orders the few that are left by exact products.

The corpus' mean is taken off its rows first, which takes the same off all products of a query: encoders often put all
texts into a narrow cone, and what is left of the rows there is far shorter, so that less is lost.
"""

import numpy as np
import torch

_BLOCK = 8192  # rows of a product
_MEAN_ROWS = 4096  # or a little more, whose mean stands for that of all
_ROUND_ROWS = 1024  # rounded at a time, so that they stay in the processor's cache
_CHUNK = 32  # rows of which only the highest score is looked at, unless it may be among a query's k best
MAX_K = _BLOCK // _CHUNK // 2  # the first threshold is the k-th best chunk

# A query with more rows than this that may be among its k best is handed on: it bounds memory (of 500k, 16 are usual).
MOST = 1024

_ROUNDING = 2.0**-8  # of bfloat16, whose numbers have 8 binary digits
_LOWEST = torch.finfo(torch.bfloat16).min
_LARGEST = 2.0**100  # of a product of lengths: far below overflow


class Sieve:
    """The corpus (n, d) float32 in the order `row_id` (n,), of which a copy in bfloat16 is held: half its memory."""

    def __init__(self, corpus: np.ndarray, row_id: np.ndarray) -> None:
        self.half = torch.empty(corpus.shape, dtype=torch.bfloat16)
        self.length, self.loss = 0.0, 0.0  # of the longest row, of the one that rounding changes most
        mean = torch.from_numpy(corpus[:: max(1, len(corpus) // _MEAN_ROWS)].mean(axis=0, dtype=np.float64)).float()
        self.mean_length = float(_lengths(mean[None]))
        buffer = torch.empty(min(_ROUND_ROWS, len(corpus)), corpus.shape[1])
        for start in range(0, len(corpus), _ROUND_ROWS):
            rows = row_id[start : start + _ROUND_ROWS]
            block, half = buffer[: len(rows)], self.half[start : start + len(rows)]
            np.take(corpus, rows, axis=0, out=block.numpy(), mode="clip")  # "raise" would copy once more
            half.copy_(block.sub_(mean))
            self.length = max(self.length, float(_lengths(block).max()))
            self.loss = max(self.loss, float(_lengths(block.sub_(half)).max()))
        self.loss += 2.0**-23 * self.length  # by taking the mean off

    def candidates(
        self, queries: np.ndarray, first: np.ndarray, last: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query and position (c,) of every row outside a query's own range [first, last) that can be among its k best,
        by query; and for which of the queries that holds: (q,) bool. The others have none, or too many to tell apart.

        Candidates are those that can be the k best by float32 of the exact product, in any order of those that tie.
        `queries` (q, d) float32. Equal ranges that stand side by side are left out together.
        """
        query = torch.from_numpy(queries)
        half = query.bfloat16()
        error = self._error(_lengths(query), _lengths(query - half), queries.shape[1])
        sure = error.isfinite()
        cut = torch.where(sure, float(_LOWEST), torch.inf).double()  # what a row must reach
        runs = np.flatnonzero(np.diff(first, prepend=-1) | np.diff(last, prepend=-1))
        run_ends = np.append(runs[1:], len(queries))
        scores = torch.empty(_BLOCK, len(queries), dtype=torch.bfloat16)
        chunks = scores.view(-1, _CHUNK, len(queries))
        kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))  # query, position, score
        new, num_new = [], 0
        for start in range(0, len(self.half), _BLOCK):
            end = min(start + _BLOCK, len(self.half))
            torch.mm(self.half[start:end], half.T, out=scores[: end - start])
            scores[end - start :] = -torch.inf
            for run in np.flatnonzero((first[runs] < end) & (last[runs] > start)):
                own = slice(max(first[runs[run]] - start, 0), last[runs[run]] - start)
                scores[own, runs[run] : run_ends[run]] = -torch.inf
            highest = chunks.amax(1)
            fresh = torch.nonzero(cut == _LOWEST).ravel()
            if len(fresh):
                cut[fresh] = _cut(highest[:, fresh].float().topk(k, dim=0).values[-1].double(), error[fresh])
            reached = cut.bfloat16()  # rounding keeps the order: who reaches the cut, reaches it rounded
            chunk, column = torch.nonzero(highest >= reached, as_tuple=True)
            values = chunks[chunk, :, column]
            hit, row = torch.nonzero(values >= reached[column, None], as_tuple=True)
            new.append(
                (column[hit].numpy(), (start + chunk[hit] * _CHUNK + row).numpy(), values[hit, row].float().numpy())
            )
            num_new += len(hit)
            if num_new > len(kept[0]) + 16 * len(queries) or end == len(self.half):
                kept = tuple(np.concatenate(parts) for parts in zip(kept, *new, strict=True))
                kept, cut = _tightened(*kept, cut, error, k)
                new, num_new = [], 0
        return kept[0], kept[1], (cut < torch.inf).numpy()

    def _error(self, length: torch.Tensor, loss: torch.Tensor, dim: int) -> torch.Tensor:
        """How far a query's product may be from the exact one, but for its rounding to bfloat16: (q,), inf for any."""
        largest = (length + loss) * (self.length + self.loss)
        error = loss * self.length + (length + loss) * self.loss
        # The sum's own error, in any order of summation (Higham 2002, section 3.1), on processors too that cut digits
        # off; and of each number that is flushed to zero.
        error += 1.01 * (dim + 2) * (2.0**-23 * largest + 2.0**-125)
        error += 2.0**-23 * length * (self.length + self.mean_length)  # exact products tie once they are float32
        return torch.where(largest < _LARGEST, error, torch.inf)


def _lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Bounds (n,) double of the lengths of (n, d) float32: squares are flushed to zero below 2^-126, and as numbers of
    bfloat16 are by matrix products."""
    return 1.01 * torch.linalg.vector_norm(vectors, dim=1).double() + vectors.shape[1] ** 0.5 * 2.0**-62


def _cut(best: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """What a product (q,) must reach before it is rounded, for its row to be as good as one whose score is `best`."""
    return (best - _ROUNDING * best.abs() - 2 * error).clamp(min=float(_LOWEST))


def _tightened(
    query: np.ndarray, position: np.ndarray, score: np.ndarray, cut: torch.Tensor, error: torch.Tensor, k: int
) -> tuple[tuple[np.ndarray, ...], torch.Tensor]:
    """The candidates (c,) that reach the cut of their query's k-th best, by query; and the cuts (q,), inf for those
    with more than MOST."""
    order = np.lexsort((-score, query))
    query, position, score = query[order], position[order], score[order]
    starts = np.searchsorted(query, np.arange(len(cut) + 1))
    enough = np.flatnonzero(np.diff(starts) >= k)
    best = torch.from_numpy(score[starts[enough] + k - 1]).double()
    cut[enough] = torch.maximum(cut[enough], _cut(best, error[enough]))
    good = score >= cut.bfloat16().float().numpy()[query]
    crowded = np.bincount(query[good], minlength=len(cut)) > MOST
    cut[torch.from_numpy(crowded)] = torch.inf
    good &= ~crowded[query]
    return (query[good], position[good], score[good]), cut
