"""Bytes are read as the text they hold, or refused with a reason."""

import copy
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.decode import Unreadable, _heaped_marks, decode, normalise
from quire.errors import UserError

PROSE = "The café was “closed” — naturally. " * 20


def test_utf8_with_and_without_a_mark() -> None:
    for data in (PROSE.encode(), b"\xef\xbb\xbf" + PROSE.encode()):
        decoded = decode(data)
        assert (decoded.text, decoded.encoding) == (PROSE, "utf-8")


def test_utf16_with_its_mark() -> None:
    assert decode(PROSE.encode("utf-16")).text == PROSE


def test_what_proves_to_be_windows_1252_is_read_as_that() -> None:
    decoded = decode(PROSE.encode("cp1252"))
    assert (decoded.text, decoded.encoding) == (PROSE, "cp1252")


def test_declared_latin_1_is_read_even_where_windows_1252_has_no_letter() -> None:
    header = b"Character set encoding: ISO-8859-1\r\n\r\n"
    assert decode(header + "Brontë".encode("latin-1")).text.endswith("Brontë")
    assert decode(header + b"Bront\xeb \x81 end").encoding == "latin-1"


@pytest.mark.parametrize(
    ("name", "codec", "text"),
    [
        ("ISO-8859-7", "iso8859-7", "Σα βγεις στον πηγαιμό για την Ιθάκη"),
        ("Big5", "big5", "學而時習之，不亦說乎？" * 20),
        ("GB2312", "gb2312", "学而时习之，不亦说乎？" * 20),
        ("Windows-1251", "cp1251", "Все счастливые семьи похожи друг на друга"),
    ],
)
def test_what_declares_its_character_set_is_read_by_it(name: str, codec: str, text: str) -> None:
    decoded = decode(f"Character set encoding: {name}\r\n\r\n".encode() + text.encode(codec))
    assert decoded.text.endswith(text) and decoded.encoding == codec


def test_utf8_wins_over_a_header_left_from_before_a_conversion() -> None:
    data = "Character set encoding: ISO-8859-1\n\nVillette, by Charlotte Brontë".encode()
    decoded = decode(data)
    assert decoded.text.endswith("Brontë")
    assert decoded.encoding == "utf-8"


def test_line_ends_pages_marks_and_letters_are_normalised() -> None:
    data = "\ufeffone\r\ntwo\rthree\x0cfour\u2028five\ufeff e\u0301 six\x1a".encode()
    assert decode(data).text == "one\ntwo\nthree\nfour\nfive é six "


def test_marks_heaped_on_a_letter_take_no_time_and_thirty_of_them_stay() -> None:
    heap = "a" + "\u0301\u0316" * 500_000  # in order after hours of sorting
    assert unicodedata.normalize("NFD", normalise(heap + "b")) == unicodedata.normalize("NFD", heap[:31] + "b")


def test_every_mark_is_known_as_one() -> None:
    every = [c for c in map(chr, range(0x110000)) if unicodedata.combining(c)]
    assert all(_heaped_marks().fullmatch(c * 31) for c in every)


@pytest.mark.parametrize("data", [b"", b"  \r\n\t ", b"\xef\xbb\xbf", b"\x1a"])
def test_nothing_to_read_is_empty(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data)
    assert caught.value.reason == "empty"


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04\x14\0\0\0", bytes(range(1, 256)) * 9, b"text\0text" * 50, PROSE.encode("utf-16-le")]
)
def test_data_that_is_no_text_is_binary(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data)
    assert caught.value.reason == "binary"


@pytest.mark.parametrize(
    "data",
    [
        PROSE.encode() + b"\xe2\x80",  # cut in the middle of a letter
        "Σὰ βγεῖς στὸν πηγαιμὸ γιὰ τὴν Ἰθάκη".encode("cp1253", "ignore") * 9,
        "吾輩は猫である。名前はまだ無い。".encode("shift_jis") * 9,
        b"Character set encoding: ISO-8859-7\n\nword \xe1\xff word",  # ff is no letter of it
        b"Character set encoding: rot13\n\nword \xe1 word",
        "Character set encoding: ISO-8859-7\n\nΣὰ βγεῖς στὸν πηγαιμὸ γιὰ τὴν Ἰθάκη".encode() + b"\xce",
        b"a word \x81 another word " * 9,
        b"\xff\xfea",
    ],
)
def test_text_in_a_character_set_nobody_can_tell_is_undecodable(data: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data)
    assert caught.value.reason == "undecodable"


def test_the_refusal_is_a_user_error_that_travels_between_processes() -> None:
    error = copy.copy(Unreadable("binary", "NUL byte at offset 3"))  # by the same protocol as between processes
    assert isinstance(error, UserError)
    assert (error.reason, str(error)) == ("binary", "binary: NUL byte at offset 3")


@given(st.text())
def test_any_text_comes_back_normalised(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        decoded = decode(data).text
    except Unreadable as error:
        assert error.reason in {"empty", "binary", "undecodable"}
    else:
        assert unicodedata.is_normalized("NFC", decoded)
        assert not set(decoded) & set("\r\0\x0b\x0c\x1a\x7f\x85\ufeff\u2028\u2029")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        assert decode(data).text.strip()
    except Unreadable as error:
        assert error.detail
