"""Run a step shard by shard on Ray Data: a shard is computed, written and recorded by one worker, or not at all.

Resume is by shard: what an interrupted run has recorded is not done again. Ray Data's own checkpointing is not used:
it knows no fingerprint and loses rows when a document's chunks straddle two write blocks.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle
from tqdm import tqdm

from quire import schema
from quire.artifact import Draft, Shard
from quire.errors import UserError

Process = Callable[[Any], Shard]
# A worker's bars about loading a model say nothing here.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


class Worker:
    """Holds what a step loads once (a model, a table) and writes one shard after another."""

    def __init__(self, make: Callable[..., Process], arguments: tuple[Any, ...], draft: Draft):
        self.process, self.draft = make(*arguments), draft

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for index, item in zip(batch["index"].tolist(), batch["item"], strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            shard = self.process(cloudpickle.loads(item))
            shard.cpu += time.process_time() - cpu
            shard.gpu += (time.perf_counter() - wall) if ray.get_gpu_ids() else 0.0
            self.draft.write_shard(index, shard)
        return {"index": batch["index"]}


def connect() -> None:
    """Attach to the cluster of RAY_ADDRESS or of the job, or start a local Ray; nothing when already attached."""
    if not ray.is_initialized():
        ray.init(log_to_driver=True, logging_level="ERROR", runtime_env={"env_vars": QUIET})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts shards, which is what resumes
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_shards(
    draft: Draft,
    items: Sequence[Any],
    make: Callable[..., Process],
    arguments: tuple[Any, ...] = (),
    *,
    num_workers: int | None = None,
    num_gpus: float = 0.0,
    memory: int = 512 * 2**20,
) -> None:
    """Bring every item's shard into the draft. `make(*arguments)` runs once per worker and returns the function that
    turns an item into a `Shard`.

    Raises what a worker raises: a step that lost a shard never ends well. One worker holds one CPU (and `num_gpus`).
    """
    done = draft.finished_shards()
    pending = [index for index in range(len(items)) if index not in done]
    if not pending:
        return
    connect()
    workers = min(len(pending), num_workers or _places(num_gpus))
    rows = [{"index": index, "item": cloudpickle.dumps(items[index])} for index in pending]  # bytes: any item will do
    dataset = ray.data.from_items(rows, override_num_blocks=len(pending))
    dataset = dataset.map_batches(
        Worker,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(make, arguments, draft),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=num_gpus or None,
        memory=memory,
    )
    bar = tqdm(
        total=len(items),
        initial=len(done),
        desc=f"      {draft.folder}",
        unit="shard",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    with bar:
        for _ in dataset.iter_rows():
            bar.update()


def _places(num_gpus: float) -> int:
    """How many workers the cluster holds now. Raises UserError when it holds none, instead of waiting for ever."""
    total = ray.cluster_resources()
    if num_gpus:
        places = int(total.get("GPU", 0) / num_gpus)
        if not places:
            raise UserError(f"num_gpus = {num_gpus}: the cluster has no GPU; set runtime.num_gpus=0 or add a GPU node")
        return places
    return max(1, int(total.get("CPU", 1)))


def groups(sizes: Sequence[int], max_size: int) -> list[list[int]]:
    """Consecutive indices grouped so that each group's sizes add up to at most `max_size` (or it is one item)."""
    grouped: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not grouped or size > room:
            grouped.append([])
            room = max_size
        grouped[-1].append(index)
        room -= size
    return grouped


def drop_rows(draft: Draft, index: int, mask: np.ndarray, rows: list[dict[str, Any]]) -> None:
    """Rewrite a finished shard without the rows of `mask`, which go to its rejects as `rows`."""
    table = draft.storage.read_table(f"{draft.folder}/part-{index:05d}.parquet")
    rejects_name = f"{draft.folder}/rejects-{index:05d}.parquet"
    new = schema.rejects(rows)
    old = draft.storage.read_table(rejects_name) if draft.storage.exists(rejects_name) else None
    record = draft.finished_shards()[index]
    shard = Shard(
        table=table.filter(pa.array(~mask)),
        rows_in=record["rows_in"],
        bytes_in=record["bytes_in"],
        cpu=record["cpu"],
        rejects=new if old is None else pa.concat_tables([old, new]),
    )
    draft.write_shard(index, shard)


def speed(draft: Draft, amount: float, unit: str) -> str:
    """`amount` over the CPU time that the finished shards took, for a step's summary."""
    cpu = sum(record["cpu"] for record in draft.finished_shards().values())
    return f"{amount / max(cpu, 1e-9):,.1f} {unit} per CPU second"
