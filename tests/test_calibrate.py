"""Calibration as a step: what is published, what cannot be promised, and what the spec says of its data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from safetensors.numpy import save_file

from quire import artifact, levels, matcher, metrics, schema
from quire.artifact import Shard
from quire.errors import UserError
from trainers import calibrate

RECIPE = {"size": 14, "overlap": 4, "min_chars": 200, "split": {"by": "author"}, "max_cross_pairs": 3}
RECIPE |= {levels.SAYS: levels.EVIDENCE}


def publish(root: Path, kind: str, name: str, table: pa.Table | None = None) -> None:
    draft = artifact.begin(str(root), kind, name, recipe=RECIPE, inputs={})
    if table is None:
        folder = root / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"weight": np.ones(1, np.float32)}, folder / "model.safetensors")
    else:
        draft.write_shard(0, Shard(table=table, rows_in=table.num_rows))
    draft.publish()


def predictions(
    num_authors: int, seed: int = 0, k: int = 1, signal: float = 2.5, noise: float = 1.5
) -> tuple[pa.Table, pa.Table]:
    """Chunks and scored pairs: two books an author; of each, two positives, one of either kind of negative.

    The noise of the mean over k chunks a side falls with k.
    """
    draw = np.random.default_rng(seed)
    works = [f"a{i}/{book}" for i in range(num_authors) for book in "xy"]
    rows: list[dict[str, Any]] = []
    for split in ("calibration", "test"):
        for number, work in enumerate(works):
            author, other = work.split("/")[0], works[(number + 2 * int(draw.integers(1, num_authors))) % len(works)]
            sibling = f"{author}/{'y' if work.endswith('x') else 'x'}"
            partners = ((work, None), (work, None), (sibling, "same_author"), (other, "random"))
            for place, (partner, kind) in enumerate(partners):
                label = int(kind is None)
                logits = {
                    n: signal * (2 * label - 1) + draw.normal(0, noise / k**0.5)
                    for n in ("bi_encoder", "cross_encoder")
                }
                rows.append(
                    {
                        "pair_id": f"{split}{number}-{place}",
                        "k": k,
                        "split": split,
                        "chunk_a": f"{work}:0",
                        "chunk_b": f"{partner}:1",
                        "label": label,
                        "negative_type": kind,
                        "distance": 100 if label else None,
                        "work_a": work,
                        "work_b": partner,
                        "author_a": author,
                        "author_b": partner.split("/")[0],
                        **logits,
                        **{name: logits["bi_encoder"] + draw.normal() for name in calibrate.BASELINES},
                    }
                )
    columns = [
        *schema.PAIRS,
        pa.field("k", pa.int32()),
        *(pa.field(n, pa.float64()) for n in ("bi_encoder", "cross_encoder")),
    ]
    columns += [pa.field(n, pa.float64()) for n in calibrate.BASELINES]
    chunks = pa.table({"work_id": works, "author_group": [work.split("/")[0] for work in works]})
    return chunks, pa.Table.from_pylist(rows, schema=pa.schema(columns))


def test_predictions_of_other_models_or_of_masked_texts_are_refused(tmp_path: Path) -> None:
    made = published(tmp_path, 30)
    folder = tmp_path / "predictions/p"
    manifest = json.loads((folder / "manifest.json").read_text())
    for changed, told in (
        ({"recipe": RECIPE | {"mask_names": True}}, "predictions = 'p': scored with names masked"),
        ({"inputs": {"bi_encoder": {"content": "x", "name": "old"}}}, "bi_encoder = 'bi': 'p' was made"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | changed))
        with pytest.raises(UserError, match=told):
            calibrate.run(calibrate.CONFIG.model_validate(made | {"name": "m", "runtime": {"root": str(tmp_path)}}))


def published(
    root: Path, num_authors: int = 300, further: tuple[tuple[int, int], ...] = (), **world: float
) -> dict[str, Any]:
    """`further`: levels with their numbers of authors."""
    chunks, pairs = predictions(num_authors, **world)
    pairs = pa.concat_tables([pairs, *(predictions(number, k, k, **world)[1] for k, number in further)])
    publish(root, "chunks", "c", chunks)
    publish(root, "predictions", "p", pairs)
    for name in ("bi", "cross"):
        publish(root, "models", name)
    return {
        "predictions": "p",
        "chunks": "c",
        "bi_encoder": "bi",
        "cross_encoder": "cross",
        "runtime": {"root": str(root)},
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return published(tmp_path_factory.mktemp("root"))


def run(inputs: dict[str, Any], name: str, **changes: Any) -> matcher.MatcherSpec:
    made = calibrate.run(calibrate.CalibrateConfig(name=name, **inputs, **changes))
    return matcher.open_spec(f"{inputs['runtime']['root']}/{made.folder}")


def test_both_promises_are_kept_on_test_by_authors_never_seen(inputs: dict[str, Any]) -> None:
    spec = run(inputs, "both", same_precision=0.9, different_precision=0.9)
    same, different = spec.level(1).certificates
    assert (same.side, different.side, same.unit, same.confidence) == ("same", "different", "author", 0.95)
    assert same.num_pairs < 150 and min(same.bound, different.bound) >= 0.9  # a half of the authors, each used once
    test = artifact.open_artifact(inputs["runtime"]["root"], "predictions", "p").read()
    test = test.filter(pa.compute.equal(test["split"], "test"))
    logits = (test[name].to_numpy() for name in ("bi_encoder", "cross_encoder"))
    answers = matcher.decide(spec, *logits)
    labels = test["label"].to_numpy()
    for decision, wanted in (("same", 1), ("different", 0)):
        said = np.array([answer.decision == decision for answer in answers])
        assert said.mean() > 0.2 and (labels[said] == wanted).mean() >= 0.9


def test_without_a_promise_one_threshold_decides_as_before(inputs: dict[str, Any]) -> None:
    spec = run(inputs, "plain")
    (level,) = spec.levels
    assert level.certificates == () and level.num_calibration_pairs == 2400 and level.k == 1
    assert spec.prior == level.calibration_prior == 0.5 and spec.max_cross_pairs == 3  # as the predictions were made
    assert {answer.decision for answer in matcher.decide(spec, np.array([-3.0, 3.0]), np.array([-3.0, 3.0]))} == {
        "same",
        "different",
    }


def test_what_cannot_be_certified_ends_the_run_and_says_what_can_be_had(inputs: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"same: precision 0.999 .* cannot be certified \(best bound .* would be needed"
    ):
        run(inputs, "refused", same_precision=0.999)
    spec = run(inputs, "refused", same_precision=0.999, allow_uncertified=True)
    (answer,) = matcher.decide(spec, np.array([9.0]), np.array([9.0]))
    assert (answer.decision, answer.code, answer.same_threshold) == ("undecided", "cannot_certify", None)


def test_further_pairs_of_the_same_authors_are_promised_more_cheaply(inputs: dict[str, Any]) -> None:
    by_pair = run(inputs, "pairs", same_precision=0.9, unit="pair").level(1).certificates[0]
    assert by_pair.num_pairs > 1000 and by_pair.unit == "pair"


def test_another_prior_moves_the_probabilities_the_threshold_and_the_promise(inputs: dict[str, Any]) -> None:
    plain, rare = run(inputs, "plain2"), run(inputs, "rare", prior=0.1)
    logits = np.array([0.5]), np.array([0.5])
    (even,), (few,) = matcher.decide(plain, *logits), matcher.decide(rare, *logits)
    odds = [p / (1 - p) for p in (even.probability, few.probability)]
    assert odds[0] / odds[1] == pytest.approx(9.0) and few.prior == 0.1
    (promised,) = run(inputs, "rare-promise", prior=0.1, different_precision=0.95).level(1).certificates
    assert promised.prior == 0.1 and promised.num_decided / promised.num_pairs > 0.75  # nine pairs in ten are different
    (common,) = run(inputs, "even-promise", different_precision=0.9).level(1).certificates
    assert common.prior == pytest.approx(0.5, abs=0.01) and common.num_decided / common.num_pairs < 0.6


def test_the_data_hash_follows_the_labels_and_the_scores(inputs: dict[str, Any], tmp_path: Path) -> None:
    _, pairs = predictions(20)
    found = calibrate.data_sha256(pairs)
    assert found == calibrate.data_sha256(predictions(20)[1])
    flipped = pairs.set_column(
        pairs.column_names.index("label"), "label", pa.array(1 - pairs["label"].to_numpy(), pa.int8())
    )
    assert len({found, calibrate.data_sha256(flipped), calibrate.data_sha256(predictions(20, 1)[1])}) == 3
    assert len(run(inputs, "hashed").data_sha256) == 64


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Levels of 1, 5 and 10 chunks a side, where single chunks tell little."""
    return published(tmp_path_factory.mktemp("many"), 150, ((5, 100), (10, 100)), signal=1.0, noise=2.5)


