"""Who wrote a file, and what it is called: its header's word, else the manifest's, else its path's."""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from quire import names
from quire.errors import UserError
from quire.gutenberg_header import Header, people


class Identity(NamedTuple):
    """`author_name`: all people, for readers. `authors`: the slug of each who has a name, for grouping."""

    title: str
    author_name: str
    authors: tuple[str, ...]

    @property
    def author(self) -> str:
        """One slug for all its people, in whatever order they are named."""
        return names.slug("; ".join(sorted(self.author_name.split("; "), key=names.slug)))

    def columns(self) -> dict[str, Any]:
        """Of the `documents` table. Whose readers are told no name is anonymous, whatever else is known of it."""
        unnamed = all(map(names.is_anonymous, self.author_name.split("; ")))
        return {
            "author": self.author,
            "authors": self.authors,
            "author_name": self.author_name,
            "anonymous": unnamed or not self.authors,
            "title": self.title,
        }


def by_people(title: str, people: Sequence[str]) -> Identity:
    """Of a text by these people, each "First Last"; those whom the name does not name are no authors to compare."""
    authors = tuple(dict.fromkeys(names.slug(name) for name in people if not names.is_anonymous(name)))
    return Identity(title, "; ".join(people), authors)


def identify(file: str, header: Header, stated: dict[str, str]) -> Identity:
    """Author and title of the file at the relative path `file`, whose row of the manifest is `stated`.

    A path tells them as `author/title.txt` or `author__title.txt`. Another author than the header's in the manifest or
    in `author__` is one of `authors`, too: "Currer Bell" stands in the header of one book by Charlotte Brontë alone.
    """
    path = PurePosixPath(file)
    stem_author, separator, stem_title = path.stem.partition("__")
    in_folder = path.parent.name
    title = (
        header.title or stated.get("title") or (path.stem if in_folder else stem_title or path.stem).replace("_", " ")
    )
    of_manifest = people(stated.get("author", ""))
    of_name = people(stem_author.replace("_", " ")) if separator and not in_folder else ()
    found = header.authors or of_manifest or people(in_folder.replace("_", " ")) or of_name
    return by_people(title, found)._replace(authors=by_people(title, [*found, *of_manifest, *of_name]).authors)


def read_manifest(data: bytes, files: Sequence[str], where: str) -> dict[str, dict[str, str]]:
    """file -> the author and title that a manifest states. `data`: JSON lines with file, author, title.

    A row names a file by its path below the folder, or by its bare name where only one file has it. Raises UserError
    that names the line for bad JSON and for a row that names no file of `files`, several, or one a second time.
    """
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(PurePosixPath(file).name, []).append(file)
    known, found = set(files), {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        row = _row(line, place)
        path = str(PurePosixPath(row["file"]))
        matches = [path] if path in known else by_name.get(path, [])
        if len(matches) != 1:
            why = f"{len(matches)} files have that name, such as {matches[0]!r}" if matches else "there is no such file"
            raise UserError(f"{place}: file = {row['file']!r}: {why}; give its path below the folder")
        if matches[0] in found:
            raise UserError(f"{place}: a second row for {matches[0]!r}; keep one")
        found[matches[0]] = {key: row[key] for key in ("author", "title") if row.get(key)}
    return found


def _row(line: bytes, place: str) -> dict[str, str]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are such
        raise UserError(f"{place}: not JSON ({error}); write one object a line") from error
    if not isinstance(row, dict) or not row.get("file"):
        raise UserError(f'{place}: no "file"; write {{"file": "path.txt", "author": "...", "title": "..."}}')
    for key in ("file", "author", "title"):
        if not isinstance(row.get(key) or "", str):
            raise UserError(f"{place}: {key} = {row[key]!r}: give a string; several authors stand apart by '; '")
    return row
