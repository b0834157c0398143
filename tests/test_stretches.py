"""Pairs of stretches: as far apart as they must be, of the works and kinds of their pairs, the same for every level."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from quire.errors import UserError
from quire.metrics import auc
from quire.pairs import sample_pairs
from quire.stretches import SCHEMA, stretches, told
from quire.works import MIN_GAP

SIZES = (60, 9, 25, 60, 14, 40)  # chunks of each work


def library(sizes: tuple[int, ...] = SIZES, num_pairs: int = 20) -> tuple[pa.Table, pa.Table]:
    """Chunks that overlap by 40 characters, so that the next but one touches still; and frozen pairs of them."""
    rows = [
        {
            "chunk_id": f"w{work}:{i}",
            "document_id": f"w{work}",
            "work_id": f"w{work}",
            "author": f"a{work // 2}",
            "author_group": f"a{work // 2}",
            "anonymous": False,
            "start": 100 * i,
            "end": 100 * i + 140,
        }
        for work, size in enumerate(sizes)
        for i in range(size)
    ]
    chunks = pa.Table.from_pylist(rows)
    near = {f"w{work}": [f"w{(work + 2) % len(sizes)}"] for work in range(len(sizes))}
    counts = {"num_positives_per_work": num_pairs, "num_negatives_per_work": 2 * num_pairs}
    pairs, _ = sample_pairs(chunks, near, **counts, seed=0)
    return chunks, pairs.append_column("split", pa.array(["test"] * pairs.num_rows))


CHUNKS, PAIRS = library()
MADE, FACTS = stretches(PAIRS, CHUNKS, (2, 5, 10), 60)


def spans(row: dict) -> list[tuple[str, int, int]]:
    """Document, beginning and end of both stretches."""
    chunks = CHUNKS.to_pylist()
    found = []
    for side in "ab":
        stretch = chunks[row[f"row_{side}"] : row[f"row_{side}"] + row[f"num_{side}"]]
        assert len(stretch) == row[f"num_{side}"] >= row["k"] and len({chunk["document_id"] for chunk in stretch}) == 1
        assert stretch[0]["chunk_id"] == row[f"chunk_{side}"] and stretch[0]["work_id"] == row[f"work_{side}"]
        found.append((stretch[0]["document_id"], stretch[0]["start"], stretch[-1]["end"]))
    return found


def test_stretches_lie_in_one_document_each_and_those_of_one_book_neither_overlap_nor_touch() -> None:
    assert MADE.schema == SCHEMA and MADE.num_rows > 150
    for row in MADE.to_pylist():
        a, b = spans(row)
        assert row["pair_id"] == f"{row['chunk_a']}|{row['chunk_b']}"
        assert (row["chars_a"], row["chars_b"]) == (a[2] - a[1], b[2] - b[1])
        if not row["label"]:
            assert a[0] != b[0] and row["distance"] is None and row["negative_type"]
            continue
        first, second = sorted((a, b), key=lambda span: span[1])
        assert a[0] == b[0] and second[1] - first[2] == row["distance"] >= MIN_GAP


def test_a_stretch_lies_around_the_chunk_of_its_frozen_pair_and_holds_the_shorter_ones() -> None:
    rows = PAIRS.to_pylist()
    frozen = [next(row for row in rows if row["label"] == label and row["work_a"] == "w0") for label in (1, 0)]
    found, _ = stretches(pa.Table.from_pylist(frozen, PAIRS.schema), CHUNKS, (2, 5, 10), 2)
    place = {name: row for row, name in enumerate(CHUNKS["chunk_id"].to_pylist())}
    for pair in frozen:
        inner = [{place[pair[side]]} for side in ("chunk_a", "chunk_b")]
        made = [row for row in found.to_pylist() if row["label"] == pair["label"]]
        assert [row["k"] for row in made] == [2, 5, 10]
        for row in made:
            outer = [set(range(row[f"row_{side}"], row[f"row_{side}"] + row[f"num_{side}"])) for side in "ab"]
            assert inner[0] <= outer[0] and inner[1] <= outer[1]
            inner = outer


def test_lengths_are_those_that_a_matcher_answers_at_the_level() -> None:
    made, _ = stretches(PAIRS, CHUNKS, (2, 5, 10), 10**6)
    sides = {k: [(r["num_a"], r["num_b"]) for r in made.to_pylist() if r["k"] == k] for k in (2, 5, 10)}
    assert {min(nums) for nums in sides[2]} == {2, 3, 4} and {min(nums) for nums in sides[5]} == {5, 6, 7, 8, 9}
    for k in (2, 5):  # either side is the short one, the other one of any length
        longer = [max(nums) for nums in sides[k]]
        first = [(r["num_a"], r["num_b"])[r["row_a"] > r["row_b"]] for r in made.to_pylist() if r["k"] == k]
        assert 0.3 < np.mean([num < 2 * k for num in first]) < 0.85
        assert max(longer) > 20 and np.mean(np.array(longer) < 2 * k) > 0.1
    largest = np.array(sides[10])
    assert largest.min() == 10 and largest.max() <= 30 and np.mean(largest.min(axis=1) > 12) > 0.1


def test_lengths_are_even_on_a_scale_of_logarithms_and_drawn_for_each_text_by_itself() -> None:
    chunks, pairs = library((400,) * 10)
    made, _ = stretches(pairs, chunks, (2,), 10**6)
    negatives = [row for row in made.to_pylist() if not row["label"]]
    nums = np.array([(row["num_a"], row["num_b"]) for row in negatives])
    assert abs(np.mean(nums < (2 * 200) ** 0.5) - 0.5) < 0.06
    assert abs(np.corrcoef(np.log(nums.T))[0, 1]) < 0.15


def test_a_text_lies_evenly_to_both_sides_of_its_chunk_where_there_is_room() -> None:
    chunks, pairs = library((400,) * 10)
    place = {name: row for row, name in enumerate(chunks["chunk_id"].to_pylist())}
    frozen = [row for row in pairs.to_pylist() if not row["label"] and 100 < place[row["chunk_a"]] % 400 < 300][:60]
    couple = frozen + [next(row for row in pairs.to_pylist() if row["label"])]
    made, _ = stretches(pa.Table.from_pylist(couple, pairs.schema), chunks, (2, 5), 10**6)
    found = [row for row in made.to_pylist() if not row["label"] and row["num_a"] < 20]
    chunks_a = {place[row["chunk_a"]] for row in frozen}
    in_the_middle = [row["row_a"] + row["num_a"] // 2 in chunks_a for row in found]
    assert len(found) > 40 and np.mean(in_the_middle) > 0.6  # the others are where their document is divided


def test_lengths_tell_no_labels_but_the_shorter_one_where_books_differ_in_size() -> None:
    for sizes in ((60,) * 12, (400, 60, 25, 120, 30, 300, 90, 40, 700, 200, 150, 50)):
        made, _ = stretches(*library(sizes, num_pairs=100)[::-1], (2, 5, 10), 10**6)
        labels, k, a, b = (made[name].to_numpy() for name in ("label", "k", "num_a", "num_b"))
        for level in (2, 5, 10):
            shorter = () if level == 10 and len(set(sizes)) > 1 else (np.minimum(a, b), np.abs(np.log(a / b)))
            for nums in (np.maximum(a, b), a + b, *shorter):
                assert auc(labels[k == level], nums[k == level].astype(float)) == pytest.approx(0.5, abs=0.03)


def test_a_kind_without_room_is_left_out_and_the_others_go_on() -> None:
    kept = [
        row for row in PAIRS.to_pylist() if row["negative_type"] != "random" or "w1" in (row["work_a"], row["work_b"])
    ]
    found, facts = stretches(pa.Table.from_pylist(kept, PAIRS.schema), CHUNKS, (5,), 60)
    assert "random" not in facts[5]["counts"] and abs(found.num_rows - 60) <= 4
    assert facts[5]["short_of"]["document_short"] >= sum(row["negative_type"] == "random" for row in kept) > 0


def test_every_level_keeps_the_mix_of_kinds_and_takes_the_same_pairs_where_they_have_room() -> None:
    share = Counter(kind or "positive" for kind in PAIRS["negative_type"].to_pylist())
    for k in (2, 5, 10):
        rows = [row for row in MADE.to_pylist() if row["k"] == k]
        kinds = Counter(row["negative_type"] or "positive" for row in rows)
        assert kinds == FACTS[k]["counts"]
        assert all(abs(kinds[kind] - 60 * count / PAIRS.num_rows) <= 1 for kind, count in share.items())
    works = {k: Counter((r["work_a"], r["work_b"]) for r in MADE.to_pylist() if r["k"] == k) for k in (2, 5)}
    assert (works[2] & works[5]).total() > 0.6 * works[2].total()


def test_what_is_missing_is_counted_with_a_reason_and_short_books_are_left_out_on_both_sides() -> None:
    assert FACTS[5]["short_of"]["document_short"] == sum("w1" in (r["work_a"], r["work_b"]) for r in PAIRS.to_pylist())
    assert not any("w1" in (row["work_a"], row["work_b"]) for row in MADE.to_pylist() if row["k"] == 5)
    everything, facts = stretches(PAIRS, CHUNKS, (5,), 10**6)
    kinds = Counter(kind or "positive" for kind in PAIRS["negative_type"].to_pylist())
    room = PAIRS.num_rows - sum(facts[5]["short_of"].values())
    assert everything.num_rows <= room and facts[5]["short_of"]["no_room"] > 0
    taken = {kind: facts[5]["counts"][kind] / count for kind, count in kinds.items()}
    assert max(taken.values()) - min(taken.values()) < 0.05  # all are thinned alike
    couples = [frozenset((row["chunk_a"], row["chunk_b"])) for row in everything.to_pylist()]
    assert len(set(couples)) == len(couples)
    assert "5 chunks a side" in told({"test": FACTS})[1] and "document_short" in told({"test": FACTS})[1]


def test_the_pairs_of_a_book_stand_still_when_other_books_come() -> None:
    chunks, pairs = library((*SIZES, 50, 50))
    more, _ = stretches(pairs, chunks, (5,), 10**6)
    before = stretches(PAIRS, CHUNKS, (5,), 10**6)[0]
    names = [
        {r["pair_id"] for r in table.to_pylist() if r["label"] and r["work_a"] == "w0"} for table in (before, more)
    ]
    assert len(names[0] & names[1]) > 0.8 * min(map(len, names))


def test_a_level_that_no_book_has_room_for_and_foreign_chunks_are_refused() -> None:
    with pytest.raises(
        UserError, match="levels: no pair of one book has room for 40 chunks a side .* leave that level out"
    ):
        stretches(PAIRS, CHUNKS, (40,), 60)
    with pytest.raises(UserError, match="the chunk artefact lacks"):
        stretches(PAIRS, CHUNKS.slice(100), (2,), 60)
    assert stretches(PAIRS, CHUNKS, (), 60)[0].num_rows == 0


def test_places_do_not_depend_on_the_order_of_the_sides() -> None:
    swapped = PAIRS.rename_columns(
        [name.replace("_a", "_?").replace("_b", "_a").replace("_?", "_b") for name in PAIRS.column_names]
    ).select(PAIRS.column_names)
    found, _ = stretches(swapped, CHUNKS, (2, 5, 10), 60)
    mirrored = [(r["row_b"], r["row_a"], r["num_b"], r["num_a"]) for r in found.to_pylist()]
    assert mirrored == [(r["row_a"], r["row_b"], r["num_a"], r["num_b"]) for r in MADE.to_pylist()]
    assert np.all(found["distance"].fill_null(0).to_numpy() >= 0)
