"""Run a step shard by shard on Ray Data: a shard is computed, written and recorded by one worker, or not at all.

Resume is by shard: what an interrupted run has recorded is not done again, and a run that would cut its shards
otherwise is refused. Ray Data's own checkpointing is not used: it knows no fingerprint and loses rows when a document's
chunks straddle two write blocks.
"""

import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray._private import services
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from pipelines.workers import Process, Worker, by_lent, digest
from quire import schema
from quire.artifact import WORK, Draft, Shard
from quire.errors import UserError

_DROPS = f"{WORK}/drops.json"
# Of one worker, or of one shard where Ray lends processes: a shard that kills its process each time must not be tried
# for ever. An actor's failed calls are not counted: every call to a node that is gone fails at once until Ray notices,
# and three were used up before that.
_RESTARTS = 5
# Whether this process has started the Ray that it is attached to, and no other node can join it. A `runtime_env` wants
# processes of its own: a flow's first step began 1.4 s later for it, each other .5 s (LOG, 2026-11-22).
_alone = False
# Ray Data keeps a tally of what is run for those who make Ray, in an actor of its own that imports for seconds.
_NO_TALLY = "RAY_DATA_USAGE_DISABLED"
# A worker's bars about loading a model say nothing here.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
# Ray sets this for a worker that holds GPUs, but leaves one that holds none every GPU of its node: torch would take the
# first, and no ledger would know. (ray/_private/accelerators/accelerator.py, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO)
_HIDDEN = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}


