"""Papers to documents with categories: arXiv metadata, a data set from the hub, or any table with a category column.

    python -m pipelines.papers pipelines/experiments/arxiv/papers.toml source.folder=FOLDER [key=value ...]

Files are read in ranges of bytes, so memory does not grow with the corpus.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.shards import drop_rows, run_shards, speed
from quire import artifact, config, papers, readers, schema
from quire.artifact import Artifact, Draft, Shard
from quire.errors import UserError
from quire.storage import Storage


class Arxiv(config.Config):
    """The arXiv metadata snapshot, JSON lines as published (`id`, `title`, `abstract`, `categories`), plain or .gz."""

    kind: Literal["arxiv"] = "arxiv"
    folder: str
    files: tuple[str, ...] = Field(default=(), description="of the folder; default: every .json, .jsonl, .gz")
    shard_bytes: int = Field(default=16 * 2**20, gt=0, description="decompressed source bytes per shard")


class Table(config.Config):
    """JSON lines (plain or .gz) or Parquet files with a column of text and one of categories (a name or a list)."""

    kind: Literal["table"] = "table"
    folder: str
    files: tuple[str, ...] = ()
    text: str = "text"
    category: str = "category"
    title: str | None = None
    key: str | None = Field(default=None, description="column of ids; default: the place in the file")
    shard_bytes: int = Field(default=16 * 2**20, gt=0, description="of JSON lines; Parquet is read by row group")


class Hub(config.Config):
    """A labelled data set by its name on the hub (ccdv/arxiv-classification) or by a local folder of it.

    Its own splits are kept.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    subset: str | None = Field(default=None, description="one of the data set's configurations; a folder has none")
    text: str = "text"
    category: str = "label"
    shard_rows: int = Field(default=1000, gt=0)


class PapersConfig(config.Config):
    """What `pipelines.papers` computes."""

    name: str
    source: Arxiv | Table | Hub = Field(discriminator="kind")
    runtime: config.Runtime = config.Runtime()


CONFIG = PapersConfig


def run(settings: PapersConfig) -> Artifact:
    """Make the `documents` artefact. Raises UserError when no document is left."""
    items, content = _hub_items(settings) if isinstance(settings.source, Hub) else _file_items(settings)
    recipe = config.recipe(settings)
    recipe["source"].pop("folder", None)  # where it lies does not matter, only what is in it
    draft = artifact.begin_step(settings, "documents", {"source": content}, recipe=recipe)
    if draft.published:
        return draft.published
    run_shards(draft, items, _reader, (settings,), num_workers=settings.runtime.num_workers)
    _drop_repeated(draft, len(items))
    return _publish(draft, len(items))


def _file_items(settings: PapersConfig) -> tuple[list[dict[str, Any]], str]:
    """Ranges of bytes of every file (a Parquet file is one), and a SHA-256 over names and contents."""
    source = settings.source
    storage = Storage(source.folder)
    files = readers.list_files(storage, source.files, (".json", ".jsonl", ".gz", ".parquet"))
    return readers.cut(storage, files, source.shard_bytes, strict=True), readers.contents(storage, files)


def _load(source: Hub) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.dataset, source.subset)
    except (ConnectionError, FileNotFoundError, ValueError) as error:  # what datasets raises for names and networks
        raise UserError(f"source.dataset = {source.dataset!r} ({source.subset}): cannot be loaded: {error}") from error


def _hub_items(settings: PapersConfig) -> tuple[list[dict[str, Any]], str]:
    source = settings.source
    loaded = _load(source)
    unknown = sorted(set(loaded) - set(papers.SPLIT_NAMES))
    if unknown:
        raise UserError(
            f"source.dataset = {source.dataset!r}: split {unknown[0]!r} is none of {', '.join(papers.SPLIT_NAMES)}"
        )
    for split, columns in loaded.column_names.items():
        lacking = [name for name in (source.text, source.category) if name not in columns]
        if lacking:
            raise UserError(
                f"source: no column {lacking[0]!r} in split {split!r} of the data set; it has {', '.join(columns)}"
            )
    step = source.shard_rows
    items = [
        {"split": split, "start": at, "end": min(at + step, len(loaded[split]))}
        for split in loaded
        for at in range(0, len(loaded[split]), step)
    ]
    return items, hashlib.sha256(json.dumps({s: loaded[s]._fingerprint for s in loaded}).encode()).hexdigest()


