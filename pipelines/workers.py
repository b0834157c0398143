"""What a process does that makes shards of a step: an actor's for the step alone, or one that Ray lends to any step."""

import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray._private.state import available_resources_per_node, total_resources_per_node

from quire import heap
from quire.artifact import Draft, Shard
from quire.errors import UserError

Process = Callable[[Any], Shard]
_KEPT = 5.0  # seconds without a shard after which a process that Ray lends lets go of what a step has loaded


class Worker:
    """Holds what a step loads once (a model, a table) and writes one shard after another."""

    def __init__(
        self,
        make: Callable[..., Process],
        arguments: tuple[Any, ...],
        draft: Draft,
        items: Sequence[Any],
        num_gpus: float = 0.0,
    ):
        self.process, self.draft, self.items, self.num_gpus = make(*arguments), draft, items, num_gpus

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _told(batch, lambda: self.make_shards(batch["index"].tolist()))

    def make_shards(self, indices: Sequence[int]) -> None:
        for index in indices:
            if self.draft.has_shard(index):  # by a worker that died before it could tell: Ray asks another again
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            shard = self.process(self.items[index])
            shard.item = digest(self.items[index])
            shard.cpu += time.process_time() - cpu
            shard.gpu += self.num_gpus * (time.perf_counter() - wall)
            self.draft.write_shard(index, shard)
            del shard
            heap.give_back()


def _told(batch: dict[str, Any], work: Callable[[], None]) -> dict[str, Any]:
    """The row of a batch, with what `work` raised.

    Nothing is lost: `run_shards` raises what is told here, and the shard stays undone. Raised here, it would reach the
    user inside a long trace through Ray, and its frames would hold the CPUs of all workers for as long as anything
    holds the exception.
    """
    mistake = trace = ""
    try:
        work()
    except UserError as error:
        mistake = str(error)
    except Exception:
        trace = traceback.format_exc()
    return {"index": batch["index"], "mistake": np.asarray([mistake]), "trace": np.asarray([trace])}


class Lent:
    """The `Worker` of a process that Ray lends to one step after another.

    It stays from shard to shard, until another step's turn or `_KEPT` seconds without a shard: an idle process must not
    hold memory that the next step needs.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of the thread that makes shards and that of the timer
        self.step = ""
        self.worker: Worker | None = None
        self.timer: threading.Timer | None = None

    def __call__(self, step: str, given: np.ndarray, batch: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            if self.timer:
                self.timer.cancel()
            try:
                return _told(batch, lambda: self._worker(step, given).make_shards(batch["index"].tolist()))
            finally:
                self.timer = threading.Timer(_KEPT, self.let_go)
                self.timer.daemon = True
                self.timer.start()

    def _worker(self, step: str, given: np.ndarray) -> Worker:
        if step != self.step:
            self._let_go()
            # What the driver of this very job sent, as Ray itself sends functions; no user's file is ever unpickled.
            self.worker, self.step = Worker(*ray.cloudpickle.loads(given)), step
        return self.worker

    def let_go(self) -> None:
        with self.lock:
            if threading.current_thread() is self.timer:  # else a shard came while this timer waited for the lock
                self._let_go()

    def _let_go(self) -> None:
        self.worker, self.step = None, ""
        heap.give_back()


_lent = Lent()


def by_lent(step: str, given: np.ndarray, batch: dict[str, Any]) -> dict[str, Any]:
    """Found by name in the process that runs it, so that it is that process's own `Lent`."""
    return _lent(step, given, batch)


def free_cpus() -> int:
    """How many threads may run at once in this process: its own CPU, and those of its node that nobody holds now.

    Others may take them meanwhile; then all go slower, and nobody waits.
    """
    if not ray.is_initialized():
        return 1
    node = ray.get_runtime_context().get_node_id()
    idle, every = (
        found.get(node, {}).get("CPU", 0) for found in (available_resources_per_node(), total_resources_per_node())
    )
    return max(1, int(min(1 + idle, every)))  # what is idle is known a moment late: this process may be among it


def digest(item: Any) -> str:
    """By which a resumed run knows a shard's item again."""
    return hashlib.sha256(repr(item).encode()).hexdigest()
