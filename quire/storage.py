"""One class for all bytes: a local folder or `s3://bucket/prefix`, over pyarrow.fs.

Credentials, region and endpoint of S3 are read by pyarrow itself (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL ...);
region and endpoint may stand in the root: `s3://bucket/prefix?endpoint_override=localhost:9000&scheme=http`. A secret
may not: roots are printed and logged.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from quire.errors import UserError


class Storage:
    """Files under one root, addressed by relative paths with `/`. Writes are atomic: a reader sees all or nothing.

    Cheap to pickle: it carries the root alone, each process opens its own connection.
    """

    fetch_first = False  # whether files that are read from their beginning for every piece are better fetched first

    def __init__(self, root: str):
        if "://" in root and not root.startswith("s3://"):
            raise UserError(f"root {root!r}: expected a local folder or s3://bucket/prefix")
        scheme, _, address = root.rpartition("://")
        if scheme and any(sign in address.partition("/")[0] for sign in "@:"):  # a secret may itself hold a slash
            raise UserError(
                "root: an address with a key or a secret before the bucket (not repeated here): leave them out, and "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or write them to ~/.aws/credentials"
            )
        self.is_local = not root.startswith("s3://")
        # Absolute, since Ray's workers run in other working directories than the driver.
        self.root = str(Path(root).absolute()) if self.is_local else root.rstrip("/")

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "is_local": self.is_local}

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.root
        try:
            return fs.FileSystem.from_uri(self.root)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"root {self.root!r} cannot be opened: {error}") from error

    def below(self, relative: str) -> "Storage":
        """The storage whose root is a folder of this one."""
        self.path(relative)  # raises for what is not below it
        address, sign, options = (self.root, "", "") if self.is_local else self.root.partition("?")
        spelt = relative if self.is_local else quote(relative)
        return Storage(f"{address.rstrip('/')}/{spelt}{sign}{options}")

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system behind the root."""
        return self._opened[0]

    def path(self, relative: str = "") -> str:
        """`relative` as the file system spells it (a local path, or `bucket/prefix/...`). Never leaves the root."""
        if relative.startswith("/") or ".." in relative.split("/"):
            raise UserError(f"path {relative!r} leaves the root {self.root!r}")
        return f"{self._opened[1].rstrip('/')}/{relative}" if relative else self._opened[1]

    def uri(self, relative: str = "") -> str:
        """`relative` as people write it: a local path or an s3:// address (without the root's query part)."""
        return self.path(relative) if self.is_local else f"s3://{self.path(relative)}"

    def exists(self, relative: str) -> bool:
        """Whether a file (or, on a local disk, a folder) stands at `relative`."""
        return self.filesystem.get_file_info(self.path(relative)).type != fs.FileType.NotFound

    def size(self, relative: str) -> int:
        """Bytes of the file at `relative`."""
        return self.filesystem.get_file_info(self.path(relative)).size

    def modified(self, relative: str) -> datetime:
        """When the file at `relative` was last written, UTC."""
        return self.filesystem.get_file_info(self.path(relative)).mtime.astimezone(UTC)

    def files(self, relative: str = "") -> list[str]:
        """All files below `relative`, relative to it, sorted; empty when there is no such folder."""
        base = self.path(relative)
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except FileNotFoundError:  # Arrow could not list it, looked again, and by then somebody had made it
            infos = self.filesystem.get_file_info(selector)
        found = (info.path for info in infos if info.type == fs.FileType.File)
        names = (path[len(base) :].lstrip("/") for path in found)
        return sorted(name for name in names if not name.split("/")[-1].startswith(_TEMPORARY))

    def read_bytes(self, relative: str) -> bytes:
        """The whole file. Raises UserError when it is not there."""
        try:
            with self.filesystem.open_input_file(self.path(relative)) as file:
                return file.read()
        except FileNotFoundError as error:
            raise UserError(f"{self.uri(relative)} does not exist") from error

    def write_bytes(self, relative: str, data: bytes | memoryview | pa.Buffer) -> None:
        """Write the whole file at once: a rename on a local disk, a single PUT on S3."""
        with self._writing(relative) as file:
            file.write(data)

    @contextlib.contextmanager
    def _writing(self, relative: str) -> Iterator[IO[bytes]]:
        """A stream whose bytes stand at `relative` once it is closed."""
        target = self.path(relative)
        if not self.is_local:
            try:
                with self.filesystem.open_output_stream(target, compression=None) as file:
                    yield file
            except BaseException:
                self.delete(relative)  # pyarrow cannot abandon an upload: closing it has put half a file in its place
                raise
            return
        folder = os.path.dirname(target)
        _make_folder(folder)
        temporary = f"{folder}/{_TEMPORARY}{os.getpid()}-{os.path.basename(target)}"
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(folder)

    def sha256(self, relative: str) -> str:
        """Of the file's bytes, in hexadecimal; memory holds one block."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_file(self.path(relative)) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def read_json(self, relative: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.read_bytes(relative))

    def write_json(self, relative: str, value: Any) -> None:
        """Write `value` as JSON, keys sorted so that equal values give equal bytes."""
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        self.write_bytes(relative, text.encode("utf-8"))

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file, or some of its columns."""
        with self.filesystem.open_input_file(self.path(relative)) as file:
            return pq.read_table(file, columns=columns)

    def write_table(self, relative: str, table: pa.Table) -> int:
        """Write Parquet (zstd, no pandas metadata: equal tables give equal bytes). Returns the bytes written."""
        sink, table = io.BytesIO(), table.replace_schema_metadata(None)
        with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
            if table.num_rows:  # `datasets` stumbles over a row group without rows
                writer.write_table(table)
        self.write_bytes(relative, sink.getbuffer())
        return sink.getbuffer().nbytes

    def delete(self, relative: str) -> None:
        """Remove a file or a folder with all below it; nothing happens when it is not there."""
        info = self.filesystem.get_file_info(self.path(relative))
        if info.type == fs.FileType.File:
            self.filesystem.delete_file(info.path)
        elif info.type == fs.FileType.Directory:
            self.filesystem.delete_dir(info.path)
        if self.is_local and info.type != fs.FileType.NotFound:
            _sync_folder(os.path.dirname(info.path))

    def drop_half_written(self, relative: str) -> None:
        """Remove what interrupted writes left below a folder that nobody writes to any more; S3 keeps no such thing."""
        if self.is_local:
            for file in Path(self.path(relative)).rglob(f"{_TEMPORARY}*"):
                file.unlink(missing_ok=True)

    def upload(self, folder: str | Path, relative: str) -> None:
        """Copy every file below a local folder to `relative`, each atomically; memory holds one block."""
        folder = Path(folder)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = f"{relative}/{file.relative_to(folder).as_posix()}"
            with file.open("rb") as source, self._writing(name) as target:
                shutil.copyfileobj(source, target, _BLOCK)

    def download(self, relative: str, folder: str | Path) -> None:
        """Copy every file below `relative` into a local folder; memory holds one block."""
        for name in self.files(relative):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self.download_file(f"{relative}/{name}", target)

    def copy(self, relative: str, source: "Storage") -> None:
        """Copy one file of another storage to the same place in this one, atomically; memory holds one block."""
        with source.filesystem.open_input_file(source.path(relative)) as read, self._writing(relative) as target:
            shutil.copyfileobj(read, target, _BLOCK)

    def download_file(self, relative: str, target: Path) -> None:
        """Copy one file to a local path; memory holds one block."""
        with self.filesystem.open_input_file(self.path(relative)) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)

    @contextlib.contextmanager
    def local_folder(self, relative: str) -> Iterator[Path]:
        """A local folder whose files land below `relative` when the block ends well; gone, if it raises."""
        with tempfile.TemporaryDirectory(prefix="quire-") as folder:
            yield Path(folder)
            self.upload(folder, relative)


