"""Pairs obey their rules on every table, are as many as can be, and stand still when works come or go."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.chunks import chunk_text
from quire.errors import UserError
from quire.pairs import SCHEMA, nearest_share, sample_pairs


def _table(works):
    """works: (work, author, anonymous, [chunks of each document]); a chunk is (start, end); "a+b" wrote with "a"."""
    rows = [
        (f"{work}.{d}:{i}", f"{work}.{d}", work, author, work if anonymous else author[:1], anonymous, start, end)
        for work, author, anonymous, documents in works
        for d, chunks in enumerate(documents)
        for i, (start, end) in enumerate(chunks)
    ]
    names = ["chunk_id", "document_id", "work_id", "author", "author_group", "anonymous", "start", "end"]
    types = [pa.string()] * 5 + [pa.bool_()] + [pa.int64()] * 2
    schema = pa.schema(list(zip(names, types, strict=True)))
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)


def _library(num_works=40, num_chunks=30, num_authors=20):
    chunks = [(i * 1000, i * 1000 + 900) for i in range(num_chunks)]
    return [(f"w{i}", chr(ord("a") + i % num_authors), False, [chunks]) for i in range(num_works)]


def _ring(works):
    names = [work for work, *_ in works]
    return {name: [names[i - 1], names[i - 2]] for i, name in enumerate(names)}


@st.composite
def _corpora(draw):
    """Small corpora with overlapping chunks, works of two documents, works of one chunk, nameless authors."""
    works = []
    for i in range(draw(st.integers(0, 6))):
        documents = []
        for _ in range(draw(st.integers(1, 2))):
            starts = np.cumsum(draw(st.lists(st.integers(1, 6), min_size=1, max_size=7)))
            documents.append([(int(s), int(s) + 5) for s in starts])
        works.append((f"w{i}", draw(st.sampled_from(["a", "b", "b+c", "c"])), draw(st.booleans()), documents))
    works = [(w, "unknown" if nameless else a, nameless, d) for w, a, nameless, d in works]
    names = st.sampled_from([f"w{i}" for i in range(8)])
    return works, draw(st.dictionaries(names, st.lists(names, max_size=3))), draw(st.data())


@settings(max_examples=150)
@given(_corpora(), st.integers(0, 5), st.integers(0, 6), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 3))
def test_every_pair_obeys_its_rules_and_none_is_lost_silently(corpus, positives, negatives, share, min_gap):
    works, neighbors, data = corpus
    chunks = _table(works)
    ids = st.sampled_from([*chunks["chunk_id"].to_pylist(), "elsewhere:0"])
    nearest = data.draw(st.dictionaries(ids, st.lists(ids, max_size=3), max_size=4))
    pairs, missing = sample_pairs(
        chunks,
        neighbors,
        nearest,
        num_positives_per_work=positives,
        num_negatives_per_work=negatives,
        random_share=share,
        min_gap=min_gap,
        seed=data.draw(st.integers(0, 3)),
    )
    assert pairs.schema == SCHEMA
    chunk = {row["chunk_id"]: row for row in chunks.to_pylist()}
    rows = pairs.to_pylist()
    assert len({frozenset((r["chunk_a"], r["chunk_b"])) for r in rows}) == len(rows)
    for r in rows:
        a, b = chunk[r["chunk_a"]], chunk[r["chunk_b"]]
        assert (r["work_a"], r["work_b"]) == (a["work_id"], b["work_id"])
        assert (r["author_a"], r["author_b"]) == (a["author"], b["author"])
        assert r["pair_id"] == f"{a['chunk_id']}|{b['chunk_id']}"
        assert r["label"] == (a["work_id"] == b["work_id"])
        same_author = a["author"] == b["author"] and not a["anonymous"]
        if r["label"]:
            assert a["document_id"] == b["document_id"] and r["negative_type"] is None
            assert r["distance"] == max(a["start"], b["start"]) - min(a["end"], b["end"]) >= min_gap
        elif r["negative_type"] == "neighbor":
            either = ((a, b), (b, a))
            assert any(
                y["work_id"] in neighbors.get(x["work_id"], ()) or y["chunk_id"] in nearest.get(x["chunk_id"], ())
                for x, y in either
            )
        elif r["negative_type"] == "same_author":
            assert same_author
        else:
            assert r["negative_type"] == "random" and a["author_group"] != b["author_group"]
        assert r["label"] or r["distance"] is None
    wanted = len(works) * (positives + negatives)
    assert len(rows) + sum(n for reason, n in missing.items() if "outside" not in reason) == wanted


@settings(max_examples=50)
@given(_corpora(), st.integers(1, 30), st.integers(0, 3))
def test_a_work_gets_as_many_positives_as_it_has(corpus, num_positives, min_gap):
    works, neighbors, _ = corpus
    options = {"num_positives_per_work": num_positives, "num_negatives_per_work": 0, "min_gap": min_gap}
    pairs, missing = sample_pairs(_table(works), neighbors, seed=0, **options)
    got = Counter(pairs["work_a"].to_pylist())
    for work, _, _, documents in works:
        possible = sum(b[0] - a[1] >= min_gap for d in documents for i, a in enumerate(d) for b in d[i + 1 :])
        assert got[work] == min(num_positives, possible)
    assert missing.get("positive_too_few_chunks_apart", 0) == num_positives * len(works) - len(pairs)


def test_all_pairs_of_a_work_are_equally_likely():
    works = [("w", "a", False, [[(i * 10, i * 10 + 9) for i in range(5)], [(0, 4), (5, 9)]])]
    options = {"num_positives_per_work": 3, "num_negatives_per_work": 0, "min_gap": 1}
    counts = Counter()
    for seed in range(1100):
        pairs, _ = sample_pairs(_table(works), {}, seed=seed, **options)
        sides = zip(pairs["chunk_a"].to_pylist(), pairs["chunk_b"].to_pylist(), strict=True)
        counts.update(sides)
    # 10 + 1 pairs in two orders: 1100 x 3 / 22 = 150 each, standard deviation about 12.
    assert len(counts) == 22
    assert max(counts.values()) < 210 and min(counts.values()) > 90


def test_the_types_are_mixed_as_asked_where_a_work_has_them_all():
    works = _library()
    pairs, missing = sample_pairs(_table(works), _ring(works), random_share=0.2, seed=1)
    counts = Counter(pairs["negative_type"].to_pylist())
    assert missing == {} and counts[None] == 800 and sum(counts.values()) == 2400
    assert [counts[t] / 1600 for t in ("random", "same_author", "neighbor")] == pytest.approx([0.2, 0.4, 0.4], abs=0.05)


@pytest.mark.parametrize(
    ("num_authors", "has_neighbors", "expected"),
    [
        (40, True, {"random": 0.1, "neighbor": 0.9}),
        (20, False, {"random": 0.1, "same_author": 0.9}),
        (40, False, {"random": 1.0}),
        (1, False, {"same_author": 1.0}),
    ],
)
def test_a_missing_source_leaves_its_share_to_the_others(num_authors, has_neighbors, expected):
    works = _library(num_authors=num_authors)
    pairs, _ = sample_pairs(_table(works), _ring(works) if has_neighbors else {}, seed=1)
    counts = Counter(pairs["negative_type"].drop_null().to_pylist())
    assert {t: n / 1600 for t, n in counts.items()} == pytest.approx(expected, abs=0.04)


def test_anonymous_works_are_never_by_the_same_author():
    works = [(work, "unknown", True, documents) for work, _, _, documents in _library(6)]
    pairs, _ = sample_pairs(_table(works), {}, seed=1)
    assert set(pairs["negative_type"].drop_null().to_pylist()) == {"random"}


def test_who_wrote_together_is_neither_the_same_author_nor_another():
    works = [
        (f"{author}{i}", author, False, documents)
        for author in ("d", "d+c", "x")
        for i, (*_, documents) in enumerate(_library(3))
    ]
    pairs, _ = sample_pairs(_table(works), {}, seed=1)
    found = {(r["negative_type"], *sorted((r["author_a"], r["author_b"]))) for r in pairs.to_pylist() if not r["label"]}
    same = {("same_author", author, author) for author in ("d", "d+c", "x")}
    assert found == same | {("random", "d", "x"), ("random", "d+c", "x")}


def test_positives_have_a_sentence_between_them_even_where_windows_do_not_overlap():
    body = " ".join(f"Sentence number {i} has quite a few words in it, so that it is long enough." for i in range(40))
    found = chunk_text(body, size=2, overlap=0, min_chars=0, english=False).chunks
    works = [(f"w{i}", f"a{i}", False, [[(c.start, c.end) for c in found]]) for i in range(4)]
    pairs, _ = sample_pairs(_table(works), {}, num_positives_per_work=150, num_negatives_per_work=1, seed=1)
    places = [
        sorted(int(r[side].split(":")[1]) for side in ("chunk_a", "chunk_b")) for r in pairs.to_pylist() if r["label"]
    ]
    assert min(b - a for a, b in places) == 2


def test_half_of_the_neighbor_pairs_take_the_nearest_chunk_of_another_work_in_the_split():
    works = _library(num_authors=40)
    chunks = _table(works)
    nearest = {}
    for i, (work, *_) in enumerate(works):
        for c in range(30):  # first its own work, then another split, then the one to take
            nearest[f"{work}.0:{c}"] = [f"{work}.0:0", "elsewhere.0:1", f"w{(i + 7) % 40}.0:{c}", "w0.0:0"]
    options = {"num_positives_per_work": 10, "num_negatives_per_work": 20, "random_share": 0.0, "seed": 1}
    pairs, missing = sample_pairs(chunks, _ring(works), nearest, **options)
    rows = [r for r in pairs.to_pylist() if not r["label"]]
    offsets = [abs(int(r["work_a"][1:]) - int(r["work_b"][1:])) in (7, 33) for r in rows]
    assert np.mean(offsets) == pytest.approx(0.5, abs=0.06)
    assert all(
        r["chunk_a"].split(":")[1] == r["chunk_b"].split(":")[1] for r, o in zip(rows, offsets, strict=True) if o
    )
    assert missing == {"neighbor_chunk_outside_split": 1200}


def test_half_of_the_neighbor_pairs_are_nearest_ones_where_a_tenth_of_the_chunks_was_embedded():
    chunks, nearest = _table(_library(num_chunks=400)), {}
    for i in range(30):  # of the other ten works no chunk was
        nearest |= {f"w{i}.0:{c}": [f"w{(i + 7) % 40}.0:{399 - c}"] for c in range(5, 400, 10)}
    options = {"num_positives_per_work": 0, "num_negatives_per_work": 40, "seed": 5}
    pairs, missing = sample_pairs(chunks, _ring(_library()), nearest, **options)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for row in pairs.to_pylist():
        if row["negative_type"] == "neighbor":
            a, b = row["chunk_a"], row["chunk_b"]
            embedded = any(int(work[1:]) < 30 for work in (row["work_a"], row["work_b"]))
            found[embedded].append(b in nearest.get(a, ()) or a in nearest.get(b, ()))
    assert 0.4 < np.mean(found[True]) < 0.55 and not any(found[False]) and found[False]
    assert pairs.num_rows == 40 * 40 and not missing
    assert pairs.equals(sample_pairs(chunks, _ring(_library()), nearest, **options)[0])


def test_other_works_do_not_change_a_work_s_positives():
    works = _library()

    def positives(some):
        pairs, _ = sample_pairs(_table(some), {}, seed=5)
        return {r["pair_id"] for r in pairs.to_pylist() if r["label"] and r["work_a"] in ("w3", "w8")}

    assert positives(works) == positives(works[8:] + works[3:4]) != set()


def test_the_order_of_documents_in_the_table_does_not_matter_and_the_seed_does():
    works = _library(10)
    first, _ = sample_pairs(_table(works), _ring(works), seed=1)
    assert sample_pairs(_table(works[::-1]), _ring(works), seed=1)[0].equals(first)
    assert not sample_pairs(_table(works), _ring(works), seed=2)[0].equals(first)


def test_a_work_with_fewer_positives_gets_fewer_negatives():
    short = ("short", "y", False, [[(0, 90), (200, 290), (400, 490), (600, 690)]])  # six pairs
    single = ("single", "z", False, [[(0, 90)]])
    pairs, missing = sample_pairs(_table([*_library(5), short, single]), {}, seed=1)
    assert pairs["label"].to_pylist().count(0) == 5 * 40 + 12
    assert missing == {"positive_too_few_chunks_apart": 14 + 20, "negative_in_proportion": 28 + 40}


def test_none_or_one_work_gives_what_there_is():
    pairs, missing = sample_pairs(_table([]), {}, seed=1)
    assert pairs.schema == SCHEMA and len(pairs) == 0 and missing == {}
    pairs, missing = sample_pairs(_table(_library(1)), {"w0": ["w0", "w1"]}, {}, seed=1)
    assert pairs["label"].to_pylist() == [1] * 20
    assert missing == {"negative_no_other_work": 40, "neighbor_work_outside_split": 1}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t.drop_columns("author"), "no column 'author'"),
        (lambda t: pa.concat_tables([t, t.slice(0, 2)]), "2 chunk ids repeat"),
        (lambda t: t.take([0, 2, 1]), "'w0.0' is not in reading order"),
        (lambda t: t.take([0, 40, 1]), "2 documents in 3 pieces"),
        (lambda t: t.set_column(2, "work_id", pa.nulls(len(t), pa.string())), "90 rows without work_id"),
    ],
)
def test_broken_tables_are_refused(broken, message):
    with pytest.raises(UserError, match=message):
        sample_pairs(broken(_table([("w0", "a", False, _library(1)[0][3] * 3)])), {}, seed=1)


@pytest.mark.parametrize("option", [{"random_share": 1.5}, {"num_positives_per_work": -1}, {"min_gap": -1}])
def test_impossible_numbers_are_refused_by_name(option):
    with pytest.raises(UserError, match=f"{next(iter(option))} = "):
        sample_pairs(_table(_library(2)), {}, seed=1, **option)


@pytest.mark.parametrize(
    ("num_works", "share", "kept"), [(41, 0.25, 10), (9, 0.25, 2), (2, 0.25, 1), (9, 1.0, 8), (1, 0.25, 0)]
)
def test_in_a_small_split_the_nearest_works_alone_are_neighbors(num_works, share, kept):
    names = [f"w{i}" for i in range(num_works)]
    ordered = {name: [*names[i + 1 :], *names[:i]] for i, name in enumerate(names)}
    nearest = nearest_share(ordered, share)
    assert nearest == {name: found[:kept] for name, found in ordered.items()}
