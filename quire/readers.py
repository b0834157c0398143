"""Files of records: JSON lines, CSV, Parquet, Arrow and text files, read in pieces that can be read in parallel.

A piece is a plain dictionary: a range of bytes of JSON lines or of CSV, of rows of a Parquet row group, of Arrow
batches, some text files, or a damage that was found when the pieces were cut. A record is a dictionary by column, or a
`Dropped`.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from quire import csv_rows, decode, many, streams
from quire.errors import UserError
from quire.storage import Storage

LINES = (".json", ".jsonl", ".gz", ".zst")  # .gz and .zst are JSON lines, compressed, unless they are .csv.gz
ARROW = (".arrow", ".feather")  # of files and of streams, which is what `datasets` writes
TABLES = (*LINES, ".parquet", *ARROW, *csv_rows.SUFFIXES)
FORMATS = (*TABLES, ".txt")
# What `datasets` and the hub put beside the records of a set.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_BATCH_ROWS, _BATCH_BYTES = 256, 16 * 2**20
_READ_BYTES = 2**20  # at once of a Parquet column, instead of all that its row group has
_RANGES = 16  # of a compressed file or of a row group: all are read from its beginning
_MOST_BYTES = 128 * 2**20  # of a range, decompressed, however many that makes: a worker holds all chunks of one

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
    """The wanted files below a folder, by default every one of these formats but what is about a data set, sorted.
    Raises UserError for none."""
    every = [file for file in storage.files() if file.endswith(tuple(formats))]
    missing = sorted(set(wanted) - set(every))
    every = [file for file in every if Path(file).name not in _ABOUT]
    if missing or not (wanted or every):
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
    digests = many.each(storage.sha256, names, "files of the source hashed")
    return hashlib.sha256(json.dumps(list(zip(names, digests, strict=True))).encode()).hexdigest()


def cut(storage: Storage, files: Sequence[str], piece_bytes: int, *, strict: bool = False) -> list[Piece]:
    """Pieces that tile the files, each record in one of them, in the order of the files, text files last.

    A piece has about `piece_bytes` (decompressed), but for what is read from its beginning for every piece: of a
    compressed file or a row group of Parquet there are 16 at most, or as many of 128 MiB as it takes. What a damaged
    file still holds is read, and its damage is a piece of its own, whose one record is dropped as `damaged`; if
    `strict`, it raises UserError. CSV, compressed lines and Arrow are read through once for it.
    """
    pieces: list[Piece] = []
    records = [file for file in files if not file.endswith(".txt")]
    cuts = many.each(lambda file: _cutter(file)(storage, file, piece_bytes), records, "files looked through")
    for file, (found, damage) in zip(records, cuts, strict=True):
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


def is_read_through(file: str) -> bool:
    """Whether `cut` reads all of a file."""
    return file.endswith((*streams.CODECS, *ARROW)) or csv_delimiter(file) is not None


def _cutter(file: str) -> Callable[[Storage, str, int], tuple[list[Piece], str | None]]:
    if file.endswith(".parquet"):
        return _parquet
    if file.endswith(ARROW):
        return _arrow
    return _csv if csv_delimiter(file) else _lines


def csv_delimiter(file: str) -> str | None:
    """Of a CSV or TSV file, compressed or not; None for any other."""
    path = Path(file)
    return csv_rows.SUFFIXES.get(Path(path.stem).suffix if path.suffix in streams.CODECS else path.suffix)


def _step(file: str, size: int, piece_bytes: int) -> int:
    """Bytes of a range of a file, decompressed."""
    return _from_beginning(size, piece_bytes) if file.endswith(tuple(streams.CODECS)) else piece_bytes


def _from_beginning(size: int, piece_bytes: int) -> int:
    """Bytes of a range where every range is read from the beginning: more of them cost more than they give."""
    return max(piece_bytes, min(-(-size // _RANGES), _MOST_BYTES))


def _csv(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], str | None]:
    size, damage = streams.readable_size(storage, file)
    try:
        with streams.opened(storage, file, size if damage else None) as stream:
            step = _step(file, size, piece_bytes)
            names, ranges = csv_rows.cut(stream, csv_delimiter(file), step, whole=damage is None)
    except csv.Error as error:
        return [], damage or f"not CSV ({error})"
    more = {"readable": size} if damage else {}
    return [{"file": file, "columns": names, **part._asdict(), **more} for part in ranges], damage


def _lines(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], str | None]:
    size, damage = streams.readable_size(storage, file)
    step = _step(file, size, piece_bytes)
    ranges = [{"file": file, "start": at, "end": min(at + step, size)} for at in range(0, size, step)]
    return [piece | {"readable": size} for piece in ranges] if damage else ranges, damage


def _parquet(storage: Storage, file: str, piece_bytes: int) -> tuple[list[Piece], str | None]:
    """Ranges of the rows of each row group, which may be all the file has; small row groups together."""
    pieces: list[Piece] = []
    room = 0
    try:
        with storage.filesystem.open_input_file(storage.path(file)) as opened:
            about = pq.ParquetFile(opened).metadata
            for number in range(about.num_row_groups):
                group = about.row_group(number)
                size, rows = max(1, group.total_byte_size), group.num_rows
                step = max(1, -(-rows * _from_beginning(size, piece_bytes) // size))
                ranges = [[number, at, min(at + step, rows)] for at in range(0, rows, step)]
                if len(ranges) == 1 and size <= room:
                    pieces[-1]["rows"] += ranges
                else:
                    pieces += [{"file": file, "rows": [part]} for part in ranges]
                    room = piece_bytes if len(ranges) == 1 else 0
                room -= size
    except streams.DAMAGE as error:
        return [], f"cut off or not Parquet ({streams.about_bytes(error)})"
    return pieces, None


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
    except streams.DAMAGE as error:
        return pieces, f"cut off after {row:,} rows or not Arrow ({streams.about_bytes(error)})"
    return pieces, None


def table_columns(storage: Storage, file: str) -> list[str] | None:
    """The columns of a table, whole or damaged behind its schema; None for what has none (JSON lines, texts)."""
    try:
        if file.endswith(".parquet"):
            with storage.filesystem.open_input_file(storage.path(file)) as opened:
                return pq.read_schema(opened).names
        if file.endswith(ARROW):
            batch = next(_arrow_batches(storage, file), None)
            return None if batch is None else batch.schema.names
        if delimiter := csv_delimiter(file):
            with streams.opened(storage, file, None) as stream:
                return csv_rows.header(stream, delimiter)
    except streams.DAMAGE as error:
        streams.about_bytes(error)
    except csv.Error:  # `cut` says so
        return None
    return None


def require_columns(storage: Storage, files: Sequence[str], columns: Mapping[str, str | None]) -> None:
    """Raises UserError for a column (by the key that names it, None where it names none) that no table has.

    One that some lack is missing from their rows; lines and texts show their columns only when they are read.
    """
    missing, found = {key: name for key, name in columns.items() if name}, None
    for file in files:
        found = table_columns(storage, file)
        if found is None:
            return
        missing = {key: name for key, name in missing.items() if name not in found}
        if not missing:
            return
    key, name = next(iter(missing.items()))
    raise UserError(f"{key}: no column {name!r} in any file of {storage.root}; {files[-1]} has {', '.join(found)}")


def records(storage: Storage, piece: Piece, columns: Sequence[str] | None = None) -> Iterator[Found]:
    """(file, place, record) of a piece, in order; of tables only `columns`, where they have them.

    The place is a row of a table, a byte of JSON lines, None for a file that is one text; its columns are `text` and
    `name`. Memory holds one line or one batch of rows, beside what the format itself decodes at once.
    """
    if "files" in piece:
        yield from ((file, None, _text_file(storage, file)) for file in piece["files"])
    elif "damage" in piece:
        yield piece["file"], "end", Dropped("damaged", piece["damage"])
    elif "columns" in piece:
        yield from _csv_records(storage, piece, columns)
    elif "start" in piece:
        lines = json_lines(storage, piece["file"], piece["start"], piece["end"], piece.get("readable"))
        yield from ((piece["file"], place, parse(line)) for place, line in lines)
    elif "batches" in piece:
        yield from _arrow_records(storage, piece, columns)
    else:
        yield from _parquet_records(storage, piece, columns)


def json_lines(
    storage: Storage, file: str, start: int, end: int, readable: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(place, line) of the lines that begin in the bytes [start, end) of a file, decompressed if it is .gz or .zst.

    Ranges that tile a file give each of its lines once. Memory holds one line. Of a damaged file no more than the first
    `readable` bytes are asked for.
    """
    with streams.opened(storage, file, readable) as stream:
        place = start
        if start:
            streams.skip(stream, start - 1)
            place = start - 1 + len(stream.readline())  # the line that begins before belongs to the range before
        while place < end and (line := stream.readline()):
            if line.strip():
                yield place, line
            place += len(line)


