"""What the bi-encoder's trainer refuses: settings that disagree, and inputs that are not what they are taken for."""

import shutil
from pathlib import Path

import pytest
import tiny_matcher
from bi_encoder_training import (
    BY_AUTHOR,
    EVERYTHING,
    further,
    make_root,
    plant_mined,
    settings,
    task,
)

from quire import artifact
from quire.errors import UserError
from trainers.bi_encoder import check_workers, inputs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    return make_root(tmp_path_factory.mktemp("matcher"), encoder_folder)


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_mined(monkeypatch)


def test_a_margin_without_mined_negatives_is_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(ValueError, match=r"relative_margin = 0\.1: of mined negatives"):
        settings(root, encoder_folder, relative_margin=0.1)


def test_a_margin_below_that_of_mining_or_that_leaves_nothing_is_refused(
    root: str, encoder_folder: str, mined: None
) -> None:
    pairs = artifact.open_artifact(root, "pairs", "tiny").read(["pair_id"])
    draft = artifact.begin(root, "negatives", "near", recipe={"relative_margin": 0.1}, inputs={})
    draft.write_shard(0, artifact.Shard(table=pairs, rows_in=pairs.num_rows))
    draft.publish(num_shards=1)
    assert "negatives" in inputs(settings(root, encoder_folder, negatives="near", relative_margin=0.1))
    with pytest.raises(UserError, match=r"relative_margin = 0\.05: negatives 'near' were mined with 0\.1; ask for"):
        inputs(settings(root, encoder_folder, negatives="near", relative_margin=0.05))
    with pytest.raises(UserError, match=r"none for a training chunk of 'tiny' with relative_margin = 0\.2; lower it"):
        task(settings(root, encoder_folder, negatives="near", relative_margin=0.2))


def test_masked_batches_need_weights_for_masked_texts_in_the_model_that_is_trained_further(root: str) -> None:
    words = {"views": ("words",)}
    with pytest.raises(UserError, match=r"mask_share = 0\.5: the views of start = 'first' have no weights for masked"):
        inputs(further(root, mask_share=0.5, **words))
    assert "start" in inputs(further(root, mask_share=0.5)) and "start" in inputs(further(root, **words))


def test_masked_batches_beside_masked_names_are_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(ValueError, match="mask_share = 0.5: mask_names masks all there is"):
        settings(root, encoder_folder, mask_share=0.5, mask_names=True)


def test_pairs_and_positives_must_agree_and_what_tells_books_apart_is_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(UserError, match="positives = 'author': pairs 'tiny' have positives by work"):
        inputs(settings(root, encoder_folder, positives="author"))
    with pytest.raises(UserError, match="positives = 'work': pairs 'by-author' have positives by author"):
        inputs(settings(root, encoder_folder, pairs="by-author"))
    with pytest.raises(ValueError, match="teacher = 'taught': tells books apart"):
        settings(root, encoder_folder, **BY_AUTHOR, teacher="taught")


def test_a_pretrained_model_beside_one_to_go_on_from_is_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(ValueError, match=f"model = '{encoder_folder}': start = 'first' is trained further"):
        settings(root, encoder_folder, start="first")


def test_predictions_that_are_not_a_teachers_or_about_other_chunks_are_refused(
    root: str, encoder_folder: str, tmp_path: Path
) -> None:
    pairs = artifact.open_artifact(root, "pairs", "tiny").read()
    tiny_matcher.publish(root, "predictions", pairs, "scores")
    with pytest.raises(UserError, match="teacher = 'scores': these predictions are not of pipelines.teach"):
        task(settings(root, encoder_folder, teacher="scores"))
    shutil.copytree(root, tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "chunks")
    other = artifact.open_artifact(root, "chunks", "tiny").read()
    tiny_matcher.publish(tmp_path / "root", "chunks", other.slice(0, other.num_rows - 1))
    with pytest.raises(UserError, match="teacher = 'taught': it judged pairs of other chunks"):
        task(settings(str(tmp_path / "root"), encoder_folder, teacher="taught"))


def test_sizes_that_workers_cannot_share_are_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(UserError, match="distill_pairs = 6: does not divide by 4 workers"):
        check_workers(settings(root, encoder_folder, **EVERYTHING), 4)
