"""Words read one by one give the tokenizer's own ids and offsets, or the text is left to it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_chunks import byte_level, wordpiece
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from quire import word_tokens
from quire.word_tokens import WordTokens, reads_by_words


def cased() -> Tokenizer:
    """Keeps case; accents go, so that a text may come to hold an added token that it did not hold."""
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    tokenizer.add_special_tokens(["[SEP]", "[MASK]", "ab"])
    return tokenizer


def compare(tokenizer: Tokenizer, reader: WordTokens, texts: list[str]) -> int:
    """How many texts the reader read itself."""
    found = reader.read(texts)
    assert len(found) == len(texts)
    for text, tokens in zip(texts, found, strict=True):
        if tokens is not None:
            encoding = tokenizer.encode(text, add_special_tokens=False)
            assert tokens.ids.tolist() == encoding.ids
            assert list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)) == encoding.offsets
    return sum(tokens is not None for tokens in found)


KINDS = {kind: (kind(), WordTokens(kind())) for kind in (wordpiece, cased)}
words = st.sampled_from(
    ["The ", "sea", "windwhipped", "[SEP]", "[SÉP]", "áb", "İ", "ﬁ", "ẞ", "Σ", "日", "“x”", "🙂", "\u0301"]
)


@settings(max_examples=300)
@given(
    texts=st.lists(st.lists(words | st.text(max_size=4), max_size=12).map("".join), max_size=5),
    kind=st.sampled_from(list(KINDS)),
)
def test_words_give_the_tokenizer_s_own_tokens(texts: list[str], kind) -> None:
    compare(*KINDS[kind], texts)


def test_every_character_is_read_as_the_tokenizer_reads_it() -> None:
    for tokenizer, reader in KINDS.values():
        chars = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
        texts = [f"sea{char}sea {char}, the{char}" for char in chars[:0x3000:1] + chars[0x3000::37]]
        assert compare(tokenizer, reader, texts) > 0.2 * len(texts)


def test_common_text_is_read_and_what_may_not_be_is_left() -> None:
    tokenizer, reader = KINDS[cased]
    assert compare(tokenizer, reader, ["The naïve “sea” – whipped…\t\n", "", " ", "x" * 300]) == 4
    left = ["a [SEP] b", "[SÉP]", "日", "cab"]
    assert compare(tokenizer, reader, [*left, "sea"]) == 1


def test_a_full_memory_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_tokens, "_MAX_WORDS", 3)
    tokenizer, reader = wordpiece(), WordTokens(wordpiece())
    for text in ("a b c d e", "d e f", "a b", "sea whipped", "a sea"):
        assert compare(tokenizer, reader, [text, text]) == 2


@pytest.mark.parametrize(
    "changed",
    [
        lambda t: t.add_special_tokens([AddedToken("<mask>", lstrip=True)]),
        lambda t: t.add_tokens([AddedToken("sea wind", normalized=True)]),
        lambda t: setattr(t, "normalizer", normalizers.NFKC()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
    ],
)
def test_other_tokenizers_do_not_read_by_words(changed) -> None:
    tokenizer = wordpiece()
    assert reads_by_words(tokenizer) and not reads_by_words(byte_level())
    changed(tokenizer)
    assert not reads_by_words(tokenizer)


def test_a_word_longer_than_any_the_model_knows_is_one_unknown_token() -> None:
    tokenizer, reader = KINDS[wordpiece]
    limit = reader._max_chars
    texts = ["sea " + "x" * size + ", sea" for size in (limit - 1, limit, limit + 1, 3 * limit)]
    assert compare(tokenizer, reader, [*texts, *texts]) == 8
    assert max(map(len, reader._numbers)) <= limit  # long ones are not remembered
