"""Files as streams of bytes, decompressed, as far as one that is damaged can be read."""

import io
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from quire.storage import Storage

CODECS = {".gz": "gzip", ".zst": "zstd"}
DAMAGE = (pa.ArrowInvalid, OSError)  # what a file that is cut off raises
_BLOCK = 2**20  # bytes


def about_bytes(error: Exception) -> Exception:
    """The error, if it is about a file's bytes; raises it if the disk or the network is to blame."""
    # Arrow says OSError itself of bytes; its kinds are of files, lines and hubs.
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None or "AWS" in str(error)):
        raise error
    return error


def readable_size(storage: Storage, file: str) -> tuple[int, str | None]:
    """Bytes of a file of lines once decompressed, as far as they can be read; and why no further."""
    if not file.endswith(tuple(CODECS)):
        return storage.size(file), None
    size, block, damage = 0, _BLOCK, None
    while block:  # a read that fails gives nothing: what is left is found by reading less and less at once
        try:
            with _decompressed(storage, file) as stream:
                skip(stream, size)
                while data := stream.read(block):
                    size += len(data)
            return size, None
        except DAMAGE as error:
            damage = f"cut off or not {CODECS[Path(file).suffix]} ({about_bytes(error)})"
            block //= 32
    return size, damage


def head(storage: Storage, file: str, most: int) -> tuple[int, float]:
    """Bytes of a compressed file's beginning once decompressed, at least `most`, and the share of the file they take.

    Hardly more of the file is read; what is damaged ends it.
    """
    size = taken = 0
    with storage.filesystem.open_input_file(storage.path(file)) as raw:
        stream = pa.CompressedInputStream(raw, CODECS[Path(file).suffix])
        try:
            while data := stream.read(_BLOCK // 16):
                if size >= most and raw.tell() != taken:  # it decompresses about 1 MiB at once, and has used that up
                    return size, taken / raw.size()
                size, taken = size + len(data), raw.tell()
        except DAMAGE as error:
            about_bytes(error)
        return size, 1.0


def opened(storage: Storage, file: str, readable: int | None = None) -> BinaryIO:
    """A stream of lines; of a damaged file no more than the first `readable` bytes are asked for."""
    stream = _decompressed(storage, file)
    return io.BufferedReader(stream if readable is None else _Head(stream, readable), _BLOCK)


def skip(stream: BinaryIO, size: int) -> None:
    """Go so many bytes on, from the beginning."""
    if stream.seekable():
        stream.seek(size)
        return
    while size and (data := stream.read(min(size, _BLOCK))):
        size -= len(data)


def _decompressed(storage: Storage, file: str) -> pa.NativeFile:
    raw = storage.filesystem.open_input_file(storage.path(file))
    codec = CODECS.get(Path(file).suffix)
    return pa.CompressedInputStream(raw, codec) if codec else raw


class _Head(io.RawIOBase):
    """The first bytes of a stream, which is asked for not one more."""

    def __init__(self, stream: pa.NativeFile, size: int):
        self.stream, self.left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self.stream.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()
