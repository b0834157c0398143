"""Labelled data sets, of the hub, a folder or a table: their rows, columns, splits and commits."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hub_server import Hub
from labelling import read

from pipelines import chunk, datasets, labelled, tokenize
from quire import config
from quire.errors import UserError

PUBLISH = """
from pipelines import datasets, labelled
from quire import config
from quire.errors import UserError

def run_shards(draft, items, make, arguments, **_):
    assert arguments[0].source.revision == {revision!r}, "a worker would read another commit"
    for index, item in enumerate(items):
        draft.write_shard(index, make(*arguments)(item))

labelled.run_shards = run_shards
try:
    made = datasets.run(config.load(datasets.CONFIG, None, {words!r}))
    print("made", made.manifest["rows_out"], made.manifest["recipe"]["source"]["revision"])
except UserError as error:
    print("error", str(error).replace("\\n", " "))
"""
LOAD = """
from pipelines import datasets
from quire import config
from quire.errors import UserError

for words in {runs!r}:
    settings = config.load(datasets.CONFIG, None, ["name=x", "source.kind=hub", *words])
    try:
        print(*(row["text"] for row in datasets._hub_rows(datasets._load(settings.source), settings.source, {item!r})))
    except UserError as error:
        print("error", str(error).replace("\\n", " "))
