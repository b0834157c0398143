"""Token chunks of a corpus, MB/s: `pipelines.token_chunks` beside `datasets.map` and semchunk, same fast tokenizer.

    python -m bench.token_chunks [--megabytes 40] [--rounds 3]

Both start from the same Parquet file on disk and end with rows of text, offsets and token ids on disk. `datasets.map`
is used in the usual way: a process a core, `return_offsets_mapping`, a Python loop over windows; it knows no bad rows
or repeated ids, makes no statistics and no hashes. Before the rounds both results are compared, row by row. semchunk
cuts at ends of sentences and paragraphs instead, and keeps no token ids; its own `processes` share the texts. The
corpus is the documentation of installed Python packages, repeated until it is large enough, in documents of a mix of
lengths around 2,000 characters (log-normal, sigma 1).
"""

import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.contest import contest, options
from bench.corpus import corpus
from pipelines import token_chunks
from quire import hub
from quire.artifact import Artifact

MAX_TOKENS, OVERLAP = 250, 25


def prepare(root: str, megabytes: float) -> float:
    """One Parquet file of documents; MB of text."""
    whole = "\n".join(corpus(megabytes))
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
        source=token_chunks.Corpus(folder=f"{root}/source", key="id"),
        max_tokens=MAX_TOKENS,
        overlap=OVERLAP,
        runtime=token_chunks.TokenChunksRuntime(root=root),
    )
    return token_chunks.run(settings)


def quire_speed(root: str, megabytes: float) -> float:
    started = time.perf_counter()
    made = quire_step(root)
    seconds = time.perf_counter() - started
    shutil.rmtree(Path(root) / made.folder)
    return megabytes / seconds


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


def map_speed(root: str, megabytes: float) -> float:
    with tempfile.TemporaryDirectory(dir=root) as cache:
        started = time.perf_counter()
        datasets_map(root, cache)
        return megabytes / (time.perf_counter() - started)


def semchunk_speed(root: str, megabytes: float) -> float:
    """Chunks of at most as many tokens with as much overlap; a new chunker, for it remembers what it has counted."""
    import semchunk
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(hub.MINILM), model_max_length=10**9)
    started = time.perf_counter()
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
    return megabytes / (time.perf_counter() - started)


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
    import ray

    asked = options(__doc__, megabytes=40, rounds=3)
    ray.init(log_to_driver=False, logging_level="WARNING")
    with tempfile.TemporaryDirectory() as root:
        megabytes = prepare(root, asked.megabytes)
        num_chunks = check_equal(root)
        contenders = {
            "quire pipelines.token_chunks": partial(quire_speed, root, megabytes),
            "datasets.map": partial(map_speed, root, megabytes),
            "semchunk": partial(semchunk_speed, root, megabytes),
        }
        contest("token-chunks", "MB", contenders, asked.rounds, megabytes=megabytes, num_chunks=num_chunks)


if __name__ == "__main__":
    main()
