"""An artefact to a data set of the hub: what is there already is not sent again, the manifest goes last.

The token is the library's own business (`hf auth login`, HF_TOKEN) and is never seen here.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile

from quire.artifact import MANIFEST, Artifact
from quire.errors import UserError

_COMMIT_FILES = 100  # the hub advises 50 to 100 a commit
_COMMIT_BYTES = 2**30  # of a bucket's artefact so much is on the local disk at once
_HUBS_OWN = (".gitattributes",)  # what it adds itself
_PASSING = (408, 409, 412, 425, 429)  # and all from 500 on: what another attempt may find otherwise
T = TypeVar("T")


@dataclass(frozen=True)
class Pushed:
    """What was sent, and what the hub had already."""

    address: str
    sent: list[str]
    kept: list[str]
    failures: int


@dataclass
class Patience:
    """How often a request is tried, and how long is waited in between: doubled each time, up to a bound."""

    attempts: int = 20
    first_wait: float = 5.0
    max_wait: float = 300.0
    failures: int = 0

    def of(self, what: str, request: Callable[[], T]) -> T:
        """The request's answer. Raises UserError where another attempt would not help, or none is left."""
        wait = self.first_wait
        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except (HfHubHTTPError, httpx2.TransportError) as error:
                self.failures += 1
                status = getattr(getattr(error, "response", None), "status_code", None)  # none came: the line is down
                reason = str(error).strip().partition("\n")[0]
                if status is not None and status < 500 and status not in _PASSING:
                    remedy = "log in (hf auth login) with a token that may write there" if status in (401, 403) else ""
                    raise UserError(f"{what}: {reason}{remedy and f'; {remedy}'}") from error
                if attempt == self.attempts:
                    raise UserError(
                        f"{what}: {self.attempts} attempts failed, the last with: {reason}; the same command goes on "
                        "from here"
                    ) from error
            except HFValidationError as error:
                raise UserError(f"{what}: {error}") from error
            time.sleep(wait)
            wait = min(2 * wait, self.max_wait)
        raise AssertionError("an attempt returns or raises")


def push(made: Artifact, repo: str, *, private: bool = True, patience: Patience | None = None) -> Pushed:
    """Bring an artefact's files into the data set `repo` (owner/name), which is made if it is not there.

    Files go in commits of a bounded size, the manifest in the last, so a data set with this manifest is whole.
    `private` is for a new data set; one that exists stays what it is. Raises UserError when `repo` holds files that are
    not this artefact's, and when the hub refuses or stays away.
    """
    patience, api = patience or Patience(), HfApi()
    made_repo = patience.of(
        f"data set {repo!r}", lambda: api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
    )
    repo = made_repo.repo_id
    there = patience.of(f"data set {repo!r}", lambda: _listed(api, repo))
    files = [name for name in made.manifest["files"] if name != MANIFEST]
    _check_theirs(made, repo, there, files)
    lacking = [name for name in files if not _is_there(made, name, there.get(name))]
    for batch in _batches(made, lacking):
        _send(api, made, repo, batch, patience)
    last = [] if _is_there(made, MANIFEST, there.get(MANIFEST)) else [MANIFEST]
    if last:
        _send(api, made, repo, last, patience)
    sent = lacking + last
    kept = [name for name in [*files, MANIFEST] if name not in set(sent)]
    return Pushed(str(made_repo), sent, kept, patience.failures)


def _listed(api: HfApi, repo: str) -> dict[str, RepoFile]:
    found = api.list_repo_tree(repo, recursive=True, repo_type="dataset")
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile) and entry.path not in _HUBS_OWN}


def _check_theirs(made: Artifact, repo: str, there: dict[str, RepoFile], files: Sequence[str]) -> None:
    """`load_dataset` would read the parts of another artefact along with this one's."""
    others = sorted(set(there) - {*files, MANIFEST})
    other = MANIFEST in there and not _is_there(made, MANIFEST, there[MANIFEST])
    if others or other:
        what = f"holds {others[0]!r}" if others else "holds another manifest"
        raise UserError(
            f"repo = {repo!r}: {what}, which is not {made.folder}'s: choose another name, or delete it there"
        )


def _is_there(made: Artifact, name: str, entry: RepoFile | None) -> bool:
    """Large files are known on the hub by their SHA-256, others by git's hash of their bytes."""
    if entry is None or entry.size != made.storage.size(f"{made.folder}/{name}"):
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == made.storage.sha256(f"{made.folder}/{name}")
    data = made.storage.read_bytes(f"{made.folder}/{name}")
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _batches(made: Artifact, names: Sequence[str]) -> list[list[str]]:
    batches: list[list[str]] = []
    room = 0
    for name in names:
        size = made.manifest["files"][name]["bytes"]
        if not batches or size > room or len(batches[-1]) == _COMMIT_FILES:
            batches.append([])
            room = _COMMIT_BYTES
        batches[-1].append(name)
        room -= size
    return batches


def _send(api: HfApi, made: Artifact, repo: str, names: Sequence[str], patience: Patience) -> None:
    with tempfile.TemporaryDirectory(prefix="quire-push-") as scratch:
        paths = {}
        for number, name in enumerate(names):
            paths[name] = Path(made.storage.path(f"{made.folder}/{name}"))
            if not made.storage.is_local:
                paths[name] = Path(scratch) / str(number)
                made.storage.download_file(f"{made.folder}/{name}", paths[name])

        def commit() -> None:
            adds = [CommitOperationAdd(name, str(path)) for name, path in paths.items()]
            message = f"{made.folder}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            api.create_commit(repo, adds, commit_message=message, repo_type="dataset")

        patience.of(f"data set {repo!r}, {len(names)} file(s) from {names[0]} on", commit)
