"""Data sets of the hub as files to be read where they lie: which files a split is, pinned to one revision.

`datasets` says which files make a subset and a split. Parquet and lines are read by ranges of bytes, by
`quire.readers`, so that neither memory nor disk ever holds the set; files that are read from their beginning for every
piece (compressed, CSV, Arrow) are fetched once, to where the step keeps its scratch, and all others of the set with
them.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import httpx2
import huggingface_hub
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pyarrow import fs

from quire import many, readers
from quire.errors import UserError
from quire.storage import Storage

_SCHEME = "hf://"


class HubFiles(Storage):
    """The files of one revision of a data set, to be read only. Cheap to pickle, as every storage."""

    fetch_first = True

    def __init__(self, dataset: str, revision: str):
        self.root, self.is_local = f"{_SCHEME}datasets/{dataset}@{revision}", False

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), self.root.removeprefix(_SCHEME)

    def uri(self, relative: str = "") -> str:
        """As the library writes it."""
        return f"{_SCHEME}{self.path(relative)}"

    def sha256(self, relative: str) -> str:
        """The hub's own hash of a file, which needs no byte of it: of a large one SHA-256, of others git's."""
        info = HfFileSystem().info(self.path(relative))
        return info["lfs"]["sha256"] if info.get("lfs") else info["blob_id"]

    def _writing(self, relative: str) -> None:
        raise UserError(f"{self.uri(relative)}: data sets of the hub are read here, not written")

    def delete(self, relative: str) -> None:
        """Never."""
        self._writing(relative)


class Found(NamedTuple):
    """The files of a split, in the order of `datasets`, and the revision they are of, None in a local folder."""

    storage: Storage
    files: list[str]
    revision: str | None


# What `datasets` and `huggingface_hub` raise for names, subsets, revisions, networks and being offline.
_TROUBLES = (HfHubHTTPError, HFValidationError, httpx2.TransportError, OSError, ValueError)


def pinned(dataset: str, revision: str | None) -> str | None:
    """The commit that a revision (default: the newest) of a data set is now; None of a folder of this machine.

    Raises UserError for what is not there or cannot be reached.
    """
    if Path(dataset).is_dir():
        return None
    try:
        return huggingface_hub.HfApi().dataset_info(dataset, revision=revision).sha
    except _TROUBLES as error:
        raise _not_had(f"source.dataset = {dataset!r}", error) from error


def _not_had(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: cannot be had ({_reason(error)}); name a data set of the hub or a folder of one")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def find(dataset: str, subset: str | None, split: str, revision: str | None) -> Found:
    """The files of a split by the name of a data set, or by a folder of this machine that `datasets` would read.

    Raises UserError for what is not there, cannot be reached, or has files in formats that are not read here.
    """
    import datasets

    where = f"source.dataset = {dataset!r}" + (f", source.subset = {subset!r}" if subset else "")
    commit = pinned(dataset, revision)
    try:
        builder = datasets.load_dataset_builder(dataset, subset, revision=commit)
        by_split = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    except _TROUBLES as error:
        raise _not_had(where, error) from error
    if split not in by_split:
        raise UserError(f"source.split = {split!r}: {dataset} has {', '.join(by_split) or 'no files'}")
    storage = HubFiles(dataset, commit) if commit else Storage(dataset)
    start = storage.uri().rstrip("/") + "/"
    foreign = [file for file in by_split[split] if not file.startswith(start)]
    other = [file for file in by_split[split] if not file.endswith(readers.FORMATS)]
    if foreign or other:
        what = f"file {(foreign or other)[0]!r}, which is " + ("elsewhere" if foreign else "in a format not read here")
        raise UserError(f"{where}: {what}; read here are {', '.join(readers.FORMATS)} files of the data set itself")
    return Found(storage, [file.removeprefix(start) for file in by_split[split]], commit)


def must_fetch(found: Found) -> bool:
    """Whether the files are elsewhere, and some of them read from their beginning for every piece."""
    return found.storage.fetch_first and any(map(readers.is_read_through, found.files))


def fetched(found: Found, scratch: Storage, before: Callable[[], None] = lambda: None) -> Storage:
    """`scratch`'s folder of the revision, once the files that are not there whole are fetched to it.

    `before` is called if there are any. Raises UserError for a file that cannot be had or arrives with another length.
    """
    near, far = scratch.below(found.revision), found.storage
    try:
        # On S3 a process that is killed while it writes may leave half a file.
        missing = [file for file in found.files if not near.exists(file) or near.size(file) != far.size(file)]
        if missing:
            before()
        many.each(lambda file: near.copy(file, far), missing, "files fetched")
        cut_off = [file for file in missing if near.size(file) != far.size(file)]
    except UserError:
        raise
    except _TROUBLES as error:
        raise UserError(
            f"{far.uri()}: a file cannot be fetched ({_reason(error)}); run the step again, which goes on from the "
            "files that are there"
        ) from error
    for file in cut_off:
        near.delete(file)
    if cut_off:
        raise UserError(f"{far.uri(cut_off[0])}: arrived with another length; run the step again")
    return near
