"""What lies side by side, together up to a size: shards of files, of parts, of rows."""

from collections.abc import Sequence


def groups(sizes: Sequence[int], max_size: int) -> list[list[int]]:
    """Consecutive indices grouped so that each group's sizes add up to at most `max_size` (or it is one item)."""
    grouped: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not grouped or size > room:
            grouped.append([])
            room = max_size
        grouped[-1].append(index)
        room -= size
    return grouped
