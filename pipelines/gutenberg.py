"""Books of Project Gutenberg to documents: chosen, fetched politely or read from a mirror, cleaned.

    python -m pipelines.gutenberg pipelines/experiments/gutenberg/documents.toml runtime.contact=you@example.org

Killed at any moment, the same line goes on: a book is settled by itself, and what is settled is not asked for again.
With `name=ANOTHER runtime.previous=NAME`, only what has changed since NAME is sent (conditional requests); NAME must
have been made with keep_raw=true. With runtime.retry_failed=true as well, only what failed in NAME is asked for; the
rest is taken over.

The documents are those of `pipelines.documents`. Beside them stands `metadata-*.parquet`, one row for every id that was
asked for: status, reason, address, SHA-256, rights, and when it was fetched, which alone differs from run to run.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines.harvest import Plan, fetch_all
from pipelines.shards import run_shards, speed
from quire import artifact, catalogue, config, documents, fetch, harvest, mirror, robots, schema, selection, settled
from quire.artifact import WORK, Artifact, Draft, Shard
from quire.catalogue import Entry
from quire.errors import UserError
from quire.fetch import NotFetched
from quire.harvest import Record, Shelf, Wanted
from quire.pace import Pace
from quire.selection import Book, Selection
from quire.storage import Storage

_MAX_CATALOGUE_BYTES = 2**30  # the RDF archive has 130 million
_CATALOGUE_SECONDS = 3_600.0
_ROBOT = "quire"  # as robots.txt may name us


class Http(config.Config):
    """The Project's server or mirrors of it: `runtime.base_urls` says which."""

    kind: Literal["http"] = "http"
    utf8_first: bool = Field(default=False, description="ask for pgN-0.txt before pgN.txt")


class Mirror(config.Config):
    """A mirror on disk or at s3://, such as rsync makes: files N-0.txt, N-8.txt, N.txt, pgN.txt in any folders."""

    kind: Literal["mirror"] = "mirror"
    folder: str


class GutenbergRuntime(config.Runtime):
    """How politely, and from where. Seconds, unless a key says otherwise."""

    contact: str | None = Field(default=None, pattern=r"^[!-~]+$", description="an e-mail or page for the User-Agent")
    base_urls: tuple[str, ...] = Field(default=(harvest.BASE_URL,), min_length=1, description="in order; mirrors too")
    hosts: tuple[str, ...] = Field(default=("www.gutenberg.org", "gutenberg.org"), description="redirects may lead to")
    rate: float = Field(default=0.5, gt=0, description="requests a second, of all workers; the Project asks for 0.5")
    obey_robots: bool = Field(default=True, description="ask no host for what its robots.txt forbids")
    concurrency: int = Field(default=4, gt=0, description="books, and so connections, at a time of each worker")
    limits: fetch.Limits = fetch.Limits()
    retry_failed: bool = Field(
        default=False, description="ask again for what failed, and for nothing else; with `previous`, what failed there"
    )
    patience: int = Field(default=20, gt=0, description="books that fail in a row end the run, whatever max_failed")
    max_failed: int = Field(default=0, ge=0, description="books that may fail without stopping the run")
    previous: str | None = Field(
        default=None, description="artefact with keep_raw, or unfinished: only what changed since is sent"
    )

    @field_validator("base_urls")
    @classmethod
    def _check_base_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if trouble := fetch.misread(url):
                raise ValueError(f"{url!r} {trouble}: need one such as {harvest.BASE_URL}")
        return urls

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if fetch.misread(f"http://{host}") or fetch.netloc(f"http://{host}") != host:
                raise ValueError(f"{host!r}: need a host or host:port in lower case, such as www.gutenberg.org")
        return hosts