def has_lines(file: str) -> bool:
    """Whether it is a file of JSON lines, whose places are bytes."""
    return file.endswith(LINES) and csv_delimiter(file) is None


def line_numbers(storage: Storage, file: str, places: Sequence[int]) -> list[int]:
    """The numbers, from 1, of the lines that begin at these places of a file of JSON lines, read through once."""
    numbers, at, line = {}, 0, 1
    with streams.opened(storage, file, max(places, default=0)) as stream:
        for place in sorted(set(places)):
            while at < place and (data := stream.read(min(place - at, 2**20))):
                at, line = at + len(data), line + data.count(b"\n")
            numbers[place] = line
    return [numbers[place] for place in places]


def parse(line: bytes) -> dict[str, Any] | Dropped:
    """One JSON object, or why it is none."""
    try:
        record = json.loads(str(line, "utf-8-sig"))  # given bytes, it would guess UTF-16 in the middle of a file
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
        return Dropped("empty_text", text)
    name = record.get(key) if key else file if place is None else f"{file}:{place}"
    if name in (None, "") or not isinstance(name, str | int):
        return Dropped("no_id", f"{key}: {name!r}"[:80])
    try:
        f"{name}{found}".encode()
    except UnicodeEncodeError as error:  # JSON may spell half a surrogate pair
        return Dropped("bad_encoding", f"{text}: {error.reason} at character {error.start}")
    return Named(str(name), found)


