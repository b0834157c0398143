"""Every record of every format is read once, whatever the pieces; what cannot be read has a reason."""

import gzip
import json
from pathlib import Path

import memory
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quire import readers
from quire.errors import UserError
from quire.readers import Dropped, Named
from quire.storage import Storage

ROWS = [{"id": i, "text": f"Text {i}, naïve 日.", "url": None if i % 3 else f"u{i}"} for i in range(200)]


def zstd(data: bytes) -> bytes:
    """Two frames, as `cat a.zst b.zst` leaves them."""
    half = len(data) // 2
    return b"".join(pa.compress(part, "zstd", asbytes=True) for part in (data[:half], data[half:]))


def write(folder: Path, file: str) -> None:
    lines, table = "".join(json.dumps(row) + "\n" for row in ROWS).encode(), pa.Table.from_pylist(ROWS)
    if file.endswith(".parquet"):
        pq.write_table(table, folder / file, row_group_size=70)
    elif file.endswith((".arrow", ".feather")):
        new = pa.ipc.new_stream if file.endswith(".arrow") else pa.ipc.new_file
        with new(folder / file, table.schema) as writer:
            writer.write_table(table, max_chunksize=30)
    else:
        data = {"gz": gzip.compress, "zst": zstd}.get(file.split(".")[-1], bytes)(lines)
        (folder / file).write_bytes(data)


def read(folder: Path, files: list[str], piece_bytes: int, columns: list[str] | None = None) -> list[readers.Found]:
    storage = Storage(str(folder))
    pieces = readers.cut(storage, files, piece_bytes)
    assert json.loads(json.dumps(pieces)) == pieces
    return [found for piece in pieces for found in readers.records(storage, piece, columns)]


@pytest.mark.parametrize("piece_bytes", [1, 700, 10**9])
@pytest.mark.parametrize(
    "file", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow", "a.feather"]
)
def test_pieces_of_any_size_give_every_record_once(tmp_path: Path, file: str, piece_bytes: int) -> None:
    write(tmp_path, file)
    found = read(tmp_path, [file], piece_bytes)
    assert [record for _, _, record in found] == ROWS
    places = [place for _, place, _ in found]
    assert places == sorted(set(places)) and {name for name, _, _ in found} == {file}
    if not file.startswith("a.json"):
        assert places == list(range(200))


def test_small_row_groups_are_one_piece_and_large_ones_several(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=20)
    size = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).total_byte_size
    storage = Storage(str(tmp_path))
    together = readers.cut(storage, ["a.parquet"], int(3.5 * size))
    assert [len(piece["rows"]) for piece in together] == [3, 3, 3, 1]
    assert together[1]["rows"] == [[3, 0, 20], [4, 0, 20], [5, 0, 20]]
    apart = readers.cut(storage, ["a.parquet"], size // 2)
    assert len(apart) >= 20 and all(len(piece["rows"]) == 1 for piece in apart)


def test_what_datasets_puts_beside_the_records_is_no_record(tmp_path: Path) -> None:
    write(tmp_path, "data-00000-of-00001.arrow")
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text('{"splits": 1}')
    storage = Storage(str(tmp_path))
    assert readers.list_files(storage, (), readers.FORMATS) == ["data-00000-of-00001.arrow"]
    assert readers.list_files(storage, ("state.json",), readers.FORMATS) == ["state.json"]


def test_a_row_group_is_cut_to_ranges_that_are_read_in_the_memory_of_a_range(tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"{i} " * 100} for i in range(20_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10**6, compression="zstd")
    storage = Storage(str(tmp_path))
    whole, pieces = (readers.cut(storage, ["a.parquet"], size) for size in (10**9, 300_000))
    assert len(whole) == 1 and len(pieces) == 16
    found = [list(readers.records(storage, piece)) for piece in pieces]
    assert [one for part in found for one in part] == [("a.parquet", i, row) for i, row in enumerate(rows)]
    assert max(map(len, found)) < 1_300

    def read() -> None:
        for _ in readers.records(storage, pieces[-1]):
            pass

    assert memory.peak(read) < 4 * 2**20 < pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).total_byte_size


