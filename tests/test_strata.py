"""Strata hold the pairs that their names say, and none is blended with another."""

import numpy as np
import pyarrow as pa
import pytest

from quire import metrics, schema, strata
from quire.errors import UserError


def predictions(count: int = 900, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Pairs whose positives share a topic more often than negatives of other authors, and a score of that."""
    draw = np.random.default_rng(seed)
    kinds = draw.choice(["positive", "random", "same_author", "neighbor"], count)
    same = np.isin(kinds, ["positive", "same_author"])
    authors = draw.choice([f"a{i}" for i in range(20)], count)
    table = pa.table(
        {
            "label": pa.array((kinds == "positive").astype(np.int8)),
            "negative_type": pa.array([None if kind == "positive" else kind for kind in kinds]),
            "distance": pa.array(
                [
                    int(d) if kind == "positive" else None
                    for kind, d in zip(kinds, draw.integers(0, 9000, count), strict=True)
                ]
            ),
            "chars_a": pa.array(draw.integers(200, 3000, count)),
            "chars_b": pa.array(draw.integers(200, 3000, count)),
            "author_a": pa.array(authors),
            "author_b": pa.array(np.where(same, authors, np.char.add(authors, "x"))),
        }
    )
    return table, draw.normal(0, 1, count) + 1.5 * (kinds == "positive") + 0.7 * (kinds == "same_author")


def test_each_negative_type_stands_against_all_positives_and_alone() -> None:
    table, topic = predictions()
    found, kinds = strata.strata(table, topic), strata.negative_types(table)
    assert list(found)[:4] == ["overall", "neighbor", "random", "same_author"]
    for kind in ("neighbor", "random", "same_author"):
        assert set(kinds[found[kind].rows]) == {"positive", kind}
        assert found[kind].rows.sum() == np.isin(kinds, ["positive", kind]).sum()


def test_near_and_far_positives_share_the_negatives_and_nothing_else() -> None:
    table, topic = predictions()
    found, positive = strata.strata(table, topic), table["label"].to_numpy() == 1
    distance = table["distance"].fill_null(-1).to_numpy()
    near, far = found["near"].rows, found["far"].rows
    assert ((near & far) == ~positive).all() and (near | far).all()
    assert distance[near & positive].max() < distance[far & positive].min()


def test_lengths_are_thirds_by_the_shorter_text() -> None:
    table, topic = predictions()
    found = strata.strata(table, topic)
    length = np.minimum(table["chars_a"].to_numpy(), table["chars_b"].to_numpy())
    thirds = [found[name].rows for name in ("short", "medium", "long")]
    assert (sum(third.astype(int) for third in thirds) == 1).all()
    assert all(third.sum() == pytest.approx(300, abs=5) for third in thirds)
    assert length[thirds[0]].max() < length[thirds[1]].min() and length[thirds[1]].max() < length[thirds[2]].min()


def test_where_the_topic_is_matched_it_tells_nothing_and_another_signal_still_does() -> None:
    table, topic = predictions()
    stratum = strata.strata(table, topic)["topic_matched"]
    labels = stratum.classes[stratum.rows]
    assert strata.described({"all": strata.strata(table, topic)["overall"]}, topic)["all"]["topic_auc"] > 0.75
    assert metrics.auc(labels, topic[stratum.rows]) == pytest.approx(0.5, abs=0.03)
    assert labels.sum() * 2 == len(labels) > 100  # one to one
    assert not (stratum.rows & (strata.negative_types(table) == "same_author")).any()
    signal = stratum.classes + np.random.default_rng(1).normal(0, 0.7, len(topic))
    assert metrics.auc(labels, signal[stratum.rows]) > 0.75


def test_no_other_matching_has_more_couples_and_none_is_wider_than_the_caliper() -> None:
    draw = np.random.default_rng(2)
    for _ in range(50):
        labels, topic = draw.random(9) < 0.5, np.round(draw.normal(size=9), 1)
        chosen = strata.topic_matched(labels, topic, ~labels, caliper=0.5)
        width = 0.5 * topic.std()
        near = (np.abs(topic[labels][:, None] - topic[~labels][None]) <= width).astype(int)
        assert chosen[labels].sum() == chosen[~labels].sum() == most_couples(near)


def most_couples(near: np.ndarray) -> int:
    """The most couples, by trying: the first row alone, or with each of its partners."""
    if not near.size:
        return 0
    rest = [most_couples(near[1:])]
    return max(rest + [1 + most_couples(np.delete(near[1:], j, axis=1)) for j in np.flatnonzero(near[0])])


def test_the_three_pair_types_are_compared_two_by_two() -> None:
    table, _ = predictions()
    kinds, found = strata.negative_types(table), strata.pair_types(table)
    pairs = {"SB": "positive", "SA": "same_author", "DA": "random"}
    for name, stratum in found.items():
        one, other = (pairs[side] for side in name.split(" vs "))
        assert set(kinds[stratum.rows & stratum.classes]) == {one}
        assert set(kinds[stratum.rows & ~stratum.classes]) == {other}
    assert list(found) == ["SB vs DA", "SB vs SA", "SA vs DA"]


def test_what_has_one_class_only_is_left_out() -> None:
    table, topic = predictions()
    kept = np.asarray(table["negative_type"].fill_null("positive").to_pylist()) != "same_author"
    table, topic = table.filter(pa.array(kept)), topic[kept]
    assert list(strata.pair_types(table)) == ["SB vs DA"]
    assert "same_author" not in strata.strata(table, topic)


def test_predictions_without_lengths_or_with_an_untyped_negative_are_refused() -> None:
    table, topic = predictions()
    with pytest.raises(UserError, match="column 'chars_a'"):
        strata.strata(table.drop_columns(["chars_a"]), topic)
    untyped = table.set_column(1, "negative_type", pa.nulls(table.num_rows, pa.string()))
    with pytest.raises(UserError, match=r"negative_type\[\d+\] = ''"):
        strata.strata(untyped, topic)


def test_a_stratum_that_no_group_can_compare_is_left_out_and_the_others_stay() -> None:
    table, topic = predictions()
    kinds = strata.negative_types(table)
    groups = np.where(kinds == "random", 1, 0)  # one model scored all random negatives, and nothing else
    found = strata.strata(table, topic, groups)
    assert "random" not in found and {"overall", "same_author", "near", "long"} <= set(found)
    assert set(strata.pair_types(table, groups)) == {"SB vs SA"}


def test_mined_negatives_are_those_that_a_search_found_first() -> None:
    rows = [("a1", "b1", 0), ("b2", "a2", 0), ("a3", "b3", 0), ("a4", "a5", 1), ("a1", "c9", 0)]
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(("chunk_a", "chunk_b", "label"))})
    links = {"a1": ["b1", "c9"], "a2": ["b2"], "a3": ["c1", "b3"], "a4": ["a5"], "b3": []}
    near = [
        {"level": "chunk", "split": "test", "id": name, "neighbor_ids": ids, "scores": []}
        for name, ids in links.items()
    ]
    near.append({"level": "work", "split": "test", "id": "a3", "neighbor_ids": ["b3"], "scores": []})
    mined = strata.nearest(table, pa.Table.from_pylist(near, schema.NEIGHBORS))
    assert mined.tolist() == [True, True, False, False, False]  # in either order; first alone; no positive


def test_mined_negatives_stand_against_all_positives() -> None:
    table, topic = predictions()
    kinds = strata.negative_types(table)
    mined = (kinds == "neighbor") & (topic > 0)
    rows = strata.strata(table, topic, mined=mined)["mined"].rows
    assert (rows == (mined | (kinds == "positive"))).all()
    assert "mined" not in strata.strata(table, topic, mined=np.zeros(len(topic), bool))
