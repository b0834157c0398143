"""Embeddings to an index: the same bytes and answers however it is made, its recall measured, nothing lost silently."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from test_index import DIM, brute_force, clustered, one_thread  # noqa: F401

from pipelines import index as step
from pipelines import search
from pipelines.workers import free_cpus
from quire import artifact, config, index, schema
from quire.artifact import Artifact, Shard
from quire.errors import UserError


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one after another in this process, the last first."""

    def run_shards(draft, items, make, arguments, **_) -> None:
        process = make(*arguments)
        for number in sorted(set(range(len(items))) - set(draft.finished_shards()), reverse=True):
            draft.write_shard(number, process(items[number]))

    monkeypatch.setattr(step, "run_shards", run_shards)


def embedded(root: Path, vectors: np.ndarray, part_rows: int) -> Artifact:
    """An embeddings artefact of the vectors under the ids c0, c1 ..."""
    draft = artifact.begin(str(root), "embeddings", "e", recipe={}, inputs={})
    for part, start in enumerate(range(0, len(vectors), part_rows)):
        rows = vectors[start : start + part_rows]
        ids = [f"c{start + row}" for row in range(len(rows))]
        table = pa.table([ids, schema.lists(rows), [1] * len(rows)], schema=schema.embeddings(rows.shape[1]))
        draft.write_shard(part, Shard(table=table, rows_in=len(rows)))
    return draft.publish()


def settings(root: Path, *changes: str) -> step.IndexConfig:
    return config.load(step.CONFIG, None, ["name=i", "embeddings=e", f"runtime.root={root}", *changes])


def shards(made: Artifact) -> tuple[list[faiss.Index], faiss.IndexIVF | None, index.Plan]:
    facts, folder = made.manifest["facts"], Path(made.storage.path(made.folder))
    plan = index.Plan(**facts["plan"])
    trained = index.read_trained((folder / facts["trained"]).read_bytes(), "", plan) if plan.num_lists else None
    sizes = {name: found["bytes"] for name, found in made.manifest["files"].items()}
    opened = [
        index.read(folder / s["file"], plan, trained, rows=s["rows"], size=sizes[s["file"]]) for s in facts["shards"]
    ]
    return opened, trained, plan


