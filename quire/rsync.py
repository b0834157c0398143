"""A local copy of a remote tree of books by rsync: a job for each top-level folder, from the first host that serves it.

rsync compares before it sends, so a second run sends only what changed, and one that was killed goes on (`--partial`).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from quire.errors import UserError

_ADDRESS = re.compile(r"rsync://[A-Za-z0-9][A-Za-z0-9.-]*(:\d+)?/([A-Za-z0-9._-]+/)+")
UTF8 = ("*-0.txt", "*.txt.utf-8", "*-utf8.txt")
TEXTS = ("*.txt", "*.txt.utf-8")
_TEMPORARY = ".*.??????"  # as rsync names a file until all of it is there
_VANISHED = 24  # files that went while they were listed (rsync(1), exit values): the next run sees to them
_TRANSFERRED = re.compile(r"^Number of regular files transferred: ([\d,]+)", re.M)
_SENT = re.compile(r"^Total transferred file size: ([\d,]+)", re.M)
_DELETED = re.compile(r"^Number of deleted files: ([\d,]+)", re.M)
_LISTED_FOLDER = re.compile(r"^d\S+ +[\d,]+ \S+ \S+ (.+)$", re.M)


@dataclass(frozen=True)
class Rules:
    """What is copied. Seconds."""

    wanted: Sequence[str]  # patterns of file names
    excluded: Sequence[str] = ("old/",)  # what was superseded, wherever it lies
    io_timeout: int = 60
    connect_timeout: int = 60


@dataclass(frozen=True)
class Copied:
    """What a job did; `error` says why it did not end well, of each host that was asked."""

    folder: str
    files: int = 0
    size: int = 0  # bytes
    deleted: int = 0
    error: str = ""


def is_address(remote: str) -> bool:
    """Whether it is the address of a folder of an rsync server, and nothing that rsync would take for an option."""
    return _ADDRESS.fullmatch(remote) is not None


def folders(remotes: Sequence[str], rules: Rules) -> list[str]:
    """The top-level folders of books, 0 to 9, of the first host that lists them. Raises UserError when none does."""
    troubles = []
    for remote in remotes:
        done = _run(["--list-only", *_timeouts(rules), remote])
        found = [name for name in _LISTED_FOLDER.findall(done.stdout) if len(name) == 1 and name.isdigit()]
        if done.returncode == 0 and found:
            return sorted(found)
        troubles.append(f"{remote}: {_last_line(done) or 'no folder 0 to 9'}")
    raise UserError("remotes: none of them lists books:\n  " + "\n  ".join(troubles))


def copy(folder: str, remotes: Sequence[str], target: str, rules: Rules) -> Copied:
    """One top-level folder into `target`/folder, which then holds what the host does and nothing else."""
    troubles = []
    for remote in remotes:
        done = _run([*_options(rules), f"{remote}{folder}/", os.path.join(target, folder, "")])
        if done.returncode in (0, _VANISHED):
            files, size, deleted = (_number(pattern, done.stdout) for pattern in (_TRANSFERRED, _SENT, _DELETED))
            return Copied(folder, files, size, deleted)
        troubles.append(f"{remote}: {_last_line(done)}")
    return Copied(folder, error="; ".join(troubles))


def _options(rules: Rules) -> list[str]:
    """The first rule that a name meets decides: excluded, then every folder, then the wanted files, then nothing.

    What is not wanted is not deleted here, but for what a killed rsync left behind."""
    plain = ["--archive", "--compress", "--no-perms", "--no-owner", "--no-group", "--no-links", "--partial"]
    chosen = [f"--filter=risk {_TEMPORARY}", *(f"--exclude={pattern}" for pattern in rules.excluded)]
    chosen += ["--include=*/", *(f"--include={pattern}" for pattern in rules.wanted), "--exclude=*"]
    return [*plain, "--prune-empty-dirs", "--delete-after", "--mkpath", "--stats", *_timeouts(rules), *chosen]


def _timeouts(rules: Rules) -> list[str]:
    return [f"--timeout={rules.io_timeout}", f"--contimeout={rules.connect_timeout}"]


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("rsync")
    if program is None:
        raise UserError("rsync is not installed: install the package rsync, or fetch with pipelines.gutenberg")
    environment = {**os.environ, "LC_ALL": "C"}  # its words are read
    return subprocess.run([program, *words], capture_output=True, text=True, errors="replace", env=environment)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else ""


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(found[1].replace(",", "")) if found else 0
