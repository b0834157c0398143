"""Which books are asked for: named ids, a range, a list of addresses, or all that the catalogue lets pass."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from quire.catalogue import Choice, Entry, has_rights
from quire.errors import UserError
from quire.gutenberg_header import Header
from quire.harvest import Wanted
from quire.identity import Identity, identify


class Selection(Choice):
    """The ids that are asked for, and what of them the catalogue is to let pass."""

    ids: tuple[int, ...] = ()
    first: int | None = Field(default=None, gt=0, description="of a range; `last` is part of it")
    last: int | None = Field(default=None, gt=0)
    urls: str | None = Field(default=None, description="a file of addresses, one a line")
    catalogue: str | None = Field(default=None, description="pg_catalog.csv or the RDF archive: a path or an address")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.first is None) != (self.last is None) or (self.first or 0) > (self.last or 0):
            raise ValueError(f"first = {self.first}, last = {self.last}: give both, the smaller first")
        if any(number <= 0 for number in self.ids):
            raise ValueError(f"ids: {min(self.ids)} is no Gutenberg id; give numbers above 0")
        for key in ("languages", "authors", "rights"):
            if getattr(self, key) and not self.catalogue:
                raise ValueError(f"{key}: only a catalogue can tell; set catalogue beside it")
        return self

    @property
    def numbers(self) -> list[int]:
        """The ids that are named, without those of `urls`."""
        ranged = range(self.first, self.last + 1) if self.first else ()
        return sorted({*self.ids, *ranged})


@dataclass(frozen=True)
class Book:
    """One book that is asked for: all that a worker needs to know of it, beside its bytes."""

    key: str  # pg1342; what becomes document_id
    number: int | None
    urls: tuple[str, ...] = ()  # where a list of addresses says that it lies
    file: str | None = None  # where it lies in a mirror
    entry: Entry | None = None  # what the catalogue says
    refusal: tuple[str, str] = ("", "")  # a word and a sentence

    def identity(self, header: Header) -> Identity:
        """By the catalogue, else by the book's own header."""
        return self.entry.identity() if self.entry else identify(f"{self.key}.txt", header, {})


def ask(
    select: Selection,
    entries: Mapping[int, Entry],
    files: Mapping[int, str],
    listed: Iterable[Wanted],
    *,
    only_english: bool = False,
) -> list[Book]:
    """Every book that is asked for, by its number: those that are named, else all of the mirror and the catalogue.

    `entries`: the catalogue, `files`: those of a mirror, `listed`: a list of addresses; each may be empty.
    `only_english`: what the catalogue says is in other languages would be dropped once it is read. Raises UserError
    when nothing is chosen, or by rights that the catalogue does not state.
    """
    if select.rights and not has_rights(entries):
        raise UserError(f"select.rights: {select.catalogue!r} states none; give the RDF archive (rdf-files.tar.bz2)")
    by_key = {wanted.key: wanted for wanted in listed}
    numbers = select.numbers or ([] if by_key else sorted({*files, *entries}))
    keys = dict.fromkeys([*(f"pg{number}" for number in numbers), *by_key])
    if not keys:
        raise UserError("select: nothing is chosen; give ids, first and last, urls or catalogue")
    books = []
    for key in keys:
        number = int(key.removeprefix("pg")) if key.startswith("pg") else None
        entry = entries.get(number)
        if entry:
            refusal = select.refusal(entry)
            if only_english and not refusal[0] and entry.languages and "en" not in entry.languages:
                refusal = "not_english", f"it is in {', '.join(entry.languages)}; with english=false it is kept"
        else:  # its authors could not be told from those of the others
            refusal = ("not_in_catalogue", "the catalogue does not list it") if select.catalogue else ("", "")
        urls = by_key[key].urls if key in by_key else ()
        books.append(Book(key, number, urls, files.get(number), entry, refusal))
    return books
