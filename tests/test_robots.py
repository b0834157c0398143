"""A host's robots.txt means what RFC 9309 says, and one that cannot be read is not taken for a permission."""

import asyncio

import pytest
from gutenberg_server import Clock, Fault, Server

from quire import robots
from quire.errors import UserError
from quire.fetch import Client, Limits
from quire.pace import Pace

BOOK = "http://host/cache/epub/1/pg1.txt"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("User-agent: *\nDisallow:", True),
        ("User-agent: *\nDisallow: /", False),
        ("\ufeffuser-agent : *\r\nDISALLOW:/cache # books\r\n", False),
        ("User-agent: *\nDisallow: /Cache", True),
        ("User-agent: *\n\nCrawl-delay: 5\n\nDisallow: /cache", False),  # neither a blank line nor another rule ends it
        ("User-agent: other\nUser-agent: Quire\nDisallow: /", False),
        ("User-agent: quirebot\nDisallow: /\nUser-agent: re\nDisallow: /", True),
        ("User-agent: *\nDisallow: /\nUser-agent: quire\nDisallow: /private", True),  # its own group alone
        ("User-agent: quire\nDisallow:\nUser-agent: *\nDisallow: /", True),
        ("User-agent: quire\nAllow: /x\nUser-agent: other\nAllow: /\nUser-agent: quire\nDisallow: /cache", False),
        ("User-agent: *\nDisallow: /cache/\nAllow: /cache/epub/", True),  # the longest decides, not the first
        ("User-agent: *\nAllow: /cache/\nDisallow: /cache/epub/", False),
        ("User-agent: *\nDisallow: /cache\nAllow: /cache", True),
        ("User-agent: *\nDisallow: /*.txt$", False),
        ("User-agent: *\nDisallow: /*.tx$", True),
        ("User-agent: *\nDisallow: /cache$", True),
        ("User-agent: *\nDisallow: /cache/epub/1/pg1.txt$", False),
        ("User-agent: *\nDisallow: /*/*/*/pg", False),
        ("User-agent: *\nDisallow: */pg1*1.txt$", True),  # no letter twice
        ("User-agent: *\nDisallow: /%63ache", False),
        ("Disallow: /", True),  # for nobody
        ("<html>Sorry: nothing here</html>", True),
    ],
)
def test_a_rule_means_what_the_standard_says(text: str, allowed: bool) -> None:
    assert robots.Rules(text, "quire").allow(BOOK) is allowed


def test_queries_count_and_many_stars_cost_no_time() -> None:
    assert not robots.Rules("User-agent: *\nDisallow: /*?page=", "quire").allow("http://host/a?page=2")
    assert robots.Rules("User-agent: *\nDisallow: /*?page=", "quire").allow("http://host/a")
    assert robots.Rules(f"User-agent: *\nDisallow: {'/*a' * 2_000}b", "quire").allow(f"http://host/{'/a' * 4_000}")


@pytest.mark.parametrize("fault", [Fault("status", value="500 Broken"), Fault("redirect", value="http://localhost:9/")])
def test_what_cannot_be_read_is_no_permission(fault: Fault) -> None:
    clock = Clock()

    async def read(host: str) -> str:
        options = {"agent": "t", "hosts": [], "max_bytes": 10**6, "sleep": clock.sleep}
        async with Client(Pace(1e9, clock), Limits(attempts=2), **options) as client:
            return await robots._text(client, f"http://{host}/rules.txt")  # the tests' server keeps /robots.txt itself

    with Server({"/rules.txt": b"User-agent: *"}, {"/rules.txt": fault}) as server:
        with pytest.raises(UserError, match=r"/rules.txt: (server_error|foreign_host): .*\n.*obey_robots=false"):
            asyncio.run(read(server.host))
        server.faults["/rules.txt"] = Fault("status", value="403 Forbidden")
        assert asyncio.run(read(server.host)) == ""
        server.faults.clear()
        assert asyncio.run(read(server.host)) == "User-agent: *"
