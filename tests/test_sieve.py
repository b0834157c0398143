"""The sieve loses no row, whatever the vectors, and hands on what it cannot tell apart; tested on any processor."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import device, neighbors, sieve


@pytest.fixture(autouse=True, scope="module")
def everywhere():
    """Whatever the processor and however few the queries, the sieve comes first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cpu_multiplies_bfloat16", lambda: True)
        patch.setattr(neighbors, "SIEVE_QUERIES", 1)
        yield


def _brute_force(queries, corpus, k, query_groups, corpus_groups):
    with np.errstate(over="ignore", under="ignore"):
        exact = np.vecdot(queries[:, None].astype(np.float64), corpus[None].astype(np.float64)).astype(np.float32)
    ids, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
    for i, group in enumerate(query_groups):
        others = np.flatnonzero(corpus_groups != group)
        best = others[np.lexsort((others, -exact[i, others]))[:k]]
        ids[i, : len(best)], scores[i, : len(best)] = best, exact[i, best]
    return ids, scores


def _check(queries, corpus, k, query_groups, corpus_groups, **options):
    arguments = {"k": k, "query_groups": query_groups, "corpus_groups": corpus_groups}
    found = neighbors.search(queries, corpus, gpu=False, **arguments, **options)
    for got, wanted in zip(found, _brute_force(queries, corpus, **arguments), strict=True):
        np.testing.assert_array_equal(got, wanted)


def _vectors(draw, kind, n, dim):
    """Vectors that are hard to tell apart or to multiply, none of whose products overflows."""
    plain = draw.standard_normal((n, dim), np.float32)
    if kind == "near-duplicates":
        return plain[draw.integers(0, 1 + n // 8, n)] + np.float32(1e-4) * plain
    if kind == "close":  # all within the error of bfloat16 of each other
        return np.float32(1) + np.float32(1e-3) * plain
    if kind == "equal":
        return np.repeat(plain[:1], n, axis=0)
    if kind == "ties":
        return draw.choice(np.array([0, 1, -1, 0.5, 0.1, 1e-3], np.float32), (n, dim))
    if kind == "opposite":  # every score below zero
        return -np.abs(plain)
    scales = {"tiny": (-30, -15), "denormal": (-45, -37), "mixed": (-20, 18), "huge": (15, 18)}
    if kind in scales:
        return plain * (10.0 ** draw.uniform(*scales[kind], (n, 1))).astype(np.float32)
    return plain


KINDS = ["plain", "near-duplicates", "close", "equal", "ties", "opposite", "tiny", "denormal", "mixed", "huge"]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.sampled_from([1, 3, 10, 40]),
    st.sampled_from([5, 1024]),
    st.sampled_from([(4, 2), (64, 8), (8192, 32)]),
    st.sampled_from([2, 30, 1024]),
)
def test_search_equals_brute_force(seed, of_queries, of_corpus, k, block_size, blocks, most):
    draw = np.random.default_rng(seed)
    n, q, dim = draw.integers(1, 400), draw.integers(1, 20), draw.integers(1, 40)
    queries, corpus = _vectors(draw, of_queries, q, dim), _vectors(draw, of_corpus, n, dim)
    if of_queries == "opposite":
        queries = -queries
    num_groups = draw.choice([1, 2, 5, 400])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sieve, "_BLOCK", blocks[0])
        patch.setattr(sieve, "_CHUNK", blocks[1])
        patch.setattr(sieve, "MAX_K", blocks[0] // blocks[1])
        patch.setattr(sieve, "MOST", most)
        groups = draw.integers(0, num_groups, n)
        _check(queries, corpus, k, draw.integers(-1, num_groups + 1, q), groups, block_size=block_size)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("kind", ["plain", "near-duplicates", "mixed"])
def test_real_sized_vectors(kind, onednn):
    draw = np.random.default_rng(0)
    corpus = _vectors(draw, kind, 10_000, 384)
    if kind != "mixed":
        corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    groups = np.sort(draw.integers(0, 50, len(corpus)))
    groups[:5000] = 0  # a group of more than half, which fills the first block of some queries
    rows = draw.choice(len(corpus), 70, replace=False)
    with torch.backends.mkldnn.flags(enabled=onednn):
        _check(corpus[rows], corpus, 10, groups[rows], groups)


def test_no_product_is_further_from_the_exact_one_than_the_bound():
    draw = np.random.default_rng(1)
    for dim in (1, 7, 384, 3000):
        for kind in KINDS:
            queries, corpus = _vectors(draw, "plain", 20, dim), _vectors(draw, kind, 500, dim)
            made = sieve.Sieve(corpus, np.arange(len(corpus)))
            query = torch.from_numpy(queries)
            half = query.bfloat16()
            error = made._error(sieve._lengths(query), sieve._lengths(query - half), dim).numpy()
            rounded = (made.half @ half.T).double().numpy()
            mean = corpus.mean(axis=0, dtype=np.float64).astype(np.float32)
            exact = (corpus.astype(np.float64) - mean) @ queries.astype(np.float64).T
            with np.errstate(invalid="ignore"):
                wrong = np.abs(rounded - exact) > error + sieve._ROUNDING * np.abs(rounded)
            assert not wrong.any(), (dim, kind)


def _searched_by_faiss(monkeypatch):
    """Notes each search of FAISS: how many queries."""
    noted, search = [], neighbors.GroupedIndex.candidates
    monkeypatch.setattr(
        neighbors.GroupedIndex, "candidates", lambda *given: noted.append(len(given[1])) or search(*given)
    )
    return noted


def test_the_sieve_answers_alone_where_vectors_differ_and_copies_no_corpus(monkeypatch):
    noted = _searched_by_faiss(monkeypatch)
    corpus = _vectors(np.random.default_rng(2), "plain", 20_000, 64)
    groups = np.arange(len(corpus)) // 100
    corpus[100:103] = corpus[:3]  # equal rows of another group
    _check(corpus[:100], corpus, 10, groups[:100], groups)
    assert not noted


def test_only_queries_with_too_many_alike_are_faiss_s(monkeypatch):
    noted = _searched_by_faiss(monkeypatch)
    draw = np.random.default_rng(3)
    corpus = _vectors(draw, "plain", 6000, 32)
    corpus[draw.permutation(6000)[: sieve.MOST + 200]] = corpus[0]
    queries = np.concatenate([corpus[:1], _vectors(draw, "plain", 20, 32)])
    queries[1:] -= np.outer(queries[1:] @ corpus[0] / (corpus[0] @ corpus[0]), corpus[0])  # they score 0 with those
    _check(queries, corpus, 5, np.full(21, -1), np.zeros(6000, int))
    assert noted[0] == 1 and max(noted) == 1


def test_an_index_that_is_there_is_sieved_as_its_vectors_are():
    corpus = _vectors(np.random.default_rng(4), "ties", 300, 5)
    flat = faiss.IndexFlatIP(5)
    flat.add(corpus)
    found = neighbors.search_flat(corpus[:70], flat, k=12, gpu=False)
    wanted = _brute_force(corpus[:70], corpus, 12, np.full(70, -1), np.zeros(300))
    np.testing.assert_array_equal(found, wanted)


def test_vectors_that_may_not_be_written_are_searched_without_a_warning(recwarn):
    corpus = _vectors(np.random.default_rng(5), "plain", 300, 8)
    corpus.setflags(write=False)
    _check(corpus, corpus, 5, np.arange(300), np.arange(300))
    assert not recwarn.list
