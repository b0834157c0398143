"""The book files of a local mirror of Project Gutenberg: one for each id, the best of its encodings."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from quire.errors import UserError
from quire.storage import Storage

# `1/3/4/1342/1342-0.txt` of the main collection, `cache/epub/1342/pg1342.txt` of the generated one.
_BOOK = re.compile(r"(?:^|/)(?:pg)?(\d{1,9})(-0\.txt|\.txt\.utf-8|-utf8\.txt|-8\.txt|\.txt)$")
_WORTH = {"-0.txt": 400, ".txt.utf-8": 350, "-utf8.txt": 350, "-8.txt": 300, ".txt": 100}
_NUM_READERS = 8  # threads


def best_files(files: Iterable[str]) -> dict[int, str]:
    """id -> its file, of relative paths. What lies in a folder `old` is superseded; of equals the first path counts."""
    best: dict[int, tuple[int, str]] = {}
    for file in files:
        match = _BOOK.search(file)
        if match and "old" not in file.lower().split("/")[:-1]:
            number, place = int(match[1]), (-_WORTH[match[2]], file)
            best[number] = min(best.get(number, place), place)
    return {number: file for number, (_, file) in sorted(best.items())}


def content_hash(storage: Storage, files: Sequence[str]) -> str:
    """SHA-256 over names and contents, so that a changed book is noticed wherever the mirror lies.

    Raises UserError for a file that is no longer there."""

    def one(file: str) -> str:
        try:
            return storage.sha256(file)
        except PermissionError:
            return "unreadable"  # it is dropped for that; once it can be read, the corpus is another one
        except FileNotFoundError as error:
            raise UserError(
                f"{storage.uri(file)} went while the mirror was read: let what changes the mirror end, and run the "
                "same line again"
            ) from error

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = [f"{file}\0{digest}\n" for file, digest in zip(files, pool.map(one, files), strict=True)]
    return hashlib.sha256("".join(found).encode()).hexdigest()
