"""The training rows of an embeddings artefact on the local disk: vectors in one raw file, and what each row is.

Vectors are read in blocks, not mapped, so that memory holds what is asked for and no more, however large the corpus.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire import index, schema, storage
from quire.artifact import Artifact
from quire.errors import UserError

_VECTORS, _IDS, _SIZES = "vectors.f32", "ids.arrow", "sizes.json"
# Columns of numbers, a raw file each. `text_row` is the row in the chunks, `source_row` that in the embeddings.
_COLUMNS = {
    "work": np.int32,
    "author": np.int32,  # -1 for an anonymous one
    "author_group": np.int32,
    "document": np.int32,
    "start": np.int64,
    "end": np.int64,
    "text_row": np.int64,
    "source_row": np.int64,
}
_READ = ["chunk_id", "work_id", "author", "author_group", "anonymous", "document_id", "split", "start", "end"]


@dataclass(frozen=True)
class Corpus:
    """n rows of `dim` values, of length 1, in the order of the embeddings; a document's rows stand together."""

    folder: Path
    num_rows: int
    dim: int
    dropped: tuple[str, ...]  # ids of chunks whose vector has no direction

    def vectors(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last): (last - first, d) float32."""
        size = (last - first) * self.dim
        found = np.fromfile(self.folder / _VECTORS, np.float32, size, offset=first * self.dim * 4)
        return found.reshape(last - first, self.dim)

    def some(self, rows: np.ndarray) -> np.ndarray:
        """Any rows: (m, d) float32."""
        if not self.num_rows:
            return np.zeros((0, self.dim), np.float32)
        return np.asarray(np.memmap(self.folder / _VECTORS, np.float32, "r", shape=(self.num_rows, self.dim))[rows])

    def column(self, name: str) -> np.ndarray:
        """(n,), on the disk."""
        path, kind = self.folder / name, _COLUMNS[name]
        return np.memmap(path, kind, "r") if self.num_rows else np.zeros(0, kind)

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """chunk_id of every row, on the disk."""
        with pa.memory_map(str(self.folder / _IDS)) as source:
            return pa.ipc.open_file(source).read_all()["chunk_id"]

    def documents(self) -> np.ndarray:
        """Where each document's rows begin, and n: (num_documents + 1,)."""
        changes = np.flatnonzero(np.diff(self.column("document"))) + 1
        return np.concatenate([[0], changes, [self.num_rows]]) if self.num_rows else np.zeros(1, np.int64)


def corpus(chunks: Artifact, embeddings: Artifact, split: str = "train") -> Corpus:
    """The rows of `split`, made once on each machine and known by the contents of both artefacts.

    A chunk may have no embedding (`max_chunks`). Raises UserError when the embeddings are of other chunks.
    """
    used = embeddings.manifest["inputs"].get("chunks", {})
    if used.get("content") != chunks.content:
        raise UserError(
            f"embeddings = {embeddings.name!r}: made from chunks {used.get('name')!r}, not from {chunks.name!r} as "
            "they are now; embed these"
        )
    key = f"mining-{split}-{chunks.content[:24]}-{embeddings.content[:24]}"
    folder = storage.made_once(key, lambda target: _write(chunks, embeddings, split, target))
    sizes = json.loads((folder / _SIZES).read_text("utf-8"))
    return Corpus(folder, sizes["num_rows"], sizes["dim"], tuple(sizes["dropped"]))


def _write(chunks: Artifact, embeddings: Artifact, split: str, folder: Path) -> None:
    folder.mkdir()
    codes: dict[str, dict[str, int]] = {"work": {}, "author": {}, "author_group": {}, "document": {}}
    sizes: dict[str, Any] = {"num_rows": 0, "dim": 0, "dropped": []}
    text_row = source_row = last_document = 0
    files = {name: (folder / name).open("wb") for name in (*_COLUMNS, _VECTORS)}
    ids_schema = pa.schema([("chunk_id", pa.string())])
    with pa.OSFile(str(folder / _IDS), "wb") as sink, pa.ipc.new_file(sink, ids_schema) as writer:
        # Part i of the embeddings holds vectors of chunks of part i: `pipelines.embed` works by part.
        for chunk_part, part in zip(chunks.parts, embeddings.parts, strict=True):
            known = chunks.storage.read_table(chunk_part, _READ)
            made = embeddings.storage.read_table(part, ["chunk_id", "embedding"])
            place = pc.index_in(made["chunk_id"], value_set=known["chunk_id"].combine_chunks())
            if place.null_count:
                raise UserError(f"embeddings = {embeddings.name!r}: {part} holds ids that {chunk_part} does not")
            place = np.asarray(place, np.int64)
            mine = np.asarray(pc.equal(known["split"], split))[place]
            vectors, good = index.unit(schema.matrix(made["embedding"])[mine])
            place = place[mine]
            sizes["dropped"] += known["chunk_id"].take(place[~good]).to_pylist()
            rows = known.take(place[good])
            numbers = _numbers(rows, codes)
            numbers["text_row"] = text_row + place[good]
            numbers["source_row"] = source_row + np.flatnonzero(mine)[good]
            last_document = _check_order(numbers["document"], last_document, chunks)
            for name, file in files.items():
                data = vectors[good] if name == _VECTORS else numbers[name].astype(_COLUMNS[name])
                data.tofile(file)
            writer.write_table(rows.select(["chunk_id"]))
            sizes["num_rows"] += rows.num_rows
            sizes["dim"] = vectors.shape[1]
            text_row, source_row = text_row + known.num_rows, source_row + made.num_rows
    for file in files.values():
        file.close()
    (folder / _SIZES).write_text(json.dumps(sizes), "utf-8")


def _numbers(rows: pa.Table, codes: dict[str, dict[str, int]]) -> dict[str, np.ndarray]:
    columns = {"work": "work_id", "author": "author", "author_group": "author_group", "document": "document_id"}
    numbers = {name: _coded(rows[column].to_pylist(), codes[name]) for name, column in columns.items()}
    numbers["author"][rows["anonymous"].to_numpy()] = -1
    return numbers | {name: rows[name].to_numpy() for name in ("start", "end")}


def _coded(values: Sequence[str], codes: dict[str, int]) -> np.ndarray:
    """Numbers 0, 1, 2 ... in the order in which values are first met."""
    return np.fromiter((codes.setdefault(value, len(codes)) for value in values), np.int64, len(values))


def _check_order(document: np.ndarray, last: int, chunks: Artifact) -> int:
    """The number of the last document; raises UserError for one whose rows do not stand together."""
    if len(document) and (np.diff(document, prepend=last) < 0).any():
        raise UserError(f"chunks = {chunks.name!r}: a document's chunks stand in several places; sort them by document")
    return int(document[-1]) if len(document) else last
