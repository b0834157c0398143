"""Proper names in a text, by its capitals alone: no model, no list, the same answer everywhere."""

import re
from collections.abc import Iterator

from quire.sentences import sentence_spans

MASK = "Name"
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_OPENS_SPEECH = frozenset("\"'“‘„«»(*_-–—:")  # a capital behind one of these may begin a sentence of its own
_POSSESSIVES = ("'s", "’s")


def proper_names(text: str) -> list[str]:
    """Names in reading order, each time they occur, without the possessive 's.

    A name is a capitalised word that begins neither a sentence nor what someone says: there every word has a capital.
    Words in capitals throughout (headings, I) are none.
    """
    return [match.group() for match, is_name in _capitalised(text) if is_name]


def mask_names(text: str, mask: str = MASK) -> str:
    """The text with every name replaced by one neutral word, also where it begins a sentence; masked again, it stays.

    A name that this text writes at the beginning of sentences only is not known as one, and stays.
    """
    found = list(_capitalised(text))
    names = {match.group() for match, is_name in found if is_name}
    parts, end = [], 0
    for match, _ in found:
        if match.group() in names:
            parts += [text[end : match.start()], mask]
            end = match.end()
    return "".join([*parts, text[end:]])


def _capitalised(text: str) -> Iterator[tuple[re.Match[str], bool]]:
    """Capitalised words without a possessive 's, and whether their place shows that they are names."""
    for start, end in sentence_spans(text).tolist():
        for place, match in enumerate(_WORD.finditer(text, start, end)):
            word = match.group()
            if not word[0].isupper():
                continue
            if word.endswith(_POSSESSIVES):
                match = _WORD.match(text, match.start(), match.end() - 2)
                word = match.group()
            begins = place == 0 or text[match.start() - 1] in _OPENS_SPEECH
            # I'm and I've are no names, and neither is what stands in capitals throughout
            yield match, not (begins or word.isupper() or word.startswith(("I'", "I’")))
