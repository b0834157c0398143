"""Artefacts are published once, skipped, refused or resumed after that; on a disk and on S3."""

import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from quire import artifact
from quire import storage as storages
from quire.artifact import Shard, begin, open_artifact
from quire.errors import UserError
from quire.storage import Storage


@pytest.fixture(scope="module")
def s3_root() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    port = server.get_host_and_port()[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="corpora")
    yield f"s3://corpora/quire?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    patch.undo()
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path)
        if request.param == "disk"
        else f"{request.getfixturevalue('s3_root')}".replace("/quire?", f"/{tmp_path.name}?")
    )


def shard(*values: int) -> Shard:
    return Shard(table=pa.table({"value": list(values)}), rows_in=len(values))


def start(root: str, size: int = 1, source: str = "abc") -> artifact.Draft:
    return begin(root, "chunks", "books", recipe={"size": size}, inputs={"source": source})


def test_published_is_found_again_and_skipped(root: str) -> None:
    draft = start(root)
    draft.write_shard(0, shard(1, 2))
    draft.write_shard(1, shard(3))
    draft.publish(num_shards=2)
    assert start(root).published is not None
    assert open_artifact(root, "chunks", "books").read()["value"].to_pylist() == [1, 2, 3]


def test_another_recipe_is_refused_with_the_differing_keys(root: str) -> None:
    start(root).publish()
    with pytest.raises(UserError, match="size: 1 there, 2 asked for"):
        start(root, size=2)
    with pytest.raises(UserError, match="input.source: 'abc' there, 'xyz' asked for"):
        start(root, source="xyz")


def test_an_interrupted_run_is_resumed_and_not_taken_for_finished(root: str) -> None:
    start(root).write_shard(1, shard(3))
    with pytest.raises(UserError, match="unfinished"):
        open_artifact(root, "chunks", "books")
    again = start(root)
    assert set(again.finished_shards()) == {1}
    with pytest.raises(UserError, match="1 of 2 shards are missing, first 0"):
        again.publish(num_shards=2)
    again.write_shard(0, shard(1, 2))
    assert again.publish(num_shards=2).read()["value"].to_pylist() == [1, 2, 3]


def test_what_killed_writes_left_is_gone_once_published(tmp_path: Path) -> None:
    draft = start(str(tmp_path))
    left = [tmp_path / draft.folder / name for name in (".tmp-1-part-00000.parquet", "raw/.tmp-2-pg86", "raw/pg86")]
    left[1].parent.mkdir()
    for file in left:
        file.write_bytes(b"half a book")
    draft.write_shard(0, shard(1))
    made = draft.publish(num_shards=1)
    assert [file.exists() for file in left] == [False, False, True] and "raw/pg86" in made.manifest["files"]


def test_an_interrupted_run_of_another_recipe_is_refused(root: str) -> None:
    start(root).write_shard(0, shard(1))
    with pytest.raises(UserError, match="was begun by another recipe"):
        start(root, size=2)
    assert set(start(root).finished_shards()) == {0}


def test_a_run_that_ended_before_its_first_shard_gives_way_to_another_recipe(root: str) -> None:
    draft = start(root)
    draft.storage.write_bytes(f"{draft.folder}/part-00000.parquet", b"half a shard")
    made = start(root, size=2).publish()
    assert (made.manifest["recipe"], made.manifest["files"]) == ({"size": 2}, {})


def test_a_run_given_up_is_resumed_by_its_recipe_and_replaced_by_another(root: str) -> None:
    draft = start(root)
    draft.write_shard(0, shard(1))
    assert str(draft.given_up("no rows: set size=2")) == "no rows: set size=2"
    assert set(start(root).finished_shards()) == {0}
    assert not start(root, size=2).finished_shards()
    assert "given_up" not in start(root, size=2).publish().manifest


