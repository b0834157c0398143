"""Which split a document belongs to: decided by its author or work, never by shuffling documents."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import model_validator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from quire import namesakes
from quire.config import Config
from quire.errors import UserError

SPLITS = ("train", "validation", "calibration", "test")


class Shares(Config):
    """The share of each split, a key a split."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        total = sum(self.model_dump().values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares add up to {total:g}: make them add up to 1")
        return self


def split_groups(
    authors: Sequence[Sequence[str]],
    works: Sequence[str],
    by: Literal["author", "work"] = "author",
) -> list[str]:
    """The group key of each document; documents of one group must share a split.

    `authors` holds the names of each document's authors, none for an anonymous one. by="work": the work. by="author":
    what is connected by a common author or a common work, so that neither ever straddles two splits: two authors who
    once wrote together, or of one near-duplicate work, are one group, and so are names that may be one person's
    (`quire.namesakes`: initials for whole names). Anonymous documents are connected by their work
    alone. A key names the group's smallest author, or its smallest work if all is anonymous, so it stays the same
    when documents are added that do not join groups.
    """
    if len(authors) != len(works):
        raise UserError(f"authors of {len(authors)} documents, works of {len(works)}: give both for each")
    if by == "work":
        return [f"work:{work}" for work in works]
    if by != "author":
        raise UserError(f"by = {by!r}: groups are by 'author' or by 'work'")
    # A bipartite graph of names and works: each author of a document is an edge.
    edges = [
        (name, work)
        for people, work in zip(authors, works, strict=True)
        for name in ([f"author:{author}" for author in people] or [f"work:{work}"])
    ]
    known = dict(edges)
    for couple in namesakes.couples([name.removeprefix("author:") for name in known if name.startswith("author:")]):
        a, b = (f"author:{author}" for author in couple)
        edges.append((a, known[b]))
    names = [name for name, _ in edges]
    name, work = _codes(names), _codes([work for _, work in edges])
    num_names = int(name.max(initial=-1)) + 1
    num_nodes = num_names + int(work.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(names), bool), (name, num_names + work)), shape=(num_nodes, num_nodes))
    component = connected_components(graph, directed=False)[1][name].tolist() if names else []
    key: dict[int, str] = {}
    for group, candidate in zip(component, names, strict=True):  # "author:" sorts before "work:"
        key[group] = min(key.get(group, candidate), candidate)
    group_of = {work: group for (_, work), group in zip(edges, component, strict=True)}
    return [key[group_of[work]] for work in works]


def assign_splits(
    groups: Sequence[str],
    sizes: Sequence[float],
    shares: Mapping[str, float],
    seed: int,
    method: Literal["hash", "balanced"] = "hash",
    works: Sequence[str] | None = None,
) -> list[str]:
    """The split of each document, the same for all documents of a group, in any order of the documents.

    `sizes` in any one unit (characters, chunks); `shares` of the whole a split, adding up to 1; `works` of the
    documents, (n,), where a split of a single one is of no use.
    hash: a group's hash as a number in [0, 1) against the cumulative shares. A document keeps its split when
    the corpus grows (unless its group joins another); a small corpus may miss the shares widely, or leave a
    split empty.
    balanced: groups in the order of their hashes, each to the split that lacks most of its share by size; the
    last groups go to splits that are still empty or, where there are `works` enough, have but one: no two works, no
    negatives. For small corpora: a group may move when the corpus grows.
    Raises UserError for shares that make no sense and for a split that would stay empty.
    """
    _check(groups, sizes, shares)
    wanted = {split: shares[split] for split in SPLITS if shares.get(split, 0) > 0}
    position = {group: _position(seed, group) for group in groups}
    ordered = sorted(position, key=lambda group: (position[group], group))
    if method == "hash":
        bounds = np.cumsum(list(wanted.values()))
        bounds[-1] = 1.0  # the shares add up to 1 but for rounding
        index = np.searchsorted(bounds, [position[group] for group in ordered], side="right")
        split_of = dict(zip(ordered, np.array(list(wanted))[index].tolist(), strict=True))
    elif method == "balanced":
        split_of = _balanced(ordered, groups, sizes, wanted, works)
    else:
        raise UserError(f"method = {method!r}: groups are placed by 'hash' or 'balanced'")
    for split in wanted:
        if split not in split_of.values():
            remedy = "give more authors, or set split.by = 'work', so that an author may stand in several splits"
            if method == "hash" and len(position) >= len(wanted):
                remedy = "use method = 'balanced' (or another seed)"
            raise UserError(
                f"split {split!r} with a share of {wanted[split]:g} gets none of the {len(position)} groups: {remedy}"
            )
    return [split_of[group] for group in groups]


