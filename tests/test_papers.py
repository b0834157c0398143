"""A record of any source becomes one row with its categories, or is dropped for a reason that fits."""

import gzip
import json
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling import read

from pipelines import arxiv, chunk
from quire import config, papers, readers, streams
from quire.errors import UserError
from quire.storage import Storage

SHARED = Path(__file__).parents[2] / "shared" / "data" / "arxiv"
# Lee writes with Rand, as does somebody who signs "A. Lee"; two papers name nobody; the last is the first again.
PEOPLE = ["Ann Lee", "Ann Lee and Bo Rand", "A. Lee", "Cy Dole", "Di Esk", None, "", "Ed Foy", "Gil Ham", "Ann Lee"]


def table_row(**record: object) -> papers.Row | readers.Dropped:
    named = {"text": "text", "category": "label", "title": None, "author": "by" if "by" in record else None}
    named |= {"key": "id" if "id" in record else None}
    return papers.table_row({"text": "words", "label": "a", **record}, "f.jsonl", 7, **named)


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("Computer Vision\n", ["Computer Vision"]),
        (3, ["3"]),
        (0, ["0"]),
        (["cs.AI", " cs.LG ", "cs.AI"], ["cs.AI", "cs.LG"]),
    ],
)
def test_a_category_of_a_table_is_a_name_a_number_or_a_list(label: object, names: list[str]) -> None:
    row = table_row(label=label)
    assert (row["category"], row["categories"], row["document_id"]) == (names[0], names, "f.jsonl:7")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"label": None}, "no_category"),
        ({"label": " "}, "no_category"),
        ({"label": {"a": 1}}, "no_category"),
        ({"text": " \n"}, "no_text"),
        ({"text": 5}, "no_text"),
        ({"id": None}, "no_id"),
        ({"split": "heldout"}, "unknown_split"),
        ({"split": ["train"]}, "unknown_split"),
    ],
)
def test_what_cannot_be_used_is_dropped_for_a_reason(record: dict, reason: str) -> None:
    assert table_row(**record)[0] == reason


def test_id_zero_is_an_id_and_a_split_keeps_its_meaning() -> None:
    row = table_row(id=0, split="dev")
    assert (row["document_id"], row["split"]) == ("0", "validation")


@pytest.mark.parametrize("categories", ["cs.LG stat.ML", ["cs.LG", "stat.ML"], ["cs.LG stat.ML"]])
def test_metadata_as_published(categories: object) -> None:
    versions = [{"version": "v1", "created": "Mon, 2 Apr 2007"}, {"version": "v2", "created": "later"}]
    record = {"id": "0704.0001", "title": "On\n  this", "abstract": " and\nthat ", "versions": versions}
    row = papers.arxiv_row({**record, "categories": categories, "update_date": "2008-11-26"}, "a.json")
    assert (row["text"], row["category"], row["created"]) == ("On this\n\nand that", "cs.LG", "Mon, 2 Apr 2007")
    assert row["categories"] == ["cs.LG", "stat.ML"] and row["split"] is None


@pytest.mark.parametrize("versions", [["v1", "v2"], [], "v1", [{"version": "v1"}], None, {"created": "once"}])
def test_a_snapshot_whose_versions_have_no_date_has_that_of_its_update(versions: object) -> None:
    record = {"id": "0704.0001", "title": "On", "abstract": "that", "categories": "cs.LG", "versions": versions}
    assert papers.arxiv_row({**record, "update_date": "2008-11-26"}, "a.json")["created"] == "2008-11-26"


@pytest.mark.parametrize(
    ("record", "people"),
    [
        (
            {"authors_parsed": [["Balázs", "C.", ""], ["van der Berg", "J.", "Jr.", "MIT"]]},
            ["C. Balázs", "J. van der Berg Jr."],
        ),
        ({"authors_parsed": [["CDF Team", "", ""], ["Aaltonen", "T.", ""]]}, ["CDF Team", "T. Aaltonen"]),
        ({"authors": "Y. H. Pong (1) and C. K. Law (2) ((1) Department of A, B, (2) C)"}, ["Y. H. Pong", "C. K. Law"]),
        (
            {"authors": "BES Collaboration: M. Ablikim,\n  J. Z. Bai, and X. Li, et al."},
            ["BES Collaboration", "M. Ablikim", "J. Z. Bai", "X. Li"],
        ),
        ({"authors": "Ann Lee, Jr., Bo Rand"}, ["Ann Lee, Jr.", "Bo Rand"]),
        ({"authors": ["Ann Lee", "Bo  Rand"]}, ["Ann Lee", "Bo Rand"]),
        ({"authors": None}, []),
        ({}, []),
        ({"authors_parsed": [["Collaboration"], [], ["Lee", "Ann"]]}, ["Collaboration", "Ann Lee"]),
        ({"authors_parsed": "[['Lee', 'Ann', '']]", "authors": "Ann Lee"}, ["Ann Lee"]),  # as a CSV holds it
        ({"authors_parsed": [None], "authors": 5}, []),
    ],
)
def test_the_people_of_a_paper(record: dict, people: list[str]) -> None:
    assert papers.arxiv_people(record) == people


