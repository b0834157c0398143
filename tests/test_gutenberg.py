"""Cleaning removes what Project Gutenberg added, and never the book."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.decode import decode
from quire.gutenberg import clean
from quire.gutenberg_header import Header, licence, parse_header

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"

HEADER = """\ufeffThe Project Gutenberg EBook of Middlemarch, by George Eliot

This eBook is for the use of anyone anywhere at no cost and with
almost no restrictions whatsoever.  You may copy it, give it away or
re-use it under the terms of the Project Gutenberg License included
with this eBook or online at www.gutenberg.org

Title: Middlemarch

Author: George Eliot

Release Date: May 24, 2008 [EBook #145]

Language: English

Character set encoding: UTF-8

*** START OF THIS PROJECT GUTENBERG EBOOK MIDDLEMARCH ***
""".removeprefix("\ufeff")
FOOTER = """
End of the Project Gutenberg EBook of Middlemarch, by George Eliot

*** END OF THIS PROJECT GUTENBERG EBOOK MIDDLEMARCH ***

Updated editions will replace the previous one.

*** START: FULL LICENSE ***

THE FULL PROJECT GUTENBERG LICENSE
PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK

1.F.4.  Except for the limited right of replacement, this work is provided as-is.
"""
LICENCE_PHRASES = (
    "project gutenberg-tm", "project gutenberg™", "project gutenberg license", "gutenberg literary archive",
    "gutenberg.org", "gutenberg.net", "pglaf.org", "pgdp.net",
    "*** start of", "***start of", "*** end of", "***end of",
)  # fmt: skip
BODY = "\n\n".join(
    [
        "CHAPTER I",
        *(f"Miss Brooke had that kind of beauty,\nnumber {i}, which is thrown into relief." for i in range(40)),
        "    An indented line of verse,\n      and another one [sic] of it.",
        "She spoke [in a low voice] of it.\n\nTHE END",
    ]
)


def book(top: str = "", body: str = BODY, bottom: str = "") -> str:
    return f"{HEADER}\n\n\n{top}\n\n\n{body}\n\n{bottom}\n{FOOTER}"


TOPS = {
    "nothing": "",
    "produced by": "Produced by Jane Doe and the Online Distributed\nProofreading Team at http://www.pgdp.net",
    "e-text prepared by": "E-text prepared by Jane Doe",
    "etext was prepared by": "This etext was prepared by Jane Doe, Somewhere.",
    "transcribed from": "Transcribed from the 1871 Blackwood edition by Jane Doe, email\njane@example.org",
    "one-line note": "[Transcriber's Note: the spelling has been kept.]",
    "curly note": "[Transcriber’s note: see the end]",
    "note of many lines": "[Transcribers' Notes:\n\nErrors [two of them] were\ncorrected.\n\nThe rest is kept.]",
    "note under a heading": "TRANSCRIBER'S NOTE:\n\nObvious errors in spelling and punctuation were corrected.",
    "note behind a heading": "Transcriber's note: Obvious errors were corrected.",
    "note in a box": "+------+\n| Transcriber's Note |\n| kept |\n+------+",
    "illustration": "[Illustration]",
    "caption of many lines": "[Illustration: Miss Brooke\n_from a drawing_ [1871]\n\nLondon]",
    "everything": "Produced by Jane Doe\n\n[Illustration: a]\n\n[Transcriber's Note: b]\n\n[Picture: c]",
}


@pytest.mark.parametrize("top", TOPS)
def test_whatever_stands_above_the_book_the_body_stays_exactly(top: str) -> None:
    assert clean(book(TOPS[top])).text == BODY
    assert clean(book(TOPS[top]).replace("\n", "\r\n")).text == BODY


@pytest.mark.parametrize("bottom", [top for top in TOPS if top.endswith("note") or "note " in top or "caption" in top])
def test_notes_below_the_book_go_as_well(bottom: str) -> None:
    assert clean(book(bottom=TOPS[bottom])).text == BODY


@pytest.mark.parametrize("top", TOPS)
def test_without_header_too(top: str) -> None:
    assert clean(f"{TOPS[top]}\n\n{BODY}\n").text == BODY


def test_every_removed_character_is_accounted_for() -> None:
    text = book(TOPS["everything"])
    cleaned = clean(text)
    assert len(cleaned.text) + sum(cleaned.removed.values()) == len(text)
    assert cleaned.removed["credits"] == len("Produced by Jane Doe")
    assert cleaned.removed["illustration"] == len("[Illustration: a]") + len("[Picture: c]")
    assert cleaned.removed["transcriber_note"] == len("[Transcriber's Note: b]")
    assert min(cleaned.removed[rule] for rule in ("header", "footer", "blank")) > 0


@pytest.mark.parametrize(
    "start",
    [
        "*** START OF THE PROJECT GUTENBERG EBOOK MIDDLEMARCH ***",
        "***START OF THE PROJECT GUTENBERG EBOOK MIDDLEMARCH***",
        "*** start of this project gutenberg etext middlemarch ***",
        "***START OF THE PROJECT GUTENBERG EBOOK MIDDLEMARCH, A\nSTUDY OF PROVINCIAL LIFE***",
    ],
)
def test_markers_in_all_their_spellings(start: str) -> None:
    text = book().replace("*** START OF THIS PROJECT GUTENBERG EBOOK MIDDLEMARCH ***", start)
    text = text.replace("*** END OF THIS PROJECT GUTENBERG EBOOK MIDDLEMARCH ***", re.sub("(?i)start", "END", start))
    assert clean(text).text == BODY
    assert parse_header(text).title == "Middlemarch"


SMALL_PRINT = """***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?  You know: lawyers.

BEFORE!  YOU USE OR READ THIS ETEXT you indicate that you agree.

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*"""


def test_the_small_print_of_old_files() -> None:
    top = "The Project Gutenberg Etext of Middlemarch, by George Eliot\n\nCopyright laws are changing.\n\n"
    text = f"{top}{SMALL_PRINT}\n\n{BODY}\n\nEnd of The Project Gutenberg Etext of Middlemarch\n"
    assert clean(text).text == BODY
    assert parse_header(text) == Header(title="Middlemarch", authors=("George Eliot",))


def test_the_small_print_below_the_book() -> None:
    body = "\n".join([BODY] * 6)
    assert clean(f"{body}\n\n{SMALL_PRINT}\n").text == body


def test_a_header_without_start_line_is_cut_by_paragraphs() -> None:
    header = HEADER.replace("*** START OF THIS PROJECT GUTENBERG EBOOK MIDDLEMARCH ***\n", "")
    assert clean(header + "\n\n" + BODY).text == BODY
    assert parse_header(header + "\n\n" + BODY).authors == ("George Eliot",)


def test_no_footer_marker_but_its_words() -> None:
    assert clean(f"{BODY}\n\nEnd of Project Gutenberg's Middlemarch, by George Eliot\n\nlegal words\n").text == BODY


def test_a_marker_between_two_volumes_takes_no_volume_with_it() -> None:
    volume = "\n\n".join([BODY] * 12)
    cleaned = clean(f"{HEADER}\n{volume}\n\nEnd of the Project Gutenberg EBook of Volume I\n\n{volume}\n{FOOTER}")
    assert cleaned.text == f"{volume}\n\n{volume}"


@pytest.mark.parametrize(
    "end", ["End of the Project Gutenberg EBook of Volume I", "*** END OF THE PROJECT GUTENBERG EBOOK ***"]
)
def test_a_short_second_volume_behind_an_end_line_is_no_licence(end: str) -> None:
    text = f"{HEADER}\n{BODY}\n\n{end}\n\n{BODY}\n{FOOTER}"
    assert clean(text).text == f"{BODY}\n\n{BODY}"
    assert clean(f"{BODY}\n\n{end}\n\n{BODY}").text == f"{BODY}\n\n{BODY}"  # and without a licence in the file


@pytest.mark.parametrize("opening", ["[Illustration: Miss Brooke", "[Transcriber's Note: so", "[Illustration"])
def test_an_unclosed_bracket_takes_nothing(opening: str) -> None:
    body = f"{opening}\n\n" + "\n\n".join("A paragraph of the book that goes on and on." for _ in range(90))
    assert clean(body).text == body


def test_prose_that_sounds_like_a_mark_stays() -> None:
    body = (
        f"{BODY}\n\nProduced by hand, such goods were dear.\n\nThe transcriber's notes lay on the table.\n\n"
        "[She read:] the project of Gutenberg.\n\nIt was in the public domain, and by the door."
    )
    assert clean(book(body=body)).text == body


def test_a_note_between_sentences_leaves_one_blank() -> None:
    assert clean("He read the [Transcriber's Note: sic] letter.").text == "He read the letter."


def test_licence_paragraphs_are_removed_wherever_they_stand() -> None:
    phrase = "This eBook is for the use of anyone anywhere at no cost.\nwww.gutenberg.org"
    middle = BODY.replace("CHAPTER I", f"CHAPTER I\n\n{phrase}", 1)
    cleaned = clean(middle)
    assert cleaned.text == BODY
    assert cleaned.removed["licence"] == len(phrase)


MARKS = [
    *TOPS.values(), HEADER, FOOTER, SMALL_PRINT, "[Illus", "tration]", "[Transcriber's", " Note:", "]", "[", "***",
    "*** END OF THIS PROJECT GUTENBERG EBOOK X ***\n", "End of the Project Gutenberg Etext\n", "Project Gutenberg-tm",
    "A line of prose.\n", "  verse  \n", "\n", "\n\n\n", "\r\n", "\r", "\t", "Produced by ", "Transcriber's Note\n",
    "+----+\n", "| x\n",
]  # fmt: skip


@settings(max_examples=150)
@given(st.lists(st.sampled_from(MARKS), max_size=14).map("".join) | st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    cleaned = clean(text)
    again = clean(cleaned.text)
    assert again.text == cleaned.text
    assert not any(again.removed.values())
    assert len(cleaned.text) + sum(cleaned.removed.values()) == len(text)
    remaining = iter(text.replace("\r\n", "\n").replace("\r", "\n"))
    assert all(character in remaining for character in cleaned.text)  # nothing is added or moved


def test_the_header_of_a_book() -> None:
    assert parse_header(book()) == Header("Middlemarch", ("George Eliot",), ("english",), 145, "UTF-8")


def test_wrapped_titles_several_authors_and_volumes() -> None:
    text = book().replace("Title: Middlemarch\n", "Title: Middlemarch (Vol. 2 of 3):\n       A Study of\n  Life\n")
    text = text.replace(
        "Author: George Eliot\n",
        "Author: George Eliot (Mary Ann Evans)\nAuthor: Mark Twain, 1835-1910\nEditor: A. B. Carr\n",
    )
    header = parse_header(text.replace("Language: English", "Language: English, French and Old Norse"))
    assert header.title == "Middlemarch (Vol. 2 of 3): A Study of Life"
    assert header.authors == ("George Eliot", "Mark Twain")
    assert header.languages == ("english", "french", "old norse")


def test_two_authors_on_a_line_are_two() -> None:
    text = book().replace("Author: George Eliot", "Author: Mark Twain and Charles Dudley Warner")
    assert parse_header(text).authors == ("Mark Twain", "Charles Dudley Warner")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Mark Twain\n        Charles Dudley Warner", ["Mark Twain", "Charles Dudley Warner"]),
        ("Mark Twain and\n        Charles Dudley Warner", ["Mark Twain", "Charles Dudley Warner"]),
        ("Mark Twain\n   and Charles Dudley Warner", ["Mark Twain", "Charles Dudley Warner"]),
        ("George Eliot (Mary\n   Ann Evans)", ["George Eliot"]),
        ("Twain, Mark, 1835-1910\nAuthor: Mark Twain", ["Mark Twain"]),
        ("Warner, Charles Dudley & Twain, Mark", ["Charles Dudley Warner", "Mark Twain"]),
        (
            "Goethe, Johann von; von Schiller, Friedrich",
            ["Johann von Goethe", "Friedrich von Schiller"],
        ),
        ("Jules Verne, H. G. Wells, and Mark Twain", ["Jules Verne", "H. G. Wells", "Mark Twain"]),
        ("King, Martin Luther, Jr.", ["Martin Luther King, Jr."]),
        ("Oliver Wendell Holmes, Sr.", ["Oliver Wendell Holmes, Sr."]),
    ],
)
def test_every_author_is_one_person_first_name_first(lines: str, expected: list[str]) -> None:
    assert list(parse_header(book().replace("George Eliot\n\nRelease", f"{lines}\n\nRelease")).authors) == expected


def test_lines_of_the_book_are_no_header() -> None:
    body = "Title: a word she had not\n\nAuthor: nobody\n\nby the door she stood.\n\n" + BODY
    assert parse_header(body) == Header()
    assert parse_header(HEADER.replace("Author: George Eliot", "") + body).authors == ("George Eliot",)


def test_all_books_survive_without_any_licence() -> None:
    if not BOOKS.is_dir():
        pytest.skip("the shared test books are not here")
    for path in sorted(BOOKS.glob("*.txt")):
        text = decode(path.read_bytes()).text
        cleaned = clean(text).text
        assert len(cleaned) >= 0.8 * len(text), path.name
        assert len(text) - len(cleaned) < 32_000, path.name  # header, licence and at most 12,000 of notes and captions
        assert [phrase for phrase in LICENCE_PHRASES if phrase in cleaned.lower()] == [], path.name
        opening = cleaned[:50_000].rstrip()
        assert clean(opening).text == opening, path.name


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"re-use it under the terms of the Project Gutenberg License\nincluded", "Project Gutenberg License"),
        (b"of the Project\r\nGutenberg-tm License", "Project Gutenberg License"),
        (b"***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***", "Project Gutenberg License"),
        (b"**This is a COPYRIGHTED Project Gutenberg eBook, Details Below**", "Copyrighted. Read the copyright notice"),
        (b"A book of one's own.", None),
    ],
)
def test_the_licence_is_what_the_header_says(head: bytes, expected: str | None) -> None:
    found = licence(b"The Project Gutenberg eBook\n\n" + head + b"\n\nCHAPTER I")
    assert found == expected or (expected is not None and found is not None and found.startswith(expected))