class GutenbergConfig(config.Config):
    """What `pipelines.gutenberg` computes."""

    name: str
    source: Http | Mirror = Field(default=Http(), discriminator="kind")
    select: Selection = Selection()
    max_bytes: int = Field(default=64 * 2**20, gt=0, description="of one book")
    keep_raw: bool = Field(default=False, description="fetched bytes stay in raw/, for runtime.previous")
    shard_books: int = Field(default=100, gt=0)
    min_kept: float = Field(default=0.5, ge=0, le=1, description="a document keeping less of itself stops the run")
    allow_losses: tuple[str, ...] = Field(default=(), description="document ids allowed to keep less than min_kept")
    allow_unended: tuple[str, ...] = Field(default=(), description="document ids allowed to lack the END line")
    english: bool = True
    runtime: GutenbergRuntime = GutenbergRuntime()


CONFIG = GutenbergConfig


def run(settings: GutenbergConfig) -> Artifact:
    """Make the `documents` artefact. Raises UserError where too many books failed, and what to do about it."""
    files = _mirrored(settings)
    draft = artifact.begin_step(settings, "documents", _inputs(settings, files), recipe=_recipe(settings))
    if draft.published:
        return _published(draft.published, settings)
    asked = _asked(settings, draft, files)
    shelf = settled.shelf(draft.storage, draft.folder, keep_raw=settings.keep_raw)
    if isinstance(settings.source, Http):
        _fetch(draft, settings, shelf, asked)
    cut = [asked[at : at + settings.shard_books] for at in range(0, len(asked), settings.shard_books)]
    run_shards(draft, list(enumerate(cut)), _reader, (settings, draft), num_workers=settings.runtime.num_workers)
    return _publish(draft, settings, len(cut))


def _recipe(settings: GutenbergConfig) -> dict[str, Any]:
    """Local files count by their content, which is an input; what may be lost decides whether to stop."""
    recipe = config.recipe(settings)
    recipe["source"].pop("folder", None)
    recipe["select"].pop("urls")
    if not _is_address(settings.select.catalogue):
        recipe["select"].pop("catalogue")
    # A harvest that failed may be told to allow them; a mirror is read but once.
    allowed = ("allow_unended",) if isinstance(settings.source, Http) else ()
    return {k: v for k, v in recipe.items() if k not in ("min_kept", "allow_losses", *allowed)}


def _inputs(settings: GutenbergConfig, files: Mapping[int, str]) -> dict[str, str]:
    """SHA-256 of every local file that decides what is made."""
    inputs = {}
    for role in ("urls", "catalogue"):
        path = getattr(settings.select, role)
        if path and not _is_address(path):
            inputs[role] = hashlib.sha256(_local(path, f"select.{role}")).hexdigest()
    if isinstance(settings.source, Mirror):
        inputs["mirror"] = mirror.content_hash(Storage(settings.source.folder), list(files.values()))
    return inputs


def _mirrored(settings: GutenbergConfig) -> dict[int, str]:
    """id -> file of a mirror, of the ids that are named, else of all."""
    if not isinstance(settings.source, Mirror):
        return {}
    files = mirror.best_files(Storage(settings.source.folder).files())
    if not files:
        raise UserError(
            f"source.folder = {settings.source.folder!r}: no file such as 1342-0.txt or pg1342.txt below it"
        )
    named = set(settings.select.numbers)
    return {number: file for number, file in files.items() if not named or number in named}


def _is_address(path: str | None) -> bool:
    return (path or "").startswith(("http://", "https://"))


def _local(path: str, key: str) -> bytes:
    if not Path(path).is_file():
        raise UserError(f"{key} = {path!r}: no such file")
    return Path(path).read_bytes()


def _asked(settings: GutenbergConfig, draft: Draft, files: Mapping[int, str]) -> list[Book]:
    select, listed = settings.select, []
    if select.urls:
        if isinstance(settings.source, Mirror):
            raise UserError("select.urls: a mirror is read by ids; give select.ids")
        listed = harvest.read_urls(_local(select.urls, "select.urls").decode("utf-8-sig", "replace"), select.urls)
    entries = _catalogue(settings, draft) if select.catalogue else {}
    return selection.ask(select, entries, files, listed, only_english=settings.english)