def test_what_was_made_from_an_input_that_was_made_again_otherwise_is_refused(root: str) -> None:
    def upstream(*values: int) -> artifact.Artifact:
        Storage(root).delete("documents/d")
        draft = begin(root, "documents", "d", recipe={}, inputs={})
        draft.write_shard(0, shard(*values))
        return draft.publish(num_shards=1)

    first = upstream(1)
    made = begin(root, "chunks", "c", recipe={}, inputs={"documents": first}).publish()
    assert begin(root, "chunks", "c", recipe={}, inputs={"documents": upstream(1)}).published is not None
    second = upstream(2)
    assert (second.fingerprint, second.content == first.content) == (first.fingerprint, False)
    with pytest.raises(UserError, match="input.documents.content: "):
        begin(root, "chunks", "c", recipe={}, inputs={"documents": second})
    assert begin(root, "chunks", "other", recipe={}, inputs={"documents": second}).fingerprint == made.fingerprint


def test_scratch_left_by_a_kill_after_the_manifest_is_cleared(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = start(root)
    draft.storage.write_bytes(f"{draft.folder}/{artifact.WORK}/works.json", b"{}")
    draft.write_shard(0, shard(1))
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_clear", lambda *_: None)
        draft.publish(num_shards=1)
    assert start(root).published is not None
    assert draft.storage.files(draft.folder) == ["README.md", "manifest.json", "part-00000.parquet"]


def test_dropped_rows_are_counted_by_reason_and_kept(root: str) -> None:
    draft = start(root)
    rejects = pa.table({"id": ["a", "b", "c"], "reason": ["short", "short", "not_english"]})
    draft.write_shard(0, Shard(table=pa.table({"value": [1]}), rows_in=4, rejects=rejects))
    made = draft.publish(num_shards=1)
    assert made.manifest["dropped"] == {"not_english": 1, "short": 2}
    assert (made.manifest["rows_in"], made.manifest["rows_out"]) == (4, 1)
    assert made.storage.read_table(f"{made.folder}/rejects-00000.parquet")["id"].to_pylist() == ["a", "b", "c"]


def test_rows_that_a_step_writes_elsewhere_count_as_made(root: str) -> None:
    rejects = pa.table({"id": ["a"], "reason": ["no_token"], "detail": [""]})
    draft = begin(root, "tokens", "t", recipe={}, inputs={})
    record = draft.write_shard(0, Shard(rows_in=3, rejects=rejects, rows_elsewhere=2))
    assert record["rows_in"] == record["rows_out"] + sum(record["dropped"].values())


def test_the_same_shard_twice_gives_the_same_bytes(root: str) -> None:
    draft = start(root)
    draft.write_shard(0, shard(1, 2))
    first = draft.storage.read_bytes(f"{draft.folder}/part-00000.parquet")
    draft.write_shard(0, shard(1, 2))
    assert draft.storage.read_bytes(f"{draft.folder}/part-00000.parquet") == first


def test_the_scratch_is_gone_after_publishing(root: str) -> None:
    draft = start(root)
    draft.storage.write_bytes(f"{draft.folder}/{artifact.WORK}/checkpoint/state.json", b"{}")
    draft.write_shard(0, shard(1))
    made = draft.publish(num_shards=1)
    assert made.storage.files(made.folder) == ["README.md", "manifest.json", "part-00000.parquet"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(storages, "cache_folder", lambda: folder)
    return folder


def model(root: str, weights: bytes) -> artifact.Artifact:
    Storage(root).delete("models/m")
    draft = begin(root, "models", "m", recipe={}, inputs={})
    draft.storage.write_bytes("models/m/sub/weights", weights)
    return draft.publish()


def test_a_remote_folder_is_copied_once_and_a_local_one_not_at_all(root: str, cache: Path) -> None:
    made = model(root, b"123")
    copy = made.local()
    assert (copy / "sub" / "weights").read_bytes() == b"123"
    assert made.local() == copy
    assert made.storage.is_local == (copy == Path(made.storage.path("models/m"))) == (not list(cache.iterdir()))


def test_what_was_made_again_is_fetched_and_mapped_again(root: str, cache: Path) -> None:
    assert (model(root, b"old").local() / "sub" / "weights").read_bytes() == b"old"
    assert (model(root, b"new").local() / "sub" / "weights").read_bytes() == b"new"
    for values in ((1, 2), (3, 4)):
        Storage(root).delete("chunks/books")
        draft = start(root)
        draft.write_shard(0, shard(*values))
        assert draft.publish(num_shards=1).memory_map(["value"])["value"].to_pylist() == list(values)


def test_a_damaged_remote_file_is_named_and_its_copy_not_kept(s3_root: str, tmp_path: Path, cache: Path) -> None:
    root = s3_root.replace("/quire?", f"/{tmp_path.name}?")
    made = model(root, b"12345678")
    made.storage.write_bytes("models/m/sub/weights", b"1234")
    for fetch in (made.local, lambda: made.local_file("sub/weights")):
        named = r"models/m/sub/weights: 4 bytes long, its manifest says 8 bytes; delete s3://"
        with pytest.raises(UserError, match=named):
            fetch()
    assert not list(cache.iterdir())
    made.storage.delete("models/m/sub/weights")
    with pytest.raises(UserError, match="models/m/sub/weights: missing, its manifest says 8 bytes"):
        made.local()
    again = model(root, b"12345678")  # the same content, hence the same key
    assert again.content == made.content
    for copy in (again.local() / "sub" / "weights", again.local_file("sub/weights")):
        assert copy.read_bytes() == b"12345678"


def test_what_is_cached_and_not_asked_for_in_days_goes(cache: Path) -> None:
    for key in ("folder", "file", "recent"):
        storages.made_once(key, lambda target: target.mkdir() if target.name == "folder" else target.write_bytes(b"1"))
    for key in ("folder", "file"):
        os.utime(cache / key, (0, 0))
    storages.made_once("new", lambda target: target.write_bytes(b"1"))
    assert sorted(path.name for path in cache.iterdir()) == ["new", "recent"]


def test_a_copy_that_another_process_made_meanwhile_is_taken(cache: Path) -> None:
    def make(target: Path) -> None:
        for folder in (target, cache / target.name):
            folder.mkdir()
            (folder / "file").write_bytes(b"1")

    assert (storages.made_once("key", make) / "file").read_bytes() == b"1"
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_a_mapped_table_equals_the_read_one(root: str, cache: Path) -> None:
    draft = start(root)
    draft.write_shard(0, shard(1, 2))
    draft.write_shard(1, shard(3))
    made = draft.publish(num_shards=2)
    assert made.memory_map(["value"]).equals(made.read(["value"]))


def test_a_write_that_fails_leaves_no_half_of_a_file(root: str, tmp_path: Path) -> None:
    storage, source = Storage(root), tmp_path / "source"
    source.mkdir()
    (source / "tokens.bin").write_bytes(b"12345678" * 2**20)

    def torn(stream: object, target: object, _: int) -> None:
        target.write(stream.read(6 * 2**20))
        raise OSError("the disk is gone")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
        patch.setattr(storages.shutil, "copyfileobj", torn)
        storage.upload(source, "a")
    assert storage.files("a") == []


@pytest.mark.parametrize("root", ["s3://KEYID:SECRET/x@bucket/prefix", "s3://KEYID:SECRET@bucket", "s3://KEYID@bucket"])
def test_a_root_with_a_secret_is_refused_without_repeating_it(root: str) -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as caught:
        Storage(root)
    assert "SECRET@" not in str(caught.value) and "KEYID" not in str(caught.value)


@pytest.mark.parametrize("relative", ["../x", "/etc/passwd", "a/../../x"])
def test_a_path_never_leaves_the_root(tmp_path: Path, relative: str) -> None:
    with pytest.raises(UserError, match="leaves the root"):
        Storage(str(tmp_path)).write_bytes(relative, b"")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "_work"])
