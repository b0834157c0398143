"""A harvest of many ids in one process: `python harvesting.py BASE_URL ROOT FIRST LAST`, to be killed at any moment."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from quire.fetch import Client, Limits  # noqa: E402
from quire.harvest import Harvest, Patience, Shelf, Wanted, hosts_of, urls_of  # noqa: E402
from quire.pace import Pace  # noqa: E402
from quire.storage import Storage  # noqa: E402

LIMITS = Limits(read=4.0, total=6.0, attempts=2, first_wait=0.01, max_wait=2.0)


def shelf(root: Path | str) -> Shelf:
    return Shelf(Storage(str(root)), "records", "raw")


def wanted(base: str, numbers: Sequence[int]) -> list[Wanted]:
    return [Wanted(f"pg{number}", urls_of(number, [base])) for number in numbers]


def harvest(root: Path | str, books: Sequence[Wanted], **options) -> dict[str, str]:
    """The status of each, in a folder."""
    hosts = hosts_of(url for book in books for url in book.urls)
    return harvest_on(shelf(root), books, hosts=hosts, **options)


def harvest_on(
    place: Shelf,
    books: Sequence[Wanted],
    *,
    hosts,
    concurrency: int = 8,
    limits: Limits = LIMITS,
    patience: Patience | None = None,
    **options,
) -> dict[str, str]:
    """The status of each; so many books at a time, in order, as a worker settles them."""

    async def run() -> list[str]:
        room = asyncio.Semaphore(concurrency)

        async def settle(book: Wanted) -> str:
            async with room:
                record = await harvester.settle(book)
                if patience:
                    patience.told(record)
            return record.status

        bounds = {"max_bytes": 8 * 2**20, "max_open": concurrency}
        async with Client(Pace(1e9), limits, agent="test", hosts=hosts, **bounds) as client:
            harvester = Harvest(client, place, **options)
            return await asyncio.gather(*map(settle, books))

    return dict(zip([book.key for book in books], asyncio.run(run()), strict=True))


if __name__ == "__main__":
    base, root, first, last = sys.argv[1:]
    harvest(root, wanted(base, range(int(first), int(last) + 1)))
