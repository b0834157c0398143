"""Fetch what a harvest lacks on Ray workers, under one rate for all of them; each book is settled by itself.

A worker that dies takes its books' requests with it and no more: whatever has a record is not asked for again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from tqdm import tqdm

from pipelines.shards import connect
from quire.errors import UserError
from quire.fetch import Client, Limits
from quire.harvest import Harvest, Patience, Record, Shelf, Wanted
from quire.pace import Pace, Turn

_MOST_WORKERS = 4  # by default: what bounds a harvest is the host's patience, not our processors
_RESTARTS = 3


@dataclass(frozen=True)
class Plan:
    """What every worker needs to know."""

    shelf: Shelf
    limits: Limits
    agent: str
    hosts: tuple[str, ...]
    max_bytes: int
    may_lack_end: tuple[str, ...] = ()
    previous: Shelf | None = None

    def client(self, pacer: Any, max_open: int) -> Client:
        limits = {"max_bytes": self.max_bytes, "max_open": max_open}
        return Client(pacer, self.limits, agent=self.agent, hosts=self.hosts, **limits)


class _Pacer:
    """The one `Pace` of all workers, as it is seen from one of them."""

    def __init__(self, actor: Any):
        self.actor = actor

    async def turn(self, slot: float | None = None) -> Turn:
        return await self.actor.turn.remote(slot)

    async def hold(self, seconds: float) -> None:
        await self.actor.hold.remote(seconds)


class _Worker:
    """One pool of `max_open` connections; settles as many books at a time as it is given."""

    def __init__(self, plan: Plan, pace: Any, known: Mapping[str, Record], max_open: int):
        harvest = {"previous": plan.previous, "known": known, "may_lack_end": plan.may_lack_end}
        self.harvest = Harvest(plan.client(_Pacer(pace), max_open), plan.shelf, **harvest)

    async def settle(self, wanted: Wanted) -> Record | str:
        """The record; or the mistake that must end the run, which raised would reach the user inside a long trace."""
        try:
            return await self.harvest.settle(wanted)
        except UserError as error:
            return str(error)


def fetch_all(
    wanted: Sequence[Wanted],
    plan: Plan,
    *,
    rate: float,
    concurrency: int,
    patience: int = 20,
    num_workers: int | None = None,
    known: Mapping[str, Record] | None = None,
    label: str = "fetch",
) -> None:
    """Bring every book to its record. `rate`: requests a second of all workers; `concurrency`: books, and
    so connections, at a time of each; `patience`: books in a row that may fail.

    Raises UserError when the hosts have nothing but troubles or want to be left alone; and what a worker raises that
    is no answer of a server: a full disk, a store that cannot be reached.
    """
    settled = plan.shelf.settled()
    pending = [book for book in wanted if book.key not in settled]
    if not pending:
        return
    connect()
    # No more than there is room for: a book that is given to a worker that never starts would be waited for.
    most = min(num_workers or _MOST_WORKERS, max(1, int(ray.cluster_resources().get("CPU", 1))))
    pace = ray.remote(num_cpus=0)(Pace).remote(rate)
    worker = ray.remote(num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy="SPREAD")(
        _Worker
    )
    held = ray.put(dict(known)) if known else {}
    workers = [worker.remote(plan, pace, held, concurrency) for _ in range(min(most, len(pending)))]
    try:
        _settle(pending, workers, concurrency, Patience(patience), len(wanted), label)
    finally:
        for actor in (*workers, pace):
            ray.kill(actor)


def _settle(
    pending: Sequence[Wanted], workers: Sequence[Any], concurrency: int, patience: Patience, total: int, label: str
) -> None:
    """Give every worker so many books at a time, the next as soon as one is settled."""
    bar = tqdm(
        total=total,
        initial=total - len(pending),
        desc=f"      {label}",
        unit="book",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    queue, running = iter(pending), {}
    with bar:
        for slot in range(len(workers) * concurrency):
            _give(queue, running, workers[slot % len(workers)])
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            idle = running.pop(done)
            record = ray.get(done)
            if isinstance(record, str):
                raise UserError(record)
            patience.told(record)
            bar.update()
            _give(queue, running, idle)


def _give(queue: Any, running: dict[Any, Any], worker: Any) -> None:
    """The next book to a worker that has room for one."""
    book = next(queue, None)
    if book is not None:
        running[worker.settle.remote(book)] = worker
