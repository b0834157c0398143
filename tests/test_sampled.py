"""An estimate looks at a little of a corpus, and knows how little."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quire import readers, sampled, streams
from quire.storage import Storage

ROWS = [{"id": str(i), "text": random.Random(i).randbytes(20).hex()} for i in range(20_000)]


def data(file: str) -> bytes:
    if ".csv" in file:
        lines = ["id,text", *(f"{row['id']},{row['text']}" for row in ROWS)]
    else:
        lines = [json.dumps(row) for row in ROWS]
    plain = "".join(f"{line}\n" for line in lines).encode()
    if file.endswith(".zst"):
        return pa.compress(plain, "zstd", asbytes=True)
    return gzip.compress(plain) if file.endswith(".gz") else plain


@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.csv", "a.parquet", "many"])
def test_the_share_of_a_sample_tells_how_much_there_is(file: str, tmp_path: Path) -> None:
    if file == "many":
        for number in range(100):
            lines = [json.dumps(row) + "\n" for row in ROWS[number * 200 : number * 200 + 200]]
            (tmp_path / f"{number:03d}.jsonl").write_text("".join(lines))
    elif file == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / file, row_group_size=1_000)
    else:
        (tmp_path / file).write_bytes(data(file))
    storage = Storage(str(tmp_path))
    files = readers.list_files(storage, (), readers.FORMATS)
    piece_bytes = 800_000 if file.endswith((".gz", ".zst")) else 200_000  # they are decompressed in large blocks
    pieces, share = sampled.pieces(storage, files, piece_bytes, 3)
    rows = [record for piece in pieces for _, _, record in readers.records(storage, piece)]
    good = [record for record in rows if not isinstance(record, readers.Dropped)]
    whole = sum(1 for piece in readers.cut(storage, files, 200_000) for _ in readers.records(storage, piece))
    assert good and share < 1 and len(good) / share == pytest.approx(whole, rel=0.25)
    assert len(rows) == len(good)  # a large file is not cut within a record


def test_a_large_compressed_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        (tmp_path / name).write_bytes(data(name))
    monkeypatch.setattr(streams, "readable_size", None)
    pieces, share = sampled.pieces(Storage(str(tmp_path)), ["a.jsonl.gz", "b.jsonl.zst"], 200_000, 3)
    assert [piece["file"] for piece in pieces] == ["a.jsonl.gz", "b.jsonl.zst"] and 0 < share < 1


def test_a_sample_of_little_is_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(data("a.jsonl.gz"))
    (tmp_path / "b.txt").write_text("A text.")
    pieces, share = sampled.pieces(Storage(str(tmp_path)), ["a.jsonl.gz", "b.txt"], 2**30, 3)
    assert share == 1 and pieces == readers.cut(Storage(str(tmp_path)), ["a.jsonl.gz", "b.txt"], 2**30)
