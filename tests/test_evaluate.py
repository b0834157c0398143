"""The evaluation of a matcher: what its report says is what the predictions hold."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from quire import artifact, calibration, metrics, schema
from quire import matcher as books
from quire.artifact import Artifact, Shard
from quire.certify import Certificate
from quire.errors import UserError
from quire.levels import EVIDENCE, Level, of_level
from trainers import evaluate

SYSTEMS = ("bi_encoder", "cross_encoder", "untrained", "word_tfidf")


def predictions(
    root: str, name: str, *, names: float, seed: int = 0, count: int = 600, levels: tuple[int, ...] = (1,)
) -> Artifact:
    """Logits of four systems; `names` is how much of a book's own signal they see. Noise falls with the level."""
    rows = []
    draw, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for split, k in ((split, k) for k in levels for split in ("calibration", "test")):
        for number in range(count if k == 1 else 150):
            kind = draw.choice(["positive", "random", "same_author", "neighbor"], p=[0.4, 0.2, 0.2, 0.2])
            a, b = (f"author-{draw.integers(8)}" for _ in range(2))
            b = a if kind in ("positive", "same_author") else b + "x"
            signal = {"positive": 1 + names, "same_author": 0.8}.get(kind, 0.0)
            row = {"pair_id": f"{split}-{number}", "split": split, "k": k, "label": int(kind == "positive")}
            row |= {"negative_type": None if kind == "positive" else kind, "author_a": a, "author_b": b}
            row |= {"distance": int(draw.integers(9000)) if kind == "positive" else None}
            row |= {"num_a": k * (1 + number % 6), "num_b": 6 * k}
            row |= {"chars_a": int(draw.integers(200, 2000)), "chars_b": int(draw.integers(200, 2000))}
            row |= {
                system: signal + noise.normal(0, (1 + 0.2 * place) / k**0.5) for place, system in enumerate(SYSTEMS)
            }
            rows.append(row | dict.fromkeys(("chunk_a", "chunk_b", "work_a", "work_b"), ""))
    sizes = (pa.field(f"{what}_{side}", pa.int64()) for what in ("num", "chars") for side in "ab")
    fields = [*schema.PAIRS, pa.field("k", pa.int32()), *sizes]
    fields += [pa.field(system, pa.float64()) for system in SYSTEMS]
    recipe = {"mask_names": name == "masked", "names": names, "seed": seed, "levels": levels, "says": EVIDENCE}
    draft = artifact.begin(root, "predictions", name, recipe=recipe, inputs={})
    draft.write_shard(0, Shard(table=pa.Table.from_pylist(rows, schema=pa.schema(fields)), rows_in=len(rows)))
    return draft.publish(num_shards=1)


def matcher(root: str, made: Artifact) -> Artifact:
    """Scales fitted on the calibration split, a second stage that always answers."""
    every = made.read()
    quality, thresholds = dict.fromkeys(("nll", "brier", "ece"), 0.5), dict.fromkeys(SYSTEMS, 0.5)
    reports, levels = {}, []
    for k in sorted(set(every["k"].to_pylist())):
        rows = pa.compute.and_(pa.compute.equal(every["split"], "calibration"), pa.compute.equal(every["k"], k))
        table = every.filter(rows)
        labels = table["label"].to_numpy()
        scales = {name: calibration.fit_scale(table[name].to_numpy(), labels) for name in SYSTEMS}
        systems = {name: {"scale": vars(scale), "before": quality, "after": quality} for name, scale in scales.items()}
        reports[str(k)] = {"systems": systems, "thresholds": thresholds}
        fusion = calibration.fit_fusion(table["cross_encoder"].to_numpy(), table["bi_encoder"].to_numpy(), labels)
        promises = (Certificate("same", 0.7, 0.95, "author", 0.4, 0.6, 0.72, 90, 80, 200, None),) if k == 1 else ()
        levels.append(Level(k, scales["bi_encoder"], fusion, 0.0, 0.5, 0.4, len(labels), promises))
    draft = artifact.begin(root, "models", "m", recipe={}, inputs={"predictions": made})
    draft.storage.write_json(f"{draft.folder}/calibration.json", {"levels": reports})
    spec = books.make_spec(
        evidence=EVIDENCE,
        **dict.fromkeys(("bi_encoder", "cross_encoder", "bi_encoder_sha256", "cross_encoder_sha256"), ""),
        **dict.fromkeys(("size", "overlap", "min_chars", "max_cross_pairs"), 4),
        **{"prior": 0.4, "objective": "accuracy", "levels": tuple(levels)},
    )
    draft.storage.write_json(f"{draft.folder}/matcher.json", books.spec_dict(spec))
    return draft.publish()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("root"))
    made = predictions(folder, "raw", names=1.0, levels=(1, 4, 16))
    predictions(folder, "first", names=1.0)
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
    table = table.filter(pa.compute.and_(pa.compute.equal(table["split"], "test"), pa.compute.equal(table["k"], 1)))
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


