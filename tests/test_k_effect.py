"""Trends over K against known answers; sweeps as lists of points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from quire import config, k_effect, sweeps
from quire.errors import UserError


def test_a_real_trend_is_found_and_noise_is_not() -> None:
    draw = np.random.default_rng(0)
    k, seeds = np.tile([1, 3, 5, 8, 11], 3), np.repeat([0, 1, 2], 5)
    level = np.asarray([0.0, 1.0, -1.0])[seeds]  # seeds differ by far more than K does
    falling = k_effect.trend(k, seeds, level - 0.05 * np.log2(k) + draw.normal(0, 0.01, 15))
    assert falling.slope == pytest.approx(-0.05, abs=0.01) and falling.p_value < 0.001
    p_values = [k_effect.trend(k, seeds, level + draw.normal(0, 0.01, 15), 400).p_value for _ in range(200)]
    assert np.mean(np.asarray(p_values) < 0.05) == pytest.approx(0.05, abs=0.045)


@pytest.mark.parametrize("set_spread", [0.0, 1.0, 2.0])
def test_runs_that_share_their_categories_are_no_evidence_of_their_own(set_spread: float) -> None:
    """The factorial design of 52 runs, without an effect of K, where a draw of categories has a level of its own."""
    draw = np.random.default_rng(0)
    k = np.concatenate([np.repeat([1, 3, 5, 8], 12), np.repeat(11, 4)])
    seeds = np.concatenate([np.tile(np.repeat([0, 1, 2], 4), 4), np.repeat(0, 4)])
    draws = np.unique(np.stack([k, seeds]), axis=1, return_inverse=True)[1].ravel()
    p_values = []
    for _ in range(400):
        losses = draw.normal(0, set_spread, draws.max() + 1)[draws] + draw.normal(0, 1.0, len(k))
        p_values.append(k_effect.trend(k, seeds, losses, 400).p_value)
    assert np.mean(np.asarray(p_values) < 0.05) == pytest.approx(0.05, abs=0.035)


def test_the_spread_is_that_of_runs_and_not_of_seeds_that_differ_in_difficulty() -> None:
    draw = np.random.default_rng(0)
    k, seeds = np.tile([1, 3, 5, 8, 11], 200), np.repeat(np.arange(200), 5)
    hard = draw.normal(0, 5.0, 200)[seeds]
    effect = {1: 3.0, 3: 2.5, 5: 2.4, 8: 2.2, 11: 2.0}
    losses = hard + np.vectorize(effect.get)(k) + draw.normal(0, 0.1, 1000)
    found = k_effect.levels(k, seeds, losses)
    assert float(found.spread) == pytest.approx(0.1, rel=0.1)
    np.testing.assert_allclose(found.means - hard.mean(), list(effect.values()), atol=0.03)
    # a seed without the largest K does not pull the mean there towards its own level
    kept = ~((k == 11) & (hard > 0))
    missing = k_effect.levels(k[kept], seeds[kept], losses[kept])
    np.testing.assert_allclose(np.diff(missing.means), np.diff(list(effect.values())), atol=0.05)
    assert k_effect.levels([1, 3], [0, 0], np.asarray([1.0, 2.0])).spread is None


def test_a_trend_needs_a_seed_with_two_values_of_k() -> None:
    assert k_effect.trend([1, 3], [0, 1], [1.0, 2.0]) is None
    assert k_effect.trend([1, 3, 5], [0, 0, 1], [1.0, 2.0, 9.0]).seed_slopes == pytest.approx((1 / np.log2(3),))


def test_windows_of_one_document_count_as_one() -> None:
    losses = np.repeat(np.asarray([1.0, 2.0, 3.0]), 4)[:, None]
    apart = k_effect.interval(losses, np.arange(12))
    together = k_effect.interval(losses, np.repeat([0, 1, 2], 4))
    assert apart.mean == together.mean == 2.0
    assert together.high - together.low == pytest.approx(
        2 * 4.3027 * np.sqrt(1 / 3), rel=1e-4
    )  # t of two degrees of freedom
    assert apart.high - apart.low < 0.3 * (together.high - together.low)


def test_bits_per_byte() -> None:
    assert k_effect.bits_per_byte(np.log(256), 1.0) == pytest.approx(8.0)


@settings(max_examples=20)
@given(st.integers(0, 5), st.integers(1, 6))
def test_a_sweep_has_the_same_points_whenever_it_is_asked(seed: int, count: int) -> None:
    search = {
        "loop.learning_rate": sweeps.Between(kind="loguniform", low=1e-4, high=1e-2),
        "weighting": sweeps.Choice(values=("component", "token")),
    }
    made = sweeps.points([{"k": (1, 3)}], search, count, seed)
    assert made == sweeps.points([{"k": (1, 3)}], search, count, seed) and len(made) == 2 * count
    assert made[:count] == [{**p, "k": 1} for p in made[count:]]  # the same samples at every cell of the grid
    assert all(1e-4 <= p["loop.learning_rate"] <= 1e-2 for p in made)
    more = sweeps.points([{"k": (1,)}], search, count + 1, seed)
    assert more[:count] == made[:count]
    assert sweeps.nested(made[0])["loop"] == {"learning_rate": made[0]["loop.learning_rate"]}


def _drawn(**space: object) -> list:
    """4,000 samples of a search as an experiment writes it."""
    search = TypeAdapter(sweeps.Search).validate_python(space)
    return [point["x"] for point in sweeps.points([], {"x": search}, 4_000, 0)]


def test_whole_numbers_are_searched_evenly_with_both_ends() -> None:
    values, counts = np.unique(_drawn(kind="int", low=2, high=5), return_counts=True)
    assert values.tolist() == [2, 3, 4, 5] and counts / 4_000 == pytest.approx(0.25, abs=0.03)
    assert all(type(value) is int for value in _drawn(kind="int", low=-3, high=3)[:9])


def test_whole_numbers_are_searched_evenly_in_their_logarithm() -> None:
    found = np.asarray(_drawn(kind="logint", low=1, high=255))
    assert found.dtype.kind == "i" and (found.min(), found.max()) == (1, 255)
    assert sweeps._value(sweeps.Integers(kind="logint", low=5, high=9), 0.0) == 5
    doublings = np.bincount(np.floor(np.log2(found)).astype(int))  # 1, 2 to 3, 4 to 7, ...
    assert doublings / 4_000 == pytest.approx(1 / 8, abs=0.025)


def test_numbers_are_searched_by_a_normal_distribution() -> None:
    found = np.asarray(_drawn(kind="normal", mean=-1.0, sd=0.5))
    assert (found.mean(), found.std()) == pytest.approx((-1.0, 0.5), abs=0.03)
    assert np.mean(np.abs(found + 1) < 0.5) == pytest.approx(0.683, abs=0.03)
    assert np.isfinite(sweeps._value(sweeps.Normal(kind="normal", mean=0, sd=1), 0.0))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"kind": "logint", "low": 0, "high": 4}, "low must be below high, and above 0 for logint"),
        ({"kind": "int", "low": 4, "high": 4}, "low must be below high"),
        ({"kind": "int", "low": 1.5, "high": 4}, "valid integer"),
        ({"kind": "normal", "mean": 0.0, "sd": 0.0}, "greater than 0"),
    ],
)
def test_a_distribution_that_is_none_is_refused(space: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _drawn(**space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"kind": "int", "low": 5, "high": 2}, "search.loop.seed: low must be below high"),
        ({"kind": "logint", "low": 1}, "search.loop.seed.high: missing"),
        ({"kind": "randn", "sd": 1}, "search.loop.seed = .*'normal'"),
    ],
)
def test_a_mistake_in_a_search_is_told_once_by_its_key(space: dict, message: str) -> None:
    from tune.sweep import CONFIG

    values = {"name": "s", "trainer": "trainers.lm", "experiment": "e", "search": {"loop.seed": space}}
    with pytest.raises(UserError, match=rf": 1 problem\(s\) in the config\n  {message}"):
        config.build(CONFIG, values, source="e.toml")


def test_a_key_varied_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'k' stands in grid and in search"):
        sweeps.points([{"k": (1,)}], {"k": sweeps.Choice(values=(1,))}, 1, 0)


def test_a_list_of_grids_is_their_union() -> None:
    grids = [{"k": (1, 3), "init_seed": (0, 1)}, {"k": (11,), "init_seed": (5,)}]
    made = sweeps.points(grids, {}, 1, 0)
    assert [(p["k"], p["init_seed"]) for p in made] == [(1, 0), (1, 1), (3, 0), (3, 1), (11, 5)]
    with pytest.raises(UserError, match="grid: 'weighting' stands in one of the 2 grids"):
        sweeps.points([*grids[:1], {"k": (1,), "init_seed": (0,), "weighting": ("token",)}], {}, 1, 0)
    assert sweeps.points([], {}, 1, 0) == [{}]


def test_trials_are_named_by_what_varies() -> None:
    assert sweeps.trial_name("s", {"k": 3, "loop.learning_rate": 0.00123}) == "s-k3-learning_rate0.00123"
