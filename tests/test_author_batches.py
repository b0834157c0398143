"""Batches by author: several works of an author, several chunks of a work, strangers beside them, always one size."""

import numpy as np
import pytest

from quire.author_batches import NO_AUTHOR, AuthorBatches
from quire.errors import UserError


def made(authors: dict[str, tuple[str | None, str]], **changes: object) -> AuthorBatches:
    """Twelve chunks a work, those of work i at rows 100 i and on."""
    rows = {w: np.asarray([(100 * i + j, 700 * j, 700 * j + 500) for j in range(12)]) for i, w in enumerate(authors)}
    neighbors = changes.pop("neighbors", {})
    values = {"works_per_batch": 8, "works_per_author": 2, "chunks_per_work": 3, "lone_share": 0.25, "hard_share": 0.5}
    return AuthorBatches(rows, authors, neighbors, **values | {"seed": 1} | changes)


def library() -> dict[str, tuple[str | None, str]]:
    """Five authors of two or three works, two of one, one work of nobody known."""
    works = {f"{a}{i}": (a, a) for a in "abcde" for i in range(2 + (a in "ab"))}
    return works | {"l0": ("l", "l"), "m0": ("m", "m"), "x0": (None, "work:x0")}


@pytest.mark.parametrize("step", range(8))
def test_a_batch_holds_two_works_of_each_author_and_a_share_of_strangers(step: int) -> None:
    batches = made(library())
    rows, works = batches.plan(step)
    assert len(rows) == len(works) == 8 * 3 and len(set(rows.tolist())) == 24
    assert [batches.works[work] for work in works] == [sorted(library())[work] for work in works]
    names = [batches.works[work] for work in np.unique(works)]
    assert len(names) == 8 and all(np.bincount(works)[np.unique(works)] == 3)
    by_author = {name[0]: sum(other[0] == name[0] for other in names) for name in names}
    assert sorted(by_author.values()) == [1, 1, 2, 2, 2]
    assert {author for author, count in by_author.items() if count == 1} <= set("lmx")
    order = {w: i for i, w in enumerate(library())}
    assert all(row // 100 == order[batches.works[work]] for row, work in zip(rows, works, strict=True))


def test_who_wrote_a_work_is_told_in_numbers_and_nobody_is_nobody() -> None:
    batches = made(library())
    code = dict(zip(batches.works, zip(batches.authors.tolist(), batches.groups.tolist(), strict=True), strict=True))
    assert code["a0"] == code["a1"] == code["a2"] and code["a0"][0] != code["b0"][0] and code["a0"][1] != code["b0"][1]
    assert code["x0"][0] == NO_AUTHOR and len({group for _, group in code.values()}) == 8


def test_a_step_gives_the_same_batch_whatever_came_before() -> None:
    one, two = made(library()), made(library())
    one.plan(0)
    assert all(np.array_equal(a, b) for a, b in zip(one.plan(7), two.plan(7), strict=True))
    assert not np.array_equal(one.plan(7)[0], one.plan(8)[0])
    assert not np.array_equal(one.plan(7)[0], made(library(), seed=2).plan(7)[0])


def test_authors_of_near_works_meet_when_asked_to_and_their_own_group_does_not_count() -> None:
    near = {"a0": ["a1", "d0"], "d0": ["a0"]}
    batches = made(library(), neighbors=near, hard_share=1.0, works_per_batch=4, lone_share=0.0)
    for step in range(20):
        names = [batches.works[work][0] for work in batches.plan(step)[1]]
        assert ("a" in names[:6]) <= ("d" in names) and ("d" in names[:6]) <= ("a" in names)


def test_an_author_with_fewer_works_gives_more_of_each() -> None:
    batches = made(library(), works_per_author=3, works_per_batch=6, lone_share=0.0)
    for step in range(10):
        rows, works = batches.plan(step)
        assert len(rows) == 18 and len(set(rows.tolist())) == 18
        names = [batches.works[work][0] for work in works]
        assert sorted(names.count(author) for author in set(names)) == [9, 9]
        for author in set(names) - {"a", "b"}:  # two works for three places
            counts = np.unique(works[[name == author for name in names]], return_counts=True)[1]
            assert sorted(counts.tolist()) == [3, 6]


def test_too_few_authors_with_two_works_are_refused() -> None:
    with pytest.raises(UserError, match="of 2 authors, those of 1 groups have two works or more"):
        made({"a0": ("a", "a"), "a1": ("a", "a"), "b0": ("b", "b")})
    with pytest.raises(UserError, match="those of 1 groups"):  # they once wrote together
        made({"a0": ("a", "a"), "a1": ("a", "a"), "b0": ("b", "a"), "b1": ("b", "a"), "c0": ("c", "c")})
