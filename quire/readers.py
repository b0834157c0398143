"""Files of records: JSON lines, Parquet, Arrow and text files, read in pieces that can be read in parallel.

A piece is a plain dictionary: a range of bytes of JSON lines, a row group of Parquet, a range of Arrow batches, some
text files, or a damage that was found when the pieces were cut. A record is a dictionary by column, or a `Dropped`.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from quire import decode
from quire.errors import UserError
from quire.storage import Storage

LINES = (".json", ".jsonl", ".gz", ".zst")  # .gz and .zst are JSON lines, compressed
ARROW = (".arrow", ".feather")  # of files and of streams, which is what `datasets` writes
FORMATS = (*LINES, ".parquet", *ARROW, ".txt")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_DAMAGE = (pa.ArrowInvalid, OSError)  # what a file that is cut off raises
_BATCH_ROWS = 256
_BLOCK = 2**20  # bytes

Piece = dict[str, Any]


class Dropped(NamedTuple):
    """Why a record is not used: a word to count by, and a sentence to read."""

    reason: str
    detail: str


class Named(NamedTuple):
    """A document: its id and its text."""

    document_id: str
    text: str


Found = tuple[str, Any, dict[str, Any] | Dropped]  # file, place, record


def list_files(storage: Storage, wanted: Sequence[str], formats: Sequence[str], key: str = "source") -> list[str]:
    """The wanted files below a folder, by default every one of these formats, sorted. Raises UserError for none."""
    every = [file for file in storage.files() if file.endswith(tuple(formats))]
    missing = sorted(set(wanted) - set(every))
    if missing or not every:
        kinds = f"{', '.join(formats[:-1])} or {formats[-1]}"
        what = f"no file {missing[0]!r}" if missing else f"no {kinds} file below it"
        raise UserError(f"{key}.folder = {storage.root!r}: {what}")
    return sorted(set(wanted) or every)


def lost_share(storage: Storage, files: Sequence[str], pieces: Sequence[Piece]) -> float:
    """Share of the files' bytes that stand in files of which nothing can be read."""
    lost = sum(piece.get("lost", 0) for piece in pieces)
    return lost / sum(storage.size(file) for file in files) if lost else 0.0


def contents(storage: Storage, files: Iterable[str]) -> str:
    """SHA-256 over the names and contents of files: which corpus it is, wherever it lies."""
    names = sorted(set(files))
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(storage.sha256, names))
    return hashlib.sha256(json.dumps(list(zip(names, digests, strict=True))).encode()).hexdigest()


def cut(storage: Storage, files: Sequence[str], piece_bytes: int, *, strict: bool = False) -> list[Piece]:
    """Pieces that tile the files, each record in one of them, in the order of the files, text files last.

    A piece of JSON lines, Arrow or text files has about `piece_bytes` (decompressed); Parquet is read by row group.
    What a damaged file still holds is read, and its damage is a piece of its own, whose one record is dropped as
    `damaged`; if `strict`, it raises UserError. Compressed lines and Arrow are read through once for it; where storage
    is far (`fetch_whole`) such a file is one piece, which its reader fetches to a temporary file.
    """
    pieces: list[Piece] = []
    for file in (file for file in files if not file.endswith(".txt")):
        if storage.fetch_whole and file.endswith((*_CODECS, *ARROW)):
            pieces.append({"file": file, "whole": True})
            continue
        kind = _parquet if file.endswith(".parquet") else _arrow if file.endswith(ARROW) else _lines
        found, damage = kind(storage, file, piece_bytes)
        if damage and strict:
            raise UserError(f"{storage.uri(file)}: {damage}; fetch it again")
        # Of a file that is cut off nobody knows how much is missing; of one that gives nothing, it is all of it.
        lost = 0 if found else storage.size(file)
        pieces += found + ([{"file": file, "damage": damage, "lost": lost}] if damage else [])
    room = 0
    for file in (file for file in files if file.endswith(".txt")):
        if room <= 0:
            pieces.append({"files": []})
            room = piece_bytes
        pieces[-1]["files"].append(file)
        room -= storage.size(file)
    return pieces


