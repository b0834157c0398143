"""A polite HTTP client: paced, bounded in time, size and redirects, and patient where the host asks for patience.

Every answer is either the whole body as the server holds it, or a reason. Nothing here knows about books but through
the `check` that its caller gives.
"""

import asyncio
import email.utils
import random
import ssl
import time
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import Protocol, Self

import httpx2 as httpx
from pydantic import Field

from quire.config import Config
from quire.errors import UserError
from quire.pace import Turn

_RETRIED = {408: "timeout", 425: "server_error", 429: "throttled", 503: "throttled"}
_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK = 2**16  # bytes
ABSENT = "absent"
# About the host, not about one of its files: asking for the next file at once would only add to its troubles.
OF_HOST = ("throttled", "unreachable", "refused_by_host")
# Of a body, its Content-Type and whether its end is proven; raises NotFetched for what is not as it should be.
Check = Callable[[bytes, str, bool], None]


class Limits(Config):
    """What one request may cost, and how often it is made. Seconds, unless a name says otherwise."""

    connect: float = Field(default=10, gt=0)
    read: float = Field(default=30, gt=0, description="without a single byte")
    total: float = Field(default=90, gt=0, description="for one request with its body")
    max_redirects: int = Field(default=3, ge=0)
    attempts: int = Field(default=4, gt=0, description="requests for one URL; what is not there is asked for once")
    first_wait: float = Field(default=0.5, ge=0, description="before the second attempt; doubles from then on")
    max_wait: float = Field(default=300, gt=0, description="a host that asks for a longer pause ends the run")


class Pacer(Protocol):
    """`quire.pace.Pace`, or what stands in for one elsewhere."""

    async def turn(self, slot: float | None = None) -> Turn: ...

    async def hold(self, seconds: float) -> None: ...


class NotFetched(Exception):
    """Why there is no body. `reason` is a word to count by, `detail` a sentence to read, `again` whether to retry."""

    def __init__(self, reason: str, detail: str, *, again: bool = False, wait: float | None = None):
        super().__init__(reason, detail)
        self.reason, self.detail, self.again, self.wait = reason, detail, again, wait


@dataclass(frozen=True)
class Fetched:
    """A body, byte for byte as the server holds it; `unchanged` when the server said that the known one still holds."""

    url: str  # where it was found, after redirects
    asked: str  # what was asked for
    body: bytes
    etag: str | None = None
    last_modified: str | None = None
    unchanged: bool = False
    kind: str = ""  # Content-Type
    whole: bool = True  # else the connection closed, and nothing proves that it closed at the end


@dataclass(frozen=True)
class Known:
    """What an earlier answer said, to ask whether it has changed."""

    etag: str | None
    last_modified: str | None

    def headers(self) -> dict[str, str]:
        """Of a conditional request (RFC 9110, section 13.1); without what is no header, whoever sent it."""
        given = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in given.items() if value and value.isascii()}


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, in either of its forms (RFC 9110, 10.2.3); None when it says nothing.

    `now`: seconds since the epoch.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)  # asctime's form has no zone


