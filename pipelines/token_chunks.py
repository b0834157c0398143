"""Any corpus to token chunks: windows of at most so many tokens, as the model that will read them counts.

    python -m pipelines.token_chunks pipelines/experiments/corpus/token_chunks.toml source.folder=FOLDER \
        [key=value ...] [--estimate]
    python -m pipelines.token_chunks pipelines/experiments/corpus/token_chunks.toml source.dataset=OWNER/NAME \
        [source.subset=NAME] [source.split=train]

Files are read in pieces, in parallel; a chunk's text is the source's own and its token ids are kept. What cannot be
read is dropped with its file and place; too much of it stops the run.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import Field, model_validator

from pipelines.shards import drop_all, run_shards, speed
from quire import (
    artifact,
    bpe,
    chunk_statistics,
    config,
    hub,
    hub_sets,
    ledger,
    manifest,
    readers,
    sampled,
    schema,
    token_chunks,
    word_tokens,
)
from quire.artifact import WORK, Artifact, Draft, Shard
from quire.readers import Dropped, Piece
from quire.storage import Storage

_BATCH_CHARS = 2**20
_SAMPLE = 3  # pieces that an estimate reads
_AFTER_READING = ("no_token", "repeated_id")  # reasons that say nothing against the source's files


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
    shard_bytes: int = Field(default=16 * 2**20, gt=0, description="decompressed")

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
    (storage, files, revision), tokenizer = _source(settings)
    recipe = config.recipe(settings)
    recipe["source"].pop("folder")  # where it lies does not matter, only what is in it
    recipe["source"]["revision"] = revision
    if settings.source.dataset is None:
        for key in ("dataset", "subset", "split", "revision"):
            recipe["source"].pop(key)
    inputs = {"source": readers.contents(storage, files), "tokenizer": token_chunks.digest(tokenizer)}
    draft = artifact.begin_step(settings, "chunks", inputs, recipe=recipe)
    if draft.published:
        return draft.published
    pieces = readers.cut(storage, files, settings.source.shard_bytes)
    _check_lost(draft, readers.lost_share(storage, files, pieces), pieces, settings)
    items = list(enumerate(pieces))
    arguments = (settings, tokenizer, storage, draft)
    run_shards(
        draft,
        items,
        _chunker,
        arguments,
        num_workers=settings.runtime.num_workers,
        memory=2**30,
        hopeless=lambda: _hopeless(draft, storage, pieces, settings),
    )
    _name_lines(draft, storage, pieces)
    _check_drops(draft, settings)
    lengths, hashes = _drop_repeated(draft, storage, pieces)
    found = chunk_statistics.statistics(lengths, hashes, settings.max_tokens)
    return _publish(draft, len(items), found)


def estimate(settings: TokenChunksConfig, drawn: dict[str, ledger.Drawn] | None = None) -> str:
    """What the whole would take, from a few of its pieces, evenly spaced, done here; their rows go into `drawn`."""
    (storage, files, _), tokenizer = _source(settings)
    pieces, share = sampled.pieces(storage, files, settings.source.shard_bytes, _SAMPLE)
    chosen = list(enumerate(pieces))
    with tempfile.TemporaryDirectory() as scratch:
        draft = artifact.begin(scratch, "chunks", settings.name, recipe={}, inputs={})
        process = _chunker(settings, tokenizer, storage, draft)
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
        drawn[f"chunks/{settings.name}"] = ledger.Drawn(pa.concat_tables(tables), share)
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
    return found, _tokenizer(settings.model)


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
        for batch in _batches(readers.records(storage, piece, columns), source):
            documents, where, bad = _documents(batch, source)
            made, counts = token_chunks.chunk_table(documents, backend, **how)
            tables.append(made)
            found = list(zip(documents["document_id"].to_pylist(), where, counts, strict=True))
            rejects += bad + [
                {"id": i, "reason": "no_token", "detail": place} for i, place, count in found if not count
            ]
            places += [place for _, place, count in found if count]
            read, size = read + len(batch), size + sum(len(text.encode()) for text in documents["text"].to_pylist())
        table = pa.concat_tables(tables)
        draft.storage.write_table(f"{draft.folder}/{WORK}/{index:05d}.parquet", _seen(table, places))
        return Shard(table=table, rows_in=read, rejects=schema.rejects(rejects), bytes_in=size)

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
        table = pa.table({name: [record[name] for record in records] for name in types}, schema=pa.schema(types))
    except _MISFITS:
        batch = [(file, place, _fitting(record, source.types)) for file, place, record in batch]
        return _documents(batch, source)
    where = [_where(file, place) for file, place, record in batch if not isinstance(record, Dropped)]
    bad = [
        {
            "id": file if place is None else f"{file}:{place}",
            "reason": record.reason,
            "detail": f"{_where(file, place)}: {record.detail}",
        }
        for file, place, record in batch
        if isinstance(record, Dropped)
    ]
    return table, where, bad


def _where(file: str, place: Any) -> str:
    """For people to read. The number of a line is found at the end, by `_number_lines`."""
    if not isinstance(place, int):
        return file
    return f"{file}, {'byte' if readers.has_lines(file) else 'row'} {place}"


def _number_lines(storage: Storage, file: str, rejects: list[dict[str, Any]]) -> bool:
    """Say lines instead of bytes in the details of a file's rejects; whether there was any to say."""
    begin = f"{file}, byte "
    found = [row for row in rejects if row["detail"].startswith(begin)]
    places = [re.match(r"\d+", row["detail"][len(begin) :])[0] for row in found]
    numbers = readers.line_numbers(storage, file, [int(place) for place in places]) if found else []
    for row, place, number in zip(found, places, numbers, strict=True):
        row["detail"] = f"{file}, line {number}{row['detail'][len(begin) + len(place) :]}"
    return bool(found)


