"""Memory that a process has freed, and that the C library and Arrow keep for it."""

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache

import pyarrow as pa

# torch on a CPU keeps compiled kernels of 1,024 shapes in its own cache and as many in oneDNN's: 110 MB after
# 80,000 texts of many lengths. A shard has some thirty shapes (LOG, 2026-11-22; oneDNN's guide, "Primitive Cache").
_CACHES = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def few_kernels() -> None:
    """Keep those of 64 shapes, unless the environment says how many; before the first product of the process."""
    for name, value in _CACHES.items():
        os.environ.setdefault(name, value)


def give_back() -> None:
    """Hand it to the system: glibc keeps what lies below the last block in use, and batches of other sizes leave holes
    there.

    An encoder's worker grew by 250 MB in 80 shards of 250 texts, and by 60 MB with this after each, which takes under
    1 ms (LOG, 2026-11-22). Where the C library has no such call, nothing happens (malloc_trim: glibc's manual, "Malloc
    Tunable Parameters").
    """
    pa.default_memory_pool().release_unused()
    _trim()(0)


@lru_cache
def _trim() -> Callable[[int], object]:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) or (lambda _: None)
