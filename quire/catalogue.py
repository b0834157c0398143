"""The Project's catalogue: what each id is, who wrote it, in which language, under which rights; and who is chosen.

Two forms, both published daily: `pg_catalog.csv` (plain or .gz), in which an author is a name with years of life, and
the RDF archive `rdf-files.tar.bz2` (or .zip, or any tar), in which an author is an agent with a number, and rights are
stated. Authors are told apart by that number, else by name and years. Editors and translators are no authors.
"""

import contextlib
import csv
import gzip
import io
import lzma
import re
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

from pydantic import Field

from quire import names
from quire.config import Config
from quire.errors import UserError
from quire.gutenberg_header import people
from quire.identity import Identity

_COLUMNS = ("Text#", "Type", "Title", "Language", "Authors")
_ROLE = re.compile(r"\s*\[([^\]]+)\]$")
_YEARS = re.compile(r",\s*(?P<years>[^,]*\d[^,]*)$")  # 1812-1870, 751? BCE-651? BCE, active 13th century
_RDF_FILE = re.compile(r"(?:^|/)pg(\d{1,9})\.rdf$")
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_TERMS = "{http://purl.org/dc/terms/}"
_PG = "{http://www.gutenberg.org/2009/pgterms/}"
# What the libraries raise for damage, each in its own words.
_DAMAGE = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_BLOCK = 2**20  # bytes
_MAX_DAMAGED = 0.01  # of the records of an archive: more is no slip of one record
csv.field_size_limit(max(csv.field_size_limit(), 2**24))  # a title may be long


class Person(NamedTuple):
    """`key` tells people apart; "" for one whom the name does not name (Anonymous, Various, Unknown)."""

    key: str
    name: str  # First Last, for readers
    agent: str = ""


class Listed(Identity):
    """Of people whom the catalogue tells apart better than their names do."""

    @property
    def author(self) -> str:
        return names.slug("; ".join(sorted(self.authors))) if self.authors else super().author


class Entry(NamedTuple):
    """One text of the catalogue."""

    number: int
    title: str
    authors: tuple[Person, ...]
    languages: tuple[str, ...]  # codes such as en
    kind: str  # Text, Sound, Image ...
    rights: str | None  # None where the catalogue does not say
    damage: str = ""  # why its record cannot be read

    def identity(self) -> Identity:
        """For the `documents` table. A text by nobody, or by an editor alone, is anonymous."""
        named = "; ".join(person.name for person in self.authors) or "Unknown"
        keys = tuple(dict.fromkeys(person.key for person in self.authors if person.key))
        return Listed(self.title or f"pg{self.number}", named, keys)


class Choice(Config):
    """What of the catalogue is wanted. A list that is empty refuses nothing."""

    languages: tuple[str, ...] = Field(default=(), description="codes; every language of a text must be among them")
    authors: tuple[str, ...] = Field(default=(), description="names, or agent numbers of the RDF catalogue")
    rights: tuple[str, ...] = Field(default=(), description="as the RDF catalogue states them")
    kinds: tuple[str, ...] = Field(default=("Text",), description="Text, Sound, Image ...")

    def refusal(self, entry: Entry) -> tuple[str, str]:
        """Why the entry is not wanted, as a word and a sentence; ("", "") when it is."""
        if entry.damage:
            return "damaged_record", f"the catalogue's record of it cannot be read: {entry.damage}"
        if self.kinds and entry.kind not in self.kinds:
            return "other_kind", f"it is {entry.kind or 'of no stated kind'}"
        if self.languages and not (entry.languages and set(entry.languages) <= set(self.languages)):
            return "other_language", f"it is in {', '.join(entry.languages) or 'no stated language'}"
        if self.authors and not any(_is_meant(person, self.authors) for person in entry.authors):
            return "other_author", f"it is by {'; '.join(p.name for p in entry.authors) or 'nobody stated'}"
        if self.rights and _plain(entry.rights or "") not in map(_plain, self.rights):
            return "other_rights", f"its rights: {entry.rights or 'not stated'}"
        return "", ""


def read_catalogue(data: bytes, where: str) -> dict[int, Entry]:
    """Every entry by its number, from the bytes of either form.

    Raises UserError that names `where`, for damage too: a part of a catalogue is none. A single record of an archive
    that cannot be read is an entry that says so.
    """
    try:
        data = _unzipped(data, where)
        archive = _tar(data)
        with archive or contextlib.nullcontext():
            entries = _rdf_entries(archive) if archive else _csv_entries(data, where)
            found = {entry.number: entry for entry in entries}
    except _DAMAGE as error:
        raise UserError(f"{where}: a damaged archive ({error}); fetch it again") from error
    except csv.Error as error:
        raise UserError(f"{where}: a damaged CSV ({error}); fetch it again") from error
    if not found:
        what = "no file such as cache/epub/1342/pg1342.rdf inside" if archive else "it lists no book"
        raise UserError(f"{where}: {what}; fetch it again")
    damaged = [entry.damage for entry in found.values() if entry.damage]
    if len(damaged) > _MAX_DAMAGED * len(found):
        raise UserError(f"{where}: {damaged[0]}; of {len(found)} records {len(damaged)} are like that: fetch it again")
    return found


