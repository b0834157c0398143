"""An index finds what is near: flat exactly, the others mostly, whatever way the rows are cut; a bad file is named."""

from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import index
from quire.errors import UserError

DIM = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As a worker has it; FAISS's threads wait for each other at full speed, which a busy machine makes minutes of."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@cache
def clustered(rows: int, seed: int = 0) -> np.ndarray:
    """Vectors around 300 centres, some of them several times."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((300, DIM))
    made = centres[draw.integers(0, 300, rows)] + 0.4 * draw.standard_normal((rows, DIM))
    made[1::97] = made[0::97][: len(made[1::97])]
    return index.unit(made)[0]


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    exact = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    rows = np.stack([np.lexsort((np.arange(len(vectors)), -row))[:k] for row in exact])
    return rows, np.take_along_axis(exact, rows, axis=1)


def flat_of(vectors: np.ndarray) -> faiss.IndexFlatIP:
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return flat


def shards_of(vectors: np.ndarray, empty: faiss.IndexIVF | None, bounds: list[int]) -> list[faiss.Index]:
    cut = zip(bounds, [*bounds[1:], len(vectors)], strict=True)
    return [index.fill(empty, flat_of(vectors[a:b]), np.arange(a, b)) for a, b in cut]


@cache
def trained(method: str) -> tuple[index.Plan, faiss.IndexIVF | None]:
    """On all of 10,000 vectors."""
    plan = index.plan(10_000, DIM, method)
    return plan, index.train(plan, clustered(10_000))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3_000), max_size=5), st.integers(1, 30))
def test_flat_equals_brute_force_however_it_is_cut(bounds: list[int], k: int) -> None:
    vectors = clustered(3_000)
    queries = clustered(20, seed=1)
    rows, scores = index.search(shards_of(vectors, None, [0, *sorted(bounds)]), queries, k=k)
    expected_rows, expected_scores = brute_force(vectors, queries, k)
    assert np.array_equal(rows, expected_rows) and np.array_equal(scores, expected_scores)


@pytest.mark.parametrize(("method", "num_probes", "least"), [("ivf", 8, 0.97), ("ivf", 1, 0.5), ("ivf_pq", 8, 0.6)])
def test_approximate_indexes_reach_their_recall(method: str, num_probes: int, least: float) -> None:
    vectors = clustered(10_000)
    queries = vectors[:200]
    plan, empty = trained(method)
    truth = brute_force(vectors, queries, 10)[0]
    [one], many = shards_of(vectors, empty, [0]), shards_of(vectors, empty, [0, 1, 5_000, 5_000, 9_000])
    rows, scores = index.search([one], queries, k=10, trained=empty, num_probes=num_probes)
    assert index.recall(rows, truth) >= least
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    again = index.search(many, queries, k=10, trained=empty, num_probes=num_probes)
    assert np.array_equal(again[0], rows) and np.array_equal(again[1], scores)
    everything = index.search([one], queries, k=10, trained=empty, num_probes=plan.num_lists)
    assert method == "ivf_pq" or index.recall(everything[0], truth) == 1


def test_fewer_rows_than_asked_for_are_padded() -> None:
    vectors = clustered(3)
    rows, scores = index.search(shards_of(vectors, None, [0, 1]), vectors[:1], k=5)
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 1, 2] and rows[0].tolist()[3:] == [-1, -1]
    assert np.isinf(scores[0, 3:]).all()
    assert index.search([], vectors[:1], k=2)[0].tolist() == [[-1, -1]]


def test_the_same_sample_and_seed_train_the_same_bytes() -> None:
    plan, once = trained("ivf_pq")
    again = index.train(plan, clustered(10_000))
    assert np.array_equal(*map(faiss.serialize_index, (once, again)))


@pytest.mark.parametrize("method", ["ivf", "ivf_pq"])
def test_the_training_has_the_same_bytes_on_any_number_of_threads(method: str) -> None:
    plan, once = trained(method)
    faiss.omp_set_num_threads(3)
    again = index.train(plan, clustered(10_000))
    faiss.omp_set_num_threads(1)  # as `one_thread` has it
    assert np.array_equal(*map(faiss.serialize_index, (once, again)))


def test_the_method_follows_from_the_size() -> None:
    assert index.plan(index.FLAT_ROWS, 384).method == "flat"
    ivf = index.plan(10**6, 384)
    assert (ivf.method, ivf.num_lists, ivf.training_rows) == ("ivf", 4_000, 256_000)
    coded = index.plan(10**8, 384)
    assert (coded.method, coded.num_lists, coded.code_size) == ("ivf_pq", 40_000, 96)
    assert index.plan(10**6, 384, max_bytes=10**9).method == "ivf_pq"
    assert index.plan(100, 384, max_bytes=1).method == "flat"  # too few rows to train codes
    assert index.plan(20_000, 31, "ivf_pq").code_size == 1  # codes cover equal parts of a vector
    with pytest.raises(UserError, match='method = "ivf_pq": 100 vectors, .* 9,984'):
        index.plan(100, 384, "ivf_pq")


def test_vectors_are_scaled_and_those_without_a_direction_told() -> None:
    vectors = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0], [3e38, 3e38]], np.float32)
    scaled, good = index.unit(vectors)
    assert good.tolist() == [True, False, False, False, True, True]
    assert np.allclose(np.linalg.norm(scaled[good], axis=1), 1) and not scaled[~good].any()
    assert np.allclose(index.unit(vectors[:1].astype(np.float16))[0], [[0.6, 0.8]])


def test_recall_counts_only_what_there_is_to_find() -> None:
    exact = np.array([[1, 2], [3, -1]])
    assert index.recall(np.array([[2, 9], [-1, -1]]), exact) == pytest.approx(1 / 3)
    assert index.recall(np.array([[-1]]), np.array([[-1]])) == 1


@pytest.fixture(scope="module", params=index.METHODS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A plan, its trained index, 1,000 of its vectors in a shard's file, and the vectors."""
    vectors = clustered(10_000)
    plan, empty = trained(request.param)
    path = tmp_path_factory.mktemp("index") / "shard.faiss"
    index.write(index.fill(empty, flat_of(vectors[:1_000]), np.arange(1_000)), path)
    return plan, empty, path, vectors


