"""Token chunks of a corpus, MB/s: `pipelines.token_chunks` beside `datasets.map` and semchunk, same fast tokenizer.

    python -m bench.token_chunks [--megabytes 40] [--folder BOOKS] [--rounds 3]

All start from the same Parquet file on disk and end with rows of text and offsets on disk, the first two with token ids
as well. `datasets.map` is used in the usual way: a process a core, `return_offsets_mapping`, a loop over windows; it
knows no bad rows or repeated ids, makes no statistics and no hashes. Before the rounds both results are compared,
row by row. semchunk cuts at ends of sentences and paragraphs instead, and keeps no token ids; its own `processes` share
the texts. Each runs in a process of its own, whose imports and start of Ray do not count; the start of workers does.
Peaks of memory are told of the process that leads and of the largest worker.

The corpus is at most `megabytes` of a folder of .txt files, no text of it twice; or else of the documentation of
installed Python packages, repeated until it is large enough. Either is cut into documents of a mix of lengths around
2,000 characters (log-normal, sigma 1).
"""

import os
import shutil
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
from bench.corpus import corpus
from pipelines import token_chunks
from quire import hub
from quire.artifact import Artifact
from quire.decode import decode

MAX_TOKENS, OVERLAP = 250, 25


def prepare(root: str, megabytes: float, books: str = "") -> float:
    """One Parquet file of documents; MB of text. Raises SystemExit where `books` is a folder without text."""
    files = sorted(Path(books).rglob("*.txt")) if books else []
    if books and not files:
        raise SystemExit(f"--folder {books!r}: no .txt file below it; give a folder of texts")
    found = [decode(file.read_bytes()).text for file in files] if books else corpus(megabytes)
    whole = "\n".join(dict.fromkeys(found) if books else found)
    whole = whole.encode("utf-8", "replace")[: int(megabytes * 10**6)].decode("utf-8", "ignore")
    draw, texts, at = np.random.default_rng(0), [], 0
    while at < len(whole):
        size = int(draw.lognormal(np.log(1_200), 1.0)) + 1
        texts.append(whole[at : at + size].strip() or "blank")
        at += size
    folder = Path(root) / "source"
    folder.mkdir()
    table = pa.table({"id": [f"d{i}" for i in range(len(texts))], "text": texts})
    pq.write_table(table, folder / "texts.parquet", row_group_size=len(texts) // 16 + 1)
    return sum(len(text.encode()) for text in texts) / 1e6


def quire_step(root: str) -> Artifact:
    settings = token_chunks.TokenChunksConfig(
        name=f"chunks-{time.monotonic_ns()}",
        source=token_chunks.Corpus(folder=f"{root}/source", key="id", shard_bytes=3 * 2**20),  # work for every core
        max_tokens=MAX_TOKENS,
        overlap=OVERLAP,
        runtime=token_chunks.TokenChunksRuntime(root=root),
    )
    return token_chunks.run(settings)


def quire_seconds(root: str) -> float:
    started = time.perf_counter()
    made = quire_step(root)
    seconds = time.perf_counter() - started
    shutil.rmtree(Path(root) / made.folder)
    return seconds


def windows(batch: dict, tokenizer) -> dict[str, list]:
    """The usual way: all offsets as Python lists, and a loop over windows."""
    found = tokenizer(batch["text"], add_special_tokens=False, return_offsets_mapping=True)
    made: dict[str, list] = {name: [] for name in ("chunk_id", "start", "end", "text", "token_ids")}
    for name, text, ids, offsets in zip(
        batch["id"], batch["text"], found["input_ids"], found["offset_mapping"], strict=True
    ):
        for index, first in enumerate(range(0, max(len(ids) - OVERLAP, 1), MAX_TOKENS - OVERLAP)):
            window = offsets[first : first + MAX_TOKENS]
            if not window:
                continue
            start = window[0][0] if index else 0
            end = window[-1][1] if first + MAX_TOKENS < len(ids) else len(text)
            made["chunk_id"].append(f"{name}:{index}")
            made["start"].append(start)
            made["end"].append(end)
            made["text"].append(text[start:end])
            made["token_ids"].append(ids[first : first + MAX_TOKENS])
    return made


def datasets_map(root: str, cache: str):
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(hub.MINILM), model_max_length=10**9)
    file = f"{root}/source/texts.parquet"
    found = datasets.load_dataset("parquet", data_files=[file], split="train", cache_dir=cache)
    return found.map(
        partial(windows, tokenizer=tokenizer),
        batched=True,
        num_proc=len(os.sched_getaffinity(0)),
        remove_columns=found.column_names,
    )


