"""Papers and other labelled documents: one record of a source to one row with its categories, or the reason why not."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from quire.readers import Dropped

PAPERS = pa.schema(
    [
        ("document_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("category", pa.string()),  # the first of them
        ("categories", pa.list_(pa.string())),
        ("split", pa.string()),  # null where the source has none
        ("created", pa.string()),
        ("source", pa.string()),
    ]
)
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
Row = dict[str, Any]


def arxiv_row(record: Mapping[str, Any], source: str, *, text: str | None = None) -> Row | Dropped:
    """A record of the arXiv metadata snapshot (JSON lines as published, or with categories as a list).

    The text is title, blank line, abstract; line breaks inside both are the snapshot's wrapping and go. Or it is the
    column `text`, as it stands there.
    """
    title, abstract = (" ".join(str(record.get(key) or "").split()) for key in ("title", "abstract"))
    created = record.get("created") or record.get("update_date")
    if versions := record.get("versions"):
        created = versions[0].get("created", created)
    body = f"{title}\n\n{abstract}" if abstract else ""
    found = {"document_id": record.get("id"), "title": title, "text": body if text is None else record.get(text) or ""}
    categories = record.get("categories")
    names = categories.split() if isinstance(categories, str) else categories
    return _row({**found, "created": created}, names, source)


def table_row(
    record: Mapping[str, Any], source: str, number: int, *, text: str, category: str, title: str | None, key: str | None
) -> Row | Dropped:
    """A record of a table with named columns; without an id column its place in the source is the id.

    A category is a name, which may have blanks, a number, or a list of them. A column `split` is kept.
    """
    split = record.get("split")
    if split is not None and split not in SPLIT_NAMES:
        return Dropped("unknown_split", f"{split!r} is none of {', '.join(SPLIT_NAMES)}")
    categories = record.get(category)
    found = {
        "document_id": record.get(key) if key else f"{source}:{number}",
        "title": str(record.get(title) or "") if title else "",
        "text": record.get(text) or "",
        "created": record.get("created"),
        "split": SPLIT_NAMES.get(split),
    }
    return _row(found, categories if isinstance(categories, list | tuple) else [categories], source)


def _row(found: Row, categories: Any, source: str) -> Row | Dropped:
    given = categories if isinstance(categories, list | tuple) else ()
    stripped = (str(name).strip() for name in given if isinstance(name, str | int))
    names = list(dict.fromkeys(name for name in stripped if name))
    if found["document_id"] in (None, ""):
        return Dropped("no_id", str(found["text"])[:80])
    if not isinstance(found["text"], str) or not found["text"].strip():
        return Dropped("no_text", str(found["document_id"]))
    if not names:
        return Dropped("no_category", str(found["document_id"]))
    created = None if found.get("created") is None else str(found["created"])
    row = dict.fromkeys(PAPERS.names) | found | {"category": names[0], "categories": names, "source": source}
    return row | {"document_id": str(found["document_id"]), "created": created}
