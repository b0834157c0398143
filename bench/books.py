"""Cleaning and chunking a folder of books, MB/s: both steps on Ray beside a process pool and `datasets.map`.

    python -m bench.books --folder BOOKS [--rounds 3]

All three read the same .txt files, clean, recognise near-duplicate works, split by author, cut windows of 14 sentences,
leave out what too many works share, and end with the same chunks on disk, which is checked before the rounds. The
process pool and `datasets.map` call the same functions of Quire book by book, with the standard library's `Pool` and
`num_proc`; they keep no rejects, hashes or manifest, cannot resume and have one machine only. Each runs in a process
of its own; its imports and the start of Ray do not count, the start of workers does. Peaks of memory are told of the
process that leads and of the largest worker.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.apart import apart, on_ray
from bench.contest import contest, options
from pipelines import chunk, documents
from quire import dedup, schema

CORES = len(os.sched_getaffinity(0))


def settings(folder: str, root: str) -> tuple[documents.DocumentsConfig, chunk.ChunkConfig]:
    runtime = {"root": root}
    source = {"kind": "folder", "folder": folder}
    return (
        documents.DocumentsConfig(name="books", source=source, min_kept=0, runtime=runtime),
        chunk.ChunkConfig(name="books", documents="books", runtime=runtime),
    )


def quire_steps(folder: str, root: str) -> float:
    """Seconds; the chunks are left below `root`, as by the others."""
    first, second = settings(folder, root)
    started = time.perf_counter()
    documents.run(first)
    chunk.run(second)
    return time.perf_counter() - started


def read_book(item: dict[str, Any], asked: documents.DocumentsConfig) -> list[dict[str, Any]]:
    """The row of one file, or none where it is no book in English."""
    return documents.TextFiles.make(asked)([item]).table.to_pylist()


def cut_book(
    book: dict[str, Any], asked: chunk.ChunkConfig, works: dict[str, chunk.Work]
) -> tuple[pa.Table, np.ndarray]:
    """Chunks of one book, and their fingerprints."""
    rows = chunk.chunk_document(book, asked, works[book["document_id"]])[0]
    return pa.Table.from_pylist(rows, schema.CHUNKS), dedup.chunk_fingerprints([row["text"] for row in rows])


def assigned(books: list[dict[str, Any]], asked: chunk.ChunkConfig) -> dict[str, chunk.Work]:
    table = pa.Table.from_pylist([{name: book[name] for name in schema.DOCUMENTS.names} for book in books])
    return chunk.assign(table, [len(book["text"]) for book in books], asked)


def process_pool(folder: str, root: str) -> float:
    first, second = settings(folder, root)
    started = time.perf_counter()
    items = [item for shard in documents.TextFiles(first).shards() for item in shard]
    with multiprocessing.get_context("fork").Pool(CORES) as pool:
        books = [row for rows in pool.imap(partial(read_book, asked=first), items) for row in rows]
        cut = partial(cut_book, asked=second, works=assigned(books, second))
        tables, marks = zip(*pool.imap(cut, books), strict=True)
    table = pa.concat_tables(tables)
    repeated = dedup.repeated(np.concatenate(marks), table["work_id"].to_pylist(), second.max_repeats)
    pq.write_table(table.filter(pa.array(~repeated)), f"{root}/chunks.parquet")
    return time.perf_counter() - started


def read_batch(batch: dict[str, list], asked: documents.DocumentsConfig) -> dict[str, list]:
    rows = read_book({"file": batch["file"][0], "id": batch["id"][0], "stated": {}}, asked)
    return {name: [row[name] for row in rows] for name in schema.DOCUMENTS.names}


def cut_batch(
    batch: dict[str, list], asked: chunk.ChunkConfig, works: dict[str, chunk.Work]
) -> dict[str, np.ndarray | list]:
    table, marks = cut_book({name: values[0] for name, values in batch.items()}, asked, works)
    return {**table.to_pydict(), "mark": marks}


def datasets_map(folder: str, root: str) -> float:
    import datasets

    datasets.disable_progress_bars()
    first, second = settings(folder, root)
    started = time.perf_counter()
    items = [item for shard in documents.TextFiles(first).shards() for item in shard]
    found = datasets.Dataset.from_dict({key: [item[key] for item in items] for key in ("file", "id")})

    def mapped(rows: Any, cut: Callable[..., Any], columns: pa.Schema) -> Any:
        file, features = f"{root}/{cut.func.__name__}.arrow", datasets.Features.from_arrow_schema(columns)
        each = {"batched": True, "batch_size": 1, "num_proc": CORES, "remove_columns": rows.column_names}
        return rows.map(cut, cache_file_name=file, features=features, **each)

    books = mapped(found, partial(read_batch, asked=first), schema.DOCUMENTS)
    light = books.with_format("arrow", columns=["document_id", "authors", "signature"])[:]
    works = chunk.assign(light, [len(text) for text in books["text"]], second)
    cut = mapped(
        books, partial(cut_batch, asked=second, works=works), schema.CHUNKS.append(pa.field("mark", pa.uint64()))
    )
    found = cut.with_format("arrow", columns=["mark", "work_id"])[:]
    repeated = dedup.repeated(found["mark"].to_numpy(), found["work_id"].to_pylist(), second.max_repeats)
    cut.select(np.flatnonzero(~repeated)).remove_columns("mark").to_parquet(f"{root}/chunks.parquet")
    return time.perf_counter() - started


CONTENDERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "quire documents and chunk": (on_ray, quire_steps),
    "process pool": (process_pool,),
    "datasets.map": (datasets_map,),
}


def chunks_of(folder: str) -> pa.Table:
    """What a contender has left, in the order of ids."""
    parts = sorted(Path(folder).glob("chunks/books/part-*.parquet")) or [Path(folder, "chunks.parquet")]
    table = pa.concat_tables(pq.read_table(part).cast(schema.CHUNKS) for part in parts)
    return table.sort_by("chunk_id")


def main() -> None:
    asked = options(__doc__, folder="", rounds=3)
    if not Path(asked.folder).is_dir() or not asked.folder:
        raise SystemExit(f"--folder {asked.folder!r}: give a folder of books as .txt files")
    folder = str(Path(asked.folder).absolute())
    megabytes = sum(file.stat().st_size for file in Path(folder).rglob("*.txt")) / 1e6
    peaks: dict[str, dict[str, float]] = {}
    made: dict[str, pa.Table] = {}

    def speed(name: str) -> float:
        with tempfile.TemporaryDirectory() as root:
            seconds, peaks[name] = apart(*CONTENDERS[name], folder, root)
            made[name] = chunks_of(root)
        assert made[name].equals(next(iter(made.values()))), f"{name}: other chunks"
        return megabytes / seconds

    contenders = {name: partial(speed, name) for name in CONTENDERS}
    contest("books", "MB", contenders, asked.rounds, megabytes=megabytes, peak_mb=peaks)  # filled by the rounds
    print({name: {who: f"{peak:,.0f} MB" for who, peak in found.items()} for name, found in peaks.items()})


if __name__ == "__main__":
    main()