def _name_lines(draft: Draft, storage: Storage, pieces: list[Piece]) -> None:
    """`_number_lines` of what the shards have dropped. A file is read through once, and only if it has rejects."""
    dropping = [index for index, record in sorted(draft.finished_shards().items()) if record["dropped"]]
    for file, shards in groupby(dropping, lambda index: pieces[index].get("file", "")):
        names = [f"{draft.folder}/rejects-{index:05d}.parquet" for index in shards if readers.has_lines(file)]
        tables = [draft.storage.read_table(name).to_pylist() for name in names]
        if _number_lines(storage, file, [row for rows in tables for row in rows]):
            for name, rows in zip(names, tables, strict=True):
                draft.storage.write_table(name, schema.rejects(rows))


_MISFITS = (pa.ArrowException, OverflowError, UnicodeEncodeError)  # what Arrow raises for a value of another type


def _fitting(record: dict[str, Any] | Dropped, types: dict[str, pa.DataType]) -> dict[str, Any] | Dropped:
    for name, kind in types.items() if not isinstance(record, Dropped) else ():
        try:
            pa.array([record[name]], kind)
        except _MISFITS:
            return Dropped("wrong_type", f"{name} = {record[name]!r:.80} is no {kind}")
    return record


def _seen(table: pa.Table, places: list[str]) -> pa.Table:
    """What the end of the run asks of every chunk of a shard, repeated documents among them; where each stands, at its
    first chunk."""
    where = np.full(table.num_rows, None, object)
    where[table["index"].to_numpy() == 0] = places
    hashes = chunk_statistics.text_hashes(table["text"].to_pylist())
    columns = {"hash": pa.array(hashes), "where": pa.array(where, pa.string())}
    return pa.table({name: table[name] for name in ("document_id", "index", "num_tokens")} | columns)


def _check_lost(draft: Draft, share: float, pieces: list[Piece], settings: TokenChunksConfig) -> None:
    """A file that cannot be read is one record among the dropped, however many it held."""
    lost = [piece for piece in pieces if piece.get("lost")]
    if lost and share > settings.runtime.max_bad_share:
        raise draft.given_up(
            f"runtime.max_bad_share = {settings.runtime.max_bad_share}: {share:.1%} of the source's bytes stand in "
            f"{len(lost)} file(s) that cannot be read, first {lost[0]['file']}: {lost[0]['damage']}; fetch them again, "
            "or set a higher share"
        )


def _hopeless(draft: Draft, storage: Storage, pieces: list[Piece], settings: TokenChunksConfig) -> str | None:
    """Why the run is given up before its end: pieces are about as large as each other, and already more records are bad
    than the whole may have, with a quarter more allowed for pieces that hold more records than those read."""
    records = draft.finished_shards()
    totals = manifest.totals(records.values())
    count, told = _bad(draft, totals)
    expected = totals["rows_in"] * len(pieces) / len(records)
    if len(records) == len(pieces) or count <= 1.25 * settings.runtime.max_bad_share * expected:
        return None
    _name_lines(draft, storage, pieces)
    return str(
        draft.given_up(
            f"runtime.max_bad_share = {settings.runtime.max_bad_share}: after {len(records):,} of {len(pieces):,} "
            f"shards there are more bad records than all of them may have: {told}; mend the source, or set a higher "
            "share, which goes on from here"
        )
    )