@pytest.mark.parametrize(
    ("by", "authors"),
    [
        ("Lee, Ann; Bo Rand", ["ann_lee", "bo_rand"]),
        (["Ann Lee", "Bo Rand"], ["ann_lee", "bo_rand"]),
        (17, ["17"]),
        ("Anonymous", []),
        (None, []),
    ],
)
def test_an_author_of_a_table_is_a_name_a_number_or_a_list_and_anonymous_is_nobody(by: object, authors: list) -> None:
    row = table_row(by=by)
    assert (list(row["authors"]), row["anonymous"]) == (authors, not authors)


def papers_folder(folder: Path) -> Path:
    """A snapshot of ten papers with whole texts."""
    folder.mkdir()
    topics = [*tiny.TOPICS, *tiny.TOPICS][:9]
    texts = [" ".join(tiny.book(topic, f"p{i}", 40, seed=i).split()) for i, topic in enumerate(topics)]
    rows = [
        {
            "id": f"0704.{i:04d}",
            "title": f"On {i}",
            "abstract": "Short.",
            "text": text,
            "authors": by,
            "categories": "a.B",
        }
        for i, (text, by) in enumerate(zip([*texts, texts[0]], PEOPLE, strict=True))
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def check_chunks_of_papers(folder: Path, root: Path) -> None:
    """By the steps themselves: papers of one author, or of who may be one, or of one text, share a split."""
    where = f"runtime.root={root}"
    given = ["name=p", "source.kind=full_text", f"source.folder={folder}", where]
    made = arxiv.run(config.load(arxiv.CONFIG, None, given))
    assert made.manifest["rows_out"] == 10
    words = ["name=c", "documents=p", "english=false", "size=8", "split.method=balanced", where]
    rows = chunk.run(config.load(chunk.CONFIG, None, words)).read().to_pylist()
    texts = {row["document_id"]: row["text"] for row in made.read().to_pylist()}
    assert all(texts[row["document_id"]][row["start"] : row["end"]] == row["text"] for row in rows)
    found = {int(row["document_id"][5:]): row for row in rows}
    assert sorted(found) == list(range(10))
    assert {found[i]["author_group"] for i in (0, 1, 2, 9)} == {"author:a_lee"}
    assert len({found[i]["split"] for i in (0, 1, 2, 9)}) == 1
    assert [found[i]["anonymous"] for i in range(10)] == [not name for name in PEOPLE]
    assert found[5]["author_group"] != found[6]["author_group"]  # nobody is no author
    assert found[9]["work_id"] == found[0]["document_id"]


def test_papers_become_chunks_with_their_authors_in_one_split(tmp_path: Path, steps_here: None) -> None:
    check_chunks_of_papers(papers_folder(tmp_path / "papers"), tmp_path / "root")


@pytest.mark.ray
def test_papers_become_chunks_through_the_steps_on_ray(tmp_path: Path, local_ray: None) -> None:
    check_chunks_of_papers(papers_folder(tmp_path / "papers"), tmp_path / "root")


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12)), st.integers(1, 40))
def test_ranges_of_bytes_give_each_line_once(tmp_path_factory: pytest.TempPathFactory, lines: list, step: int) -> None:
    folder = tmp_path_factory.mktemp("lines")
    data = "\n".join(lines).encode()
    (folder / "a.jsonl").write_bytes(data)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data))
    wanted = [line for line in data.split(b"\n") if line.strip()]
    for file in ("a.jsonl", "a.jsonl.gz"):
        storage = Storage(str(folder))
        size, _ = streams.readable_size(storage, file)
        found = [pair for at in range(0, size, step) for pair in readers.json_lines(storage, file, at, at + step)]
        assert [line.rstrip(b"\n") for _, line in found] == wanted
        assert all(data[place : place + len(line)] == line for place, line in found)


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"id": "x" * 500}).encode() * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="a.jsonl.gz: cut off or not gzip"):
        readers.cut(Storage(str(tmp_path)), ["a.jsonl.gz"], 1000, strict=True)


def test_a_paper_is_its_abstract_or_its_full_text(tmp_path: Path) -> None:
    record = {"id": "1", "title": "On this", "abstract": "and that", "categories": "cs.LG", "text": "Long ago\n ..."}
    lines = [record, {**record, "id": "2", "text": None}, {**record, "id": "3", "abstract": ""}]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, lines)))
    given = [f"source.folder={tmp_path}"]
    texts = {row["document_id"]: row["text"] for row in read(arxiv, ["source.kind=metadata", *given])}
    assert texts == {"1": "On this\n\nand that", "2": "On this\n\nand that"}
    rows = read(arxiv, ["source.kind=full_text", *given])
    assert {row["document_id"]: row["text"] for row in rows} == {"1": "Long ago\n ...", "3": "Long ago\n ..."}
    assert rows[0]["title"] == "On this" and rows[0]["categories"] == ["cs.LG"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared papers")
def test_every_shared_paper_has_its_categories() -> None:
    given = [f"source.folder={SHARED}"]
    whole = read(arxiv, ["source.kind=full_text", 'source.files=["arxiv_fulltext_sample.jsonl.gz"]', *given])
    assert len(whole) == 32 and sum(len(row["text"]) for row in whole) > 10**6
    short = read(arxiv, ["source.kind=metadata", 'source.files=["arxiv_fulltext_sample.jsonl.gz"]', *given])
    assert [row["categories"] for row in short] == [row["categories"] for row in whole]