"""


def test_a_data_set_names_its_authors_and_titles_by_column(tmp_path: Path, steps_here: None) -> None:
    rows = [
        {"body": tiny.book(topic, topic, 30, seed=i), "label": topic, "by": by, "called": f"On {topic}"}
        for i, (topic, by) in enumerate(zip(tiny.TOPICS, ["Ann Lee", "A. Lee", "Bo", "Cy", "", "Di"], strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    given = ["source.kind=table", f"source.folder={tmp_path}", "source.text=body", "source.category=label"]
    given += ['source.files=["t.parquet"]', f"runtime.root={tmp_path / 'root'}"]
    named = ["name=n", "source.author=by", "source.title=called"]
    made = datasets.run(config.load(datasets.CONFIG, None, [*given, *named]))
    bare = datasets.run(config.load(datasets.CONFIG, None, [*given, "name=b"]))
    assert made.read()["title"].to_pylist() == [row["called"] for row in rows]
    assert made.read()["authors"].to_pylist() == [["ann_lee"], ["a_lee"], ["bo"], ["cy"], [], ["di"]]
    assert set(bare.read()["anonymous"].to_pylist()) == {True} and "author" not in bare.manifest["recipe"]["source"]
    for name, groups in (("n", 5), ("b", 6)):
        words = [f"name={name}", f"documents={name}", "english=false", "size=8", "split.method=balanced", given[-1]]
        chunks = chunk.run(config.load(chunk.CONFIG, None, words)).read()
        assert len(chunks["author_group"].unique()) == groups
    with pytest.raises(UserError, match="source.author: no column 'writer' in any file"):
        datasets.run(config.load(datasets.CONFIG, None, [*given, "name=x", "source.author=writer"]))


def test_tables_keep_their_places_whatever_their_format(tmp_path: Path) -> None:
    table = pa.table({"body": [f'text "{i}",\nmore' for i in range(10)], "topic": ["a b", "c"] * 5})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    with (tmp_path / "u.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([table.column_names, *(row.values() for row in table.to_pylist())])
    given = ["source.kind=table", f"source.folder={tmp_path}", "source.text=body", "source.category=topic"]
    rows = read(datasets, [*given, "source.shard_bytes=100"])
    assert [row["document_id"] for row in rows] == [f"{name}:{i}" for name in ("t.parquet", "u.csv") for i in range(10)]
    assert [row["text"] for row in rows] == table["body"].to_pylist() * 2
    assert [row["category"] for row in rows] == table["topic"].to_pylist() * 2
    with pytest.raises(UserError, match="source.category: no column 'klass' in any file of .*; u.csv has body, topic"):
        read(datasets, [*given[:3], "source.category=klass"])


def test_a_labelled_set_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = library.ClassLabel(names=["cs.AI\n", "math.ST\n"])
    features = library.Features({"text": library.Value("string"), "label": names, "by": library.Value("string")})
    folder = tmp_path / "set"
    folder.mkdir()
    for split, labels in (("train", [1, 0, -1]), ("test", [1])):
        data = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        data["by"] = [f"{split} Lee" for _ in labels]
        library.Dataset.from_dict(data, features=features).to_parquet(folder / f"{split}.parquet")
    given = ["source.kind=hub", f"source.dataset={folder}", "source.shard_rows=2"]
    rows = read(datasets, given)
    assert [(r["document_id"], r["split"], r["category"]) for r in rows] == [
        ("train_0", "train", "math.ST"),
        ("train_1", "train", "cs.AI"),
        ("test_0", "test", "math.ST"),
    ]
    assert [r["authors"] for r in read(datasets, [*given, "source.author=by"])] == [["train_lee"]] * 2 + [["test_lee"]]
    with pytest.raises(UserError, match="no column 'klass' in split 'train' .* it has text, label"):
        read(datasets, [*given, "source.category=klass"])


def test_only_the_splits_that_are_named_are_read_and_categories_may_be_none(
    tmp_path: Path, steps_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, root = tmp_path / "set", tmp_path / "root"
    folder.mkdir()
    names = ("train", "test", "unsupervised")
    for split in names:
        pq.write_table(pa.table({"text": [f"{split} {i}" for i in range(3)]}), folder / f"{split}.parquet")
    files = "".join(f"  - {{split: {name}, path: {name}.parquet}}\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    given = ["source.kind=hub", f"source.dataset={folder}", "source.category=", f"runtime.root={root}"]
    with pytest.raises(UserError, match=r'split .unsupervised. is none of .*: source.splits=\["train", "test"\]'):
        datasets.run(config.load(datasets.CONFIG, None, [*given, "name=d"]))
    with pytest.raises(UserError, match="source.splits: 'dev' is no split of .* it has train, test, unsupervised"):
        datasets.run(config.load(datasets.CONFIG, None, [*given, "name=d", 'source.splits=["dev"]']))
    made = datasets.run(config.load(datasets.CONFIG, None, [*given, "name=d", 'source.splits=["train", "test"]']))
    assert made.read()["split"].to_pylist() == ["train"] * 3 + ["test"] * 3
    assert set(made.read()["category"].to_pylist()) == {None} and made.manifest["facts"]["categories"] == {}
    with pytest.raises(UserError, match="documents = 'd': made without categories"):
        tokenize.run(config.load(tokenize.CONFIG, None, ["name=t", "documents=d", "tokenizer.kind=bpe", given[-1]]))


def test_a_set_of_the_hub_is_published_at_one_commit_and_refused_once_it_has_moved(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "two"], "label": ["a", "b"]}), tmp_path / "train.parquet")
    words = ["name=x", "source.kind=hub", "source.dataset=me/set", f"runtime.root={tmp_path / 'root'}"]
    with Hub({"datasets/me/set": {"train.parquet": (tmp_path / "train.parquet").read_bytes()}}) as hub:
        repo = hub.repos["datasets/me/set"]
        first = repo.sha
        done = hub.python(PUBLISH.format(revision=first, words=words), tmp_path / "home")
        assert done.stdout == f"made 2 {first}\n", done.stderr
        repo.files["README.md"] = b"moved"
        told = hub.python(PUBLISH.format(revision=repo.sha, words=words), tmp_path / "home").stdout
        assert f"source.revision: '{first}' there, '{repo.sha}' asked for" in told


def test_eleven_classes_in_the_shape_of_the_full_texts_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    classes = ["math.AC", "cs.CV", "cs.AI", "cs.SY", "math.GR", "cs.CE", "cs.PL", "cs.IT", "cs.DS", "cs.NE", "math.ST"]
    names = library.ClassLabel(names=[*(f"{name}\n" for name in classes[:-1]), classes[-1]])
    features = library.Features({"text": library.Value("string"), "label": names})
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        data = {"text": [f"{split} paper {i}" for i in range(22)], "label": [*range(11), *range(11)]}
        library.Dataset.from_dict(data, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    rows = read(datasets, ["source.kind=hub", f"source.dataset={folder}"])
    assert [(row["split"], row["category"]) for row in rows] == [
        (split, name) for split in ("train", "validation", "test") for name in classes * 2
    ]


def test_a_folder_with_a_script_has_a_remedy_that_it_takes(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit")
    settings = config.load(datasets.CONFIG, None, ["name=x", "source.kind=hub", f"source.dataset={tmp_path}"])
    with pytest.raises(UserError, match="made by a script .* leave only its rows there, as Parquet .* name it as on"):
        datasets._load(settings.source)


def test_a_folder_with_a_damaged_file_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": ')
    settings = config.load(datasets.CONFIG, None, ["name=x", "source.kind=hub", f"source.dataset={tmp_path / 'set'}"])
    with pytest.raises(UserError, match=r"source.dataset = '.*set': cannot be loaded: JSON parse error.*; see whether"):
        datasets._load(settings.source)


def test_a_set_that_the_hub_converted_gives_the_rows_of_its_subset_alone(tmp_path: Path) -> None:
    files = {}
    for subset in ("default", "no_ref"):
        for split in ("train", "test"):
            table = pa.table({"text": [f"{subset} {split} {i}" for i in range(2)], "label": ["a", "b"]})
            pq.write_table(table, tmp_path / "rows.parquet")
            files[f"{subset}/{split}/0000.parquet"] = (tmp_path / "rows.parquet").read_bytes()
    with Hub({"datasets/me/set": files}) as hub:
        revision = hub.repos["datasets/me/set"].sha  # the branch, as far as this hub knows one
        given = ["source.dataset=me/set", f"source.revision={revision}"]
        runs = [given, [*given, "source.subset=no_ref"], [*given, "source.subset=gone"]]
        code = LOAD.replace("for words in", f"datasets._CONVERTED = {revision!r}\nfor words in", 1)
        told = hub.python(code.format(runs=runs, item={"split": "train", "start": 0, "end": 2}), tmp_path / "home")
    lines = told.stdout.splitlines()
    assert lines[:2] == ["default train 0 default train 1", "no_ref train 0 no_ref train 1"], told.stderr
    assert "source.subset = 'gone': cannot be loaded" in lines[2]


def test_the_full_texts_of_the_hub_are_asked_for_as_rows() -> None:
    source = config.load(datasets.CONFIG, "pipelines/experiments/arxiv/papers_full.toml").source
    assert (source.revision, source.subset) == (datasets._CONVERTED, "no_ref")


def test_a_labelled_set_of_the_hub_by_revision_and_one_that_is_a_script(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "two"], "label": ["a", "b"]}), tmp_path / "train.parquet")
    files = {"train.parquet": (tmp_path / "train.parquet").read_bytes()}
    with Hub({"datasets/me/set": files, "datasets/me/made": {**files, "made.py": b"raise SystemExit"}}) as hub:
        revision = hub.repos["datasets/me/set"].sha
        runs = [["source.dataset=me/set", f"source.revision={revision}"]]
        runs += [["source.dataset=me/set", "source.revision=gone"], ["source.dataset=me/made"]]
        runs += [[f"source.dataset={tmp_path}", "source.revision=old"]]
        item = {"split": "train", "start": 0, "end": 2}
        done = hub.python(LOAD.format(runs=runs, item=item), tmp_path / "home")
    told = done.stdout.splitlines()
    assert told[0] == "one two", done.stderr
    assert "source.dataset = 'me/set': cannot be loaded" in told[1] and "gone" in told[1]
    assert "source.dataset = 'me/made': is made by a script" in told[2]
    assert "set source.revision=refs/convert/parquet" in told[2]
    assert "source.revision = 'old': the folder" in told[3]


def test_a_set_without_a_revision_has_the_recipe_it_had() -> None:
    def recipe(*given: str) -> dict:
        words = ["name=x", "source.kind=hub", "source.dataset=me/set", *given]
        return labelled.recipe_of(config.load(datasets.CONFIG, None, words))["source"]

    assert set(recipe()) == {"kind", "dataset", "subset", "text", "category", "shard_rows"}
    assert recipe("source.revision=abc")["revision"] == "abc"
