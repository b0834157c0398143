"""Bytes to text: one way to read a file, or a stated reason why it cannot be read.

UTF-8 is tried first and wins even over a header that says otherwise, because hardly any other text is valid
UTF-8 by accident. Then comes the character set that the file's header declares, else Windows-1252, also for files that
declare ISO-8859-1, of which it is the superset in use (so does the WHATWG Encoding Standard, section 4.2).
"""

import codecs
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from quire.errors import UserError

# Control characters (C0 but tab, LF, VT, FF, CR, Ctrl-Z; and DEL) among all bytes. Random bytes hold 10 %.
_MAX_CONTROL_SHARE = 0.01
_CONTROL_BYTES = bytes(set(range(0x20)) - set(b"\t\n\x0b\x0c\r\x1a")) + b"\x7f"
# French in cp1252 holds about 5 % of bytes above 127; Greek or Shift-JIS 60 % and more.
_MAX_HIGH_SHARE = 0.3
_HEADER_BYTES = 20_000

_DECLARED = re.compile(rb"^[ \t]*Character set encoding:[ \t]*([^\r\n]+?)[ \t]*\r?$", re.I | re.M)
_LATIN_NAME = re.compile(r"latin.?1\b|8859.?1\b|1252", re.I)
_UNICODE_NAME = re.compile(r"utf|unicode|ascii|646", re.I)
# iso-8859-7, windows-1251, big5, gb2312, euc-kr, shift_jis, koi8-r; no codec that is more than a table, such as UTF-7.
_OTHER_NAME = re.compile(r"(?:iso.?8859-\d+|windows-\d+|cp\d+|big5|gbk?\d*|euc-?\w\w|shift_?jis|koi8-?\w|tis-?620)$")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_UTF8_SEQUENCES = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_LINE_BREAKS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_STRAY = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")

Reason = Literal["empty", "binary", "undecodable"]


class Unreadable(UserError):
    """The bytes hold no usable text. `reason` is a word to count by, `detail` a sentence to read."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(reason, detail)  # both, so that the exception survives the way between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Decoded:
    """Text with LF line ends, without byte order marks, in NFC; and the codec that read it."""

    text: str
    encoding: str  # utf-8, utf-16, cp1252, latin-1, or the one that the file declares


def decode(data: bytes) -> Decoded:
    """The text of a file. Raises Unreadable with reason empty, binary or undecodable.

    Line and page breaks become LF; the few stray control characters that remain become blanks.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text, encoding = _attempt(data, "utf-16"), "utf-16"
        if text is None:
            raise Unreadable("undecodable", "it opens with a UTF-16 byte order mark but is no valid UTF-16")
    else:
        _refuse_binary(data)
        text, encoding = _attempt(data, "utf-8"), "utf-8"
        if text is None:
            text, encoding = _decode_other(data)
    text = normalise(text)
    if not text or text.isspace():
        raise Unreadable("empty", f"no text among its {len(data)} bytes")
    return Decoded(text, encoding)


def _refuse_binary(data: bytes) -> None:
    if b"\0" in data:
        raise Unreadable("binary", f"NUL byte at offset {data.index(0)}; if it is UTF-16, convert it to UTF-8")
    num_controls = len(data) - len(data.translate(None, _CONTROL_BYTES))
    if num_controls > max(1, _MAX_CONTROL_SHARE * len(data)):
        raise Unreadable("binary", f"{num_controls} control characters in {len(data)} bytes")


def _decode_other(data: bytes) -> tuple[str, str]:
    """Text that is no UTF-8: by the character set that it declares, or Windows-1252 where it lets see that."""
    match = _DECLARED.search(data, 0, _HEADER_BYTES)
    declared = match.group(1).decode("ascii", "replace") if match else ""
    if _LATIN_NAME.search(declared):
        text = _attempt(data, "cp1252")
        # Five bytes are undefined in cp1252 (81 8D 8F 90 9D); latin-1 maps each byte to something.
        return (text, "cp1252") if text is not None else (data.decode("latin-1"), "latin-1")
    high = b"".join(_HIGH_BYTES.findall(data))
    num_utf8 = sum(map(len, _UTF8_SEQUENCES.findall(data)))
    is_other = bool(declared) and not _UNICODE_NAME.search(declared)
    if num_utf8 > (0.9 if is_other else 0.5) * len(high):  # half of Big5 or GB2312 may look like UTF-8
        detail = f"damaged UTF-8: {num_utf8} of {len(high)} bytes above 127 are valid; fetch the file again"
        raise Unreadable("undecodable", detail)
    if is_other:
        return _decode_declared(data, declared)
    if len(high) > _MAX_HIGH_SHARE * len(data):
        detail = f"neither UTF-8 nor Western European: {len(high)} of {len(data)} bytes above 127; convert it to UTF-8"
        raise Unreadable("undecodable", detail)
    text = _attempt(data, "cp1252")
    if text is None:
        raise Unreadable("undecodable", "neither UTF-8 nor Windows-1252 and no character set declared; convert it")
    return text, "cp1252"


def _decode_declared(data: bytes, declared: str) -> tuple[str, str]:
    """By a character set of ISO, Windows or East Asia that the header names, if the whole file is valid in it."""
    name = declared.lower().replace(" ", "-")
    text = _attempt(data, name) if _OTHER_NAME.match(name) else None
    if text is None:
        detail = f"it declares the character set {declared!r}, which is unknown or not its own; convert it to UTF-8"
        raise Unreadable("undecodable", detail)
    return text, codecs.lookup(name).name


def _attempt(data: bytes, codec: str) -> str | None:
    """The text, or None where the bytes are not valid in that codec: an answer here, not an accident."""
    try:
        return data.decode(codec)
    except (UnicodeDecodeError, LookupError):
        return None


def normalise(text: str) -> str:
    """Text as all books are read: LF line ends, no byte order mark, no stray control characters, in NFC.

    Of more than 30 marks on one letter the first 30 stay (the limit of Unicode's Stream-Safe Text Format, UAX 15,
    section 13): the time to bring marks into order grows with the square of their number.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    if _CONTROLS.search(text):
        text = _STRAY.sub(" ", _LINE_BREAKS.sub("\n", text))
    if unicodedata.is_normalized("NFC", text):
        return text
    return unicodedata.normalize("NFC", _heaped_marks().sub(r"\1", text))


@lru_cache
def _heaped_marks() -> re.Pattern[str]:
    """Runs of more than 30 marks, the first 30 as a group."""
    every = map(chr, range(0x300, 0x1F000))  # marks stand nowhere else
    marks = "".join(c for c in every if unicodedata.combining(unicodedata.normalize("NFD", c)[0]))
    return re.compile(f"([{marks}]{{30}})[{marks}]+")
