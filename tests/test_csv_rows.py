"""Every row of a CSV file is read once, whatever the pieces; one that is no row has a reason."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import readers
from quire.errors import UserError
from quire.storage import Storage

Record = dict | readers.Dropped
FILES = ["a.csv", "b.tsv", "c.csv.gz"]


def read(folder: Path, data: bytes, file: str = "a.csv", piece_bytes: int = 50) -> list[tuple[int, Record]]:
    (folder / file).write_bytes(data)
    storage = Storage(str(folder))
    pieces = readers.cut(storage, [file], piece_bytes)
    assert json.loads(json.dumps(pieces)) == pieces
    return [(place, record) for piece in pieces for _, place, record in readers.records(storage, piece)]


def written(rows: list[list[str]], delimiter: str = ",") -> bytes:
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=delimiter).writerows(rows)
    return sink.getvalue().encode()


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(['"', "\n", "\r\n", ',"', "a,b", "\ufeff"])


@settings(max_examples=80)
@given(
    st.lists(st.tuples(texts, texts), max_size=12), st.integers(1, 60), st.sampled_from(["a.csv", "b.tsv", "c.csv.gz"])
)
def test_pieces_of_any_size_give_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], size: int, file: str
) -> None:
    data = written([["id", "te xt"], *map(list, rows)], "\t" if file == "b.tsv" else ",")
    packed = gzip.compress(data) if file.endswith(".gz") else data
    found = read(tmp_path_factory.mktemp("csv"), packed, file, size)
    assert found == [(i, {"id": a or None, "te xt": b or None}) for i, (a, b) in enumerate(rows)]


def test_what_is_no_row_is_dropped_for_a_reason_and_the_next_ones_are_read(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbfid,text",
        b'0,"two\nlines"',
        b"1,one,more",
        b"",
        b'2,"quoted" wrongly',
        b"3,caf\xe9",
        b"4",
        b'5,a 5" disk',
        b'6,"never closed',
        b"7,swallowed",
    ]
    found = read(tmp_path, b"\n".join(lines))
    assert [(p, r.reason if isinstance(r, readers.Dropped) else r["text"]) for p, r in found] == [
        (0, "two\nlines"),
        (1, "wrong_columns"),
        (2, "not_csv"),
        (3, "bad_encoding"),
        (4, "wrong_columns"),
        (5, 'a 5" disk'),
        (6, "not_csv"),
    ]
    assert "unexpected end of data, in bytes" in found[-1][1].detail


def test_of_a_file_that_is_cut_off_the_rows_before_are_read(tmp_path: Path) -> None:
    rows = [[str(i), f"text {i * i}"] for i in range(3_000)]
    packed = gzip.compress(written([["id", "text"], *rows]))
    found = read(tmp_path, packed[: len(packed) * 2 // 3], "a.csv.gz", 5_000)
    records = [record for _, record in found[:-1]]
    assert len(records) > 1_000 and [[r["id"], r["text"]] for r in records] == rows[: len(records)]
    assert found[-1][1].reason == "damaged"
    with pytest.raises(UserError, match="a.csv.gz: cut off or not gzip"):
        readers.cut(Storage(str(tmp_path)), ["a.csv.gz"], 5_000, strict=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header in the first line"),
        (b"a,b,a\n1,2,3\n", "the header names 'a' twice"),
        (b"caf\xe9,b\n", "a header that is not UTF-8"),
        (b'"a,b\n1,2\n', "unexpected end of data"),
    ],
)
def test_a_file_without_a_header_says_so(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match=rf"a.csv: not CSV \({message}|{message}"):
        readers.cut(Storage(str(tmp_path)), ["a.csv"], 50, strict=True)


def test_a_field_may_be_a_whole_paper(tmp_path: Path) -> None:
    text = "word, " * 100_000
    assert read(tmp_path, written([["text"], [text], ["b"]]))[0] == (0, {"text": text})


def test_columns_show_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(written([["id", "text"], ["1", "x"]]))
    storage = Storage(str(tmp_path))
    assert readers.table_columns(storage, "a.csv") == ["id", "text"]
    piece = readers.cut(storage, ["a.csv"], 50)[0]
    assert [record for _, _, record in readers.records(storage, piece, ["text", "nowhere"])] == [{"text": "x"}]
    readers.require_columns(storage, ["a.csv"], {"source.text": "text", "source.key": None})
    with pytest.raises(UserError, match="source.key: no column 'key' in any file of .*; a.csv has id, text"):
        readers.require_columns(storage, ["a.csv"], {"source.text": "text", "source.key": "key"})
