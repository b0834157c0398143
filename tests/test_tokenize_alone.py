"""What a token store's tokenizer learns from, and the count of its rows: the step without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_tokenize import TOPICS, publish_documents, settings

from pipelines import tokenize
from quire.tokens import TokenStore


@pytest.fixture(autouse=True)
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one after another in this process."""

    def run_shards(draft: Any, items: list, make: Any, arguments: tuple, **_: Any) -> None:
        process = make(*arguments)
        for index in sorted(set(range(len(items))) - set(draft.finished_shards())):
            draft.write_shard(index, process(items[index]))

    monkeypatch.setattr(tokenize, "run_shards", run_shards)


def documents(own_splits: bool, elsewhere: str) -> list[dict]:
    """30 documents of two topics and two of a rare one; those that no tokenizer may learn from hold also the words of
    `elsewhere`."""
    rows = []
    for i in range(32):
        name, topic = f"d{i}", "rare" if i >= 30 else TOPICS[i % 2]
        split = ("train", "train", "validation", "test")[i % 4] if own_splits else None
        text = tiny.book(TOPICS[i % 2], f"b{i}", 6, seed=i)
        seen = split or tokenize.split_of(name, tokenize.Shares(), 0)
        if seen != "train" or topic == "rare":
            text += f" {elsewhere}" * 40
        rows.append({"document_id": name, "text": text, "category": topic, "categories": [topic], "split": split})
    return rows


@pytest.mark.parametrize("own_splits", [True, False])
def test_the_tokenizer_learns_from_training_documents_of_kept_categories_alone(
    tmp_path: Path, own_splits: bool
) -> None:
    made = []
    for name in ("plain", "zyxwvut"):
        publish_documents(str(tmp_path), name, documents(own_splits, name))
        choice = {"kind": "bpe", "vocab_size": 300}
        given = {"documents": name, "tokenizer": choice, "categories": {"min_documents": 3}}
        made.append(tokenize.run(settings(str(tmp_path), name, **given)))
        assert made[-1].manifest["dropped"] == {"rare_category": 2}
    first, second = ((TokenStore.open(store).folder / "tokenizer" / "tokenizer.json").read_bytes() for store in made)
    assert first == second and made[0].manifest["facts"]["num_tokens"] != made[1].manifest["facts"]["num_tokens"]


def test_every_document_is_counted_as_made_or_dropped(tmp_path: Path) -> None:
    rows = documents(own_splits=True, elsewhere="x")
    rows[5]["text"] = ""
    publish_documents(str(tmp_path), "p", rows)
    given = {"tokenizer": {"kind": "bpe", "vocab_size": 300}, "categories": {"min_documents": 3}}
    made = tokenize.run(settings(str(tmp_path), "t", **given)).manifest
    assert made["dropped"] == {"no_token": 1, "rare_category": 2}
    assert made["rows_in"] == 32 and made["rows_out"] == made["facts"]["num_documents"] == 29


def test_a_huge_document_has_the_ids_of_its_whole_text(tmp_path: Path) -> None:
    rows = documents(own_splits=True, elsewhere="x")
    rows[0]["text"] = " ".join(["the naïve sea", rows[0]["text"]] * 50)  # several pieces
    publish_documents(str(tmp_path), "p", rows)
    store = TokenStore.open(tokenize.run(settings(str(tmp_path), "t", tokenizer={"kind": "bpe", "vocab_size": 300})))
    whole = tokenize.bpe.load(str(store.folder / "tokenizer"))(rows[0]["text"], add_special_tokens=False)["input_ids"]
    assert len(rows[0]["text"]) > 16_000 and np.array_equal(store.read(0, 0, int(store.lengths[0])), whole)
