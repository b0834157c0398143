"""What a host lets robots fetch: its robots.txt (RFC 9309), read once before the first book.

Python's own `urllib.robotparser` follows the draft of 1996: it takes `*` in a path for a letter, the first rule for the
decisive one, "re" for "quire", and reads nothing behind a byte order mark.
"""

import urllib.parse
from collections.abc import Iterable

from quire.errors import UserError
from quire.fetch import ABSENT, Client, NotFetched


class Rules:
    """Of one host for one robot."""

    def __init__(self, text: str, agent: str):
        """`agent`: the product's name alone. The groups that name it count together, else those of `*`."""
        groups: dict[str, list[tuple[str, bool]]] = {}
        named: list[str] = []
        naming = False
        for line in text.removeprefix("\ufeff").splitlines():
            key, colon, value = (part.strip() for part in line.partition("#")[0].partition(":"))
            key = key.lower()
            if key == "user-agent":
                named = [*(named if naming else ()), value.lower()]
                naming = True
                groups.setdefault(value.lower(), [])
            elif colon and key in ("allow", "disallow"):
                naming = False
                for name in named:
                    groups[name] += [(_plain(value), key == "allow")] if value else []
        self._rules = groups.get(agent.lower(), groups.get("*", []))

    def allow(self, url: str) -> bool:
        """Whether the address may be asked for: the longest rule that it meets decides, of equals the one that lets."""
        parts = urllib.parse.urlsplit(url)
        path = _plain(parts.path or "/") + (f"?{_plain(parts.query)}" if parts.query else "")
        met = ((len(pattern), allowed) for pattern, allowed in self._rules if _meets(path, pattern))
        return max(met, default=(0, True))[1]


def _plain(path: str) -> str:
    """Without %-escapes, so that two spellings of one path are the same."""
    return urllib.parse.unquote(path, "utf-8", "replace")


def _meets(path: str, pattern: str) -> bool:
    """Whether the path begins as the pattern says, in which `*` is anything and `$` at its end the end."""
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    last = rest.pop() if rest and pattern.endswith("$") else None
    for piece in rest:  # the first place of each leaves most room for the next
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    if last is not None:
        return path.endswith(last) and len(path) - len(last) >= at
    return not pattern.endswith("$") or at == len(path)


async def refuse_forbidden(client: Client, urls: Iterable[str], agent: str) -> None:
    """Raises UserError that names the first address which its host forbids to the robot `agent`, or a host that
    cannot be asked. A host without a robots.txt forbids nothing."""
    rules: dict[str, Rules] = {}
    for url in urls:
        where = urllib.parse.urljoin(url, "/robots.txt")
        if where not in rules:
            rules[where] = Rules(await _text(client, where), agent)
        if not rules[where].allow(url):
            raise UserError(
                f"{where} forbids robots {url}: set runtime.base_urls to a mirror that does not, or read a mirror of "
                "your own (source.kind=mirror); with the host's permission set runtime.obey_robots=false"
            )


async def _text(client: Client, where: str) -> str:
    try:
        body = (await client.get(where, lambda *_: None)).body
    except NotFetched as trouble:
        if trouble.reason in (ABSENT, "refused_by_host"):  # RFC 9309, 2.3.1.3: a 4xx forbids nothing
            return ""
        raise UserError(
            f"{where}: {trouble.reason}: {trouble.detail}\nWhat cannot be read may forbid everything. See whether the "
            "network and runtime.base_urls are right, wait if the host is busy, and run the same line again; with the "
            "host's permission set runtime.obey_robots=false"
        ) from trouble
    return body.decode("utf-8", "replace")
