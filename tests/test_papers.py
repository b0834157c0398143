"""A record of any source becomes one row with its categories, or is dropped for a reason that fits."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import arxiv, datasets, labelled
from quire import config, papers, readers, streams
from quire.errors import UserError
from quire.storage import Storage

SHARED = Path(__file__).parents[2] / "shared" / "data" / "arxiv"


def table_row(**record: object) -> papers.Row | readers.Dropped:
    named = {"text": "text", "category": "label", "title": None, "key": "id" if "id" in record else None}
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
    ],
)
def test_what_cannot_be_used_is_dropped_for_a_reason(record: dict, reason: str) -> None:
    assert table_row(**record)[0] == reason


def test_id_zero_is_an_id_and_a_split_keeps_its_meaning() -> None:
    row = table_row(id=0, split="dev")
    assert (row["document_id"], row["split"]) == ("0", "validation")


@pytest.mark.parametrize("categories", ["cs.LG stat.ML", ["cs.LG", "stat.ML"]])
def test_metadata_as_published(categories: object) -> None:
    versions = [{"version": "v1", "created": "Mon, 2 Apr 2007"}, {"version": "v2", "created": "later"}]
    record = {"id": "0704.0001", "title": "On\n  this", "abstract": " and\nthat ", "versions": versions}
    row = papers.arxiv_row({**record, "categories": categories, "update_date": "2008-11-26"}, "a.json")
    assert (row["text"], row["category"], row["created"]) == ("On this\n\nand that", "cs.LG", "Mon, 2 Apr 2007")
    assert row["categories"] == ["cs.LG", "stat.ML"] and row["split"] is None


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


def read(step: ModuleType, given: list[str]) -> list[papers.Row]:
    """All shards in this process, as the workers would make them."""
    made: list[papers.Row] = []

    def make(settings: object, items: list, content: str, open_source: Callable) -> None:
        process = labelled.shards(settings, open_source)
        made.extend(row for item in items for row in process(item).table.to_pylist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "make", make)
        step.run(config.load(step.CONFIG, None, ["name=x", *given]))
    return made


def test_tables_keep_their_places_whatever_their_format(tmp_path: Path) -> None:
    table = pa.table({"body": [f'text "{i}",\nmore' for i in range(10)], "topic": ["a b", "c"] * 5})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    with (tmp_path / "u.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([table.column_names, *(row.values() for row in table.to_pylist())])
    given = ["source.kind=table", f"source.folder={tmp_path}", "source.text=body", "source.category=topic"]
    rows = read(datasets, [*given, "source.shard_bytes=100"])
    assert [row["document_id"] for row in rows] == [f"{name}:{i}" for name in ("t.parquet", "u.csv") for i in range(10)]
    assert [row["text"] for row in rows] == table["body"].to_pylist() * 2
    assert [row["category"] for row in rows] == table["topic"].to_pylist() * 2
    with pytest.raises(UserError, match="source.category: no column 'klass' in any file of .*; u.csv has body, topic"):
        read(datasets, [*given[:3], "source.category=klass"])


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


def test_a_labelled_set_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = library.ClassLabel(names=["cs.AI\n", "math.ST\n"])
    features = library.Features({"text": library.Value("string"), "label": names})
    folder = tmp_path / "set"
    folder.mkdir()
    for split, labels in (("train", [1, 0, -1]), ("test", [1])):
        data = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        library.Dataset.from_dict(data, features=features).to_parquet(folder / f"{split}.parquet")
    given = ["source.kind=hub", f"source.dataset={folder}", "source.shard_rows=2"]
    rows = read(datasets, given)
    assert [(r["document_id"], r["split"], r["category"]) for r in rows] == [
        ("train_0", "train", "math.ST"),
        ("train_1", "train", "cs.AI"),
        ("test_0", "test", "math.ST"),
    ]
    with pytest.raises(UserError, match="no column 'klass' in split 'train' .* it has text, label"):
        read(datasets, [*given, "source.category=klass"])
