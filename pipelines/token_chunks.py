"""Any corpus to token chunks: windows of at most so many tokens, as the model that will read them counts.

    python -m pipelines.token_chunks pipelines/experiments/corpus/token_chunks.toml source.folder=FOLDER \
        [key=value ...] [--estimate]
    python -m pipelines.token_chunks pipelines/experiments/corpus/token_chunks.toml source.dataset=OWNER/NAME \
        [source.subset=NAME] [source.split=train]

Files are read in pieces, in parallel; a chunk's text is the source's own and its token ids are kept. What cannot be
read is dropped with its file and place; too much of it stops the run.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipelines import token_drops
from pipelines.shards import run_shards, speed
from quire import (
    artifact,
    bpe,
    chunk_report,
    chunk_statistics,
    config,
    hub,
    hub_sets,
    ledger,
    many,
    readers,
    sampled,
    schema,
    token_chunks,
    word_tokens,
)
from quire.artifact import FETCHED, WORK, Artifact, Draft, Shard
from quire.errors import UserError
from quire.readers import Dropped, Piece
from quire.storage import Storage

_BATCH_CHARS = 2**20
_SAMPLE, _LOOK_BYTES = 3, 2**18  # pieces that an estimate reads; bytes of a file that is looked at before it is fetched
# A shard is what one worker does and what a kill costs: of a small corpus each worker gets several, for its chunks are
# encoded shard by shard, which on a CPU takes two minutes a megabyte.
_SHARDS, _LEAST_BYTES, MOST_BYTES = 64, 2**18, 16 * 2**20


class Corpus(config.Config):
    """Files below a folder, local or s3://: JSON lines (plain, .gz, .zst), Parquet, Arrow, CSV (every column a string);
    or .txt (column `text`).

    Or those of a data set's split: by its name on the hub, or by a folder that `datasets` reads.
    """

    folder: str | None = None
    dataset: str | None = Field(default=None, description="instead of a folder; read where it lies, pinned")
    subset: str | None = Field(default=None, description="one of the data set's configurations")
    split: str = Field(default="train", description="of the data set")
    revision: str | None = Field(default=None, description="of the data set: a commit, branch or tag; default: newest")
    files: tuple[str, ...] = Field(default=(), description="of the folder; default: every file of these formats")
    text: str = "text"
    key: str | None = Field(default=None, description="column of ids; default: the place in the file")
    keep: dict[str, str] = Field(default={}, description='columns to keep and their Arrow types: {url = "string"}')
    shard_bytes: int | None = Field(
        default=None, gt=0, description="decompressed; default: a 64th of the files, from 256 KiB to 16 MiB"
    )

    @property
    def types(self) -> dict[str, pa.DataType]:
        return {name: pa.type_for_alias(kind) for name, kind in self.keep.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.folder is None) == (self.dataset is None):
            raise ValueError("give source.folder or source.dataset, and not both")
        if self.dataset and self.files:
            raise ValueError("source.files goes with source.folder; of a data set choose subset and split")
        for name, kind in self.keep.items():
            try:
                pa.type_for_alias(kind)
            except ValueError as error:
                remedy = "an Arrow type such as string, int64, float64, bool, timestamp[us]"
                raise ValueError(f"keep.{name} = {kind!r}: need {remedy}") from error
        return self


class TokenChunksRuntime(config.Runtime):
    """What is dropped is never part of a result, so how much of it is borne is no part of the recipe."""

    max_bad_share: float = Field(
        default=0.05, ge=0, le=1, description="of records that cannot be read, and of bytes in files that cannot"
    )
    max_repeated_share: float = Field(
        default=0.5, ge=0, le=1, description="of records that have the id of an earlier one, where source.key names ids"
    )


class TokenChunksConfig(config.Config):
    """What `pipelines.token_chunks` computes."""

    name: str
    source: Corpus
    model: str = Field(default=hub.MINILM, description="whose tokenizer counts: a folder or a name on the hub")
    max_tokens: int = Field(default=250, description="special tokens not counted")
    overlap: int = 25
    runtime: TokenChunksRuntime = TokenChunksRuntime()

    @model_validator(mode="after")
    def _check(self) -> Self:
        token_chunks.check_window(self.max_tokens, self.overlap)
        token_chunks.chunk_schema(self.source.types)
        return self


CONFIG = TokenChunksConfig


def run(settings: TokenChunksConfig) -> Artifact:
    """Make the `chunks` artefact. Raises UserError when no chunk is left, or too many records cannot be read."""
    found, tokenizer = _source(settings)
    storage, files, revision = found
    shard_bytes = _shard_bytes(settings.source, found)
    recipe = config.recipe(settings)
    recipe["source"]["shard_bytes"] = shard_bytes
    recipe["source"].pop("folder")  # where it lies does not matter, only what is in it
    recipe["source"]["revision"] = revision
    if settings.source.dataset is None:
        for key in ("dataset", "subset", "split", "revision"):
            recipe["source"].pop(key)
    inputs = {"source": readers.contents(storage, files), "tokenizer": token_chunks.digest(tokenizer)}
    draft = artifact.begin_step(settings, "chunks", inputs, recipe=recipe)
    if draft.published:
        return draft.published
    most_bad = settings.runtime.max_bad_share
    if hub_sets.must_fetch(found):
        scratch = draft.storage.below(f"{draft.folder}/{FETCHED}")
        storage = hub_sets.fetched(found, scratch, before=lambda: _look(found, settings.source, most_bad))
    pieces = readers.cut(storage, files, shard_bytes)
    token_drops.check_lost(draft, readers.lost_share(storage, files, pieces), pieces, most_bad)
    items = list(enumerate(pieces))
    arguments = (settings, tokenizer, storage, draft)
    run_shards(
        draft,
        items,
        _chunker,
        arguments,
        num_workers=settings.runtime.num_workers,
        memory=2**30,
        hopeless=lambda: token_drops.hopeless(draft, storage, pieces, most_bad) or token_drops.check_kept(draft),
    )
    token_drops.name_lines(draft, storage, pieces)
    token_drops.check(draft, settings.source.folder or settings.source.dataset, most_bad)
    if lacking := token_drops.check_kept(draft, ended=True):
        raise UserError(lacking)
    lengths, hashes = token_drops.drop_repeated(draft, storage, pieces)
    token_drops.check_repeated(draft, settings.source.key, settings.runtime.max_repeated_share)
    found = chunk_statistics.statistics(lengths, hashes, settings.max_tokens)
    return _publish(draft, len(items), found)


def estimate(settings: TokenChunksConfig, drawn: dict[str, ledger.Drawn] | None = None) -> str:
    """What the whole would take, from a few of its pieces, evenly spaced, done here; their rows go into `drawn`."""
    found, tokenizer = _source(settings)
    pieces, share = sampled.pieces(found.storage, found.files, _shard_bytes(settings.source, found), _SAMPLE)
    chosen = list(enumerate(pieces))
    with tempfile.TemporaryDirectory() as scratch:
        draft = artifact.begin(scratch, "chunks", settings.name, recipe={}, inputs={})
        process = _chunker(settings, tokenizer, found.storage, draft)
        started = time.process_time()
        records = [draft.write_shard(index, process((index, piece))) for index, piece in chosen]
        cpu = time.process_time() - started
        tables = [draft.storage.read_table(f"{draft.folder}/part-{index:05d}.parquet") for index, _ in chosen]
    sample = ledger.Sample(
        share=share,
        rows=sum(table.num_rows for table in tables),
        tokens=sum(sum(table["num_tokens"].to_pylist()) for table in tables),
        bytes_out=sum(record["bytes_out"] for record in records),
        cpu=cpu,
    )
    if drawn is not None:
        drawn[f"chunks/{settings.name}"] = ledger.Drawn(pa.concat_tables(tables), share, len(tables))
    return ledger.estimate(sample, settings.runtime.prices and settings.runtime.prices.model_dump())


def _source(settings: TokenChunksConfig) -> tuple[hub_sets.Found, str]:
    """The files, which have the columns that are asked for, and the tokenizer as JSON."""
    source = settings.source
    if source.dataset is None:
        storage = Storage(source.folder)
        found = hub_sets.Found(storage, readers.list_files(storage, source.files, readers.FORMATS), None)
    else:
        found = hub_sets.find(source.dataset, source.subset, source.split, source.revision)
    columns = {"source.text": source.text, "source.key": source.key, **{f"source.keep.{n}": n for n in source.keep}}
    readers.require_columns(found.storage, found.files, columns)
    for file in (file for file in found.files if readers.csv_delimiter(file)):
        for name, kind in source.types.items():
            if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
                raise UserError(f"source.keep.{name} = {kind}: columns of CSV are strings ({file}); keep it as string")
    return found, _tokenizer(settings.model)


def _look(found: hub_sets.Found, source: Corpus, max_bad_share: float) -> None:
    """Raises UserError where no record at the beginning of a few files can be used, before all files are fetched. Only
    lines are looked at: a table says which columns it has."""
    lines = [file for file in found.files if readers.has_lines(file)]
    pieces = [
        piece for file in sampled.spaced(lines, _SAMPLE) for piece in sampled.head(found.storage, file, _LOOK_BYTES)[0]
    ]
    records = [
        one for piece in pieces for batch in _batches(readers.records(found.storage, piece), source) for one in batch
    ]
    bad = [(file, record) for file, _, record in records if isinstance(record, Dropped) and token_drops.is_bad(record)]
    if bad and len(bad) == len(records) and max_bad_share < 1:
        file, first = bad[0]
        raise UserError(
            f"source.text = {source.text!r}, source.key = {source.key!r}: none of {len(bad):,} records that were "
            f"looked at can be used; {file} begins with {first.reason} ({first.detail}); name columns that there are, "
            "or set runtime.max_bad_share=1, which fetches the files and goes on"
        )


def _shard_bytes(source: Corpus, found: hub_sets.Found) -> int:
    """As set, or by how large the corpus is: the same for the same files."""
    if source.shard_bytes is not None:
        return source.shard_bytes
    if found.storage.fetch_first and not hub_sets.must_fetch(found):  # its library fetches 5 MB around a range
        return MOST_BYTES
    size = sum(many.each(found.storage.size, found.files, "sizes of files asked for"))
    return min(max(size // _SHARDS, _LEAST_BYTES), MOST_BYTES)


def _tokenizer(model: str) -> str:
    return bpe.load(hub.find_tokenizer(model)).backend_tokenizer.to_str()


def _chunker(
    settings: TokenChunksConfig, tokenizer: str, storage: Storage, draft: Draft
) -> Callable[[tuple[int, Piece]], Shard]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a worker has one CPU
    source, backend = settings.source, token_chunks.whole(tokenizer)
    how: dict[str, Any] = {"max_tokens": settings.max_tokens, "overlap": settings.overlap}
    how["words"] = word_tokens.WordTokens(backend) if word_tokens.reads_by_words(backend) else None
    how["cut"] = token_chunks.cutting(backend)
    columns = [name for name in (source.text, source.key, *source.keep) if name]
    empty = token_chunks.chunk_schema(source.types).empty_table()

    def process(item: tuple[int, Piece]) -> Shard:
        index, piece = item
        tables, rejects, places, read, size = [empty], [], [], 0, 0
        kept = dict.fromkeys(source.keep, 0)  # records that have a value
        for batch in _batches(readers.records(storage, piece, columns), source):
            documents, where, bad = _documents(batch, source)
            made, counts = token_chunks.chunk_table(documents, backend, **how)
            kept = {name: count + len(documents) - documents[name].null_count for name, count in kept.items()}
            tables.append(made)
            found = list(zip(documents["document_id"].to_pylist(), where, counts, strict=True))
            rejects += bad + [
                {"id": i, "reason": "no_token", "detail": place} for i, place, count in found if not count
            ]
            places += [place for _, place, count in found if count]
            read, size = read + len(batch), size + sum(len(text.encode()) for text in documents["text"].to_pylist())
        table = pa.concat_tables(tables)
        draft.storage.write_table(f"{draft.folder}/{WORK}/{index:05d}.parquet", token_drops.seen(table, places))
        return Shard(table=table, rows_in=read, rejects=schema.rejects(rejects), bytes_in=size, facts={"kept": kept})

    return process


def _batches(found: Iterable[readers.Found], source: Corpus) -> Iterator[list[readers.Found]]:
    """Records of a piece as document_id, text and kept columns, about `_BATCH_CHARS` characters at once."""
    batch: list[readers.Found] = []
    size = 0
    for file, place, record in found:
        if not isinstance(record, Dropped):
            kept = {name: record.get(name) for name in source.keep}
            record = readers.document(record, file, place, text=source.text, key=source.key)
            if not isinstance(record, Dropped):
                record = {**record._asdict(), **kept}
                size += len(record["text"])
        batch.append((file, place, record))
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_CHARS // 256:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _documents(batch: list[readers.Found], source: Corpus) -> tuple[pa.Table, list[str], list[dict[str, str]]]:
    """The documents of a batch as a table, where each stands, and the rejects; a kept value of another type costs its
    record."""
    types = {"document_id": pa.string(), "text": pa.string(), **source.types}
    records = [record for _, _, record in batch if not isinstance(record, Dropped)]
    try:
        if any(_is_cut(record[name], kind) for name, kind in source.types.items() for record in records):
            raise pa.ArrowInvalid("a fraction as an integer")
        table = pa.table({name: [record[name] for record in records] for name in types}, schema=pa.schema(types))
    except _MISFITS:
        batch = [(file, place, _fitting(record, source.types)) for file, place, record in batch]
        return _documents(batch, source)
    where = [token_drops.place_of(file, place) for file, place, record in batch if not isinstance(record, Dropped)]
    bad = [
        {
            "id": file if place is None else f"{file}:{place}",
            "reason": record.reason,
            "detail": f"{token_drops.place_of(file, place)}: {record.detail}",
        }
        for file, place, record in batch
        if isinstance(record, Dropped)
    ]
    return table, where, bad


_MISFITS = (pa.ArrowException, OverflowError, UnicodeEncodeError)  # what Arrow raises for a value of another type


def _is_cut(value: Any, kind: pa.DataType) -> bool:
    """Whether Arrow would cut the fraction off a number without a word."""
    return isinstance(value, float) and pa.types.is_integer(kind) and not value.is_integer()


def _fitting(record: dict[str, Any] | Dropped, types: dict[str, pa.DataType]) -> dict[str, Any] | Dropped:
    for name, kind in types.items() if not isinstance(record, Dropped) else ():
        try:
            fits = not _is_cut(record[name], kind)
            pa.array([record[name]], kind)
        except _MISFITS:
            fits = False
        if not fits:
            return Dropped("wrong_type", f"{name} = {record[name]!r:.80} is no {kind}")
    return record


def _publish(draft: Draft, num_shards: int, found: dict[str, Any]) -> Artifact:
    totals = draft.totals()
    records, size = totals["rows_in"], totals["cost"]["bytes_in"] / 1e6
    summary = (
        f"{found['rows']:,} chunks, {found['tokens']:,} tokens of {records:,} records, {size:,.1f} MB of text\n"
        f"{chunk_statistics.told(found)}\n"
        f"{schema.summarise(totals['dropped'])}; {speed(draft, size, 'MB')}, {speed(draft, found['tokens'], 'tokens')}"
    )
    page = chunk_report.page(found, totals, token_drops.examples(draft))
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    return draft.publish(num_shards=num_shards, summary=summary, facts=found)


if __name__ == "__main__":
    config.main(CONFIG, run, estimate=estimate)
