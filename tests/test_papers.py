"""A record of any source becomes one row with its categories, or is dropped for a reason that fits."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import papers as pipeline
from quire import config, papers, readers
from quire.errors import UserError
from quire.storage import Storage


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
        size, _ = readers.readable_size(storage, file)
        found = [pair for at in range(0, size, step) for pair in readers.json_lines(storage, file, at, at + step)]
        assert [line.rstrip(b"\n") for _, line in found] == wanted
        assert all(data[place : place + len(line)] == line for place, line in found)


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"id": "x" * 500}).encode() * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="a.jsonl.gz: cut off or not gzip"):
        readers.cut(Storage(str(tmp_path)), ["a.jsonl.gz"], 1000, strict=True)


def read(settings: pipeline.PapersConfig) -> list[papers.Row]:
    """All shards in this process, as the workers would make them."""
    hub = isinstance(settings.source, pipeline.Hub)
    items, _ = pipeline._hub_items(settings) if hub else pipeline._file_items(settings)
    process = pipeline._reader(settings)
    return [row for item in items for row in process(item).table.to_pylist()]


def test_parquet_is_read_by_row_groups_and_keeps_its_places(tmp_path: Path) -> None:
    table = pa.table({"body": [f"text {i}" for i in range(10)], "topic": ["a b", "c"] * 5})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    source = {"kind": "table", "folder": str(tmp_path), "text": "body", "category": "topic"}
    settings = pipeline.PapersConfig(name="x", source=source)
    assert len(pipeline._file_items(settings)[0]) == 3
    rows = read(settings)
    assert [row["document_id"] for row in rows] == [f"t.parquet:{i}" for i in range(10)]
    assert [row["category"] for row in rows[:2]] == ["a b", "c"]


def test_a_labelled_set_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.ClassLabel(names=["cs.AI\n", "math.ST\n"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    folder = tmp_path / "set"
    folder.mkdir()
    for split, labels in (("train", [1, 0, -1]), ("test", [1])):
        data = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(data, features=features).to_parquet(folder / f"{split}.parquet")
    given = ["name=x", "source.kind=hub", f"source.dataset={folder}", "source.shard_rows=2"]
    rows = read(config.load(pipeline.CONFIG, None, given))
    assert [(r["document_id"], r["split"], r["category"]) for r in rows] == [
        ("train_0", "train", "math.ST"),
        ("train_1", "train", "cs.AI"),
        ("test_0", "test", "math.ST"),
    ]
    with pytest.raises(UserError, match="no column 'klass' in split 'train' .* it has text, label"):
        read(config.load(pipeline.CONFIG, None, [*given, "source.category=klass"]))
