"""At most so many of a row of things, evenly spaced."""

import numpy as np


def evenly(size: int, count: int) -> np.ndarray:
    """Places (min(count, size),) int64 of `size` things, as evenly spaced as can be, as far from both ends.

    One of a whole book is its middle, not its title page.
    """
    count = min(count, size)
    return (2 * np.arange(count) + 1) * size // (2 * max(count, 1))
