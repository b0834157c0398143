"""Pairs of chunks: two of one work, or two of different works of known kinds, as ids into the chunk table.

Every work has its own random numbers (Philox, Salmon et al. 2011, keyed by seed and work), so its positives
stay the same when other works come or go. All works are drawn at once, in numpy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire.errors import UserError
from quire.schema import PAIRS
from quire.works import MIN_GAP, Works, documents, first_apart, nearest_chunks, neighbor_lists, numbers, sorted_by_work

NEGATIVE_TYPES = ("random", "same_author", "neighbor")
SCHEMA = pa.schema([field for field in PAIRS if field.name != "split"])
RANDOM, SAME_AUTHOR, NEIGHBOR = range(3)
_MAX_ROUNDS = 8  # of drawing anew what was drawn before; small corpora have few pairs to give


class Sources(NamedTuple):
    """Where the negatives of each work come from."""

    weights: np.ndarray  # (w, 3) how often a negative is of which type: rows add up to 1, or to 0 without any
    offset: np.ndarray  # (w + 1,) where the neighbours of each work begin
    neighbor: np.ndarray  # (m,) the neighbours of all works in one row
    nearest: np.ndarray  # (n,) nearest chunk in another work, else -1


class Pairs(NamedTuple):
    """Drawn pairs, (p,) each; chunks by their place in the sorted table."""

    ours: np.ndarray  # a chunk of the work that the pair was drawn for
    theirs: np.ndarray
    kind: np.ndarray  # place in NEGATIVE_TYPES, -1 for a positive
    distance: np.ndarray  # characters between the two chunks of a positive, else 0
    swapped: np.ndarray  # bool: theirs comes first


def sample_pairs(
    chunks: pa.Table,
    neighbor_works: Mapping[str, Sequence[str]],
    neighbor_chunks: Mapping[str, Sequence[str]] | None = None,
    *,
    num_positives_per_work: int = 20,
    num_negatives_per_work: int = 40,
    random_share: float = 0.10,
    min_gap: int = MIN_GAP,
    seed: int,
) -> tuple[pa.Table, dict[str, int]]:
    """The pairs of one split, sorted by work, and how many are missing for which reason.

    `chunks`: the chunks of ONE split with chunk_id, document_id, work_id, author, author_group, anonymous, start and
    end, each document in reading order. `neighbor_works`: work_id -> work_ids. `neighbor_chunks`: chunk_id ->
    chunk_ids, nearest first. Neighbours outside the split are left out and counted.

    Positives: drawn evenly from all pairs of a work's chunks at least `min_gap` characters apart in one
    document (chunks of two documents of one work, near-duplicates by definition, may share sentences). By default
    they do not touch: a sentence stands between them.

    Negatives: a chunk of the work and one of another work. `random_share` of them are "random": a work of another
    group of authors, so that nobody wrote on both. The rest is shared between "same_author" (the same people; never
    anonymous ones) and "neighbor", or falls to the one that the work has; where it has neither, all are random. Half
    of the "neighbor" pairs are a chunk and its nearest neighbour, of those that have one by `neighbor_chunks`, the
    others any chunk of the work and of a neighbouring one; so are all where no chunk of the work has a nearest one.

    No two chunks make a pair twice. A work that has fewer positives gets fewer negatives, in proportion, so
    that short works are not recognisable by their label. Which chunk of a pair comes first is random.

    Returns a table of SCHEMA; raises UserError for a broken chunk table and impossible numbers.
    """
    check_numbers(
        random_share,
        num_positives_per_work=num_positives_per_work,
        num_negatives_per_work=num_negatives_per_work,
        min_gap=min_gap,
    )
    works = sorted_by_work(chunks, seed)
    missing: Counter[str] = Counter()
    positives = _positives(works, num_positives_per_work, min_gap, missing)
    quota = np.full(len(works.names), num_negatives_per_work)
    if num_positives_per_work:
        got = np.bincount(works.work[positives.ours], minlength=len(quota))
        quota = (num_negatives_per_work * got + num_positives_per_work // 2) // num_positives_per_work
        missing["negative_in_proportion"] += int((num_negatives_per_work - quota).sum())
    every = np.arange(len(works.names))
    offset, neighbor = neighbor_lists(works, neighbor_works, every, missing)
    nearest = nearest_chunks(works, neighbor_chunks or {}, every, missing)
    sources = Sources(_weights(works, np.diff(offset) > 0, random_share), offset, neighbor, nearest)
    alone = sources.weights.sum(axis=1) == 0
    missing["negative_no_other_work"] += int(quota[alone].sum())
    negatives, lack = draw_two_works(works, sources, quota)
    missing["negative_drawn_before"] += lack
    pairs = pair_table(works, joined(positives, negatives))
    return pairs, {reason: count for reason, count in sorted(missing.items()) if count}


def nearest_share(neighbor_works: Mapping[str, Sequence[str]], share: float) -> dict[str, Sequence[str]]:
    """The first of each work's neighbours: at most `share` of its split's other works, and one at least.

    In a split of fewer works than were asked for (`pipelines.neighbors num_works`) every work is a neighbour of every
    other, and a hard negative would be a random one by another name. `neighbor_works` has a key for each work.
    """
    limit = max(1, int(share * (len(neighbor_works) - 1)))
    return {work: found[:limit] for work, found in neighbor_works.items()}


def check_numbers(random_share: float, **counts: int) -> None:
    """Raise UserError for a share outside [0, 1] and for a negative number."""
    if not 0 <= random_share <= 1:
        raise UserError(f"random_share = {random_share}: give a share from 0 to 1")
    for name, value in counts.items():
        if value < 0:
            raise UserError(f"{name} = {value}: give 0 or more")


def _positives(works: Works, num_pairs: int, min_gap: int, missing: Counter[str]) -> Pairs:
    """Pairs of an earlier and a later chunk of one document, `min_gap` characters apart or more."""
    start, end = numbers(works.table["start"]), numbers(works.table["end"])
    document, last = documents(works.table["document_id"], start)
    partner = first_apart(document, start, end, min_gap)
    # The pairs of all works in one long row: pair number -> chunk by binary search, partner by counting on.
    pair_offset = np.concatenate([[0], np.cumsum(np.maximum(last - partner, 0))])
    first, total = pair_offset[works.offset[:-1]], np.diff(pair_offset[works.offset])
    wanted = np.minimum(num_pairs, total)
    missing["positive_too_few_chunks_apart"] += int((num_pairs - wanted).sum())
    # Floyd's sampling without replacement (Bentley and Floyd 1987), a step of all works at a time.
    draws = _draws(works.keys, 0, 2 * num_pairs)
    chosen = np.full((len(works.keys), num_pairs), -1)
    for step in range(num_pairs):
        live = step < wanted
        top = np.maximum(total - wanted + step, 0)
        number = (draws[:, step] % (top + 1).astype(np.uint64)).astype(np.int64)
        taken = (chosen[:, :step] == number[:, None]).any(axis=1)
        chosen[:, step] = np.where(live, np.where(taken, top, number), -1)
    row, column = np.nonzero(chosen >= 0)
    number = first[row] + chosen[row, column]
    left = np.searchsorted(pair_offset, number, side="right") - 1
    right = partner[left] + number - pair_offset[left]
    swapped = draws[row, num_pairs + column] % 2 == 1
    return Pairs(left, right, np.full(len(left), -1), start[right] - end[left], swapped)


def draw_two_works(works: Works, sources: Sources, quota: np.ndarray, first_round: int = 1) -> tuple[Pairs, int]:
    """Pairs of a chunk of each work and one of another, and how many are missing; what was drawn before is drawn anew.

    A work without sources gets none. Calls with `first_round` 8 or more apart share no random numbers.
    """
    quota = lack = np.where(sources.weights.sum(axis=1) == 0, 0, quota)
    pairs = Pairs(*(np.zeros(0, kind) for kind in (int, int, int, int, bool)))
    for round_number in range(first_round, first_round + _MAX_ROUNDS):
        if not lack.any():
            break
        pairs = joined(pairs, _one_round(works, sources, lack, round_number))
        code = np.minimum(pairs.ours, pairs.theirs) * len(works.work) + np.maximum(pairs.ours, pairs.theirs)
        new = np.sort(np.unique(code, return_index=True)[1])
        pairs = Pairs(*(column[new] for column in pairs))
        lack = quota - np.bincount(works.work[pairs.ours], minlength=len(quota))
    return pairs, int(lack.sum())


def _weights(works: Works, has_neighbors: np.ndarray, random_share: float) -> np.ndarray:
    """The weights of the three types for each work: (w, 3)."""
    num_same, num_linked = works.author_last - works.author_first, works.group_last - works.group_first
    available = np.stack([num_linked < len(works.names), num_same > 1, has_neighbors], axis=1)
    hard = available[:, 1:].sum(axis=1, keepdims=True)
    weights = np.where(hard > 0, (1 - random_share) / np.maximum(hard, 1), 0) * available
    weights[:, RANDOM] = np.where(hard[:, 0] > 0, random_share, 1) * available[:, RANDOM]
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total > 0, total, 1)


def _one_round(works: Works, sources: Sources, lack: np.ndarray, round_number: int) -> Pairs:
    lacking = np.flatnonzero(lack)
    most = int(lack.max())
    draws = _draws([works.keys[w] for w in lacking], round_number, 5 * most).reshape(len(lacking), 5, most)
    row, column = np.nonzero(np.arange(most) < lack[lacking, None])
    work = lacking[row]
    which, other, own_chunk, other_chunk, coin = (draws[row, i, column] for i in range(5))
    weights = sources.weights[work]
    share = (which >> np.uint64(11)).astype(np.float64) * 2.0**-53
    # The weights may add up to a little less than 1: the last type that has one takes the rest.
    last_type = 2 - np.argmax(weights[:, ::-1] > 0, axis=1)
    kind = np.minimum((share[:, None] >= weights.cumsum(axis=1)).sum(axis=1), last_type)
    partner = np.empty(len(work), np.int64)
    for this_kind, draw in ((RANDOM, _other_author), (SAME_AUTHOR, _same_author)):
        rows = kind == this_kind
        partner[rows] = draw(works, work[rows], other[rows])
    rows = kind == NEIGHBOR
    first, last = sources.offset[work[rows]], sources.offset[work[rows] + 1]
    partner[rows] = sources.neighbor[first + _below(other[rows], last - first)]
    num_chunks = np.diff(works.offset)
    ours = works.offset[work] + _below(own_chunk, num_chunks[work])
    theirs = works.offset[partner] + _below(other_chunk, num_chunks[partner])
    # Only some chunks of a long work were embedded and have a nearest one: the coin first, then one of those.
    embedded = np.flatnonzero(sources.nearest >= 0)
    offset = np.searchsorted(embedded, works.offset)
    first, num_embedded = offset[work], np.diff(offset)[work]
    rows &= (coin % 2 == 0) & (num_embedded > 0)
    ours[rows] = embedded[first[rows] + _below(own_chunk[rows], num_embedded[rows])]
    theirs[rows] = sources.nearest[ours[rows]]
    return Pairs(ours, theirs, kind, np.zeros(len(ours), np.int64), coin // 2 % 2 == 1)


def _other_author(works: Works, work: np.ndarray, draws: np.ndarray) -> np.ndarray:
    first, last = works.group_first[work], works.group_last[work]
    place = _below(draws, len(works.names) - (last - first))
    return works.by_author[np.where(place >= first, place + last - first, place)]


def _same_author(works: Works, work: np.ndarray, draws: np.ndarray) -> np.ndarray:
    first, own = works.author_first[work], works.place[work]
    place = first + _below(draws, works.author_last[work] - first - 1)
    return works.by_author[np.where(place >= own, place + 1, place)]


def pair_table(works: Works, pairs: Pairs) -> pa.Table:
    order = np.argsort(works.work[pairs.ours], kind="stable")
    pairs = Pairs(*(column[order] for column in pairs))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for side, other, name in ((pairs.ours, pairs.theirs, "a"), (pairs.theirs, pairs.ours, "b")):
        rows = works.table.take(np.where(pairs.swapped, other, side))
        columns[f"chunk_{name}"], columns[f"work_{name}"] = rows["chunk_id"], rows["work_id"]
        columns[f"author_{name}"] = rows["author"]
    positive = pairs.kind < 0
    types = pa.array(NEGATIVE_TYPES, pa.string())
    columns["pair_id"] = pc.binary_join_element_wise(columns["chunk_a"], columns["chunk_b"], "|")
    columns["label"] = pa.array(positive.astype(np.int8))
    columns["negative_type"] = types.take(pa.array(pairs.kind, mask=positive))
    columns["distance"] = pa.array(pairs.distance, mask=~positive)
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


def joined(first: Pairs, second: Pairs) -> Pairs:
    return Pairs(*(np.concatenate(both) for both in zip(first, second, strict=True)))


def _draws(keys: list[int], stream: int, num_draws: int) -> np.ndarray:
    """Random 64-bit numbers, (w, num_draws) uint64: those of a work do not depend on the other works."""
    draws = [np.random.Philox(key=key, counter=[0, 0, 0, stream]).random_raw(num_draws) for key in keys]
    return np.array(draws, np.uint64).reshape(len(keys), num_draws)


def _below(draws: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Whole numbers 0 <= x < bound; of 2^64 numbers the bias of a remainder is nothing."""
    return (draws % bound.astype(np.uint64)).astype(np.int64)
