"""What a Project Gutenberg header states: title, authors, languages, number, encoding."""

import re
from dataclasses import dataclass

from quire import gutenberg

_FIELD = re.compile(
    r"(Title|Authors?|Editors?|Illustrators?|Translators?|Contributors?|Commentators?|Annotators?|Release Date"
    r"|Posting Date|Last Updated|First Posted|Languages?|Character set encoding|Original publication|Credits"
    r"|Subtitle)[ \t]*:(.*)",
    re.I,
)
_EBOOK_NUMBER = re.compile(rf"\[\s*{gutenberg.EBOOK}\s*#\s*(\d+)\s*\]", re.I)
_TITLE_BY_AUTHOR = re.compile(
    rf"(?:The )?Project Gutenberg(?:['’]s)?(?: {gutenberg.EBOOK})?(?: of|,)? "
    r"(?P<title>.+?),? by (?P<author>[^,]+?)(?:,|$)",
    re.I,
)
_AND = re.compile(r"\s*(?:;|(?<=\s)(?:and|&)(?=[\s;]|$))\s*", re.I)
_LIST = re.compile(r"\s*[,;/]\s*|\s+and\s+")
_BRACKETED = re.compile(r"[(\[][^)\]]*[)\]]")
_SUFFIX = re.compile(r"(?:[JS]r|I{2,3}|IV|Esq|Bart|M\.? ?[AD]|Ph\.? ?D|D\.? ?D|LL\.? ?D|père|fils)\.?$", re.I)
_LIFE_DATES = re.compile(r",?\s*\d{4}\??\s*[-–]\s*(?:\d{4}\??)?$")

_LICENCE_BYTES = 20_000  # the small print that older books begin with has 12,000
_COPYRIGHTED = re.compile(rb"this is a copyrighted project gutenberg", re.I)
_LICENSED = re.compile(rb"project\s+gutenberg(?:-tm|\xe2\x84\xa2)?\s+license|small\s+print!", re.I)


@dataclass(frozen=True)
class Header:
    """What a Project Gutenberg header states; empty where it states nothing."""

    title: str = ""
    authors: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()  # lower case
    gutenberg_id: int | None = None
    encoding: str = ""


def parse_header(text: str) -> Header:
    """What an actual Project Gutenberg header says, else an empty Header: no line of the book is ever asked.

    Editors are no authors. Wrapped titles are joined, volumes kept.
    """
    header = gutenberg.header_of(text)
    if not header:
        return Header()
    fields = _fields(header)
    opening = _TITLE_BY_AUTHOR.match(" ".join(header.partition("\n\n")[0].split()))
    title = next(iter(fields.get("title", [])), opening["title"] if opening else "")
    authors = fields.get("author") or ([opening["author"]] if opening else [])
    number = _EBOOK_NUMBER.search(header)
    return Header(
        title=title,
        authors=tuple(dict.fromkeys(name for field in authors for name in people(field))),
        languages=tuple(part for field in fields.get("language", []) for part in _LIST.split(field.lower())),
        gutenberg_id=int(number[1]) if number else None,
        encoding=next(iter(fields.get("character set encoding", [])), ""),
    )


def _fields(header: str) -> dict[str, list[str]]:
    """The header's "Name: value" lines by lower-case singular name; lines that continue one are joined to it.

    A line below "Author:" is another author.
    """
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    joint = " "
    for line in header.split("\n"):
        if match := _FIELD.match(line):
            name = match[1].lower().removesuffix("s")
            current, joint = fields.setdefault(name, []), "; " if name == "author" else " "
            current.append(match[2].strip())
        elif not line or line.startswith(("[", "*")):
            current = None
        elif current is not None:
            current[-1] = f"{current[-1]}{joint}{line.strip()}".strip()
    return {name: [" ".join(value.split()) for value in values if value] for name, values in fields.items()}


def people(field: str) -> tuple[str, ...]:
    """The people of an author line, each "First Last": no alias in brackets, no years of life.

    "Last, First" is turned; "A and B", "A; B" and "First Last, First Last" are two.
    """
    parts = (_LIFE_DATES.sub("", part).strip(" ,;:-") for part in _AND.split(_BRACKETED.sub(" ", field)))
    return tuple(dict.fromkeys(" ".join(name.split()) for part in parts if part for name in _turned(part)))


def _turned(name: str) -> list[str]:
    parts = [part.strip() for part in name.split(",") if part.strip()]
    suffixes = [part for part in parts if _SUFFIX.match(part)]
    parts = [part for part in parts if part not in suffixes]
    if len(parts) > 1 and all(len(_capitalised(part)) > 1 for part in parts):
        return parts
    if len(parts) == 2:
        return [", ".join([f"{parts[1]} {parts[0]}", *suffixes])]
    return [name]


def _capitalised(name: str) -> list[str]:
    """Its words without particles: "von Goethe" is one name, "Charles Dickens" two."""
    return [word for word in name.split() if not word.islower()]


def licence(data: bytes) -> str | None:
    """What a book's own header says of the rights in it, in the catalogue's words where it has them; None: nothing."""
    head = data[:_LICENCE_BYTES]
    if _COPYRIGHTED.search(head):
        return "Copyrighted. Read the copyright notice inside this book for details."
    return "Project Gutenberg License" if _LICENSED.search(head) else None
