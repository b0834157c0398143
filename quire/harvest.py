"""Books by their ids: where each may lie, whether what came is it, and one record of each as soon as it is settled.

A record is written after the bytes it speaks of, both atomically; what has a record is never asked for again. So a
harvest that is killed at any moment goes on with the ids that have none.
"""

import asyncio
import functools
import hashlib
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from quire import decode, fetch, gutenberg
from quire.errors import UserError
from quire.fetch import ABSENT, Client, Known, NotFetched
from quire.storage import Storage

BASE_URL = "https://www.gutenberg.org/cache/epub"
# In the order in which they are asked for.
_NAMES = ("pg{id}.txt", "pg{id}-0.txt", "pg{id}.txt.utf-8", "pg{id}-utf8.txt", "pg{id}-8.txt")
_UTF8_NAMES = ("pg{id}-0.txt", "pg{id}.txt.utf-8", "pg{id}-utf8.txt", "pg{id}.txt", "pg{id}-8.txt")
# files/1342/1342-0.txt, ebooks/84.txt.utf-8; of mirrors 1/3/4/1342/1342-0.txt and cache/generated/1342/pg1342.txt.
_ID_IN_URL = re.compile(
    r"/(?:cache/epub|files|ebooks)/(\d{1,9})(?=[/.]|$)|/\d/(\d{1,9})/\2[.-][^/]*$|/(\d{1,9})/pg\3[.-][^/]*$"
)
_HTML_BYTES = 20_000  # within which a page shows that it is one
# Behind any comments and declarations, of which none is looked at twice.
_HTML = re.compile(
    rb"(?:\s|<!--(?>.*?-->)|<\?(?>.*?>))*+<(?:!doctype\s+html|(?:html|head|title|body)[\s>])", re.I | re.S
)
# Of an answer that is no book whatever its bytes are: a host's message to programs, a picture.
_OTHER_KIND = re.compile(r"\s*(?:image|audio|video)/|[^;]*[/+](?:json|xml)\s*(?:;|$)", re.I)
_NUM_READERS = 16  # threads
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Wanted:
    """A book by its key, `pg1342`, and the addresses where it may lie, best first."""

    key: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What became of a book that was asked for. `reason` and `detail` are "" for what is done."""

    key: str
    status: Literal["done", "missing", "failed"]
    reason: str = ""
    detail: str = ""
    url: str | None = None  # where it was found, after redirects
    asked: str | None = None
    fetched: str | None = None  # UTC, ISO 8601: the one thing that differs when the same bytes are fetched again
    sha256: str | None = None
    num_bytes: int | None = None
    etag: str | None = None
    last_modified: str | None = None


def urls_of(number: int, base_urls: Sequence[str], *, utf8_first: bool = False) -> tuple[str, ...]:
    """The addresses of a book under the Project's layout, every mirror's before the next name."""
    names = _UTF8_NAMES if utf8_first else _NAMES
    return tuple(f"{base.rstrip('/')}/{number}/{name.format(id=number)}" for name in names for base in base_urls)


def read_urls(text: str, where: str) -> list[Wanted]:
    """A list of addresses, one a line; blank lines and lines with # are none. Those of one id are one book's.

    An address without a Gutenberg id has a key of its own hash. Raises UserError that names the line.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        url = line.strip()
        if not url or url.startswith("#"):
            continue
        if trouble := fetch.misread(url):
            raise UserError(f"{where}, line {number}: {url[:200]!r} {trouble}; mend or leave out the line")
        match = _ID_IN_URL.search(urllib.parse.urlsplit(url).path)
        key = f"pg{int(match[match.lastindex])}" if match else f"url-{hashlib.sha256(url.encode()).hexdigest()[:10]}"
        if url not in found.setdefault(key, []):
            found[key].append(url)
    return [Wanted(key, tuple(urls)) for key, urls in found.items()]


def refuse_html(body: bytes, kind: str, whole: bool = True) -> None:
    """Raises NotFetched for a page, such as hosts send in place of what was asked for. A `fetch.Check`."""
    if "html" in kind.lower() or _HTML.match(body[:_HTML_BYTES].removeprefix(_BOM)):
        raise NotFetched("html", f"a page in place of a text: {body[:80]!r}")


def check_book(body: bytes, kind: str, whole: bool = True, *, may_lack_end: bool = False) -> None:
    """Raises NotFetched for a body that is no text, or a book that lacks its end.

    `kind`: the Content-Type. `whole`: whether the answer proved its end; else the END line must."""
    refuse_html(body, kind)
    if _OTHER_KIND.match(kind):
        raise NotFetched("no_text", f"the host says that it is {kind[:80]!r}: {body[:80]!r}")
    try:
        text = decode.decode(body).text
    except decode.Unreadable as error:
        raise NotFetched(error.reason, error.detail) from error
    if may_lack_end or gutenberg.has_end(text):
        return
    if not whole:
        detail = f"neither a Content-Length nor an END line proves that {len(body)} bytes are the whole book"
        raise NotFetched("truncated", detail, again=True)
    if gutenberg.has_start(text):
        raise NotFetched("truncated", f"a START line and no END line in {len(body)} bytes", again=True)


