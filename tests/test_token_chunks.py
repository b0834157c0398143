"""Token windows lie on the source's own characters, cover it, and are the same however it is tokenised."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from quire import bpe, token_chunks
from quire.errors import UserError
from quire.token_chunks import chunk_table, chunk_texts, cuts_at_blanks, cutting, document_ids, whole
from quire.word_tokens import WordTokens, reads_by_words

WORDS = ["sea", "the", "wind", "whip", "##ped", "-", "naive", "日", "[UNK]"]


def wordpiece() -> Tokenizer:
    """Lower-cases and strips accents, as bert-base-uncased does; letters stand alone where no word fits."""
    letters = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    vocab = {word: i for i, word in enumerate([*WORDS, *letters])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_level() -> Tokenizer:
    return whole(bpe.train(iter(["the sea and the wind", "日本 naïve"] * 5), 262).backend_tokenizer)


def pythia_like() -> Tokenizer:
    """NFC first, and runs of blanks as added tokens."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("   ", normalized=True), AddedToken("  ", normalized=True)])
    return tokenizer


def lengths(num_tokens: int, max_tokens: int, overlap: int) -> list[int]:
    found = chunk_texts(["sea " * num_tokens], wordpiece(), max_tokens=max_tokens, overlap=overlap)
    return found.num_tokens.tolist()


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (0, []),
        (1, [1]),
        (499, [499]),
        (500, [500]),
        (501, [500, 51]),
        (901, [500, 451]),
        (950, [500, 500]),
        (951, [500, 500, 51]),
    ],
)
def test_windows_stop_where_the_document_ends(num_tokens: int, expected: list[int]) -> None:
    assert lengths(num_tokens, 500, 50) == expected


def test_no_window_is_pure_overlap() -> None:
    for num_tokens in range(1, 120):
        found = lengths(num_tokens, 10, 3)
        assert all(size > 3 for size in found[1:])
        assert sum(found) - 3 * (len(found) - 1) == num_tokens


def test_a_chunk_is_the_source_s_own_text() -> None:
    text = "The WIND-whipped  Sea,\n\nthe naïve 日"
    found = chunk_texts([text], wordpiece(), max_tokens=4, overlap=1)
    spans = zip(found.start, found.end, strict=True)
    assert [text[start:end] for start, end in spans] == ["The WIND-whip", "whipped  Sea,", ",\n\nthe naïve 日"]


def test_a_text_of_one_window_is_its_own_chunk_with_its_white_space() -> None:
    texts = ["  The sea \n", "", " \x00\n", "日"]
    found = chunk_texts(texts, wordpiece(), max_tokens=4, overlap=1)
    assert [(d, s, e) for d, s, e in zip(found.document, found.start, found.end, strict=True)] == [
        (0, 0, 11),
        (3, 0, 1),
    ]
    assert found.offsets.tolist() == [0, 2, 3]


def test_no_text_gives_no_chunk() -> None:
    for texts in ([], [""], ["", " "]):
        found = chunk_texts(texts, wordpiece(), max_tokens=4, overlap=1)
        assert len(found.document) == len(found.start) == len(found.token_ids) == 0 and found.offsets.tolist() == [0]


def test_a_character_of_several_tokens_is_never_cut() -> None:
    text = "🙂日🙂"
    tokenizer = byte_level()
    found = chunk_texts([text], tokenizer, max_tokens=2, overlap=0)
    assert len(tokenizer.encode(text).ids) > 2 * len(text)
    pieces = [text[start:end] for start, end in zip(found.start, found.end, strict=True)]
    assert all(pieces) and set("".join(pieces)) == set(text)
    assert found.token_ids.tolist() == tokenizer.encode(text).ids


def test_truncation_and_padding_of_the_tokenizer_s_file_do_not_count() -> None:
    tokenizer = wordpiece()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    assert chunk_texts(["sea " * 5], whole(tokenizer), max_tokens=4, overlap=0).num_tokens.tolist() == [4, 1]
    assert tokenizer.truncation is not None


alphabet = st.sampled_from([*"abAé日🙂ﷺ\u0301\u00a0 \n\t.-\x00", " sea ", "\n\n", " a b", "  "])


