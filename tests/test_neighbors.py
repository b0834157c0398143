"""Neighbours are those of brute force, never of the same group, and do not depend on how the work is cut."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quire import neighbors
from quire.errors import UserError
from quire.neighbors import centroids, drop_range, search


def _brute_force(queries, corpus, k, query_groups, corpus_groups):
    ids = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for i, (query, group) in enumerate(zip(queries, query_groups, strict=True)):
        others = np.flatnonzero(corpus_groups != group)
        exact = (corpus[others].astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
        best = np.lexsort((others, -exact))[:k]
        ids[i, : len(best)], scores[i, : len(best)] = others[best], exact[best]
    return ids, scores


def _problem(seed):
    """Vectors of few distinct values, so that ties abound; few groups, some without a row or a query."""
    rng = np.random.default_rng(seed)
    n, q, d = rng.integers(0, 60), rng.integers(0, 12), rng.integers(1, 6)
    values = np.array([0, 1, -1, 0.5, 0.1, 1e-3], np.float32)
    corpus_groups = rng.choice([-2, 0, 1, 5], n, p=[0.7, 0.1, 0.1, 0.1])
    return rng.choice(values, (q, d)), rng.choice(values, (n, d)), rng.integers(-3, 6, q), corpus_groups


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(1, 80),
    st.integers(1, 15),
    st.sampled_from([1, 20, 2048]),
    st.sampled_from([0, 16]),
)
def test_search_equals_brute_force_whatever_the_ties_blocks_and_ways(seed, k, block_size, max_fetch, slack):
    queries, corpus, query_groups, corpus_groups = _problem(seed)
    with pytest.MonkeyPatch.context() as patch:  # small limits drive small problems through every branch
        patch.setattr(neighbors, "MAX_FETCH", max_fetch)
        patch.setattr(neighbors, "SLACK", slack)
        ids, scores = search(
            queries,
            corpus,
            k=k,
            query_groups=query_groups,
            corpus_groups=corpus_groups,
            block_size=block_size,
        )
    expected_ids, expected_scores = _brute_force(queries, corpus, k, query_groups, corpus_groups)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)
    assert ids.dtype == np.int64 and scores.dtype == np.float32


@pytest.mark.parametrize("max_fetch", [1, 2048])
def test_real_sized_vectors_give_the_same_bits_for_any_block_and_number_of_threads(max_fetch, monkeypatch):
    monkeypatch.setattr(neighbors, "MAX_FETCH", max_fetch)
    rng = np.random.default_rng(0)
    corpus = rng.standard_normal((1500, 384), np.float32)
    corpus[500:900] = corpus[:400]  # duplicates in other groups
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    groups = rng.integers(0, 30, len(corpus))
    arguments = {"k": 10, "query_groups": groups[:200], "corpus_groups": groups}
    expected_ids, expected_scores = _brute_force(corpus[:200], corpus, 10, groups[:200], groups)
    threads = faiss.omp_get_max_threads()
    for block_size, num_threads in ((1024, 1), (7, 1), (200, 2)):
        faiss.omp_set_num_threads(num_threads)
        ids, scores = search(corpus[:200], corpus, block_size=block_size, **arguments)
        faiss.omp_set_num_threads(threads)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("max_fetch", [1, 2048])
def test_an_index_that_is_there_is_searched_as_its_vectors_are(max_fetch, monkeypatch):
    monkeypatch.setattr(neighbors, "MAX_FETCH", max_fetch)
    queries, corpus, query_groups, _ = _problem(3)
    flat = faiss.IndexFlatIP(corpus.shape[1])
    flat.add(corpus)
    for k in (1, 10, len(corpus) + 5):
        found = neighbors.search_flat(queries, flat, k=k)
        expected = _brute_force(queries, corpus, k, np.zeros(len(queries)), np.ones(len(corpus)))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_k_is_filled_although_the_nearest_rows_all_share_the_group():
    corpus = np.ones((5000, 4), np.float32)
    corpus[4990:] = -1
    groups = np.repeat([0, 1], [4990, 10])
    ids, scores = search(corpus[:1], corpus, k=12, query_groups=groups[:1], corpus_groups=groups)
    assert ids[0].tolist() == [*range(4990, 5000), -1, -1]
    assert scores[0].tolist() == [-4.0] * 10 + [-np.inf] * 2


def test_a_plain_answer_is_filtered_by_each_query_s_own_range():
    scores = np.array([[9, 8, 7, 6], [9, 8, 7, -3e38]], np.float32)
    positions = np.array([[3, 0, 4, 1], [2, 4, 0, -1]])
    kept, kept_scores = drop_range(scores, positions, np.array([3, 0]), np.array([5, 2]), 3)
    assert kept.tolist() == [[0, 1, -1], [2, 4, -1]]
    assert kept_scores.tolist() == [[8, 6, -np.inf], [9, 8, -np.inf]]


@settings(max_examples=50)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_centroids_are_the_normalised_means_in_any_order_of_rows(num_groups, dim, data):
    extra = data.draw(st.lists(st.integers(0, num_groups - 1), max_size=20))
    group = np.array(data.draw(st.permutations([*range(num_groups), *extra])))
    rows = data.draw(hnp.arrays(np.float32, (len(group), dim), elements=st.sampled_from([0.25, 1.0, -2.0])))
    for i, centroid in enumerate(centroids(rows, group)):
        total = rows[group == i].sum(axis=0)
        np.testing.assert_allclose(centroid * np.linalg.norm(total), total, atol=1e-5)


def test_a_group_of_opposites_has_a_centroid_of_zero():
    rows = np.array([[1, 2], [-1, -2], [3, 4]], np.float32)
    assert centroids(rows, np.array([0, 0, 1])).tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]
    assert centroids(np.zeros((0, 3), np.float32), np.zeros(0, int)).shape == (0, 3)


def test_mistakes_are_named():
    rows, groups = np.ones((3, 2), np.float32), np.zeros(3, int)
    broken = rows.copy()
    broken[1, 0] = np.nan
    with pytest.raises(UserError, match="corpus: row 1 is not finite"):
        search(rows, broken, k=1, query_groups=groups, corpus_groups=groups)
    with pytest.raises(UserError, match="queries have 2 values, the corpus 3"):
        search(rows, np.ones((3, 3), np.float32), k=1, query_groups=groups, corpus_groups=groups)
    with pytest.raises(UserError, match="k = 0"):
        search(rows, rows, k=0, query_groups=groups, corpus_groups=groups)
    with pytest.raises(UserError, match=r"queries: \(3, 2\) with groups of \(2,\)"):
        search(rows, rows, k=1, query_groups=groups[:2], corpus_groups=groups)
    with pytest.raises(UserError, match="wanted integers"):
        search(rows, rows, k=1, query_groups=groups, corpus_groups=np.array(["a", "b", "c"]))
    with pytest.raises(UserError, match="group 1 has no rows"):
        centroids(rows, np.array([0, 2, 2]))
    with pytest.raises(UserError, match="number the groups"):
        centroids(rows, np.array([-1, 0, 1]))


@pytest.mark.skipif(getattr(faiss, "get_num_gpus", lambda: 0)() > 0, reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_refused_when_asked_for():
    rows, groups = np.ones((3, 2), np.float32), np.arange(3)
    with pytest.raises(UserError, match="gpu = true"):
        search(rows, rows, k=1, query_groups=groups, corpus_groups=groups, gpu=True)
