"""At most so many of a row of things, evenly spaced."""

import numpy as np


def evenly(size: int, count: int) -> np.ndarray:
    """Places (min(count, size),) int64 of `size` things, from the first on, as evenly spaced as can be."""
    count = min(count, size)
    return (np.arange(count) * size) // max(count, 1)
