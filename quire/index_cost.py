"""What an index of many vectors would take, from a few of them: an index of its shape, and how its work grows.

Reading and filling grow with the rows, and each shard has work of its own; training looks for the nearest of all lists,
for each of its vectors, again and again.
"""

from dataclasses import dataclass

import faiss
import numpy as np

from quire import index
from quire.index import Plan

_SHIFT = 0.3  # the length of what is added to a vector that is used again: about as far as a neighbour is


def repeated(vectors: np.ndarray, rows: int, *, seed: int = 0) -> np.ndarray:
    """(rows, d) float32 of length about 1: those of `vectors` (n, d) of length 1, again and again, each time moved.

    How long a search takes hardly depends on where the vectors lie, but equal ones would all fall into one list.
    """
    made = np.resize(vectors, (rows, vectors.shape[1])).astype(np.float32)
    again = made[len(vectors) :]
    again += np.random.default_rng(seed).normal(0, _SHIFT / vectors.shape[1] ** 0.5, again.shape).astype(np.float32)
    return made


def stand_in(wanted: Plan, vectors: np.ndarray, *, seed: int = 0) -> faiss.IndexIVF | None:
    """What fills and searches as slowly as what `index.train` makes, and takes as many bytes; None for a flat index.

    Its lists lie around vectors drawn from `vectors` (n, d), so that only codes are really trained, on them all.
    """
    if wanted.method == "flat":
        return None
    made = index.untrained(wanted, seed)
    faiss.downcast_index(made.quantizer).add(repeated(vectors, wanted.num_lists, seed=seed))
    made.train(vectors)  # which keeps lists that are there
    return made


def training(wanted: Plan, made: faiss.IndexIVF, nearest: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(m,) What training takes, where `nearest` (m,) is one vector's search for its list and `codes` (m,) its share of
    the training of codes; `made` is a stand-in."""
    coded = min(wanted.training_rows, made.pq.ksub * made.pq.cp.max_points_per_centroid) if wanted.code_size else 0
    return made.cp.niter * wanted.training_rows * nearest + coded * codes


@dataclass(frozen=True)
class Measured:
    """What parts of the work took: any amounts that add up, (m,) each, such as seconds of a processor and bytes."""

    rows: int  # that were read, and filled in
    read: np.ndarray  # of those rows, once, for the training and the queries
    one: np.ndarray  # a shard of one row
    many: np.ndarray  # a shard of all those rows
    training: np.ndarray  # of the whole

    def whole(self, rows: int, num_shards: int) -> np.ndarray:
        """(m,) Of an index of `rows` vectors in `num_shards` shards."""
        row = np.maximum(self.many - self.one, 0) / max(1, self.rows - 1)
        return rows / self.rows * self.read + num_shards * self.one + (rows - num_shards) * row + self.training
