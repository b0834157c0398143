"""What a host lets robots fetch: its robots.txt (RFC 9309), read once before the first book."""

import urllib.parse
from collections.abc import Iterable

from protego import Protego

from quire.errors import UserError
from quire.fetch import ABSENT, Client, NotFetched


class Rules:
    """Of one host for one robot."""

    def __init__(self, text: str, agent: str):
        """`agent`: the product's name alone. Its own group decides, else that of `*`."""
        # Not urllib.robotparser, which follows the draft of 1996: it takes `*` in a path for a letter and the first
        # rule for the decisive one.
        self._rules, self._agent = Protego.parse(text.removeprefix("\ufeff")), agent

    def allow(self, url: str) -> bool:
        """Whether the address may be asked for."""
        return self._rules.can_fetch(url, self._agent)


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
