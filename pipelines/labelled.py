"""Documents with categories from records of any source: what `pipelines.arxiv` and `pipelines.datasets` share.

A source is a list of items, such as pieces of files, and a function that reads one of them; memory does not grow with
the corpus.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.shards import drop_rows, run_shards, speed
from quire import artifact, config, papers, readers, schema
from quire.artifact import Artifact, Draft, Shard
from quire.readers import Dropped, Piece
from quire.seen import Seen
from quire.storage import Storage

Reader = Callable[[Any], Iterable[papers.Row | Dropped]]  # of one item


class Files(config.Config):
    """Tables of records: JSON lines (plain, .gz, .zst), Parquet, Arrow, CSV, local or s3://."""

    folder: str
    files: tuple[str, ...] = Field(default=(), description="of the folder; default: every file of these formats")
    shard_bytes: int = Field(default=16 * 2**20, gt=0, description="decompressed source bytes per shard")


def pieces(source: Files, columns: Mapping[str, str | None]) -> tuple[list[Piece], str]:
    """The files cut into what is read at once, and a SHA-256 over names and contents.

    Raises UserError for damage, and for a column (by the key that names it) that no table has.
    """
    storage = Storage(source.folder)
    files = readers.list_files(storage, source.files, readers.TABLES)
    readers.require_columns(storage, files, columns)
    return readers.cut(storage, files, source.shard_bytes, strict=True), readers.contents(storage, files)


def make(settings: Any, items: Sequence[Any], content: str, open_source: Callable[[Any], Reader]) -> Artifact:
    """Make the `documents` artefact of a step's settings. `content`: which corpus it is, wherever it lies.

    `open_source(settings)` runs once per worker. Raises UserError when no document is left.
    """
    draft = artifact.begin_step(settings, "documents", {"source": content}, recipe=recipe_of(settings))
    if draft.published:
        return draft.published
    run_shards(draft, items, shards, (settings, open_source), num_workers=settings.runtime.num_workers)
    drop_repeated(draft, len(items))
    return _publish(draft, len(items))


def recipe_of(settings: Any) -> dict[str, Any]:
    """What a step's settings say of the documents. Where they lie does not matter, only what is in them."""
    recipe = config.recipe(settings)
    recipe["source"].pop("folder", None)
    return recipe


def added(description: str) -> Any:
    """A setting that an older version did not have: unset, it is no part of the recipe, and nothing is made again."""
    return Field(default=None, description=description, exclude_if=lambda value: value is None)


def shards(settings: Any, open_source: Callable[[Any], Reader]) -> Callable[[Any], Shard]:
    """What turns an item into its shard."""
    read = open_source(settings)

    def process(item: Any) -> Shard:
        found = list(read(item))
        rows = [row for row in found if isinstance(row, dict)]
        dropped = [{"id": "", **record._asdict()} for record in found if isinstance(record, Dropped)]
        columns = {name: [row[name] for row in rows] for name in papers.PAPERS.names}
        return Shard(
            table=pa.table(columns, schema=papers.PAPERS),
            rows_in=len(found),
            rejects=schema.rejects(dropped),
            bytes_in=sum(len(row["text"].encode()) for row in rows),
        )

    return process


def drop_repeated(draft: Draft, num_shards: int) -> None:
    """Of documents that share an id the first stays."""
    with Seen() as seen:
        for index in range(num_shards):
            name = f"{draft.folder}/part-{index:05d}.parquet"
            ids = draft.storage.read_table(name, ["document_id"])["document_id"].to_pylist()
            repeated = np.asarray([not seen.add(document) for document in ids], bool)
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
        for found in table["category"].drop_null().value_counts().to_pylist():
            counts[found["values"]] = counts.get(found["values"], 0) + found["counts"]
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in top[:8]) + (", ..." if len(top) > 8 else "")
    filed = f"{len(counts)} categories: {shown}" if counts else "without categories"
    summary = f"{rows:,} documents, {size:.1f} MB of text, {filed}\n{dropped}; {speed(draft, size, 'MB')}"
    return draft.publish(num_shards=num_shards, summary=summary, facts={"categories": dict(top)})
