"""Repeated chunks are found by words, and copies of a work by likeness, without merging what is distinct."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.dedup import chunk_fingerprints, minhash, repeated, similar_documents, work_ids
from quire.errors import UserError

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"
# Written down when the scheme was settled: published signatures must stay comparable.
SIGNATURE = [525271265, 179705905, 446647904, 5922788]


def _noisy(text: str, share: float, seed: int = 0) -> str:
    """The text with a letter put into a share of its words, as a bad scan would."""
    rng = random.Random(seed)
    return re.sub(r"\w+", lambda m: f"{m[0][:1]}x{m[0][1:]}" if rng.random() < share else m[0], text)


def _prose(seed: int, num_words: int = 3000) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{int(rng.paretovariate(0.6))}" for _ in range(num_words))


few_signs = st.text("aAéÉ1 _-’\n", max_size=6)


@settings(max_examples=300)
@given(few_signs, few_signs)
def test_fingerprints_are_equal_exactly_when_the_words_are(a, b):
    words = [re.findall(r"[^\W_]+", text.lower()) for text in (a, b)]
    first, second = chunk_fingerprints([a, b])
    assert (first == second) == (words[0] == words[1] if words[0] or words[1] else a == b)


def test_fingerprints_ignore_case_signs_and_line_breaks_in_any_script():
    texts = ["“Don’t—stop,” he\r\nsaid.", "DON'T STOP; he said", "Ещё, раз!", "ещё раз", "Ещё два"]
    a, b, c, d, e = chunk_fingerprints(texts)
    assert a == b
    assert c == d != e


def test_texts_without_words_are_told_apart():
    assert len(set(chunk_fingerprints(["* * *", "-----", "..."]).tolist())) == 3


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(0, 4))
def test_a_chunk_is_repeated_when_it_occurs_in_more_works_than_the_threshold(rows, threshold):
    fingerprints = np.array([f for f, _ in rows], np.uint64)
    mask = repeated(fingerprints, [f"w{w}" for _, w in rows], threshold)
    assert mask.tolist() == [len({w for g, w in rows if g == f}) > threshold for f, _ in rows]


def test_the_signature_estimates_the_jaccard_similarity_of_shingles():
    words = _prose(1).split()
    for kept in (0.25, 0.5, 0.9):
        a, b = words, words[: int(kept * len(words))]
        sets = [{tuple(w[i : i + 4]) for i in range(len(w) - 3)} for w in (a, b)]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        estimate = np.mean(minhash(" ".join(a), num_hashes=1024) == minhash(" ".join(b), num_hashes=1024))
        assert estimate == pytest.approx(exact, abs=0.05)  # over 3 standard errors


def test_signatures_stay_the_same_over_versions():
    assert minhash("It was the best of times, it was the worst of times", num_hashes=4).tolist() == SIGNATURE


def test_noisy_rewrapped_and_cut_copies_join_their_work_and_others_do_not():
    texts = {}
    for i in range(5):
        text = _prose(i)
        texts |= {
            f"{i}-original": text,
            f"{i}-noisy": _noisy(text, 0.1),
            f"{i}-cut": text[: len(text) * 8 // 10],
            f"{i}-wrapped": text.replace(" ", "\n").upper(),
        }
    works = work_ids(list(texts), np.stack([minhash(t) for t in texts.values()]))
    assert works == {name: f"{name[0]}-cut" for name in texts}


def test_the_order_of_the_documents_does_not_matter():
    texts = {"b": _prose(1), "a": _noisy(_prose(1), 0.1), "d": _prose(2), "c": _prose(2)}
    signatures = {name: minhash(t) for name, t in texts.items()}
    for names in ("abcd", "dcba", "cadb"):
        clusters = similar_documents(list(names), np.stack([signatures[n] for n in names]))
        assert clusters == [["a", "b"], ["c", "d"]]


def test_documents_join_through_a_third_one():
    words = _prose(3).split()
    parts = {"first": words[:1200], "whole": words, "last": words[-1200:]}
    assert similar_documents(list(parts), np.stack([minhash(" ".join(p)) for p in parts.values()])) == [
        ["first", "last", "whole"]
    ]


def test_empty_documents_resemble_nothing_and_short_ones_their_copies():
    texts = ["", "...", "a tale", "A tale!", "another tale"]
    signatures = np.stack([minhash(t) for t in texts])
    assert similar_documents(list("abcde"), signatures) == [["c", "d"]]
    assert work_ids([], np.zeros((0, 128), np.uint32)) == {}


def test_mistakes_are_named():
    with pytest.raises(UserError, match="2 fingerprints but 1 works"):
        repeated(np.zeros(2, np.uint64), ["a"], 3)
    with pytest.raises(UserError, match="1 of 2 document ids repeat"):
        work_ids(["a", "a"], np.zeros((2, 128), np.uint32))
    with pytest.raises(UserError, match="threshold = 0"):
        work_ids(["a"], np.zeros((1, 128), np.uint32), threshold=0)


def test_distinct_novels_stay_apart_and_bad_copies_of_them_join():
    if not BOOKS.is_dir():
        pytest.skip("the shared books are not here")
    novels = {}
    for path in sorted(BOOKS.glob("w*.txt")):  # two authors of three novels each, one of one
        text = path.read_text("utf-8")
        start, end = (re.search(rf"\*\*\* ?{word} OF.*", text) for word in ("START", "END"))
        novels[path.stem] = text[start.end() if start else 0 : end.start() if end else None]
    copies = {f"{name}~": _noisy(text[: len(text) * 8 // 10], 0.1) for name, text in novels.items()}
    texts = novels | copies
    clusters = similar_documents(list(texts), np.stack([minhash(t) for t in texts.values()]))
    assert clusters == [[name, f"{name}~"] for name in sorted(novels)]
