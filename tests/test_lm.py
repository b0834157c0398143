"""The language-model trainer: shape, precision, losses by position, exact resume, any number of workers."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_tokens
import torch
import torch.multiprocessing as multiprocessing
import workers
from torch.multiprocessing.spawn import ProcessException
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM

from quire import artifact, config, lm, loop, mixture, next_token
from quire.errors import UserError
from quire.tokens import TokenStore
from trainers import fit
from trainers import lm as trainer

SMALL = lm.LmModel(layers=1, width=32, heads=2, mlp_width=64, max_positions=64)
VOCABULARY = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published token store of four categories with `VOCABULARY` ids."""
    folder = tmp_path_factory.mktemp("lm")
    tiny_tokens.token_store(str(folder), VOCABULARY)
    return str(folder)


def settings(root: str, **changes: object):
    values = {
        "name": "m",
        "tokens": "tiny",
        "model": SMALL,
        "sequence_length": 16,
        "batch_size": 8,
        "num_eval_windows": 4,
        "loop": settings_of_loop(),
        **changes,
    }
    made = trainer.CONFIG(**values)
    return made.model_copy(update={"runtime": made.runtime.model_copy(update={"root": root})})


def settings_of_loop(**changes: object) -> trainer.LmLoop:
    values = {"max_steps": 12, "learning_rate": 3e-3, "eval_every": 4, "checkpoint_every": 4, **changes}
    return trainer.LmLoop(**values)


def draft(folder: Path | str) -> artifact.Draft:
    return artifact.begin(str(folder), "models", "m", recipe={}, inputs={})


def silent(record: dict) -> None:
    """A run's numbers go nowhere."""


def test_pythia_70m_has_its_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(lm.model_config(lm.LmModel(preset="pythia-70m"), vocab_size=50_277))
    assert model.config.vocab_size == 50_304
    assert sum(p.numel() for p in model.parameters()) == 70_426_624


def test_weights_are_float32_when_the_config_says_float16() -> None:
    shape = lm.model_config(SMALL, VOCABULARY)
    shape.dtype = torch.float16
    assert {p.dtype for p in lm.random_lm(shape, seed=0).parameters()} == {torch.float32}


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = lm.build_lm(SMALL, VOCABULARY, seed=5).state_dict()
    torch.manual_seed(2)
    again, other = (lm.build_lm(SMALL, VOCABULARY, seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_position_losses_agree_with_the_models_own_loss_whatever_the_batch() -> None:
    model = lm.build_lm(SMALL, VOCABULARY, seed=0)
    windows = np.random.default_rng(0).integers(0, VOCABULARY, (5, 16))
    losses = next_token.position_losses(model, windows, batch_size=2)
    ids = torch.from_numpy(windows)
    assert losses.shape == (5, 15) and losses.dtype == np.float32
    assert losses.mean() == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-4)
    assert losses.mean() == pytest.approx(np.log(128), abs=0.3)  # untrained, over the padded vocabulary


@pytest.mark.parametrize("tied", [True, False])
def test_the_training_loss_and_its_gradients_are_those_of_all_tokens(tied: bool) -> None:
    model = lm.build_lm(SMALL.model_copy(update={"tied": tied}), 200, seed=0)
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (16, 20)))

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = next_token.token_losses(model, windows).mean()
    found = next_token.mean_loss(model, windows)
    torch.testing.assert_close(found, expected)
    for (name, a), b in zip(gradients(found).items(), gradients(expected).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, msg=name)
    with torch.autocast("cpu", torch.bfloat16):
        half = next_token.mean_loss(model, windows)
    torch.testing.assert_close(half.float(), expected, rtol=1e-2, atol=1e-2)
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients(half).values())


@pytest.mark.ray  # needs no Ray, but half a minute of compiling
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_alike_and_saves_the_same_names(root: str) -> None:
    plain, compiled = (trainer.LmTask(settings(root, runtime={"compile": on})) for on in (False, True))
    batch = plain.batch(0, 0, 0, 1)
    losses = [task.module(batch)["loss"] for task in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert plain.module.state_dict().keys() == compiled.module.state_dict().keys()


def test_a_batch_of_evaluation_is_as_large_as_the_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: memory)
    sizes = [next_token._eval_tokens(torch.device(name), 50_304) for name in ("cpu", "cuda")]
    assert sizes[0] == 4_096 and 5_000 < sizes[1] < 6_000
    assert next_token._eval_tokens(torch.device("cuda"), 4_096) == 65_536


