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
_AND = re.compile(r"\s*;\s*|\s+(?:and|&)\s+", re.I)
_LIST = re.compile(r"\s*[,;/]\s*|\s+and\s+")
_BRACKETED = re.compile(r"[(\[][^)\]]*[)\]]")
_LIFE_DATES = re.compile(r",?\s*\d{4}\??\s*[-–]\s*(?:\d{4}\??)?$")


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
        authors=tuple(dict.fromkeys(name for field in authors for name in _names(field))),
        languages=tuple(part for field in fields.get("language", []) for part in _LIST.split(field.lower())),
        gutenberg_id=int(number[1]) if number else None,
        encoding=next(iter(fields.get("character set encoding", [])), ""),
    )


def _fields(header: str) -> dict[str, list[str]]:
    """The header's "Name: value" lines by lower-case singular name; lines that continue one are joined to it."""
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in header.split("\n"):
        if match := _FIELD.match(line):
            current = fields.setdefault(match[1].lower().removesuffix("s"), [])
            current.append(match[2].strip())
        elif not line or line.startswith(("[", "*")):
            current = None
        elif current is not None:
            current[-1] = f"{current[-1]} {line.strip()}".strip()
    return {name: [" ".join(value.split()) for value in values if value] for name, values in fields.items()}


def _names(field: str) -> list[str]:
    """The people of one author line: no alias in brackets, no years of life."""
    names = (_LIFE_DATES.sub("", _BRACKETED.sub(" ", part)).strip(" ,;:-") for part in _AND.split(field))
    return [" ".join(name.split()) for name in names if name]
