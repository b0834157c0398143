"""Author-balanced batches for "same author, other book", as a stateless function of (seed, step) like those by work."""

from collections.abc import Mapping, Sequence

import numpy as np

from quire.errors import UserError
from quire.sampler import apart, generator

NO_AUTHOR = -1


class AuthorBatches:
    """Batches of `works_per_batch` works x `chunks_per_work` chunks, `works_per_author` works of each author.

    A `lone_share` of the works, as far as there are any, is by authors with no other work, or by nobody known: they
    are negatives alone, and would never be seen if every author of a batch needed two. After each author comes, with
    probability `hard_share`, one with a near work, so that the in-batch negatives are hard ones. An author with fewer
    works than `works_per_author` gives more chunks of each, so that all batches have one size.
    """

    def __init__(
        self,
        rows_by_work: Mapping[str, np.ndarray],  # work -> (n, 3) int64: row, start, end in its document; in order
        authors: Mapping[str, tuple[str | None, str]],  # work -> author, None for nobody known, and author group
        neighbors: Mapping[str, Sequence[str]],
        *,
        works_per_batch: int,
        works_per_author: int,
        chunks_per_work: int,
        lone_share: float,
        hard_share: float,
        seed: int,
    ):
        """Raises UserError when too few authors have two works to learn from."""
        self.works = sorted(rows_by_work)
        self.rows = [rows_by_work[work] for work in self.works]
        names = sorted({author for author, _ in authors.values() if author is not None})
        groups = sorted({group for _, group in authors.values()})
        code, group_code = ({name: place for place, name in enumerate(known)} for known in (names, groups))
        self.authors = np.asarray([code.get(authors[work][0], NO_AUTHOR) for work in self.works], np.int64)
        self.groups = np.asarray([group_code[authors[work][1]] for work in self.works], np.int64)
        self.shelves = self._shelves()
        self.num_shared = sum(len(shelf) > 1 for shelf in self.shelves)
        num_groups = len({int(self.groups[shelf[0]]) for shelf in self.shelves[: self.num_shared]})
        if num_groups < 2:
            raise UserError(
                f"positives = 'author': of {len(names)} authors, those of {num_groups} groups have two works or more; "
                "need 2 groups at least: give more books of the same authors, or another split"
            )
        self.near = self._near(neighbors)
        lone = min(round(lone_share * works_per_batch), len(self.shelves) - self.num_shared)
        self.num_authors = min(max(2, (works_per_batch - lone) // works_per_author), self.num_shared)
        self.num_lone = lone
        self.works_per_author, self.chunks_per_work = works_per_author, chunks_per_work
        self.hard_share, self.seed = hard_share, seed

    def plan(self, step: int, micro: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers and work numbers, (authors x works x chunks,) int64 each, of one global batch."""
        draw = generator(self.seed, step, micro)
        shared, lone = range(self.num_shared), range(self.num_shared, len(self.shelves))
        chosen = self._grown(draw, [], shared, self.num_authors)
        chosen = self._grown(draw, chosen, lone, self.num_lone)
        rows, works = [], []
        for shelf in chosen:
            for work, count in self._taken(draw, self.shelves[shelf]):
                rows.append(apart(draw, self.rows[work], count))
                works.append(np.full(count, work, np.int64))
        return np.concatenate(rows), np.concatenate(works)

    def _shelves(self) -> list[np.ndarray]:
        """The works of each author, those with several first; a work of nobody known stands by itself."""
        of_author: dict[int, list[int]] = {}
        for work, author in enumerate(self.authors.tolist()):
            of_author.setdefault(author if author != NO_AUTHOR else NO_AUTHOR - 1 - work, []).append(work)
        return sorted((np.asarray(works) for works in of_author.values()), key=lambda shelf: (len(shelf) < 2, shelf[0]))

    def _near(self, neighbors: Mapping[str, Sequence[str]]) -> list[set[int]]:
        """Shelves that hold a near work of a shelf and are of another group."""
        shelf_of = {self.works[work]: place for place, shelf in enumerate(self.shelves) for work in shelf}
        group = [int(self.groups[shelf[0]]) for shelf in self.shelves]
        found = []
        for place, shelf in enumerate(self.shelves):
            near = {shelf_of[n] for work in shelf for n in neighbors.get(self.works[work], ()) if n in shelf_of}
            found.append({other for other in near if group[other] != group[place]})
        return found

    def _grown(self, draw: np.random.Generator, chosen: list[int], among: range, count: int) -> list[int]:
        """`chosen` and `count` more shelves of those `among`."""
        order = iter(draw.permutation(np.asarray(among, np.int64)).tolist())
        wanted = len(chosen) + count
        while len(chosen) < wanted:
            near = sorted(n for n in self.near[chosen[-1]] if n in among and n not in chosen) if chosen else []
            if near and draw.random() < self.hard_share:
                chosen = [*chosen, near[draw.integers(len(near))]]
                continue
            shelf = next(order)
            if shelf not in chosen:
                chosen = [*chosen, shelf]
        return chosen

    def _taken(self, draw: np.random.Generator, shelf: np.ndarray) -> list[tuple[int, int]]:
        """Works of an author with how many chunks of each."""
        wanted = self.works_per_author if len(shelf) > 1 else 1
        order = draw.permutation(shelf)[:wanted].tolist()
        turns = [wanted // len(order) + (place < wanted % len(order)) for place in range(len(order))]
        return [(work, turn * self.chunks_per_work) for work, turn in zip(order, turns, strict=True)]
