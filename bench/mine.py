"""Mining, queries/s: the whole of it beside its exact search alone and beside sentence-transformers; memory by corpus.

    python -m bench.mine [--rows 400000] [--dim 384] [--queries 4000] [--k 50] [--rounds 3]

`quire.mine` is what one worker of `pipelines.mine` does with a shard: search, positive scores, all filters, the texts
of what may become a negative, the tables. `search` is `quire.neighbors` with the same k and the works masked. Each has
a process of its own, what lies on the disk already made. `peak_mb` is memory that no file backs, beyond what the
process had before, with an eighth, a quarter and all of the corpus and blocks of a sixteenth of it.
`mine_hard_negatives` gets its embeddings from its own cache (see `bench.neighbors`); it knows no works, so that most of
what it finds is of the query's own work.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench import neighbors as vectors_of
from bench.contest import contest, options
from pipelines import mine as step
from quire import artifact, config, mining_corpus, neighbors, schema
from quire.artifact import Artifact, Shard

DOCUMENT_ROWS, NUM_WORDS = 100, 200
SHARES = (0.125, 0.25, 1.0)


def prepare(root: str, rows: int, dim: int, num_queries: int) -> None:
    """Chunks with texts of 200 random words and their embeddings, 100 chunks a work; and the vectors as files."""
    drawn = artifact.begin(root, "chunks", "bench", recipe={"rows": rows}, inputs={})
    draw, words = np.random.default_rng(0), np.asarray([f"word{i}" for i in range(5_000)])
    Path(root).mkdir(parents=True, exist_ok=True)
    every = np.lib.format.open_memmap(f"{root}/vectors.npy", "w+", np.float32, (rows, dim))
    tables = []
    for part, block in enumerate(vectors_of.blocks(rows, dim)):
        first = part * vectors_of.PART_ROWS
        every[first : first + len(block)] = block
        numbers = range(first, first + len(block))
        ids, works = [f"c{n}" for n in numbers], [f"w{n // DOCUMENT_ROWS}" for n in numbers]
        texts = [" ".join(words[chosen]) for chosen in draw.integers(0, len(words), (len(block), NUM_WORDS))]
        places = [n % DOCUMENT_ROWS for n in numbers]
        starts = [2_000 * place for place in places]
        ends = [start + 1_500 for start in starts]
        same = {"document_id": works, "work_id": works, "author": works, "author_group": works}
        columns = {"chunk_id": ids, **same, "anonymous": [False] * len(ids), "split": ["train"] * len(ids)}
        columns |= {"index": places, "start": starts, "end": ends, "num_sentences": [14] * len(ids), "text": texts}
        chunks = pa.table({name: columns[name] for name in schema.CHUNKS.names}, schema=schema.CHUNKS)
        drawn.write_shard(part, Shard(table=chunks, rows_in=len(ids)))
        made = [ids, schema.lists(block), np.full(len(ids), 9, np.int32)]
        tables.append(pa.table(made, schema=schema.embeddings(dim)))
    np.save(f"{root}/queries.npy", every[:num_queries])
    chunks = drawn.publish()
    draft = artifact.begin(root, "embeddings", "bench-of", recipe={"rows": rows}, inputs={"chunks": chunks})
    for part, table in enumerate(tables):
        draft.write_shard(part, Shard(table=table, rows_in=table.num_rows))
    draft.publish()


def opened(root: str, k: int, block_bytes: int) -> tuple[step.MineConfig, Artifact, Artifact]:
    given = {"name": "bench", "chunks": "bench", "embeddings": "bench-of", "range_max": k, "relative_margin": 0.05}
    runtime = {"root": root, "block_bytes": block_bytes}
    settings = config.build(step.CONFIG, {**given, "sampling_strategy": "random", "runtime": runtime}, "bench")
    chunks, embeddings = (
        artifact.open_artifact(root, *name) for name in (("chunks", "bench"), ("embeddings", "bench-of"))
    )
    mining_corpus.corpus(chunks, embeddings)
    chunks.memory_map(["chunk_id", "text"])
    return settings, chunks, embeddings


def quire_mine(root: str, k: int, num_queries: int, block_bytes: int) -> tuple[float, float]:
    """Seconds, and the peak of memory in MB."""
    settings, chunks, embeddings = opened(root, k, block_bytes)
    draft = artifact.begin_step(settings, "negatives", {"chunks": chunks, "embeddings": embeddings})
    with Peak() as peak:
        started = time.perf_counter()
        process = step.worker(step.Inputs(chunks, embeddings, None, None), draft, settings)
        shard = process(step.Cut(0, 0, num_queries // DOCUMENT_ROWS))
        seconds = time.perf_counter() - started
    assert shard.rows_in == num_queries
    return seconds, peak.megabytes


def search(root: str, k: int, num_queries: int, block_bytes: int) -> tuple[float, float]:
    with Peak() as peak:
        started = time.perf_counter()
        queries, corpus = vectors_of.loaded(root)
        groups = np.arange(len(corpus)) // DOCUMENT_ROWS
        neighbors.search(queries, corpus, k=k, query_groups=groups[: len(queries)], corpus_groups=groups, gpu=False)
        seconds = time.perf_counter() - started
    return seconds, peak.megabytes


def mine_hard_negatives(root: str, k: int, num_queries: int, block_bytes: int) -> tuple[float, float]:
    with Peak() as peak:
        *_, seconds = vectors_of.mine_hard_negatives(root, k)
    return seconds, peak.megabytes


class Peak:
    """The most memory beyond that at the start, of what no file backs, looked at every 10 ms."""

    def __enter__(self) -> "Peak":
        self.before = self.most = self._now()
        self.over = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watch.join()
        self.megabytes = (self.most - self.before) / 1e3

    def _look(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        for line in Path(f"/proc/{os.getpid()}/status").read_text("utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
        raise RuntimeError("no RssAnon in /proc: memory is measured on Linux")


CONTENDERS = {
    "quire.mine": quire_mine,
    "search, quire.neighbors": search,
    "mine_hard_negatives, faiss flat": mine_hard_negatives,
}


def alone(name: str, *arguments: object) -> tuple[float, float]:
    """A contender in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(CONTENDERS[name], arguments)


def main() -> None:
    asked = options(__doc__, rows=400_000, dim=384, queries=4_000, k=50, rounds=3)
    block_bytes = asked.rows * asked.dim * 4 // 16
    with tempfile.TemporaryDirectory() as folder:
        roots = {int(asked.rows * share): f"{folder}/{share}" for share in SHARES}
        for rows, root in roots.items():
            prepare(root, rows, asked.dim, asked.queries)
        whole = roots[asked.rows]
        arguments = (asked.k, asked.queries)
        peaks = {rows: alone("quire.mine", root, *arguments, block_bytes)[1] for rows, root in roots.items()}
        print({f"{rows:,} rows": f"{peak:,.0f} MB at most" for rows, peak in peaks.items()}, flush=True)

        def speed(name: str) -> float:
            return asked.queries / alone(name, whole, *arguments, 2**40)[0]

        facts = {"rows": asked.rows, "dim": asked.dim, "queries": asked.queries, "k": asked.k, "peak_mb": peaks}
        facts |= {"block_mb": block_bytes / 1e6, "vectors_mb": asked.rows * asked.dim * 4 / 1e6}
        contest("mine", "queries", {name: partial(speed, name) for name in CONTENDERS}, asked.rounds, **facts)


if __name__ == "__main__":
    main()