def test_every_level_has_a_scale_of_its_own_and_the_first_one_s_would_not_do(many: dict[str, Any]) -> None:
    spec = run(many, "levels")
    assert [(level.k, level.num_calibration_pairs) for level in spec.levels] == [(1, 1200), (5, 800), (10, 800)]
    slopes = [level.bi_scale.slope for level in spec.levels]
    assert slopes[0] * 3 < slopes[1] and slopes[1] * 1.4 < slopes[2]
    made = artifact.open_artifact(many["runtime"]["root"], "predictions", "p").read()
    errors, borrowed = {}, {}
    for k in (1, 5, 10):
        rows = made.filter(pa.compute.and_(pa.compute.equal(made["k"], k), pa.compute.equal(made["split"], "test")))
        logits = [rows[name].to_numpy() for name in ("bi_encoder", "cross_encoder")]
        for level, found in ((k, errors), (1, borrowed)):
            answers = matcher.decide(spec, *logits, k=[level] * rows.num_rows)
            found[k] = metrics.quality(rows["label"].to_numpy(), np.array([a.bi_probability for a in answers]))
    assert max(found["ece"] for found in errors.values()) < 0.07  # 50 to 80 pairs a bin
    assert borrowed[10]["ece"] > 0.2 and borrowed[10]["nll"] > 1.5 * errors[10]["nll"]
    report = artifact.open_artifact(many["runtime"]["root"], "models", "levels").read_json("calibration.json")
    assert set(report["levels"]) == {"1", "5", "10"} and "untrained" in report["levels"]["10"]["systems"]


