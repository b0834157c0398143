"""Levels: which one answers two texts, which passages it reads, and which cells the second stage."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire import levels
from quire.calibration import Fusion, Scale
from quire.errors import UserError
from quire.evenly import evenly

LEVELS = tuple(levels.Level(k, Scale(1.0, 0.0), Fusion(1.0, 0.5, 0.1), 0.5, 0.5, 0.5, 100) for k in (1, 2, 3))


@given(st.integers(0, 60), st.integers(0, 60))
def test_evenly_spaced_places_have_gaps_that_differ_by_one_at_most_and_both_ends_as_near(size: int, count: int) -> None:
    places = evenly(size, count)
    assert len(places) == min(size, count)
    if len(places):
        gaps, ends = np.diff(places), (places[0], size - 1 - places[-1])
        assert min(ends) >= 0 and abs(ends[0] - ends[1]) <= 1
        assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1 and max(ends) <= gaps.max())


def test_one_passage_of_a_book_is_its_middle_and_not_its_title_page() -> None:
    assert evenly(801, 1).tolist() == [400] and evenly(5, 3).tolist() == [0, 2, 4] and evenly(0, 3).tolist() == []


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_largest_level_that_both_texts_have_passages_for_reads_as_many_of_each(m: int, n: int) -> None:
    a, b = ([f"{name}{i:03d}" for i in range(size)] for name, size in (("a", m), ("b", n)))
    asked = levels.question(LEVELS, 4, a, b)
    assert asked.level.k == min(m, n, 3) == len(asked.a) == len(asked.b)
    assert asked.a == sorted(set(asked.a)) and set(asked.a) <= set(a) and asked.calibrated
    swapped = levels.question(LEVELS, 4, b, a)
    assert (swapped.a, swapped.b, swapped.level) == (asked.b, asked.a, asked.level)


def test_a_text_shorter_than_a_passage_is_not_calibrated() -> None:
    assert not levels.question(LEVELS, 5, ["long enough"], ["tiny"]).calibrated


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 5))
def test_the_telling_cells_are_the_highest_and_the_lowest_whichever_text_comes_first(
    k: int, count: int, seed: int
) -> None:
    logits = np.random.default_rng(seed).permutation(k * k).reshape(k, k).astype(float)
    found = levels.cells(logits, count)
    assert found == [(i, j) for j, i in levels.cells(logits.T, count)] == levels.cells(logits, count)
    assert len(set(found)) == len(found) == min(count, k * k)
    values = sorted(logits.reshape(-1))
    low = min(count, k * k) // 2
    assert sorted(logits[i, j] for i, j in found) == [*values[:low], *values[len(values) - len(found) + low :]]


def test_equal_logits_go_by_place_and_symmetric_places_stay_together() -> None:
    flat = np.zeros((3, 3))
    assert levels.cells(flat, 3) == levels.cells(flat, 3) and len(set(levels.cells(flat, 3))) == 3
    tied = np.array([[0.0, 5.0], [5.0, 1.0]])
    assert set(levels.cells(tied, 4)[:2]) == {(0, 1), (1, 0)}


def test_scored_levels_are_those_of_the_predictions_from_one_on() -> None:
    table = pa.table({"k": [1, 5, 2, 1]})
    assert levels.scored(table) == [1, 2, 5] and levels.of_level(table, 1).num_rows == 2
    with pytest.raises(UserError, match=r"of \[2, 5\] passages a side, none of single ones"):
        levels.scored(pa.table({"k": [5, 2]}))
    with pytest.raises(UserError, match="lack the column 'k'"):
        levels.scored(pa.table({"label": [1]}))
    with pytest.raises(UserError, match="k = 4: the matcher is calibrated for 1, 2, 3 passages"):
        levels.exactly(LEVELS, 4)


def test_evidence_is_told_on_the_way_from_strangers_to_what_the_texts_have_within_themselves() -> None:
    strangers, own, odd = np.full((3, 3), -1.0), np.full((3, 3), 5.0), np.diag(np.full(3, 1e6))
    assert levels.evidence(strangers, [own, own]) == 0 and levels.evidence(own, [own, own]) == 1
    assert levels.evidence(np.full((3, 3), 2.0), [own, own]) == 0.5
    assert levels.evidence(own, [own + odd, own + odd]) == 1  # a passage's logit with itself tells nothing
    a, b = np.full((3, 3), 7.0), np.full((3, 3), 1.0)
    assert levels.evidence(own, [a, b]) == levels.evidence(own, [b, a]) == 6 / 5
    assert levels.evidence(own, [strangers - 9, strangers - 9]) == 6  # texts of unlike passages divide by 1 at least
    overlap = np.where(np.abs(np.subtract.outer(range(3), range(3))) == 1, 1e6, 0.0)
    assert levels.evidence(own, [own + overlap, own + overlap]) == 1  # nor do neighbours, which share sentences
    assert levels.evidence(own[:2, :2], [own[:2, :2]] * 2) == 1  # two passages have nothing but neighbours


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9, unique=True))
def test_evidence_of_single_passages_ranks_as_their_logits_and_draws_the_tails_in(logits: list[float]) -> None:
    said = np.array([levels.evidence(np.array([[logit]]), []) for logit in logits])
    np.testing.assert_array_equal(said, levels.drawn_in(np.array(logits)))
    far = np.diff(np.sort(logits)) > 1e-9
    assert (np.diff(np.sort(said))[far] > 0).all() and (np.abs(said) <= np.abs(logits) + 1e-12).all()
    assert levels.drawn_in(np.array([0.1, 20.0])) == pytest.approx([0.1, 6.0], rel=2e-3)