@dataclass(frozen=True)
class Shelf:
    """Where records and bytes of a harvest lie. No name but a key's ever becomes part of a path."""

    storage: Storage
    records: str  # folders
    bodies: str

    def record_name(self, key: str) -> str:
        return f"{self.records}/{key}.json"

    def body_name(self, key: str) -> str:
        return f"{self.bodies}/{key}.txt"

    def settled(self) -> set[str]:
        """Keys of all that have a record."""
        return {name.removesuffix(".json") for name in self.storage.files(self.records)}

    def record(self, key: str) -> Record:
        return Record(**self.storage.read_json(self.record_name(key)))

    def body(self, record: Record) -> bytes:
        """Raises UserError when the bytes are no longer those of the record."""
        data = self.storage.read_bytes(self.body_name(record.key))
        if hashlib.sha256(data).hexdigest() != record.sha256:
            where = self.storage.uri(self.body_name(record.key))
            raise UserError(f"{where} has changed since it was fetched; delete its record {record.key}.json and it")
        return data

    def every_record(self) -> list[Record]:
        """By key."""
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            return list(pool.map(self.record, sorted(self.settled())))

    def failed(self) -> list[Record]:
        """The records of what failed, by key."""
        return [record for record in self.every_record() if record.status == "failed"]

    def take_over(self, previous: "Shelf", records: Iterable[Record]) -> None:
        """Settle their books as they are on another shelf. Raises UserError when bytes there have changed."""

        def take(record: Record) -> None:
            if record.status == "done":
                self.storage.write_bytes(self.body_name(record.key), previous.body(record))
            self.storage.write_json(self.record_name(record.key), asdict(record))

        with ThreadPoolExecutor(_NUM_READERS) as pool:
            list(pool.map(take, records))

    def forget(self, records: Iterable[Record]) -> None:
        """Remove them, so that their books are asked for again."""
        for record in records:
            self.storage.delete(self.record_name(record.key))


class Harvest:
    """Settles one book after another, or many at a time."""

    def __init__(
        self,
        client: Client,
        shelf: Shelf,
        *,
        previous: Shelf | None = None,
        known: Mapping[str, Record] | None = None,
        may_lack_end: Iterable[str] = (),
    ):
        """`known`: records of an earlier harvest, whose bytes lie on `previous`: only what changed since is sent."""
        self.client, self.shelf, self.previous, self.known = client, shelf, previous, known or {}
        self.may_lack_end = frozenset(may_lack_end)

    async def settle(self, wanted: Wanted) -> Record:
        """Bring one book to its record. Nothing is asked for when there is one."""
        name = self.shelf.record_name(wanted.key)
        if await asyncio.to_thread(self.shelf.storage.exists, name):
            return await asyncio.to_thread(self.shelf.record, wanted.key)
        try:
            record, body = await self._fetched(wanted)
            await asyncio.to_thread(self.shelf.storage.write_bytes, self.shelf.body_name(wanted.key), body)
        except NotFetched as trouble:
            status = "missing" if trouble.reason == ABSENT else "failed"
            record = Record(wanted.key, status, trouble.reason, trouble.detail[:1_000])
        await asyncio.to_thread(self.shelf.storage.write_json, name, asdict(record))
        return record

    async def _fetched(self, wanted: Wanted) -> tuple[Record, bytes]:
        old, old_body = await asyncio.to_thread(self._previous, wanted)
        urls, known = wanted.urls, {}
        if old:
            urls = (old.asked, *(url for url in urls if url != old.asked))
            known = {old.asked: Known(old.etag, old.last_modified)}
        may_lack_end = wanted.key in self.may_lack_end
        found = await self.client.first(urls, functools.partial(check_book, may_lack_end=may_lack_end), known)
        body = old_body if found.unchanged else found.body
        record = Record(
            key=wanted.key,
            status="done",
            url=old.url if found.unchanged else found.url,
            asked=found.asked,
            fetched=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256=hashlib.sha256(body).hexdigest(),
            num_bytes=len(body),
            etag=found.etag,
            last_modified=found.last_modified,
        )
        return record, body

    def _previous(self, wanted: Wanted) -> tuple[Record | None, bytes]:
        """The earlier record and its bytes, where a server can be asked whether they still hold."""
        old = self.known.get(wanted.key)
        if not old or old.asked not in wanted.urls or not (old.etag or old.last_modified):
            return None, b""
        return old, self.previous.body(old)


class Patience:
    """Ends a harvest whose hosts answer with troubles alone, before they are asked thousands of times for nothing.

    A host that blocks shows it in many ways: a captcha with status 200, 403, 5xx, silence. So every failure counts.
    """

    def __init__(self, most: int):
        self.most, self.reasons = most, []

    def told(self, record: Record) -> None:
        """Raises UserError once `most` books in a row failed. What is done or missing shows a host that answers."""
        self.reasons = [*self.reasons, record.reason] if record.status == "failed" else []
        if len(self.reasons) >= self.most:
            counts = ", ".join(f"{reason} {count}" for reason, count in Counter(self.reasons).most_common())
            raise UserError(
                f"the last {self.most} books failed ({counts}), of the last: {record.detail}\n"
                "See in a browser what the host says, whether the network and runtime.base_urls are right, wait if it "
                "blocks or is busy, lower runtime.rate, and run the same line with runtime.retry_failed=true: what is "
                "fetched stays. Without retry_failed the next books are asked for; runtime.patience sets how many may "
                "fail in a row"
            )


def hosts_of(urls: Iterable[str]) -> set[str]:
    """`host` or `host:port` of each address."""
    return {fetch.netloc(url) for url in urls}