def _bad(draft: Draft, totals: dict[str, Any]) -> tuple[int, str]:
    """How many of the records read so far are bad, and that in words."""
    bad = {reason: count for reason, count in totals["dropped"].items() if reason not in _AFTER_READING}
    where = f"look at rejects in {draft.storage.uri(draft.folder)}"
    return sum(bad.values()), f"{schema.summarise(bad)} of {totals['rows_in']:,} records; {where}"


def _check_drops(draft: Draft, settings: TokenChunksConfig) -> None:
    totals, limit = draft.totals(), settings.runtime.max_bad_share
    count, told = _bad(draft, totals)
    if count > limit * totals["rows_in"]:
        raise draft.given_up(
            f"runtime.max_bad_share = {limit}: more records than that cannot be read: {told}; mend the source, or "
            "set a higher share, which goes on from here"
        )
    if not totals["rows_out"]:
        where = settings.source.folder or settings.source.dataset
        raise draft.given_up(f"source = {where!r}: no chunk is left: {told}")


def _drop_repeated(draft: Draft, storage: Storage, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Of documents that share an id the first stays. Returns num_tokens and hash of every chunk that stays.

    The driver holds 12 bytes a chunk, which are returned, and 8 a document: ids are compared by hash first, and those
    that agree in full. While they are put together, it is up to twice as much.
    All is read from what the shards have left beside their parts, so that a killed run finds the same again.
    """
    names = [f"{draft.folder}/{WORK}/{index:05d}.parquet" for index in range(len(pieces))]
    marks = [_marks(_ids(draft.storage.read_table(name, ["document_id", "index"]))) for name in names]
    values, counts = np.unique(np.concatenate(marks), return_counts=True)
    shared = values[counts > 1]
    del values, counts
    seen: set[str] = set()
    drops: dict[int, tuple[np.ndarray, list[dict[str, Any]]]] = {}
    records, lengths, hashes = draft.finished_shards(), [], []
    for index, name in enumerate(names):
        table = draft.storage.read_table(name)
        repeated = np.zeros(table.num_rows, bool)
        if np.isin(marks[index], shared).any():
            repeated, rejects = _repeated(table, seen)
            if repeated.any() and records[index]["rows_out"] == table.num_rows:  # else it has had its turn
                drops[index] = repeated, rejects
        lengths.append(table["num_tokens"].to_numpy()[~repeated])
        hashes.append(table["hash"].to_numpy()[~repeated])
    for file, shards in groupby(drops, lambda index: pieces[index].get("file", "")):
        _number_lines(storage, file, [row for index in shards for row in drops[index][1]])
    drop_all(draft, drops)
    return np.concatenate(lengths), np.concatenate(hashes)


def _ids(table: pa.Table) -> list[str]:
    """Of each document once: a document begins at its chunk 0."""
    return table["document_id"].filter(pa.array(table["index"].to_numpy() == 0)).to_pylist()


def _marks(ids: list[str]) -> np.ndarray:
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids))


def _repeated(table: pa.Table, seen: set[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(n,) bool, the chunks of documents that were seen before, and a reject for each such document."""
    first, again, rejects = table["index"].to_numpy() == 0, [], []
    for name, where in zip(_ids(table), table["where"].drop_null().to_pylist(), strict=True):
        again.append(name in seen)
        seen.add(name)
        if again[-1]:
            rejects.append({"id": name, "reason": "repeated_id", "detail": where})
    return np.asarray(again, bool)[np.cumsum(first) - 1], rejects


def _publish(draft: Draft, num_shards: int, found: dict[str, Any]) -> Artifact:
    totals = draft.totals()
    records, size = totals["rows_in"], totals["cost"]["bytes_in"] / 1e6
    summary = (
        f"{found['rows']:,} chunks, {found['tokens']:,} tokens of {records:,} records, {size:,.1f} MB of text\n"
        f"{chunk_statistics.told(found)}\n"
        f"{schema.summarise(totals['dropped'])}; {speed(draft, size, 'MB')}, {speed(draft, found['tokens'], 'tokens')}"
    )
    return draft.publish(num_shards=num_shards, summary=summary, facts=found)


if __name__ == "__main__":
    config.main(CONFIG, run, estimate=estimate)