def test_a_position_does_not_see_what_follows() -> None:
    model = lm.build_lm(SMALL, VOCABULARY, seed=0)
    windows = np.random.default_rng(0).integers(0, VOCABULARY, (1, 16))
    changed = windows.copy()
    changed[0, 10:] = (changed[0, 10:] + 1) % VOCABULARY
    before, after = next_token.position_losses(model, windows)[0], next_token.position_losses(model, changed)[0]
    assert np.allclose(before[:9], after[:9], atol=1e-5)
    assert not np.allclose(before[9:], after[9:], atol=1e-2)


def test_flops_count_the_input_embedding_only_when_asked() -> None:
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(lm.model_config(lm.LmModel(preset="pythia-70m"), 50_277))
    attention = 12 * 6 * 512 * 256
    assert lm.flops_per_token(model, 256, with_embeddings=True) == 6 * 70_426_624 + attention
    assert lm.flops_per_token(model, 256) == 6 * (70_426_624 - 50_304 * 512) + attention


@pytest.mark.parametrize("counted", [True, False])
def test_what_the_mfu_counts_stands_in_its_name(root: str, tmp_path: Path, counted: bool) -> None:
    task = trainer.LmTask(settings(root, runtime={"mfu_with_embeddings": counted}))
    told: list[dict] = []
    loop.train(task, settings_of_loop(max_steps=1, eval_every=1, checkpoint_every=1), draft(tmp_path), told.append)
    step = next(record for record in told if "loss" in record)
    assert step[f"mfu_{'with' if counted else 'without'}_embeddings"] > 0
    assert sum(key.startswith("mfu") for key in step) == 1


def test_a_run_tells_how_long_it_waited_for_data(root: str, tmp_path: Path) -> None:
    made, told = draft(tmp_path), []
    task, budget = trainer.LmTask(settings(root)), settings_of_loop(max_steps=12)
    state = loop.train(task, budget, made, told.append)
    assert all("data_share" in record for record in told if "loss" in record)
    fit.save(made, state, budget, task)
    manifest = fit.publish(made, "; and more").manifest
    assert 0 < manifest["facts"]["data_share"] < 0.5
    assert re.search(r", \d+\.\d% of the time waiting for data; and more$", manifest["summary"])


