"""Many files at once, and a bar where that takes long."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item, Made = TypeVar("Item"), TypeVar("Made")
_FEW, _SILENT = 4, 5  # files that need no pool; seconds without a bar


def each(function: Callable[[Item], Made], items: Sequence[Item], what: str, num_threads: int = 4) -> list[Made]:
    """What `function` makes of every item, in their order, by threads: for what waits for disks or networks, or lets
    other threads run (hashing, decompression). `what` is done to files, for the bar: `files hashed`."""
    if len(items) <= _FEW:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads) as pool:
        made = pool.map(function, items)
        return list(tqdm(made, total=len(items), desc=f"      {what}", unit="file", mininterval=5, delay=_SILENT))
