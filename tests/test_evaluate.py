"""The evaluation of a matcher: what its report says is what the predictions hold."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from quire import artifact, calibration, metrics, schema
from quire.artifact import Artifact, Shard
from quire.errors import UserError
from trainers import evaluate

SYSTEMS = ("bi_encoder", "cross_encoder", "untrained", "word_tfidf")


def predictions(root: str, name: str, *, names: float, seed: int = 0, count: int = 600) -> Artifact:
    """Logits of four systems; `names` is how much of a book's own signal they see."""
    rows = []
    draw, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for split in ("calibration", "test"):
        for number in range(count):
            kind = draw.choice(["positive", "random", "same_author", "neighbor"], p=[0.4, 0.2, 0.2, 0.2])
            a, b = (f"author-{draw.integers(8)}" for _ in range(2))
            b = a if kind in ("positive", "same_author") else b + "x"
            signal = {"positive": 1 + names, "same_author": 0.8}.get(kind, 0.0)
            row = {"pair_id": f"{split}-{number}", "split": split, "label": int(kind == "positive")}
            row |= {"negative_type": None if kind == "positive" else kind, "author_a": a, "author_b": b}
            row |= {"distance": int(draw.integers(9000)) if kind == "positive" else None}
            row |= {"chars_a": int(draw.integers(200, 2000)), "chars_b": int(draw.integers(200, 2000))}
            row |= {system: signal + noise.normal(0, 1 + 0.2 * place) for place, system in enumerate(SYSTEMS)}
            rows.append(row | dict.fromkeys(("chunk_a", "chunk_b", "work_a", "work_b"), ""))
    fields = [*schema.PAIRS, *(pa.field(f"chars_{side}", pa.int64()) for side in "ab")]
    fields += [pa.field(system, pa.float64()) for system in SYSTEMS]
    draft = artifact.begin(root, "predictions", name, recipe={"names": names, "seed": seed}, inputs={})
    draft.write_shard(0, Shard(table=pa.Table.from_pylist(rows, schema=pa.schema(fields)), rows_in=len(rows)))
    return draft.publish(num_shards=1)


def matcher(root: str, made: Artifact) -> Artifact:
    """Scales fitted on the calibration split, a second stage that always answers."""
    table = made.read().filter(pa.compute.equal(made.read()["split"], "calibration"))
    labels = table["label"].to_numpy()
    scales = {name: calibration.fit_scale(table[name].to_numpy(), labels) for name in SYSTEMS}
    quality = dict.fromkeys(("nll", "brier", "ece"), 0.5)
    systems = {name: {"scale": vars(scale), "before": quality, "after": quality} for name, scale in scales.items()}
    fusion = calibration.fit_fusion(table["cross_encoder"].to_numpy(), table["bi_encoder"].to_numpy(), labels)
    draft = artifact.begin(root, "models", "m", recipe={}, inputs={"predictions": made})
    thresholds = dict.fromkeys(SYSTEMS, 0.5)
    draft.storage.write_json(f"{draft.folder}/calibration.json", {"systems": systems, "thresholds": thresholds})
    spec = {"fusion": vars(fusion), "prefilter": 0.0, "threshold": 0.5, "prior": 0.4, "calibration_prior": 0.4}
    draft.storage.write_json(f"{draft.folder}/matcher.json", spec)
    return draft.publish()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("root"))
    made = predictions(folder, "raw", names=1.0)
    predictions(folder, "masked", names=0.0)
    predictions(folder, "others", names=1.0, count=500)
    matcher(folder, made)
    return folder


def run(root: str, **changes: object) -> Artifact:
    values = {"name": "r", "predictions": "raw", "matcher": "m", "num_bootstraps": 40, **changes}
    runtime = {"root": root, "wandb": "disabled"}
    return evaluate.run(evaluate.CONFIG.model_validate_json(json.dumps({**values, "runtime": runtime})))


@pytest.fixture(scope="module")
def report(root: str) -> Artifact:
    return run(root, masked="masked")


def test_every_system_of_the_matcher_is_measured_in_every_stratum(report: Artifact) -> None:
    rows = report.read_json("results.json")
    assert set(rows) == {"two-stage", "bi-encoder", "cross-encoder", "untrained encoder", "words, tf-idf"}
    types = {"overall", "random", "same_author", "neighbor"}
    strata = types | {"near", "far", "short", "medium", "long", "topic_matched", "masked"}
    assert all(set(cells) == strata == set(report.read_json("strata.json")) for cells in rows.values())
    for cells in rows.values():
        assert all(low <= cells[name]["auc"] <= high for name in types for low, high in [cells[name]["auc_interval"]])
        assert {"pan_interval", "cllr_interval", "ece_interval"} <= set(cells["overall"])


def test_the_numbers_are_those_of_the_predictions(report: Artifact, root: str) -> None:
    table = artifact.open_artifact(root, "predictions", "raw").read()
    table = table.filter(pa.compute.equal(table["split"], "test"))
    kinds = np.asarray(table["negative_type"].fill_null("positive").to_pylist())
    scores = table["word_tfidf"].to_numpy()
    found, types = report.read_json("results.json")["words, tf-idf"], report.read_json("pair_types.json")["raw"]
    hard = np.isin(kinds, ["positive", "same_author"])
    expected = metrics.auc(kinds[hard] == "positive", scores[hard])
    assert found["same_author"]["auc"] == pytest.approx(expected)
    assert types["words, tf-idf"]["SB vs SA"]["auc"] == pytest.approx(expected)
    apart = np.isin(kinds, ["same_author", "random"])
    expected = metrics.auc(kinds[apart] == "same_author", scores[apart])
    assert types["words, tf-idf"]["SA vs DA"]["auc"] == pytest.approx(expected)


def test_masking_takes_from_the_same_book_and_leaves_the_author(report: Artifact) -> None:
    types = report.read_json("pair_types.json")
    raw, masked = (types[texts]["bi-encoder"] for texts in ("raw", "names masked"))
    assert raw["SB vs SA"]["auc"] > masked["SB vs SA"]["auc"] + 0.1
    assert raw["SA vs DA"]["auc"] == pytest.approx(masked["SA vs DA"]["auc"], abs=0.1)


def test_the_page_and_the_table_hold_all_three_comparisons(report: Artifact) -> None:
    page, table = (Path(report.local() / name).read_text("utf-8") for name in ("index.html", "table.txt"))
    for name, cells in report.read_json("pair_types.json")["names masked"].items():
        shown = f"{cells['SA vs DA']['auc']:.3f}"
        assert name in page and shown in page and shown in table


def test_other_pairs_another_topic_score_and_old_predictions_are_refused(root: str) -> None:
    with pytest.raises(UserError, match="masked = 'others'"):
        run(root, name="x", masked="others")
    with pytest.raises(UserError, match="topic = 'moon'"):
        run(root, name="y", topic="moon")
