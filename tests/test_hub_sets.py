"""A data set of the hub to token chunks: read where it lies, pinned, the same as from a folder."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub
from test_token_chunk_step import model, rows, serial, settings  # noqa: F401

from pipelines import token_chunks as step
from quire import artifact, config, hub_sets
from quire.errors import UserError
from quire.storage import Storage

CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: "data/train-*.parquet"}
- config_name: lines
  data_files:
  - {split: test, path: data/test.jsonl.gz}
- config_name: tables
  data_files: other/*.xml
---
"""
LINES = ("source.subset=lines", "source.split=test", "source.shard_bytes=2000")
RUN = """
import sys
from pipelines import token_chunks as step
from quire import config
from quire.errors import UserError

def run_shards(draft, items, make, arguments, **_):
    for index in set(range(len(items))) - set(draft.finished_shards()):
        draft.write_shard(index, make(*arguments)(items[index]))

step.run_shards = run_shards
for words in {runs!r}:
    try:
        print("made", step.run(config.load(step.CONFIG, None, words)).folder)
    except UserError as error:
        print("error", str(error).replace("\\n", " "))
"""


def write_set(folder: Path) -> dict[str, bytes]:
    """Two Parquet files with a column that nobody asks for, and compressed lines, cut off."""
    (folder / "data").mkdir(parents=True)
    (folder / "other").mkdir()
    table = pa.Table.from_pylist(rows(60))
    noise = [np.random.default_rng(row).bytes(400_000) for row in range(30)]
    for part in range(2):
        half = table.slice(30 * part, 30).append_column("noise", pa.array(noise))
        pq.write_table(half, folder / f"data/train-{part}.parquet", row_group_size=15)
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in rows(500)).encode())
    (folder / "data/test.jsonl.gz").write_bytes(data[: len(data) // 2])
    (folder / "other/a.xml").write_bytes(b"<text>w1</text>")
    (folder / "README.md").write_bytes(CARD)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def words(root: Path, model: str, name: str, *changes: str) -> list[str]:  # noqa: F811
    given = ["max_tokens=10", "overlap=2", "source.key=id", "runtime.max_bad_share=0.5"]
    return [f"name={name}", f"model={model}", f"runtime.root={root}", *given, *changes]


def test_a_data_set_is_read_where_it_lies_and_pinned(tmp_path: Path, model: str, serial: None) -> None:  # noqa: F811
    files, root = write_set(tmp_path / "set"), tmp_path / "root"
    with Hub({"datasets/me/set": files}) as hub:
        pinned = hub.repos["datasets/me/set"].sha
        asked = words(root, model, "hub", "source.dataset=me/set")
        runs = [asked, words(root, model, "test", "source.dataset=me/set", *LINES)]
        wrong = (["source.split=dev"], ["source.subset=other"], ["source.subset=tables"], ["source.revision=old"])
        runs += [words(root, model, "wrong", "source.dataset=me/set", *changes) for changes in wrong]
        runs += [words(root, model, "wrong", "source.dataset=me/nothing"), asked]
        done = hub.python(RUN.format(runs=runs), tmp_path / "home")
        read = sum(hub.ranges)
        asked_for = Counter(hub.requests)
        told = done.stdout.splitlines()
        assert told[:2] == ["made chunks/hub", "made chunks/test"] and told[-1] == "made chunks/hub", done.stderr
        assert "source.split = 'dev': me/set has train" in told[2]
        assert "source.subset = 'other': cannot be had" in told[3]
        assert "a.xml', which is in a format not read here" in told[4]
        assert "cannot be had (RevisionNotFoundError" in told[5] and "cannot be had (RepositoryNotFound" in told[6]
        hub.repos["datasets/me/set"].files["data/train-1.parquet"] = files["data/train-0.parquet"]
        moved = hub.python(RUN.format(runs=[asked]), tmp_path / "home").stdout
        assert f"source.revision: '{pinned}' there, '{hub.repos['datasets/me/set'].sha}' asked for" in moved
    assert read < 0.9 * sum(map(len, files.values()))  # the library reads 5 MB around what is asked for
    for name, which in (("hub", ()), ("test", LINES)):
        given = words(root, model, f"near-{name}", f"source.dataset={tmp_path / 'set'}", *which)
        near = step.run(config.load(step.CONFIG, None, given))
        far = artifact.open_artifact(str(root), "chunks", name)
        assert near.read().equals(far.read()) and far.manifest["rows_out"] > 60
        assert far.manifest["dropped"] == near.manifest["dropped"]
        assert far.manifest["recipe"]["source"]["revision"] == pinned
        assert not (root / far.folder / "_work").exists()
        assert not (root / far.folder / "_fetched").exists()
    assert len(far.parts) > 5  # what is compressed is cut as it is near by: looked at, and fetched
    assert asked_for[next(r for r in asked_for if r.startswith("GET") and r.endswith("test.jsonl.gz"))] <= 4
    assert far.manifest["dropped"]["damaged"] == 1


def test_no_network_is_told(tmp_path: Path) -> None:
    with Hub() as hub:
        runs = [["name=x", "source.dataset=me/set", f"runtime.root={tmp_path}"]]
        told = hub.python(RUN.format(runs=runs), tmp_path, HF_HUB_OFFLINE="1").stdout
    assert "source.dataset = 'me/set': cannot be had (OfflineModeIsEnabled" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "give source.folder or source.dataset"),
        (["source.folder=a", "source.dataset=b"], "give source.folder or source.dataset, and not both"),
        (["source.dataset=b", 'source.files=["c"]'], "source.files goes with source.folder"),
    ],
)
def test_a_corpus_is_one_or_the_other(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.load(step.CONFIG, None, ["name=x", "source.text=text", *changes])


def test_the_key_of_a_folder_is_what_it_was(tmp_path: Path, model: str, serial: None) -> None:  # noqa: F811
    """What was made from a folder before there were data sets is not made again."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.txt").write_text("w1")
    recipe = step.run(settings(tmp_path, model)).manifest["recipe"]
    assert set(recipe["source"]) == {"files", "text", "key", "keep", "shard_bytes"}


def far_and_scratch(folder: Path, **files: bytes) -> tuple[hub_sets.Found, Storage]:
    """CSV files of a storage that is to be fetched from, revision `r`."""
    far = Storage(str(folder / "far"))
    far.fetch_first = True
    for name, data in files.items():
        far.write_bytes(f"{name}.csv", data)
    return hub_sets.Found(far, [f"{name}.csv" for name in files], "r"), Storage(str(folder / "scratch"))


def test_half_of_a_file_that_a_killed_run_left_is_fetched_again(tmp_path: Path) -> None:
    files = {"a": b"id,text\n1,one\n2,two\n", "b": b"id,text\n3,three\n"}
    found, scratch = far_and_scratch(tmp_path, **files)
    scratch.write_bytes("r/a.csv", b"id,text\n1,o")
    near = hub_sets.fetched(found, scratch)
    assert {name: near.read_bytes(f"{name}.csv") for name in files} == files
    assert hub_sets.must_fetch(found) and not hub_sets.must_fetch(found._replace(files=["a.parquet"]))


def test_a_file_that_cannot_be_fetched_is_told_and_the_others_stay(tmp_path: Path) -> None:
    found, scratch = far_and_scratch(tmp_path, a=b"id,text\n", b=b"id,text\n")
    found.storage.delete("b.csv")
    with pytest.raises(UserError, match=r"a file cannot be fetched \(.*b\.csv.*goes on from the files that are there"):
        hub_sets.fetched(found, scratch)
    assert scratch.files() == ["r/a.csv"]


def test_what_was_fetched_is_fetched_once_whatever_becomes_of_the_run(tmp_path: Path, model: str) -> None:  # noqa: F811
    """A wrong column shows before anything is fetched; a run that is given up leaves the files to the next recipe."""
    found = ({"id": row, "text": None if row > 90 else f"w{row % 9}"} for row in range(200))
    records = "".join(f"{json.dumps(record)}\n" for record in found)
    card = b"---\nconfigs:\n- {config_name: default, data_files: a.jsonl.gz}\n---\n"
    root = tmp_path / "root"
    with Hub({"datasets/me/set": {"a.jsonl.gz": gzip.compress(records.encode()), "README.md": card}}) as hub:
        asked = words(root, model, "x", "source.dataset=me/set", "source.shard_bytes=200")
        done = hub.python(RUN.format(runs=[[*asked, "source.text=body"]]), tmp_path / "home").stdout
        assert "source.text = 'body', source.key = 'id': none of 200 records" in done and "no_text" in done
        assert not (root / "chunks/x/_fetched").exists()
        done = hub.python(RUN.format(runs=[[*asked, "runtime.max_bad_share=0.1"]]), tmp_path / "home").stdout
        assert "more records than that cannot be read" in done
        assert (root / f"chunks/x/_fetched/{hub.repos['datasets/me/set'].sha}/a.jsonl.gz").exists()
        hub.requests.clear()
        done = hub.python(RUN.format(runs=[[*asked, "overlap=1", "runtime.max_bad_share=0.9"]]), tmp_path / "home")
        assert "made chunks/x" in done.stdout, done
    assert not any(request.endswith("jsonl.gz") for request in hub.requests)
    assert not (root / "chunks/x/_fetched").exists()
