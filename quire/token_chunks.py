"""Token windows over texts: chunks of at most so many tokens, on character offsets of the source text.

A tokenizer decides where a chunk begins and ends; the chunk's text is the source's own, `text[start:end]`, never a
decode. Its token ids are kept, without special tokens, so that nothing is tokenised again.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from quire.errors import UserError
from quire.word_tokens import Tokens, WordTokens

_BATCH_CHARS = 2**20  # of text tokenised at once; its encodings take 60 to 170 bytes a character
_PIECE_CHARS = 2**13  # of one document, where a tokenizer provably lets it be cut
_UNPROVEN_CHARS = 2**22  # where it does not: a longer text's encodings would be gigabytes
_MAX_WORD_CHARS = 2**18  # without a place to cut at; no text, and in a byte-level BPE 200 bytes of memory a character
_SPACE = re.compile(r"\s")
_LONE_BLANK = re.compile(r"(?<=\S) (?=\S)")
_LONE_SPACE = re.compile(r"(?<=\S)[ \n](?=\S)")  # a list of words or a table may have no blank at all
# What treats the two sides of a lone blank apart: see `cuts_at_blanks`.
_NORMALIZERS = (None, "BertNormalizer", "NFC")
_PRE_TOKENIZERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel")


@dataclass(frozen=True)
class TokenChunks:
    """Chunks in the order of their documents, and within a document in reading order; n chunks of t tokens in all."""

    document: np.ndarray  # (n,) int64, the text's place among those given
    index: np.ndarray  # (n,) int32, from 0 in each document
    start: np.ndarray  # (n,) int64, characters of the text, half-open
    end: np.ndarray  # (n,) int64
    offsets: np.ndarray  # (n + 1,) int64, where each chunk's tokens begin in `token_ids`
    token_ids: np.ndarray  # (t,) int32

    @property
    def num_tokens(self) -> np.ndarray:
        """(n,) int32."""
        return np.diff(self.offsets).astype(np.int32)


def check_window(max_tokens: int, overlap: int) -> None:
    """Raises UserError for a window that is empty or never advances."""
    if max_tokens < 1 or not 0 <= overlap < max_tokens:
        raise UserError(
            f"max_tokens = {max_tokens}, overlap = {overlap}: need max_tokens >= 1, 0 <= overlap < max_tokens"
        )


def whole(tokenizer: Tokenizer | str) -> Tokenizer:
    """A copy of a tokenizer (or of its JSON) that neither truncates nor pads, whatever its file says."""
    copy = Tokenizer.from_str(tokenizer if isinstance(tokenizer, str) else tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def digest(tokenizer: Tokenizer | str) -> str:
    """SHA-256 of what a tokenizer does to a text, whatever it truncates or pads to."""
    return hashlib.sha256(whole(tokenizer).to_str().encode()).hexdigest()


def cuts_at_blanks(tokenizer: Tokenizer) -> bool:
    """Whether a text cut before lone blanks (one, between visible characters) or lone line breaks provably has the same
    tokens and offsets.

    So it is when the normaliser never reaches over one (a character by itself, or NFC: white space composes with
    nothing before it), when the pre-tokenizer begins a new word at white space (BERT's drops it; GPT-2's expression
    lets no word run on into it and looks ahead from white space only), and when no added token holds a lone one or
    takes up what stands beside it. True for BERT, GPT-2 and their kin, not for SentencePiece.
    """
    parts = json.loads(tokenizer.to_str())
    normalizer, words, post = (parts[name] or {} for name in ("normalizer", "pre_tokenizer", "post_processor"))
    if normalizer.get("type") not in _NORMALIZERS or words.get("type") not in _PRE_TOKENIZERS:
        return False
    if words["type"] == "ByteLevel" and (words["add_prefix_space"] or not words["use_regex"]):
        return False
    if post.get("trim_offsets") and post.get("add_prefix_space"):  # the first word of a text would keep its blank
        return False
    return all(
        not (token["lstrip"] or token["rstrip"] or (token["normalized"] and normalizer.get("type") == "BertNormalizer"))
        and (token["content"].isspace() and len(token["content"]) > 1 or not _SPACE.search(token["content"]))
        for token in parts["added_tokens"]
    )


def chunk_texts(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    overlap: int,
    words: WordTokens | None = None,
    cut: "Cutting | None" = None,
) -> TokenChunks:
    """Windows of `max_tokens` tokens, special ones not counted, each starting `max_tokens - overlap` after the last.

    The last window is the first to reach the end of its text, so each holds a token that no other holds. A window runs
    from its first token's first character to its last token's last one, whole characters always: two windows may share
    one whose bytes are several tokens. A text's first window begins at 0 and its last ends where the text ends, so a
    text of one window is its own chunk. A text without a token has no chunk.

    `tokenizer` as made by `whole`; with `words` of the same tokenizer and its `cutting`, `cut`, the result is the same,
    sooner. Memory beside
    the result holds the encodings of about a million characters, of some four million where `cuts_at_blanks` does not
    hold: there a longer text is cut at blanks all the same, and beside such a cut a token may be another than if all
    were read at once. So it may be, for any tokenizer but those that take an overlong word for one unknown token, in a
    stretch of over `_MAX_WORD_CHARS` characters without a place to cut at; Llama 3's own tokenizer does the same, from
    25,000 characters on (MAX_NO_WHITESPACES_CHARS). Raises UserError for windows that never advance.
    """
    check_window(max_tokens, overlap)
    step = max_tokens - overlap
    lengths = np.zeros(len(texts), np.int64)  # tokens
    firsts: list[list[int]] = [[] for _ in texts]  # characters where windows may start and end, by document
    lasts: list[list[int]] = [[] for _ in texts]
    found = [np.zeros(0, np.int32)]
    for group in _groups(texts, cut or cutting(tokenizer)):
        pieces = [texts[document][start:end] for document, start, end in group]
        for (document, at, _), tokens in zip(group, _read(pieces, tokenizer, words), strict=True):
            done, size = int(lengths[document]), len(tokens.ids)
            last = max_tokens - 1 - done
            firsts[document] += _chars(tokens, range(-done % step, size, step), 0, at)
            lasts[document] += _chars(tokens, range(last if last >= 0 else last % step, size, step), 1, at)
            lengths[document] += size
            found.append(np.asarray(tokens.ids, np.int32))
    counts = np.where(lengths, 1 + np.maximum(0, -((max_tokens - lengths) // step)), 0)
    start = [char for count, chars in zip(counts, firsts, strict=True) if count for char in (0, *chars[1:count])]
    end = [
        char
        for text, count, chars in zip(texts, counts, lasts, strict=True)
        if count
        for char in (*chars[: count - 1], len(text))
    ]
    spans = np.asarray(start, np.int64), np.asarray(end, np.int64)
    return _windows(lengths, counts, *spans, np.concatenate(found), max_tokens, step)


def _read(pieces: list[str], tokenizer: Tokenizer, words: WordTokens | None) -> list[Tokens | Encoding]:
    found: list[Any] = words.read(pieces) if words else [None] * len(pieces)
    left = [place for place, tokens in enumerate(found) if tokens is None]
    # The fast twin of `encode_batch` gives no offsets.
    encodings = tokenizer.encode_batch([pieces[place] for place in left], add_special_tokens=False)
    for place, encoding in zip(left, encodings, strict=True):
        found[place] = encoding
    return found


def _chars(tokens: Tokens | Encoding, places: range, side: int, at: int) -> list[int]:
    """Where the tokens at these places begin (side 0) or end (1), `at` characters further on."""
    if isinstance(tokens, Tokens):
        return (tokens[1 + side][places.start : places.stop : places.step] + at).tolist()
    return [at + tokens.token_to_chars(place)[side] for place in places]


def _windows(
    lengths: np.ndarray,
    counts: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    token_ids: np.ndarray,
    max_tokens: int,
    step: int,
) -> TokenChunks:
    """The chunks of documents with `lengths` tokens and `counts` windows, their ids gathered from all `token_ids`."""
    document = np.repeat(np.arange(len(lengths)), counts)
    index = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes = np.minimum(max_tokens, lengths[document] - index * step)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    begins = (np.cumsum(lengths) - lengths)[document] + index * step
    places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], sizes)
    return TokenChunks(document, index.astype(np.int32), start, end, offsets, token_ids[places])


class Cutting(NamedTuple):
    """Pieces end at the first such place after so many characters, or where they have become too long."""

    place: re.Pattern[str]
    after: int  # characters
    most: int


def cutting(tokenizer: Tokenizer) -> Cutting:
    """Where texts may be cut for this tokenizer, made by `whole`."""
    proven = cuts_at_blanks(tokenizer)
    after = _PIECE_CHARS if proven else _UNPROVEN_CHARS
    # Halves of a word that is too long for WordPiece or WordLevel would be two unknown tokens in place of one.
    by_words = json.loads(tokenizer.to_str())["model"]["type"] in ("WordPiece", "WordLevel")
    most = sys.maxsize if by_words else after + _MAX_WORD_CHARS
    return Cutting(_LONE_SPACE if proven else _LONE_BLANK, after, most)


def document_ids(texts: Sequence[str], tokenizer: Tokenizer, cut: Cutting) -> list[np.ndarray]:
    """The ids of each text, (t,) uint32, special tokens left out; `cut` is the tokenizer's `cutting`.

    As `chunk_texts`, with the same bound on memory and the same guarantee: the ids of the whole text read at once where
    `cuts_at_blanks` holds (byte-level BPE as Quire trains it, Pythia's, GPT-2's), but for a stretch of over
    `_MAX_WORD_CHARS` characters without a place to cut at; for another tokenizer also but for texts beyond
    `_UNPROVEN_CHARS`. The same ids always, whatever the other texts.
    """
    parts: list[list[np.ndarray]] = [[] for _ in texts]
    for group in _groups(texts, cut):
        pieces = [texts[document][start:end] for document, start, end in group]
        for (document, _, _), encoding in zip(
            group, tokenizer.encode_batch_fast(pieces, add_special_tokens=False), strict=True
        ):
            parts[document].append(np.asarray(encoding.ids, np.uint32))  # a list would take nine times the memory
    return [np.concatenate(ids) if ids else np.zeros(0, np.uint32) for ids in parts]


def _groups(texts: Sequence[str], cutting: Cutting) -> Iterator[list[tuple[int, int, int]]]:
    """Pieces (document, start, end) of all texts in order, in groups of about `_BATCH_CHARS` characters."""
    group: list[tuple[int, int, int]] = []
    size = 0
    for document, text in enumerate(texts):
        for start, end in _pieces(text, cutting):
            group.append((document, start, end))
            size += end - start
            if size >= _BATCH_CHARS:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(text: str, cutting: Cutting) -> Iterator[tuple[int, int]]:
    """Stretches that tile a text."""
    start = 0
    while start < len(text):
        limit = min(len(text), start + cutting.most)
        cut = cutting.place.search(text, start + cutting.after, limit)
        end = cut.start() if cut else limit
        yield start, end
        start = end


def chunk_schema(keep: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """The columns of token chunks, those kept of the documents last. Raises UserError for a kept name that is taken."""
    columns = [
        ("chunk_id", pa.string()),  # document_id:index
        ("document_id", pa.string()),
        ("index", pa.int32()),
        ("start", pa.int64()),  # characters of the document, half-open
        ("end", pa.int64()),
        ("text", pa.string()),  # document text[start:end], exactly
        ("num_tokens", pa.int32()),  # without special tokens
        ("token_ids", pa.list_(pa.int32())),
    ]
    taken = sorted({name for name, _ in columns} & set(keep or ()))
    if taken:
        raise UserError(f"keep.{taken[0]}: chunks have a column of that name; rename it in the source")
    return pa.schema([*columns, *(keep or {}).items()])


def chunk_table(documents: pa.Table, tokenizer: Tokenizer, **how: Any) -> tuple[pa.Table, np.ndarray]:
    """Chunks of d documents (columns document_id, text and whatever is to be kept), in their order, by `chunk_schema`,
    made by `chunk_texts`, which says how.

    And (d,) int64, how many each has: 0 for one without a token.
    """
    texts = documents["text"].to_pylist()
    chunks = chunk_texts(texts, tokenizer, **how)
    kept = [name for name in documents.column_names if name not in ("document_id", "text")]
    rows = documents.select(["document_id", *kept]).take(pa.array(chunks.document))
    spans = zip(chunks.document.tolist(), chunks.start.tolist(), chunks.end.tolist(), strict=True)
    ids = zip(rows["document_id"].to_pylist(), chunks.index.tolist(), strict=True)
    columns = {
        "chunk_id": [f"{document}:{index}" for document, index in ids],
        "document_id": rows["document_id"],
        "index": chunks.index,
        "start": chunks.start,
        "end": chunks.end,
        "text": [texts[document][start:end] for document, start, end in spans],
        "num_tokens": chunks.num_tokens,
        "token_ids": pa.ListArray.from_arrays(pa.array(chunks.offsets, pa.int32()), pa.array(chunks.token_ids)),
    }
    schema = chunk_schema({name: documents.schema.field(name).type for name in kept})
    table = pa.table({**columns, **{name: rows[name] for name in kept}}, schema=schema)
    return table, np.bincount(chunks.document, minlength=len(texts))
