"""The bi-encoder's trainer with all that may stand beside the contrastive batch, and the teacher it learns from."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.compute as pc
import pytest
import tiny_matcher
import torch
from bi_encoder_training import (
    BY_AUTHOR,
    EVERYTHING,
    further,
    make_root,
    plant_mined,
    settings,
    task,
    teach_settings,
    train,
)
from safetensors.torch import load_file

from pipelines import teach
from quire import artifact, bi_encoder, cross_encoder, encoder, hub, levels, proper_names
from quire.errors import UserError
from trainers.bi_encoder import inputs, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    return make_root(tmp_path_factory.mktemp("matcher"), encoder_folder)


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_mined(monkeypatch)


def test_the_teacher_says_once_of_every_training_pair_what_the_cross_encoder_says_of_it(root: str) -> None:
    made, pairs = (artifact.open_artifact(root, *key) for key in (("predictions", "taught"), ("pairs", "tiny")))
    table, chunks = made.read(), artifact.open_artifact(root, "chunks", "tiny").read(["chunk_id", "text"]).to_pydict()
    wanted = [row for row in pairs.read().to_pylist() if row["split"] == "train"]
    assert table.drop_columns(["logit"]).to_pylist() == wanted and len(wanted) == 72
    assert len(made.parts) == 2
    texts = dict(zip(chunks["chunk_id"], chunks["text"], strict=True))
    folder = artifact.open_artifact(root, "models", "cross").local()
    expected = cross_encoder.CrossEncoder.load(folder).logits(
        [(texts[row["chunk_a"]], texts[row["chunk_b"]]) for row in wanted]
    )
    np.testing.assert_allclose(table["logit"].to_numpy(), expected, atol=1e-4)
    assert np.std(expected) > 1e-3
    assert made.manifest["facts"]["teacher_sha256"] == hub.weights_sha256(folder)


@pytest.mark.ray
def test_the_teacher_runs_on_ray_and_says_the_same(root: str, local_ray: None) -> None:
    made, found = (artifact.open_artifact(root, "predictions", "taught"), teach.run(teach_settings(root, "by-ray")))
    np.testing.assert_allclose(found.read()["logit"].to_numpy(), made.read()["logit"].to_numpy(), atol=1e-6)


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """SIGKILL for one worker of Ray Train once the second checkpoint stands below `folder`."""
    while not (folder / "_work/checkpoint-00000004/state.json").exists():
        time.sleep(0.01)
    for process in psutil.process_iter(["cmdline"]):
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []) and not killed:
            killed.append(process.pid)
            process.kill()


@pytest.mark.ray
def test_two_workers_of_ray_train_make_the_model_of_one_though_one_is_killed(
    root: str, encoder_folder: str, local_ray: None
) -> None:
    steps = {"max_steps": 40, "learning_rate": 1e-3, "eval_every": 20, "checkpoint_every": 2}
    runtime = {"wandb": "disabled", "cpus_per_worker": 1}
    changes = {"loop": {**steps, "metric": "auc", "higher_is_better": True}}
    one = run(settings(root, encoder_folder, {**runtime, "num_workers": 1}, name="one", **changes))
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(Path(root, "models/two"), killed), daemon=True)
    killer.start()
    two = run(settings(root, encoder_folder, {**runtime, "num_workers": 2}, name="two", **changes))
    assert killed
    histories = [made.read_json("history.json")["history"] for made in (one, two)]
    losses, aucs = (
        [[record[key] for record in history if key in record] for history in histories] for key in ("loss", "eval_auc")
    )
    assert len(losses[0]) == 40 and len(aucs[0]) >= 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_allclose(aucs[1], aucs[0], atol=0.02)


def test_a_batch_holds_and_tells_its_works_their_mined_negatives_and_pairs_with_their_logits(
    root: str, encoder_folder: str, mined: None
) -> None:
    made = task(settings(root, encoder_folder, **EVERYTHING))
    chunks = artifact.open_artifact(root, "chunks", "tiny").read().to_pylist()
    logits = {row["pair_id"]: row for row in artifact.open_artifact(root, "predictions", "taught").read().to_pylist()}
    decode = made.bi.model.tokenizer.backend_tokenizer.decode
    by_text = {decode(made.bi.model.tokenizer(c["text"])["input_ids"][1:40]): c for c in chunks}

    def chunk_of(ids: torch.Tensor) -> dict:
        return next(c for text, c in by_text.items() if decode(ids[1:40].tolist()) == text)

    for rank in range(2):
        batch = made.batch(3, 0, rank, 2)
        found = [chunk_of(ids) for ids in batch["input_ids"]]
        own, negatives, first, second = found[:6], found[6:18], found[18:21], found[21:]
        assert len(second) == 3 and batch["taught_features"].shape[0] == 3
        names = [made.batches.works[work] for work in batch["works"]]
        assert [chunk["work_id"] for chunk in own] == names
        assert [c["work_id"] for c in negatives] == [made.batches.works[work] for work in batch["negative_works"]]
        for anchor, drawn in zip(own, (negatives[i : i + 2] for i in range(0, 12, 2)), strict=True):
            assert {c["index"] for c in drawn} == {anchor["index"]} and anchor["work_id"] not in {
                c["work_id"] for c in drawn
            }
        for a, b, logit in zip(first, second, batch["teacher"].tolist(), strict=True):
            assert logits[f"{a['chunk_id']}|{b['chunk_id']}"]["logit"] == pytest.approx(logit, abs=1e-5)
        told = [chunk["chunk_id"] for chunk in own] + [f"{chunk['chunk_id']} (mined)" for chunk in negatives]
        told += [f"{a['chunk_id']} and {b['chunk_id']} (taught)" for a, b in zip(first, second, strict=True)]
        assert made.describe(3, 0, rank, 2) == told
        assert batch["topics"].shape == (6, len(made.words)) and 0 < batch["topics"].mean() < 0.5


def test_it_trains_alike_in_chunks_and_with_checkpointing_and_saves_a_whole_model(
    root: str, encoder_folder: str, mined: None, tmp_path: Path
) -> None:
    whole = task(settings(root, encoder_folder, **EVERYTHING))
    small = {"cache_chunk_size": 7, "gradient_checkpointing": True}
    parts = task(settings(root, encoder_folder, small, **EVERYTHING))
    expected, found = train(whole, tmp_path / "whole"), train(parts, tmp_path / "parts")
    steps = [record for record in expected if "loss" in record]
    assert {"contrastive", "pair", "distill", "adversary"} < steps[0].keys() and len(steps) == 4
    for a, b in zip(expected, found, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    parts.save(tmp_path / "saved")
    again = bi_encoder.BiEncoder.load(tmp_path / "saved")
    pairs = parts.validation
    a, b = (list(side) for side in zip(*(pairs.texts(row) for row in range(len(pairs.labels))), strict=True))
    parts.module.eval()
    weighed = parts.bi.weighed(a, b, pairs.labels, pairs.negative_types)
    scores = again.score(a, b)
    np.testing.assert_allclose(scores, weighed.score(a, b), atol=1e-5)
    kinds = sorted(set(pairs.negative_types[pairs.labels == 0]))
    of_types = [scores[pairs.negative_types == kind].mean() for kind in kinds]
    assert np.mean(of_types) == pytest.approx(levels.STRANGERS, abs=1e-4)


def test_what_is_saved_on_the_way_leaves_training_as_it_was(root: str, encoder_folder: str, tmp_path: Path) -> None:
    made = task(settings(root, encoder_folder, dropout=0.1))
    made.module.train()
    before = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    made.save(tmp_path / "one")
    made.save(tmp_path / "two")
    assert made.module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in made.module.state_dict().items())
    for file in ("pair_head.safetensors", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    # weighed, what is saved is another head
    assert not torch.equal(load_file(tmp_path / "one/pair_head.safetensors")["cosine_bias"], before["head.cosine_bias"])


def test_checkpointed_layers_have_the_same_gradients_with_dropout(root: str, encoder_folder: str) -> None:
    gradients = []
    for on in (False, True):
        made = task(settings(root, encoder_folder, {"gradient_checkpointing": on}, dropout=0.3))
        made.module.train()
        torch.manual_seed(5)
        made.module(made.batch(0, 0, 0, 1))["loss"].backward()
        gradients.append({name: p.grad for name, p in made.module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_the_default_recipe_has_none_of_it(root: str, encoder_folder: str) -> None:
    made = task(settings(root, encoder_folder))
    batch = made.batch(0, 0, 0, 1)
    assert batch.keys() == {"input_ids", "attention_mask", "features", "works"} and len(batch["input_ids"]) == 12
    assert made.module(batch).keys() == {"loss", "contrastive", "pair", "inverse_temperature"}
    assert inputs(made.settings).keys() == {"chunks", "pairs", "neighbors", "model_weights"}


def test_by_author_a_batch_says_who_wrote_what_and_the_head_only_follows_the_cosine(
    root: str, encoder_folder: str, tmp_path: Path
) -> None:
    made = task(settings(root, encoder_folder, **BY_AUTHOR))
    batch = made.batch(2, 0, 0, 1)
    names = [made.batches.works[work] for work in batch["works"]]
    assert len(names) == 12 and len(set(names)) == 4  # two works of each of two authors
    assert [int(name[1:]) // 2 for name in names] == batch["authors"].tolist() == batch["groups"].tolist()
    history = train(made, tmp_path)
    assert {"eval_auc", "eval_auc_random"} < set().union(*history) and all(
        np.isfinite(record["loss"]) for record in history if "loss" in record
    )
    texts = [made.validation.texts(row) for row in range(20)]
    logits = made.bi.score(*zip(*texts, strict=True))
    cosines = np.asarray([np.prod(made.bi.encode(pair), axis=0).sum() for pair in texts])
    assert np.array_equal(np.argsort(logits), np.argsort(cosines))


def test_a_model_of_masked_names_says_so_in_its_folder_and_masks_wherever_it_reads(
    root: str, encoder_folder: str, tmp_path: Path
) -> None:
    made = task(settings(root, encoder_folder, mask_names=True))
    text = "Then the captain went to Wxy with Zed. The crew of Wxy and the ship was in the storm."
    hidden = proper_names.masked(text)
    assert hidden != text and proper_names.masked(hidden) == hidden
    made.save(tmp_path / "m")
    again, other = bi_encoder.BiEncoder.load(tmp_path / "m"), "The mast and the sail and the tide of Wxy."
    plain = encoder.load_encoder(str(tmp_path / "m"))
    assert encoder.masks_names(plain) and not encoder.takes_ids(plain, "")
    plain.mask_names = False
    for bi in (made.bi, again):
        np.testing.assert_allclose(bi.encode([text]), encoder.encode(plain, [hidden]), atol=1e-5)
        assert bi.score([text], [other]) == pytest.approx(bi.score([hidden], [other]), abs=1e-5)
    assert np.abs(encoder.encode(plain, [text]) - again.encode([text])).max() > 1e-4
    further = bi_encoder.BiEncoder.go_on(tmp_path / "m", 32)
    assert encoder.masks_names(further.model)
    (tmp_path / "m" / "texts.json").write_text('{"mask_names": "yes"}')
    with pytest.raises(UserError, match="texts.json: expected the key mask_names"):
        bi_encoder.BiEncoder.load(tmp_path / "m")


def test_a_share_of_the_batches_is_masked_on_every_rank_alike(
    root: str, encoder_folder: str, mined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(settings(root, encoder_folder, mask_share=0.5, **EVERYTHING))
    assert made.bi.views.masked_apart and not encoder.masks_names(made.bi.model)
    apart = made.bi.views.feature_names.index("masked")

    def given(texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in encoder.tokenize(made.bi.model, texts, made.length)]

    def hidden(texts: list[str]) -> list[str]:
        return [f"Then Name met old Name. {text}" for text in texts]  # the tiny books have no names

    monkeypatch.setattr("trainers.bi_encoder.masked", lambda text: hidden([text])[0])
    for step in range(8):
        rows, _ = made.batches.plan(step, 0)
        negatives, _ = made.mined.plan(step, 0, rows)
        read_as = hidden if made._is_masked(step, 0) else list
        own = made.bi.rows(read_as(made._texts(rows)))
        for rank in (0, 1):
            batch = made.batch(step, 0, rank, 2)
            mine, mined_here = (slice(size * rank, size * (rank + 1)) for size in (6, 12))
            np.testing.assert_array_equal(batch["features"], made.bi.views.all_pairs(own, own))
            first, second, _ = made.taught.plan(step, 0, rank, 2)  # as the teacher read them
            texts = read_as(made._texts(rows[mine]) + made._texts(negatives[mined_here])) + [*first, *second]
            kept = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
            assert [ids[there].tolist() for ids, there in kept] == given(texts)
            assert bool(batch["features"][..., apart].any()) == (read_as is hidden)
            told = "(names masked in this batch)" in made.describe(step, 0, rank, 2)
            assert told == (read_as is hidden)
    assert {made._is_masked(step, 0) for step in range(8)} == {True, False}
    never = task(settings(root, encoder_folder))
    assert not any(never._is_masked(step, 0) for step in range(100)) and not never.bi.views.masked_apart


def test_all_pairs_in_blocks_are_all_pairs(root: str, encoder_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = task(settings(root, encoder_folder)).module.double()
    torch.nn.init.normal_(module.head.out.weight)
    embeddings, features = torch.randn(7, 32).double(), torch.randn(7, 7, module.head.num_features).double()
    found = []
    for most in (49, 21):  # all at once, three rows at a time
        monkeypatch.setattr("quire.contrastive.MAX_PAIRS", most)
        given = embeddings.clone().requires_grad_()
        logits = module.all_pairs(given, features)
        logits.square().sum().backward()
        found.append((logits.detach(), given.grad))
    torch.testing.assert_close(found[0], found[1])


def test_training_goes_on_from_a_trained_bi_encoder_and_refuses_another_shape(root: str) -> None:
    made = task(further(root))
    first = bi_encoder.BiEncoder.load(artifact.open_artifact(root, "models", "first").local())
    weights, loaded = first.model.state_dict(), made.bi.model.state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    assert made.bi.model.max_seq_length == 40 and torch.equal(made.bi.head.feature_mean, first.head.feature_mean)
    assert inputs(made.settings).keys() == {"chunks", "pairs", "neighbors", "start"}
    refused = {
        "pooling = 'cls': start = 'first' has 'mean'": {"pooling": "cls"},
        "views = .'words',.: start = 'first'": {"views": ("words",)},
        "head_size = 8: start = 'first' has 16": {"head_size": 8},
        "typed_marks = False: start = 'first' has True": {"typed_marks": False},
    }
    for words, change in refused.items():
        with pytest.raises(UserError, match=words):
            task(further(root, **change))


def test_what_goes_on_needs_no_training_pairs_which_a_beginning_fits_its_head_to(
    root: str, encoder_folder: str
) -> None:
    pairs = artifact.open_artifact(root, "pairs", "tiny").read()
    tiny_matcher.publish(root, "pairs", pairs.filter(pc.not_equal(pairs["split"], "train")), "judged")
    assert task(further(root, pairs="judged")).batch(0, 0, 0, 1)["input_ids"].shape[0] == 12
    with pytest.raises(UserError, match="no pair in split 'train'"):
        task(settings(root, encoder_folder, pairs="judged"))


@pytest.mark.ray  # needs no Ray, but half a minute of compiling
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_alike_and_its_folder_is_loaded_strictly(
    root: str, encoder_folder: str, tmp_path: Path
) -> None:
    plain, compiled = (task(settings(root, encoder_folder, {"compile": on})) for on in (False, True))
    batch = plain.batch(0, 0, 0, 1)
    found = [made.module(dict(batch))["loss"] for made in (plain, compiled)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert plain.module.state_dict().keys() == compiled.module.state_dict().keys()
    compiled.save(tmp_path)
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "model.safetensors"))
    bi_encoder.BiEncoder.load(tmp_path)