def test_a_shard_is_read_as_it_was_written(files: tuple) -> None:
    plan, empty, path, vectors = files
    shard = index.fill(empty, flat_of(vectors[:1_000]), np.arange(1_000))
    read = index.read(path, plan, empty, rows=1_000, size=path.stat().st_size)
    options = {"k": 10, "trained": empty, "num_probes": 8}
    asked, found = (index.search([s], vectors[:50], **options) for s in (shard, read))
    assert np.array_equal(asked[0], found[0]) and np.array_equal(asked[1], found[1])
    if empty is not None:
        again = index.read_trained(faiss.serialize_index(empty).tobytes(), "trained", plan)
        assert np.array_equal(*(faiss.serialize_index(t) for t in (again, empty)))


@pytest.mark.parametrize("size", [0, 3, 30, 300, 5_000])
def test_a_file_cut_short_is_named(files: tuple, tmp_path: Path, size: int) -> None:
    plan, empty, path, _ = files
    cut = tmp_path / "cut.faiss"
    cut.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cut.faiss: [\d,]+ bytes, the manifest says"):
        index.read(cut, plan, empty, rows=1_000, size=path.stat().st_size)
    with pytest.raises(UserError, match="cut.faiss: (begins with|FAISS cannot read it)"):
        index.read(cut, plan, empty, rows=1_000, size=size)
    with pytest.raises(UserError, match="gone.faiss: no file"):
        index.read(tmp_path / "gone.faiss", plan, empty, rows=1_000, size=1)


def test_a_file_that_asks_for_more_memory_than_it_has_is_named(files: tuple, tmp_path: Path) -> None:
    """Wherever a huge number stands among the first bytes, FAISS refuses it or the index is not the planned one."""
    plan, empty, path, vectors = files
    data, bad = path.read_bytes(), tmp_path / "bad.faiss"
    for place in range(4, 120, 4):
        bad.write_bytes(data[:place] + (2**40).to_bytes(8, "little") + data[place + 8 :])
        try:
            shard = index.read(bad, plan, empty, rows=1_000, size=len(data))
        except UserError as error:
            assert "bad.faiss" in str(error)
        else:  # a field without a meaning here, or a value among the vectors
            assert index.search([shard], vectors[:3], k=5, trained=empty, num_probes=8)[0].shape == (3, 5)


def test_another_index_is_not_taken_for_this_one(files: tuple) -> None:
    plan, empty, path, _ = files
    size = path.stat().st_size
    with pytest.raises(UserError, match="shard.faiss: rows = 1000, the manifest says 999"):
        index.read(path, plan, empty, rows=999, size=size)
    other = index.Plan("ivf" if plan.method == "flat" else "flat", plan.rows, DIM)
    with pytest.raises(UserError, match="shard.faiss: begins with"):
        index.read(path, other, None, rows=1_000, size=size)
    with pytest.raises(UserError, match="a shard holds row 12 of an index of 10"):
        index.check_rows(np.array([[3, 12]]), 10, "here")
