"""A contender in a process of its own: what it returns, and the peaks of memory of it and of the processes it starts.

A peak is the kernel's own high-water mark of a process' resident set (VmHWM), which counts pages that it shares with
others; it is read ten times a second, so that the last moment of a process that ends may be missed.
"""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil

Result = TypeVar("Result")
_INTERVAL = 0.1


def apart(run: Callable[..., Result], *args: Any) -> tuple[Result, dict[str, float]]:
    """`run(*args)` in a new process, and MB at most: `driver` is that process, `worker` the largest that it started.

    Where Ray runs, only its workers are counted, not its servers.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_watched, run, args).result()


def on_ray(run: Callable[..., Result], *args: Any) -> Result:
    """`run(*args)` with a Ray of its own, up before it begins as a flow starts it, and down once it has ended."""
    import ray

    from pipelines.shards import connect

    connect()
    try:
        return run(*args)
    finally:
        ray.shutdown()


def _watched(run: Callable[..., Result], args: tuple[Any, ...]) -> tuple[Result, dict[str, float]]:
    seen: dict[int, tuple[str, float]] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, ended), daemon=True)
    watcher.start()
    try:
        result = run(*args)
    finally:
        ended.set()
        watcher.join()
    ours = [peak for title, peak in seen.values() if title.startswith("ray::")] or [peak for _, peak in seen.values()]
    return result, {"driver": _peak(psutil.Process().pid), "worker": max(ours, default=0.0)}


def _watch(seen: dict[int, tuple[str, float]], ended: threading.Event) -> None:
    this = psutil.Process()
    while not ended.wait(_INTERVAL):
        for child in this.children(recursive=True):
            try:
                seen[child.pid] = " ".join(child.cmdline()), _peak(child.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
                continue  # it has ended, and what was seen of it stands


def _peak(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3  # kilobytes
    return 0.0  # a process that is ending has no memory any more
