"""BERT's tokenisation by words: each different word is given to the tokenizer once, and looked up from then on.

A WordPiece tokenizer normalises character by character, splits at white space and around punctuation, and reads each
word by itself. What a character becomes and where it splits is asked of the tokenizer itself, once a character; the
rest is array work on code points. A text with a character that does not stay one character (a lone accent, a Chinese
character, a control) or with an added token in it ([SEP]) is left to the tokenizer.
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

_UNKNOWN, _SPACE, _PUNCTUATION, _WORD, _OTHER = range(5)
_MAX_WORDS = 2**20  # remembered; the memory begins anew beyond, at some 200 MB
_LONG = ""  # stands for each word that is longer than any the model knows; no word is empty
_BLANK = np.uint32(ord(" "))
_GAP = "\n"  # between texts that are read at once; white space, and so no part of a word


class Tokens(NamedTuple):
    """A text's t tokens."""

    ids: np.ndarray  # (t,) int32
    starts: np.ndarray  # (t,) int64, characters
    ends: np.ndarray  # (t,) int64


def reads_by_words(tokenizer: Tokenizer) -> bool:
    """Whether words read one by one provably give a tokenizer's own tokens and offsets."""
    parts = json.loads(tokenizer.to_str())
    kinds = {name: (parts[name] or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")}
    return (
        kinds["normalizer"] in (None, "BertNormalizer")
        and kinds["pre_tokenizer"] == "BertPreTokenizer"
        and kinds["model"] in ("WordPiece", "WordLevel")
        and (parts["post_processor"] or {}).get("type") in (None, "TemplateProcessing", "BertProcessing")
        and not any(token["lstrip"] or token["rstrip"] or token["normalized"] for token in parts["added_tokens"])
    )


class WordTokens:
    """A tokenizer for which `reads_by_words` holds, and the words it has read."""

    def __init__(self, tokenizer: Tokenizer):
        self._normalizer, self._splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
        parts = json.loads(tokenizer.to_str()) | {"normalizer": None}
        self._words = Tokenizer.from_str(json.dumps(parts))
        self._unknown = self._words.token_to_id(parts["model"].get("unk_token") or "")
        # A longer word is one unknown token. It is not asked: 50 MB without a blank would take gigabytes.
        longest = max(map(len, parts["model"]["vocab"]), default=0)
        self._max_chars = parts["model"].get("max_input_chars_per_word", longest)
        added = sorted(token.content for token in tokenizer.get_added_tokens_decoder().values())
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self._kinds = np.zeros(0x110000, np.uint8)  # by code point
        self._normal = np.zeros(0x110000, np.uint32)
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {_LONG: 0}  # of the words, in the order of the arrays below
        self._sizes, self._first = np.ones(1, np.int64), np.zeros(1, np.int64)  # tokens of each word; its first of all
        nothing = np.zeros(1, np.int64)
        self._known = Tokens(np.asarray([self._unknown or 0], np.int32), nothing, nothing)  # offsets in the word

    def read(self, texts: Sequence[str]) -> list[Tokens | None]:
        """The tokens of each text, without special ones; None for one that must be left to the tokenizer."""
        if not texts:
            return []
        if len(self._numbers) > _MAX_WORDS:
            self._forget()
        joined = _GAP.join(texts)
        bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
        codes = np.frombuffer(joined.encode("utf-32-le"), "<u4")
        kinds = self._kinds[codes]
        if (kinds == _UNKNOWN).any():
            self._ask(np.unique(codes[kinds == _UNKNOWN]).tolist())
            kinds = self._kinds[codes]
        normal = self._normal[codes]
        marks = [match.start() for text in (joined, _text(normal)) for match in self._added.finditer(text)]
        left = np.searchsorted(bounds, np.r_[np.flatnonzero(kinds == _OTHER), marks], "right") - 1
        left = set(left.astype(np.int64).tolist())
        for text in left:
            kinds[bounds[text] : bounds[text + 1]] = _SPACE
        tokens = self._look_up(normal, kinds)
        cuts = np.searchsorted(tokens.starts, bounds).tolist()
        return [
            None if text in left else Tokens(tokens.ids[a:b], tokens.starts[a:b] - at, tokens.ends[a:b] - at)
            for text, ((a, b), at) in enumerate(zip(pairwise(cuts), bounds.tolist(), strict=False))
        ]

    def _ask(self, codes: list[int]) -> None:
        for code in codes:
            char = self._normalizer.normalize_str(chr(code)) if self._normalizer else chr(code)
            kind = _OTHER
            if len(char) == 1:
                pieces = [piece for piece, _ in self._splitter.pre_tokenize_str(f"a{char}a")]
                known = {("a", "a"): _SPACE, ("a", char, "a"): _PUNCTUATION, (f"a{char}a",): _WORD}
                kind = known.get(tuple(pieces), _OTHER)
            self._kinds[code], self._normal[code] = kind, ord(char) if kind != _OTHER else ord(" ")

    def _look_up(self, codes: np.ndarray, kinds: np.ndarray) -> Tokens:
        """All tokens of a normalised text whose characters have these code points and are of these kinds."""
        word, alone = np.r_[False, kinds == _WORD, False], kinds == _PUNCTUATION
        starts = np.flatnonzero(alone | (word[1:-1] & ~word[:-2]))
        ends = np.flatnonzero(alone | (word[1:-1] & ~word[2:])) + 1
        long = (ends - starts > self._max_chars) & (self._unknown is not None)
        words = _words(codes, starts, word[1:-1] | alone)
        for place in np.flatnonzero(long).tolist():
            words[place] = _LONG
        new = sorted(set(words).difference(self._numbers))
        if new:
            self._learn(new)
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(starts))
        sizes = self._sizes[numbers]
        ends_at = np.cumsum(sizes)
        places = np.arange(ends_at[-1] if len(words) else 0) + np.repeat(self._first[numbers] - ends_at + sizes, sizes)
        at = np.repeat(starts, sizes)
        stops = np.where(np.repeat(long, sizes), np.repeat(ends, sizes), at + self._known.ends[places])
        return Tokens(self._known.ids[places], at + self._known.starts[places], stops)

    def _learn(self, words: list[str]) -> None:
        found = self._words.encode_batch(words, add_special_tokens=False)
        offsets = np.asarray([pair for encoding in found for pair in encoding.offsets], np.int64).reshape(-1, 2)
        ids = np.asarray([token for encoding in found for token in encoding.ids], np.int32)
        new = Tokens(ids, offsets[:, 0], offsets[:, 1])
        self._known = Tokens(*(np.concatenate(pair) for pair in zip(self._known, new, strict=True)))
        self._sizes = np.r_[self._sizes, [len(encoding.ids) for encoding in found]]
        self._first = np.cumsum(self._sizes) - self._sizes
        self._numbers.update(zip(words, range(len(self._numbers), len(self._sizes)), strict=True))


def _text(codes: np.ndarray) -> str:
    return codes.tobytes().decode("utf-32-le")


def _words(codes: np.ndarray, starts: np.ndarray, visible: np.ndarray) -> list[str]:
    """The words that begin at `starts`, of the characters that are part of one: quicker than to cut each out.

    A blank stands for every other character, and before a word that another one touches; split there.
    """
    touching = starts[1:][visible[starts[1:] - 1]]
    spaced = np.insert(np.where(visible, codes, _BLANK), touching, _BLANK)
    return list(filter(None, _text(spaced).split(" ")))
