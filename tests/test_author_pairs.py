"""Author pairs obey their rules on every table, are frozen, and stand still when works come or go."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.pairs import CONFIG
from quire import config
from quire.author_pairs import sample_author_pairs
from quire.errors import UserError
from quire.pairs import SCHEMA


def table(works: list[tuple[str, str, bool]], num_chunks: int = 4) -> pa.Table:
    """works: (work, author, anonymous); "a+b" wrote with "a", so both are of one group."""
    rows = [
        {
            "chunk_id": f"{work}:{i}",
            "document_id": work,
            "work_id": work,
            "author": "unknown" if anonymous else author,
            "author_group": work if anonymous else author[0],
            "anonymous": anonymous,
            "start": 1000 * i,
            "end": 1000 * i + 900,
        }
        for work, author, anonymous in works
        for i in range(num_chunks)
    ]
    columns = ("chunk_id", "document_id", "work_id", "author", "author_group")
    fields = [(name, pa.string()) for name in columns] + [("anonymous", pa.bool_())]
    return pa.Table.from_pylist(rows, pa.schema([*fields, ("start", pa.int64()), ("end", pa.int64())]))


def library(num_authors: int = 8, works: int = 3) -> list[tuple[str, str, bool]]:
    return [(f"{author}{i}", author, False) for author in "abcdefgh"[:num_authors] for i in range(works)]


@st.composite
def corpora(draw):
    count = draw(st.integers(0, 7))
    authors = [draw(st.sampled_from(["a", "a+b", "b", "c"])) for _ in range(count)]
    works = [(f"w{i}", author, draw(st.booleans())) for i, author in enumerate(authors)]
    names = st.sampled_from([f"w{i}" for i in range(8)])
    near = draw(st.dictionaries(names, st.lists(names, max_size=3)))
    ids = st.sampled_from([f"w{i}:{j}" for i in range(8) for j in range(2)])
    return works, near, draw(st.dictionaries(ids, st.lists(ids, max_size=2), max_size=4))


@settings(max_examples=60)
@given(corpora(), st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_pair_obeys_its_rules_and_none_is_lost_silently(corpus, positives, negatives, share) -> None:
    works, near, nearest = corpus
    chunks = table(works, 2)
    sizes = {"num_positives_per_work": positives, "num_negatives_per_work": negatives, "random_share": share}
    found, missing = sample_author_pairs(chunks, near, nearest, **sizes, seed=3)
    assert found.schema == SCHEMA
    chunk, rows = {row["chunk_id"]: row for row in chunks.to_pylist()}, found.to_pylist()
    assert len({frozenset((r["chunk_a"], r["chunk_b"])) for r in rows}) == len(rows)
    for r in rows:
        a, b = chunk[r["chunk_a"]], chunk[r["chunk_b"]]
        assert a["work_id"] != b["work_id"] and r["distance"] is None
        if r["label"]:
            assert a["author"] == b["author"] and not a["anonymous"] and r["negative_type"] is None
            continue
        assert a["author_group"] != b["author_group"] and r["negative_type"] in ("random", "neighbor")
        if r["negative_type"] == "neighbor":
            sides = ((a, b), (b, a))
            assert any(
                y["work_id"] in near.get(x["work_id"], ()) or y["chunk_id"] in nearest.get(x["chunk_id"], ())
                for x, y in sides
            )
    wanted = len(works) * (positives + negatives)
    assert len(rows) + sum(n for reason, n in missing.items() if "outside" not in reason) == wanted


def test_a_full_library_gets_what_was_asked_for_in_the_mixture_that_was_asked_for() -> None:
    works = library()
    near = {name: [other for other, author, _ in works if author != name[0]][:6] for name, *_ in works}
    found, missing = sample_author_pairs(
        table(works, 12), near, num_positives_per_work=10, num_negatives_per_work=20, random_share=0.25, seed=0
    )
    counts = Counter(found["negative_type"].to_pylist())
    assert missing == {} and counts[None] == 240
    assert counts["random"] / 480 == pytest.approx(0.25, abs=0.07) and counts["neighbor"] == 480 - counts["random"]


def test_an_author_of_one_work_and_nobody_known_stand_on_the_other_side_alone() -> None:
    works = [*library(3), ("lone", "z", False), ("nobody1", "?", True), ("nobody2", "?", True)]
    found, missing = sample_author_pairs(table(works), {}, num_positives_per_work=6, num_negatives_per_work=6, seed=1)
    rows = found.to_pylist()
    alone = {"lone", "nobody1", "nobody2"}
    assert not any(alone & {r["work_a"], r["work_b"]} for r in rows if r["label"])
    assert all(
        any(alone & {r["work_a"], r["work_b"]} for r in rows if name in (r["work_a"], r["work_b"])) for name in alone
    )
    assert missing["positive_no_other_work_of_the_author"] == 18 and missing["negative_in_proportion"] == 18


def test_positives_stay_when_other_authors_come_and_the_same_seed_gives_the_same_bytes() -> None:
    sizes = {"num_positives_per_work": 5, "num_negatives_per_work": 5}
    few, again = (sample_author_pairs(table(library(4)), {}, **sizes, seed=2)[0] for _ in range(2))
    more, _ = sample_author_pairs(table(library(6)), {}, **sizes, seed=2)
    assert few.equals(again)
    kept = {r["pair_id"] for r in few.to_pylist() if r["label"]}
    assert kept == {r["pair_id"] for r in more.to_pylist() if r["label"] and r["work_a"][0] in "abcd"}
    other, _ = sample_author_pairs(table(library(4)), {}, **sizes, seed=3)
    assert not few.equals(other)


def test_mined_negatives_do_not_go_with_authors() -> None:
    values = {"name": "p", "chunks": "c", "neighbors": "n", "positives": "author", "negatives": "mined"}
    with pytest.raises(UserError, match="negatives = 'mined': mined to tell books apart"):
        config.build(CONFIG, values, "here")