def connect() -> None:
    """Attach to the cluster of RAY_ADDRESS or of the job, or start a local Ray; nothing when already attached."""
    global _alone
    os.environ.setdefault(_NO_TALLY, "1")
    if not ray.is_initialized():
        _alone = services.canonicalize_bootstrap_address(None) is None  # as ray.init looks for one that runs
        if _alone:  # workers inherit what this process hands to the Ray that it starts
            with _environment(QUIET):
                ray.init(log_to_driver=True, logging_level="ERROR")
        else:
            ray.init(log_to_driver=True, logging_level="ERROR", runtime_env={"env_vars": QUIET})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts shards, which is what resumes
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables, and as it was before once it is left."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def run_shards(
    draft: Draft,
    items: Sequence[Any],
    make: Callable[..., Process],
    arguments: tuple[Any, ...] = (),
    *,
    num_workers: int | None = None,
    num_gpus: float | None = None,
    can_use_gpus: bool = False,
    memory: int = 512 * 2**20,
    hopeless: Callable[[], str | None] = lambda: None,
) -> None:
    """Bring every item's shard into the draft. `make(*arguments)` runs once per worker and returns the function that
    turns an item into a `Shard`.

    Raises the UserError of a worker, and RuntimeError with the trace of whatever else it raises: a step that lost a
    shard never ends well; and UserError when an interrupted run has cut its shards otherwise. One worker holds one
    CPU and what `gpus` makes of `num_gpus`; `num_workers` is the most at a time, by default as many as the cluster has
    or gets room for. `hopeless` is asked after 1, 2, 4 and so on of the shards: what it says instead of None ends the
    run as a UserError.

    A step that can use GPUs or is given some has actors. Any other is done by the processes that Ray keeps for tasks,
    which have begun and imported already: on 2 cores it begins in .4 s where actors took 2.4 (LOG, 2026-11-22).
    """
    _finish_drops(draft)
    done = draft.finished_shards()
    _check_items(draft, done, items)
    pending = [index for index in range(len(items)) if index not in done]
    if not pending:
        return
    share = gpus(num_gpus, can_use_gpus)
    bar = tqdm(
        total=len(items),
        initial=len(done),
        desc=f"      {draft.folder}",
        unit="shard",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    with bar:
        constructor = (make, arguments, draft, items, share)
        most = min(len(pending), num_workers or len(pending))
        places = min(most, _places(share, num_workers, memory))
        by_tasks = not (can_use_gpus or share)
        how = _by_tasks(constructor, most) if by_tasks else _by_actors(constructor, places, most)
        held = _holding(share, can_use_gpus) | {"num_cpus": 1, "memory": memory}
        with _reservations(not (by_tasks and _alone)):
            failed = _first_failure(pending, how | held, bar, hopeless)
    if failed is None:
        return
    if failed["mistake"]:
        raise UserError(failed["mistake"])
    raise RuntimeError(
        f"{draft.storage.uri(draft.folder)}: shard {failed['index']} failed in its worker\n{failed['trace']}"
    )


def _by_actors(constructor: tuple[Any, ...], places: int, most: int) -> dict[str, Any]:
    """As many as there is room for now; more as an autoscaling cluster grows, which Ray Data asks it to."""
    pool = ray.data.ActorPoolStrategy(min_size=places, max_size=most)
    return {"fn": Worker, "fn_constructor_args": constructor, "compute": pool, "max_restarts": _RESTARTS}


def _by_tasks(constructor: tuple[Any, ...], most: int) -> dict[str, Any]:
    """As many as Ray Data finds room for."""
    # Bytes, which are read where they lie: unpickled for every shard, they would cost as much as a small shard does. A
    # reference would have to be fetched inside the task, which meanwhile would give its CPU to others.
    given = np.frombuffer(ray.cloudpickle.dumps(constructor), np.uint8)
    step = uuid.uuid4().hex

    def make_shards(batch: dict[str, Any]) -> dict[str, Any]:
        return by_lent(step, given, batch)

    return {"fn": make_shards, "compute": ray.data.TaskPoolStrategy(size=most), "max_retries": _RESTARTS}


@contextmanager
def _reservations(kept: bool) -> Iterator[None]:
    """With Ray Data's reservations, or without: for tasks, where there is one node and no other can join.

    A step is one operator, so there is nothing to reserve for another. With reservations Ray Data learns only after a
    second what it may use, and gives a process its next shard up to .2 s after the last; without, it hands all shards
    to Ray, which queues them. An autoscaling cluster would take so many for its demand.
    """
    context = ray.data.DataContext.get_current().copy()
    context.op_resource_reservation_enabled = kept
    with ray.data.DataContext.current(context):
        yield


def _first_failure(
    pending: Sequence[int], how: dict[str, Any], bar: tqdm, hopeless: Callable[[], str | None]
) -> dict[str, Any] | None:
    """Run the pending shards up to the first one that fails, whose row is returned, or that leaves no hope.

    A function of its own: a data set that an exception's frames hold keeps its workers, and they their CPUs.
    """
    # Rows are indices alone: an item need not be anything Arrow can hold.
    dataset = ray.data.from_items([{"index": index} for index in pending], override_num_blocks=len(pending))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # Ray 2.60 has no named parameter for restarts
        dataset = dataset.map_batches(**how, batch_size=1, batch_format="numpy")
    for row in dataset.iter_rows():
        if row["mistake"] or row["trace"]:
            return row
        bar.update()
        if not bar.n & (bar.n - 1) and (message := hopeless()):
            return row | {"mistake": message}
    return None


def gpus(asked: float | None, can_use: bool) -> float:
    """How many GPUs a worker holds: what was asked, else 1 where the cluster has GPUs that the step can use, else 0.

    Connects to the cluster.
    """
    connect()
    if asked is not None:
        return asked
    return 1.0 if can_use and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def on_a_worker(
    function: Callable[..., Any],
    *arguments: Any,
    num_gpus: float,
    num_workers: int | None = None,
    memory: int = 512 * 2**20,
) -> Any:
    """What `function(*arguments)` returns in a process that holds what a worker of `run_shards` would.

    Connects to the cluster. Raises the function's UserError, and that of a cluster without GPUs where `num_gpus` asks
    for some.
    """
    connect()
    _places(num_gpus, num_workers, memory)
    task = ray.remote(num_cpus=1, max_retries=0, memory=memory, **_holding(num_gpus, can_use=True))(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _holding(num_gpus: float, can_use: bool) -> dict[str, Any]:
    """Ray's options for a process with so many GPUs; one that could use others, too, does not see them.

    For a step that uses none nothing changes: a process with an environment of its own takes a second longer to begin.
    Nor where there is none to see.
    """
    if num_gpus:
        return {"num_gpus": num_gpus}
    has_none = _alone and not ray.cluster_resources().get("GPU")
    return {"runtime_env": _HIDDEN} if can_use and not has_none else {}


def _check_items(draft: Draft, done: Mapping[int, dict[str, Any]], items: Sequence[Any]) -> None:
    other = [i for i, record in done.items() if i >= len(items) or record.get("item") != digest(items[i])]
    if other:
        raise UserError(
            f"{draft.storage.uri(draft.folder)}: {len(other)} of {len(done)} finished shards hold other items than "
            f"they would now, first shard {other[0]}: give the setting that cuts shards (shard_bytes, shard_rows, "
            "shard_size) the value it had, or, where an older version cut them, delete that folder to begin anew"
        )


def _places(num_gpus: float, num_workers: int | None, memory: int = 0) -> int:
    """How many workers the cluster holds now, at least 1: an autoscaling cluster may stand at no node.

    Whether it would add GPUs, or a node with more memory, cannot be asked. Raises UserError when it has no GPU, instead
    of waiting for ever, unless the number of workers is set: then somebody expects them.
    """
    total = ray.cluster_resources()
    places = int(total.get("GPU", 0) / num_gpus) if num_gpus else int(total.get("CPU", 0))
    if not places and num_gpus:
        if num_workers is None:
            raise UserError(
                f"num_gpus = {num_gpus}: the cluster has no GPU; set runtime.num_gpus=0 or add a GPU node, or where "
                "the cluster adds nodes itself set runtime.num_workers"
            )
        print("      the cluster has no GPU yet: waiting for it to add a node", file=sys.stderr, flush=True)
    most = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if memory > most:  # Ray waits without a word
        told = f"a worker needs {memory / 2**30:.1f} GiB of memory, the largest node has {most / 2**30:.1f}"
        print(f"      {told}: waiting for the cluster to add a larger one", file=sys.stderr, flush=True)
    return max(1, places)


def drop_rows(draft: Draft, index: int, mask: np.ndarray, rows: list[dict[str, Any]]) -> None:
    """Rewrite a finished shard without the rows of `mask`, (n,) bool, which go to its rejects as `rows`.

    Killed at any moment, `run_shards` brings it to its end.
    """
    drop_all(draft, {index: (mask, rows)})


def drop_all(draft: Draft, drops: Mapping[int, tuple[np.ndarray, list[dict[str, Any]]]]) -> None:
    """`drop_rows` for several shards whose rows were chosen together: all of them lose theirs, or none."""
    if not drops:
        return
    records = draft.finished_shards()
    planned = {
        index: {
            "rows_before": len(mask),
            "rejects_before": sum(records[index]["dropped"].values()),
            "dropped": np.flatnonzero(mask).tolist(),
            "rejects": rows,
        }
        for index, (mask, rows) in drops.items()
    }
    draft.storage.write_json(f"{draft.folder}/{_DROPS}", planned)
    _finish_drops(draft)


def _finish_drops(draft: Draft) -> None:
    """Do what is planned, or what a killed run has left of it: every file is found as it was or as it will be."""
    name = f"{draft.folder}/{_DROPS}"
    if not draft.storage.exists(name):
        return
    records = draft.finished_shards()
    for index, plan in draft.storage.read_json(name).items():
        _drop(draft, int(index), plan, records[int(index)])
    draft.storage.delete(name)


def _drop(draft: Draft, index: int, plan: dict[str, Any], record: dict[str, Any]) -> None:
    """The numbers of rows and rejects before tell a file that waits for its turn from one that has had it."""
    table = draft.storage.read_table(f"{draft.folder}/part-{index:05d}.parquet")
    if table.num_rows == plan["rows_before"]:
        kept = np.ones(table.num_rows, bool)
        kept[plan["dropped"]] = False
        table = table.filter(pa.array(kept))
    rejects, name = schema.rejects(plan["rejects"]), f"{draft.folder}/rejects-{index:05d}.parquet"
    if draft.storage.exists(name):
        old = draft.storage.read_table(name)
        rejects = pa.concat_tables([old, rejects]) if old.num_rows == plan["rejects_before"] else old
    kept_facts = {key: record[key] for key in ("rows_in", "bytes_in", "cpu", "gpu", "facts", "item")}
    draft.write_shard(index, Shard(table=table, rejects=rejects, **kept_facts))


def speed(draft: Draft, amount: float, unit: str) -> str:
    """`amount` over the CPU time that the finished shards took, for a step's summary."""
    cpu = sum(record["cpu"] for record in draft.finished_shards().values())
    return f"{amount / max(cpu, 1e-9):,.1f} {unit} per CPU second"
