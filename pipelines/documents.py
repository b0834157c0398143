"""Corpora to documents: read, identify, clean.

    python -m pipelines.documents pipelines/experiments/books/documents.toml source.folder=BOOKS [key=value ...]

A source is a folder of text files (books), or the documentation strings of the installed packages.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.shards import run_shards, speed
from quire import artifact, config, docstrings, documents, grouping, identity, names, schema
from quire.artifact import Artifact, Draft, Shard
from quire.errors import UserError
from quire.storage import Storage


class Folder(config.Config):
    """Text files below a folder or s3:// address. Author and title come from the Project Gutenberg header, else from
    the manifest, else from folder and file name (`author/title.txt` or `author__title.txt`). Whom header, manifest or
    `author__` name, each keeps the book in the split of that author's others."""

    kind: Literal["folder"] = "folder"
    folder: str
    suffix: str = Field(default=".txt", description="in any case: .TXT as well")
    manifest: str | None = Field(default=None, description="JSON lines with file, author, title; inside the folder")
    shard_bytes: int = Field(default=4 * 2**20, gt=0, description="source bytes per shard")


class Docstrings(config.Config):
    """Documentation strings of installed packages: a package is an author, each of its larger modules a book."""

    kind: Literal["docstrings"] = "docstrings"
    packages: tuple[str, ...] | None = None
    min_chars: int = Field(default=12_000, gt=0)
    max_books: int = Field(default=8, gt=0)
    max_chars: int = Field(default=120_000, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars = {self.min_chars}: give at most max_chars = {self.max_chars}")
        return self


class DocumentsConfig(config.Config):
    """What `pipelines.documents` computes."""

    name: str
    source: Folder | Docstrings = Field(discriminator="kind")
    min_kept: float = Field(default=0.5, ge=0, le=1, description="a document keeping less of itself stops the run")
    allow_losses: tuple[str, ...] = Field(default=(), description="document ids allowed to keep less than min_kept")
    english: bool = True
    runtime: config.Runtime = config.Runtime()


CONFIG = DocumentsConfig


def run(settings: DocumentsConfig) -> Artifact:
    """Make the `documents` artefact. Raises UserError naming a document that cleaning nearly emptied."""
    reading = TextFiles(settings) if isinstance(settings.source, Folder) else _Packages(settings)
    draft = artifact.begin_step(settings, "documents", {"source": reading.content_hash()}, recipe=_recipe(settings))
    if draft.published:
        if losses := _losses(draft.published.manifest["facts"]["kept"], settings):
            raise UserError(losses)
        return draft.published
    run_shards(draft, reading.shards(), reading.make, (settings,), num_workers=settings.runtime.num_workers)
    return _publish(draft, settings, len(reading.shards()))


def _recipe(settings: DocumentsConfig) -> dict[str, Any]:
    """Where a folder lies does not matter, only what is in it (its content hash is an input).

    What is allowed to be lost decides whether to stop, not what is made, so it may be set after the loss was found.
    """
    recipe = config.recipe(settings)
    recipe["source"].pop("folder", None)
    return {key: value for key, value in recipe.items() if key not in ("min_kept", "allow_losses")}


def _losses(kept: Mapping[str, float], settings: DocumentsConfig) -> str:
    return documents.losses(kept, settings.min_kept, settings.allow_losses)


def _publish(draft: Draft, settings: DocumentsConfig, num_shards: int) -> Artifact:
    kept = {k: v for record in draft.finished_shards().values() for k, v in record["facts"]["kept"].items()}
    if losses := _losses(kept, settings):
        raise draft.given_up(losses)
    totals = draft.totals()
    if not totals["rows_out"]:
        dropped = schema.summarise(totals["dropped"])
        raise draft.given_up(f"no document survived: {dropped}; look at rejects in {draft.folder}")
    summary = f"{documents.told(kept, totals)}; {speed(draft, totals['cost']['bytes_in'] / 1e6, 'MB')}"
    return draft.publish(num_shards=num_shards, summary=summary, facts={"kept": kept})


class TextFiles:
    """A folder of text files as shards of consecutive files."""

    def __init__(self, settings: DocumentsConfig):
        self.settings, self.source = settings, settings.source
        self.storage = Storage(self.source.folder)
        every, suffix = self.storage.files(), self.source.suffix.lower()
        self.files = [file for file in every if file.lower().endswith(suffix) and file != self.source.manifest]
        if not self.files:
            raise UserError(
                f"source.folder = {self.source.folder!r}: no file ending in {self.source.suffix!r} below it"
            )
        self.manifest = self._read_manifest(every)

    def content_hash(self) -> str:
        """SHA-256 over names and contents, so that a changed book is noticed wherever the folder lies."""
        files = self.files + ([self.source.manifest] if self.source.manifest else [])
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(self._digest, files))
        return hashlib.sha256(json.dumps(list(zip(files, digests, strict=True))).encode()).hexdigest()

    def _digest(self, file: str) -> str:
        try:
            return self.storage.sha256(file)
        except PermissionError:
            return "unreadable"  # it is dropped for that; once it can be read, the corpus is another one

    def shards(self) -> list[list[dict[str, Any]]]:
        sizes = [self.storage.size(file) for file in self.files]
        ids = _document_ids(self.files, self.source.suffix)
        items = [{"file": file, "id": ids[file], "stated": self.manifest.get(file, {})} for file in self.files]
        return [[items[i] for i in group] for group in grouping.groups(sizes, self.source.shard_bytes)]

    def _read_manifest(self, every: Sequence[str]) -> dict[str, dict[str, str]]:
        name = self.source.manifest
        if name is None:
            return {}
        if name not in every:
            raise UserError(f"source.manifest = {name!r}: no such file in {self.source.folder!r}")
        return identity.read_manifest(self.storage.read_bytes(name), self.files, self.storage.uri(name))

    @staticmethod
    def make(settings: DocumentsConfig) -> Any:
        storage = Storage(settings.source.folder)

        def process(items: list[dict[str, Any]]) -> Shard:
            books = documents.Books(only_english=settings.english)
            for item in items:
                try:
                    data = storage.read_bytes(item["file"])
                except PermissionError:
                    books.drop(item["id"], "unreadable", f"{item['file']}: no permission to read it")
                    continue
                identify = partial(identity.identify, item["file"], stated=item["stated"])
                books.add(item["id"], item["file"], data, identify)
            return books.shard()

        return process


def _document_ids(files: Sequence[str], suffix: str) -> dict[str, str]:
    """A stable id per file from its relative path; a hash is added where two paths would give the same id."""
    stems = {file: file[: len(file) - len(suffix)] for file in files}
    slugs = {file: "/".join(names.slug(part, 120) for part in stem.split("/")) for file, stem in stems.items()}
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
                            **identity.by_people(book.title, [book.author]).columns(),
                            "text": book.text,
                            "source": f"{package.name}=={package.version}",
                            "encoding": "utf-8",
                            "kept": 1.0,
                        }
                    )
            kept = {row["document_id"]: 1.0 for row in rows}
            return documents.shard(rows, dropped, kept, size)

        return process


if __name__ == "__main__":
    config.main(CONFIG, run)
