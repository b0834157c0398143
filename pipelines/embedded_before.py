"""What is embedded already of a corpus that grew: chunks are known by id and text, their vectors taken as they are.

Shape letters: n rows of a part of the chunks, D embedding width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from quire import artifact, config, embeddings, schema
from quire.artifact import Artifact
from quire.errors import UserError


class Earlier(NamedTuple):
    """The chunks of before, and their embeddings."""

    chunks: Artifact
    embeddings: Artifact

    @classmethod
    def open(cls, settings: Any, weights: str) -> Self:
        """What the settings of `pipelines.embed` name with `reuse`. Raises UserError when its embeddings are not what
        this recipe would make."""
        made = artifact.open_artifact(settings.runtime.root, "embeddings", settings.reuse)
        old, new = made.manifest["recipe"], config.recipe(settings)
        differing = [key for key in new if key not in ("chunks", "reuse") and old.get(key) != new[key]]
        if made.manifest["inputs"]["model_weights"] != weights:
            differing.append("the weights of the model")
        if differing:
            raise UserError(f"reuse = {settings.reuse!r}: made with another {', '.join(differing)}; its vectors differ")
        described = made.manifest["inputs"]["chunks"]
        chunks = artifact.open_artifact(settings.runtime.root, "chunks", described["name"])
        if chunks.content != described["content"]:
            raise UserError(f"reuse = {settings.reuse!r}: chunks {described['name']!r} have been made again since")
        return cls(chunks, made)

    def shared(self, chunks: Artifact) -> list[tuple[int, ...]]:
        """By part of the chunks, the earlier parts that hold some of its ids."""
        found = [embeddings.marks(chunk_ids(self.embeddings, part)) for part in self.embeddings.parts]
        values, parts = np.concatenate(found), np.repeat(np.arange(len(found)), [len(marks) for marks in found])
        order = np.argsort(values, kind="stable")
        values, parts = values[order], parts[order]
        shared = []
        for part in chunks.parts:
            marks = embeddings.marks(chunk_ids(chunks, part))
            places = np.minimum(np.searchsorted(values, marks), len(values) - 1)
            shared.append(tuple(np.unique(parts[places[values[places] == marks]]).tolist()))
        return shared

    def fill(self, rows: pa.Table, shared: Sequence[int], vectors: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
        """Fill in, of vectors (n, D) and lengths (n,), what the earlier parts `shared` hold; the rows that they do
        not."""
        pairs = [
            (
                self.chunks.storage.read_table(self.chunks.parts[number], ["chunk_id", "text"]),
                self.embeddings.storage.read_table(self.embeddings.parts[number]),
            )
            for number in shared
        ]
        tables, places = embeddings.known(rows, pairs)
        for number, (_, embedded) in enumerate(pairs):
            there = tables == number
            vectors[there] = schema.matrix(embedded["embedding"])[places[there]]
            num_tokens[there] = embedded["num_tokens"].to_numpy()[places[there]]
        return np.flatnonzero(tables < 0)


def chunk_ids(made: Artifact, part: str) -> list[str]:
    """Those of one part of chunks or embeddings, in its order."""
    return made.storage.read_table(part, ["chunk_id"])["chunk_id"].to_pylist()