def _csv_records(storage: Storage, piece: Piece, columns: Sequence[str] | None) -> Iterator[Found]:
    file, part = piece["file"], csv_rows.Range(piece["start"], piece["end"], piece["first_row"])
    with streams.opened(storage, file, piece.get("readable")) as stream:
        streams.skip(stream, part.start)
        for row, found in csv_rows.records(stream, part, piece["columns"], csv_delimiter(file), columns):
            yield file, row, Dropped(*found) if isinstance(found, csv_rows.Trouble) else found


def _arrow_records(storage: Storage, piece: Piece, columns: Sequence[str] | None) -> Iterator[Found]:
    file, row = piece["file"], piece["first_row"]
    for batch in _arrow_batches(storage, file, *piece["batches"]):
        batch = batch if columns is None else batch.select([n for n in batch.schema.names if n in columns])
        yield from ((file, place, record) for place, record in enumerate(_rows(batch), row))
        row += batch.num_rows


def _parquet_records(storage: Storage, piece: Piece, columns: Sequence[str] | None) -> Iterator[Found]:
    with storage.filesystem.open_input_file(storage.path(piece["file"])) as opened:
        parquet = pq.ParquetFile(opened, buffer_size=_READ_BYTES)
        names = None if columns is None else [n for n in parquet.schema_arrow.names if n in columns]
        for number, *rows in piece["rows"]:
            found = _row_group(parquet, number, rows, names)
            yield from ((piece["file"], place, record) for place, record in found)


def _row_group(
    parquet: pq.ParquetFile, number: int, rows: Sequence[int], names: list[str] | None
) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    """(row of the file, record) of the rows [start, end) of a row group."""
    group = parquet.metadata.row_group(number)
    row = sum(parquet.metadata.row_group(before).num_rows for before in range(number))
    start, end = (row + at for at in rows)
    most = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
    batches = parquet.iter_batches(most, row_groups=[number], columns=names)
    try:
        while row < end:
            batch = next(batches)
            first = max(row, start)
            wanted = batch.slice(min(first - row, batch.num_rows), max(0, end - first))
            yield from enumerate(_rows(wanted), first)
            row += batch.num_rows
    except streams.DAMAGE as error:
        first = max(row, start)
        detail = f"row group {number} from row {first} on ({streams.about_bytes(error)})"
        yield from ((lost, Dropped("damaged", detail)) for lost in range(first, end))


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
        return Dropped("empty_text" if error.reason == "empty" else "bad_encoding", error.detail)
