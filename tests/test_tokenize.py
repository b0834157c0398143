"""Documents to a token store: an interrupted run ends in the same bytes, sources keep their splits."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
from transformers import AutoTokenizer

from pipelines import tokenize
from quire import artifact, bpe, papers
from quire.artifact import Shard
from quire.errors import UserError
from quire.tokens import TokenStore

pytestmark = pytest.mark.ray
TOPICS = sorted(tiny.TOPICS)[:3]


def publish_documents(root: str, name: str, rows: list[dict], per_part: int = 10) -> None:
    """A `documents` artefact of these rows, as pipelines.arxiv would leave it."""
    draft = artifact.begin(root, "documents", name, recipe={"made": "by a test"}, inputs={})
    parts = [rows[at : at + per_part] for at in range(0, len(rows), per_part)]
    for index, part in enumerate(parts):
        columns = {key: [row.get(key) for row in part] for key in papers.PAPERS.names}
        draft.write_shard(index, Shard(table=pa.table(columns, schema=papers.PAPERS), rows_in=len(part)))
    draft.publish(num_shards=len(parts))


def document(number: int, split: str | None = None) -> dict:
    topic = TOPICS[number % 3]
    text = tiny.book(topic, f"{topic}{number}", 8, seed=number) + " naïve 日本"
    names = [topic, "other"]
    return {"document_id": f"d{number}", "text": text, "category": topic, "categories": names, "split": split}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    where = str(tmp_path_factory.mktemp("root"))
    publish_documents(where, "p", [document(i) for i in range(40)])
    return where


def settings(root: str, name: str, **changes: object) -> tokenize.TokenizeConfig:
    values = {"documents": "p", "tokenizer": {"kind": "bpe", "vocab_size": 400, "max_documents": 20}, **changes}
    return tokenize.TokenizeConfig(name=name, **{"runtime": {"root": root}, **values})


def test_an_interrupted_run_does_the_rest_and_ends_in_the_same_bytes(root: str) -> None:
    whole = tokenize.run(settings(root, "whole"))
    documents = artifact.open_artifact(root, "documents", "p")
    first, last = documents.parts[0], documents.parts[-1]
    good = {part: documents.storage.read_table(part) for part in (first, last)}
    resumed = settings(root, "resumed", runtime={"root": root, "num_workers": 1})
    documents.storage.write_table(last, good[last].drop_columns("categories"))  # the worker that comes to it fails
    with pytest.raises(Exception, match="'categories'"):
        tokenize.run(resumed)
    with pytest.raises(UserError, match="is unfinished"):
        artifact.open_artifact(root, "tokens", "resumed")
    documents.storage.write_table(last, good[last])
    other = pa.array(["something else"] * good[first].num_rows)
    documents.storage.write_table(first, good[first].set_column(2, "text", other))  # finished, so not read again
    made = tokenize.run(resumed)
    documents.storage.write_table(first, good[first])
    assert made.manifest["files"] == whole.manifest["files"]


def test_a_source_keeps_its_splits_and_others_go_by_their_ids(root: str) -> None:
    publish_documents(root, "split", [document(i, ("train", "validation", "test")[i % 3]) for i in range(12)])
    kept = TokenStore.open(tokenize.run(settings(root, "kept", documents="split")))
    assert dict(zip(kept.document_ids, kept.splits, strict=True)) == {
        f"d{i}": ("train", "validation", "test")[i % 3] for i in range(12)
    }
    shares = tokenize.Shares(train=0.5, validation=0.25, test=0.25)
    found = [tokenize.split_of(f"d{i}", shares, 0) for i in range(4000)]
    assert [found.count(name) / 4000 for name in ("train", "validation", "test")] == pytest.approx(
        [0.5, 0.25, 0.25], abs=0.03
    )


def test_a_tokenizer_of_a_folder_and_a_vocabulary_of_32_bits(root: str, tmp_path: Path) -> None:
    texts = [document(i)["text"] for i in range(40)]
    bpe.save(bpe.train(iter(texts), 300), tmp_path / "tok")
    choice = {"kind": "pretrained", "name": str(tmp_path / "tok")}
    store = TokenStore.open(tokenize.run(settings(root, "wide", tokenizer=choice, vocab_size=70_000)))
    assert store.tokens.dtype == np.dtype("<u4") and store.vocab_size == 70_000
    tokenizer = AutoTokenizer.from_pretrained(store.folder / "tokenizer")
    for row, text in enumerate(texts):
        assert tokenizer.decode(store.read(row, 0, int(store.lengths[row]))) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 100}, "vocab_size = 100: the tokenizer has 400 ids"),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 60_000}}, "tokenizer.vocab_size = 60000: the corpus gives"),
        ({"tokenizer": {"kind": "pretrained", "name": "/nowhere/tok"}}, "tokenizer '/nowhere/tok'"),
        ({"vocab_size": 2**33}, "at most 32 bits"),
        ({"documents": "books"}, "documents = 'books' has no column 'categories': make it with pipelines.arxiv, or"),
    ],
)
def test_what_cannot_be_tokenised_is_refused(root: str, changes: dict, message: str) -> None:
    draft = artifact.begin(root, "documents", "books", recipe={}, inputs={})
    if not draft.published:
        draft.write_shard(0, Shard(table=pa.table({"document_id": ["b"], "text": ["words"]}), rows_in=1))
        draft.publish(num_shards=1)
    with pytest.raises(UserError, match=message):
        tokenize.run(settings(root, f"bad-{abs(hash(message))}", **changes))


def test_shares_that_do_not_add_up_show_in_the_config() -> None:
    with pytest.raises(ValueError, match="shares add up to 0.7: make them add up to 1"):
        tokenize.Shares(train=0.5, validation=0.1, test=0.1)


def test_documents_without_a_token_are_counted(root: str) -> None:
    rows = [document(0), {**document(1), "text": ""}, document(2)]
    publish_documents(root, "empty", rows)
    made = tokenize.run(settings(root, "empty", documents="empty", tokenizer={"kind": "bpe", "vocab_size": 300}))
    assert made.manifest["dropped"] == {"no_token": 1} and made.manifest["facts"]["num_documents"] == 2