@settings(max_examples=150)
@given(
    texts=st.lists(st.lists(alphabet, max_size=40).map("".join), max_size=4),
    max_tokens=st.integers(1, 9),
    overlap=st.integers(0, 8),
    kind=st.sampled_from([wordpiece, byte_level]),
)
def test_windows_tile_the_tokens_and_the_text(texts: list, max_tokens: int, overlap: int, kind) -> None:
    overlap, tokenizer = min(overlap, max_tokens - 1), kind()
    words = WordTokens(tokenizer) if reads_by_words(tokenizer) else None
    found = chunk_texts(texts, tokenizer, max_tokens=max_tokens, overlap=overlap, words=words)
    for number, text in enumerate(texts):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        rows = np.flatnonzero(found.document == number)
        assert found.index[rows].tolist() == list(range(len(rows)))
        windows = [found.token_ids[found.offsets[row] : found.offsets[row + 1]].tolist() for row in rows]
        step = max_tokens - overlap
        assert windows == [encoding.ids[i * step : i * step + max_tokens] for i in range(len(rows))]
        assert bool(len(rows)) == bool(encoding.ids)
        for row, window in zip(rows.tolist(), windows, strict=True):
            inside = encoding.offsets[found.index[row] * step :][: len(window)]
            assert found.start[row] <= inside[0][0] and inside[-1][1] <= found.end[row] <= len(text)
        if len(rows):
            assert (found.start[rows[0]], found.end[rows[-1]]) == (0, len(text))
            assert (np.diff(found.start[rows]) >= 0).all() and (np.diff(found.end[rows]) >= 0).all()


@settings(max_examples=150)
@given(
    text=st.lists(alphabet, max_size=80).map("".join),
    piece=st.integers(1, 12),
    batch=st.integers(1, 30),
    kind=st.sampled_from([wordpiece, byte_level, pythia_like]),
)
def test_a_long_text_read_in_pieces_has_the_same_chunks(text: str, piece: int, batch: int, kind) -> None:
    tokenizer = kind()
    assert cuts_at_blanks(tokenizer)
    expected = chunk_texts([text, text], tokenizer, max_tokens=5, overlap=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_chunks, "_PIECE_CHARS", piece)
        patch.setattr(token_chunks, "_BATCH_CHARS", batch)
        found = [chunk_texts([text, text], tokenizer, max_tokens=5, overlap=2)]
        if reads_by_words(tokenizer):
            found.append(chunk_texts([text, text], tokenizer, max_tokens=5, overlap=2, words=WordTokens(tokenizer)))
    for chunks in found:
        for name in ("document", "index", "start", "end", "offsets", "token_ids"):
            assert np.array_equal(getattr(chunks, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    "changed",
    [
        lambda t: t.add_special_tokens(["two words"]),
        lambda t: t.add_special_tokens([AddedToken("<mask>", lstrip=True)]),
        lambda t: setattr(t, "normalizer", normalizers.NFKC()),
        lambda t: setattr(t, "normalizer", normalizers.Prepend("_")),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        lambda t: setattr(t, "post_processor", processors.ByteLevel(trim_offsets=True, add_prefix_space=True)),
    ],
)
def test_a_tokenizer_that_might_read_over_a_blank_is_given_whole_texts(changed) -> None:
    tokenizer = byte_level()
    changed(tokenizer)
    assert not cuts_at_blanks(tokenizer)


def read_in(text: str, tokenizer: Tokenizer) -> list[str]:
    """What the tokenizer is given at once."""
    return [text[start:end] for start, end in token_chunks._pieces(text, token_chunks.cutting(tokenizer))]


@pytest.mark.parametrize("unit", ["x", "sea", "日", " ", "\n", "a1+/"])
def test_a_byte_level_tokenizer_never_holds_a_blob_at_once(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "_PIECE_CHARS", 20)
    monkeypatch.setattr(token_chunks, "_MAX_WORD_CHARS", 50)
    text, tokenizer = unit * 400, byte_level()
    pieces = read_in(text, tokenizer)
    assert "".join(pieces) == text and max(map(len, pieces)) <= 70
    found = chunk_texts([text], tokenizer, max_tokens=9, overlap=0)
    assert tokenizer.decode(found.token_ids.tolist()) == text
    assert (found.start[0], found.end[-1]) == (0, len(text)) and (found.start[1:] <= found.end[:-1]).all()


def test_a_text_without_blanks_is_read_line_by_line() -> None:
    text = "windwhipped\n" * 5_000
    assert max(map(len, read_in(text, byte_level()))) < token_chunks._PIECE_CHARS + len("windwhipped\n")


def test_a_long_text_is_cut_at_blanks_where_that_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "_UNPROVEN_CHARS", 40)
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), tokenizer.pre_tokenizer])
    assert not cuts_at_blanks(tokenizer)
    text = "the sea and\nthe wind " * 30
    pieces = read_in(text, tokenizer)
    assert "".join(pieces) == text and max(map(len, pieces)) < 50 and all(p.startswith(" ") for p in pieces[1:])
    found = chunk_texts([text], tokenizer, max_tokens=9, overlap=0)
    assert found.token_ids.tolist() == tokenizer.encode(text).ids


