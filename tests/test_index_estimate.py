"""What an index would take is told before it is built: from a few vectors, and near what building it takes."""

import re
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from test_embed import write
from test_index import DIM, clustered, one_thread  # noqa: F401
from test_index_step import embedded, settings

from pipelines import embed, workers
from pipelines import index as step
from quire import embeddings, flow, index, index_cost, ledger
from quire.artifact import Draft
from quire.errors import UserError


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of the step, and of its estimate, in this process."""

    def run_shards(draft: Draft, items: list, make: Callable, arguments: tuple, **_: object) -> None:
        pending = np.asarray(sorted(set(range(len(items))) - set(draft.finished_shards())))
        told = workers.Worker(make, arguments, draft, items)({"index": pending})
        assert not told["mistake"][0] + told["trace"][0]

    monkeypatch.setattr(step, "run_shards", run_shards)
    for module in (embed, step):
        monkeypatch.setattr(module, "gpus", lambda asked, can_use: 0.0)
        monkeypatch.setattr(module, "on_a_worker", lambda function, *arguments, **_: function(*arguments))


def numbers(told: str) -> dict[str, float]:
    """What an estimate says of the whole, by unit."""
    found = re.findall(r"([\d,.e-]+) (rows|tokens|MB|CPU hours|GPU hours)", told.partition("\n")[2])
    return {unit: float(value.replace(",", "")) for value, unit in found}


def test_rows_grow_and_shards_and_training_are_paid_once() -> None:
    parts = {"read": [2.0, 0], "one": [1.0, 8], "many": [11.0, 108], "training": [5.0, 40]}
    measured = index_cost.Measured(101, **{name: np.asarray(part) for name, part in parts.items()})
    assert measured.whole(1_010, 10) == pytest.approx([20 + 10 + 100 + 5, 80 + 1_000 + 40])
    assert measured.whole(101, 1) == pytest.approx([2 + 11 + 5, 108 + 40])


def test_training_costs_a_search_for_each_pass_and_codes_for_as_many_rows_as_faiss_takes() -> None:
    plan = index.plan(10**8, DIM, "ivf_pq")
    made, one, two = index.untrained(plan, 0), np.asarray([1e-6]), np.asarray([1e-3])
    assert index_cost.training(plan, made, one, two) == pytest.approx(10 * plan.training_rows * 1e-6 + 65_536 * 1e-3)
    assert index_cost.training(index.plan(10**8, DIM, "ivf"), made, one, two) == pytest.approx(
        10 * plan.training_rows * 1e-6
    )


@pytest.mark.parametrize("method", ["ivf", "ivf_pq"])
def test_a_stand_in_has_the_size_and_spreads_what_it_holds_like_the_trained_index(method: str) -> None:
    vectors, plan = clustered(20_000), index.plan(20_000, DIM, method)
    made = index_cost.stand_in(plan, index_cost.repeated(vectors[:10_000], 12_000))
    trained = index.train(plan, vectors)
    assert faiss.serialize_index(made).nbytes == faiss.serialize_index(trained).nbytes
    for found in (made, trained):
        flat = faiss.IndexFlatIP(DIM)
        flat.add(vectors)
        filled = index.fill(found, flat, np.arange(len(vectors)))
        sizes = [filled.invlists.list_size(number) for number in range(plan.num_lists)]
        assert sum(sizes) == 20_000 and max(sizes) < 40 * 20_000 / plan.num_lists
    assert index_cost.stand_in(index.plan(100, DIM), vectors) is None


@pytest.mark.parametrize("method", ["flat", "ivf", "ivf_pq"])
def test_an_estimate_is_near_what_the_run_makes_and_leaves_nothing(tmp_path: Path, here: None, method: str) -> None:
    vectors = clustered(40_000).copy()
    vectors[::4] = 0  # which are dropped
    embedded(tmp_path, vectors, 5_000)
    asked = settings(tmp_path, f"method={method}", f"shard_bytes={40_000 * DIM}", "runtime.prices.cpu_hour=1.0")
    told = step.estimate(asked)
    assert not (tmp_path / "index").exists() and "from 11,250 rows, 37.5% of the work" in told and "USD" in told
    made = step.run(asked)
    found, files = numbers(told), made.manifest["files"]
    assert found["rows"] == made.manifest["rows_out"] == 30_000 and "tokens" not in found
    size = sum(facts["bytes"] for name, facts in files.items() if name.endswith((".faiss", ".parquet")))
    assert found["MB"] == pytest.approx(size / 1e6, rel=0.1)
    assert found["CPU hours"] > 0  # how near it comes is measured, and stands in LOG.md: a busy machine decides no test


def test_embeddings_that_are_not_made_yet_are_those_that_were_drawn(tmp_path: Path, here: None) -> None:
    with pytest.raises(UserError, match="embeddings 'e' .* does not exist"):
        step.estimate(settings(tmp_path))
    few = clustered(200)
    rows = embeddings.table([f"c{row}" for row in range(200)], few.astype(np.float16), [9] * 200)
    told = step.estimate(settings(tmp_path), {"embeddings/e": ledger.Drawn(rows, 200 / 1_000_000)})
    found = numbers(told)
    assert "from 200 rows, 0.0% of the work" in told and found["rows"] == 1_000_000
    plan = index.plan(1_000_000, DIM)
    assert plan.method == "ivf" and found["MB"] > 4 * DIM * (plan.rows + plan.num_lists) / 1e6
    with pytest.raises(UserError, match="embeddings = 'e': none of 200 vectors has a direction"):
        lost = embeddings.table([f"c{row}" for row in range(200)], np.zeros((200, DIM)), [9] * 200)
        step.estimate(settings(tmp_path), {"embeddings/e": ledger.Drawn(lost, 0.1)})
    with pytest.raises(UserError, match="embeddings = 'e': no rows to index"):
        step.estimate(settings(tmp_path), {"embeddings/e": ledger.Drawn(rows.slice(0, 0), 0.1)})


def test_the_flow_from_a_corpus_to_an_index_is_told_to_its_end(
    tmp_path: Path, here: None, encoder_folder: str, capsys: pytest.CaptureFixture
) -> None:
    for number in range(40):
        write(tmp_path / "source", f"{number:02d}.jsonl", "sea", 6)
    words = [f"root={tmp_path / 'root'}", "prices.cpu_hour=1.0", f"chunks.source.folder={tmp_path / 'source'}"]
    words += ["chunks.source.shard_bytes=20_000", "chunks.max_tokens=60", "chunks.overlap=10"]
    words += [f"{name}.model={encoder_folder}" for name in ("chunks", "embed")]
    flow.main(["flows/corpus.toml", *words, "--estimate"])
    told = capsys.readouterr().out
    chunks, embedded, indexed = (numbers(part) for part in told.split("estimate from")[1:])
    assert chunks["rows"] == embedded["rows"] == indexed["rows"] > 480 and told.count("USD") == 3
    assert indexed["MB"] > 2 * embedded["MB"] and not (tmp_path / "root").exists()  # 4 bytes a value, not 2


@pytest.mark.ray
def test_a_worker_tells_what_the_index_would_take(tmp_path: Path, local_ray: None) -> None:
    embedded(tmp_path, clustered(6_000), 500)
    found = numbers(step.estimate(settings(tmp_path, "method=ivf")))
    assert found["rows"] == 6_000 and 0 < found["CPU hours"] < 0.01 and found["GPU hours"] == 0