def test_a_flat_index_of_many_shards_finds_what_brute_force_finds(tmp_path: Path, serial: None) -> None:
    vectors = clustered(3_000)
    embeddings = embedded(tmp_path, vectors * np.linspace(0.5, 2, len(vectors))[:, None], 100)  # lengths do not matter
    made = step.run(settings(tmp_path, f"shard_bytes={700 * 4 * DIM}"))
    opened, trained, plan = shards(made)
    assert (plan.method, trained, len(opened)) == ("flat", None, 5)
    unit = index.unit(schema.matrix(embeddings.read()["embedding"]))[0]
    rows, scores = index.search(opened, unit[:50], k=10)
    expected = brute_force(unit, unit[:50], 10)
    assert np.array_equal(rows, expected[0]) and np.array_equal(scores, expected[1])
    assert made.manifest["facts"]["recall"] == {"k": 10, "num_queries": 256, "by_num_probes": [[0, 1.0]]}
    assert made.read().to_pydict() == {
        "row": list(range(3_000)),
        "chunk_id": [f"c{row}" for row in range(3_000)],
        "part": [row // 100 for row in range(3_000)],
    }


@pytest.mark.parametrize("method", ["ivf", "ivf_pq"])
def test_the_recall_in_the_manifest_is_that_of_the_index(tmp_path: Path, serial: None, method: str) -> None:
    vectors = clustered(10_000)
    embedded(tmp_path, vectors, 1_000)
    one = step.run(settings(tmp_path, f"method={method}", "num_queries=2000"))
    many = step.run(settings(tmp_path, f"method={method}", "num_queries=2000", "name=m", f"shard_bytes={8_000 * DIM}"))
    facts, unit = one.manifest["facts"], index.unit(vectors)[0]
    assert len(many.manifest["facts"]["shards"]) == 5
    for key in ("recall", "num_probes"):
        assert many.manifest["facts"][key] == facts[key]
    opened, trained, _ = shards(many)
    queries = unit[:300]
    measured = dict(facts["recall"]["by_num_probes" if method == "ivf" else "by_codes"])
    assert method == "ivf_pq" or measured[1] < measured[2] < measured[256] == 1
    own = np.arange(300)[:, None]

    def others(found: np.ndarray) -> np.ndarray:
        return np.stack([row[row != i][:10] for i, row in zip(own, found, strict=True)])

    truth = others(brute_force(unit, queries, 11)[0])
    found = others(index.search(opened, queries, k=11, trained=trained, num_probes=facts["num_probes"])[0])
    assert index.recall(found, truth) == pytest.approx(measured[facts["num_probes"]], abs=0.05)
    page = (Path(many.storage.path(many.folder)) / "index.html").read_text("utf-8")
    recall = dict(facts["recall"]["by_num_probes"])
    assert f"recall@10 {recall[facts['num_probes']]:.3f} with {facts['num_probes']:,} of" in page
    assert all(f"<td>{value:.3f}</td>" in page for value in recall.values()) and "<svg" in page
    assert ("by codes alone" in page) == (method == "ivf_pq") and "<td>index-00005.faiss</td>" in page


def test_the_order_that_codes_give_is_made_anew_from_the_embeddings(tmp_path: Path, serial: None) -> None:
    vectors = clustered(10_000)
    embeddings = embedded(tmp_path, vectors * 3, 1_000)  # their lengths do not matter
    given = ("method=ivf_pq", "num_queries=500", f"shard_bytes={16_000 * DIM}")
    made, by_codes = (step.run(settings(tmp_path, *given, f"name=r{n}", f"rerank={n}")) for n in (10, 0))
    facts = made.manifest["facts"]
    recall, coded = (dict(facts["recall"][key]) for key in ("by_num_probes", "by_codes"))
    assert coded == dict(by_codes.manifest["facts"]["recall"]["by_num_probes"])
    assert recall[64] > 0.95 > coded[64] + 0.1 and facts["rerank"] == 10
    told = f"and 10 candidates for each answer ordered by their embeddings ({coded[facts['num_probes']]:.3f} by codes)"
    assert told in made.manifest["summary"] and "candidates" not in by_codes.manifest["summary"]
    rows, scores = brute_force(vectors, vectors[:100], 10)
    answers = {}
    for name, words in {"new": (), "codes": ("rerank=0",)}.items():
        asked = config.load(search.CONFIG, None, ["index=r10", "query=x", "k=10", "num_probes=64", *words])
        answers[name] = [search.nearest(made, embeddings, vectors[row : row + 1], asked) for row in range(100)]
    found = {name: np.stack([rows for rows, _, _ in answer]) for name, answer in answers.items()}
    assert index.recall(found["new"], rows) > 0.95 > index.recall(found["codes"], rows) + 0.1
    same = found["new"] == rows
    reached = np.stack([scores for _, scores, _ in answers["new"]])
    np.testing.assert_allclose(reached[same], scores[same], atol=1e-6)
    assert (np.diff(reached, axis=1) <= 0).all()
    assert all(places[row][0] == f"c{row}" for rows, _, places in answers["new"] for row in rows.tolist())


def test_the_fewest_lists_that_are_good_enough_are_chosen() -> None:
    recall = {1: 0.5, 2: 0.8, 4: 0.951, 8: 0.99}
    assert [step.choose(recall, wanted) for wanted in (0.4, 0.8, 0.95)] == [1, 2, 4]
    assert step.choose({1: 0.5, 2: 0.797, 4: 0.80}, 0.95) == 2  # none reaches it: near the best
    assert step.choose({0: 1.0}, 0.95) == 0


def test_rows_without_a_direction_are_dropped_and_counted(tmp_path: Path, serial: None) -> None:
    vectors = clustered(100).copy()
    vectors[3], vectors[60] = 0, np.nan
    embedded(tmp_path, vectors, 50)
    made = step.run(settings(tmp_path, f"shard_bytes={50 * 4 * DIM}"))
    assert (made.manifest["rows_in"], made.manifest["rows_out"]) == (100, 98)
    assert made.manifest["dropped"] == {"no_direction": 2}
    rows = [row for row in range(100) if row not in (3, 60)]
    assert made.read(["row"])["row"].to_pylist() == rows
    found = index.search(shards(made)[0], vectors[:3], k=98)[0]
    assert sorted(found[0].tolist()) == rows


def test_nothing_to_index_is_refused(tmp_path: Path, serial: None) -> None:
    with pytest.raises(UserError, match="embeddings 'e' .* does not exist"):
        step.run(settings(tmp_path))
    embedded(tmp_path, np.zeros((5, DIM), np.float32), 5)
    with pytest.raises(UserError, match="embeddings = 'e': none of 5 vectors has a direction"):
        step.run(settings(tmp_path))
    with pytest.raises(UserError, match='method = "ivf_pq": 5 vectors'):
        step.run(settings(tmp_path, "name=p", "method=ivf_pq"))


def test_one_row_is_an_index_too(tmp_path: Path, serial: None) -> None:
    embedded(tmp_path, clustered(1), 1)
    made = step.run(settings(tmp_path))
    assert index.search(shards(made)[0], clustered(1), k=1)[0].tolist() == [[0]]
    assert made.manifest["facts"]["recall"]["by_num_probes"] == [[0, 1.0]]


@pytest.mark.ray
def test_a_killed_run_goes_on_to_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path, local_ray: None) -> None:
    embedded(tmp_path, clustered(6_000), 500)
    given = ("method=ivf", f"shard_bytes={4_000 * DIM}")
    whole = step.run(settings(tmp_path, *given))
    resumed = settings(tmp_path, *given, "name=resumed", "runtime.num_workers=1")
    broken = tmp_path / "index/resumed/part-00004.parquet"
    broken.mkdir(parents=True)  # the worker that comes to it fails
    with pytest.raises(Exception, match="part-00004"):
        step.run(resumed)
    broken.rmdir()
    assert 0 < len(list((tmp_path / "index/resumed/_shards").iterdir())) < 7
    made = step.run(resumed)
    for key in ("files", "facts", "rows_out"):
        assert made.manifest[key] == whole.manifest[key], key
    assert step.run(resumed).manifest == made.manifest


