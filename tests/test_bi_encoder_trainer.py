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
from safetensors.torch import load_file

from pipelines import teach
from quire import artifact, bi_encoder, cross_encoder, encoder, hub, loop, proper_names, training_sets
from quire.errors import UserError
from trainers.bi_encoder import CONFIG, BiEncoderConfig, BiEncoderTask, check_workers, inputs, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    """The corpus, a bi-encoder and a cross-encoder as models, the teacher's logits, and a negatives artefact."""
    folder = tmp_path_factory.mktemp("matcher")
    made = tiny_matcher.corpus(folder)
    torch.manual_seed(0)
    models = {
        "first": bi_encoder.BiEncoder(
            bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=48), bi_encoder.PairHead(32, 16)
        ),
        "cross": cross_encoder.CrossEncoder(cross_encoder.build_model(encoder_folder, 64)),
    }
    for name, model in models.items():
        draft = artifact.begin(str(folder), "models", name, recipe={"name": name}, inputs={})
        with draft.storage.local_folder(draft.folder) as target:
            model.save(target)
        draft.publish()
    taught(str(folder))
    tiny_matcher.publish(folder, "negatives", made["pairs"].read(["pair_id"]))
    tiny_matcher.author_pairs(folder, made["chunks"])
    return str(folder)


def teach_settings(root: str, name: str = "taught") -> teach.TeachConfig:
    made = teach.TeachConfig(name=name, chunks="tiny", pairs="tiny", cross_encoder="cross", shard_size=40)
    return made.model_copy(update={"runtime": made.runtime.model_copy(update={"root": root})})


def taught(root: str, name: str = "taught") -> artifact.Artifact:
    """As `pipelines.teach` makes it, in this process."""

    def run_shards(draft, items, make, arguments, **_) -> None:
        process = make(*arguments)
        for index, item in enumerate(items):
            draft.write_shard(index, process(item))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teach, "run_shards", run_shards)
        return teach.run(teach_settings(root, name))


def settings(root: str, model: str, runtime: dict | None = None, **changes: object) -> BiEncoderConfig:
    optimisation = {"max_steps": 4, "learning_rate": 1e-3, "eval_every": 4, "checkpoint_every": 4, "metric": "auc"}
    values = {
        "name": "m",
        **dict.fromkeys(("chunks", "pairs", "neighbors"), "tiny"),
        "model": model,
        "max_seq_length": 48,
        "works_per_batch": 4,
        "chunks_per_work": 3,
        "head_size": 16,
        "loop": {**optimisation, "higher_is_better": True},
        "runtime": {"root": root, **(runtime or {})},
        **changes,
    }
    return CONFIG.model_validate(values)


EVERYTHING = {
    "pooling": "attention",
    "negatives": "tiny",
    "num_hard_negatives": 2,
    "teacher": "taught",
    "distill_pairs": 6,
    "adversary_weight": 0.1,
}


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mined negatives, planted."""
    monkeypatch.setattr(
        training_sets,
        "mined_negatives",
        lambda chunks, negatives, split, relative_margin: {} if relative_margin else tiny_matcher.mined(chunks),
        raising=False,
    )


def task(settings: BiEncoderConfig) -> BiEncoderTask:
    torch.manual_seed(settings.loop.seed)
    return BiEncoderTask(settings)


def train(made: BiEncoderTask, folder: Path) -> list[dict]:
    draft = artifact.begin(str(folder), "models", "m", recipe={}, inputs={})
    return loop.train(made, made.settings.loop, draft, log=lambda record: None).history


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
    texts = parts.validation.texts(0)
    np.testing.assert_allclose(again.score(*([t] for t in texts)), parts.bi.score(*([t] for t in texts)), atol=1e-5)


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


BY_AUTHOR = {"positives": "author", "pairs": "by-author", "views": (), "pair_weight": 0.0, "mask_names": True}


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


def further(root: str, **changes: object) -> BiEncoderConfig:
    return settings(root, hub.MINILM, **{"start": "first", "views": (), "max_seq_length": 40, **changes})


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


def test_a_pretrained_model_beside_one_to_go_on_from_is_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(ValueError, match=f"model = '{encoder_folder}': start = 'first' is trained further"):
        settings(root, encoder_folder, start="first")


def test_what_goes_on_needs_no_training_pairs_which_a_beginning_fits_its_head_to(
    root: str, encoder_folder: str
) -> None:
    pairs = artifact.open_artifact(root, "pairs", "tiny").read()
    tiny_matcher.publish(root, "pairs", pairs.filter(pc.not_equal(pairs["split"], "train")), "judged")
    assert task(further(root, pairs="judged")).batch(0, 0, 0, 1)["input_ids"].shape[0] == 12
    with pytest.raises(UserError, match="no pair in split 'train'"):
        task(settings(root, encoder_folder, pairs="judged"))


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
