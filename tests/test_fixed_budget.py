"""The fixed budget: that exactly its tokens are read, by turns and in an order that any number of workers agrees on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.errors import UserError
from quire.fixed_budget import FixedWindows
from quire.tokens import TokenStore, write_store

SLOTS = 7  # of a step


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Token 1000 d + i stands at place i of document d, so that a window tells where it comes from."""
    lengths = [20, 9, 40, 15, 60, 30, 12, 25, 33, 44, 51, 28]
    documents = [
        (f"d{d}", ("a", "b", "c")[d % 3], ["x"], "train", 1000 * d + np.arange(n)) for d, n in enumerate(lengths)
    ]
    return write_store(tmp_path_factory.mktemp("store"), documents, 70_000)


def made(
    store: TokenStore, budget: int = 60, categories: str = "abc", length: int = 10, **changes: int
) -> FixedWindows:
    values = {"tokens_per_category": budget, "slots_per_step": SLOTS, **changes}
    return FixedWindows(store, "train", list(categories), length, **values)


def by_category(store: TokenStore, tokens: np.ndarray) -> dict[str, int]:
    categories = store.categories[np.unique(tokens) // 1000]
    return {name: int((categories == name).sum()) for name in sorted(set(categories))}


@settings(max_examples=12, deadline=None)
@given(st.integers(10, 85), st.integers(0, 20), st.sampled_from(["a", "ac", "abc"]))
def test_an_epoch_reads_exactly_the_budget_of_each_category(
    store: TokenStore, budget: int, seed: int, categories: str
) -> None:
    try:
        windows = made(store, budget, categories, seed=seed, pool_seed=seed)
    except UserError as error:
        assert "cannot be cut" in str(error)
        return
    steps = -(-windows.slots_per_epoch // SLOTS)
    read = np.concatenate([windows.batch(step, np.arange(SLOTS)) for step in range(steps)])[: windows.slots_per_epoch]
    exactly = dict.fromkeys(categories, budget)
    assert by_category(store, read) == exactly
    assert windows.distinct_tokens(steps, SLOTS) == windows.distinct_tokens(50 + steps, SLOTS) == exactly
    assert (np.diff(read, axis=1) == 1).all()  # never across documents


def test_before_an_epoch_ends_no_window_comes_again(store: TokenStore) -> None:
    windows = made(store, 70)
    begins = np.concatenate([windows.batch(step, np.arange(SLOTS))[:, 0] for step in range(60)])
    for number, name in enumerate("abc"):
        mine = begins[store.categories[begins // 1000] == name]
        size = int(windows.num_windows[number])
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert (np.sort(epochs, axis=1) == np.sort(epochs[0])).all() and len(set(epochs[0].tolist())) == size
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1  # each epoch has an order of its own


def test_only_what_is_left_of_a_document_is_read_twice_an_epoch(store: TokenStore) -> None:
    windows = made(store, 85, "a", slots_per_step=1)
    begins = sorted(int(windows.batch(step, np.arange(1))[0, 0]) for step in range(windows.slots_per_epoch))
    for row, length in zip(windows.rows.tolist(), windows.lengths.tolist(), strict=True):
        mine = [begin - 1000 * row for begin in begins if begin // 1000 == row]
        assert mine == [min(start, length - 10) for start in range(0, length, 10)]


@pytest.mark.parametrize("categories", ["ab", "abc"])
def test_the_categories_shares_differ_by_one_slot_at_most(store: TokenStore, categories: str) -> None:
    windows = made(store, categories=categories)
    rows = np.concatenate([windows.plan(step, np.arange(SLOTS))[0] for step in range(11)])
    for count in range(1, len(rows) + 1):
        shares = [(store.categories[rows[:count]] == name).sum() for name in categories]
        assert max(shares) - min(shares) <= 1


def test_a_window_depends_on_seed_step_and_slot_alone(store: TokenStore) -> None:
    windows, again = made(store, seed=5), made(store, seed=5)
    forward = [windows.batch(step, np.arange(SLOTS)) for step in range(40)]
    for step in (39, 3, 21):  # sought, by three workers, in another order
        for rank in range(3):
            np.testing.assert_array_equal(again.batch(step, np.arange(rank, SLOTS, 3)), forward[step][rank::3])
    assert not np.array_equal(np.stack(forward), [made(store, seed=6).batch(s, np.arange(SLOTS)) for s in range(40)])


def test_a_categorys_order_does_not_depend_on_its_company(store: TokenStore) -> None:
    def begins(categories: str) -> list[int]:
        windows = made(store, categories=categories)
        found = np.concatenate([windows.batch(step, np.arange(SLOTS))[:, 0] for step in range(12)])
        return found[store.categories[found // 1000] == "b"].tolist()

    alone, together = begins("b"), begins("abc")
    assert alone[: len(together)] == together


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (200, "category 'a' has 91 tokens in documents long enough, 200 are asked for: lower distinct_tokens"),
        (9, "distinct_tokens / k = 9: fewer than a window of 10"),
    ],
)
def test_a_pool_that_cannot_be_had_is_refused(store: TokenStore, budget: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(store, budget)


def test_the_trainer_reads_its_fixed_budget_whole_or_refuses(tmp_path: Path) -> None:
    import tiny_tokens

    from trainers import lm

    tiny_tokens.token_store(str(tmp_path), 64)
    values = {"name": "m", "tokens": "tiny", "sequence_length": 16, "batch_size": 4, "k": 3, "distinct_tokens": 1_200}
    values["runtime"] = {"root": str(tmp_path)}
    loop = {"learning_rate": 0.1, "eval_every": 5, "checkpoint_every": 5, "accumulation": 2, "max_steps": 11}
    asked = lm.CONFIG(**values, loop=loop)
    lm.check(asked)
    found = lm.LmData(asked)
    assert found.train.distinct_tokens(11, 8) == dict.fromkeys(found.mixture.categories, 400)
    with pytest.raises(UserError, match=r"distinct_tokens = 1200: .* takes 81 windows .* the run reads 80; raise loop"):
        lm.check(lm.CONFIG(**values, loop={**loop, "max_steps": 10}))
