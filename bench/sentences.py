"""Sentence splitting, MB/s: `quire.sentences` beside spaCy's blank English with its `sentencizer`.

    python -m bench.sentences [--megabytes 4] [--folder BOOKS] [--rounds 3]

Both read the same texts one by one on one core and give character offsets; spaCy with `pipe`, in the batches that it
takes by itself. The corpus is the documentation of installed Python packages, which is harder than books; or the books
of a folder of .txt files, decoded and cleaned as `pipelines.documents` does, cut at white space into pieces of 100,000
characters, a tenth of what spaCy takes: all as their lines are, and for the comparison each on one line as well.

Before the rounds the boundaries of both are compared, each at its first visible character. In the result stand the
share of spaCy's that ours has, and of ours that spaCy's has, the number of differences by kind, and a few of each kind
with what stands around them: `|` is the boundary. A kind says who has it, and what ends before it or may have ended.
"""

import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import spacy

from bench.contest import contest, options
from bench.corpus import corpus
from quire.decode import decode
from quire.gutenberg import clean
from quire.sentences import sentence_spans

PIECE_CHARS = 100_000
AROUND, SHOWN = 40, 3  # characters on either side of a difference, and how many of a kind are shown


def books(folder: str) -> list[str]:
    """Texts of books, cleaned, in pieces. Raises SystemExit where there is none."""
    files = sorted(Path(folder).rglob("*.txt"))
    if not files:
        raise SystemExit(f"--folder {folder!r}: no .txt file below it; give a folder of books")
    texts = (clean(decode(file.read_bytes()).text).text for file in files)
    return [piece for text in texts for piece in pieces(text)]


def pieces(text: str) -> Iterator[str]:
    """Cut behind the last white space of every `PIECE_CHARS` characters."""
    start = 0
    while start < len(text):
        end = start + PIECE_CHARS
        if end < len(text):
            end = 1 + max(text.rfind(" ", start, end), text.rfind("\n", start, end)) or end
        yield text[start:end]
        start = end


def pipeline() -> spacy.language.Language:
    made = spacy.blank("en")
    made.add_pipe("sentencizer")
    return made


def ours(texts: list[str]) -> list[np.ndarray]:
    return [sentence_spans(text) for text in texts]


def theirs(texts: list[str], split: spacy.language.Language) -> list[list[tuple[int, int]]]:
    return [[(span.start_char, span.end_char) for span in made.sents] for made in split.pipe(texts)]


def starts(text: str, spans: Iterable[tuple[int, int]]) -> set[int]:
    """Where sentences begin, at a visible character: spaCy counts white space to the one or the other."""
    words = ((start, text[start:end]) for start, end in spans)
    return {start + len(word) - len(word.lstrip()) for start, word in words if word.strip()}


def agreement(texts: list[str], split: spacy.language.Language) -> dict[str, Any]:
    """Shares, and the differences by kind with examples, which are drawn with a fixed seed."""
    both = found = wanted = 0
    differences: dict[str, list[str]] = defaultdict(list)
    for text, mine, other in zip(texts, ours(texts), theirs(texts, split), strict=True):
        a, b = starts(text, mine.tolist()), starts(text, other)
        both, found, wanted = both + len(a & b), found + len(a), wanted + len(b)
        for place in sorted(a ^ b):
            differences[kind(text, place, place in a)].append(
                f"{text[max(0, place - AROUND) : place]}|{text[place : place + AROUND]}"
            )
    counts = Counter({name: len(places) for name, places in differences.items()})
    draw = random.Random(0)
    return {
        "of_theirs": both / wanted if wanted else 1.0,
        "of_ours": both / found if found else 1.0,
        "boundaries": wanted,
        "differences": dict(counts.most_common()),
        "examples": {
            name: draw.sample(differences[name], min(SHOWN, counts[name])) for name, _ in counts.most_common()
        },
    }


def kind(text: str, place: int, is_ours: bool) -> str:
    """Whose boundary it is, and the marks behind the word before it, or whether that word looks like a short form."""
    before = text[:place][-AROUND:].rstrip()
    word, marks = re.fullmatch(r"(?s).*?(\w*)(\W*)", before).groups()
    short = "a short word and " if marks.startswith(".") and 0 < len(word) <= 4 else ""
    return f"{'ours' if is_ours else 'spaCy'} alone, after {short}{''.join(marks.split())[:4] or 'no mark'}"


def speed(split, texts: list[str], megabytes: float) -> float:
    started = time.perf_counter()
    split(texts)
    return megabytes / (time.perf_counter() - started)


def told(layout: str, same: dict[str, Any]) -> None:
    print(
        f"      {layout}: {same['of_theirs']:.4%} of {same['boundaries']:,} boundaries found, "
        f"{same['of_ours']:.4%} theirs; {sum(same['differences'].values())} differ: {same['differences']}",
        flush=True,
    )


def main() -> None:
    asked = options(__doc__, megabytes=4.0, folder="", rounds=3)
    texts = books(asked.folder) if asked.folder else list(corpus(asked.megabytes))
    layouts = {"lines": texts}
    if asked.folder:
        layouts["one line"] = [" ".join(text.split()) for text in texts]
    split = pipeline()
    same = {layout: agreement(found, split) for layout, found in layouts.items()}
    for layout, found in same.items():
        told(layout, found)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    contenders = {"quire.sentences": ours, "spaCy sentencizer": partial(theirs, split=split)}
    timed = {name: partial(speed, way, texts, megabytes) for name, way in contenders.items()}
    name = "sentences-books" if asked.folder else "sentences"
    contest(name, "MB", timed, asked.rounds, megabytes=megabytes, same_boundaries=same)


if __name__ == "__main__":
    main()
