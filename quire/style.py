"""How a text is written, in three numbers that do not depend on its length."""

import re
from collections.abc import Sequence

import numpy as np

NAMES = ("type_token_ratio", "punctuation_share", "log_sentence_words")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_PUNCTUATION = re.compile(r"[.,;:!?\"'()\[\]{}\-–—‘’“”…]")
_END = re.compile(r"[.!?…]+")
_FIRST_WORDS = 150  # the type-token ratio falls with length, so it is taken over as many words in every text


def style_features(texts: Sequence[str]) -> np.ndarray:
    """(n, 3) float32, columns as in NAMES; zeros for a text without words.

    Type-token ratio of the first 150 words, punctuation marks over characters other than white space, and the natural
    logarithm of the mean number of words per sentence. White space does not matter.
    """
    return np.asarray([_features(text) for text in texts], dtype=np.float32).reshape(len(texts), len(NAMES))


def _features(text: str) -> tuple[float, float, float]:
    words = _WORD.findall(text.lower())
    if not words:
        return 0.0, 0.0, 0.0
    first = words[:_FIRST_WORDS]
    visible = sum(not character.isspace() for character in text)
    sentences = max(1, sum(bool(_WORD.search(piece)) for piece in _END.split(text)))
    return len(set(first)) / len(first), len(_PUNCTUATION.findall(text)) / visible, float(np.log(len(words) / sentences))
