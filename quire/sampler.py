"""Book-balanced batches as a stateless function of (seed, step): any number of workers sees the same global batch.

Every draw uses a counter-based generator (Philox, Salmon et al. 2011) keyed by the seed with the step as its counter,
so seeking is O(1) and a checkpoint needs to store nothing but the step.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from quire.works import MIN_GAP

_HARD, TAUGHT, MASKED = 1 << 32, 1 << 33, 1 << 34  # streams of random numbers beside those of micro-batches


def generator(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one step. Different seeds, steps or streams never share numbers."""
    # As unsigned integers: numpy would make a list with numbers of 2^63 or more one of floats, and round them.
    counter = np.array([0, 0, stream, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def apart(draw: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` row numbers of a work, apart from each other as far as its length allows.

    `rows` (n, 3) int64: row number, start, end in its document.
    """
    order = draw.permutation(len(rows))
    kept: list[int] = []
    for candidate in order:
        start, end = rows[candidate, 1:]
        if all(end + MIN_GAP <= rows[k, 1] or rows[k, 2] + MIN_GAP <= start for k in kept):
            kept.append(int(candidate))
        if len(kept) == count:
            return rows[kept, 0]
    rest = [int(candidate) for candidate in order if candidate not in kept]  # a short work: let chunks touch
    kept = (kept + rest + kept * count)[:count]  # a very short one: repeat
    return rows[kept, 0]


class BookBatches:
    """Batches of `works_per_batch` works x `chunks_per_work` chunks.

    The batch grows around random works: after each comes, with probability `hard_share`, one of its neighbours (works
    of the same author or of near centroids), so that the in-batch negatives are hard ones. Two chunks of a work neither
    overlap nor touch (a sentence stands between them), when the work is long enough.
    """

    def __init__(
        self,
        rows_by_work: Mapping[str, np.ndarray],  # work -> (n, 3) int64: row, start, end in its document; in order
        neighbors: Mapping[str, Sequence[str]],
        *,
        works_per_batch: int,
        chunks_per_work: int,
        hard_share: float,
        seed: int,
    ):
        self.works = sorted(work for work, rows in rows_by_work.items() if len(rows) >= 2)
        self.rows = [rows_by_work[work] for work in self.works]
        index = {work: i for i, work in enumerate(self.works)}
        self.neighbors = [[index[n] for n in neighbors.get(work, ()) if n in index] for work in self.works]
        self.works_per_batch = min(works_per_batch, len(self.works))
        self.chunks_per_work, self.hard_share, self.seed = chunks_per_work, hard_share, seed

    def plan(self, step: int, micro: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and work numbers, (works x chunks,) int64 each, of one global batch."""
        draw = generator(self.seed, step, micro)
        chosen: list[int] = []
        order = iter(draw.permutation(len(self.works)))
        while len(chosen) < self.works_per_batch:
            free = [n for n in self.neighbors[chosen[-1]] if n not in chosen] if chosen else []
            if free and draw.random() < self.hard_share:
                chosen.append(free[draw.integers(len(free))])
                continue
            work = next(order)
            if work not in chosen:
                chosen.append(int(work))
        rows = [apart(draw, self.rows[work], self.chunks_per_work) for work in chosen]
        works = np.repeat(np.asarray(chosen, dtype=np.int64), [len(r) for r in rows])
        return np.concatenate(rows), works


class HardNegatives:
    """Mined negatives of a batch's chunks, drawn anew each step."""

    def __init__(self, mined: Mapping[int, np.ndarray], batches: BookBatches, count: int):
        """`mined`: row of a chunk -> rows of its negatives; `count` of them are drawn for each chunk of a batch."""
        self.mined, self.count, self.seed = mined, count, batches.seed
        self.rows = np.concatenate([rows[:, 0] for rows in batches.rows])
        size = 1 + max(self.rows.max(initial=0), max((rows.max(initial=0) for rows in mined.values()), default=0))
        self.work_of_row = np.full(size, -1, dtype=np.int64)  # -1: of a work that no batch holds
        for work, rows in enumerate(batches.rows):
            self.work_of_row[rows[:, 0]] = work
        of_work: dict[int, list[np.ndarray]] = {}
        for row, found in sorted(mined.items()):
            if row < size:
                of_work.setdefault(int(self.work_of_row[row]), []).append(found)
        self.mined_of_work = {work: np.unique(np.concatenate(found)) for work, found in of_work.items()}
        self.covered = float(np.mean([row in mined for row in self.rows.tolist()])) if len(self.rows) else 0.0

    def plan(self, step: int, micro: int, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and work numbers, (B x count,) int64 each, for the rows `anchors` (B,) of a global batch.

        A chunk for which too few were mined gets some that were mined for other chunks of its work, then random ones:
        a batch has one size.
        """
        draw = generator(self.seed, step, _HARD + micro)
        chosen = []
        for row in anchors.tolist():
            own = self.mined.get(row, np.zeros(0, dtype=np.int64))
            own = own[draw.permutation(len(own))][: self.count]
            near = self.mined_of_work.get(int(self.work_of_row[row]), own)
            near = draw.permutation(near[~np.isin(near, own)])[: self.count - len(own)]
            lacking = self.count - len(own) - len(near)
            chosen += [own, near, self.rows[draw.integers(len(self.rows), size=lacking)]]
        rows = np.concatenate(chosen).astype(np.int64)
        return rows, self.work_of_row[rows]


class PairBatches:
    """Batches of labelled pairs, half positives and half negatives, each class passed through in seeded epochs."""

    def __init__(self, labels: np.ndarray, *, batch_size: int, seed: int, stream: int = 0):
        self.classes = [np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)]
        self.batch_size, self.seed, self.stream = batch_size, seed, stream

    def plan(self, step: int, micro: int, accumulation: int) -> tuple[np.ndarray, np.ndarray]:
        """Pair rows (B,) int64 and whether each is read as (b, a), (B,) bool, of one global micro-batch."""
        number = step * accumulation + micro
        half = self.batch_size // 2
        rows = [self._take(stream, number, size) for stream, size in ((0, half), (1, self.batch_size - half))]
        swapped = generator(self.seed, number, self.stream + 2).random(self.batch_size) < 0.5
        return np.concatenate(rows), swapped

    def _take(self, stream: int, number: int, size: int) -> np.ndarray:
        members = self.classes[stream]
        taken = []
        for slot in range(number * size, (number + 1) * size):
            epoch, place = divmod(slot, len(members))
            taken.append(members[self._order(stream, epoch)[place]])
        return np.asarray(taken, dtype=np.int64)

    def _order(self, stream: int, epoch: int) -> np.ndarray:
        cached = getattr(self, "_cached", {})
        if cached.get(stream, (None,))[0] != epoch:
            order = generator(self.seed, epoch, self.stream + 3 + stream).permutation(len(self.classes[stream]))
            self._cached = {**cached, stream: (epoch, order)}
        return self._cached[stream][1]
