"""Trends over K against known answers; sweeps as lists of points; language models from random weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from quire import lm, mixtures, sweeps
from quire.errors import UserError
from quire.loop import LoopConfig


def test_a_real_trend_is_found_and_noise_is_not() -> None:
    draw = np.random.default_rng(0)
    k, seeds = np.tile([1, 3, 5, 8, 11], 3), np.repeat([0, 1, 2], 5)
    level = np.asarray([0.0, 1.0, -1.0])[seeds]  # seeds differ by far more than K does
    falling = mixtures.trend(k, seeds, level - 0.05 * np.log2(k) + draw.normal(0, 0.01, 15))
    assert falling.slope == pytest.approx(-0.05, abs=0.01) and falling.p_value < 0.001
    p_values = [mixtures.trend(k, seeds, level + draw.normal(0, 0.01, 15), 400).p_value for _ in range(200)]
    assert np.mean(np.asarray(p_values) < 0.05) == pytest.approx(0.05, abs=0.045)


def test_windows_of_one_document_count_as_one() -> None:
    losses = np.repeat(np.asarray([1.0, 2.0, 3.0]), 4)[:, None]
    apart = mixtures.interval(losses, np.arange(12))
    together = mixtures.interval(losses, np.repeat([0, 1, 2], 4))
    assert apart.mean == together.mean == 2.0
    assert together.high - together.low == pytest.approx(2 * 1.96 * np.sqrt(1 / 3))  # three independent values
    assert apart.high - apart.low < 0.6 * (together.high - together.low)


def test_bits_per_byte() -> None:
    assert mixtures.bits_per_byte(np.log(256), 1.0) == pytest.approx(8.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 5), st.integers(1, 6))
def test_a_sweep_has_the_same_points_whenever_it_is_asked(seed: int, count: int) -> None:
    search = {
        "loop.learning_rate": sweeps.Between(kind="loguniform", low=1e-4, high=1e-2),
        "weighting": sweeps.Choice(values=("component", "token")),
    }
    made = sweeps.points({"k": (1, 3)}, search, count, seed)
    assert made == sweeps.points({"k": (1, 3)}, search, count, seed) and len(made) == 2 * count
    assert made[:count] == [{**p, "k": 1} for p in made[count:]]  # the same samples at every cell of the grid
    assert all(1e-4 <= p["loop.learning_rate"] <= 1e-2 for p in made)
    more = sweeps.points({"k": (1,)}, search, count + 1, seed)
    assert more[:count] == made[:count]
    assert sweeps.nested(made[0])["loop"] == {"learning_rate": made[0]["loop.learning_rate"]}


def test_a_key_varied_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'k' stands in grid and in search"):
        sweeps.points({"k": (1,)}, {"k": sweeps.Choice(values=(1,))}, 1, 0)


def test_trials_are_named_by_what_varies() -> None:
    assert sweeps.trial_name("s", {"k": 3, "loop.learning_rate": 0.00123}) == "s-k3-learning_rate0.00123"


def test_the_published_pythia_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        made = lm.build_lm(lm.LmModel(size="pythia-70m"), 50_304, 0)
    assert sum(p.numel() for p in made.parameters()) == 70_426_624


def test_weights_follow_from_the_seed_and_are_float32(tmp_path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float16)
    try:
        one, same, other = (
            lm.build_lm(lm.LmModel(num_layers=1, width=16, num_heads=2), 64, seed) for seed in (1, 1, 2)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(1), expected)  # nobody else's random numbers are touched
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, c) for a, _, c in pairs)
    one.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.arange(20).reshape(2, 10)
    np.testing.assert_allclose(lm.position_losses(loaded, ids), lm.position_losses(one.eval(), ids), atol=1e-5)


def test_position_losses_equal_a_naive_loop() -> None:
    model = lm.build_lm(lm.LmModel(num_layers=1, width=16, num_heads=2), 32, 0).eval()
    ids = np.random.default_rng(0).integers(0, 32, (3, 7))
    found = lm.position_losses(model, ids)
    assert found.shape == (3, 6)
    for n in range(3):
        for i in range(6):
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(ids[n : n + 1, : i + 1])).logits[0, -1]
            assert found[n, i] == pytest.approx(-float(torch.log_softmax(logits, 0)[ids[n, i + 1]]), abs=1e-4)


def test_half_a_shape_and_odd_heads_are_refused() -> None:
    with pytest.raises(UserError, match="give a size, or num_layers, width and num_heads together"):
        lm.shape(lm.LmModel(width=64))
    with pytest.raises(UserError, match="multiple of 8"):
        lm.shape(lm.LmModel(num_layers=1, width=20, num_heads=4))


def test_a_token_budget_becomes_steps() -> None:
    assert LoopConfig(max_tokens=1000, learning_rate=1).with_steps(300).max_steps == 3
    with pytest.raises(UserError, match="one step takes 300 tokens"):
        LoopConfig(max_tokens=200, learning_rate=1).with_steps(300)
    with pytest.raises(ValueError, match="exactly one of max_steps and max_tokens"):
        LoopConfig(learning_rate=1)
