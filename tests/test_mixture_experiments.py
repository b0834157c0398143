"""The sweeps over K that are shipped, at their full size and with nothing trained: that no trial would be refused."""

from pathlib import Path

import numpy as np
import pytest
import tiny_tokens
import torch
from transformers import GPTNeoXForCausalLM

from quire import artifact, bpe, config, lm
from trainers import evaluate_lm
from trainers import lm as trainer
from tune import sweep

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "trainers/experiments/arxiv"
# Of the earlier system; the distinct tokens of the fixed budget are as many as the smallest has in the real papers.
NAMES = ["cs.AI", "cs.CE", "cs.CV", "cs.DS", "cs.IT", "cs.NE", "cs.PL", "cs.SY", "math.AC", "math.GR", "math.ST"]
SIZES = {"train": (40, 2_000), "validation": (3, 300), "test": (3, 300)}  # documents of a category, tokens of each


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The two token stores that the experiments name, of random ids."""
    folder = str(tmp_path_factory.mktemp("root"))
    for name, vocab_size in (("arxiv", 4_096), ("arxiv-full", 50_277)):
        draw = np.random.default_rng(0)
        documents = (
            (f"{category}-{split}-{i}", category, [category], split, draw.integers(0, vocab_size, length))
            for split, (count, length) in SIZES.items()
            for category in NAMES
            for i in range(count)
        )
        tiny_tokens.publish_store(folder, name, documents, vocab_size)
    return folder


@pytest.mark.parametrize(
    ("name", "runs_of_k"),  # with K = 11 there is nothing for category_seed to choose
    [
        ("k_by_seed", {1: 12, 3: 12, 5: 12, 8: 12, 11: 4}),
        ("k_by_seed_fixed", {1: 12, 3: 12, 5: 12, 8: 12, 11: 4}),
        ("pythia_k", {1: 12, 3: 12, 5: 12, 8: 12, 11: 4}),
        ("quick", dict.fromkeys((1, 3, 5, 8, 11), 3)),
        ("quick_fixed", dict.fromkeys((1, 3, 5, 8, 11), 3)),
        ("quick_control", dict.fromkeys((1, 3, 5, 8, 11), 3)),
        ("quick_fixed_control", dict.fromkeys((1, 3, 5, 8, 11), 3)),
    ],
)
def test_every_trial_of_a_shipped_sweep_can_start_and_be_compared(
    root: str, monkeypatch: pytest.MonkeyPatch, name: str, runs_of_k: dict[int, int]
) -> None:
    monkeypatch.chdir(ROOT)
    asked = config.load(sweep.CONFIG, f"tune/experiments/arxiv/{name}.toml", [f"runtime.root={root}"])
    trials = sweep.configs(asked)  # checks each as far as its trainer can
    found = [trial.config for trial in trials.values()]
    assert {k: sum(made.k == k for made in found) for k in runs_of_k} == runs_of_k
    seeds = {(made.k, made.category_seed, made.init_seed, made.loop.seed) for made in found}
    assert len(seeds) == len(found) == sum(runs_of_k.values())
    evaluate_lm._check_comparable([config.recipe(made) for made in found], [name])
    assert len({trainer.num_tokens(made) for made in found}) == 1  # every K reads as many
    assert f"{len(found)} trials of trainers.lm over k" in sweep.announce(asked, trials, set())


def test_every_shipped_sweep_over_k_has_its_evaluation() -> None:
    asked = {file.stem: config.load(evaluate_lm.CONFIG, str(file)) for file in EXPERIMENTS.glob("evaluate*.toml")}
    sweeps = {
        file.stem: config.load(sweep.CONFIG, str(file)) for file in (ROOT / "tune/experiments/arxiv").glob("*.toml")
    }
    named = {name for settings in asked.values() for name in (settings.sweep, settings.control) if name}
    assert named == {settings.name for settings in sweeps.values()}
    assert len({settings.name for settings in asked.values()}) == len(asked) == 5
    for stem, swept in (("factorial", "k_by_seed"), ("factorial_fixed", "k_by_seed_fixed")):
        assert asked[f"evaluate_{stem}"].sweep == sweeps[swept].name
    for settings in sweeps.values():  # factorial or not, no seed stands still
        varied = {key for key in ("category_seed", "init_seed", "loop.seed") if _varies(settings, key)}
        assert varied == {"category_seed", "init_seed", "loop.seed"}


def _varies(settings: sweep.SweepConfig, key: str) -> bool:
    return len({value for grid in settings.grids() for value in grid[key]}) > 1


def test_a_pretrained_model_of_its_own_kind_is_read_as_far_as_its_positions_go(root: str, tmp_path: Path) -> None:
    """As Pythia is published: float16 weights, another tokenizer, and windows may be longer than its positions."""
    tokenizer = bpe.train(iter(f"w{i} " * 3 for i in range(500)), 300)
    bpe.save(tokenizer, tmp_path / "pretrained")
    shape = lm.model_config(lm.LmModel(layers=1, width=32, heads=2, mlp_width=64, max_positions=64), 300)
    GPTNeoXForCausalLM(shape).to(torch.float16).save_pretrained(tmp_path / "pretrained")
    recipe = {"tokens": "arxiv", "categories": None, "sequence_length": 128}
    model = artifact.begin(root, "models", "any", recipe=recipe, inputs={}).publish()
    settings = evaluate_lm.CONFIG(name="r", sweep="s", num_windows=3, runtime={"root": root})
    made = evaluate_lm._Pretrained(str(tmp_path / "pretrained"), evaluate_lm._Tests([model], settings))
    told = made.described()
    assert told["texts"] + told["left_out"] == 3 * len(NAMES) and len(told["curve"]) == 63
    assert len(told["sd"]) == 63 and 0 < min(told["sd"]) < max(told["sd"]) < 2
    assert np.mean(told["curve"]) == pytest.approx(np.log(384), abs=0.5)  # untrained, over the padded vocabulary
    assert 0 < told["bits_per_byte"] < 10
