"""Memory that a process has freed and the C library keeps."""

import ctypes
from collections.abc import Callable
from functools import lru_cache


def give_back() -> None:
    """Hand it to the system: glibc keeps what lies below the last block in use, and batches of other sizes leave holes
    there.

    An encoder's worker grew by 250 MB in 80 shards of 250 texts, and by 60 MB with this after each, which takes under
    1 ms (LOG, 2026-11-22). Where the C library has no such call, nothing happens (malloc_trim: glibc's manual, "Malloc
    Tunable Parameters").
    """
    _trim()(0)


@lru_cache
def _trim() -> Callable[[int], object]:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) or (lambda _: None)
