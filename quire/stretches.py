"""Pairs of stretches, chunks in a row on either side of which k are read, drawn around the pairs of single chunks.

A pair of stretches keeps the works, the label and the type of its pair, so that what is measured with k chunks a side
is measured of the same books. Stretches are of the lengths that a matcher answers at level k (`levels.question`): the
shorter one has fewer chunks than the next level, the other, and at the last level both, are of any length up to half of
a document. Level 1 is that of the single chunks themselves. Shape letters: n chunks, p frozen pairs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quire import embeddings, schema
from quire.embeddings import marks
from quire.errors import UserError
from quire.works import MIN_GAP, documents, first_apart

COLUMNS = ("chunk_id", "document_id", "start", "end")
SCHEMA = pa.schema(
    [
        *schema.PAIRS,  # chunk_a and chunk_b are the first chunks of both stretches, pair_id both together
        ("k", pa.int32()),
        ("row_a", pa.int64()),  # of the first chunk in the chunk table
        ("row_b", pa.int64()),
        ("num_a", pa.int64()),  # chunks of the stretch, of which k are read
        ("num_b", pa.int64()),
        ("chars_a", pa.int64()),  # from the first chunk's beginning to the last one's end
        ("chars_b", pa.int64()),
    ]
)


class _Chunks(NamedTuple):
    """The chunks of a split in reading order, document by document: (n,) each."""

    start: np.ndarray  # characters
    end: np.ndarray
    document: np.ndarray  # its number
    first: np.ndarray  # place of its first chunk
    last: np.ndarray  # and the place behind its last
    apart: np.ndarray  # the first place that neither overlaps nor touches the chunk
    peak: np.ndarray  # where to divide the document, so that both parts have the most room


def stretches(
    pairs: pa.Table, chunks: pa.Table, levels: Sequence[int], num_pairs: int
) -> tuple[pa.Table, dict[int, dict[str, Any]]]:
    """Pairs of stretches to be read at each of `levels`, and for each how many of each kind, and what is missing why.

    `pairs`: the frozen pairs of ONE split (schema.PAIRS); `chunks`: that split's chunks (`COLUMNS`), document by
    document in reading order, in a row as they stand there: a window that was dropped leaves a hole, which the service
    reads, so that in a text with holes it may be at the next level.

    A stretch lies around its chunk, as far to both sides as its document has room. The two of a positive lie in one
    document and are at least `works.MIN_GAP` characters apart, as its two chunks are: the document is divided between
    them where both have the most room. Each document of a negative is divided, too, as if between its chunk and another
    one apart from it, drawn by the name of the pair: so lengths tell no labels, but for the last level, where the
    smaller of two books bounds the shorter text of a negative. Both lengths of a pair are drawn by its name, evenly on
    a scale of logarithms: one of them, which one is drawn too, below the next of `levels`, the other, and at the last
    level both, up to half of the document. Longer stretches hold the shorter ones of the same pair. Missing are pairs
    of a document that has no room for two stretches (`document_short`), those whose chunks lie so that there is no room
    around them (`no_room`), and what begins where another pair does (`drawn_before`).

    At most `num_pairs` a level, mixed in kinds as the frozen pairs are, those of the least hashes: the same pairs for
    every level, as far as they have room, whatever the other pairs are. The rows of one frozen pair stand together, in
    the order of the frozen pairs. Raises UserError when a level has no pair of one book, or none of two.
    """
    table = _chunks(chunks)
    ids = chunks["chunk_id"].combine_chunks()
    a, b = (pc.index_in(pairs[side], value_set=ids) for side in ("chunk_a", "chunk_b"))
    if a.null_count or b.null_count:
        raise UserError("pairs: some are of chunks that the chunk artefact lacks; make them again from it")
    a, b = (np.asarray(side).astype(np.int64) for side in (a, b))
    kinds = np.asarray(pairs["negative_type"].fill_null("positive").to_pylist(), dtype=object)
    names = pairs["pair_id"].to_pylist()
    found, facts = [], {}
    draws, next_levels = _draws(names), dict(pairwise(levels))
    for k in levels:
        firsts, nums, missing = _placed(table, a, b, kinds == "positive", draws, k, next_levels.get(k))
        chosen = _chosen(names, kinds, missing == "", num_pairs, k)
        counts = {"counts": Counter(kinds[chosen].tolist()), "short_of": Counter(missing[missing != ""].tolist())}
        facts[k] = {name: dict(sorted(count.items())) for name, count in counts.items()}
        found.append(_table(pairs.take(chosen), ids, table, firsts[:, chosen], nums[:, chosen], k, chosen))
    made = pa.concat_tables(found) if found else SCHEMA.append(pa.field("place", pa.int64())).empty_table()
    return made.sort_by([("place", "ascending"), ("k", "ascending")]).select(SCHEMA.names), facts


def _chunks(chunks: pa.Table) -> _Chunks:
    start, end = (np.asarray(chunks[name]).astype(np.int64) for name in ("start", "end"))
    document, last = documents(chunks["document_id"], start)
    first = np.searchsorted(document, document, side="left")
    apart = first_apart(document, start, end, MIN_GAP)
    room = _room(np.arange(len(start)), first, last, apart)
    peak = np.zeros(len(start), np.int64)
    for begin in np.unique(first):  # by document
        peak[begin : last[begin]] = begin + room[begin : last[begin]].argmax()
    return _Chunks(start, end, document, first, last, apart, peak)


def _room(middle: np.ndarray, first: np.ndarray, last: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Chunks in the smaller part of a document that is divided behind the chunk `middle`; all (n,)."""
    return np.minimum(middle - first + 1, last - apart)


