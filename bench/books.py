"""Cleaning and chunking a folder of books, MB/s: both steps on Ray beside a process pool and `datasets.map`.

    python -m bench.books --folder BOOKS [--rounds 3]

All three read the same .txt files, clean, recognise near-duplicate works, split by author, cut windows of 14 sentences,
leave out what too many works share, and end with the same chunks on disk, which is checked in every round. The
process pool and `datasets.map` call the same functions of Quire book by book, with the standard library's `Pool` and
`num_proc`; they keep no rejects, hashes or manifest, cannot resume and have one machine only. Each runs in a process
of its own; its imports and the start of Ray do not count, the start of workers does.

Each round is run with the whole folder and with every other file of it. The contest is of the whole; the result has the
speed with half of it as well, and for both the peaks of memory, MB, of the process that leads and of the largest
worker: memory is flat where the two are alike.
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
from bench.contest import contest, keep, options, spread
from pipelines import chunk, documents
from quire import dedup, schema

CORES = len(os.sched_getaffinity(0))


def settings(folder: str, root: str) -> tuple[documents.DocumentsConfig, chunk.ChunkConfig]:
    runtime = {"root": root}
    source = {"kind": "folder", "folder": folder}
    return (
        documents.DocumentsConfig(name="books", source=source, min_kept=0, runtime=runtime),
        # balanced: by hashes alone a split of a few dozen authors may be empty
        chunk.ChunkConfig(name="books", documents="books", split={"method": "balanced"}, runtime=runtime),
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
    table = pa.Table.from_pylist(books, schema.DOCUMENTS)
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


def halved(folder: str, target: str) -> str:
    """`target`, with a link to every other file."""
    for file in sorted(Path(folder).rglob("*.txt"))[::2]:
        link = Path(target, file.relative_to(folder))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return target


def megabytes_in(folder: str) -> float:
    return sum(file.stat().st_size for file in Path(folder).rglob("*.txt")) / 1e6


def main() -> None:
    asked = options(__doc__, folder="", rounds=3)
    if not Path(asked.folder).is_dir() or not asked.folder:
        raise SystemExit(f"--folder {asked.folder!r}: give a folder of books as .txt files")
    with tempfile.TemporaryDirectory() as links:
        whole = str(Path(asked.folder).absolute())
        folders = {"half": halved(whole, f"{links}/half"), "whole": whole}
        sizes = {size: megabytes_in(folder) for size, folder in folders.items()}
        speeds, peaks = ({name: {size: [] for size in folders} for name in CONTENDERS} for _ in range(2))
        made: dict[str, pa.Table] = {}  # by size, what the first has left

        def speed(name: str) -> float:
            for size, folder in folders.items():
                with tempfile.TemporaryDirectory() as root:
                    seconds, peak = apart(*CONTENDERS[name], folder, root)
                    chunks = chunks_of(root)
                assert made.setdefault(size, chunks).equals(chunks), f"{name}: other chunks"
                speeds[name][size].append(sizes[size] / seconds)
                peaks[name][size].append(peak)
            return speeds[name]["whole"][-1]

        result = contest("books", "MB", {name: partial(speed, name) for name in CONTENDERS}, asked.rounds)
        facts = {
            "half": {name: spread(found["half"]) for name, found in speeds.items()},
            "peak_mb": {name: {size: _most(rows) for size, rows in found.items()} for name, found in peaks.items()},
        }
        keep(result | {"megabytes": sizes} | facts)
        print(facts)


def _most(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {who: max(peak[who] for peak in rounds) for who in rounds[0]}


if __name__ == "__main__":
    main()
