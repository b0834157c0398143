"""A mirror by rsync from a server on loopback: what is wanted comes, once, and what went there goes here."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import ROOT, free_ports, wait_for

from pipelines import mirror
from quire import config
from quire import mirror as books
from quire.errors import UserError

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")

WANTED = ["1/3/4/1342/1342-0.txt", "1/3/4/1342/1342.txt", "2/0/20/20-8.txt", "2/2/22/22-0.txt"]


def write(tree: Path, *files: str) -> None:
    for file in files:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(f"this is {file}", "utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "there"
    write(made, "1/3/4/1342/1342-0.txt", "1/3/4/1342/1342.txt", "1/3/4/1342/old/1342-0.txt", "1/3/4/1342/1342-h.htm")
    write(made, "2/2/22/22-0.txt", "2/0/20/20-8.txt", "cache/epub/22/pg22-0.txt")
    return made


@pytest.fixture
def remote(tree: Path, tmp_path: Path) -> Iterator[str]:
    with serving(tree, tmp_path) as address:
        yield address


@contextmanager
def serving(tree: Path, tmp_path: Path, *options: str) -> Iterator[str]:
    (port,) = free_ports(1)
    settings = tmp_path / "rsyncd.conf"
    user = f"uid = {os.getuid()}\ngid = {os.getgid()}\n"  # else a server that root starts reads as nobody
    settings.write_text(f"use chroot = no\n{user}[gutenberg]\npath = {tree}\nread only = yes\n")
    server = subprocess.Popen(
        ["rsync", "--daemon", "--no-detach", f"--port={port}", "--address=127.0.0.1", f"--config={settings}", *options]
    )
    listed = ["rsync", "--list-only", f"rsync://127.0.0.1:{port}/gutenberg/"]
    try:
        wait_for(lambda: subprocess.run(listed, capture_output=True).returncode == 0, 30, "the server")
        yield listed[-1]
    finally:
        server.terminate()
        server.wait(30)


def run(folder: Path, *changes: str) -> mirror.Mirrored:
    return mirror.run(config.load(mirror.CONFIG, None, [f"folder={folder}", *changes]))


def held(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@needs_rsync
def test_what_is_wanted_comes_once_and_what_went_there_goes_here(tree: Path, remote: str, tmp_path: Path) -> None:
    here, asked = tmp_path / "here", f'remotes=["{remote}"]'
    first = run(here, asked)
    assert held(here) == WANTED  # no `old`, no page, no cache
    assert (here / "2/2/22/22-0.txt").read_text() == "this is 2/2/22/22-0.txt"
    assert sum(copied.files for copied in first.copied) == 4
    assert sum(copied.files for copied in run(here, asked).copied) == 0
    (tree / "2/2/22/22-0.txt").unlink()
    write(tree, "2/3/23/23-0.txt")
    again = run(here, asked, "shards=1")
    assert [(copied.files, copied.deleted > 0) for copied in again.copied] == [(0, False), (1, True)]
    assert books.best_files(held(here)) == {
        20: "2/0/20/20-8.txt",
        23: "2/3/23/23-0.txt",
        1342: "1/3/4/1342/1342-0.txt",
    }


@needs_rsync
def test_a_copy_that_is_killed_midway_goes_on_and_leaves_nothing_behind(tree: Path, tmp_path: Path) -> None:
    long, here = tree / "2/2/22/22-0.txt", tmp_path / "here"
    long.write_text(random.Random(0).randbytes(250_000).hex())
    with serving(tree, tmp_path, "--bwlimit=200") as slow:  # kilobytes a second
        words = ["-m", "pipelines.mirror", f"folder={here}", f'remotes=["{slow}"]']
        first = subprocess.Popen([sys.executable, *words], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for(lambda: list(here.rglob(".22-0.txt.??????")), 60, "half a book")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(30)
        assert not (here / "2/2/22/22-0.txt").exists() and "2/0/20/20-8.txt" in held(here)
        again = run(here, f'remotes=["{slow}"]', 'only=["2"]')
    assert [copied.files for copied in again.copied] == [1]  # what was whole does not come again
    assert [name for name in held(here) if name.startswith("2/")] == WANTED[2:]
    assert (here / "2/2/22/22-0.txt").read_bytes() == long.read_bytes()


@needs_rsync
def test_files_in_utf8_alone_come_where_that_is_asked_for(remote: str, tmp_path: Path) -> None:
    run(tmp_path / "here", f'remotes=["{remote}"]', "utf8_only=true", 'only=["2"]')
    assert held(tmp_path / "here") == ["2/2/22/22-0.txt"]


@needs_rsync
def test_the_next_host_is_asked_where_one_fails(remote: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    dead = f"rsync://127.0.0.1:{port}/gutenberg/"
    made = run(tmp_path / "here", f'remotes=["{dead}", "{remote}"]')
    assert held(tmp_path / "here") == WANTED and not any(copied.error for copied in made.copied)
    with pytest.raises(UserError, match=f"none of them lists books:\n  {dead}: rsync error"):
        run(tmp_path / "nowhere", f'remotes=["{dead}"]')


@needs_rsync
def test_a_folder_that_does_not_come_is_named_and_the_others_are_kept(tree: Path, remote: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "2").write_text("a file stands in the way")
    with pytest.raises(UserError, match=r"1 of 2 folders did not come:\n  2: rsync://"):
        run(tmp_path / "here", f'remotes=["{remote}"]')
    assert "1/3/4/1342/1342-0.txt" in held(tmp_path / "here")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ('remotes=["http://a.org/b/"]', "need rsync://host/module/"),
        ('remotes=["rsync://a.org/b"]', "need rsync://host/module/"),
        ('remotes=["--rsh=sh"]', "need rsync://host/module/"),
        ("folder=s3://bucket/mirror", "need a folder of this machine"),
    ],
)
def test_an_address_that_rsync_would_misread_is_refused(tmp_path: Path, change: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        run(tmp_path / "here", change)
