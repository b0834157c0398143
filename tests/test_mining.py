"""Every candidate is judged as a plain loop would judge it, and sampled by its query's id alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import dedup, mining
from quire.errors import UserError
from quire.mining import ABSENT, CHOSEN, REASONS, Rules

LEVELS = [-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0]


def names(reason: np.ndarray) -> list:
    return [{CHOSEN: "chosen", ABSENT: None}.get(i, REASONS[i]) for i in reason.tolist()]


def against(score: float, rank: int, positive: float, rules: Rules) -> str | None:
    """What ranks and scores say, one candidate at a time."""
    margins = rules.absolute_margin is not None or rules.relative_margin is not None
    if rank < rules.range_min:
        return "range_min"
    if margins and np.isnan(positive):
        return "no_positive"
    if rules.min_score is not None and score < rules.min_score:
        return "min_score"
    if rules.max_score is not None and score > rules.max_score:
        return "max_score"
    if rules.absolute_margin is not None and score + rules.absolute_margin > positive:
        return "absolute_margin"
    if rules.relative_margin is not None and score > positive - abs(positive) * rules.relative_margin:
        return "relative_margin"
    return None


def plainly(scores, positive, key, rules: Rules, share, probability) -> list:
    """`mining.mine` of one query as a loop. `share` and `probability` are lists over the candidates, or None."""
    verdict = [against(s, i, positive, rules) if s > -np.inf else "absent" for i, s in enumerate(scores)]
    passing = [i for i, reason in enumerate(verdict) if reason is None]
    if rules.sampling_strategy == "random":
        chance = mining.draws(np.asarray([key]), len(scores))[0]
        passing.sort(key=lambda i: chance[i])
    held = []
    for i in passing:
        if len(held) == (rules.num_negatives if probability is None else rules.num_rescored):
            break
        if rules.duplicate_share and np.float32(share[i]) >= rules.duplicate_share:
            verdict[i] = "near_duplicate"
        else:
            held.append(i)
    if probability is not None:
        for i in held:
            if rules.cross_min_score is not None and np.float32(probability[i]) < rules.cross_min_score:
                verdict[i] = "cross_min_score"
            elif rules.cross_max_score is not None and np.float32(probability[i]) > rules.cross_max_score:
                verdict[i] = "cross_max_score"
        held = [i for i in held if verdict[i] is None]
        if rules.sampling_strategy == "top":
            held.sort(key=lambda i: (-probability[i], i))
    for i, reason in enumerate(verdict):
        if reason is None:
            verdict[i] = "chosen" if i in held[: rules.num_negatives] else "not_sampled"
    return [None if reason == "absent" else reason for reason in verdict]


@st.composite
def cases(draw):
    k, q = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    level, unit = st.sampled_from(LEVELS), st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.9])
    maybe = st.one_of(st.none(), level)
    rules = Rules(
        num_negatives=draw(st.integers(1, 3)),
        range_min=draw(st.integers(0, 3)),
        min_score=draw(maybe),
        max_score=draw(maybe),
        absolute_margin=draw(st.sampled_from([None, 0.0, 0.25])),
        relative_margin=draw(st.sampled_from([None, 0.0, 0.5])),
        duplicate_share=draw(st.sampled_from([0.0, 0.1, 0.5])),
        cross_min_score=draw(st.one_of(st.none(), unit)),
        cross_max_score=draw(st.one_of(st.none(), unit)),
        num_rescored=draw(st.integers(3, 5)),
        sampling_strategy=draw(st.sampled_from(["top", "random"])),
    )
    rows = st.lists(st.one_of(st.just(-np.inf), level), min_size=k, max_size=k)
    scores = np.asarray([sorted(draw(rows), reverse=True) for _ in range(q)], np.float32)
    positive = np.asarray([draw(st.one_of(st.just(np.nan), level)) for _ in range(q)], np.float32)
    table = st.lists(unit, min_size=q * k, max_size=q * k).map(lambda found: np.reshape(found, (q, k)))
    return rules, scores, positive, draw(table), draw(st.one_of(st.none(), table))


@settings(max_examples=300)
@given(cases())
def test_candidates_are_judged_as_a_plain_loop_judges_them(case) -> None:
    rules, scores, positive, share, probability = case
    keys = mining.keys([f"c{i}" for i in range(len(scores))], 7)
    looks = {
        "shared": lambda i, j: share[i, j],
        "cross": None if probability is None else lambda i, j: probability[i, j],
    }
    mined = mining.mine(scores, positive, keys, rules, **looks)
    for i in range(len(scores)):
        told = None if probability is None else probability[i].tolist()
        assert names(mined.reason[i]) == plainly(scores[i], positive[i], keys[i], rules, share[i].tolist(), told), i
    assert sum(mined.counts().values()) == np.isfinite(scores).sum()
    seen = ~np.isnan(mined.shared)
    assert np.array_equal(mined.shared[seen], share[seen].astype(np.float32))


SCORES = np.asarray([[0.9, 0.8, 0.7, 0.6, 0.5, -np.inf]], np.float32)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, ["chosen", "chosen", "not_sampled", "not_sampled", "not_sampled"]),
        ({"range_min": 2}, ["range_min", "range_min", "chosen", "chosen", "not_sampled"]),
        ({"max_score": 0.75}, ["max_score", "max_score", "chosen", "chosen", "not_sampled"]),
        ({"min_score": 0.85}, ["chosen", "min_score", "min_score", "min_score", "min_score"]),
        ({"absolute_margin": 0.15}, ["absolute_margin", "absolute_margin", "chosen", "chosen", "not_sampled"]),
        ({"relative_margin": 0.3}, ["relative_margin", "relative_margin", "relative_margin", "chosen", "chosen"]),
        ({"duplicate_share": 0.4}, ["near_duplicate", "chosen", "chosen", "not_sampled", "not_sampled"]),
        ({"cross_max_score": 0.5}, ["cross_max_score", "not_sampled", "chosen", "chosen", "not_sampled"]),
        ({"cross_min_score": 0.15}, ["chosen", "cross_min_score", "chosen", "not_sampled", "not_sampled"]),
        (
            {"num_rescored": 3, "cross_max_score": 0.15},
            ["cross_max_score", "chosen", "cross_max_score", *["not_sampled"] * 2],
        ),
    ],
)
def test_each_filter_gives_its_reason(rules: dict, expected: list[str]) -> None:
    share, probability = np.asarray([0.5, 0.1, 0, 0, 0, 0]), np.asarray([0.8, 0.1, 0.4, 0.3, 0.2, 0])
    cross = (lambda i, j: probability[j]) if any("cross" in name for name in rules) else None
    looks = {"shared": lambda i, j: share[j], "cross": cross}
    base = Rules(num_negatives=2, duplicate_share=0.0)
    mined = mining.mine(SCORES, np.asarray([0.86], np.float32), mining.keys(["a"], 0), replace(base, **rules), **looks)
    assert names(mined.reason[0]) == [*expected, None]
    assert {name: n for name, n in mined.counts().items() if n} == Counter(expected)


def test_a_query_without_a_positive_has_negatives_only_where_no_margin_is_asked() -> None:
    nothing, keys = np.asarray([np.nan], np.float32), mining.keys(["a"], 0)
    assert mining.mine(SCORES, nothing, keys, Rules()).counts()["chosen"] == 3
    assert mining.mine(SCORES, nothing, keys, Rules(absolute_margin=0.0)).counts()["no_positive"] == 5


def test_a_negative_positive_score_lowers_the_relative_bound() -> None:
    scores = np.asarray([[-0.15, -0.25, -0.35]], np.float32)
    mined = mining.mine(scores, np.asarray([-0.2], np.float32), mining.keys(["a"], 0), Rules(relative_margin=0.5))
    assert names(mined.reason[0]) == ["relative_margin", "relative_margin", "chosen"]


def test_a_random_sample_depends_on_the_query_and_the_seed_alone_and_every_rank_is_as_likely() -> None:
    scores, rules = np.tile(SCORES, (6000, 1)), Rules(num_negatives=2, sampling_strategy="random")
    ids = [f"c{i}" for i in range(len(scores))]
    positive = np.ones(len(scores), np.float32)

    def sampled(chosen: slice, seed: int) -> np.ndarray:
        return mining.mine(scores[chosen], positive[chosen], mining.keys(ids[chosen], seed), rules).reason == CHOSEN

    whole = sampled(slice(None), 1)
    assert np.array_equal(whole[100:130], sampled(slice(100, 130), 1))
    assert not np.array_equal(whole, sampled(slice(None), 2))
    assert (whole.sum(axis=1) == 2).all()
    assert whole[:, :5].mean(axis=0) == pytest.approx([0.4] * 5, abs=0.03)  # standard deviation .006
    assert np.corrcoef(whole[:-1, 0], whole[1:, 0])[0, 1] == pytest.approx(0, abs=0.06)


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["mean", "lowest", "best"]), st.integers(0, 4))
def test_positive_scores_are_those_of_the_chunks_far_enough_away(data, how, gap) -> None:
    start = np.cumsum(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8)))
    end = start + 5
    vectors = np.random.default_rng(len(start)).standard_normal((len(start), 3)).astype(np.float32)
    rows = np.asarray(sorted(data.draw(st.sets(st.integers(0, len(start) - 1), min_size=1))))
    found = mining.positive_scores(vectors, start, end, rows, how=how, min_gap=gap)
    for row, score in zip(rows, found, strict=True):
        far = [j for j in range(len(start)) if start[j] - end[row] >= gap or start[row] - end[j] >= gap]
        cosines = [float(vectors[row].astype(float) @ vectors[j].astype(float)) for j in far]
        combine = {"mean": np.mean, "lowest": min, "best": max}[how]
        np.testing.assert_allclose(score, combine(cosines) if cosines else np.nan, atol=1e-6)


def test_of_rejected_candidates_one_for_each_reason_is_kept_of_a_share_of_the_queries() -> None:
    rules = Rules(num_negatives=1, range_min=2, max_score=0.65, duplicate_share=0.0)
    scores = np.tile(SCORES, (2000, 1))
    keys = mining.keys([str(i) for i in range(len(scores))], 0)
    mined = mining.mine(scores, np.ones(len(scores), np.float32), keys, rules)
    queries, columns = mining.sample_rejected(mined, keys, 0.25)
    found = Counter(zip(queries.tolist(), mined.reason[queries, columns].tolist(), strict=True))
    sampled = sorted(set(queries.tolist()))
    wanted = {(q, REASONS.index(reason)) for q in sampled for reason in ("range_min", "max_score", "not_sampled")}
    assert set(found) == wanted and set(found.values()) == {1}
    assert len(sampled) / 2000 == pytest.approx(0.25, abs=0.05)
    assert Counter(columns[mined.reason[queries, columns] == 0].tolist())[0] / len(sampled) == pytest.approx(
        0.5, abs=0.1
    )
    part = mining.sample_rejected(mining.mine(scores[:50], np.ones(50, np.float32), keys[:50], rules), keys[:50], 0.25)
    assert part[0].tolist() == [q for q in queries.tolist() if q < 50]


def test_queries_of_a_document_are_drawn_by_key() -> None:
    keys = np.asarray([5, 1, 9, 1, 7], np.uint64)
    assert mining.drawn(keys, 2).tolist() == [1, 3] and mining.drawn(keys, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"range_max": 2}, "num_negatives = 3: range_min = 0 to range_max = 2 leaves 2 candidates"),
        ({"range_min": 9, "range_max": 5}, "leaves 0 candidates"),
        ({"min_score": 0.5, "max_score": 0.4}, "min_score = 0.5: above max_score = 0.4"),
        ({"cross_min_score": 0.5, "cross_max_score": 0.4}, "cross_min_score = 0.5: above"),
        ({"num_rescored": 2}, "num_rescored = 2: below num_negatives = 3"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(**rules).check(cross=True)


def test_the_search_goes_as_deep_as_the_filters_need() -> None:
    assert Rules(num_negatives=4, range_min=3).depth == 43
    assert Rules(num_negatives=4, range_min=3, duplicate_share=0.0).depth == 7
    assert Rules(num_negatives=4, range_max=12).depth == 12


def test_shared_runs_are_a_share_of_the_shorter_text() -> None:
    words = [f"w{i}" for i in range(60)]
    whole, part = " ".join(words), " ".join(words[10:30]).upper() + "!"
    runs = [dedup.shingles(text, mining.SHINGLE_SIZE) for text in (whole, part, "other words", "", " ".join(words[:8]))]
    assert [len(found) for found in runs] == [53, 13, 1, 0, 1]
    assert dedup.shared(runs[0], runs[1]) == dedup.shared(runs[1], runs[0]) == dedup.shared(runs[0], runs[4]) == 1
    assert dedup.shared(runs[0], runs[2]) == dedup.shared(runs[0], runs[3]) == 0
    half = dedup.shingles(" ".join([*words[:17], *(f"v{i}" for i in range(10))]), 8)
    assert dedup.shared(runs[0], half) == 10 / 20