def _lines(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], str | None]:
    size, damage = readable_size(storage, file)
    step = piece_bytes
    if file.endswith(tuple(_CODECS)):  # read from its beginning for every range: more than 16 cost more than they give
        step = max(step, -(-size // 16))
    ranges = [{"file": file, "start": at, "end": min(at + step, size)} for at in range(0, size, step)]
    return [piece | {"readable": size} for piece in ranges] if damage else ranges, damage


def _parquet(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], str | None]:
    """Whole row groups: nothing smaller is read at once."""
    try:
        with storage.filesystem.open_input_file(storage.path(file)) as opened:
            groups = pq.ParquetFile(opened).num_row_groups
    except _DAMAGE as error:
        return [], f"cut off or not Parquet ({_damage(error)})"
    return [{"file": file, "row_group": number} for number in range(groups)], None


def _arrow(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], str | None]:
    pieces: list[Piece] = []
    row, room = 0, 0
    try:
        for number, batch in enumerate(_arrow_batches(storage, file)):
            if room <= 0:
                pieces.append({"file": file, "batches": [number, number], "first_row": row})
                room = piece_bytes
            pieces[-1]["batches"][1] = number + 1
            row, room = row + batch.num_rows, room - batch.nbytes
    except _DAMAGE as error:
        return pieces, f"cut off after {row:,} rows or not Arrow ({_damage(error)})"
    return pieces, None


def _damage(error: Exception) -> Exception:
    """The error, if it is about a file's bytes; raises it if the disk or the network is to blame."""
    # Arrow says OSError itself of bytes; its kinds are of files, lines and hubs.
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None or "AWS" in str(error)):
        raise error
    return error


def readable_size(storage: Storage, file: str) -> tuple[int, str | None]:
    """Bytes of a JSON-lines file once decompressed, as far as they can be read; and why no further."""
    if not file.endswith(tuple(_CODECS)):
        return storage.size(file), None
    size, block, damage = 0, _BLOCK, None
    while block:  # a read that fails gives nothing: what is left is found by reading less and less at once
        try:
            with _decompressed(storage, file) as stream:
                _skip(stream, size)
                while data := stream.read(block):
                    size += len(data)
            return size, None
        except _DAMAGE as error:
            damage = f"cut off or not {_CODECS[Path(file).suffix]} ({_damage(error)})"
            block //= 32
    return size, damage


def table_columns(storage: Storage, file: str) -> list[str] | None:
    """The columns of a table, whole or damaged behind its schema; None for what has none (JSON lines, texts)."""
    try:
        if file.endswith(".parquet"):
            with storage.filesystem.open_input_file(storage.path(file)) as opened:
                return pq.read_schema(opened).names
        if file.endswith(ARROW):
            batch = next(_arrow_batches(storage, file), None)
            return None if batch is None else batch.schema.names
    except _DAMAGE as error:
        _damage(error)
    return None


