"""Splits never cut through an author or a work, stand still when the corpus grows, and are never empty."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.errors import UserError
from quire.splits import SPLITS, assign_splits, deal, split_groups

SHARES = {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1}

documents = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 12), st.booleans(), st.integers(0, 100)),
    min_size=1,
    max_size=40,
)


def _connected(left, right):
    """Documents that are the same component by brute force: joined until nothing changes."""
    label = list(range(len(left)))
    changed = True
    while changed:
        changed = False
        for i in range(len(left)):
            for j in range(len(left)):
                linked = right[i] == right[j] or (left[i] is not None and left[i] == left[j])
                if linked and label[i] != label[j]:
                    label[i] = label[j] = min(label[i], label[j])
                    changed = True
    return label


@given(documents)
def test_groups_are_the_components_linked_by_a_named_author_or_a_work(rows):
    authors, works = [[] if n else [f"a{a}"] for a, _, n, _ in rows], [f"w{w}" for _, w, *_ in rows]
    groups = split_groups(authors, works)
    expected = _connected([people[0] if people else None for people in authors], works)
    for i in range(len(rows)):
        for j in range(len(rows)):
            assert (groups[i] == groups[j]) == (expected[i] == expected[j])


def test_two_authors_of_one_work_share_a_group_and_anonymous_works_do_not():
    groups = split_groups([["ann"], ["bob"], ["bob"], [], []], ["1", "1", "2", "3", "4"])
    assert groups == ["author:ann"] * 3 + ["work:3", "work:4"]


def test_authors_who_wrote_together_share_a_group_with_what_each_wrote_alone():
    authors = [["collins"], ["dickens"], ["dickens", "collins"], ["gaskell"]]
    assert split_groups(authors, ["1", "2", "3", "4"]) == ["author:collins"] * 3 + ["author:gaskell"]


def test_grouping_by_work_lets_an_author_straddle():
    assert split_groups([["a"], ["a"], ["b"]], ["1", "2", "1"], by="work") == [
        "work:1",
        "work:2",
        "work:1",
    ]


def test_an_author_called_like_a_work_is_another_group():
    assert len(set(split_groups([["x"], []], ["w", "x"]))) == 2


def test_no_documents_have_no_groups():
    assert split_groups([], []) == []


@given(documents, st.integers(0, 5), st.randoms(use_true_random=False))
def test_balanced_splits_keep_groups_whole_fill_every_split_and_ignore_the_order(rows, seed, shuffler):
    groups = [f"g{a}" for a, *_ in rows] + ["h1", "h2", "h3"]
    sizes = [size for *_, size in rows] + [1, 2, 3]
    splits = assign_splits(groups, sizes, SHARES, seed, "balanced")
    assert set(splits) == set(SPLITS)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    order = list(range(len(groups)))
    shuffler.shuffle(order)
    again = assign_splits([groups[i] for i in order], [sizes[i] for i in order], SHARES, seed, "balanced")
    assert again == [splits[i] for i in order]


@given(st.lists(st.integers(1, 3), min_size=4, max_size=14), st.integers(0, 3))
def test_balanced_splits_have_two_works_each_wherever_the_authors_allow_it(works_of_groups, seed):
    groups = [f"g{g}" for g, count in enumerate(works_of_groups) for _ in range(count)]
    works = [f"w{w}" for w in range(len(groups))]
    splits = assign_splits(groups, [1] * len(groups), SHARES, seed, "balanced", works)
    least = min(splits.count(split) for split in SPLITS)
    partitions = itertools.product(range(4), repeat=len(works_of_groups)) if len(works_of_groups) <= 6 else ()
    best = [min(np.bincount(places, works_of_groups, 4)) for places in partitions]
    assert least >= min(2, max(best, default=1))
    assert least >= 2 or len(works_of_groups) < 8
    assert len(set(zip(groups, splits, strict=True))) == len(works_of_groups)


def test_two_documents_of_one_work_are_no_two_works():
    groups, works = [f"g{i // 2}" for i in range(16)], [f"w{i // 2}" for i in range(16)]
    splits = assign_splits(groups, [1] * 16, SHARES, 0, "balanced", works)
    assert all(len({work for work, s in zip(works, splits, strict=True) if s == split}) == 2 for split in SPLITS)


def test_balanced_splits_come_close_to_their_shares():
    sizes = [random.Random(1).randint(50, 150) for _ in range(200)]
    splits = assign_splits([f"g{i}" for i in range(200)], sizes, SHARES, 0, "balanced")
    for split, share in SHARES.items():
        filled = sum(size for size, s in zip(sizes, splits, strict=True) if s == split)
        assert filled / sum(sizes) == pytest.approx(share, abs=0.01)


def test_folds_are_even_by_size_and_keep_groups_and_couples_of_works_together():
    draw = random.Random(2)
    sizes, groups = [draw.randint(50, 150) for _ in range(120)], [f"g{i // 2}" for i in range(120)]
    works = [f"w{i}" for i in range(120)]
    folds = deal(groups, sizes, 4, 0, works)
    assert all(len({fold for fold, g in zip(folds, groups, strict=True) if g == group}) == 1 for group in groups)
    filled = [sum(size for size, f in zip(sizes, folds, strict=True) if f == fold) for fold in range(4)]
    assert max(filled) - min(filled) < 2 * 300
    shuffled = list(range(120))
    draw.shuffle(shuffled)
    again = deal(*([column[i] for i in shuffled] for column in (groups, sizes)), 4, 0, [works[i] for i in shuffled])
    assert [again[shuffled.index(i)] for i in range(120)] == folds
    with pytest.raises(UserError, match="num_folds = 4: there are 3 groups"):
        deal(["a", "b", "c", "a"], [1] * 4, 4, 0)


def test_hashed_splits_stand_still_when_the_corpus_grows_and_follow_the_shares():
    groups = [f"author:{i}" for i in range(5000)]
    splits = assign_splits(groups, [1] * 5000, SHARES, 7)
    assert assign_splits(groups[:900], [3] * 900, SHARES, 7) == splits[:900]
    assert assign_splits(groups, [1] * 5000, dict(reversed(SHARES.items())), 7) == splits
    for split, share in SHARES.items():
        assert splits.count(split) / 5000 == pytest.approx(share, abs=0.02)  # 3 standard errors


@pytest.mark.parametrize("method", ["hash", "balanced"])
def test_another_seed_gives_other_splits(method):
    groups = [f"g{i}" for i in range(100)]
    first, second = (assign_splits(groups, [1] * 100, SHARES, seed, method) for seed in (1, 2))
    assert first != second


def test_a_split_without_a_share_stays_empty():
    splits = assign_splits([f"g{i}" for i in range(50)], [1] * 50, {"train": 0.5, "test": 0.5, "validation": 0}, 1)
    assert set(splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("num_groups", "shares", "method", "message"),
    [
        (3, SHARES, "balanced", "none of the 3 groups: give more authors"),
        (2, SHARES, "hash", "give more authors"),
        (4, {"train": 0.999, "test": 0.001}, "hash", "'test'.*method = 'balanced'"),
        (4, {"train": 0.9, "tset": 0.1}, "hash", "shares.tset"),
        (4, {"train": 1.2, "test": -0.2}, "hash", "shares.train = 1.2"),
        (4, {"train": 0.5, "test": 0.4}, "hash", "add up to 0.9"),
        (4, {"train": float("nan")}, "hash", "shares.train = nan"),
        (4, {"train": 1.0}, "random", "method = 'random'"),
    ],
)
def test_impossible_splits_are_refused_with_the_remedy(num_groups, shares, method, message):
    with pytest.raises(UserError, match=message):
        assign_splits([f"g{i}" for i in range(num_groups)], [1] * num_groups, shares, 1, method)


def test_unequal_columns_are_refused():
    with pytest.raises(UserError, match="authors of 2 documents, works of 1"):
        split_groups([["a"], ["b"]], ["1"])
    with pytest.raises(UserError, match="2 groups but 1 sizes"):
        assign_splits(["a", "b"], [1], SHARES, 1)
    with pytest.raises(UserError, match="by = 'title'"):
        split_groups([["a"]], ["1"], by="title")
    with pytest.raises(UserError, match="sizes"):
        assign_splits(["a"], [float("inf")], SHARES, 1)


@pytest.mark.parametrize(
    ("a", "b", "one"),
    [
        ("a_conan_doyle", "arthur_conan_doyle", True),
        ("a_conan_doyle", "adrian_conan_doyle", True),  # in doubt, together
        ("j_s_mill", "john_stuart_mill", True),
        ("john_mill", "john_stuart_mill", True),
        ("j_mill", "john_stuart_mill", True),
        ("elizabeth_gaskell", "elizabeth_cleghorn_gaskell", True),
        ("charlotte_bronte", "emily_bronte", False),
        ("stuart_mill", "john_stuart_mill", False),
        ("john_stuart_mill", "john_smith_mill", False),
        ("homer", "winslow_homer", False),
        ("agent_1", "a_1", False),
    ],
)
def test_names_that_may_be_one_persons_share_a_split(a: str, b: str, one: bool) -> None:
    groups = split_groups([[a], [b], ["somebody_else"]], ["w1", "w2", "w3"])
    assert (groups[0] == groups[1]) == one and groups[2] not in groups[:2]
