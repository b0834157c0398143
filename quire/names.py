"""Names as keys: the slug of an author or a title, and whether a name names anybody."""

import hashlib
import re
import unicodedata

from quire.errors import UserError

# Letters that Unicode does not decompose into a Latin one and marks.
_ASCII_SPELLINGS = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ß": "ss", "ł": "l", "đ": "d", "þ": "th", "ð": "d", "ı": "i"}
)
_NO_SEPARATOR = re.compile(r"[^a-z0-9'’‘`\-‐‑–—/\s_]")
_WORD = re.compile(r"[a-z0-9]+")
_ANONYMOUS = re.compile(r"(?:^|_)(?:anon(?:ymous)?|unknown|various|misc(?:ellaneous)?|multiple_authors)(?:_|$)")
_HASH_CHARS = 8
_MIN_LENGTH = 20


def slug(name: str, max_length: int = 80) -> str:
    """A name as lower-case ASCII letters, digits and underscores; at most `max_length` of them, 20 or more.

    Where letters were lost, eight hex digits of the name's SHA-256 follow, so that two names do not become one.
    """
    if max_length < _MIN_LENGTH:
        raise UserError(f"max_length = {max_length}: a slug needs at least {_MIN_LENGTH} characters")
    folded = unicodedata.normalize("NFKD", name.lower().translate(_ASCII_SPELLINGS))
    folded = "".join(character for character in folded if not unicodedata.combining(character))
    lost = any(character.isalnum() and not character.isascii() for character in folded)
    joined = "_".join(_WORD.findall(_NO_SEPARATOR.sub("", folded)))
    if joined and not lost and len(joined) <= max_length:
        return joined
    if not name.strip():
        return "untitled"
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8")).hexdigest()[:_HASH_CHARS]
    return f"{joined[: max_length - _HASH_CHARS - 2].rstrip('_') or 'untitled'}__{digest}"


def is_anonymous(author: str) -> bool:
    """The name names nobody (anonymous, unknown, various, misc, multiple authors, or nothing at all)."""
    return not author.strip() or _ANONYMOUS.search(slug(author, max_length=1_000)) is not None
