"""Every author tested once: no pair has a part in its own scale, and the report tells all folds' pairs together."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.score import SYSTEMS
from quire import artifact, folds, metrics, schema
from quire.artifact import Artifact, Shard
from quire.errors import UserError
from quire.levels import EVIDENCE
from trainers import cross_validate

FOLDS = ("fold-0", "fold-1", "fold-2")


def predictions(
    root: str, name: str, fold: int, *, masked: bool = False, flipped: bool = False, says: str = EVIDENCE
) -> Artifact:
    """Test pairs of six authors of a fold; every fold's scores have a shift of their own. Masked ones know less."""
    draw, rows = np.random.default_rng(fold), []
    for k, count in ((1, 400), (2, 120)):
        for number in range(count):
            kind = ("positive", "positive", "random", "same_author", "neighbor")[draw.integers(5)]
            a, b = (f"author-{fold}-{n}" for n in draw.choice(6, 2, replace=False))
            b = a if kind in ("positive", "same_author") else b
            noise = draw.normal(0, 1 / k**0.5, len(SYSTEMS))
            signal = (kind == "positive") * (1.0 if masked else 2.0)
            label = int((kind == "positive") != (flipped and number % 4 == 0))
            row = {"pair_id": f"{fold}-{k}-{number}", "split": "test", "k": k, "label": label}
            row |= {"negative_type": None if label else "random" if kind == "positive" else kind}
            distance = int(draw.integers(9000))
            row |= {"author_a": a, "author_b": b, "distance": distance if label else None}
            row |= {"num_a": k, "num_b": k + number % 2}
            row |= {"chars_a": int(draw.integers(200, 2000)), "chars_b": int(draw.integers(200, 2000))}
            row |= {system: signal + 0.2 * fold + error for system, error in zip(SYSTEMS, noise, strict=True)}
            rows.append(row | dict.fromkeys(("chunk_a", "chunk_b", "work_a", "work_b"), ""))
    sizes = (pa.field(f"{what}_{side}", pa.int64()) for what in ("num", "chars") for side in "ab")
    fields = [*schema.PAIRS, pa.field("k", pa.int32()), *sizes]
    fields += [pa.field(system, pa.float64()) for system in SYSTEMS]
    recipe = {"fold": fold, "mask_names": masked, "flipped": flipped, "says": says}
    draft = artifact.begin(root, "predictions", name, recipe=recipe, inputs={})
    draft.write_shard(0, Shard(table=pa.Table.from_pylist(rows, schema=pa.schema(fields)), rows_in=len(rows)))
    return draft.publish(num_shards=1)


def config(root: Path, **changes: object) -> cross_validate.CrossValidateConfig:
    values = {"name": "cv", "predictions": FOLDS, "num_bootstraps": 30}
    values |= {"runtime": {"root": str(root), "wandb": "disabled"}}
    return cross_validate.CrossValidateConfig.model_validate_json(json.dumps(values | changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("folds")
    for fold, name in enumerate(FOLDS):
        predictions(str(made), name, fold)
        predictions(str(made), f"{name}-masked", fold, masked=True)
    return made


def test_the_report_tells_all_folds_together_and_each_by_itself(root: Path) -> None:
    made = cross_validate.run(config(root, masked=[f"{name}-masked" for name in FOLDS]))
    rows, curve, folds = (made.read_json(f"{name}.json") for name in ("results", "levels", "folds"))
    tables = [artifact.open_artifact(str(root), "predictions", name).read() for name in FOLDS]
    singles = [table.filter(pa.compute.equal(table["k"], 1)) for table in tables]
    labels, scores = (np.concatenate([t[name].to_numpy() for t in singles]) for name in ("label", "bi_encoder"))
    each = np.average([metrics.auc(t["label"].to_numpy(), t["bi_encoder"].to_numpy()) for t in singles])
    assert rows["bi-encoder"]["overall"]["auc"] == pytest.approx(each, abs=2e-3)  # folds of about as many couples
    assert rows["bi-encoder"]["overall"]["auc"] > metrics.auc(labels, scores)  # which the folds' shifts disturb
    assert [row["pairs"] for row in folds] == [400] * 3 and [row["authors"] for row in folds] == [6] * 3
    final = curve["two-stage"]
    assert final["2"]["auc"] > final["1"]["auc"] > 0.9 and final["1"]["num_positives"] == labels.sum()
    types = made.read_json("pair_types.json")
    masked, raw = (types[texts]["two-stage"]["SB vs DA"]["auc"] for texts in ("names masked", "raw"))
    assert masked < raw - 0.05
    page = made.storage.read_bytes(f"{made.folder}/index.html").decode()
    assert "fold-2" in page and "1,200 pairs in 3 folds" in page
    assert "two-stage" in made.storage.read_bytes(f"{made.folder}/table.txt").decode()


def test_no_pair_has_a_part_in_its_own_scale(root: Path, tmp_path: Path) -> None:
    tables = [artifact.open_artifact(str(root), "predictions", name).read() for name in FOLDS]
    flipped = predictions(str(tmp_path), "other", 0, flipped=True).read()
    settings = config(root)
    (_, before), (_, after) = (
        cross_validate.cross_fitted([first, *tables[1:]], 1, settings) for first in (tables[0], flipped)
    )
    own, others = slice(0, tables[0].num_rows), slice(tables[0].num_rows, None)
    for system in SYSTEMS:
        np.testing.assert_array_equal(after.probabilities[system][own], before.probabilities[system][own])
        assert np.abs(after.probabilities[system][others] - before.probabilities[system][others]).max() > 0.05


def test_folds_that_share_an_author_are_refused(root: Path) -> None:
    predictions(str(root), "again", 1)
    with pytest.raises(UserError, match="'author-1-0' is tested in 'fold-1' and in 'again'"):
        cross_validate.run(config(root, name="twice", predictions=[*FOLDS, "again"]))


def test_masked_predictions_of_other_pairs_are_refused(root: Path) -> None:
    names = ["fold-1-masked", "fold-0-masked", "fold-2-masked"]
    with pytest.raises(UserError, match="its test pairs are not those"):
        cross_validate.run(config(root, name="mixed", masked=names))
    with pytest.raises(ValueError, match="1 names for 3 predictions"):
        config(root, masked=names[:1])
    with pytest.raises(UserError, match="topic = 'fog'"):
        cross_validate.run(config(root, name="fog", topic="fog"))


def test_raw_and_masked_predictions_may_not_be_taken_for_each_other(root: Path) -> None:
    masked = [f"{name}-masked" for name in FOLDS]
    with pytest.raises(UserError, match="masked = 'fold-0': scored with mask_names = false; name those that .* = true"):
        cross_validate.run(config(root, name="raw", masked=FOLDS))
    with pytest.raises(UserError, match="predictions = 'fold-0-masked': scored with mask_names = true"):
        cross_validate.run(config(root, name="hidden", predictions=masked))


def test_predictions_of_another_evidence_are_refused(root: Path) -> None:
    predictions(str(root), "older", 4, says="mean logits")
    with pytest.raises(UserError, match="predictions = 'older': .* score again under another name"):
        cross_validate.run(config(root, name="older", predictions=[*FOLDS, "older"]))


def test_folds_of_other_levels_are_refused(root: Path) -> None:
    table = artifact.open_artifact(str(root), "predictions", "fold-0").read()
    single = table.filter(pa.compute.equal(table["k"], 1))
    with pytest.raises(UserError, match=r"predictions = 'b': of \[1\] passages a side, 'a' of \[1, 2\]; score both"):
        folds.check_levels(["a", "b"], [table, single])
