"""A text as the classical views read it: its terms, and its numbers before they are standardised."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from quire import style
from quire.proper_names import proper_names
from quire.sentences import sentence_spans

_MARKS = (",", ".", ";", ":", "?", "!", '"', "'", "-", "--", "...", "(", ")", "[", "]", "*", "_", "&")
_MARK = re.compile(r"--+|\.\.\.+|[^\w\s]|_")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
# Typed and typeset marks count alike, but in the view that is about them: which of them stand in a text is the habit of
# who transcribed the book, not of who wrote it.
_TYPESET_OR_TYPED = ("“", "”", "‘", "’", "—", "–", "…", '"', "'", "--", "----", "...", "_", "*")
_TYPOGRAPHIC = re.compile(r"-{3,}|--|\.\.\.|[“”‘’—–…\"'_*]")
TYPED = {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "…": "..."}
_TYPED = str.maketrans(TYPED)


@dataclass(frozen=True)
class Reading:
    """A text as all views read it."""

    original: str
    text: str  # typed marks, white space as one blank
    words: list[str]  # lower case


def read(text: str) -> Reading:
    """With typed marks, white space as one blank."""
    plain = " ".join(text.translate(_TYPED).split())
    return Reading(text, plain, _WORD.findall(plain.lower()))


def words(reading: Reading) -> list[str]:
    """In lower case, each time it occurs."""
    return reading.words


def characters(reading: Reading) -> list[str]:
    """All runs of four characters, in lower case, blanks and marks among them."""
    text = reading.text.lower()
    return [text[i : i + 4] for i in range(len(text) - 3)]


def distorted(reading: Reading, frequent: frozenset[str]) -> list[str]:
    """Runs of four characters after each word that is not frequent has become stars, one a letter, three at most: how
    a text is built and not what it is about (text distortion: Stamatatos 2017, EACL, there with a star for each letter
    or one for a word)."""

    def hidden(word: re.Match[str]) -> str:
        return word[0] if word[0] in frequent else "*" * min(3, len(word[0]))

    text = _WORD.sub(hidden, reading.text.lower())
    return [text[i : i + 4] for i in range(len(text) - 3)]


def names(reading: Reading) -> list[str]:
    """Proper names, each time they occur."""
    return [name.lower() for name in proper_names(reading.text)]


def function_words(readings: Sequence[Reading], vocabulary: Sequence[str]) -> np.ndarray:
    """How often each word of the vocabulary stands in each text (N, columns), as in `DENSE`."""
    return _shares((reading.words for reading in readings), vocabulary, readings)


def _punctuation(readings: Sequence[Reading]) -> np.ndarray:
    found = ([_short(mark) for mark in _MARK.findall(reading.text)] for reading in readings)
    return _shares(found, _MARKS, readings)


def _typography(readings: Sequence[Reading]) -> np.ndarray:
    found = ([_short(mark, 4) for mark in _TYPOGRAPHIC.findall(reading.original)] for reading in readings)
    return _shares(found, _TYPESET_OR_TYPED, readings)


def _short(mark: str, longest_dash: int = 2) -> str:
    """One name for dashes and dots however long they are drawn."""
    if mark[0] == "-":
        return mark if len(mark) <= 2 else "-" * longest_dash
    return mark[:3]


def _shares(found: Iterable[Sequence[str]], known: Sequence[str], readings: Sequence[Reading]) -> np.ndarray:
    """Square roots of how often each known thing is found per word: the root steadies the variance of rare ones."""
    place = {thing: column for column, thing in enumerate(known)}
    counts = np.zeros((len(readings), len(known)), np.float32)
    for row, things in enumerate(found):
        for thing in things:
            column = place.get(thing)
            if column is not None:
                counts[row, column] += 1
    num_words = np.array([max(1, len(reading.words)) for reading in readings], np.float32)
    return np.sqrt(counts / num_words[:, None])


def _sentences(readings: Sequence[Reading]) -> np.ndarray:
    """Mean, deviation and quantiles of the log words per sentence; mean and deviation of the letters per word."""
    rows = []
    for reading in readings:
        spans = sentence_spans(reading.text).tolist()
        lengths = np.log1p([reading.text.count(" ", *span) + 1 for span in spans] or [0])
        letters = [len(word) for word in reading.words] or [0]
        shape = (lengths.mean(), lengths.std(), *np.quantile(lengths, _QUANTILES))
        rows.append((*shape, np.mean(letters), np.std(letters)))
    return np.asarray(rows, np.float32).reshape(len(readings), 4 + len(_QUANTILES))


def _style(readings: Sequence[Reading]) -> np.ndarray:
    return style.style_features([reading.text for reading in readings])


# Raw numbers (N, columns) float32 of N texts by view; function words need a vocabulary beside.
DENSE: dict[str, Callable[[Sequence[Reading]], np.ndarray]] = {
    "punctuation": _punctuation,
    "typography": _typography,
    "sentences": _sentences,
    "style": _style,
}
NUM_COLUMNS = {
    "punctuation": len(_MARKS),
    "typography": len(_TYPESET_OR_TYPED),
    "sentences": 4 + len(_QUANTILES),
    "style": len(style.NAMES),
}
