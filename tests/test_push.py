"""An artefact on the hub: whole or without a manifest, sent once, private, and no word of the token."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hub_server import Hub

from quire import artifact
from quire.artifact import Artifact, Shard

TOKEN = "hf_secretOfTheTest"
PUSH = """
from pipelines import push
from quire import config
config.main(push.CONFIG, push.run, ["kind=chunks", "name=c", "first_wait=0.01", *{words!r}])
"""
LOAD = """
import datasets
rows = datasets.load_dataset("me/set", split="train")
print(rows.num_rows, rows[2])
"""


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    """Three parts, of which the second is large enough for LFS, and a reject."""
    draft = artifact.begin(str(tmp_path / "root"), "chunks", "c", recipe={}, inputs={})
    for part, size in enumerate((1, 4_000, 2)):
        texts = [f"{part}-{number}" for number in np.random.default_rng(part).integers(0, 10**9, size)]
        rejects = pa.table({"id": ["x"], "reason": ["no_text"]}) if part == 2 else None
        draft.write_shard(part, Shard(table=pa.table({"text": texts}), rejects=rejects))
    return draft.publish(num_shards=3)


def push(hub: Hub, made: Artifact, home: Path, *words: str):
    words = (f"runtime.root={made.storage.root}", "repo=me/set", *words)
    return hub.python(PUSH.format(words=list(words)), home, HF_TOKEN=TOKEN)


def files(made: Artifact) -> dict[str, bytes]:
    names = [*made.manifest["files"], "manifest.json"]
    return {name: made.storage.read_bytes(f"{made.folder}/{name}") for name in names}


def test_a_hub_that_fails_first_is_tried_again_and_gets_everything_once(made: Artifact, tmp_path: Path) -> None:
    faults = {"POST /api/repos/create": 1, "/tree/": 1, "/commit/": 2, "PUT /objects": 1}
    with Hub(faults=faults) as hub:
        done = push(hub, made, tmp_path)
        assert done.returncode == 0, done.stderr
        repo = hub.repos["datasets/me/set"]
        assert repo.files == files(made) and repo.visibility == "private"
        assert repo.large == {"part-00001.parquet"}
        assert repo.commits[-1] == ["manifest.json"] and "manifest.json" not in sum(repo.commits[:-1], [])
        assert not any(hub.faults.values())
        assert hub.tokens <= {f"Bearer {TOKEN}", ""} and f"Bearer {TOKEN}" in hub.tokens
        commits = len(repo.commits)
        again = push(hub, made, tmp_path)
        assert "0 file(s) sent" in again.stdout and len(repo.commits) == commits
        assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr
        loaded = hub.python(LOAD, tmp_path, HF_TOKEN=TOKEN)
        assert loaded.stdout == f"4003 {made.read().slice(2, 1).to_pylist()[0]}\n", loaded.stderr


def test_one_that_gave_up_goes_on_with_what_is_lacking(made: Artifact, tmp_path: Path) -> None:
    with Hub({"datasets/me/set": {"part-00000.parquet": files(made)["part-00000.parquet"]}}, {"/commit/": 99}) as hub:
        gave_up = push(hub, made, tmp_path, "attempts=2")
        assert gave_up.returncode == 2 and "2 attempts failed" in gave_up.stderr
        assert TOKEN not in gave_up.stderr and "manifest.json" not in hub.repos["datasets/me/set"].files
        hub.faults.clear()
        done = push(hub, made, tmp_path)
        assert hub.repos["datasets/me/set"].files == files(made), done.stderr
        assert "1 were there" in done.stdout
        assert "part-00000.parquet" not in sum(hub.repos["datasets/me/set"].commits, [])


def test_a_data_set_of_something_else_is_left_alone(made: Artifact, tmp_path: Path) -> None:
    other = json.dumps({"another": "manifest"}).encode()
    for theirs, what in (({"part-00009.parquet": b"x"}, "'part-00009.parquet'"), ({"manifest.json": other}, "another")):
        with Hub({"datasets/me/set": theirs}) as hub:
            done = push(hub, made, tmp_path)
            assert done.returncode == 2 and f"repo = 'me/set': holds {what}" in done.stderr
            assert hub.repos["datasets/me/set"].files == theirs
