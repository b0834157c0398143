"""Author pairs as style is measured on them: each side a run of a document's chunks, read by some passages of it.

Shape letters: n pairs, k passages a side, D embedding width.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from quire import encoder
from quire.artifact import Artifact
from quire.errors import UserError

_BLOCK = 256  # chunks that a progress bar counts together


def spread(num: int | np.ndarray, count: int) -> np.ndarray:
    """`count` of `num` places, evenly spaced, one in the middle: (count,), or (n, count) where `num` is (n,)."""
    return ((2 * np.arange(count) + 1) * np.asarray(num)[..., None]) // (2 * count)


@dataclass(frozen=True)
class AuthorPairs:
    """Pairs of one split, (n,) each. `groups`: the author groups of both sides; `rows`: of both in the chunk table."""

    ids: list[str]
    labels: np.ndarray
    kinds: np.ndarray  # positive | random | neighbor
    groups: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]

    def taken(self, keep: np.ndarray) -> "AuthorPairs":
        """The pairs at these places."""
        sides = (tuple(side[keep] for side in both) for both in (self.groups, self.rows))
        return AuthorPairs([self.ids[place] for place in keep], self.labels[keep], self.kinds[keep], *sides)


class ChunkTable:
    """The chunks of a corpus with the bounds of their documents, on the local disk."""

    def __init__(self, chunks: Artifact):
        self.table = chunks.memory_map(["chunk_id", "document_id", "author_group", "split", "text"])
        code = self.table["document_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        begins = np.flatnonzero(np.append(True, code[1:] != code[:-1]))
        number = np.searchsorted(begins, np.arange(len(code)), side="right") - 1
        self.first, self.last = begins[number], np.append(begins, len(code))[number + 1]  # of each chunk's document

    def texts(self, rows: np.ndarray) -> list[str]:
        """The texts of some chunks."""
        return self.table["text"].take(rows).to_pylist()

    def pairs(self, pairs: Artifact, split: str, count: int) -> AuthorPairs:
        """At most `count` pairs of a split, evenly spaced. Raises UserError when there are none of either label."""
        table = pairs.read(["pair_id", "split", "chunk_a", "chunk_b", "label", "negative_type"])
        table = table.filter(pc.equal(table["split"], split))
        keep = np.unique((np.arange(count) * table.num_rows) // count) if table.num_rows else np.zeros(0, np.int64)
        table = table.take(keep)
        labels = table["label"].to_numpy()
        if not 0 < labels.sum() < len(labels):
            raise UserError(
                f"pairs {pairs.name!r} have no two labels in split {split!r}: add books, or change the shares of the "
                "chunk step"
            )
        ids, groups = self.table["chunk_id"].combine_chunks(), self.table["author_group"]
        rows = tuple(pc.index_in(table[side], value_set=ids).to_numpy() for side in ("chunk_a", "chunk_b"))
        of_sides = tuple(np.asarray(groups.take(side).to_pylist(), object) for side in rows)
        kinds = np.asarray(table["negative_type"].fill_null("positive").to_pylist(), object)
        return AuthorPairs(table["pair_id"].to_pylist(), labels, kinds, of_sides, rows)

    def passages(self, rows: np.ndarray, count: int, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n, k) of `count` passages of a text around each chunk, and which documents (n,) are long enough.

        A text is a run of `count` to `most` chunks, its length drawn, evenly spaced passages of which are read: as the
        texts that users bring are of any length between two levels.
        """
        length = np.random.default_rng([seed, count]).integers(count, most + 1, size=len(rows))
        size = self.last[rows] - self.first[rows]
        length = np.minimum(length, size)
        start = np.clip(rows - length // 2, self.first[rows], np.maximum(self.last[rows] - length, self.first[rows]))
        return start[:, None] + spread(length, count), size >= count


class Encoded:
    """What one model makes of chunks, each read once."""

    def __init__(self, model: SentenceTransformer, chunks: ChunkTable):
        self.model, self.chunks, self.prompt = model, chunks, encoder.document_prompt(model, None, None)
        self.place: dict[int, int] = {}
        self.vectors = np.zeros((0, model.get_embedding_dimension()), np.float32)

    def means(self, rows: np.ndarray) -> np.ndarray:
        """Mean (n, D) of the normalised embeddings of some chunks (n, k): the product of two is the mean cosine."""
        new = [row for row in np.unique(rows).tolist() if row not in self.place]
        blocks = [new[start : start + _BLOCK] for start in range(0, len(new), _BLOCK)]
        for block in tqdm(
            blocks, desc="      chunks encoded", unit=f"x{_BLOCK}", mininterval=5, disable=len(blocks) < 2
        ):
            made = encoder.encode(self.model, self.chunks.texts(np.asarray(block)), prompt=self.prompt)
            self.place |= {row: len(self.vectors) + number for number, row in enumerate(block)}
            self.vectors = np.concatenate([self.vectors, normalised(made)])
        places = np.vectorize(self.place.__getitem__, otypes=[np.int64])(rows)
        return self.vectors[places].mean(1, dtype=np.float64)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def cosines(
    encoded: Encoded, pairs: AuthorPairs, count: int, most: int, seed: int = 0
) -> tuple[AuthorPairs, np.ndarray]:
    """The pairs whose documents are long enough, and the mean cosine of `count` x `count` passages of each: (n,)."""
    found = [encoded.chunks.passages(rows, count, most, 2 * seed + side) for side, rows in enumerate(pairs.rows)]
    keep = np.flatnonzero(found[0][1] & found[1][1])
    if not len(keep):
        return pairs.taken(keep), np.zeros(0)
    a, b = (encoded.means(rows[keep]) for rows, _ in found)
    return pairs.taken(keep), (a * b).sum(1)