def _catalogue(settings: GutenbergConfig, draft: Draft) -> dict[int, Entry]:
    """Read; from an address once, so that a resumed run has the catalogue that it began with. One that cannot be read
    is not kept."""
    where = settings.select.catalogue
    if not _is_address(where):
        return catalogue.read_catalogue(_local(where, "select.catalogue"), where)
    name = f"{draft.folder}/{WORK}/catalogue"
    if draft.storage.exists(name):
        return catalogue.read_catalogue(draft.storage.read_bytes(name), where)
    data = asyncio.run(_downloaded(settings, where))
    entries = catalogue.read_catalogue(data, where)
    draft.storage.write_bytes(name, data)
    return entries


async def _downloaded(settings: GutenbergConfig, url: str) -> bytes:
    limits = settings.runtime.limits.model_copy(update={"total": _CATALOGUE_SECONDS})
    async with _client(settings, limits, _MAX_CATALOGUE_BYTES) as client:
        try:
            return (await client.get(url, harvest.refuse_html)).body
        except NotFetched as trouble:
            raise UserError(f"select.catalogue = {url!r}: {trouble.reason}: {trouble.detail}") from trouble


def _client(settings: GutenbergConfig, limits: fetch.Limits, max_bytes: int) -> fetch.Client:
    """For what is asked for here and not by a worker."""
    runtime = settings.runtime
    return fetch.Client(Pace(runtime.rate), limits, agent=_agent(settings), hosts=runtime.hosts, max_bytes=max_bytes)


async def _refuse_forbidden(settings: GutenbergConfig, wanted: Sequence[Wanted]) -> None:
    async with _client(settings, settings.runtime.limits, settings.max_bytes) as client:
        await robots.refuse_forbidden(client, (url for book in wanted for url in book.urls), _ROBOT)


def _agent(settings: GutenbergConfig) -> str:
    if settings.runtime.contact is None:
        raise UserError("runtime.contact: missing; a host must be able to reach you: give an e-mail or a web page")
    return f"{_ROBOT}/0.1 (+{settings.runtime.contact})"


def _fetch(draft: Draft, settings: GutenbergConfig, shelf: Shelf, asked: Sequence[Book]) -> None:
    """Bring every book that is not refused to its record. Raises UserError when too many failed."""
    runtime = settings.runtime
    if runtime.retry_failed and (failed := shelf.failed()):
        # Shards tell of the failures; they go first, should we die in between. A new one may have no rejects.
        draft.storage.delete(f"{draft.folder}/{artifact.SHARDS}")
        for name in _parts(draft, "rejects-"):
            draft.storage.delete(name)
        shelf.forget(failed)
    wanted = [Wanted(book.key, book.urls or _urls(settings, book)) for book in asked if not book.refusal[0]]
    previous, known = settled.earlier(draft.storage, runtime.previous)
    if runtime.retry_failed and previous:
        held = shelf.settled()
        shelf.take_over(previous, [known[book.key] for book in wanted if book.key in known and book.key not in held])
    if runtime.obey_robots and {book.key for book in wanted} - shelf.settled():
        asyncio.run(_refuse_forbidden(settings, wanted))
    plan = Plan(
        shelf=shelf,
        limits=runtime.limits,
        agent=_agent(settings),
        hosts=(*harvest.hosts_of(runtime.base_urls), *runtime.hosts),
        max_bytes=settings.max_bytes,
        may_lack_end=settings.allow_unended,
        previous=previous,
    )
    fetch_all(
        wanted,
        plan,
        rate=runtime.rate,
        concurrency=runtime.concurrency,
        patience=runtime.patience,
        num_workers=runtime.num_workers,
        known=known,
        label=draft.folder,
    )
    _refuse_failures(draft, shelf.failed(), runtime.max_failed)


def _urls(settings: GutenbergConfig, book: Book) -> tuple[str, ...]:
    return harvest.urls_of(book.number, settings.runtime.base_urls, utf8_first=settings.source.utf8_first)


