"""What a host lets robots fetch: its robots.txt (RFC 9309), read once before the first book."""

import urllib.parse
import urllib.robotparser
from collections.abc import Iterable

from quire.errors import UserError
from quire.fetch import ABSENT, Client, NotFetched


async def refuse_forbidden(client: Client, urls: Iterable[str], agent: str) -> None:
    """Raises UserError that names the first address which its host forbids to the robot `agent`, or a host that
    cannot be asked. A host without a robots.txt forbids nothing."""
    rules: dict[str, urllib.robotparser.RobotFileParser] = {}
    for url in urls:
        host = urllib.parse.urljoin(url, "/robots.txt")
        if host not in rules:
            rules[host] = await _rules(client, host)
        if not rules[host].can_fetch(agent, url):
            raise UserError(
                f"{host} forbids robots {url}: set runtime.base_urls to a mirror that does not, or read a mirror of "
                "your own (source.kind=mirror); with the host's permission set runtime.obey_robots=false"
            )


async def _rules(client: Client, where: str) -> urllib.robotparser.RobotFileParser:
    rules = urllib.robotparser.RobotFileParser()
    try:
        body = (await client.get(where, lambda *_: None)).body
    except NotFetched as trouble:
        if trouble.reason not in (ABSENT, "refused_by_host"):  # RFC 9309, 2.3.1.3: a 4xx forbids nothing
            raise UserError(f"{where}: {trouble.reason}: {trouble.detail}") from trouble
        body = b""
    rules.parse(body.decode("utf-8", "replace").splitlines())
    return rules
