"""A made-up sweep whose answer is known: what the report says of it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from quire import k_effect, mixture_report

NAMES = ["cs", "hep", "math"]
DIFFICULTY = {"cs": 3.0, "hep": 5.0, "math": 4.0}


def made_run(k: int, seed: int, control: bool = False, effect: float = 0.0) -> mixture_report.Run:
    """Losses of 12 windows in 4 documents: what the category costs, what K adds, a fall with the position."""
    draw = np.random.default_rng([k, seed, control])
    shape = (12, 63)
    fall = -0.1 * np.log2(np.arange(1, 64))
    losses = {n: DIFFICULTY[n] + effect * np.log2(k) + fall + draw.normal(0, 0.01, shape) for n in NAMES}
    return mixture_report.Run(
        trial=f"k{k}-{seed}",
        k=k,
        seeds={"category_seed": seed, "init_seed": seed, "data_seed": seed},
        categories=[NAMES[(seed + i) % 3] for i in range(k)],
        first=NAMES[seed % 3],
        control=control,
        losses=losses,
        documents=dict.fromkeys(NAMES, np.repeat(np.arange(4), 3)),
        bytes_per_token=dict.fromkeys(NAMES, 4.0),
    )


def sweep(effect: float) -> list[mixture_report.Run]:
    return [made_run(k, seed, effect=effect) for seed in range(3) for k in (1, 2, 3)]


def test_an_effect_of_k_is_found_and_the_difficulty_of_categories_is_not_taken_for_one() -> None:
    found = mixture_report.results(sweep(effect=0.2))
    for measure in mixture_report.TESTED:
        assert found[measure]["trend"]["slope"] == pytest.approx(0.2, abs=0.01)
        assert found[measure]["trend"]["p_value"] < 0.01 and found[measure]["spread"] < 0.01
    none = mixture_report.results(sweep(effect=0.0))
    assert all(none[measure]["trend"]["p_value"] > 0.05 for measure in mixture_report.TESTED)
    assert "trend" not in none["own"]  # K holds other categories there: hard ones would look like an effect


def test_every_number_of_a_run_stands_in_the_tables() -> None:
    runs = sweep(0.1)
    rows = mixture_report.category_rows(runs)
    assert len(rows) == 9 * 3 and sum(row["in_mixture"] for row in rows) == 3 * (1 + 2 + 3)
    row = rows[0]
    assert row["perplexity_low"] < row["perplexity"] < row["perplexity_high"]
    assert row["perplexity_low"] == pytest.approx(np.exp(row["loss_low"]))
    assert row["bits_per_byte"] == pytest.approx(k_effect.bits_per_byte(row["loss"], 4.0))
    positions = mixture_report.position_rows(runs)
    assert len(positions) == 9 * 63 * len(mixture_report.MEASURES)
    first = [r["loss"] for r in positions if r["trial"] == runs[0].trial and r["measure"] == "first"]
    np.testing.assert_allclose(first, runs[0].losses[runs[0].first].mean(0))


def test_figures_and_table_show_the_control_beside_the_sweep() -> None:
    runs = [*sweep(0.2), *(made_run(k, seed, control=True) for seed in range(2) for k in (1, 3))]
    found = mixture_report.results(runs)
    assert found["control_first"]["trend"]["slope"] == pytest.approx(0, abs=0.02)
    text = mixture_report.table(found)
    assert "labels shuffled: test loss on the K = 1 category of the seed" in text and "+0.2" in text
    figures = mixture_report.figures(runs, mixture_report.Baseline("gpt", np.linspace(5, 3, 40), np.ones(40)))
    assert set(figures) >= {"loss_against_k_first", "loss_by_position_own", "pretrained"}
    assert "labels shuffled" in figures["loss_against_k_first"].svg and "labels" not in figures["pretrained"].svg
    page = mixture_report.page("test", runs, found, list(figures.values()), {})
    assert page.count("<svg") == 5 and "nats for each doubling of K" in page


def test_a_pretrained_models_curve_has_its_band_and_its_rows() -> None:
    baseline = mixture_report.Baseline("gpt", np.linspace(5, 3, 40), np.linspace(1, 2, 40))
    runs = sweep(0.1)
    rows = [r for r in mixture_report.position_rows(runs, baseline) if r["measure"] == "pretrained"]
    assert [r["position"] for r in rows] == list(range(1, 41)) and {r["trial"] for r in rows} == {"gpt"}
    assert [r["loss"] for r in rows] == baseline.mean.tolist() and [r["sd"] for r in rows] == baseline.sd.tolist()
    svg = mixture_report.figures(runs, baseline)["pretrained"].svg
    assert svg.count("FillBetweenPolyCollection") == 1


def test_every_level_is_told_in_bits_a_byte_too() -> None:
    runs = sweep(0.2)
    bytes_per_token = {"cs": 4.0, "hep": 2.0, "math": 5.0}
    runs = [replace(run, bytes_per_token=bytes_per_token) for run in runs]
    found = mixture_report.results(runs)
    # with all three categories, the mean of each loss by its own bytes, which is not the mean loss by the mean bytes
    whole = [run for run in runs if run.k == 3]
    expected = np.mean(
        [run.losses[n].mean() / np.log(2) / bytes_per_token[n] for run in whole for n in NAMES], dtype=float
    )
    assert found["own"]["by_k"]["3"]["bits_per_byte"] == pytest.approx(expected)
    assert f"{expected:.4f} bits a byte" in mixture_report.table(found)
    rows = mixture_report.markdown(found).splitlines()
    assert rows[0].split(" | ")[1:4] == ["K = 1", "K = 2", "K = 3"] and len(rows) == 2 + len(mixture_report.MEASURES)
    assert {row.count("|") for row in rows} == {6} and f"/ {expected:.3f} |" in rows[3]


def test_how_many_different_tokens_each_k_read_is_told_where_every_run_says() -> None:
    runs = [replace(run, distinct_tokens=1000 * run.k + run.seeds["data_seed"]) for run in sweep(0.2)]
    found = mixture_report.results(runs)
    assert [level["distinct_tokens"] for level in found["first"]["by_k"].values()] == [1001, 2001, 3001]
    assert "2,001 different tokens read" in mixture_report.table(found)
    silent = mixture_report.results([replace(runs[0], distinct_tokens=None), *runs[1:]])
    assert [level["distinct_tokens"] for level in silent["first"]["by_k"].values()] == [None, 2001, 3001]


def test_a_band_shows_what_the_runs_of_its_own_k_differ_by() -> None:
    quiet = sweep(0.2)
    push = {0: 1.0, 1: -1.0, 2: 0.0}
    loud = [
        replace(run, losses={n: found + push[run.seeds["init_seed"]] for n, found in run.losses.items()})
        if run.k == 3
        else run
        for run in quiet
    ]
    before, after = (
        k_effect.levels([run.k for run in runs], mixture_report.seeds_of(runs), mixture_report.curves(runs, "first"))
        for runs in (quiet, loud)
    )
    np.testing.assert_allclose(before.spreads.mean(0), before.spread, rtol=0.5)
    wider = after.spreads.mean(1) / before.spreads.mean(1)
    assert wider[2] > 1.5 * wider[:2].max()
    svg = mixture_report.figures(loud)["loss_by_position_first"].svg
    assert svg.count("FillBetweenPolyCollection") == 3  # one for every K


def factorial() -> list[mixture_report.Run]:
    """As tune/experiments/arxiv/k_by_seed.toml has it, with 28 runs: with all categories no seed to choose them."""
    seeds = list(itertools.product((0, 1, 2), (0, 1), (0, 1)))
    return [
        replace(
            made_run(k, category_seed, effect=0.2),
            trial=f"{k}-{category_seed}-{init_seed}-{data_seed}",
            seeds={"category_seed": category_seed, "init_seed": init_seed, "data_seed": data_seed},
        )
        for k in (1, 2, 3)
        for category_seed, init_seed, data_seed in seeds
        if k < 3 or category_seed == 0
    ]


def test_the_factorial_design_is_told_whole() -> None:
    runs = factorial()
    found = mixture_report.results(runs)
    assert {k: level["runs"] for k, level in found["first"]["by_k"].items()} == {"1": 12, "2": 12, "3": 4}
    assert len(found["first"]["trend"]["seed_slopes"]) == 3
    assert found["first"]["trend"]["slope"] == pytest.approx(0.2, abs=0.02) and found["first"]["spread"] < 0.01
    level = k_effect.levels([run.k for run in runs], mixture_report.seeds_of(runs), mixture_report.curves(runs, "own"))
    assert np.isfinite(level.spreads).all()
    page = mixture_report.page("f", runs, found, list(mixture_report.figures(runs).values()), {})
    assert all(run.trial in page for run in runs)


def test_a_run_of_all_categories_is_read_on_the_first_category_of_every_seed() -> None:
    runs = factorial()
    found = mixture_report.results(runs)
    for measure, readings in (("first", 12), ("own", 4), ("own_excess", 4)):
        assert found[measure]["by_k"]["3"]["readings"] == readings
    whole = [run for run in runs if run.k == 3]
    expected = np.mean([run.losses[name].mean() for run in whole for name in NAMES])  # seeds 0, 1, 2: one of each
    assert found["first"]["by_k"]["3"]["mean"] == pytest.approx(expected)
    assert "over 4 runs (12 readings)" in mixture_report.table(found)
    rows = [r for r in mixture_report.position_rows(runs) if r["measure"] == "first" and r["position"] == 1]
    of_one = {r["category_seed"]: r["loss"] for r in rows if r["trial"] == whole[0].trial}
    assert of_one == pytest.approx({s: whole[0].losses[NAMES[s]][:, 0].mean() for s in (0, 1, 2)})
    # the test of K counts the four runs once, where their seed is
    values = mixture_report.curves(runs, "first").mean(1)
    seeds = [run.seeds["category_seed"] for run in runs]
    once = k_effect.trend([run.k for run in runs], seeds, values)
    assert found["first"]["trend"]["p_value"] == once.p_value
    assert found["first"]["trend"]["seed_slopes"] == once.seed_slopes


def test_a_run_of_all_categories_stays_with_its_seed_where_every_seed_has_one() -> None:
    runs = sweep(0.2)
    assert mixture_report.counted(runs, "first") == runs
    assert {level["readings"] for level in mixture_report.results(runs)["first"]["by_k"].values()} == {3}


def test_bins_of_positions_hold_each_once_and_grow() -> None:
    x, binned = mixture_report._log_bins(np.arange(1.0, 128.0)[None])
    np.testing.assert_allclose(x, binned[0])  # the mean of a range of 1, 2, 3 ... is its mean position
    assert x[0] == 1 and (np.diff(x) > 0).all() and len(x) <= 20