def test_all_levels_answer_for_one_prior(many: dict[str, Any]) -> None:
    spec = run(many, "rare-levels", prior=0.2)
    assert spec.prior == 0.2 and {level.calibration_prior for level in spec.levels} == {0.5}
    answers = matcher.decide(spec, np.zeros(2), np.zeros(2), k=[1, 10])
    plain = matcher.decide(run(many, "even-levels"), np.zeros(2), np.zeros(2), k=[1, 10])
    for rare, even in zip(answers, plain, strict=True):
        odds = [answer.probability / (1 - answer.probability) for answer in (even, rare)]
        assert odds[0] / odds[1] == pytest.approx(4.0) and rare.prior == 0.2
    assert [answer.k for answer in answers] == [1, 10]


def test_every_level_is_certified_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    enough = published(tmp_path / "enough", 150, ((5, 150),))
    spec = run(enough, "promised", same_precision=0.8, confidence=0.9)
    assert all(level.certificates[0].threshold is not None for level in spec.levels) and len(spec.levels) == 2
    few = published(tmp_path / "few", 150, ((5, 20),))
    with pytest.raises(UserError, match="k = 5: same: precision 0.8 .* score again without that level"):
        run(few, "m", same_precision=0.8, confidence=0.9)


def test_predictions_without_levels_are_refused(tmp_path: Path) -> None:
    old = published(tmp_path, 20) | {"predictions": "old"}
    publish(tmp_path, "predictions", "old", predictions(20)[1].drop_columns(["k"]))
    with pytest.raises(UserError, match="lack the column 'k': make them again"):
        run(old, "x")


def test_a_cross_encoder_without_weight_is_sent_nothing_and_the_summary_says_so(tmp_path: Path) -> None:
    made = published(tmp_path, 60)
    chunks, pairs = predictions(60)
    place = pairs.column_names.index("cross_encoder")
    against = pairs.set_column(place, "cross_encoder", pc.negate(pairs["cross_encoder"]))
    publish(tmp_path, "predictions", "against", against)
    found = calibrate.run(calibrate.CONFIG.model_validate(made | {"name": "m", "predictions": "against"}))
    spec, logits = matcher.open_spec(f"{tmp_path}/models/m"), np.array([-9.0, 0.0, 9.0, 900.0])
    answers = matcher.decide(spec, logits, np.full(4, np.nan))
    assert {answer.stage for answer in answers} == {"bi-encoder"} and answers[-1].probability == 1
    assert [answer.probability for answer in answers] == [answer.bi_probability for answer in answers]
    told = found.manifest["summary"]
    assert "adds nothing" in told and "bi-encoder's answer is final" in told and "reach the cross-encoder" not in told
    assert found.manifest["facts"]["levels"]["1"]["passed"] == 0
