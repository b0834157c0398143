"""Which artefacts below a root would be deleted, how large they are, and their deletion: nothing outside is touched.

Only `<root>/<kind>/<name>` with a manifest or a draft that a step wrote is an artefact; whatever else lies there
(caches, links to elsewhere) is left and said to be left. Links are never followed. Fetched books, which no other step
can make again, go only with an artefact that is named.
"""

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from quire.artifact import DRAFT, KINDS, MANIFEST, WORK
from quire.errors import UserError
from quire.settled import RAW
from quire.storage import Storage

# Of a harvest: bytes kept for a later one, or while it is unfinished; and the metadata, beside which the documents may
# be all that is left of the books.
_FETCHED = (f"{RAW}/", f"{WORK}/{RAW}/", "metadata-")


class Found(NamedTuple):
    """A folder or file below the root. `left`: why it stays, "" for an artefact that may go."""

    path: str  # relative to the root
    num_files: int
    num_bytes: int
    left: str = ""


def find(storage: Storage, kinds: Collection[str], names: Collection[str] = ()) -> list[Found]:
    """What lies below the root, by path: the artefacts of `kinds` (and of `names`, if there are any) that may go, and
    what is left. One that holds fetched books goes only by name. Raises UserError for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"kinds: {kind!r} is none of {', '.join(KINDS)}")
    entries = _local(storage) if storage.is_local else _remote(storage)
    return sorted(_judged(storage, path, files, kinds, names) for path, files in entries)


def delete(storage: Storage, found: Iterable[Found]) -> None:
    """Delete the artefacts among them. Killed half-way, what is left of one is a draft, never half an artefact.

    Raises UserError that names what may not be deleted."""
    for path in (entry.path for entry in found if not entry.left):
        try:
            _delete_local(Path(storage.path(path))) if storage.is_local else _delete_remote(storage, path)
        except OSError as error:
            raise UserError(
                f"{storage.uri(path)} cannot be deleted ({error}); what stood before it in the list is gone. See to "
                "whom it belongs, and repeat the line: it goes on with what is left"
            ) from error


_Files = dict[str, int] | str  # relative path -> bytes; or why it cannot be looked into


def _judged(storage: Storage, path: str, files: _Files, kinds: Collection[str], names: Collection[str]) -> Found:
    kind, _, name = path.partition("/")
    if isinstance(files, str):
        return Found(path, 0, 0, files)
    left = ""
    if kind not in KINDS or not any(_is_ours(storage, f"{path}/{file}") for file in (MANIFEST, DRAFT) if file in files):
        left = "no artefact"
    elif kind not in kinds:
        left = f"kind {kind} is kept"
    elif names and name not in names:
        left = "not among names"
    elif name not in names and any(file.startswith(_FETCHED) for file in files):
        left = "fetched books are kept: name it in names= to delete them"
    return Found(path, len(files), sum(files.values()), left)


def _is_ours(storage: Storage, file: str) -> bool:
    """Whether a step wrote this manifest or draft: other programs have files of that name, too."""
    try:
        found = storage.read_json(file)
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and "fingerprint" in found


def _local(storage: Storage) -> list[tuple[str, _Files]]:
    root = Path(storage.root)
    found: list[tuple[str, _Files]] = []
    for entry in sorted(root.iterdir()) if root.is_dir() else ():
        if entry.name not in KINDS or entry.is_symlink() or not entry.is_dir():
            found.append((entry.name, _files(entry)))
        else:
            found += [(f"{entry.name}/{inner.name}", _files(inner)) for inner in sorted(entry.iterdir())]
    return found


def _files(path: Path) -> _Files:
    if path.is_symlink():
        return "a link, which is not followed"
    if not path.is_dir():
        return {"": path.lstat().st_size}
    return {
        str((Path(folder) / name).relative_to(path)): (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(path, followlinks=False)
        for name in names
    }


def _remote(storage: Storage) -> list[tuple[str, _Files]]:
    found: dict[str, dict[str, int]] = {}
    for file in storage.files():
        parts = file.split("/")
        depth = 2 if parts[0] in KINDS and len(parts) > 2 else 1
        found.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = storage.size(file)
    return list(found.items())


def _delete_local(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        os.replace(folder / MANIFEST, folder / DRAFT)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)  # does not follow links
        elif entry.name != DRAFT:
            entry.unlink()
    shutil.rmtree(folder)


def _delete_remote(storage: Storage, folder: str) -> None:
    if storage.exists(f"{folder}/{MANIFEST}"):
        storage.write_bytes(f"{folder}/{DRAFT}", storage.read_bytes(f"{folder}/{MANIFEST}"))
        storage.delete(f"{folder}/{MANIFEST}")
    for file in storage.files(folder):
        if file != DRAFT:
            storage.delete(f"{folder}/{file}")
    storage.delete(folder)
