"""The token store: all documents of a corpus as one memory-mapped file of token ids, with an index.

tokens.bin       little-endian uint16 (uint32 when the vocabulary needs it), documents one after another, no header
index.parquet    document_id, category, categories, split, offset, length (both in tokens), in the order of the file
store.json       dtype, vocab_size, num_tokens, num_documents
tokenizer/       what `AutoTokenizer.from_pretrained` loads
index.jsonl, splits.json   the same index in the layout of the earlier system
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from quire.artifact import Artifact
from quire.errors import UserError

INDEX = pa.schema(
    [
        ("document_id", pa.string()),
        ("category", pa.string()),  # the first, by which windows are drawn
        ("categories", pa.list_(pa.string())),
        ("split", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)
SPLITS = ("train", "validation", "test")
_INDEX_BATCH = 8_192  # documents


def token_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id. Raises UserError beyond 2^32 ids."""
    if not 0 < vocab_size <= 2**32:
        raise UserError(
            f"vocab_size = {vocab_size}: token ids are stored in at most 32 bits; choose 1 to {2**32}, "
            "or leave it out to have the tokenizer's own"
        )
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


@dataclass(frozen=True)
class TokenStore:
    """An opened store. Arrays have one entry a document, except `tokens`, which lies on disk."""

    tokens: np.ndarray
    vocab_size: int
    document_ids: np.ndarray
    categories: np.ndarray
    splits: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    fingerprint: str
    folder: Path

    @classmethod
    def open(cls, store: Artifact) -> "TokenStore":
        """Map the store, downloaded first if it is remote. Raises UserError when tokens.bin is missing or cut off."""
        return open_folder(store.local(), store.fingerprint)

    def names(self, split: str = "train") -> list[str]:
        """The categories that occur in a split, sorted."""
        return sorted(set(self.categories[self.splits == split]))

    def read(self, row: int, start: int, length: int) -> np.ndarray:
        """`length` ids (int64) of one document from `start` on."""
        begin = int(self.offsets[row]) + start
        return self.tokens[begin : begin + length].astype(np.int64)


def open_folder(folder: Path, fingerprint: str = "") -> TokenStore:
    """A store by its folder."""
    for name in ("store.json", "index.parquet"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing; delete the store and tokenize again")
    facts = _facts(folder / "store.json")
    file, dtype = folder / "tokens.bin", np.dtype(facts["dtype"])
    expected, found = facts["num_tokens"] * dtype.itemsize, file.stat().st_size if file.exists() else None
    if found != expected:
        state = "missing" if found is None else f"{found:,} bytes long"
        raise UserError(f"{file}: {state}, store.json says {expected:,} bytes; delete the store and tokenize again")
    index = _index(folder / "index.parquet")
    codes = {name: index[name].combine_chunks().dictionary_encode() for name in ("category", "split")}
    # One string object a value, not one a document.
    strings = {
        name: np.asarray(c.dictionary.to_pylist(), dtype=object)[c.indices.to_numpy()] for name, c in codes.items()
    }
    return TokenStore(
        tokens=np.memmap(file, dtype=dtype, mode="r") if expected else np.zeros(0, dtype),
        vocab_size=facts["vocab_size"],
        document_ids=np.asarray(index["document_id"].to_pylist(), dtype=object),
        categories=strings["category"],
        splits=strings["split"],
        offsets=index["offset"].to_numpy(),
        lengths=index["length"].to_numpy(),
        fingerprint=fingerprint,
        folder=folder,
    )


def _facts(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); delete the store and tokenize again") from error


def _index(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, columns=[name for name in INDEX.names if name != "categories"])
    except (pa.ArrowInvalid, OSError) as error:  # a file without its end, and one with a hole
        raise UserError(f"{file}: damaged ({error}); delete the store and tokenize again") from error


class StoreWriter:
    """Writes a store document by document; memory holds a batch of the index, however many documents there are."""

    def __init__(self, folder: Path, vocab_size: int):
        self.folder, self.vocab_size, self.dtype = folder, vocab_size, token_type(vocab_size)
        self.num_tokens = self.num_documents = 0
        self.documents: Counter[tuple[str, str]] = Counter()  # by category and split
        self.sizes: Counter[str] = Counter()  # tokens by category
        self._rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens = (folder / "tokens.bin").open("wb")
        self._index = pq.ParquetWriter(folder / "index.parquet", INDEX, compression="zstd")
        self._old_index = (folder / "index.jsonl").open("w", encoding="utf-8")
        self._old_splits = {name: tempfile.TemporaryFile() for name in SPLITS}  # noqa: SIM115

    def add(self, document_id: str, category: str, categories: list[str], split: str, ids: np.ndarray) -> None:
        """Append a document. Raises UserError for an id outside the vocabulary and a split that is none of SPLITS."""
        if split not in SPLITS:
            raise UserError(f"document {document_id!r}: split {split!r} is none of {', '.join(SPLITS)}")
        size = self.vocab_size
        for worst in (int(ids.max()), int(ids.min())) if len(ids) else ():
            if not 0 <= worst < size:
                above = f"is not below vocab_size = {size}; set it above every id, or leave it out"
                why = "is negative; choose another tokenizer" if worst < 0 else above
                raise UserError(f"document {document_id!r}: token id {worst} {why}")
        self._tokens.write(ids.astype(self.dtype).tobytes())
        place = {"offset": self.num_tokens, "length": len(ids)}
        about = {"document_id": document_id, "category": category, "categories": categories, "split": split}
        self._rows.append({**about, **place})
        self._old_index.write(json.dumps({"paper_id": document_id, "cat": category, **place}) + "\n")
        self._old_splits[split].write(f",\n        {json.dumps(document_id)}".encode())
        self.num_tokens += len(ids)
        self.num_documents += 1
        self.documents[category, split] += 1
        self.sizes[category] += len(ids)
        if len(self._rows) == _INDEX_BATCH:
            self._flush()

    def _flush(self) -> None:
        self._index.write_table(pa.Table.from_pylist(self._rows, schema=INDEX))
        self._rows = []

    def close(self) -> None:
        """Write the rest of the index in both layouts, and store.json."""
        self._flush()
        for file in (self._tokens, self._index, self._old_index):
            file.close()
        self._write_old_splits()
        facts = {
            "dtype": self.dtype.str,
            "vocab_size": self.vocab_size,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
        }
        (self.folder / "store.json").write_text(json.dumps(facts), "utf-8")

    def _write_old_splits(self) -> None:
        """As `json.dump(..., indent=4)` would, with no list of the ids in memory."""
        with (self.folder / "splits.json").open("wb") as file:
            for number, (name, ids) in enumerate(self._old_splits.items()):
                file.write(f'{"," if number else "{"}\n    "{name}": ['.encode())
                if ids.tell():
                    ids.seek(1)  # behind the comma before the first
                    shutil.copyfileobj(ids, file)
                    file.write(b"\n    ")
                ids.close()
                file.write(b"]")
            file.write(b"\n}")


def write_store(
    folder: Path, documents: Iterable[tuple[str, str, list[str], str, np.ndarray]], vocab_size: int
) -> TokenStore:
    """A whole store from (document_id, category, categories, split, ids) in one process."""
    writer = StoreWriter(folder, vocab_size)
    for document in documents:
        writer.add(*document)
    writer.close()
    return open_folder(folder)
