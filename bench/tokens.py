"""Building a token store, MB/s: `pipelines.tokenize` beside `datasets.map` with the same fast tokenizer.

    python -m bench.tokens [--megabytes 40] [--rounds 3]

Both start from the same Parquet files of documents on disk and end with one file of token ids on disk. `datasets.map`
is used as nanoGPT's prepare.py does it: a process a core, then the ids written into a memory-map; it makes no index and
no splits, cannot resume, and does not check the ids. The corpus is the documentation of installed Python packages,
repeated until it is large enough, in documents of about 2,000 characters; the tokenizer is a BPE of 4,096 words.
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
from pipelines import datasets as labelled_sets
from pipelines import tokenize
from quire import bpe


def prepare(root: str, megabytes: int) -> tuple[list[Path], float]:
    """Documents artefact and tokenizer; the documents' files and their MB of text."""
    texts = list(corpus(megabytes))
    table = pa.table({"text": texts, "category": [f"c{i % 11}" for i in range(len(texts))]})
    folder = Path(root) / "source"
    folder.mkdir()
    pq.write_table(table, folder / "texts.parquet", row_group_size=len(texts) // 16 + 1)
    bpe.save(bpe.train(texts[:3_000], 4_096), Path(root) / "bpe")
    made = labelled_sets.run(
        labelled_sets.DatasetsConfig(
            name="bench", source={"kind": "table", "folder": str(folder), "shard_bytes": 2**20}, runtime={"root": root}
        )
    )
    return [Path(root) / part for part in made.parts], sum(len(text.encode()) for text in texts) / 1e6


def quire_store(root: str, megabytes: float) -> float:
    name = f"store-{time.monotonic_ns()}"
    settings = tokenize.TokenizeConfig(
        name=name,
        documents="bench",
        tokenizer={"kind": "pretrained", "name": f"{root}/bpe"},
        runtime={"root": root},
    )
    started = time.perf_counter()
    made = tokenize.run(settings)
    seconds = time.perf_counter() - started
    shutil.rmtree(Path(root) / made.folder)
    return megabytes / seconds


def datasets_map(root: str, files: list[Path], megabytes: float) -> float:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=root) as cache:
        started = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(f"{root}/bpe")
        found = datasets.load_dataset("parquet", data_files=[str(f) for f in files], split="train", cache_dir=cache)

        def process(batch: dict) -> dict:
            ids = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
            return {"ids": ids, "len": [len(row) for row in ids]}

        made = found.map(process, batched=True, num_proc=cores, remove_columns=found.column_names)
        total = int(np.sum(made["len"], dtype=np.int64))
        out = np.memmap(Path(cache) / "train.bin", dtype=np.uint16, mode="w+", shape=(total,))
        place, shards = 0, min(1024, len(made))
        for index in range(shards):
            batch = made.shard(num_shards=shards, index=index, contiguous=True).with_format("numpy")
            ids = np.concatenate(batch["ids"])
            out[place : place + len(ids)] = ids
            place += len(ids)
        out.flush()
        return megabytes / (time.perf_counter() - started)


def main() -> None:
    import ray

    asked = options(__doc__, megabytes=40, rounds=3)
    ray.init(log_to_driver=False, logging_level="WARNING")
    with tempfile.TemporaryDirectory() as root:
        files, megabytes = prepare(root, asked.megabytes)
        contest(
            "tokens",
            "MB",
            {
                "quire pipelines.tokenize": partial(quire_store, root, megabytes),
                "datasets.map": partial(datasets_map, root, files, megabytes),
            },
            asked.rounds,
            megabytes=megabytes,
        )


if __name__ == "__main__":
    main()