def _refuse_failures(draft: Draft, failed: Sequence[Record], most: int) -> None:
    if len(failed) <= most:
        return
    name = f"{draft.folder}/{WORK}/failed.json"
    draft.storage.write_json(name, [{"id": r.key, "reason": r.reason, "detail": r.detail} for r in failed])
    shown = "\n".join(f"  {record.key}: {record.reason}: {record.detail[:200]}" for record in failed[:10])
    raise UserError(
        f"{len(failed)} book(s) failed, more than runtime.max_failed = {most}:\n{shown}\nAll of them: "
        f"{draft.storage.uri(name)}. To try them again, and nothing else, set runtime.retry_failed=true; to go on "
        f"without them runtime.max_failed={len(failed)}. A book that truly lacks its END line goes into allow_unended."
    )


def _reader(settings: GutenbergConfig, draft: Draft) -> Callable[[tuple[int, list[Book]]], Shard]:
    shelf = settled.shelf(draft.storage, draft.folder, keep_raw=settings.keep_raw)
    source: settled.Mirror | settled.Fetched = settled.Fetched(shelf)
    if isinstance(settings.source, Mirror):
        kept = shelf if settings.keep_raw else None
        unended = frozenset(settings.allow_unended)
        source = settled.Mirror(Storage(settings.source.folder), settings.max_bytes, unended, kept)

    def process(item: tuple[int, list[Book]]) -> Shard:
        index, books = item
        shard, metadata = settled.to_documents(books, source, only_english=settings.english)
        draft.storage.write_table(f"{draft.folder}/metadata-{index:05d}.parquet", metadata)
        return shard

    return process


def _published(made: Artifact, settings: GutenbergConfig) -> Artifact:
    facts = made.manifest["facts"]
    if losses := documents.losses(facts["kept"], settings.min_kept, settings.allow_losses):
        raise UserError(losses)
    if settings.runtime.retry_failed and facts["failed"]:
        raise UserError(
            f"{made.storage.uri(made.folder)} is published without {len(facts['failed'])} book(s) that failed, and "
            "stays as it is: give another name="
            + (f", and runtime.previous={made.name}, from which all else is taken" if settings.keep_raw else "")
        )
    return made


def _publish(draft: Draft, settings: GutenbergConfig, num_shards: int) -> Artifact:
    kept = {k: v for record in draft.finished_shards().values() for k, v in record["facts"]["kept"].items()}
    if losses := documents.losses(kept, settings.min_kept, settings.allow_losses):
        raise UserError(losses)  # not given up: what was fetched stays
    totals = draft.totals()
    if not totals["rows_out"]:
        message = f"no document survived: {schema.summarise(totals['dropped'])}; look at rejects in {draft.folder}"
        if isinstance(settings.source, Http) and totals["cost"]["bytes_in"]:  # another recipe must not delete them
            raise UserError(f"{message}; to use what was fetched, give another name= and runtime.previous={draft.name}")
        raise draft.given_up(message)
    summary = f"{documents.told(kept, totals)}; {speed(draft, totals['cost']['bytes_in'] / 1e6, 'MB')}"
    books = _metadata(draft)
    facts = {"kept": kept, "failed": {b["document_id"]: b["reason"] for b in books if b["status"] == "failed"}}
    if isinstance(settings.source, Http) and settings.runtime.previous:
        known = settled.earlier(draft.storage, settings.runtime.previous)[1]
        digests = {key: record.sha256 for key, record in known.items()}
        facts["unchanged"] = sum(
            b["sha256"] is not None and digests.get(b["document_id"]) == b["sha256"] for b in books
        )
        summary += f"\n{facts['unchanged']:,} books are as in {settings.runtime.previous}"
    return draft.publish(num_shards=num_shards, summary=summary, facts=facts)


def _metadata(draft: Draft) -> list[dict[str, Any]]:
    """What became of each book that was asked for."""
    columns = ["document_id", "status", "reason", "sha256"]
    files = _parts(draft, "metadata-")
    return [row for file in files for row in draft.storage.read_table(file, columns).to_pylist()]


def _parts(draft: Draft, prefix: str) -> list[str]:
    """What the shards have written under names that begin so."""
    return [f"{draft.folder}/{name}" for name in draft.storage.files(draft.folder) if name.startswith(prefix)]


if __name__ == "__main__":
    config.main(CONFIG, run)