@pytest.mark.ray
def test_an_index_is_trained_by_the_cpus_of_a_node_that_nobody_holds(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded(tmp_path, clustered(6_000), 2_000)

    def watched(embeddings, draft, plan, given):
        process, train = step._worker(embeddings, draft, plan, given), index.train

        def told(*args, **how):
            draft.storage.write_json("threads.json", faiss.omp_get_max_threads())
            return train(*args, **how)

        def make(item):
            before = faiss.omp_get_max_threads()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(index, "train", told)
                shard = process(item)
            assert faiss.omp_get_max_threads() == before
            return shard

        return make

    run_shards = step.run_shards
    monkeypatch.setattr(
        step, "run_shards", lambda draft, items, _, *given, **how: run_shards(draft, items, watched, *given, **how)
    )
    with held_cpu():
        assert step.run(settings(tmp_path, "method=ivf")).storage.read_json("threads.json") == 1
    assert step.run(settings(tmp_path, "method=ivf", "name=j")).storage.read_json("threads.json") == 2
    assert free_cpus() == 2


@contextmanager
def held_cpu() -> Iterator[None]:
    """One CPU of the node in use."""
    held = placement_group([{"CPU": 1}])
    ray.get(held.ready())
    yield
    remove_placement_group(held)
    while ray.available_resources().get("CPU", 0) < 2:
        time.sleep(0.05)