def test_the_report_shows_what_was_promised_and_what_was_kept(report: Artifact, root: str) -> None:
    table = artifact.open_artifact(root, "predictions", "raw").read()
    table = table.filter(pa.compute.and_(pa.compute.equal(table["split"], "test"), pa.compute.equal(table["k"], 1)))
    made = artifact.open_artifact(root, "models", "m")
    level = books.load_spec(made.storage.read_bytes(f"{made.folder}/matcher.json")).level(1)
    probability = level.fusion.probability(*(table[name].to_numpy() for name in ("cross_encoder", "bi_encoder")))
    said, labels = probability >= 0.6, table["label"].to_numpy()
    right, wrong = ((said & (labels == label)).sum() / (labels == label).sum() for label in (1, 0))
    (row,) = report.read_json("decisions.json")
    assert row["decided"] == pytest.approx(0.4 * right + 0.6 * wrong)
    assert row["precision"] == pytest.approx(0.4 * right / (0.4 * right + 0.6 * wrong))
    page = Path(report.local() / "index.html").read_text("utf-8")
    answers = np.where(said, 1.0, 0.5)  # nothing is certified as different
    official = metrics.pan(labels, answers)
    assert (row["c_at_1"], row["f05u"]) == pytest.approx((official["c_at_1"], official["f05u"]))
    assert row["c_at_1"] != pytest.approx(report.read_json("results.json")["two-stage"]["overall"]["c_at_1"])
    assert "0.7 at confidence 0.95" in page and f"{row['precision']:.3f}" in page


def test_predictions_of_other_models_than_the_matchers_are_refused(root: str, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "root")
    for kind, name, content in (("predictions", "raw", "x"), ("models", "m", "y")):
        file = tmp_path / "root" / kind / name / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["inputs"]["bi_encoder"] = {"kind": "models", "name": f"bi-{content}", "content": content}
        file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="predictions = 'raw': scored by 'bi-x', but the matcher 'm' .* 'bi-y'"):
        run(str(tmp_path / "root"), name="z")


def test_masked_predictions_by_other_models_than_the_raw_ones_are_refused(root: str) -> None:
    raw, masked = (artifact.open_artifact(root, "predictions", name) for name in ("raw", "masked"))
    for made, content in ((raw, "x"), (masked, "y")):
        made.manifest["inputs"]["cross_encoder"] = {"kind": "models", "name": f"cross-{content}", "content": content}
    with pytest.raises(UserError, match="masked = 'masked': scored by 'cross-y', but 'raw' by 'cross-x'"):
        evaluate.check_reading(raw, masked)
    evaluate.check_reading(raw)


def test_the_lead_of_the_answer_has_an_interval_of_its_own(report: Artifact, root: str) -> None:
    rows = report.read_json("pair_types.json")["raw"]
    for system, cells in rows.items():
        for name, cell in cells.items():
            assert cell["lead"] == pytest.approx(rows["two-stage"][name]["auc"] - cell["auc"])
            low, high = cell["lead_interval"]
            assert low <= cell["lead"] <= high or (low, high) == (0, 0)
            if system != "two-stage":  # the same draws: narrower than two intervals by themselves would allow
                widths = (high - low for low, high in (rows["two-stage"][name]["auc_interval"], cell["auc_interval"]))
                assert 0 < high - low < sum(widths)
    assert "How far the answer is ahead" in Path(report.local() / "index.html").read_text("utf-8")
    assert "less the system's" in Path(report.local() / "table.txt").read_text("utf-8")


