"""Pairs of chunks for style: by one author in two works, or by authors who never wrote together.

Drawn as those of `quire.pairs`, each work by its own random numbers, so that they stay when other works come or go.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from quire import pairs
from quire.pairs import NEIGHBOR, RANDOM, SAME_AUTHOR, Sources
from quire.works import nearest_chunks, neighbor_lists, sorted_by_work

_NEGATIVE_ROUNDS = 100  # where their random numbers begin, so that they share none with the positives


def sample_author_pairs(
    chunks: pa.Table,
    neighbor_works: Mapping[str, Sequence[str]],
    neighbor_chunks: Mapping[str, Sequence[str]] | None = None,
    *,
    num_positives_per_work: int = 20,
    num_negatives_per_work: int = 20,
    random_share: float = 0.5,
    seed: int,
) -> tuple[pa.Table, dict[str, int]]:
    """The pairs of one split, sorted by work, and how many are missing for which reason.

    `chunks`, `neighbor_works` and `neighbor_chunks` as in `pairs.sample_pairs`. Positives: a chunk of the work and one
    of another work of the same author; nobody knows an anonymous author, so it has none. Negatives: two works of two
    author groups, so that nobody wrote on both; `random_share` of them are "random", the others "neighbor" (works of
    near centroids, half of them the chunk's nearest neighbour), or random where the work has no neighbour.

    Two chunks of one work are never a pair, nor are two works of authors who once wrote together. No two chunks make a
    pair twice. A work that has fewer positives gets fewer negatives, in proportion; the other side of a negative may be
    any work of the split, also by authors of a single one.

    Returns a table of `pairs.SCHEMA`; raises UserError for a broken chunk table and impossible numbers.
    """
    sizes = {"num_positives_per_work": num_positives_per_work, "num_negatives_per_work": num_negatives_per_work}
    pairs.check_numbers(random_share, **sizes)
    works = sorted_by_work(chunks, seed)
    missing: Counter[str] = Counter()
    has_others = works.author_last - works.author_first > 1
    quota = np.where(has_others, num_positives_per_work, 0)
    missing["positive_no_other_work_of_the_author"] += int(num_positives_per_work * (~has_others).sum())
    nobody = np.full(len(works.work), -1)
    none = Sources(_only(SAME_AUTHOR, has_others), np.zeros(len(quota) + 1, np.int64), np.zeros(0, np.int64), nobody)
    positives, lack = pairs.draw_two_works(works, none, quota)
    missing["positive_drawn_before"] += lack
    positives = positives._replace(kind=np.full(len(positives.kind), -1))
    got = np.bincount(works.work[positives.ours], minlength=len(quota))
    wanted = (num_negatives_per_work * got + num_positives_per_work // 2) // max(1, num_positives_per_work)
    missing["negative_in_proportion"] += int((num_negatives_per_work - wanted).sum())
    kin = works.group_first  # one number a group
    offset, neighbor = neighbor_lists(works, neighbor_works, kin, missing)
    nearest = nearest_chunks(works, neighbor_chunks or {}, kin, missing)
    has_strangers = works.group_last - works.group_first < len(works.names)
    weights = random_share * _only(RANDOM, has_strangers) + (1 - random_share) * _only(NEIGHBOR, np.diff(offset) > 0)
    total = weights.sum(axis=1, keepdims=True)
    sources = Sources(weights / np.where(total > 0, total, 1), offset, neighbor, nearest)
    missing["negative_no_other_author"] += int(wanted[total[:, 0] == 0].sum())
    negatives, lack = pairs.draw_two_works(works, sources, wanted, _NEGATIVE_ROUNDS)
    missing["negative_drawn_before"] += lack
    found = pairs.pair_table(works, pairs.joined(positives, negatives))
    # Two works have no distance.
    place = found.column_names.index("distance")
    found = found.set_column(place, found.field(place), pa.nulls(found.num_rows, pa.int64()))
    return found, {reason: count for reason, count in sorted(missing.items()) if count}


def _only(kind: int, available: np.ndarray) -> np.ndarray:
    """Weights (w, 3) of one kind of partner, for the works (w,) that have it."""
    weights = np.zeros((len(available), len(pairs.NEGATIVE_TYPES)))
    weights[available, kind] = 1.0
    return weights
