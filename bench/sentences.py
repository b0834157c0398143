"""Sentence splitting, MB/s: `quire.sentences` beside spaCy's blank English with its `sentencizer`.

    python -m bench.sentences [--megabytes 4] [--rounds 3]

Both read the same texts one by one on one core and give character offsets; spaCy with `pipe`, in the batches that it
takes by itself. Before the rounds the boundaries of both are compared, each at its first visible character, and the
share of spaCy's that ours has, and of ours that spaCy's has, stand in the result. The corpus is the documentation of
installed Python packages, harder than books: `tests/test_sentences.py` counts the differences on those.
"""

import time
from functools import partial

import numpy as np
import spacy

from bench.contest import contest, options
from bench.corpus import corpus
from quire.sentences import sentence_spans


def pipeline() -> spacy.language.Language:
    made = spacy.blank("en")
    made.add_pipe("sentencizer")
    return made


def ours(texts: list[str]) -> list[np.ndarray]:
    return [sentence_spans(text) for text in texts]


def theirs(texts: list[str], split: spacy.language.Language) -> list[list[tuple[int, int]]]:
    return [[(span.start_char, span.end_char) for span in made.sents] for made in split.pipe(texts)]


def starts(text: str, spans) -> set[int]:
    """Where sentences begin, at a visible character: spaCy counts white space to the one or the other."""
    words = ((start, text[start:end]) for start, end in spans)
    return {start + len(word) - len(word.lstrip()) for start, word in words if word.strip()}


def agreement(texts: list[str], split: spacy.language.Language) -> dict[str, float]:
    both = found = wanted = 0
    for text, mine, other in zip(texts, ours(texts), theirs(texts, split), strict=True):
        a, b = starts(text, mine.tolist()), starts(text, other)
        both, found, wanted = both + len(a & b), found + len(a), wanted + len(b)
    return {"of_theirs": both / wanted, "of_ours": both / found, "boundaries": wanted}


def speed(split, texts: list[str], megabytes: float) -> float:
    started = time.perf_counter()
    split(texts)
    return megabytes / (time.perf_counter() - started)


def main() -> None:
    asked = options(__doc__, megabytes=4, rounds=3)
    texts = list(corpus(asked.megabytes))
    megabytes, split = sum(len(text.encode()) for text in texts) / 1e6, pipeline()
    same = agreement(texts, split)
    print(f"      {same['of_theirs']:.4%} of {same['boundaries']:,} boundaries found, {same['of_ours']:.4%} theirs")
    contenders = {"quire.sentences": ours, "spaCy sentencizer": partial(theirs, split=split)}
    timed = {name: partial(speed, way, texts, megabytes) for name, way in contenders.items()}
    contest("sentences", "MB", timed, asked.rounds, megabytes=megabytes, same_boundaries=same)


if __name__ == "__main__":
    main()