class _Draws(NamedTuple):
    """What decides the lengths of p pairs; the left one of two stretches is that of the first chunk in the table."""

    lengths: np.ndarray  # (2, p) from 0 to 1: how long of what is possible, left and right
    partners: np.ndarray  # (2, p) from 0 to 1: which other chunk divides a document of a negative
    is_short: np.ndarray  # (2, p) bool: which of both stays below the next level


def _draws(names: Sequence[str]) -> _Draws:
    """By the name of each pair alone."""

    def drawn(what: str) -> np.ndarray:
        return marks([f"{name}|{what}" for name in names]) / 2.0**64

    lengths, partners = (np.stack([drawn(f"left{of}"), drawn(f"right{of}")]) for of in ("", " partner"))
    short = drawn("short") < 0.5
    return _Draws(lengths, partners, np.stack([short, ~short]))


def _length(draw: np.ndarray, k: int, most: np.ndarray) -> np.ndarray:
    """Lengths (2, p) from `k` to `most`, even on a scale of logarithms: as many from 10 to 20 as from 100 to 200."""
    most = np.maximum(most, k)
    return np.minimum((k * ((most + 1) / k) ** draw).astype(np.int64), most)


def _placed(
    table: _Chunks, a: np.ndarray, b: np.ndarray, positive: np.ndarray, draws: _Draws, k: int, next_level: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First chunks and lengths of both stretches of p pairs, (2, p) each, and why some have none: "" where they do."""
    missing = np.full(len(a), "", dtype=object)
    sides = np.stack([np.minimum(a, b), np.maximum(a, b)])
    partners = np.where(positive, sides[::-1], _partner(table, sides, draws.partners))
    begins, ends = _part(table, sides, partners)
    halves = _halves(table, sides)
    missing[((ends - begins) < k).any(0)] = "no_room"
    missing[(halves < k).any(0)] = "document_short"
    most = np.minimum(ends - begins, halves)
    if next_level is not None:
        most = np.where(draws.is_short, np.minimum(most, next_level - 1), most)
    nums = _length(draws.lengths, k, most)
    firsts = np.clip(sides - nums // 2, begins, np.maximum(ends - nums, begins))
    there = np.flatnonzero(missing == "")
    new = there[np.unique(firsts[:, there], axis=1, return_index=True)[1]]
    missing[np.setdiff1d(there, new)] = "drawn_before"
    return np.where(a > b, firsts[::-1], firsts), np.where(a > b, nums[::-1], nums), missing


def _partner(table: _Chunks, chunk: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """One of the chunks of its document that are apart from each chunk, all (2, p); itself where there is none."""
    before = np.maximum(np.searchsorted(table.apart, chunk, side="right") - table.first[chunk], 0)
    number = (draw * (before + table.last[chunk] - table.apart[chunk])).astype(np.int64)
    partner = np.where(number < before, table.first[chunk] + number, table.apart[chunk] + number - before)
    return np.where(partner < table.last[chunk], partner, chunk)


def _part(table: _Chunks, chunk: np.ndarray, partner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chunk's part of its document, where it is divided between the two: its first chunk, the place behind its
    last; all (2, p). Empty where they are not apart."""
    left, right = np.minimum(chunk, partner), np.maximum(chunk, partner)
    # Room falls to both sides of its peak, so the best place to divide between two chunks is the nearest to the peak.
    last_middle = np.searchsorted(table.apart, right, side="right") - 1
    middle = np.clip(table.peak[left], left, last_middle)
    is_left = chunk == left
    begin = np.where(is_left, table.first[left], table.apart[middle])
    end = np.where(is_left, middle + 1, table.last[left])
    return begin, np.where(last_middle < left, begin, end)


def _halves(table: _Chunks, chunk: np.ndarray) -> np.ndarray:
    """Chunks (2, p) in the smaller part of each chunk's document, divided where both parts have the most room."""
    peak = table.peak[chunk]
    return _room(peak, table.first[chunk], table.last[chunk], table.apart[peak])


def _chosen(names: Sequence[str], kinds: np.ndarray, there: np.ndarray, num_pairs: int, k: int) -> np.ndarray:
    """Places, rising, of the pairs that are taken: of every kind with room so many that they are mixed as all are."""
    counts, left = Counter(kinds.tolist()), Counter(kinds[there].tolist())
    if not left["positive"] or left.total() == left["positive"]:
        what = "different books" if left["positive"] else "one book"
        raise UserError(
            f"levels: no pair of {what} has room for {k} chunks a side among {len(kinds)}; leave that level out, or "
            "give longer books"
        )
    share = min(num_pairs / len(kinds), *(count / counts[kind] for kind, count in left.items()))
    chosen = []
    for kind in sorted(left):
        rows = np.flatnonzero(there & (kinds == kind))
        wanted = max(1, round(share * counts[kind]))
        chosen.append(rows[embeddings.sample([names[row] for row in rows], wanted)])
    return np.sort(np.concatenate(chosen))


def _table(
    pairs: pa.Table, ids: pa.Array, table: _Chunks, firsts: np.ndarray, nums: np.ndarray, k: int, place: np.ndarray
) -> pa.Table:
    columns: dict[str, Any] = {name: pairs[name] for name in schema.PAIRS.names}
    lasts = firsts + nums - 1
    for side, first, num, last in zip("ab", firsts, nums, lasts, strict=True):
        columns[f"chunk_{side}"], columns[f"row_{side}"] = ids.take(pa.array(first)), pa.array(first)
        columns[f"num_{side}"], columns[f"chars_{side}"] = pa.array(num), pa.array(table.end[last] - table.start[first])
    columns["pair_id"] = pc.binary_join_element_wise(columns["chunk_a"], columns["chunk_b"], "|")
    positive = pairs["label"].to_numpy() == 1
    columns["distance"] = pa.array(table.start[firsts.max(0)] - table.end[lasts.min(0)], mask=~positive)
    columns["k"] = pa.array(np.full(len(place), k), pa.int32())
    made = pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)
    return made.append_column("place", pa.array(place, pa.int64()))


def told(facts: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """A line a split and level for a step's summary: what was drawn, and what is missing."""
    lines = []
    for split, levels in facts.items():
        for k, found in levels.items():
            lacking = f"; missing {schema.summarise(found['short_of'])}" if found["short_of"] else ""
            lines.append(f"{split:<12}{k:>3} chunks a side: {schema.summarise(found['counts'])}{lacking}")
    return lines
