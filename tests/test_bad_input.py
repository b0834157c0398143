"""What a corpus may hold that is no document: the good rows are done, the bad named with file and row and counted."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_token_chunk_step import model, rejects, serial, settings  # noqa: F401

from pipelines import token_chunks as step
from quire.errors import UserError

GOOD = [f"W{i} w{i + 1}  w{i + 2}" for i in range(40)]


def lines(*records: object) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records)


def parquet(path: Path, column: object, name: str = "text", **options: int) -> None:
    pq.write_table(pa.table({name: column}), path, **options)


def arrow(path: Path) -> None:
    with pa.ipc.new_stream(path, pa.schema({"text": pa.string()})) as writer:
        for text in GOOD[:8]:
            writer.write_batch(pa.record_batch({"text": [text]}))


def cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def half_parquet(folder: Path) -> None:
    parquet(folder / "b.parquet", GOOD)
    cut(folder / "b.parquet")


def bad_row_group(folder: Path) -> None:
    parquet(folder / "b.parquet", GOOD[:9], row_group_size=3, compression="zstd")
    place = pq.ParquetFile(folder / "b.parquet").metadata.row_group(1).column(0)
    at, size = place.dictionary_page_offset or place.data_page_offset, place.total_compressed_size
    data = (folder / "b.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(data[:at] + b"\xff" * size + data[at + size :])


def half_gz(folder: Path) -> None:
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(*({"text": text} for text in GOOD[:8]))))
    cut(folder / "b.jsonl.gz", 0.8)


def half_zst(folder: Path) -> None:
    frames = [pa.compress(lines({"text": text}), "zstd", asbytes=True) for text in GOOD[:8]]
    (folder / "b.jsonl.zst").write_bytes(b"".join(frames)[:-3])


def half_arrow(folder: Path) -> None:
    arrow(folder / "b.arrow")
    cut(folder / "b.arrow", 0.7)


def empty_files(folder: Path) -> None:
    for name in ("b.jsonl", "c.jsonl.gz", "d.jsonl.zst", "e.parquet", "f.arrow", "g.feather", "h.txt"):
        (folder / name).write_bytes(b"")


def mixed_schemas(folder: Path) -> None:
    parquet(folder / "b.parquet", ["w1"], "body")
    parquet(folder / "c.parquet", pa.array([b"w1", b"w2"]))
    parquet(folder / "d.parquet", [1, None])
    parquet(folder / "e.parquet", pa.array(["w1"], pa.large_string()))
    parquet(folder / "f.parquet", pa.array(["w1", "w1"]).dictionary_encode())
    parquet(folder / "g.parquet", [["w1"]])
    (folder / "h.jsonl").write_bytes(lines({"text": {"of": "w1"}}, {"Text": "w1"}, {"text": "w1", "more": [1]}))


def mixed_encodings(folder: Path) -> None:
    """A BOM before UTF-8 is no harm, a Latin-1 line costs itself, a file of UTF-16 lines itself."""
    (folder / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines({"text": "w1"}, b'{"text": "na\xefve"}', {"text": "w2"}))
    (folder / "c.jsonl").write_bytes('{"text": "w1"}\n{"text": "w2"}\n'.encode("utf-16-le"))
    (folder / "d.txt").write_bytes("w1 ‘w2’ naïve".encode("cp1252"))
    (folder / "e.txt").write_bytes("w1 日本".encode("utf-16"))


def wrong_utf8(folder: Path) -> None:
    raw = pa.array([b"w1", b"w\xff", b"w2"])
    parquet(folder / "b.parquet", pa.Array.from_buffers(pa.string(), 3, raw.buffers()))


def raw_lines(*texts: bytes) -> Callable[[Path], None]:
    """JSON lines as they are."""
    return lambda folder: (folder / "b.jsonl").write_bytes(lines(*texts)) and None


class Case(NamedTuple):
    """A file beside the good ones, what is dropped of it by reason, where (some of it), and what is kept."""

    write: Callable[[Path], None]
    dropped: dict[str, int]
    places: tuple[str, ...] = ()
    kept: int = 0


CASES = {
    "half a Parquet file": Case(half_parquet, {"damaged": 1}, ("b.parquet:end",)),
    "a Parquet file with a row group destroyed": Case(
        bad_row_group, {"damaged": 3}, ("b.parquet:3", "b.parquet:4", "b.parquet:5"), 6
    ),
    "a truncated gz": Case(half_gz, {"damaged": 1, "not_json": 1}, ("b.jsonl.gz:end",)),
    "a truncated zst": Case(half_zst, {"damaged": 1, "not_json": 1}, ("b.jsonl.zst:end",), 7),
    "half an Arrow stream": Case(half_arrow, {"damaged": 1}, ("b.arrow:end",)),
    "empty files": Case(empty_files, {"damaged": 3, "empty_text": 1}, ("e.parquet:end", "f.arrow:end", "h.txt")),
    "no such column in one file, and other types": Case(
        mixed_schemas,
        {"no_text": 3, "not_a_string": 5},
        ("b.parquet:0", "c.parquet:0", "c.parquet:1", "d.parquet:0", "d.parquet:1", "g.parquet:0", "h.jsonl:0"),
        4,
    ),
    "mixed encodings": Case(
        mixed_encodings, {"bad_encoding": 1, "not_json": 3}, ("b.jsonl:18", "c.jsonl:0", "c.jsonl:29"), 4
    ),
    "a string that is no UTF-8": Case(wrong_utf8, {"bad_encoding": 1}, ("b.parquet:1",), 2),
    "lone surrogates": Case(
        raw_lines(b'{"text": "w1 \\ud800"}', b'{"text": "\\udc00\\ud800"}', b'{"text": "w1 \\ud83d\\ude00"}'),
        {"bad_encoding": 2},
        ("b.jsonl:0", "b.jsonl:22"),
        1,
    ),
    "empty documents": Case(
        raw_lines(b'{"text": ""}', b'{"text": " \\n\\t"}', b'{"text": null}', b"{}", b'{"\\ud800": "w1"}'),
        {"empty_text": 2, "no_text": 3},
        ("b.jsonl:0", "b.jsonl:13"),
    ),
    "control characters": Case(
        raw_lines(
            b'{"text": "w1\\u0000w2 \\u001b[31mw3\\r\\n"}', b'{"text": "\\u0000\\u0001"}', b'{"text": "raw \x00"}'
        ),
        {"no_token": 1, "not_json": 1},
        ("b.jsonl:40", "b.jsonl:65"),
        1,
    ),
    "lines that are no records": Case(
        raw_lines(b"{", b"[1]", b'"w1"', b"NaN", b"[" * 10_000, b'{"text": "w1"', b"\x00" * 9),
        {"not_json": 7},
        ("b.jsonl:0", "b.jsonl:2"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_good_rows_are_done_and_the_bad_are_named(
    name: str,
    tmp_path: Path,
    model: str,  # noqa: F811
    serial: None,  # noqa: F811
) -> None:
    case, source = CASES[name], tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(lines(*({"text": text} for text in GOOD)))
    case.write(source)
    made = step.run(settings(tmp_path, model, "runtime.max_bad_share=0.9"))
    assert made.manifest["dropped"] == case.dropped
    found = rejects(made)
    assert set(case.places) <= {row["id"] for row in found}
    for row in found:
        file, _, place = row["id"].partition(":")
        word = "" if place in ("", "end") else f", row {place}" if file.endswith((".parquet", ".arrow")) else ", line "
        assert row["detail"].startswith(f"{file}{word}") and ", byte" not in row["detail"]
    chunks = made.read(["document_id", "text"]).to_pylist()
    good = [row["text"] for row in chunks if row["document_id"].startswith("a.jsonl:")]
    assert good == GOOD
    kept = len({row["document_id"] for row in chunks}) - len(GOOD)
    if "cut" not in case.write.__code__.co_names:
        assert kept == case.kept
    assert made.manifest["rows_in"] == len(GOOD) + kept + sum(case.dropped.values())


def test_a_column_that_no_file_has_stops_the_run_before_it(tmp_path: Path, model: str) -> None:  # noqa: F811
    (tmp_path / "source").mkdir()
    for name in ("a", "b"):
        parquet(tmp_path / f"source/{name}.parquet", GOOD, "body")
    with pytest.raises(UserError, match="source.text: no column 'text' in any file of .*; b.parquet has body"):
        step.run(settings(tmp_path, model))


def test_a_file_that_cannot_be_read_counts_by_its_bytes(tmp_path: Path, model: str, serial: None) -> None:  # noqa: F811
    """One bad record among forty, but half of the corpus."""
    (tmp_path / "source").mkdir()
    for name in ("a", "b"):
        parquet(tmp_path / f"source/{name}.parquet", GOOD)
    cut(tmp_path / "source/b.parquet", 0.9)
    with pytest.raises(
        UserError, match=r"max_bad_share = 0.05: 4\d.\d% of the source's bytes .* first b.parquet: cut off"
    ):
        step.run(settings(tmp_path, model))
    made = step.run(settings(tmp_path, model, "runtime.max_bad_share=0.5"))
    assert made.manifest["dropped"] == {"damaged": 1} and made.manifest["rows_out"] == len(GOOD)


def test_rows_of_fifty_megabytes_are_rows(tmp_path: Path, model: str, serial: None) -> None:  # noqa: F811
    """Words, and 25 MB without a blank, which is one unknown token."""
    (tmp_path / "source").mkdir()
    large = "w1 " * 1_000 + ("x" * 99 + " ") * 250_000 + "y" * 25_000_000
    (tmp_path / "source/a.jsonl").write_bytes(lines({"text": "w1"}, {"text": large}, {"text": "w2"}))
    made = step.run(settings(tmp_path, model, "max_tokens=1000", "overlap=0"))
    assert made.manifest["dropped"] == {} and made.manifest["rows_in"] == 3
    chunks = made.read(["document_id", "start", "end", "num_tokens", "token_ids"]).to_pylist()
    own = [row for row in chunks if row["document_id"] == "a.jsonl:15"]
    assert sum(row["num_tokens"] for row in own) == 251_001 and own[-1]["token_ids"][-1] == 0
    assert (own[0]["start"], own[-1]["end"]) == (0, len(large))
