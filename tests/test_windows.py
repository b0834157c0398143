"""Windows of a token store: where they come from, that they never depend on the company, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import windows
from quire.errors import UserError
from quire.tokens import TokenStore, open_folder, token_type, write_store

NAMES = ["cs.AI", "cs.CE", "cs.CV", "cs.DS", "cs.IT", "cs.NE", "cs.PL", "cs.SY", "math.AC", "math.GR", "math.ST"]
ORDERS = {
    0: "math.AC math.GR cs.CE cs.CV cs.NE cs.DS cs.SY cs.IT cs.AI math.ST cs.PL",
    1: "cs.PL math.AC math.ST cs.SY cs.NE cs.DS cs.AI cs.IT cs.CE math.GR cs.CV",
    2: "cs.SY math.ST cs.DS cs.IT cs.CV math.AC cs.PL cs.NE math.GR cs.CE cs.AI",
    3: "cs.CE cs.NE cs.PL cs.AI math.ST cs.IT cs.SY cs.CV math.AC math.GR cs.DS",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Token 1000 d + i stands at place i of document d, so that a window tells where it comes from."""
    lengths = [20, 9, 40, 15, 60, 30, 12, 25]
    documents = [
        (f"d{d}", ("odd", "even")[d % 2 == 0], ["x", "other"], "test" if d > 5 else "train", 1000 * d + np.arange(n))
        for d, n in enumerate(lengths)
    ]
    return write_store(tmp_path_factory.mktemp("store"), documents, 70_000)


@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize("k", [1, 3, 5, 8, 11])
def test_categories_are_those_of_the_earlier_system_and_nested(seed: int, k: int) -> None:
    assert windows.choose_categories(NAMES[::-1], k, seed) == sorted(ORDERS[seed].split()[:k])


@pytest.mark.parametrize("k", [0, 12])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k}: there are 11 categories: cs.AI.* math.ST; choose 1 to 11"):
        windows.choose_categories(NAMES, k, 0)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["component", "token"]), st.integers(1, 12))
