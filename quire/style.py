"""How a text is written, in three numbers that do not depend on its length."""

import re
from collections.abc import Sequence

import numpy as np

from quire.sentences import sentence_spans

NAMES = ("type_token_ratio", "punctuation_share", "log_sentence_words")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Typed and typeset marks count alike: -- and an em dash are one mark, three full stops and an ellipsis as well.
_MARK = re.compile(r"[.,;:!?\"'()\[\]{}\-–—‘’“”„«»…](?:(?<=-)-+|(?<=\.)\.\.+)?")
_FIRST_WORDS = 150  # the type-token ratio falls with length, so it is taken over as many words in every text


def style_features(texts: Sequence[str]) -> np.ndarray:
    """(n, 3) float32, columns as in NAMES; zeros for a text without words.

    Type-token ratio of the first 150 words, punctuation marks over characters other than white space, and the natural
    logarithm of the mean number of words per sentence. White space does not matter.
    """
    return np.asarray([_features(text) for text in texts], dtype=np.float32).reshape(len(texts), len(NAMES))


def _features(text: str) -> tuple[float, float, float]:
    text = " ".join(text.split())
    words = _WORD.findall(text.lower().replace("’", "'"))
    if not words:
        return 0.0, 0.0, 0.0
    first = words[:_FIRST_WORDS]
    marks = _MARK.findall(text)
    visible = len(text) - text.count(" ") - sum(map(len, marks)) + len(marks)
    sentence_words = len(words) / len(sentence_spans(text))
    return len(set(first)) / len(first), len(marks) / visible, float(np.log(max(1.0, sentence_words)))