class Client:
    """Fetches bodies. Use it as an asynchronous context manager; `sleep`, `draw` and `now` are there for tests."""

    def __init__(
        self,
        pacer: Pacer,
        limits: Limits,
        *,
        agent: str,
        hosts: Iterable[str],
        max_bytes: int,
        max_open: int = 1,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ):
        """`agent`: the User-Agent, with a contact. `hosts`: `host` or `host:port` that a redirect may lead to.
        `max_open`: connections, and so requests, at once; a request waits for one before its time begins."""
        self.pacer, self.limits, self.hosts, self.max_bytes = pacer, limits, frozenset(hosts), max_bytes
        self.sleep, self.draw, self.now = sleep, draw, now
        self._gate = asyncio.Semaphore(max_open)
        self._client = httpx.AsyncClient(
            headers={"User-Agent": agent, "Accept-Encoding": "gzip", "Accept": "*/*"},
            timeout=httpx.Timeout(limits.read, connect=limits.connect, pool=None),
            limits=httpx.Limits(max_connections=max_open),
            follow_redirects=False,
            verify=_certificates(),
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self._client.__aexit__(*problem)

    async def first(
        self,
        urls: Sequence[str],
        check: Check,
        known: Mapping[str, Known] | None = None,
    ) -> Fetched:
        """The first of several addresses of one thing that has it.

        `check(body, content type, whole)` raises NotFetched for a body that is not what it should be; `whole`: its
        length, its last chunk or the end of its gzip proves that nothing is missing. Raises NotFetched: `absent` when
        every address answered 404 or 410, else the first trouble. A host in trouble is asked for no other address.
        """
        troubles: list[NotFetched] = []
        troubled: set[str] = set()
        for url in urls:
            if netloc(url) in troubled:
                continue
            try:
                return await self.get(url, check, (known or {}).get(url))
            except NotFetched as trouble:
                if trouble.reason != ABSENT:
                    troubles.append(trouble)
                if trouble.reason in OF_HOST:
                    troubled.add(netloc(url))
        raise troubles[0] if troubles else NotFetched(ABSENT, f"none of {len(urls)} addresses, first {urls[0]}")

    async def get(self, url: str, check: Check, known: Known | None = None) -> Fetched:
        """One address, retried as far as that makes sense. Raises NotFetched, and UserError when a host asks for a
        pause longer than `max_wait`."""
        for attempt in range(1, self.limits.attempts + 1):
            try:
                fetched = await self._follow(url, known)
                if not fetched.unchanged:
                    # Decoding and scanning a long book would keep every other request waiting.
                    await asyncio.to_thread(_checked, check, fetched)
                return fetched
            except NotFetched as trouble:
                if not trouble.again:
                    raise
                wait = await self._pause(trouble, attempt)
                if attempt == self.limits.attempts:
                    raise
                await self.sleep(wait)
        raise AssertionError("attempts is at least 1")

    async def _pause(self, trouble: NotFetched, attempt: int) -> float:
        """Seconds to wait before another attempt: exponential, with jitter so that many workers do not come back as
        one, and never less than is asked for. Within them nobody asks a busy host for anything, though this was the
        last attempt."""
        asked, most = trouble.wait or 0.0, self.limits.max_wait
        if asked > most:
            raise UserError(
                f"{trouble.detail}: the host asks to be left alone for {asked:,.0f} s, longer than "
                f"max_wait = {most:g}: run the same line again after that, what is fetched stays"
            )
        wait = max(min(self.limits.first_wait * 2 ** (attempt - 1) * (1 + self.draw()), most), asked)
        if trouble.reason == "throttled":
            await self.pacer.hold(wait)  # the host means everybody
        return wait

    async def _follow(self, url: str, known: Known | None) -> Fetched:
        """Through redirects to a body."""
        seen = [url]
        allowed = self.hosts | {netloc(url)}
        while True:
            async with self._gate:
                answer = await self._in_turn(seen[-1], url, known)
            if not isinstance(answer, str):
                return answer
            if answer in seen:
                raise NotFetched("redirect_loop", f"{seen[-1]} leads back to {answer}")
            if netloc(answer) not in allowed or not answer.startswith(("https:", _scheme(url))):
                raise NotFetched("foreign_host", f"{seen[-1]} leads to {answer[:200]}, which is not allowed")
            seen.append(answer)
            if len(seen) - 1 > self.limits.max_redirects:
                raise NotFetched("redirect_loop", f"{url}: more than {self.limits.max_redirects} redirects")

    async def _in_turn(self, url: str, asked: str, known: Known | None) -> Fetched | str:
        """One request when its turn comes, and in time."""
        turn = await self.pacer.turn()
        while turn.wait:
            await self.sleep(turn.wait)
            turn = await self.pacer.turn(turn.slot)
        try:
            async with asyncio.timeout(self.limits.total):
                return await self._request(url, asked, known)
        except TimeoutError as error:
            raise NotFetched("too_slow", f"{url}: no end in {self.limits.total} s", again=True) from error

    async def _request(self, url: str, asked: str, known: Known | None) -> Fetched | str:
        """One request: a body, or where to look instead."""
        in_body = False
        try:
            async with self._client.stream("GET", url, headers=known.headers() if known else {}) as response:
                headers = response.headers
                if response.status_code in _REDIRECTS and "location" in headers:
                    return _joined(url, headers["location"])
                if response.status_code == 304 and known:
                    return Fetched(url, asked, b"", known.etag, known.last_modified, unchanged=True)
                self._refuse_status(response, url)
                in_body = True
                body = await self._body(response, url)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotFetched("unreachable", f"{url}: {_told(error)}", again=True) from error
        except httpx.TimeoutException as error:
            raise NotFetched("timeout", f"{url}: {_told(error)}", again=True) from error
        except httpx.TransportError as error:  # also a body that ends before its Content-Length or its last chunk
            reason = "truncated" if in_body and isinstance(error, httpx.RemoteProtocolError) else "reset"
            raise NotFetched(reason, f"{url}: {_told(error)}", again=True) from error
        about = {"kind": headers.get("content-type", ""), "whole": _proves_end(headers)}
        return Fetched(url, asked, body, headers.get("etag"), headers.get("last-modified"), **about)

    def _refuse_status(self, response: httpx.Response, url: str) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in (404, 410):
            raise NotFetched(ABSENT, f"{url}: {status}")
        if status in _RETRIED or status >= 500:
            wait = retry_after(response.headers.get("retry-after"), self.now())
            raise NotFetched(_RETRIED.get(status, "server_error"), f"{url}: {status}", again=True, wait=wait)
        raise NotFetched("refused_by_host", f"{url}: {status}")

    async def _body(self, response: httpx.Response, url: str) -> bytes:
        """The whole body, decompressed here: httpx takes a gzip stream without its end for a whole one."""
        coding = response.headers.get("content-encoding", "").strip().lower() or "identity"
        if coding not in ("identity", "gzip", "x-gzip"):
            raise NotFetched("bad_coding", f"{url}: Content-Encoding {coding!r} was not asked for")
        unpack = None if coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 16)
        body = bytearray()
        async for block in response.aiter_raw(_BLOCK):
            if unpack is None:
                body += block
            else:
                body += _unpacked(unpack, block, self.max_bytes + 1 - len(body), url)
            if len(body) > self.max_bytes:
                raise NotFetched("too_large", f"{url}: more than {self.max_bytes} bytes")
        if unpack is not None and (not unpack.eof or unpack.unused_data):
            raise NotFetched("truncated", f"{url}: no gzip stream with an end, {len(body)} bytes", again=True)
        return bytes(body)