def test_windows_stay_inside_one_document_of_the_categories(
    store: TokenStore, step: int, weighting: str, length: int
) -> None:
    made = windows.Windows(store, "train", ["even"], length, weighting=weighting, seed=3)
    batch = made.batch(step, np.arange(16))
    assert batch.shape == (16, length)
    assert (np.diff(batch, axis=1) == 1).all()
    assert set(batch[:, 0] // 1000) <= {0, 2, 4} and set(batch[:, -1] // 1000) <= {0, 2, 4}
    assert (batch[:, -1] % 1000 < store.lengths[batch[:, 0] // 1000]).all()


def test_a_window_depends_on_seed_step_and_slot_alone(store: TokenStore) -> None:
    made = windows.Windows(store, "train", ["even", "odd"], 8, seed=5)
    whole = made.batch(7, np.arange(32))
    np.testing.assert_array_equal(made.batch(7, np.arange(3, 32, 4)), whole[3::4])
    assert not np.array_equal(made.batch(8, np.arange(32)), whole)
    assert not np.array_equal(
        windows.Windows(store, "train", ["even", "odd"], 8, seed=6).batch(7, np.arange(32)), whole
    )


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("component", [(3, 5), (3, 5), (0, 8), (2, 15), (2, 24), (2, 16)]),
        ("token", [(4, 49), (4, 40), (2, 23), (4, 16), (2, 1), (2, 20)]),
    ],
)
def test_random_windows_are_those_of_every_earlier_version(
    store: TokenStore, weighting: str, expected: list[tuple[int, int]]
) -> None:
    rows, starts = windows.Windows(store, "train", ["even", "odd"], 10, weighting, seed=5).plan(7, np.arange(6))
    assert list(zip(rows.tolist(), starts.tolist(), strict=True)) == expected


@pytest.mark.parametrize("weighting", ["component", "token"])
def test_windows_come_up_as_often_as_their_weighting_says(store: TokenStore, weighting: str) -> None:
    made = windows.Windows(store, "train", ["even", "odd"], 10, weighting=weighting, seed=1)
    rows, starts = (
        np.concatenate(part) for part in zip(*(made.plan(s, np.arange(500)) for s in range(60)), strict=True)
    )
    found = {d: float((rows == d).mean()) for d in (0, 2, 3, 4, 5)}
    num_starts = {d: int(store.lengths[d]) - 9 for d in found}
    by_token = {d: n / sum(num_starts.values()) for d, n in num_starts.items()}
    by_component = {0: 1 / 6, 2: 1 / 6, 4: 1 / 6, 3: 1 / 4, 5: 1 / 4}  # document 1 is too short
    assert found == pytest.approx(by_token if weighting == "token" else by_component, abs=0.01)
    assert {int(s) for s in starts[rows == 4]} == set(range(51))  # every start is reached, the last one too
    assert made.left_out == 1


@pytest.mark.parametrize("weighting", ["component", "token"])
@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_the_different_tokens_that_were_read_are_counted(store: TokenStore, weighting: str, num_steps: int) -> None:
    made = windows.Windows(store, "train", ["even", "odd"], 9, weighting=weighting, seed=2)
    found = made.distinct_tokens(num_steps, 5)
    batches = [made.batch(step, np.arange(5)).ravel() for step in range(num_steps)]
    read = np.unique(np.concatenate([np.zeros(0, int), *batches]))  # 1000 d + i: every token of the store is another
    odd = (read // 1000) % 2 == 1
    assert found == {"even": int((~odd).sum()), "odd": int(odd.sum())}


def test_evaluation_windows_do_not_depend_on_the_company(store: TokenStore) -> None:
    alone = windows.evaluation_windows(store, "test", ["odd"], 8, 5)["odd"]
    both = windows.evaluation_windows(store, "test", ["even", "odd"], 8, 5)
    np.testing.assert_array_equal(alone, both["odd"])
    assert set(both["even"][:, 0] // 1000) == {6} and set(both["odd"][:, 0] // 1000) == {7}
    assert not np.array_equal(alone, windows.evaluation_windows(store, "test", ["odd"], 8, 5, seed=1)["odd"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": ["evil"]}, "category 'evil': not in split 'train', which has even, odd; choose"),
        ({"sequence_length": 61}, "sequence_length = 61: the longest of 3 documents of 'even' in 'train' has 60"),
    ],
)
def test_what_cannot_be_drawn_is_refused(store: TokenStore, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        windows.Windows(store, "train", **{"categories": ["even"], "sequence_length": 10, **changes})


def test_a_store_in_the_earlier_layout_and_its_faults(tmp_path: Path) -> None:
    import json

    documents = [("a", "train", [1, 2]), ("b", "test", [3]), ('d"ü', "train", [4, 5])]
    made = write_store(tmp_path, [(name, "y", ["y"], split, np.asarray(ids)) for name, split, ids in documents], 9)
    assert np.fromfile(tmp_path / "tokens.bin", "<u2").tolist() == [1, 2, 3, 4, 5]
    lines = (tmp_path / "index.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"paper_id": "b", "cat": "y", "offset": 2, "length": 1}
    splits = {"train": ["a", 'd"ü'], "validation": [], "test": ["b"]}
    assert (tmp_path / "splits.json").read_text() == json.dumps(splits, indent=4)
    assert made.read(0, 1, 1).tolist() == [2]
    (tmp_path / "tokens.bin").write_bytes(b"\1\0")
    with pytest.raises(UserError, match="2 bytes long, store.json says 10 bytes"):
        open_folder(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(UserError, match="missing, store.json says 10 bytes"):
        open_folder(tmp_path)
    with pytest.raises(UserError, match="document 'a': token id 9 is not below vocab_size = 9; set it above every id"):
        write_store(tmp_path, [("a", "x", ["x"], "train", np.asarray([9]))], 9)
    with pytest.raises(UserError, match="document 'a': token id -1 is negative; choose"):
        write_store(tmp_path, [("a", "x", ["x"], "train", np.asarray([-1]))], 9)
    with pytest.raises(UserError, match="document 'a': split 'dev' is none of train, validation, test"):
        write_store(tmp_path, [("a", "x", ["x"], "dev", np.asarray([1]))], 9)


def test_ids_take_as_many_bytes_as_the_vocabulary_needs() -> None:
    assert [token_type(n).itemsize for n in (50_304, 65_536, 65_537)] == [2, 2, 4]


@pytest.mark.parametrize("size", [0, 2**32 + 1])
def test_a_vocabulary_beyond_the_type_is_refused_with_what_can_be_had(size: int) -> None:
    with pytest.raises(UserError, match=f"vocab_size = {size}: .* at most 32 bits; choose 1 to 4294967296"):
        token_type(size)


@pytest.mark.parametrize("file", ["index.parquet", "store.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_store_whose_index_is_cut_off_is_named(tmp_path: Path, file: str, kept: float) -> None:
    ids = np.arange(5)
    write_store(tmp_path, [(f"d{i}", "x", ["x"], "train", ids) for i in range(50)], 9)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=f"{file}: damaged .*; delete the store and tokenize again"):
        open_folder(tmp_path)
