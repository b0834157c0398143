"""Chunks are exact slices of the text, cover it, and are chosen the same way every time."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.chunks import MAX_SENTENCE_CHARS, chunk_text, passages
from quire.errors import UserError

SENTENCE = "This is the sentence that has the number {} in it."


def sentences(num: int, between: str = " ") -> str:
    return between.join(SENTENCE.format(f"n{i}") for i in range(num))


def windows(text: str, **options) -> list[tuple[int, int]]:
    made = chunk_text(text, **options)
    return sorted([(chunk.start, chunk.end) for chunk in made.chunks] + [(r.start, r.end) for r in made.rejects])


def test_windows_of_fourteen_sentences_start_every_ten() -> None:
    text = sentences(34)
    chunks = chunk_text(text).chunks
    assert [chunk.num_sentences for chunk in chunks] == [14, 14, 14]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    for chunk, first in zip(chunks, (0, 10, 20), strict=True):
        assert text[chunk.start : chunk.end] == " ".join(SENTENCE.format(f"n{first + i}") for i in range(14))


def test_line_breaks_and_short_sentences_are_kept() -> None:
    text = "Oh.\n\n" + sentences(6, "\n") + "\nNo!\n"
    (chunk,) = chunk_text(text).chunks
    assert text[chunk.start : chunk.end] == text.strip()


@pytest.mark.parametrize(("num", "expected"), [(0, 0), (1, 1), (13, 1), (14, 1), (15, 2), (24, 2), (25, 3), (34, 3)])
def test_no_window_repeats_the_tail_of_another(num: int, expected: int) -> None:
    found = windows(sentences(num))
    assert len(found) == expected
    assert all(later[1] > earlier[1] for earlier, later in zip(found, found[1:], strict=False))


def test_short_and_foreign_windows_are_rejected_with_a_reason() -> None:
    foreign = " ".join(f"Gallia{i} omnis divisa est partes tres quarum unam incolunt Belgae." for i in range(14))
    made = chunk_text(foreign + " " + sentences(11), overlap=0)
    assert [reject.reason for reject in made.rejects] == ["not_english"]
    assert made.chunks[0].index == 1
    assert chunk_text(foreign, english=False).chunks
    assert [reject.reason for reject in chunk_text("Too short.").rejects] == ["short"]


def test_the_cap_keeps_evenly_spaced_chunks_in_order_with_their_ids() -> None:
    text = sentences(1_004)
    everything = {chunk.index: chunk for chunk in chunk_text(text).chunks}
    made = chunk_text(text, max_chunks=10)
    kept = [chunk.index for chunk in made.chunks]
    assert len(kept) == 10
    assert {later - earlier for earlier, later in zip(kept, kept[1:], strict=False)} == {10}
    assert all(everything[chunk.index] == chunk for chunk in made.chunks)
    assert {reject.reason for reject in made.rejects} == {"over_cap"}
    assert len(made.rejects) == len(everything) - 10


@pytest.mark.parametrize("text", ["word " * 30_000, "x" * 100_000, "word\n" * 9_000 + "y" * 30_000])
def test_text_without_full_stops_makes_no_unbounded_chunk(text: str) -> None:
    found = windows(text, english=False)
    assert found[0][0] == 0
    assert max(end - start for start, end in found) <= 14 * (MAX_SENTENCE_CHARS + 1)
    assert text[found[0][0] : found[-1][1]] == text.strip()
    assert all(later[0] <= earlier[1] for earlier, later in zip(found, found[1:], strict=False))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["He went. ", "Why?\n", "\n\n", "Mr. A. said “no.” ", "word ", "… ", "! "]), max_size=80),
    st.integers(1, 6),
    st.data(),
)
def test_windows_cover_the_text_and_advance(parts: list[str], size: int, data: st.DataObject) -> None:
    text = "".join(parts)
    overlap = data.draw(st.integers(0, size - 1))
    found = windows(text, size=size, overlap=overlap, min_chars=data.draw(st.integers(0, 60)))
    covered = "".join(text[start:end] for start, end in _without_overlap(found))
    assert "".join(covered.split()) == "".join(text.split())
    for start, end in found:
        assert text[start:end] == text[start:end].strip() != ""


def _without_overlap(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    position, parts = 0, []
    for start, end in spans:
        parts.append((max(start, position), end))
        position = end
    return parts


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"size": 0}, "size = 0"),
        ({"size": 4, "overlap": 4}, "overlap = 4"),
        ({"overlap": -1}, "overlap = -1"),
        ({"max_chunks": 0}, "max_chunks = 0"),
        ({"min_chars": -1}, "min_chars = -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(options: dict[str, int], key: str) -> None:
    with pytest.raises(UserError, match=key):
        chunk_text("Some text.", **options)


NORMAL = sentences(20, "\n").replace("sentence", "séance")
AS_SENT = {
    "decomposed": unicodedata.normalize("NFD", NORMAL),
    "with carriage returns": NORMAL.replace("\n", "\r\n"),
    "with a mark": "\ufeff" + NORMAL,
    "with a page break": NORMAL.replace("\n", "\x0c", 1),
}


@pytest.mark.parametrize("how", AS_SENT)
def test_the_passages_of_a_text_are_those_that_its_book_would_give(how: str) -> None:
    sizes = {"size": 6, "overlap": 2, "min_chars": 100}
    expected = [NORMAL[c.start : c.end] for c in chunk_text(NORMAL, **sizes).chunks]
    assert AS_SENT[how] != NORMAL and passages(AS_SENT[how], **sizes) == expected and len(expected) == 5
    assert passages(unicodedata.normalize("NFD", "Too short, éh? "), **sizes) == ["Too short, éh?"]
