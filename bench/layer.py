"""What the Ray layer costs: a step on Ray Data beside the same step and shards in plain processes, MB/s and tokens/s.

    python -m bench.layer [--megabytes 40] [--encoded 0.5] [--rounds 3]

Two steps: `pipelines.token_chunks` of `megabytes` of text, and `pipelines.embed` of the chunks of `encoded` megabytes
with all-MiniLM-L6-v2. Without Ray they run the very same code but for `run_shards`, in whose place a standard process
pool, forked with every module loaded, gives each core the next shard; both must leave the same bytes. Each runs in a
process of its own, whose imports and start of Ray do not count; the start of workers does. A step of one small shard
stands in the result as `start`, in seconds: of that, what is more with Ray is lost once, however long a step runs. The
corpus is that of `bench.token_chunks`, in 16 shards. With 0 megabytes a step is left out.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch

from bench import token_chunks as source
from bench.apart import apart, on_ray
from bench.contest import contest, options
from pipelines import embed, token_chunks
from pipelines.workers import Process
from quire.artifact import Artifact, Draft, open_artifact

_held: list[Any] = []  # what a plain process makes shards with


def chunk_step(root: str, name: str, folder: str) -> Artifact:
    settings = token_chunks.TokenChunksConfig(
        name=name,
        source=token_chunks.Corpus(folder=folder, key="id", shard_bytes=_group_bytes(f"{folder}/texts.parquet")),
        max_tokens=source.MAX_TOKENS,
        overlap=source.OVERLAP,
        runtime=token_chunks.TokenChunksRuntime(root=root),
    )
    return token_chunks.run(settings)


def _group_bytes(file: str) -> int:
    """Of the largest row group, so that each is a shard."""
    about = pq.ParquetFile(file).metadata
    return max(about.row_group(number).total_byte_size for number in range(about.num_row_groups))


def embed_step(root: str, name: str, chunks: str) -> Artifact:
    return embed.run(embed.EmbedConfig(name=name, chunks=chunks, runtime=embed.EmbedRuntime(root=root)))


def timed(step: Callable[..., Artifact], *args: Any) -> tuple[float, tuple[str, ...]]:
    """Seconds, and the hash of each part that was made; a report beside them holds the artefact's name."""
    started = time.perf_counter()
    made = step(*args)
    seconds = time.perf_counter() - started
    return seconds, tuple(made.manifest["files"][part.rpartition("/")[2]]["sha256"] for part in made.parts)


def without_ray(step: Callable[..., Artifact], *args: Any) -> tuple[float, tuple[str, ...]]:
    here = {"gpus": lambda *_, **__: 0.0, "on_a_worker": lambda function, *given, **_: function(*given)}
    with mock.patch.object(token_chunks, "run_shards", plain), mock.patch.multiple(embed, run_shards=plain, **here):
        return timed(step, *args)


def plain(
    draft: Draft, items: list[Any], make: Callable[..., Process], arguments: tuple[Any, ...] = (), **_: Any
) -> None:
    """`pipelines.shards.run_shards` of a new draft without Ray: a process a core, each takes the next shard."""
    most = min(len(items), len(os.sched_getaffinity(0)))
    begun = (make, arguments, draft, items)
    with ProcessPoolExecutor(most, multiprocessing.get_context("fork"), initializer=_begin, initargs=begun) as pool:
        for _index in pool.map(_make, range(len(items))):
            pass


def _begin(make: Callable[..., Process], arguments: tuple[Any, ...], draft: Draft, items: list[Any]) -> None:
    torch.set_num_threads(1)  # as Ray does for a worker of one CPU
    _held[:] = make(*arguments), draft, items


def _make(index: int) -> int:
    process, draft, items = _held
    cpu = time.process_time()
    shard = process(items[index])
    shard.cpu += time.process_time() - cpu
    draft.write_shard(index, shard)
    return index


WAYS: dict[str, tuple[Callable[..., Any], ...]] = {
    "on Ray": (on_ray, timed),
    "plain processes": (without_ray,),
}


def compare(
    name: str, unit: str, step: Callable[..., Artifact], root: str, inputs: tuple[str, str], amount: float, rounds: int
) -> None:
    """A contest of both ways; `inputs` are what the step reads: one small shard, and the whole."""
    contents: set[tuple[str, ...]] = set()
    peaks: dict[str, dict[str, float]] = {}

    def once(way: str, what: str) -> float:
        (seconds, content), peaks[way] = apart(*WAYS[way], step, root, f"{name}-{time.monotonic_ns()}", what)
        if what == inputs[1]:
            contents.add(content)
            assert len(contents) == 1, f"{name}: the two differ"
        return seconds

    start = {way: once(way, inputs[0]) for way in WAYS}
    contenders = {way: lambda way=way: amount / once(way, inputs[1]) for way in WAYS}
    contest(f"layer-{name}", unit, contenders, rounds, amount=amount, start=start, peak_mb=peaks)
    print({"start": start, "peak_mb": peaks})


def prepare(root: str, megabytes: float) -> tuple[str, str, float]:
    """Folders of one small shard and of the whole, and MB of text."""
    made = source.prepare(root, megabytes)
    whole, one = Path(root, "source"), Path(root, "one")
    one.mkdir()
    pq.write_table(pq.ParquetFile(whole / "texts.parquet").read_row_group(0).slice(0, 20), one / "texts.parquet")
    return str(one), str(whole), made


def main() -> None:
    asked = options(__doc__, megabytes=40.0, encoded=0.5, rounds=3)
    if asked.megabytes:
        with tempfile.TemporaryDirectory() as root:
            one, whole, amount = prepare(root, asked.megabytes)
            compare("token-chunks", "MB", chunk_step, root, (one, whole), amount, asked.rounds)
    if asked.encoded:
        with tempfile.TemporaryDirectory() as root:
            one, whole, _ = prepare(root, asked.encoded)
            for name, folder in (("one", one), ("whole", whole)):
                apart(without_ray, chunk_step, root, name, folder)
            amount = open_artifact(root, "chunks", "whole").manifest["facts"]["tokens"]
            compare("encode", "tokens", embed_step, root, ("one", "whole"), amount, asked.rounds)


if __name__ == "__main__":
    main()