def _reader(settings: PapersConfig) -> Callable[[dict[str, Any]], Shard]:
    source = settings.source
    loaded = _load(source) if isinstance(source, Hub) else None

    def process(item: dict[str, Any]) -> Shard:
        found = list(_hub_rows(loaded, source, item) if loaded else _file_rows(source, item))
        rows = [row for row in found if isinstance(row, dict)]
        dropped = [{"id": "", **record._asdict()} for record in found if isinstance(record, readers.Dropped)]
        columns = {name: [row[name] for row in rows] for name in papers.PAPERS.names}
        return Shard(
            table=pa.table(columns, schema=papers.PAPERS),
            rows_in=len(found),
            rejects=schema.rejects(dropped),
            bytes_in=sum(len(row["text"].encode()) for row in rows),
        )

    return process


def _file_rows(source: Arxiv | Table, item: dict[str, Any]) -> Iterable[papers.Row | readers.Dropped]:
    for file, place, record in readers.records(Storage(source.folder), item):
        if isinstance(record, readers.Dropped):
            yield record
        elif isinstance(source, Arxiv):
            yield papers.arxiv_row(record, file)
        else:
            names = {"text": source.text, "category": source.category, "title": source.title, "key": source.key}
            yield papers.table_row(record, file, place, **names)


def _hub_rows(loaded: Any, source: Hub, item: dict[str, Any]) -> Iterable[papers.Row | readers.Dropped]:
    split = loaded[item["split"]]
    label = split.features[source.category]
    for number in range(item["start"], item["end"]):
        record = split[number]
        value = record[source.category]
        if hasattr(label, "int2str") and value is not None:
            value = label.int2str(value) if 0 <= value < label.num_classes else None  # -1 is "no label"
        record = {**record, source.category: value, "split": item["split"]}
        key = {"key": f"{item['split']}_{number}"}  # as the earlier system numbered them
        yield papers.table_row(
            {**record, **key}, source.dataset, number, text=source.text, category=source.category, title=None, key="key"
        )


def _drop_repeated(draft: Draft, num_shards: int) -> None:
    """Of documents that share an id the first stays."""
    seen: set[str] = set()
    for index in range(num_shards):
        name = f"{draft.folder}/part-{index:05d}.parquet"
        ids = draft.storage.read_table(name, ["document_id"])["document_id"].to_pylist()
        repeated = np.zeros(len(ids), bool)
        for row, document in enumerate(ids):
            repeated[row] = document in seen
            seen.add(document)
        if repeated.any():
            dropped = [{"id": ids[row], "reason": "repeated_id"} for row in np.flatnonzero(repeated)]
            drop_rows(draft, index, repeated, dropped)


def _publish(draft: Draft, num_shards: int) -> Artifact:
    totals = draft.totals()
    rows, dropped, size = totals["rows_out"], schema.summarise(totals["dropped"]), totals["cost"]["bytes_in"] / 1e6
    if not rows:
        raise draft.given_up(f"no document survived: {dropped}; look at rejects in {draft.folder}")
    counts: dict[str, int] = {}
    for index in range(num_shards):
        table = draft.storage.read_table(f"{draft.folder}/part-{index:05d}.parquet", ["category"])
        for found in table["category"].value_counts().to_pylist():
            counts[found["values"]] = counts.get(found["values"], 0) + found["counts"]
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in top[:8]) + (", ..." if len(top) > 8 else "")
    summary = (
        f"{rows:,} documents, {size:.1f} MB of text, {len(counts)} categories: {shown}\n"
        f"{dropped}; {speed(draft, size, 'MB')}"
    )
    return draft.publish(num_shards=num_shards, summary=summary, facts={"categories": dict(top)})


if __name__ == "__main__":
    config.main(CONFIG, run)