@pytest.mark.parametrize("file", ["a.jsonl.gz", "a.csv.gz"])
def test_a_range_of_a_compressed_file_is_never_larger_than_a_worker_holds(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["id,text", *(f"{i},{i:09d}" for i in range(20_000))]
    lines = rows if "csv" in file else [json.dumps({"id": i, "text": f"{i:09d}"}) for i in range(20_000)]
    (tmp_path / file).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    storage = Storage(str(tmp_path))
    assert len(readers.cut(storage, [file], 1_000)) == 16
    monkeypatch.setattr(readers, "_MOST_BYTES", 10_000)
    pieces = readers.cut(storage, [file], 1_000)
    assert len(pieces) > 25
    found = [record for piece in pieces for _, _, record in readers.records(storage, piece)]
    assert [record["text"] for record in found] == [f"{i:09d}" for i in range(20_000)]


@pytest.mark.parametrize("file", ["a.parquet", "a.arrow"])
def test_of_a_table_only_the_columns_that_are_asked_for_are_read(tmp_path: Path, file: str) -> None:
    write(tmp_path, file)
    assert read(tmp_path, [file], 700, ["text", "nowhere"])[5][2] == {"text": ROWS[5]["text"]}
    assert readers.table_columns(Storage(str(tmp_path)), file) == ["id", "text", "url"]


def test_text_files_are_documents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, data in {"a.txt": "Ein Öl".encode(), "b/c.txt": b"\xff\xfe", "d.txt": b"", "e.txt": b"\0\1"}.items():
        (tmp_path / name).write_bytes(data)
    storage = Storage(str(tmp_path))
    files = readers.list_files(storage, (), readers.FORMATS)
    assert len(readers.cut(storage, files, 8)) == 2
    found = read(tmp_path, files, 8)
    assert found[0] == ("a.txt", None, {"text": "Ein Öl", "name": "a.txt"})
    assert [record.reason for _, _, record in found[1:]] == ["empty_text", "empty_text", "bad_encoding"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not_json"),
        (b"[1]", "not_json"),
        (b'"words"', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"text": "\xff\xfe"}', "bad_encoding"),
    ],
)
def test_a_line_that_is_no_object_has_a_reason(line: bytes, reason: str) -> None:
    assert readers.parse(line).reason == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no_text"),
        ({"text": None}, "no_text"),
        ({"text": " \n"}, "empty_text"),
        ({"text": 5}, "not_a_string"),
        ({"text": b"raw"}, "not_a_string"),
        ({"text": ["a"]}, "not_a_string"),
        ({"text": "half \ud800 a pair"}, "bad_encoding"),
        ({"id": None}, "no_id"),
        ({"id": ""}, "no_id"),
        ({"id": [1]}, "no_id"),
        ({"id": "\udc00"}, "bad_encoding"),
    ],
)
def test_a_record_that_is_no_document_has_a_reason(record: dict, reason: str) -> None:
    record = record if "text" in record or not record else {"text": "words", **record}
    key = "id" if "id" in record else None
    assert readers.document(record, "f.jsonl", 7, text="text", key=key).reason == reason


def test_the_place_is_the_id_where_no_column_is_and_the_text_stays_as_it_is() -> None:
    record = {"text": " Wörds\x00\r\n", "id": 0}
    assert readers.document(record, "f.jsonl", 7, text="text") == Named("f.jsonl:7", " Wörds\x00\r\n")
    assert readers.document(record, "f.txt", None, text="text").document_id == "f.txt"
    assert readers.document(record, "f.jsonl", 7, text="text", key="id").document_id == "0"


@pytest.mark.parametrize("file", ["a.jsonl.gz", "a.jsonl.zst", "a.arrow"])
@pytest.mark.parametrize("piece_bytes", [700, 10**9])
def test_what_is_left_of_a_damaged_file_is_read_and_the_damage_counted(
    tmp_path: Path, file: str, piece_bytes: int
) -> None:
    write(tmp_path, file)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) * 3 // 4])
    records = [record for _, _, record in read(tmp_path, [file], piece_bytes)]
    good = [record for record in records if isinstance(record, dict)]
    assert 30 <= len(good) < 200 and good == ROWS[: len(good)]
    assert records[-1].reason == "damaged" and "cut off" in records[-1].detail
    assert all(record.reason == "not_json" for record in records[len(good) : -1]) and len(records) <= len(good) + 2
    with pytest.raises(UserError, match=f"{file}: cut off .* fetch it again"):
        readers.cut(Storage(str(tmp_path)), [file], 700, strict=True)