def _unpacked(unpack: "zlib._Decompress", block: bytes, room: int, url: str) -> bytes:
    """At most `room` bytes: a small answer may unpack to anything."""
    try:
        return unpack.decompress(unpack.unconsumed_tail + block, max(room, 1))
    except zlib.error as error:
        raise NotFetched("truncated", f"{url}: damaged gzip: {error}", again=True) from error


@lru_cache
def _certificates() -> ssl.SSLContext:
    """Reading them takes longer than most requests."""
    return httpx.create_ssl_context()


def _proves_end(headers: httpx.Headers) -> bool:
    """Whether a body that came without an error is whole (RFC 9112, section 8): gzip has an end of its own."""
    framed = "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()
    return framed or "gzip" in headers.get("content-encoding", "").lower()


def _checked(check: Check, fetched: Fetched) -> None:
    try:
        check(fetched.body, fetched.kind, fetched.whole)
    except NotFetched as trouble:
        raise NotFetched(trouble.reason, f"{fetched.url}: {trouble.detail}", again=trouble.again) from trouble


def netloc(url: str) -> str:
    """`host`, or `host:port` where the port is not the scheme's own."""
    return httpx.URL(url).netloc.decode("ascii")


def misread(url: str) -> str:
    """Why an address cannot be asked for, as the end of a sentence; "" when it can."""
    try:
        urllib.parse.urlsplit(url)  # it refuses other addresses than httpx does
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        return f"is no address ({error})"
    return "" if parts.scheme in ("http", "https") and parts.host else "is no http:// or https:// address"


def _scheme(url: str) -> str:
    return f"{httpx.URL(url).scheme}:"


def _joined(url: str, location: str) -> str:
    try:
        return str(httpx.URL(url).join(location).copy_with(fragment=None))
    except (httpx.InvalidURL, ValueError) as error:
        raise NotFetched("bad_redirect", f"{url}: to {location[:200]!r}: {error}") from error


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
