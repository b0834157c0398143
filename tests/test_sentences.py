"""The splitter agrees with spaCy's sentencizer and loses nothing."""

from pathlib import Path

import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from quire.decode import decode
from quire.gutenberg import clean
from quire.sentences import sentence_spans

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["He came.", "She went!", "Why?"],
        ["Mr. Darcy met Mrs. Bennet and Dr. Smith of St. Ives.", "They spoke."],
        ["I saw J. B. Priestley, i.e. the author.", "He left at 5 p.m. sharp."],
        ["It cost 3.50 pounds.", "No more!"],
        ["He waited... and waited.", "Nothing."],
        ["“Is it you?”", "“Yes.”"],
        ["'It's the dog's.'", "(He said so.)", "[Really?!]"],
        ["Oh.", "No.", "Hm."],
        ["She shouted: “WAR.”", "Then silence."],
        ["without a full stop"],
    ],
)
def test_sentences_of_prose(sentences: list[str]) -> None:
    assert split("  " + "\n".join(sentences) + "\n") == sentences


def test_marks_behind_one_blank_stay_with_the_sentence_they_follow_as_in_spacy() -> None:
    assert split('He left. "Come," she said.') == ['He left. "', 'Come," she said.']
    assert split('He left.\n"Come," she said.') == ["He left.", '"Come," she said.']


def test_no_text_no_sentences() -> None:
    for text in ("", " \n\t"):
        spans = sentence_spans(text)
        assert spans.shape == (0, 2)
        assert spans.dtype == np.int64


PIECES = st.sampled_from(
    [
        "Mr.",
        "He",
        "went",
        ".",
        "!",
        "?",
        "...",
        "…",
        '"',
        "”",
        "’",
        "(",
        ")",
        "--",
        "—",
        " ",
        "  ",
        "\n",
        "\n\n",
        "a.m.",
        "U.S.",
        "x",
        "_",
        "*",
        "3.5",
        "\u00a0",
        "é",
        "。",
    ]
)


@given(st.lists(PIECES, max_size=60).map("".join) | st.text())
def test_spans_part_the_text_at_white_space_only(text: str) -> None:
    spans = sentence_spans(text)
    assert spans.dtype == np.int64
    edges = [0, *spans.ravel().tolist(), len(text)]
    assert edges == sorted(edges)
    assert all(text[start:end].strip() == "" for start, end in zip(edges[::2], edges[1::2], strict=True))
    assert all(sentence == sentence.strip() != "" for sentence in split(text))


@pytest.mark.parametrize("unit", [".", "?", ". ", '."', "?x", "Mr.", " .", '" ', "a.B", "\n", "x", "-", ". -", "?!,"])
def test_long_runs_of_odd_characters_are_split_in_one_pass(unit: str) -> None:
    # In quadratic time this would not end.
    text = unit * (300_000 // len(unit))
    assert "".join(split(text)).replace(" ", "") == text.replace(" ", "").strip()


def spacy_starts(text: str) -> set[int]:
    """Where spaCy's sentences begin, each at its first visible character."""
    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    spans = [(sentence.start_char, sentence.text) for sentence in pipeline(text).sents]
    return {start + len(words) - len(words.lstrip()) for start, words in spans if words.strip()}


@pytest.mark.parametrize("name", ["elizabeth_gaskell__cousin_phillis", "maria_edgeworth__castle_rackrent"])
@pytest.mark.parametrize("layout", ["lines", "one line"])
def test_boundaries_are_those_of_spacy(name: str, layout: str) -> None:
    path = BOOKS / f"{name}.txt"
    if not path.exists():
        pytest.skip("the shared test books are not here")
    text = clean(decode(path.read_bytes()).text).text[20_000:100_000]
    if layout == "one line":
        text = " ".join(text.split())
    expected, found = spacy_starts(text), set(sentence_spans(text)[:, 0].tolist())
    assert len(expected) > 400
    assert len(expected ^ found) <= 0.001 * len(expected)
