"""Which ids have been seen, on disk: memory does not grow with how many there are."""

import sqlite3


class Seen:
    """A set of ids in a temporary SQLite database, of which memory holds at most `cache_bytes`."""

    def __init__(self, cache_bytes: int = 64 * 2**20):
        self._database = sqlite3.connect("")  # a file that has no name and goes when it is closed
        self._database.execute(f"PRAGMA cache_size = -{cache_bytes // 1024}")  # negative: in KiB
        self._database.execute("PRAGMA journal_mode = OFF")  # nobody reads it after a crash
        self._database.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> "Seen":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, name: str) -> bool:
        """Whether `name` is new; from now on it is not."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (name,)).rowcount == 1