def records(storage: Storage, piece: Piece, columns: Sequence[str] | None = None) -> Iterator[Found]:
    """(file, place, record) of a piece, in order; of tables only `columns`, where they have them.

    The place is a row of a table, a byte of JSON lines, None for a file that is one text; its columns are `text` and
    `name`. Memory holds one line or one batch of rows, beside what the format itself decodes at once.
    """
    if "files" in piece:
        yield from ((file, None, _text_file(storage, file)) for file in piece["files"])
    elif "whole" in piece:
        with tempfile.TemporaryDirectory(prefix="quire-read-") as folder:
            target = Path(folder) / piece["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.download_file(piece["file"], target)
            near = Storage(folder)
            for part in cut(near, [piece["file"]], storage.size(piece["file"]) * 1000):
                yield from records(near, part, columns)
    elif "damage" in piece:
        yield piece["file"], "end", Dropped("damaged", piece["damage"])
    elif "start" in piece:
        lines = json_lines(storage, piece["file"], piece["start"], piece["end"], piece.get("readable"))
        yield from ((piece["file"], place, parse(line)) for place, line in lines)
    else:
        yield from _table_records(storage, piece, columns)


def json_lines(
    storage: Storage, file: str, start: int, end: int, readable: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(place, line) of the lines that begin in the bytes [start, end) of a file, decompressed if it is .gz or .zst.

    Ranges that tile a file give each of its lines once. Memory holds one line. Of a damaged file no more than the first
    `readable` bytes are asked for.
    """
    with _opened(storage, file, readable) as stream:
        place = start
        if start:
            _skip(stream, start - 1)
            place = start - 1 + len(stream.readline())  # the line that begins before belongs to the range before
        while place < end and (line := stream.readline()):
            if line.strip():
                yield place, line
            place += len(line)


def parse(line: bytes) -> dict[str, Any] | Dropped:
    """One JSON object, or why it is none."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return Dropped("bad_encoding", f"{error.reason}: {line[:80]!r}")
    except (ValueError, RecursionError) as error:
        return Dropped("not_json", f"{error}: {line[:80]!r}")
    return record if isinstance(record, dict) else Dropped("not_json", f"not an object: {line[:80]!r}")


def document(record: Mapping[str, Any], file: str, place: Any, *, text: str, key: str | None = None) -> Dropped | Named:
    """(document_id, text) of a record by the names of its columns, or why it has none.

    Without a column of ids its place in the source is the id: `file:place`. The text is as it stands there.
    """
    found = record.get(text)
    if found is None:
        return Dropped("no_text", f"{text}: null" if text in record else f"no {text!r} among {', '.join(record)}"[:200])
    if not isinstance(found, str):
        return Dropped("not_a_string", f"{text}: {type(found).__name__}")
    if not found or found.isspace():
        return Dropped("no_text", f"{text}: empty")
    name = record.get(key) if key else file if place is None else f"{file}:{place}"
    if name in (None, "") or not isinstance(name, str | int):
        return Dropped("no_id", f"{key}: {name!r}"[:80])
    try:
        f"{name}{found}".encode()
    except UnicodeEncodeError as error:  # JSON may spell half a surrogate pair
        return Dropped("bad_encoding", f"{text}: {error.reason} at character {error.start}")
    return Named(str(name), found)


def _table_records(storage: Storage, piece: Piece, columns: Sequence[str] | None) -> Iterator[Found]:
    file, row = piece["file"], piece.get("first_row", 0)
    if "batches" in piece:
        for batch in _arrow_batches(storage, file, *piece["batches"]):
            batch = batch if columns is None else batch.select([n for n in batch.schema.names if n in columns])
            yield from ((file, row + at, record) for at, record in enumerate(_rows(batch)))
            row += batch.num_rows
        return
    with storage.filesystem.open_input_file(storage.path(file)) as opened:
        parquet, group = pq.ParquetFile(opened), piece["row_group"]
        row = sum(parquet.metadata.row_group(number).num_rows for number in range(group))
        names = None if columns is None else [n for n in parquet.schema_arrow.names if n in columns]
        try:
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names):
                yield from ((file, row + at, record) for at, record in enumerate(_rows(batch)))
                row += batch.num_rows
        except _DAMAGE as error:
            detail = f"row group {group} from row {row} on ({_damage(error)})"
            end = sum(parquet.metadata.row_group(number).num_rows for number in range(group + 1))
            yield from ((file, lost, Dropped("damaged", detail)) for lost in range(row, end))


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | Dropped]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_row(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _row(batch: pa.RecordBatch) -> dict[str, Any] | Dropped:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Dropped("bad_encoding", f"{error.reason}: {error.object[:80]!r}")


def _arrow_batches(storage: Storage, file: str, first: int = 0, last: int | None = None) -> Iterator[pa.RecordBatch]:
    path = storage.path(file)
    with pa.memory_map(path) if storage.is_local else storage.filesystem.open_input_file(path) as opened:
        is_file = opened.read(6) == b"ARROW1"  # the magic number of the file format; a stream has none
        opened.seek(0)
        if not is_file:
            yield from islice(pa.ipc.open_stream(opened), first, last)
            return
        reader = pa.ipc.open_file(opened)
        for number in range(first, reader.num_record_batches if last is None else last):
            yield reader.get_batch(number)


def _text_file(storage: Storage, file: str) -> dict[str, Any] | Dropped:
    try:
        return {"text": decode.decode(storage.read_bytes(file)).text, "name": file}
    except decode.Unreadable as error:
        return Dropped("no_text" if error.reason == "empty" else "bad_encoding", error.detail)


class _Head(io.RawIOBase):
    """The first bytes of a stream, which is asked for not one more."""

    def __init__(self, stream: pa.NativeFile, size: int):
        self.stream, self.left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self.stream.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def _opened(storage: Storage, file: str, readable: int | None) -> BinaryIO:
    stream = _decompressed(storage, file)
    return io.BufferedReader(stream if readable is None else _Head(stream, readable), _BLOCK)


def _decompressed(storage: Storage, file: str) -> pa.NativeFile:
    raw = storage.filesystem.open_input_file(storage.path(file))
    codec = _CODECS.get(Path(file).suffix)
    return pa.CompressedInputStream(raw, codec) if codec else raw


def _skip(stream: BinaryIO, size: int) -> None:
    if stream.seekable():
        stream.seek(size)
        return
    while size and (data := stream.read(min(size, _BLOCK))):
        size -= len(data)
