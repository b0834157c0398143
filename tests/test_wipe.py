"""Artefacts go when the root is confirmed by name, and nothing else goes."""

import os
from pathlib import Path

import cluster
import pytest

from pipelines import wipe
from quire import artifact, config
from quire import wipe as library
from quire.errors import UserError
from quire.storage import Storage


def publish(root: Path | str, kind: str, name: str) -> None:
    draft = artifact.begin(str(root), kind, name, recipe={"a": 1}, inputs={})
    draft.storage.write_bytes(f"{draft.folder}/sub/data.bin", b"x" * 1000)
    draft.publish()


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Artefacts of three kinds, one of them unfinished; a cache, a stray folder, links out of the root."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for kind, name in (("documents", "a"), ("documents", "b"), ("models", "m")):
        publish(root, kind, name)
    artifact.begin(str(root), "chunks", "half", recipe={}, inputs={})
    for file in (outside / "manifest.json", outside / "precious", root / "hf/cache", root / "documents/notes/n.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("keep")
    os.symlink(outside, root / "documents/link")
    os.symlink(outside, root / "embeddings")
    os.symlink(outside, root / "documents/a/sub/link")
    return root


def run(root: Path, *changes: str) -> wipe.Wiped:
    return wipe.run(config.load(wipe.CONFIG, None, [f"root={root}", *changes]))


def test_without_the_right_word_nothing_goes(root: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    told = run(root).told(0)
    assert "would delete 3 artefact(s)" in told and "hf (no artefact)" in told and "models/m (kind models" in told
    with pytest.raises(UserError, match="confirm = 'true': not the root"):
        run(root, 'confirm="true"')
    assert everything(tmp_path) == before


def test_confirmed_the_artefacts_go_and_all_else_stays(root: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    sizes = {entry.path: entry.num_bytes for entry in run(root, f"confirm={root}").found if not entry.left}
    assert set(sizes) == {"documents/a", "documents/b", "chunks/half"} and sizes["documents/b"] > 1000
    gone = before - everything(tmp_path)
    assert all(path.startswith(("root/documents/a/", "root/documents/b/", "root/chunks/half/")) for path in gone)
    assert {path for path in before if path.startswith("outside/")} <= everything(tmp_path)
    assert not (root / "documents/a").exists() and (root / "documents/link").is_symlink()
    assert artifact.open_artifact(str(root), "models", "m").manifest


def test_models_go_where_they_are_named(root: Path) -> None:
    run(root, 'kinds=["models", "documents"]', 'names=["m", "a"]', f"confirm={root}")
    assert not (root / "models/m").exists() and not (root / "documents/a").exists()
    assert (root / "documents/b/manifest.json").exists()
    with pytest.raises(UserError, match="kinds: 'model' is none of"):
        run(root, 'kinds=["model"]')


@pytest.mark.parametrize("place", ["raw/pg1.txt", "_work/raw/pg1.txt", "metadata-00000.parquet"])
def test_fetched_books_go_only_where_they_are_named(root: Path, place: str) -> None:
    file = root / "documents/b" / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("fetched")
    if place.startswith("_work"):  # an unfinished harvest
        (root / "documents/b/manifest.json").rename(root / "documents/b/_draft.json")
    told = run(root).told(0)
    assert "would delete 2 artefact(s)" in told
    assert "stays: documents/b (fetched books are kept: name it in names= to delete them)" in told
    for kinds in ([], ['kinds=["documents"]']):
        run(root, *kinds, f"confirm={root}")
        assert file.read_text() == "fetched" and not (root / "documents/a").exists()
    run(root, 'names=["b"]', f"confirm={root}")
    assert not (root / "documents/b").exists()


@pytest.mark.parametrize("written", ['{"manifest_version": 3, "name": "of a browser"}', "[]", "no JSON", "\xff"])
def test_a_folder_with_a_manifest_of_another_program_stays(root: Path, written: str) -> None:
    file = root / "reports/site/manifest.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(written.encode("latin-1"))
    assert "stays: reports/site (no artefact)" in run(root, f"confirm={root}").told(0)
    assert file.exists()


def test_what_may_not_be_deleted_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(library.shutil, "rmtree", forbidden)
    with pytest.raises(UserError, match=r"documents/b cannot be deleted \(.*Permission denied.*repeat the line"):
        run(root, 'names=["b"]', f"confirm={root}")


def test_a_wipe_that_is_killed_leaves_no_half_artefact(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(library.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run(root, 'names=["b"]', f"confirm={root}")
    with pytest.raises(UserError, match="is unfinished"):
        artifact.open_artifact(str(root), "documents", "b")
    run(root, 'names=["b"]', f"confirm={root}")
    assert not (root / "documents/b").exists()


def test_a_root_that_is_not_there_has_nothing_to_delete(tmp_path: Path) -> None:
    assert run(tmp_path / "none", f"confirm={tmp_path / 'none'}").found == []
    assert library.find(Storage(str(tmp_path)), ["documents"]) == []


def test_a_bucket_is_wiped_like_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster.s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        root = "s3://corpora/quire"
        for kind, name in (("documents", "a"), ("models", "m")):
            publish(root, kind, name)
        storage = Storage(root)
        storage.write_bytes("hf/cache", b"keep")
        told = wipe.run(wipe.WipeConfig(root=root, confirm=root)).told(0)
        assert "deleted 1 artefact(s)" in told and "hf (no artefact)" in told
        assert {name.split("/")[0] for name in storage.files()} == {"hf", "models"}