def test_a_name_that_is_no_plain_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name"):
        begin(str(tmp_path), "chunks", name, recipe={}, inputs={})


def test_a_half_written_file_is_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a/good", b"1")
    (tmp_path / "a" / ".tmp-123-bad").write_bytes(b"2")
    assert storage.files("a") == ["good"]


def test_a_large_file_is_copied_hashed_and_fetched_a_block_at_a_time(root: str, tmp_path: Path) -> None:
    source, fetched = tmp_path / "source", tmp_path / "fetched"
    (source / "sub").mkdir(parents=True)
    data = np.random.default_rng(0).bytes(24 * 2**20)
    (source / "sub" / "tokens.bin").write_bytes(data)
    storage = Storage(root)
    tracemalloc.start()
    storage.upload(source, "a/b")
    digest = storage.sha256("a/b/sub/tokens.bin")
    storage.download("a/b", fetched)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if storage.is_local:  # the S3 server of the test lives in this process, and holds what it serves
        assert peak < len(data) / 3
    assert digest == hashlib.sha256(data).hexdigest()
    assert (fetched / "sub" / "tokens.bin").read_bytes() == data


def test_a_storage_below_another_holds_copies_at_the_same_places(root: str, tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    (tmp_path / "source/a/b.gz").write_bytes(b"12")
    below = Storage(root).below("chunks/books/_work")
    source = Storage(str(tmp_path / "source"))
    below.copy("a/b.gz", source)
    with pytest.raises(FileNotFoundError):
        below.copy("a/c.gz", source)
    assert Storage(root).below("chunks/bücher").files() == [] and below.files() == ["a/b.gz"]
    assert below.read_bytes("a/b.gz") == b"12" == Storage(root).read_bytes("chunks/books/_work/a/b.gz")
    with pytest.raises(UserError, match="leaves the root"):
        Storage(root).below("../other")


def test_the_record_of_a_shard_is_read_once_until_it_is_written_again(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, others = start(root), start(root)
    read: list[str] = []
    monkeypatch.setattr(
        Storage, "read_json", lambda self, name, own=Storage.read_json: [read.append(name), own(self, name)][1]
    )
    for index in range(3):
        others.write_shard(index, shard(index))
        assert list(begun.finished_shards()) == list(range(index + 1))
    assert len(read) == 3
    begun.write_shard(1, shard(7, 8))
    assert [record["rows_out"] for record in begun.finished_shards().values()] == [1, 2, 1] and len(read) == 4
    assert "_records" not in begun.__getstate__()  # what workers get


def test_a_published_folder_is_a_data_set_though_a_part_is_empty(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    draft = start(str(tmp_path))
    draft.write_shard(0, Shard(table=shard(0).table.slice(1)))
    draft.write_shard(1, shard(1, 2, 3))
    draft.storage.write_table(f"{draft.folder}/rejects-00000.parquet", pa.table({"reason": ["other columns"]}))
    made = draft.publish(num_shards=2)
    rows = datasets.load_dataset(made.storage.uri(made.folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == made.read().num_rows == 3


def test_a_name_is_on_the_disk_before_the_next_thing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What power loss leaves cannot be tried here; what is asked of the disk, and when, can."""
    synced: list[tuple[str, set[str]]] = []  # a folder or file, and what stood in the folder
    fsync = os.fsync

    def spy(opened: int) -> None:
        path = os.readlink(f"/proc/self/fd/{opened}")
        synced.append((path, set(os.listdir(path)) if os.path.isdir(path) else set()))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", spy)
    storage = Storage(str(tmp_path))
    storage.write_json("a/b/data.json", 1)
    here = [(os.path.relpath(path, tmp_path), names) for path, names in synced]
    assert here[:2] == [(".", {"a"}), ("a", {"b"})]
    assert here[-1] == ("a/b", {"data.json"}) and ("a/b/.tmp-" in here[-2][0])
    storage.delete("a/b")
    assert synced[-1] == (str(tmp_path / "a"), set())
