"""Batches made ahead of the step that needs them, in order, on one thread."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any


class Ahead:
    """`make(start), make(start + 1), ... make(stop - 1)`, with up to `depth` of them ready.

    `make` must be a function of its argument alone: when it is called says nothing about what it gives. It holds
    `lock` meanwhile; who uses the same tokenizer or file in another thread (an evaluation) takes the lock first.
    `begin` is called once in the thread, before all else.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        stop: int,
        depth: int = 4,
        begin: Callable[[], object] | None = None,
    ):
        self.make, self.stop, self.depth = make, stop, depth
        self.lock = Lock()
        self.waited = 0.0  # seconds that `next` has waited in all
        self._position = start
        self._ready: deque[Future] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches", initializer=begin)

    def __enter__(self) -> "Ahead":
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def next(self) -> Any:
        """The next one. Raises what `make` raised for it."""
        started = time.perf_counter()
        made = self._ready.popleft().result()
        self.waited += time.perf_counter() - started
        self._fill()
        return made

    def _fill(self) -> None:
        while len(self._ready) < self.depth and self._position < self.stop:
            self._ready.append(self._thread.submit(self._made, self._position))
            self._position += 1

    def _made(self, position: int) -> Any:
        with self.lock:
            return self.make(position)
