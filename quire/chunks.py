"""Sentence windows over a text: chunks with exact character offsets, the same when training and when serving."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quire.decode import normalise
from quire.english import is_english
from quire.errors import UserError
from quire.evenly import evenly
from quire.sentences import sentence_spans

MAX_SENTENCE_CHARS = 2_000  # longer "sentences" (tables, unpunctuated verse) are cut at white space


@dataclass(frozen=True)
class Chunk:
    """`text[start:end]`, the window number `index` of its document."""

    index: int
    start: int
    end: int
    num_sentences: int


@dataclass(frozen=True)
class Reject:
    """A window that was dropped, and why: short, not_english or over_cap."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Chunking:
    """Chunks in reading order, and the windows that were dropped."""

    chunks: list[Chunk]
    rejects: list[Reject]


def chunk_text(
    text: str,
    *,
    size: int = 14,
    overlap: int = 4,
    min_chars: int = 200,
    max_chunks: int | None = 800,
    english: bool = True,
) -> Chunking:
    """Windows of `size` sentences, each starting `size - overlap` sentences after the one before.

    The last window is the first to reach the end of the text: a further one would only repeat its tail. Windows of
    fewer than `min_chars` characters, or that are not English, are dropped; of more than `max_chunks`, evenly spaced
    ones are kept, in order (None: all). `index` counts windows before anything is dropped, so ids do not depend on the
    limits. Raises UserError for an overlap that would never advance.
    """
    if size < 1 or not 0 <= overlap < size:
        raise UserError(f"size = {size}, overlap = {overlap}: need size >= 1 and 0 <= overlap < size")
    if max_chunks is not None and max_chunks < 1:
        raise UserError(f"max_chunks = {max_chunks}: need at least 1")
    if min_chars < 0:
        raise UserError(f"min_chars = {min_chars}: need 0 or more")
    spans = np.asarray(list(_bounded(text, sentence_spans(text))), dtype=np.int64).reshape(-1, 2)
    chunks, rejects = [], []
    for index, first in enumerate(_starts(len(spans), size, size - overlap)):
        window = spans[first : first + size]
        start, end = int(window[0, 0]), int(window[-1, 1])
        if end - start < min_chars:
            rejects.append(Reject(start, end, "short"))
        elif english and not is_english(text[start:end]):
            rejects.append(Reject(start, end, "not_english"))
        else:
            chunks.append(Chunk(index, start, end, len(window)))
    if max_chunks is not None and len(chunks) > max_chunks:
        keep = set(evenly(len(chunks), max_chunks).tolist())
        rejects += [Reject(c.start, c.end, "over_cap") for i, c in enumerate(chunks) if i not in keep]
        rejects.sort(key=lambda reject: reject.start)
        chunks = [c for i, c in enumerate(chunks) if i in keep]
    return Chunking(chunks, rejects)


def passages(text: str, *, size: int, overlap: int, min_chars: int) -> list[str]:
    """All chunks of a text that is asked about, read and cut as the books of the training data were.

    A text without a whole chunk is one passage, its beginning, shorter than `min_chars`: by that it is known.
    """
    text = normalise(text)
    made = chunk_text(text, size=size, overlap=overlap, min_chars=min_chars, max_chunks=None, english=False)
    return [text[c.start : c.end] for c in made.chunks] or [text.strip()[: min_chars - 1]]


def _starts(num_sentences: int, size: int, step: int) -> range:
    """First sentences of the windows, up to the first window that reaches the end."""
    if num_sentences <= size:
        return range(min(num_sentences, 1))
    return range(0, num_sentences - size + step, step)


def _bounded(text: str, spans: np.ndarray) -> Iterator[tuple[int, int]]:
    """Sentence spans, with overlong ones cut at white space (or anywhere, if there is none)."""
    for start, end in spans.tolist():
        while end - start > MAX_SENTENCE_CHARS:
            limit = start + MAX_SENTENCE_CHARS
            cut = max(text.rfind(mark, start + 1, limit) for mark in " \n\t")
            if cut <= start:
                cut = limit
            yield start, start + len(text[start:cut].rstrip())
            start = cut
            while text[start].isspace():  # a sentence ends with a visible character
                start += 1
        if start < end:
            yield start, end