def test_betas_are_those_of_language_models_unless_set() -> None:
    optimizer = loop.optimizer_for(torch.nn.Linear(2, 2), settings_of_loop())
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    given = {"name": "m", "tokens": "t", "loop": {"max_steps": 1, "learning_rate": 0.1}}
    assert config.build(trainer.CONFIG, given, "test").loop.betas == (0.9, 0.95)
    given["loop"]["betas"] = [0.8, 0.9]
    assert config.build(trainer.CONFIG, given, "test").loop.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("model", "length", "named"),
    [
        (SMALL, 65, "sequence_length = 65"),
        (SMALL.model_copy(update={"vocab_size": 32}), 16, "model.vocab_size = 32"),
        (SMALL.model_copy(update={"width": 33}), 16, "model.width = 33"),
    ],
)
def test_what_does_not_fit_the_model_is_named(model: lm.LmModel, length: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        lm.check_fits(model, length, VOCABULARY)


def test_shuffled_labels_keep_their_numbers_in_every_split(root: str) -> None:
    store = TokenStore.open(artifact.open_artifact(root, "tokens", "tiny"))
    names = store.names()[:3]
    shuffled = mixture.shuffle_labels(store, names, seed=1)
    for split in ("train", "validation", "test"):
        rows = store.splits == split
        assert sorted(store.categories[rows]) == sorted(shuffled.categories[rows])
    outside = ~np.isin(store.categories.astype(str), names)
    assert (store.categories[outside] == shuffled.categories[outside]).all()
    assert (store.categories != shuffled.categories).mean() > 0.3


def test_the_token_budget_is_divided_among_the_categories(root: str) -> None:
    store = TokenStore.open(artifact.open_artifact(root, "tokens", "tiny"))
    found = mixture.choose_mixture(store, None, 2, seed=0, distinct_tokens=400)
    assert len(found.categories) == 2 and found.tokens_per_category == 200
    assert set(found.categories) < set(mixture.choose_mixture(store, None, 3, 0, None).categories)
    with pytest.raises(UserError, match="distinct_tokens = 400.*399"):
        mixture.choose_mixture(store, None, 3, 0, 400)
    with pytest.raises(UserError, match="categories = 'nowhere'.*sea"):
        mixture.choose_mixture(store, ("sea", "nowhere"), 1, 0, None)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"k": 9}, "k = 9"),
        ({"sequence_length": 65}, "sequence_length = 65"),
        ({"sequence_length": 5_000}, "5[_,]?000"),
        ({"model": SMALL.model_copy(update={"vocab_size": 32})}, "vocab_size = 32"),
        ({"loop": settings_of_loop(max_steps=None, max_tokens=100)}, "max_tokens = 100: 0 steps"),
    ],
)
def test_a_mistake_shows_before_the_artefact_is_begun(root: str, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        trainer.run(settings(root, **changes))
    assert not (Path(root) / "models").exists()


@pytest.mark.ray
def test_training_learns_and_leaves_what_the_reader_needs(root: str, tmp_path: Path) -> None:
    budget = settings_of_loop(
        max_steps=None, max_tokens=60 * 8 * 16, eval_every=20, geometric_ratio=0.95, keep_every=40
    )
    made = draft(tmp_path)
    trainer.work(settings(root, k=2, loop=budget), made, silent)
    folder = tmp_path / "models" / "m"
    history = json.loads((folder / "history.json").read_text())
    profiles = json.loads((folder / "profiles.json").read_text())
    assert history["steps"] == 60 and history["best"] < history["untrained"] - 0.3
    assert [profile["step"] for profile in profiles] == [0, 20, 40, 60]
    assert all(len(profile["losses"]) == 15 and len(profile["categories"]) == 2 for profile in profiles)
    assert np.mean(profiles[-1]["losses"]) == pytest.approx(history["history"][-1]["eval_loss"])
    facts = json.loads((folder / "mixture.json").read_text())
    assert facts["k"] == 2 and set(facts["distinct_tokens_read"]) == set(facts["categories"])
    assert all(600 < read <= 12 * 60 for read in facts["distinct_tokens_read"].values())  # nearly all, of 12 documents
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert {"step-00000000", "step-00000040"} <= set(kept)
    for place in (folder, *(folder / "checkpoints" / name for name in kept)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        assert model.dtype == torch.float32 and len(tokenizer) <= model.config.vocab_size
    task = trainer.LmTask(settings(root, k=2, loop=budget))
    task.module.model = AutoModelForCausalLM.from_pretrained(folder)
    assert task.evaluate(0, 1)["loss"] == pytest.approx(history["best"], abs=1e-5)


@pytest.mark.ray
def test_a_batch_is_described_by_its_documents(root: str) -> None:
    task = trainer.LmTask(settings(root, k=2))
    store = task.data.store
    windows, told = task.batch(3, 1, 1, 2)["windows"], task.describe(3, 1, 1, 2)
    assert len(told) == len(windows) == 4
    for window, words in zip(windows, told, strict=True):
        document, start = words.split(" from token ")
        row = store.document_ids.tolist().index(document)
        assert store.read(row, int(start), 16).tolist() == window.tolist()


@pytest.mark.ray
def test_the_windows_of_an_evaluation_whose_losses_are_no_numbers_are_named(root: str) -> None:
    task = trainer.LmTask(settings(root, k=3, model=SMALL.model_copy(update={"tied": False})))
    used = [set(task.data.evaluation[task.data.category == c].ravel()) for c in range(3)]
    token = min(used[1] - used[0] - used[2])  # of one category alone
    with torch.no_grad():
        task.module.model.get_input_embeddings().weight[token] = torch.nan
    metrics = task.evaluate(0, 1)
    name = task.data.mixture.categories[1]
    assert np.isnan(metrics["loss"]) and np.isnan(metrics[f"loss_{name}"])
    batch, rows = task.bad_evaluation(0, 1)
    # the last token of a window is predicted and never read
    expected = task.data.evaluation[(task.data.evaluation[:, :-1] == token).any(1)]
    assert len(rows) == len(expected) > 0 and batch["windows"].tolist() == expected.tolist()
    ids = task.data.store.document_ids.tolist()
    for window, words in zip(expected, rows, strict=True):
        category, document, _, _, start = words.split(" ")
        assert category == name and document.startswith(f"{name}-validation-")
        assert task.data.store.read(ids.index(document), int(start), 16).tolist() == window.tolist()


def _train(rank: int, world: int, root: str, folder: str, log: Callable[[dict], None] = silent) -> None:
    torch.set_num_threads(1)
    if world > 1:
        workers.join(folder, rank, world)
    trainer.work(settings(root, k=3), draft(folder), log)
    if world > 1:
        workers.leave()


def _train_with(world: int, root: str, folder: Path, log: Callable[[dict], None] = silent) -> None:
    """The run in `folder` on so many workers, begun or resumed. Raises ProcessException when one is killed."""
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)  # where the workers that were killed had met
    multiprocessing.spawn(_train, args=(world, root, str(folder), log), nprocs=world)


def _die_at_ten(record: dict) -> None:
    if record["step"] == 10 and "loss" in record:
        os.kill(os.getpid(), signal.SIGKILL)


def _history(folder: Path) -> list[dict]:
    return json.loads((folder / "models" / "m" / "history.json").read_text())["history"]


@pytest.mark.ray
def test_a_run_killed_with_9_and_resumed_has_the_losses_of_one_that_never_stopped(root: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start = multiprocessing.get_context("spawn").Process
    killed = start(target=_train, args=(0, 1, root, str(cut), _die_at_ten))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (cut / "models" / "m" / "history.json").exists()
    for folder in (cut, whole):
        again = start(target=_train, args=(0, 1, root, str(folder)))
        again.start()
        again.join()
        assert again.exitcode == 0
    assert _history(cut) == _history(whole)
    weights = [(folder / "models" / "m" / "model.safetensors").read_bytes() for folder in (cut, whole)]
    assert weights[0] == weights[1]


@pytest.mark.ray  # needs no Ray, but several processes one after another
@pytest.mark.parametrize("before", [1, 2])
def test_a_run_killed_with_9_and_resumed_on_two_workers_has_the_losses_of_one_that_never_stopped(
    root: str, tmp_path: Path, before: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.raises(ProcessException):  # of the one that was killed, or of the other, which lost it
        _train_with(before, root, cut, _die_at_ten)
    kept = sorted(path.parent.name for path in (cut / "models" / "m").rglob("state.json"))
    assert kept == ["checkpoint-00000004", "checkpoint-00000008"]
    _train_with(2, root, cut)
    _train_with(2, root, whole)
    if before == 2:
        assert _history(cut) == _history(whole)
    else:  # the same global batches, added up in another order
        for a, b in zip(_history(cut), _history(whole), strict=True):
            assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.ray
def test_two_workers_see_the_global_batches_of_one_and_agree_to_rounding(root: str, tmp_path: Path) -> None:
    task = trainer.LmTask(settings(root, k=3))
    alone = task.batch(5, 1, 0, 1)["windows"]
    halves = [task.batch(5, 1, rank, 2)["windows"] for rank in (0, 1)]
    assert torch.equal(alone[0::2], halves[0]) and torch.equal(alone[1::2], halves[1])
    for name, world in (("one", 1), ("two", 2)):
        _train_with(world, root, tmp_path / name)
    one, two = _history(tmp_path / "one"), _history(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.ray
def test_the_same_name_with_another_recipe_is_refused(root: str, tmp_path: Path) -> None:
    artifact.begin(str(tmp_path), "models", "m", recipe={"k": 1, "loop": {"seed": 0}}, inputs={}).publish()
    with pytest.raises(UserError, match="loop.seed: 0 there, 1 asked for"):
        artifact.begin(str(tmp_path), "models", "m", recipe={"k": 1, "loop": {"seed": 1}}, inputs={})