def test_the_curve_holds_every_system_at_every_level_and_rises(report: Artifact, root: str) -> None:
    curve = report.read_json("levels.json")
    assert set(curve) == set(report.read_json("results.json"))
    assert all(set(cells) == {"1", "4", "16"} for cells in curve.values())
    two = curve["two-stage"]
    assert two["1"]["auc"] == pytest.approx(report.read_json("results.json")["two-stage"]["overall"]["auc"])
    assert two["1"]["auc"] + 0.03 < two["4"]["auc"] <= two["16"]["auc"]
    assert all(cell["auc_interval"][0] <= cell["auc"] <= cell["auc_interval"][1] for cell in two.values())
    assert all(cell["ece"] < 0.2 and cell["brier"] < 0.2 for cell in two.values())
    table = artifact.open_artifact(root, "predictions", "raw").read()
    rows = table.filter(pa.compute.and_(pa.compute.equal(table["split"], "test"), pa.compute.equal(table["k"], 16)))
    expected = metrics.auc(rows["label"].to_numpy() == 1, rows["word_tfidf"].to_numpy())
    assert curve["words, tf-idf"]["16"]["auc"] == pytest.approx(expected)
    assert two["16"]["num_positives"] + two["16"]["num_negatives"] == rows.num_rows == 150


def test_the_curve_tells_the_final_answer_by_length_of_the_shorter_text(report: Artifact, root: str) -> None:
    cell = report.read_json("levels.json")["two-stage"]["16"]["by_length"]
    assert {name: part["num_pairs"] for name, part in cell.items()} == {
        "texts of under 2k": 25,
        "texts of 2k to 4k": 50,
        "texts of 4k and more": 75,
    }
    table = artifact.open_artifact(root, "predictions", "raw").read()
    test = of_level(table.filter(pa.compute.equal(table["split"], "test")), 16)
    scores = evaluate.system_scores(test, artifact.open_artifact(root, "models", "m"), 16).rankings["two_stage"]
    long = np.minimum(test["num_a"].to_numpy(), test["num_b"].to_numpy()) >= 4 * 16
    assert cell["texts of 4k and more"]["auc"] == pytest.approx(
        metrics.auc(test["label"].to_numpy()[long], scores[long])
    )
    assert "two-stage, texts of 4k and more chunks (75 pairs)" in (Path(report.local()) / "table.txt").read_text(
        "utf-8"
    )


def test_the_curve_is_drawn_and_told_only_where_there_are_levels(report: Artifact, root: str) -> None:
    page, table = (Path(report.local() / name).read_text("utf-8") for name in ("index.html", "table.txt"))
    assert "By chunks a side" in page and "k = 16" in page and "by chunks a side" in table
    assert f"{report.read_json('levels.json')['two-stage']['16']['auc']:.3f}" in table
    one = run(root, name="one", predictions="first")  # single passages are the same whatever other levels there are
    assert list(one.read_json("levels.json")["two-stage"]) == ["1"]
    assert "chunks a side" not in Path(one.local() / "index.html").read_text("utf-8")


def test_mined_negatives_are_found_by_what_their_pairs_were_drawn_from(tmp_path: Path) -> None:
    root, made = str(tmp_path), None
    near = {"level": "chunk", "split": "test", "id": "x1", "neighbor_ids": ["y1"], "scores": [0.9]}
    for kind, rows in (("neighbors", pa.Table.from_pylist([near], schema.NEIGHBORS)), ("pairs", pa.table({}))):
        draft = artifact.begin(root, kind, "n", recipe={}, inputs={"neighbors": made} if made else {})
        draft.write_shard(0, Shard(table=rows, rows_in=rows.num_rows))
        made = draft.publish(num_shards=1)
    table = pa.table({"chunk_a": ["y1", "x2"], "chunk_b": ["x1", "y1"], "label": [0, 0]})
    scored = artifact.begin(root, "predictions", "n", recipe={}, inputs={"pairs": made}).publish()
    assert evaluate.mined_pairs(root, scored, table).tolist() == [True, False]
    alone = artifact.begin(root, "predictions", "alone", recipe={}, inputs={}).publish()
    assert not evaluate.mined_pairs(root, alone, table).any()


def test_test_pairs_of_other_levels_than_the_matcher_has_are_refused(root: str) -> None:
    predictions(root, "two-levels", names=1.0, levels=(1, 4))
    with pytest.raises(UserError, match=r"of \[1, 4\] passages a side, the matcher 'm' is calibrated for \[1, 4, 16\]"):
        run(root, name="two-levels", predictions="two-levels")