@pytest.mark.parametrize("file", ["a.parquet", "a.feather"])
def test_a_table_cut_in_half_is_one_damage(tmp_path: Path, file: str) -> None:
    write(tmp_path, file)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-200])
    found = read(tmp_path, [file], 700)
    assert [(name, type(record), record[0]) for name, _, record in found] == [(file, Dropped, "damaged")]
    assert readers.table_columns(Storage(str(tmp_path)), file) is None


@pytest.mark.parametrize("piece_bytes", [1, 700, 10**9])
def test_a_damaged_row_group_costs_no_other(tmp_path: Path, piece_bytes: int) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=70, compression="zstd")
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(1)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    data[at : at + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(data)
    found = read(tmp_path, ["a.parquet"], piece_bytes)
    assert [record for _, _, record in found if isinstance(record, dict)] == ROWS[:70] + ROWS[140:]
    lost = [(place, record.reason) for _, place, record in found if isinstance(record, Dropped)]
    assert lost == [(place, "damaged") for place in range(70, 140)]


@pytest.mark.parametrize("file", ["a.parquet", "a.arrow"])
def test_a_string_of_a_table_that_is_no_utf_8_costs_its_row_alone(tmp_path: Path, file: str) -> None:
    raw = pa.array([b"good", b"b\xffd", b"good too"])
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    if file == "a.parquet":
        pq.write_table(table, tmp_path / file)
    else:
        with pa.ipc.new_stream(tmp_path / file, table.schema) as writer:
            writer.write_table(table)
    records = [record for _, _, record in read(tmp_path, [file], 700)]
    assert [records[0], records[2]] == [{"text": "good"}, {"text": "good too"}] and records[1].reason == "bad_encoding"


@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_the_places_of_lines_have_numbers(tmp_path: Path, file: str) -> None:
    lines = b"\n\n" + b'{"text": "a\xc3\xb6"}\n\r\n' * 50
    (tmp_path / file).write_bytes({"gz": gzip.compress, "zst": zstd}.get(file.split(".")[-1], bytes)(lines))
    places = [place for _, place, _ in read(tmp_path, [file], 100)]
    numbers = readers.line_numbers(Storage(str(tmp_path)), file, places[::-1])
    assert numbers == list(range(3, 103, 2))[::-1]
    assert [lines.count(b"\n", 0, place) + 1 for place in places] == numbers[::-1]


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    for file in ("a.parquet", "a.arrow", "a.jsonl.zst", "a.jsonl.gz"):
        with pytest.raises(FileNotFoundError):
            readers.cut(Storage(str(tmp_path)), [file], 700)


def test_files_are_chosen_by_format_or_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.tsv", "d.html"):
        (tmp_path / name).write_bytes(b"")
    storage = Storage(str(tmp_path))
    assert readers.list_files(storage, (), readers.FORMATS) == ["a.parquet", "b.jsonl", "c.tsv"]
    assert readers.list_files(storage, ("b.jsonl",), readers.FORMATS) == ["b.jsonl"]
    with pytest.raises(UserError, match=r"source.folder = '.*': no file 'd.jsonl'"):
        readers.list_files(storage, ("d.jsonl",), readers.FORMATS)
    with pytest.raises(UserError, match=r"no .arrow or .txt file below it"):
        readers.list_files(storage, (), (".arrow", ".txt"))


def test_a_corpus_is_known_by_names_and_contents_not_by_its_folder(tmp_path: Path) -> None:
    seen = []
    for folder, text in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text(text)
        seen.append(readers.contents(Storage(str(tmp_path / folder)), ["f.txt"]))
    assert seen[0] == seen[1] != seen[2]