_BLOCK = 2**20  # bytes
_CACHE_SECONDS = 2 * 86_400  # a file that is mapped or open stays readable after it has gone
_TEMPORARY = ".tmp-"  # an interrupted write leaves such a file; `files` does not show it


def _sync_folder(folder: str) -> None:
    """Bring to the disk which names the folder holds.

    A rename or a deletion lasts only with its folder. Without this a machine that loses power may keep a record, a
    manifest, and lose the file that was written before it: what all resuming relies on is that order.
    """
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _make_folder(folder: str) -> None:
    """With all above it, each of them safe in the one that holds it."""
    if not os.path.isdir(folder):
        above = os.path.dirname(folder)
        _make_folder(above)
        os.makedirs(folder, exist_ok=True)  # another process may make it, too
        _sync_folder(above)


def cached(storage: Storage, relative: str, key: str, check: Callable[[Path], object]) -> Path:
    """A local copy of a folder: itself on a local disk, else downloaded once into the local cache under `key`.

    `check` raises when a download is not what it should be; then it is thrown away.
    """
    if storage.is_local:
        return Path(storage.path(relative))

    def make(target: Path) -> None:
        storage.download(relative, target)
        check(target)

    return made_once(key, make)


def cached_file(storage: Storage, relative: str, key: str, check: Callable[[Path], object]) -> Path:
    """`cached` for one file."""
    if storage.is_local:
        return Path(storage.path(relative))

    def make(target: Path) -> None:
        storage.download_file(relative, target)
        check(target)

    return made_once(key, make)


def made_once(key: str, make: Callable[[Path], object]) -> Path:
    """The file or folder `key` of the local cache; where it is not there, `make(path)` makes it, a file or in a folder.

    A key must name the content, since what is there is never made again. What nobody has asked for in two days goes.
    """
    folder = cache_folder()
    target = folder / key
    if not target.exists():
        _drop_old(folder)
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder, ignore_cleanup_errors=True) as temporary:
            made = Path(temporary) / key
            make(made)
            try:
                made.rename(target)
            except OSError:  # a folder cannot take the place of one
                if not target.exists():  # else another process was quicker, and its copy is the same
                    raise
    os.utime(target)
    return target


def _drop_old(folder: Path) -> None:
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may be dropping it, too
            if time.time() - entry.stat().st_mtime > _CACHE_SECONDS:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def cache_folder() -> Path:
    """Where local copies of remote artefacts lie: per user, private, safe to delete at any time."""
    folder = Path(tempfile.gettempdir()) / f"quire-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"cache folder {folder} belongs to another user; remove it or set TMPDIR")
    return folder
