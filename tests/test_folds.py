"""A matcher that is trained on all authors, calibrated by models of folds, each on authors whom it had not seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from safetensors.numpy import save_file
from test_calibrate import predictions

from quire import artifact, calibration, folds, matcher
from quire.artifact import Artifact, Shard
from quire.errors import UserError
from quire.levels import EVIDENCE
from trainers import calibrate

SCORED = {"max_cross_pairs": 3, "says": EVIDENCE}
CUT = {"size": 14, "overlap": 4, "min_chars": 200, "split": {"by": "author"}}
MODEL = {"steps": 90}


def chunks(root: Path, name: str, table: pa.Table, **changes: Any) -> Artifact:
    draft = artifact.begin(str(root), "chunks", name, recipe=CUT | changes, inputs={})
    draft.write_shard(0, Shard(table=table, rows_in=table.num_rows))
    return draft.publish()


def model(root: Path, name: str, chunk_made: Artifact, **changes: Any) -> Artifact:
    recipe = MODEL | changes | {"name": name, "chunks": chunk_made.name}
    draft = artifact.begin(str(root), "models", name, recipe=recipe, inputs={"chunks": chunk_made})
    folder = root / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.ones(1, np.float32)}, folder / "model.safetensors")
    return draft.publish()


def renamed(table: pa.Table, fold: int) -> pa.Table:
    """The same pairs by other authors."""
    for name in ("author_a", "author_b", "work_a", "work_b", "pair_id"):
        values = pa.array([f"f{fold}-{value}" for value in table[name].to_pylist()])
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def fold(root: Path, number: int, **changes: Any) -> pa.Table:
    """A fold's predictions, with what they are made from; its test pairs."""
    texts, pairs = predictions(30, seed=number, signal=2.0 + number)
    pairs = renamed(pairs.filter(pc.equal(pairs["split"], "test")), number)
    cut = chunks(root, f"c{number}", texts)
    models = {role: model(root, f"{role}-{number}", cut, **changes) for role in ("bi_encoder", "cross_encoder")}
    inputs = {"chunks": cut, **models}
    draft = artifact.begin(str(root), "predictions", f"p{number}", recipe=SCORED, inputs=inputs)
    draft.write_shard(0, Shard(table=pairs, rows_in=pairs.num_rows))
    draft.publish()
    return pairs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def pairs(root: Path) -> list[pa.Table]:
    return [fold(root, number) for number in range(3)]


def settings(root: Path, name: str, count: int = 3, **changes: Any) -> calibrate.CalibrateConfig:
    cut = chunks(root, f"all-{name}", predictions(30)[0], **changes.pop("cut", {}))
    made = {
        role: model(root, f"{role}-{name}", cut, **changes.get("model", {})) for role in ("bi_encoder", "cross_encoder")
    }
    names = {role: found.name for role, found in made.items()}
    values = {"name": name, "predictions": tuple(f"p{n}" for n in range(count)), "chunks": cut.name, **names}
    return calibrate.CalibrateConfig(**values, runtime={"root": str(root)})


def test_what_is_served_has_the_scale_of_all_folds_test_pairs(root: Path, pairs: list[pa.Table]) -> None:
    made = calibrate.run(settings(root, "served"))
    level = matcher.open_spec(f"{root}/{made.folder}").level(1)
    every = pa.concat_tables(pairs)
    expected = calibration.fit_scale(every["bi_encoder"].to_numpy(), every["label"].to_numpy())
    assert level.num_calibration_pairs == every.num_rows == 3 * 240
    assert (level.bi_scale.slope, level.bi_scale.bias) == pytest.approx((expected.slope, expected.bias))
    assert {f"fold {n}" for n in range(3)} < set(made.manifest["inputs"])


def test_folds_by_another_recipe_or_of_other_windows_are_refused(root: Path, pairs: list[pa.Table]) -> None:
    with pytest.raises(UserError, match="'bi_encoder-longer': steps = 180, but 90 for 'bi_encoder-0'"):
        calibrate.run(settings(root, "longer", model={"steps": 180}))
    with pytest.raises(UserError, match="chunks = 'all-wider': size = 20, but 14 in 'c0'"):
        calibrate.run(settings(root, "wider", cut={"size": 20}))


def test_folds_scored_with_other_cells_are_refused(root: Path, pairs: list[pa.Table]) -> None:
    first = artifact.open_artifact(str(root), "predictions", "p0")
    draft = artifact.begin(str(root), "predictions", "fewer", recipe=SCORED | {"max_cross_pairs": 1}, inputs={})
    with pytest.raises(UserError, match="predictions = 'fewer': max_cross_pairs = 1, but 3 in 'p0'"):
        folds.check_cells([first, draft.publish()])


def test_pairs_that_chose_a_model_do_not_calibrate_it(root: Path, pairs: list[pa.Table]) -> None:
    made = artifact.open_artifact(str(root), "models", "bi_encoder-0")
    calibrate._check_unseen(made)
    made.manifest["recipe"]["eval_splits"] = ["validation", "calibration"]
    with pytest.raises(UserError, match="bi_encoder = 'bi_encoder-0': .* calibration pairs chose its step"):
        calibrate._check_unseen(made)


@pytest.mark.parametrize("side", ["same", "different"])
def test_nothing_is_certified_of_a_model_by_what_others_said(side: str) -> None:
    values = {"name": "m", "chunks": "c", "bi_encoder": "b", "cross_encoder": "x", f"{side}_precision": 0.9}
    with pytest.raises(ValueError, match=rf"{side}_precision: .* predictions = \['p0', 'p1'\] are of several"):
        calibrate.CalibrateConfig(**values, predictions=("p0", "p1"))
    assert calibrate.CalibrateConfig(**values, predictions="p0").asked().precisions == {side: 0.9}


def test_an_author_in_two_folds_and_a_fold_without_test_pairs_are_refused(root: Path, pairs: list[pa.Table]) -> None:
    twice = settings(root, "twice").model_copy(update={"predictions": ("p0", "p0")})
    with pytest.raises(UserError, match="'f0-a0' is tested in 'p0' and in 'p0'"):
        calibrate.run(twice)
    inputs = {
        role: artifact.open_artifact(str(root), "models", f"{role}-0") for role in ("bi_encoder", "cross_encoder")
    }
    inputs["chunks"] = artifact.open_artifact(str(root), "chunks", "c0")
    draft = artifact.begin(str(root), "predictions", "p3", recipe=SCORED, inputs=inputs)
    untested = pairs[0].set_column(pairs[0].column_names.index("split"), "split", pa.array(["train"] * 240))
    draft.write_shard(0, Shard(table=untested, rows_in=240))
    draft.publish()
    with pytest.raises(UserError, match="predictions = 'p3': no test pair"):
        calibrate.run(settings(root, "none", count=4))