def deal(
    groups: Sequence[str], sizes: Sequence[float], num_folds: int, seed: int, works: Sequence[str] | None = None
) -> list[int]:
    """The fold of each document from 0, the same for all of a group: folds as even by size as the groups allow.

    Dealt as `assign_splits` deals balanced splits. Raises UserError for fewer groups than folds.
    """
    folds = {f"{fold}": 1 / num_folds for fold in range(num_folds)}
    position = {group: _position(seed, group) for group in groups}
    if len(position) < num_folds:
        raise UserError(f"num_folds = {num_folds}: there are {len(position)} groups of authors or works to deal")
    ordered = sorted(position, key=lambda group: (position[group], group))
    fold_of = _balanced(ordered, groups, sizes, folds, works)
    return [int(fold_of[group]) for group in groups]


def _codes(names: Sequence[str]) -> np.ndarray:
    return pa.array(names, pa.string()).dictionary_encode().indices.to_numpy()


def _position(seed: int, group: str) -> float:
    """A number in [0, 1) from the top 53 bits of a hash, which a float holds exactly (so never 1.0)."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def _balanced(
    ordered: list[str],
    groups: Sequence[str],
    sizes: Sequence[float],
    wanted: Mapping[str, float],
    works: Sequence[str] | None,
) -> dict[str, str]:
    size_of = dict.fromkeys(ordered, 0.0)
    for group, size in zip(groups, sizes, strict=True):
        size_of[group] += size
    num_works = dict.fromkeys(ordered, 1)
    if works is not None:
        num_works = Counter(group for group, _ in set(zip(groups, works, strict=True)))
    large = sum(number > 1 for number in num_works.values())
    small = len(ordered) - large
    tried = (1, 0) if works is None else (2, 1, 0)
    lack = dict.fromkeys(wanted, next(least for least in tried if _can_fill([least] * len(wanted), large, small)))
    # Largest first would come closer (.002 of the total instead of .014 on 31 authors), but would place the
    # same groups alike under every seed.
    total = sum(size_of.values())
    missing = {split: share * total for split, share in wanted.items()}
    split_of: dict[str, str] = {}
    for group in ordered:
        large, small = (large - 1, small) if num_works[group] > 1 else (large, small - 1)
        for split in sorted(missing, key=missing.__getitem__, reverse=True):
            after = lack | {split: max(0, lack[split] - num_works[group])}
            if _can_fill(list(after.values()), large, small):
                break
        split_of[group], lack = split, after
        missing[split] -= size_of[group]
    return split_of


def _can_fill(lack: Sequence[int], large: int, small: int) -> bool:
    """Whether so many groups of two works or more, and of one, can bring every split the works it lacks, 2 at most."""
    twos, ones = sum(number > 1 for number in lack), sum(number == 1 for number in lack)
    return 2 * max(0, twos - large) + max(0, ones - max(0, large - twos)) <= small


def _check(groups: Sequence[str], sizes: Sequence[float], shares: Mapping[str, float]) -> None:
    if len(groups) != len(sizes):
        raise UserError(f"{len(groups)} groups but {len(sizes)} sizes: give one of each a document")
    for split, share in shares.items():
        if split not in SPLITS:
            raise UserError(f"shares.{split}: no such split, choose from {', '.join(SPLITS)}")
        if not 0 <= share <= 1:
            raise UserError(f"shares.{split} = {share}: give a share from 0 to 1")
    total = sum(shares.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"shares add up to {total:g}: make them add up to 1")
    if len(sizes) and not (np.isfinite(sizes).all() and min(sizes) >= 0):
        raise UserError("sizes: every size must be a finite number, 0 or more")