def test_an_overlong_word_stays_one_unknown_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "_PIECE_CHARS", 20)
    monkeypatch.setattr(token_chunks, "_MAX_WORD_CHARS", 50)
    tokenizer = wordpiece()
    for words in (None, WordTokens(tokenizer)):
        found = chunk_texts(["x" * 400 + " sea"], tokenizer, max_tokens=9, overlap=0, words=words)
        assert found.token_ids.tolist() == [WORDS.index("[UNK]"), WORDS.index("sea")]


class Watched:
    """A tokenizer that notes how much text it is given at once."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.given = tokenizer, []

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list:
        self.given.append([len(text) for text in texts])
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def test_whole_documents_are_tokenised_by_the_megabyte_with_the_ids_of_the_whole_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_chunks, "_PIECE_CHARS", 50)
    monkeypatch.setattr(token_chunks, "_BATCH_CHARS", 400)
    watched = Watched(byte_level())
    texts = ["the sea and the wind " * 200, "", *["naïve  日本\n"] * 60, "sea"]  # one huge document among small ones
    found = document_ids(texts, watched, cutting(watched.tokenizer))
    expected = watched.tokenizer.encode_batch(texts, add_special_tokens=False)
    assert [ids.tolist() for ids in found] == [encoding.ids for encoding in expected]
    assert max(map(sum, watched.given)) < 400 + 60 and max(map(max, watched.given)) < 60
    assert sum(map(sum, watched.given)) == sum(map(len, texts))


def test_a_document_without_a_blank_is_cut_the_same_whatever_the_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_chunks, "_PIECE_CHARS", 50)
    monkeypatch.setattr(token_chunks, "_MAX_WORD_CHARS", 100)
    watched = Watched(byte_level())
    cut, blob = cutting(watched.tokenizer), "windsea" * 300
    (alone,) = document_ids([blob], watched, cut)
    assert max(map(max, watched.given)) == 150
    assert watched.tokenizer.decode(alone.tolist()) == blob
    assert np.array_equal(document_ids(["the sea", blob, "wind"], watched, cut)[1], alone)


@pytest.mark.parametrize(("max_tokens", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_windows_that_never_advance_are_refused(max_tokens: int, overlap: int) -> None:
    with pytest.raises(UserError, match=f"max_tokens = {max_tokens}, overlap = {overlap}"):
        chunk_texts(["sea"], wordpiece(), max_tokens=max_tokens, overlap=overlap)


def test_a_table_of_chunks_keeps_columns_and_types() -> None:
    documents = pa.table({"document_id": ["a", "b", "c"], "text": ["sea " * 6, "", "Wind"], "score": [0.5, 1.5, None]})
    made, counts = chunk_table(documents, wordpiece(), max_tokens=4, overlap=1)
    assert counts.tolist() == [2, 0, 1]
    assert made.schema == token_chunks.chunk_schema({"score": pa.float64()})
    assert made.drop_columns(["token_ids", "start", "end"]).to_pylist() == [
        dict(zip(("chunk_id", "document_id", "index", "text", "num_tokens", "score"), row, strict=True))
        for row in (
            ("a:0", "a", 0, "sea sea sea sea", 4, 0.5),
            ("a:1", "a", 1, "sea sea sea ", 3, 0.5),
            ("c:0", "c", 0, "Wind", 1, None),
        )
    ]
    assert [len(ids) for ids in made["token_ids"].to_pylist()] == [4, 3, 1]


def test_a_kept_column_cannot_take_the_name_of_a_chunk_s_own() -> None:
    with pytest.raises(UserError, match="keep.start: chunks have a column of that name"):
        token_chunks.chunk_schema({"start": pa.string()})