def _unzipped(data: bytes, where: str) -> bytes:
    """The one catalogue in a .zip, else the bytes as they are."""
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inner = [name for name in archive.namelist() if name.endswith((".tar", ".csv"))]
        if len(inner) != 1:
            raise UserError(f"{where}: {len(inner)} .tar or .csv files inside; a catalogue has one")
        return archive.read(inner[0])


class _Member(tarfile.TarInfo):
    """Of an archive that ends where it says so: tarfile takes a damaged or missing header for the end of all."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the end that is written
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header and no end at byte {archive.offset}: {error}") from error


def _tar(data: bytes) -> tarfile.TarFile | None:
    """Whatever its compression; None when it is no archive."""
    try:
        return tarfile.open(fileobj=io.BytesIO(data), tarinfo=_Member)  # noqa: SIM115, its caller closes it
    except tarfile.ReadError:
        return None


def has_rights(entries: Mapping[int, Entry]) -> bool:
    """Whether the catalogue says anything about rights: the CSV does not."""
    return any(entry.rights for entry in entries.values())


def _csv_entries(data: bytes, where: str) -> Iterator[Entry]:
    try:
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8-sig")
    except (UnicodeDecodeError, *_DAMAGE) as error:
        raise UserError(
            f"{where}: neither a CSV in UTF-8, plain or .gz, nor an archive ({error}); fetch it again"
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # raises where quotes are not closed
    lacking = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise UserError(f"{where}: no column {lacking[0]!r}; the Project's pg_catalog.csv has {', '.join(_COLUMNS)}")
    if not text.endswith("\n"):
        raise UserError(f"{where}: its last line is cut, or lacks a line break: fetch it again, or add one")
    for row in rows:
        if not (row["Text#"] or "").isdecimal():
            raise UserError(f"{where}, line {rows.line_num}: Text# = {row['Text#']!r} is no number; fetch it again")
        if None in row or None in row.values():
            raise UserError(f"{where}, line {rows.line_num}: not as many fields as the first line; fetch it again")
        stated = [part.strip() for part in row["Authors"].split(";") if part.strip()]
        yield Entry(
            number=int(row["Text#"]),
            title=" ".join(row["Title"].split()),
            authors=tuple(_person(part) for part in stated if not _ROLE.search(part)),
            languages=tuple(code.strip() for code in row["Language"].split(";") if code.strip()),
            kind=row["Type"].strip(),
            rights=None,
        )


def _person(stated: str, agent: str = "") -> Person:
    """From `Last, First, years`. Without an agent's number the years are part of the key: they part namesakes."""
    years = _YEARS.search(stated)
    name = "; ".join(people(stated[: years.start()] if years else stated)) or stated
    if names.is_anonymous(name):
        return Person("", name, agent)
    key = f"agent_{agent}" if agent else names.slug(f"{name} {years['years'] if years else ''}")
    return Person(key, name, agent)


def _rdf_entries(archive: tarfile.TarFile) -> Iterator[Entry]:
    for member in archive:
        if member.isfile() and (match := _RDF_FILE.search(member.name)):
            try:
                root = ElementTree.parse(archive.extractfile(member)).getroot()
            except ElementTree.ParseError as error:
                yield Entry(int(match[1]), "", (), (), "", None, f"{member.name[:200]}: not XML ({error})")
                continue
            book = root.find(f"{_PG}ebook")
            if book is not None:
                yield _rdf_entry(int(match[1]), book, _agent_names(root))
    while archive.fileobj.read(_BLOCK):  # to the end, where gzip and xz say what the whole must add up to
        pass


def _rdf_entry(number: int, book: ElementTree.Element, agents: Mapping[str, str]) -> Entry:
    """`agents`: names by number. A creator is an agent, or a reference to one that the file describes elsewhere."""

    def values(path: str) -> tuple[str, ...]:
        return tuple(" ".join(found.text.split()) for found in book.findall(path) if found.text)

    creators = (a for creator in book.findall(f"{_TERMS}creator") for a in creator.findall(f"{_PG}agent") or [creator])
    stated = ((agent.findtext(f"{_PG}name", ""), _agent_number(agent)) for agent in creators)
    named = (_person(name or agents.get(agent) or f"agent {agent}", agent) for name, agent in stated if name or agent)
    return Entry(
        number=number,
        title=next(iter(values(f"{_TERMS}title")), ""),
        authors=tuple(dict.fromkeys(named)),
        languages=values(f"{_TERMS}language//{_RDF}value"),
        kind=next(iter(values(f"{_TERMS}type//{_RDF}value")), ""),
        rights=next(iter(values(f"{_TERMS}rights")), None),
    )


def _agent_names(root: ElementTree.Element) -> dict[str, str]:
    """The name of every agent that the file describes, by number."""
    return {_agent_number(agent): name for agent in root.iter(f"{_PG}agent") if (name := agent.findtext(f"{_PG}name"))}


def _agent_number(agent: ElementTree.Element) -> str:
    """The last part of `2009/agents/37`, of a description or of a reference to one; "" of neither."""
    return (agent.get(f"{_RDF}about") or agent.get(f"{_RDF}resource") or "").rpartition("/")[2]


def _is_meant(person: Person, wanted: tuple[str, ...]) -> bool:
    """By agent number, by key, or by name in either order."""
    asked = {names.slug("; ".join(people(name)) or name) for name in wanted}
    return person.agent in wanted or person.key in wanted or names.slug(person.name) in asked


def _plain(rights: str) -> str:
    return rights.strip(" .").casefold()
