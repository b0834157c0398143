"""Settled books to a shard of documents, and to rows that say what became of each: the metadata of a harvest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Any

import pyarrow as pa

from quire import artifact, documents, fetch, gutenberg_header, harvest, schema
from quire.artifact import Shard
from quire.errors import UserError
from quire.fetch import NotFetched
from quire.harvest import Record, Shelf
from quire.selection import Book
from quire.storage import Storage

RAW = "raw"  # the folder of bytes as they were fetched


@dataclass(frozen=True)
class Mirror:
    """Books that lie in a folder; `shelf` takes a copy of their bytes where they are to be kept."""

    storage: Storage
    max_bytes: int
    may_lack_end: frozenset[str]
    shelf: Shelf | None

    def read(self, book: Book) -> tuple[dict[str, Any], bytes]:
        """What became of the book, by the columns of the metadata; and its bytes."""
        if book.file is None:
            return {"status": "missing", "reason": fetch.ABSENT, "detail": "the mirror has no file of it"}, b""
        try:
            data = self._checked(book)
        except NotFetched as trouble:
            return {"status": "failed", "reason": trouble.reason, "detail": f"{book.file}: {trouble.detail}"}, b""
        if self.shelf:
            self.shelf.storage.write_bytes(self.shelf.body_name(book.key), data)
        found = {"status": "done", "source_url": book.file, "num_bytes": len(data)}
        found["last_modified"] = format_datetime(self.storage.modified(book.file), usegmt=True)
        return found | {"sha256": hashlib.sha256(data).hexdigest()}, data

    def _checked(self, book: Book) -> bytes:
        if self.storage.size(book.file) > self.max_bytes:
            raise NotFetched("too_large", f"more than {self.max_bytes} bytes")
        try:
            data = self.storage.read_bytes(book.file)
        except PermissionError as error:
            raise NotFetched("unreadable", "no permission to read it") from error
        harvest.check_book(data, "", may_lack_end=book.key in self.may_lack_end)
        return data


@dataclass(frozen=True)
class Fetched:
    """Books that a harvest has settled."""

    shelf: Shelf

    def read(self, book: Book) -> tuple[dict[str, Any], bytes]:
        """What became of the book, by the columns of the metadata; and its bytes."""
        record = self.shelf.record(book.key)
        found = {name: getattr(record, name) for name in ("status", "reason", "detail", "sha256", "num_bytes", "etag")}
        found |= {"source_url": record.url, "asked_url": record.asked, "fetched_at": record.fetched}
        found |= {"last_modified": record.last_modified}
        return found, self.shelf.body(record) if record.status == "done" else b""


def shelf(storage: Storage, folder: str, *, keep_raw: bool) -> Shelf:
    """Where a harvest in the making has its records and bytes; the bytes outlive it if they are to be kept."""
    bodies = f"{folder}/{RAW}" if keep_raw else f"{folder}/{artifact.WORK}/{RAW}"
    return Shelf(storage, f"{folder}/{artifact.WORK}/records", bodies)


def earlier(storage: Storage, name: str | None) -> tuple[Shelf | None, dict[str, Record]]:
    """The bytes of an earlier artefact of books, or of one that was never finished, and what was recorded of them and
    of the books that were missing.

    Raises UserError when there are none.
    """
    if name is None:
        return None, {}
    folder = f"documents/{name}"
    if storage.exists(f"{folder}/{artifact.DRAFT}") and not storage.exists(f"{folder}/{artifact.MANIFEST}"):
        recipe = storage.read_json(f"{folder}/{artifact.DRAFT}")["recipe"]
        begun = shelf(storage, folder, keep_raw=bool(recipe.get("keep_raw")))
        known = {record.key: record for record in begun.every_record() if record.status != "failed"}
        if not any(record.status == "done" for record in known.values()):
            raise UserError(f"runtime.previous = {name!r}: it is unfinished and has fetched no book; leave it out")
        return begun, known
    made = artifact.open_artifact(storage, "documents", name)
    files = set(made.manifest["files"])
    if not any(file.startswith(f"{RAW}/") for file in files):
        raise UserError(
            f"runtime.previous = {name!r}: it holds no {RAW}/; only one made with keep_raw=true can be asked"
        )
    columns = {"key": "document_id", "url": "source_url", "asked": "asked_url", "fetched": "fetched_at"}
    columns |= {name: name for name in ("reason", "detail", "sha256", "num_bytes", "etag", "last_modified")}
    known = {}
    for file in sorted(file for file in files if file.startswith("metadata-")):
        for row in storage.read_table(f"{folder}/{file}").to_pylist():
            found = {key: row[column] for key, column in columns.items()}
            if row["status"] == "missing":
                known[row["document_id"]] = Record(status="missing", **found)
            elif row["sha256"] and f"{RAW}/{row['document_id']}.txt" in files:  # done, or refused once it was read
                known[row["document_id"]] = Record(status="done", **found | {"reason": "", "detail": ""})
    return Shelf(storage, "", f"{folder}/{RAW}"), known


def to_documents(books: Sequence[Book], source: Mirror | Fetched, *, only_english: bool) -> tuple[Shard, pa.Table]:
    """A shard of documents and its rejects; and the metadata, a row for each book whatever became of it."""
    made = documents.Books(only_english=only_english)
    rows = [_added(made, book, source) for book in books]
    columns = {name: [row.get(name) or None for row in rows] for name in schema.HARVEST.names}
    return made.shard(), pa.table(columns, schema=schema.HARVEST)


def _added(made: documents.Books, book: Book, source: Mirror | Fetched) -> dict[str, Any]:
    row: dict[str, Any] = {"document_id": book.key, "gutenberg_id": book.number}
    if book.entry:
        row |= {"title": book.entry.title, "languages": book.entry.languages, "licence": book.entry.rights}
    if book.refusal[0]:
        made.drop(book.key, *book.refusal)
        return row | {"status": "refused", "reason": book.refusal[0], "detail": book.refusal[1]}
    found, data = source.read(book)
    if found["status"] == "done":
        reason, detail = made.add(book.key, found["source_url"], data, book.identity)
        if reason:  # it keeps its SHA-256, by which a later harvest knows that it has the bytes
            found |= {"status": "refused", "reason": reason, "detail": detail}
        row["licence"] = row.get("licence") or gutenberg_header.licence(data)
    else:
        made.drop(book.key, _REASONS[found["status"]] + found["reason"], found["detail"])
    return row | found


_REASONS = {"missing": "", "failed": "failed_"}  # absent, failed_timeout ...
