"""Preparing tokens takes as much memory for a large corpus as for a small one."""

import ctypes
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import memory
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pipelines import labelled, token_drops, tokenize
from quire import artifact, bpe, encoder, tokens
from quire.artifact import WORK, Draft, Shard
from quire.seen import Seen

ROOT = Path(__file__).parents[1]
GROWTH = 1.5  # of the peak, for four times the corpus: lists of it would make it nearly four


def test_places_spread_over_the_corpus_hold_no_list_of_it() -> None:
    def chosen(count: int) -> list[int]:
        return bpe.spread((f"document-{i}" for i in range(count)), 50)

    assert chosen(2_000) == sorted(sorted(range(2_000), key=lambda i: sha256(f"document-{i}".encode()).digest())[:50])
    small, large = (memory.peak(lambda count=count: chosen(count)) for count in (2_000, 8_000))
    assert large < GROWTH * small


def test_a_store_is_written_in_the_memory_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_INDEX_BATCH", 256)

    def write(count: int) -> None:
        writer = tokens.StoreWriter(tmp_path / str(count), 9)
        for i in range(count):
            writer.add(f"document-{i}", "x", ["x", "y"], "train", np.asarray([1, 2, 3], np.uint32))
        writer.close()

    small, large = (memory.peak(lambda count=count: write(count)) for count in (1_500, 6_000))
    assert large < GROWTH * small


def drafted(root: Path, num_shards: int, rows: int, make: Callable[[range], pa.Table]) -> Draft:
    draft = artifact.begin(str(root / str(num_shards)), "documents", "d", recipe={}, inputs={})
    for index in range(num_shards):
        draft.write_shard(index, Shard(table=make(range(index * rows, (index + 1) * rows)), rows_in=rows))
    return draft


def test_repeated_documents_are_dropped_in_the_memory_of_a_shard(tmp_path: Path) -> None:
    def documents(numbers: range) -> pa.Table:
        return pa.table({"document_id": [f"document-{i}" for i in numbers]})

    drafts = [drafted(tmp_path, count, 1_000, documents) for count in (2, 8)]
    small, large = (
        memory.peak(lambda draft=draft, count=count: labelled.drop_repeated(draft, count))
        for draft, count in zip(drafts, (2, 8), strict=True)
    )
    assert large < GROWTH * small


def test_repeated_chunks_are_found_in_forty_bytes_each_and_the_memory_of_a_shard(tmp_path: Path) -> None:
    def chunks(numbers: range) -> pa.Table:
        ids = [f"document-{i // 2}" for i in numbers]
        columns = {"document_id": ids, "index": [i % 2 for i in numbers], "num_tokens": np.full(len(ids), 9, np.int32)}
        return pa.table(columns | {"text": ids})

    def work(count: int) -> int:
        draft = drafted(tmp_path, count, 2_000, chunks)
        for index in range(count):
            table = draft.storage.read_table(f"{draft.folder}/part-{index:05d}.parquet")
            seen = token_drops.seen(table, table["document_id"].to_pylist()[::2])
            draft.storage.write_table(f"{draft.folder}/{WORK}/{index:05d}.parquet", seen)
        pieces = [{"file": "a.parquet"}] * count
        tracemalloc.start()
        try:
            token_drops.drop_repeated(draft, draft.storage, pieces)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    work(1)  # what is imported and cached the first time
    small, large = work(4), work(16)
    assert large - small < 40 * 12 * 2_000  # two chunks a document


def test_shards_are_merged_one_in_memory_at_a_time(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))

    def merged(count: int) -> int:
        draft = artifact.begin(str(tmp_path / str(count)), "tokens", "t", recipe={}, inputs={})
        for index in range(count):
            columns = {
                "document_id": [f"document-{index}-{i}" for i in range(200)],
                "categories": [["x"]] * 200,
                "split": ["train"] * 200,
                "ids": pa.array([np.arange(500, dtype=np.uint32)] * 200, pa.list_(pa.uint32())),
            }
            draft.storage.write_table(f"{draft.folder}/{WORK}/{index:05d}.parquet", pa.table(columns))
        return memory.peak(lambda: tokenize._merge(draft, count, tokenizer, 600))

    small, large = merged(3), merged(12)
    assert large < GROWTH * small


def test_the_tokenizer_and_the_frequent_categories_are_found_part_by_part(tmp_path: Path) -> None:
    def documents(numbers: range) -> pa.Table:
        texts = [f"a text of words {i} " * 20 for i in numbers]
        ids, names = [f"document-{i}" for i in numbers], ["x" if i % 2 else "y" for i in numbers]
        return pa.table({"document_id": ids, "text": texts, "category": names, "split": ["train"] * len(ids)})

    given = {"name": "t", "documents": "d", "tokenizer": {"kind": "bpe", "vocab_size": 270, "max_documents": 20}}

    def work(count: int) -> int:
        made = drafted(tmp_path, count, 500, documents).publish(num_shards=count)
        settings = tokenize.TokenizeConfig.model_validate(given)
        draft = artifact.begin(made.storage, "tokens", "t", recipe={}, inputs={})

        def both() -> None:
            frequent = tokenize._frequent(draft, made, settings.categories)
            assert frequent == {"x", "y"}
            tokenize._tokenizer(draft, made, settings, frequent)

        return memory.peak(both)

    work(1)  # what is imported and cached the first time
    small, large = work(2), work(8)
    assert large < GROWTH * small


def test_an_id_is_new_once_whatever_stands_in_it() -> None:
    with Seen(cache_bytes=2**16) as seen:
        names = ["a", "A", "", "a\0b", "a\0c", "ü", "u\u0308", *map(str, range(5_000))]
        assert all(seen.add(name) for name in names)
        assert not any(seen.add(name) for name in names)


# In a process of its own, whose largest resident set in bytes it tells; ids in no order, none twice.
FILL = """
import resource, sys
from quire.seen import Seen
with Seen(cache_bytes=2**20) as seen:
    for i in range(int(sys.argv[1])):
        assert seen.add(f"{i * 2_654_435_761 % 2**32:032x}")
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ids_seen_do_not_fill_the_memory() -> None:
    def resident(count: int) -> int:
        words = [sys.executable, "-c", FILL, str(count)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    grown = resident(200_000) - resident(1)
    assert grown < 8 * 2**20  # a set of them takes 25 MiB


HOLES = """
import os
import numpy as np
from quire import heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [np.ones(100_000, np.uint8) for _ in range(1_000)]
last = blocks.pop()
del blocks
before = resident()
heap.give_back()
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps nothing to give back")
def test_freed_memory_below_a_block_in_use_goes_back_to_the_system() -> None:
    made = subprocess.run([sys.executable, "-c", HOLES], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(made.stdout) > 50_000_000


def test_an_encoder_keeps_the_kernels_of_few_shapes_unless_told_otherwise(
    encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    encoder.load_encoder(encoder_folder)
    assert (os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) == ("7", "64")