def map_seconds(root: str) -> float:
    import datasets  # noqa: F401  imports do not count
    from transformers import AutoTokenizer  # noqa: F401

    with tempfile.TemporaryDirectory(dir=root) as cache:
        started = time.perf_counter()
        datasets_map(root, cache)
        return time.perf_counter() - started


def semchunk_seconds(root: str) -> float:
    """Chunks of at most as many tokens with as much overlap; a new chunker, for it remembers what it has counted."""
    import semchunk
    from transformers import AutoTokenizer

    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(hub.MINILM), model_max_length=10**9)
    rows = pq.read_table(f"{root}/source/texts.parquet")
    chunker = semchunk.chunkerify(
        tokenizer, MAX_TOKENS, tokenizer_kwargs={"add_special_tokens": False, "verbose": False}
    )
    texts, offsets = chunker(
        rows["text"].to_pylist(), processes=len(os.sched_getaffinity(0)), offsets=True, overlap=OVERLAP
    )
    made = {
        "chunk_id": [
            f"{name}:{i}" for name, found in zip(rows["id"].to_pylist(), texts, strict=True) for i in range(len(found))
        ],
        "start": [start for found in offsets for start, _ in found],
        "end": [end for found in offsets for _, end in found],
        "text": [text for found in texts for text in found],
    }
    with tempfile.TemporaryDirectory(dir=root) as folder:
        pq.write_table(pa.table(made), f"{folder}/chunks.parquet")
        return time.perf_counter() - started


CONTENDERS: dict[str, tuple[Callable[..., float], ...]] = {
    "quire pipelines.token_chunks": (on_ray, quire_seconds),
    "datasets.map": (map_seconds,),
    "semchunk": (semchunk_seconds,),
}


def check_equal(root: str) -> int:
    """Number of chunks. Raises AssertionError where the two differ."""
    made = quire_step(root)
    columns = ["chunk_id", "start", "end", "text", "token_ids"]
    with tempfile.TemporaryDirectory(dir=root) as cache:
        ours, theirs = made.read(columns), datasets_map(root, cache).with_format("arrow")[:]
        for name in columns:
            assert ours[name].to_pylist() == theirs[name].to_pylist(), f"{name}: the two differ"
    shutil.rmtree(Path(root) / made.folder)
    return ours.num_rows


def main() -> None:
    asked = options(__doc__, megabytes=40.0, folder="", rounds=3)
    peaks: dict[str, dict[str, float]] = {}  # filled by the rounds
    with tempfile.TemporaryDirectory() as root:
        megabytes = prepare(root, asked.megabytes, asked.folder)
        num_chunks = apart(on_ray, check_equal, root)[0]

        def speed(name: str) -> float:
            seconds, peaks[name] = apart(*CONTENDERS[name], root)
            return megabytes / seconds

        contenders = {name: partial(speed, name) for name in CONTENDERS}
        facts: dict[str, Any] = {"megabytes": megabytes, "num_chunks": num_chunks, "peak_mb": peaks}
        name = "token-chunks-books" if asked.folder else "token-chunks"
        contest(name, "MB", contenders, asked.rounds, **facts)
        print({name: {who: f"{peak:,.0f} MB" for who, peak in found.items()} for name, found in peaks.items()})


if __name__ == "__main__":
    main()
