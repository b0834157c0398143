"""Corpora to documents: read, identify, clean.

    python -m pipelines.documents pipelines/experiments/books/documents.toml source.folder=BOOKS [key=value ...]

A source is a folder of text files (books), or the documentation strings of the installed packages.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.shards import groups, run_shards, speed
from quire import artifact, config, decode, docstrings, english, gutenberg, gutenberg_header, names, schema
from quire.artifact import Artifact, Draft, Shard
from quire.errors import UserError
from quire.storage import Storage


class Folder(config.Config):
    """Text files below a folder or s3:// address. Author and title come from the Project Gutenberg header, else from
    the manifest, else from folder and file name (`author/title.txt` or `author__title.txt`)."""

    kind: Literal["folder"] = "folder"
    folder: str
    suffix: str = ".txt"
    manifest: str | None = Field(default=None, description="JSON lines with file, author, title; inside the folder")


class Docstrings(config.Config):
    """Documentation strings of installed packages: a package is an author, each of its larger modules a book."""

    kind: Literal["docstrings"] = "docstrings"
    packages: tuple[str, ...] | None = None
    min_chars: int = Field(default=12_000, gt=0)
    max_books: int = Field(default=8, gt=0)
    max_chars: int = Field(default=120_000, gt=0)


class DocumentsRuntime(config.Runtime):
    shard_bytes: int = Field(default=4 * 2**20, gt=0, description="source bytes per shard")


class DocumentsConfig(config.Config):
    """What `pipelines.documents` computes."""

    name: str
    source: Folder | Docstrings = Field(discriminator="kind")
    min_kept: float = Field(default=0.5, ge=0, le=1, description="a document keeping less of itself stops the run")
    allow_losses: tuple[str, ...] = Field(default=(), description="document ids allowed to keep less than min_kept")
    english: bool = True
    runtime: DocumentsRuntime = DocumentsRuntime()


CONFIG = DocumentsConfig


def run(settings: DocumentsConfig) -> Artifact:
    """Make the `documents` artefact. Raises UserError naming a document that cleaning nearly emptied."""
    reading = _Books(settings) if isinstance(settings.source, Folder) else _Packages(settings)
    draft = artifact.begin(
        settings.runtime.root,
        "documents",
        settings.name,
        recipe=_recipe(settings),
        inputs={"source": reading.content_hash()},
    )
    if draft.published:
        return draft.published
    # A shard's bytes, not its place in the cluster, decide what it holds; the number of workers changes nothing.
    run_shards(draft, reading.shards(), reading.make, (settings,), num_workers=settings.runtime.num_workers)
    return _publish(draft, settings, len(reading.shards()))


def _recipe(settings: DocumentsConfig) -> dict[str, Any]:
    """Where a folder lies does not matter, only what is in it (its content hash is an input)."""
    recipe = config.recipe(settings)
    recipe["source"].pop("folder", None)
    return recipe


def _publish(draft: Draft, settings: DocumentsConfig, num_shards: int) -> Artifact:
    records = draft.finished_shards().values()
    kept = {k: v for record in records for k, v in record["facts"]["kept"].items()}
    lost = {k: v for k, v in kept.items() if v < settings.min_kept and k not in settings.allow_losses}
    if lost:
        worst = min(lost, key=lost.get)
        raise UserError(
            f"{len(lost)} document(s) kept less than min_kept = {settings.min_kept} of their text, the worst {worst!r} "
            f"({lost[worst]:.0%}): look at the file; to accept it set allow_losses={sorted(lost)!r} or lower min_kept"
        )
    total = sum(record["bytes_in"] for record in records)
    rows = sum(record["rows_out"] for record in records)
    if not rows:
        raise UserError(
            f"no document survived: {schema.summarise(_dropped(records))}; look at rejects in {draft.folder}"
        )
    summary = (
        f"{rows:,} documents from {total / 1e6:.1f} MB; "
        f"kept {sum(kept.values()) / len(kept):.1%} of the text on average, least {min(kept.values()):.1%}; "
        f"{schema.summarise(_dropped(records))}; {speed(draft, total / 1e6, 'MB')}"
    )
    return draft.publish(num_shards=num_shards, summary=summary, facts={"kept": kept})


def _dropped(records: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for record in records:
        for reason, count in record["dropped"].items():
            total[reason] = total.get(reason, 0) + count
    return total


class _Books:
    """A folder of text files as shards of consecutive files."""

    def __init__(self, settings: DocumentsConfig):
        self.settings, self.source = settings, settings.source
        self.storage = Storage(self.source.folder)
        every = self.storage.files()
        self.files = [file for file in every if file.endswith(self.source.suffix)]
        if not self.files:
            raise UserError(
                f"source.folder = {self.source.folder!r}: no file ending in {self.source.suffix!r} below it"
            )
        self.manifest = self._read_manifest(every)

    def content_hash(self) -> str:
        """SHA-256 over names and contents, so that a changed book is noticed wherever the folder lies."""
        files = self.files + ([self.source.manifest] if self.source.manifest else [])
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(self.storage.sha256, files))
        return hashlib.sha256(json.dumps(list(zip(files, digests, strict=True))).encode()).hexdigest()

    def shards(self) -> list[list[dict[str, Any]]]:
        sizes = [self.storage.size(file) for file in self.files]
        ids = _document_ids(self.files, self.source.suffix)
        items = [
            {"folder": self.source.folder, "file": file, "id": ids[file], **self.manifest.get(file, {})}
            for file in self.files
        ]
        return [[items[i] for i in group] for group in groups(sizes, self.settings.runtime.shard_bytes)]

    def _read_manifest(self, every: Sequence[str]) -> dict[str, dict[str, str]]:
        name = self.source.manifest
        if name is None:
            return {}
        if name not in every:
            raise UserError(f"source.manifest = {name!r}: no such file in {self.source.folder!r}")
        rows = [json.loads(line) for line in self.storage.read_bytes(name).decode("utf-8").splitlines() if line.strip()]
        return {PurePosixPath(row["file"]).name: {k: row[k] for k in ("author", "title") if row.get(k)} for row in rows}

    @staticmethod
    def make(settings: DocumentsConfig) -> Any:
        def process(items: list[dict[str, Any]]) -> Shard:
            rows, dropped, size = [], [], 0
            for item in items:
                data = Storage(item["folder"]).read_bytes(item["file"])
                size += len(data)
                row, reason = _read_book(item, data, settings)
                if row is not None:
                    rows.append(row)
                else:
                    dropped.append({"id": item["id"], "reason": reason[0], "detail": f"{item['file']}: {reason[1]}"})
            return _shard(rows, dropped, len(items), size)

        return process


def _read_book(item: dict[str, Any], data: bytes, settings: DocumentsConfig) -> tuple[dict | None, tuple[str, str]]:
    """One file as a document row, or the reason why not."""
    try:
        decoded = decode.decode(data)
    except decode.Unreadable as error:
        return None, (error.reason, str(error))
    header = gutenberg_header.parse_header(decoded.text)
    languages = [language.lower() for language in header.languages]
    if settings.english and languages and "english" not in languages:
        return None, ("not_english", f"its header says {', '.join(header.languages)}")
    text = gutenberg.clean(decoded.text).text
    if not text.strip():
        return None, ("empty", "nothing left after cleaning")
    if settings.english and not english.looks_english(text):
        return None, ("not_english", "few English function words")
    author, title = _identity(item, header)
    row = {
        "document_id": item["id"],
        "author": names.slug(author),
        "author_name": author,
        "anonymous": names.is_anonymous(author),
        "title": title,
        "text": text,
        "source": item["file"],
        "encoding": decoded.encoding,
        "kept": len(text) / max(1, len(decoded.text)),
    }
    return row, ("", "")


def _identity(item: dict[str, Any], header: Any) -> tuple[str, str]:
    """Author and title: the header's, else the manifest's, else folder and file name."""
    path = PurePosixPath(item["file"])
    stem_author, separator, stem_title = path.stem.partition("__")
    from_path = (
        (path.parent.name, path.stem)
        if path.parent.name
        else (stem_author if separator else "", stem_title or path.stem)
    )
    author = "; ".join(header.authors) or item.get("author") or from_path[0].replace("_", " ")
    title = header.title or item.get("title") or from_path[1].replace("_", " ")
    return author, title


def _document_ids(files: Sequence[str], suffix: str) -> dict[str, str]:
    """A stable id per file from its relative path; a hash is added where two paths would give the same id."""
    slugs = {file: "/".join(names.slug(part, 120) for part in file.removesuffix(suffix).split("/")) for file in files}
    counts: dict[str, int] = {}
    for slug in slugs.values():
        counts[slug] = counts.get(slug, 0) + 1
    mark = {file: hashlib.sha256(file.encode()).hexdigest()[:8] for file in files}
    return {file: slug if counts[slug] == 1 else f"{slug}-{mark[file]}" for file, slug in slugs.items()}


class _Packages:
    """Installed packages as shards of one package each."""

    def __init__(self, settings: DocumentsConfig):
        self.settings = settings
        self.packages = docstrings.list_packages(settings.source.packages)
        if not self.packages:
            raise UserError(f"source.packages = {settings.source.packages!r}: none of them is installed")

    def content_hash(self) -> str:
        """Names and versions: an installed version's files do not change."""
        return hashlib.sha256(json.dumps([[p.name, p.version] for p in self.packages]).encode()).hexdigest()

    def shards(self) -> list[Any]:
        return [[package] for package in self.packages]

    @staticmethod
    def make(settings: DocumentsConfig) -> Any:
        source = settings.source

        def process(packages: list[Any]) -> Shard:
            rows, dropped, size = [], [], 0
            for package in packages:
                limits = {"min_chars": source.min_chars, "max_books": source.max_books, "max_chars": source.max_chars}
                for book in docstrings.read_books(package, **limits):
                    size += len(book.text.encode())
                    dropped += [{"id": book.title, "reason": "unparsable", "detail": why} for why in book.skipped]
                    rows.append(
                        {
                            "document_id": book.title,
                            "author": names.slug(book.author),
                            "author_name": book.author,
                            "anonymous": False,
                            "title": book.title,
                            "text": book.text,
                            "source": f"{package.name}=={package.version}",
                            "encoding": "utf-8",
                            "kept": 1.0,
                        }
                    )
            return _shard(rows, dropped, len(rows) + len(dropped), size)

        return process


def _shard(rows: list[dict], dropped: list[dict], rows_in: int, size: int) -> Shard:
    columns = {name: [row[name] for row in rows] for name in schema.DOCUMENTS.names}
    return Shard(
        table=pa.table(columns, schema=schema.DOCUMENTS),
        rows_in=rows_in,
        rejects=schema.rejects(dropped),
        bytes_in=size,
        facts={"kept": {row["document_id"]: round(row["kept"], 4) for row in rows}},
    )


if __name__ == "__main__":
    config.main(CONFIG, run)
