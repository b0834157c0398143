"""What token chunks drop: how much of a source may be bad, where the bad records stand, and documents that share an id.

Shards tell a record's place in bytes, which costs them nothing; lines are counted at the end, of files with rejects
alone. Shape letter: n chunks of a shard.
"""

import re
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from pipelines.shards import drop_all
from quire import chunk_statistics, manifest, readers, schema
from quire.artifact import WORK, Draft
from quire.readers import Dropped, Piece
from quire.storage import Storage

_READ = ("empty_text", "no_token", "repeated_id")  # reasons that say nothing against the source's files
_ENOUGH = 10_000  # records, by which a column that is kept has shown a value


def check_lost(draft: Draft, share: float, pieces: list[Piece], max_bad_share: float) -> None:
    """Raises UserError when too large a `share` of the source's bytes stands in files that cannot be read. Such a file
    is one record among the dropped, however many it held."""
    lost = [piece for piece in pieces if piece.get("lost")]
    if lost and share > max_bad_share:
        raise draft.given_up(
            f"runtime.max_bad_share = {max_bad_share}: {share:.1%} of the source's bytes stand in "
            f"{len(lost)} file(s) that cannot be read, first {lost[0]['file']}: {lost[0]['damage']}; fetch them again, "
            "or set a higher share"
        )


def hopeless(draft: Draft, storage: Storage, pieces: list[Piece], max_bad_share: float) -> str | None:
    """Why the run is given up before its end, None where it goes on: pieces are about as large as each other, and
    already more records are bad than the whole may have, with a quarter more allowed for pieces that hold more."""
    records = draft.finished_shards()
    totals = manifest.totals(records.values())
    expected = totals["rows_in"] * len(pieces) / len(records)
    if len(records) == len(pieces) or sum(_bad(totals).values()) <= 1.25 * max_bad_share * expected:
        return None
    name_lines(draft, storage, pieces)
    return str(
        draft.given_up(
            f"runtime.max_bad_share = {max_bad_share}: after {len(records):,} of {len(pieces):,} "
            f"shards there are more bad records than all of them may have: {_told(draft, totals)}; mend the source, or "
            "set a higher share, which goes on from here"
        )
    )


def check(draft: Draft, source: str | None, max_bad_share: float) -> None:
    """Raises UserError when more than the share `max_bad_share` of the records is bad, or `source` gives no chunk."""
    totals = draft.totals()
    if sum(_bad(totals).values()) > max_bad_share * totals["rows_in"]:
        raise draft.given_up(
            f"runtime.max_bad_share = {max_bad_share}: more records than that cannot be read: {_told(draft, totals)}; "
            "mend the source, or set a higher share, which goes on from here"
        )
    if not totals["rows_out"]:
        raise draft.given_up(f"source = {source!r}: no chunk is left: {_told(draft, totals)}")


def _bad(totals: dict[str, Any]) -> dict[str, int]:
    """How many of the records read so far are bad, by reason."""
    return {reason: count for reason, count in totals["dropped"].items() if reason not in _READ}


def is_bad(dropped: Dropped) -> bool:
    """Whether it counts against the source's files."""
    return dropped.reason not in _READ


def _told(draft: Draft, totals: dict[str, Any]) -> str:
    """That in words, with the first record of the commonest reason."""
    bad = _bad(totals)
    told = f"{schema.summarise(bad)} of {totals['rows_in']:,} records"
    if bad:
        most = max(bad, key=lambda reason: bad[reason])
        told += f", such as {most}: {examples(draft)[most]}"
    return f"{told}; all are in rejects-*.parquet in {draft.storage.uri(draft.folder)}"


def check_kept(draft: Draft, *, ended: bool = False) -> str | None:
    """Why the run is given up for a column that is to be kept and that no record has, None where each is somewhere.

    It is asked while the run goes on, from `_ENOUGH` records on, and at its end.
    """
    records = draft.finished_shards().values()
    num_records = sum(record["rows_in"] for record in records)
    for name in next(iter(records))["facts"].get("kept", ()) if ended or num_records >= _ENOUGH else ():
        if not sum(record["facts"]["kept"][name] for record in records):
            found = f"none of {num_records:,} records has a value of it"
            return str(draft.given_up(f"source.keep.{name}: {found}; name a column that there is, or leave it out"))
    return None


def check_repeated(draft: Draft, key: str | None, max_repeated_share: float) -> None:
    """Raises UserError when too many records share the ids of others: then `key` is no column of ids."""
    totals = draft.totals()
    count = totals["dropped"].get("repeated_id", 0)
    if key and count > max_repeated_share * totals["rows_in"]:
        raise draft.given_up(
            f"source.key = {key!r}: {count:,} of {totals['rows_in']:,} records have the id of an earlier one, such as "
            f"{examples(draft)['repeated_id']}; name the column that tells records apart, leave it out, or set "
            "runtime.max_repeated_share, which goes on from here"
        )


