"""Papers and other labelled documents: one record of a source to one row with its categories, or the reason why not."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from quire import identity, schema
from quire.gutenberg_header import people
from quire.readers import Dropped

PAPERS = pa.schema(
    [
        *schema.DOCUMENTS,  # so that whatever reads documents reads these
        ("category", pa.string()),  # the first of them
        ("categories", pa.list_(pa.string())),
        ("split", pa.string()),  # null where the source has none
        ("created", pa.string()),
    ]
)
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
_AFFILIATION = re.compile(r"\([^()]*\)")
_BETWEEN_NAMES = re.compile(r"\s*[,;:](?!\s*(?:[JS]r|I{2,3}|IV)\b)\s*(?:and\s+)?|\s+(?:and|&)\s+")
Row = dict[str, Any]


def arxiv_row(record: Mapping[str, Any], source: str, *, text: str | None = None) -> Row | Dropped:
    """A record of the arXiv metadata snapshot: JSON lines as published, or with categories as a list, in which the
    snapshots of 2020 have one line of them all.

    The text is title, blank line, abstract; line breaks inside both are the snapshot's wrapping and go. Or it is the
    column `text`, as it stands there.
    """
    title, abstract = (" ".join(str(record.get(key) or "").split()) for key in ("title", "abstract"))
    created = record.get("created") or record.get("update_date")
    versions = record.get("versions")
    if isinstance(versions, list) and versions and isinstance(versions[0], Mapping):  # of 2020: names alone
        created = versions[0].get("created", created)
    body = f"{title}\n\n{abstract}" if abstract else ""
    found = {"document_id": record.get("id"), "title": title, "text": body if text is None else record.get(text) or ""}
    names = [name for line in _names(record.get("categories")) for name in line.split()]
    return _row({**found, "created": created}, arxiv_people(record), names, source)


def arxiv_people(record: Mapping[str, Any]) -> list[str]:
    """The authors of a record of the snapshot, each "First Last"; none where it names none.

    They stand in `authors_parsed` (last, first, suffix, affiliations), else in `authors`, a list or a line of names in
    which affiliations are in brackets and a collaboration may come first.
    """
    parsed = record.get("authors_parsed")
    if parsed and isinstance(parsed, list) and all(isinstance(person, list) for person in parsed):
        turned = ([*person, None, None, None][:3] for person in parsed)
        named = (" ".join(str(part) for part in (first, last, suffix) if part) for last, first, suffix in turned)
    else:
        named = record.get("authors")
        named = named if isinstance(named, str | list) else ()
    if isinstance(named, str):
        length = -1
        while length != len(named):  # brackets stand in brackets
            length, named = len(named), _AFFILIATION.sub(" ", named)
        named = _BETWEEN_NAMES.split(named)
    joined = (" ".join(str(name).split()) for name in named)
    return list(dict.fromkeys(name for name in joined if name and not name.startswith("et al")))


def table_row(
    record: Mapping[str, Any],
    source: str,
    number: int,
    *,
    text: str,
    category: str | None,
    title: str | None,
    author: str | None,
    key: str | None,
) -> Row | Dropped:
    """A record of a table with named columns; without an id column its place in the source is the id.

    Without a column of categories the documents have none; with one, a record without a category is dropped.
    A category is a name, which may have blanks, a number, or a list of them; an author likewise, several in one string
    as `gutenberg_header.people` reads them. A column `split` is kept.
    """
    split = record.get("split")
    if split is not None and (not isinstance(split, str) or split not in SPLIT_NAMES):
        return Dropped("unknown_split", f"{split!r} is none of {', '.join(SPLIT_NAMES)}")
    found = {
        "document_id": record.get(key) if key else f"{source}:{number}",
        "title": str(record.get(title) or "") if title else "",
        "text": record.get(text) or "",
        "created": record.get("created"),
        "split": SPLIT_NAMES.get(split),
    }
    authors = [person for name in _names(record.get(author) if author else None) for person in people(name)]
    return _row(found, authors, record.get(category) if category else None, source, filed=bool(category))


def _row(found: Row, authors: Sequence[str], categories: Any, source: str, *, filed: bool = True) -> Row | Dropped:
    names = _names(categories)
    if found["document_id"] in (None, ""):
        return Dropped("no_id", str(found["text"])[:80])
    if not isinstance(found["text"], str) or not found["text"].strip():
        return Dropped("no_text", str(found["document_id"]))
    if filed and not names:
        return Dropped("no_category", str(found["document_id"]))
    created = None if found.get("created") is None else str(found["created"])
    row = dict.fromkeys(PAPERS.names) | found | identity.by_people(found["title"], authors).columns()
    row |= {
        "category": next(iter(names), None),
        "categories": names,
        "source": source,
        "encoding": "utf-8",
        "kept": 1.0,
    }
    return row | {"document_id": str(found["document_id"]), "created": created}


def _names(given: Any) -> list[str]:
    """One name or a list of them, or numbers, without blanks at their ends; what is none of these is left out."""
    listed = given if isinstance(given, list | tuple) else [given]
    stripped = (str(name).strip() for name in listed if isinstance(name, str | int))
    return list(dict.fromkeys(name for name in stripped if name))
