"""How much memory a piece of work takes: Python's and numpy's by tracemalloc, Arrow's by a pool of its own."""

import tracemalloc
from collections.abc import Callable

import pyarrow as pa


def peak(work: Callable[[], object]) -> int:
    """Bytes held at most at once while `work` ran, beyond what was held before."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
