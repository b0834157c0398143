"""A book's bytes to a row of the `documents` table: decoded, cleaned, judged; or the reason why there is no row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from quire import decode, dedup, english, gutenberg, gutenberg_header, schema
from quire.artifact import Shard
from quire.gutenberg_header import Header
from quire.identity import Identity


class _Unwanted(Exception):
    """A text that can be read and makes no document, and why."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Books:
    """A shard of documents in the making. Every book that is added becomes a row or a reject."""

    def __init__(self, *, only_english: bool):
        self.only_english = only_english
        self.rows: list[dict[str, Any]] = []
        self.dropped: list[dict[str, str]] = []
        self.kept: dict[str, float] = {}  # share of each text's characters that cleaning kept
        self.num_bytes = 0

    def add(self, document: str, source: str, data: bytes, identify: Callable[[Header], Identity]) -> tuple[str, str]:
        """The book of the id `document`, which `source` (a path, an address) holds as `data`.

        Returns why it became no row, as a word and a sentence; ("", "") when it did.
        """
        self.num_bytes += len(data)
        try:
            decoded = decode.decode(data)
            header = self._header(decoded.text)
            text = gutenberg.clean(decoded.text).text
            # Whatever becomes of it: a book that cleaning has emptied must stop the run, as any great loss.
            self.kept[document] = len(text) / len(decoded.text)
            self._check(text)
        except (decode.Unreadable, _Unwanted) as error:
            self.drop(document, error.reason, f"{source}: {error.detail}")
            return error.reason, error.detail
        row = {"document_id": document, **identify(header).columns(), "text": text}
        self.rows.append(row | {"source": source, "encoding": decoded.encoding, "kept": self.kept[document]})
        return "", ""

    def drop(self, document: str, reason: str, detail: str) -> None:
        """A book of which there are no bytes."""
        self.dropped.append({"id": document, "reason": reason, "detail": detail})

    def shard(self) -> Shard:
        return shard(self.rows, self.dropped, self.kept, self.num_bytes)

    def _header(self, text: str) -> Header:
        header = gutenberg_header.parse_header(text)
        if self.only_english and header.languages and "english" not in header.languages:
            raise _Unwanted("not_english", f"its header says {', '.join(header.languages)}")
        return header

    def _check(self, text: str) -> None:
        if not text.strip():
            raise _Unwanted("empty", "nothing left after cleaning")
        if self.only_english and not english.looks_english(text):
            raise _Unwanted("not_english", "few English function words")


def shard(rows: Sequence[dict], dropped: list[dict], kept: Mapping[str, float], num_bytes: int) -> Shard:
    """Rows of the `documents` table as a shard of a step; their signatures are made here, where the texts are held."""
    rows = [row | {"signature": dedup.minhash(row["text"])} for row in rows]
    columns = {name: [row[name] for row in rows] for name in schema.DOCUMENTS.names}
    return Shard(
        table=pa.table(columns, schema=schema.DOCUMENTS),
        rows_in=len(rows) + len(dropped),
        rejects=schema.rejects(dropped),
        bytes_in=num_bytes,
        facts={"kept": {document: round(share, 4) for document, share in kept.items()}},
    )


def losses(kept: Mapping[str, float], min_kept: float, allowed: Sequence[str]) -> str:
    """Which documents lost more than is allowed, and what to do; "" when none did."""
    lost = {k: v for k, v in kept.items() if v < min_kept and k not in allowed}
    if not lost:
        return ""
    worst = min(lost, key=lost.get)
    return (
        f"{len(lost)} document(s) kept less than min_kept = {min_kept} of their text, the worst {worst!r} "
        f"({lost[worst]:.0%}): look at the file; to accept it set allow_losses={sorted(lost)!r} or lower min_kept"
    )


def told(kept: Mapping[str, float], totals: Mapping[str, Any]) -> str:
    """One line on documents that were made: how many, from how much, and how much of each text was kept."""
    return (
        f"{totals['rows_out']:,} documents from {totals['cost']['bytes_in'] / 1e6:.1f} MB; "
        f"kept {sum(kept.values()) / len(kept):.1%} of the text on average, least {min(kept.values()):.1%}; "
        f"{schema.summarise(totals['dropped'])}"
    )