def name_lines(draft: Draft, storage: Storage, pieces: list[Piece]) -> None:
    """Say lines instead of bytes in the rejects of all shards. A file is read through once, if it has rejects."""
    dropping = [index for index, record in sorted(draft.finished_shards().items()) if record["dropped"]]
    for file, shards in groupby(dropping, lambda index: pieces[index].get("file", "")):
        names = [f"{draft.folder}/rejects-{index:05d}.parquet" for index in shards if readers.has_lines(file)]
        tables = [draft.storage.read_table(name).to_pylist() for name in names]
        if _number_lines(storage, file, [row for rows in tables for row in rows]):
            for name, rows in zip(names, tables, strict=True):
                draft.storage.write_table(name, schema.rejects(rows))


def _number_lines(storage: Storage, file: str, rejects: list[dict[str, Any]]) -> bool:
    """Say lines instead of bytes in the details of a file's rejects; whether there was any to say."""
    begin = f"{file}, byte "
    found = [row for row in rejects if row["detail"].startswith(begin)]
    places = [re.match(r"\d+", row["detail"][len(begin) :])[0] for row in found]
    numbers = readers.line_numbers(storage, file, [int(place) for place in places]) if found else []
    for row, place, number in zip(found, places, numbers, strict=True):
        row["detail"] = f"{file}, line {number}{row['detail'][len(begin) + len(place) :]}"
    return bool(found)


def examples(draft: Draft) -> dict[str, str]:
    """For each reason the first record that was dropped for it, and where that stands."""
    found: dict[str, str] = {}
    for index, record in sorted(draft.finished_shards().items()):
        if record["dropped"].keys() - found.keys():
            for row in draft.storage.read_table(f"{draft.folder}/rejects-{index:05d}.parquet").to_pylist():
                found.setdefault(row["reason"], row["detail"] or row["id"])
    return found


def place_of(file: str, place: Any) -> str:
    """Where a record stands, for people to read. The number of a line is found at the end, by `_number_lines`."""
    if not isinstance(place, int):
        return file
    return f"{file}, {'byte' if readers.has_lines(file) else 'row'} {place}"


def seen(table: pa.Table, places: list[str]) -> pa.Table:
    """What the end of the run asks of every chunk of a shard, repeated documents among them; where each stands, at its
    first chunk."""
    where = np.full(table.num_rows, None, object)
    where[table["index"].to_numpy() == 0] = places
    hashes = chunk_statistics.text_hashes(table["text"].to_pylist())
    columns = {"hash": pa.array(hashes), "where": pa.array(where, pa.string())}
    return pa.table({name: table[name] for name in ("document_id", "index", "num_tokens")} | columns)


def drop_repeated(draft: Draft, storage: Storage, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Of documents that share an id the first stays. Returns num_tokens and hash of every chunk that stays.

    The driver holds 12 bytes a chunk, which are returned, and 8 a document: ids are compared by hash first, and those
    that agree in full. While they are put together, it is up to twice as much.
    All is read from what the shards have left beside their parts, so that a killed run finds the same again.
    """
    names = [f"{draft.folder}/{WORK}/{index:05d}.parquet" for index in range(len(pieces))]
    marks = [_marks(_ids(draft.storage.read_table(name, ["document_id", "index"]))) for name in names]
    values, counts = np.unique(np.concatenate(marks), return_counts=True)
    shared = values[counts > 1]
    del values, counts
    seen: set[str] = set()
    drops: dict[int, tuple[np.ndarray, list[dict[str, Any]]]] = {}
    records, lengths, hashes = draft.finished_shards(), [], []
    for index, name in enumerate(names):
        table = draft.storage.read_table(name)
        repeated = np.zeros(table.num_rows, bool)
        if np.isin(marks[index], shared).any():
            repeated, rejects = _repeated(table, seen)
            if repeated.any() and records[index]["rows_out"] == table.num_rows:  # else it has had its turn
                drops[index] = repeated, rejects
        lengths.append(table["num_tokens"].to_numpy()[~repeated])
        hashes.append(table["hash"].to_numpy()[~repeated])
    for file, shards in groupby(drops, lambda index: pieces[index].get("file", "")):
        _number_lines(storage, file, [row for index in shards for row in drops[index][1]])
    drop_all(draft, drops)
    return np.concatenate(lengths), np.concatenate(hashes)


def _ids(table: pa.Table) -> list[str]:
    """Of each document once: a document begins at its chunk 0."""
    return table["document_id"].filter(pa.array(table["index"].to_numpy() == 0)).to_pylist()


def _marks(ids: list[str]) -> np.ndarray:
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids))


def _repeated(table: pa.Table, seen: set[str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(n,) bool, the chunks of documents that were seen before, and a reject for each such document."""
    first, again, rejects = table["index"].to_numpy() == 0, [], []
    for name, where in zip(_ids(table), table["where"].drop_null().to_pylist(), strict=True):
        again.append(name in seen)
        seen.add(name)
        if again[-1]:
            rejects.append({"id": name, "reason": "repeated_id", "detail": where})
    return np.asarray(again, bool)[np.cumsum(first) - 1], rejects
