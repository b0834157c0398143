"""A record of any source becomes one row with its categories, or is dropped for a reason that fits."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hub_server import Hub
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import arxiv, chunk, datasets, labelled, tokenize
from quire import config, papers, readers, streams
from quire.errors import UserError
from quire.storage import Storage

SHARED = Path(__file__).parents[2] / "shared" / "data" / "arxiv"


def table_row(**record: object) -> papers.Row | readers.Dropped:
    named = {"text": "text", "category": "label", "title": None, "author": "by" if "by" in record else None}
    named |= {"key": "id" if "id" in record else None}
    return papers.table_row({"text": "words", "label": "a", **record}, "f.jsonl", 7, **named)


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("Computer Vision\n", ["Computer Vision"]),
        (3, ["3"]),
        (0, ["0"]),
        (["cs.AI", " cs.LG ", "cs.AI"], ["cs.AI", "cs.LG"]),
    ],
)
def test_a_category_of_a_table_is_a_name_a_number_or_a_list(label: object, names: list[str]) -> None:
    row = table_row(label=label)
    assert (row["category"], row["categories"], row["document_id"]) == (names[0], names, "f.jsonl:7")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"label": None}, "no_category"),
        ({"label": " "}, "no_category"),
        ({"label": {"a": 1}}, "no_category"),
        ({"text": " \n"}, "no_text"),
        ({"text": 5}, "no_text"),
        ({"id": None}, "no_id"),
        ({"split": "heldout"}, "unknown_split"),
        ({"split": ["train"]}, "unknown_split"),
    ],
)
def test_what_cannot_be_used_is_dropped_for_a_reason(record: dict, reason: str) -> None:
    assert table_row(**record)[0] == reason


def test_id_zero_is_an_id_and_a_split_keeps_its_meaning() -> None:
    row = table_row(id=0, split="dev")
    assert (row["document_id"], row["split"]) == ("0", "validation")


@pytest.mark.parametrize("categories", ["cs.LG stat.ML", ["cs.LG", "stat.ML"], ["cs.LG stat.ML"]])
def test_metadata_as_published(categories: object) -> None:
    versions = [{"version": "v1", "created": "Mon, 2 Apr 2007"}, {"version": "v2", "created": "later"}]
    record = {"id": "0704.0001", "title": "On\n  this", "abstract": " and\nthat ", "versions": versions}
    row = papers.arxiv_row({**record, "categories": categories, "update_date": "2008-11-26"}, "a.json")
    assert (row["text"], row["category"], row["created"]) == ("On this\n\nand that", "cs.LG", "Mon, 2 Apr 2007")
    assert row["categories"] == ["cs.LG", "stat.ML"] and row["split"] is None


@pytest.mark.parametrize("versions", [["v1", "v2"], [], "v1", [{"version": "v1"}], None, {"created": "once"}])
def test_a_snapshot_whose_versions_have_no_date_has_that_of_its_update(versions: object) -> None:
    record = {"id": "0704.0001", "title": "On", "abstract": "that", "categories": "cs.LG", "versions": versions}
    assert papers.arxiv_row({**record, "update_date": "2008-11-26"}, "a.json")["created"] == "2008-11-26"


@pytest.mark.parametrize(
    ("record", "people"),
    [
        (
            {"authors_parsed": [["Balázs", "C.", ""], ["van der Berg", "J.", "Jr.", "MIT"]]},
            ["C. Balázs", "J. van der Berg Jr."],
        ),
        ({"authors_parsed": [["CDF Team", "", ""], ["Aaltonen", "T.", ""]]}, ["CDF Team", "T. Aaltonen"]),
        ({"authors": "Y. H. Pong (1) and C. K. Law (2) ((1) Department of A, B, (2) C)"}, ["Y. H. Pong", "C. K. Law"]),
        (
            {"authors": "BES Collaboration: M. Ablikim,\n  J. Z. Bai, and X. Li, et al."},
            ["BES Collaboration", "M. Ablikim", "J. Z. Bai", "X. Li"],
        ),
        ({"authors": "Ann Lee, Jr., Bo Rand"}, ["Ann Lee, Jr.", "Bo Rand"]),
        ({"authors": ["Ann Lee", "Bo  Rand"]}, ["Ann Lee", "Bo Rand"]),
        ({"authors": None}, []),
        ({}, []),
        ({"authors_parsed": [["Collaboration"], [], ["Lee", "Ann"]]}, ["Collaboration", "Ann Lee"]),
        ({"authors_parsed": "[['Lee', 'Ann', '']]", "authors": "Ann Lee"}, ["Ann Lee"]),  # as a CSV holds it
        ({"authors_parsed": [None], "authors": 5}, []),
    ],
)
def test_the_people_of_a_paper(record: dict, people: list[str]) -> None:
    assert papers.arxiv_people(record) == people


@pytest.mark.parametrize(
    ("by", "authors"),
    [
        ("Lee, Ann; Bo Rand", ["ann_lee", "bo_rand"]),
        (["Ann Lee", "Bo Rand"], ["ann_lee", "bo_rand"]),
        (17, ["17"]),
        ("Anonymous", []),
        (None, []),
    ],
)
def test_an_author_of_a_table_is_a_name_a_number_or_a_list_and_anonymous_is_nobody(by: object, authors: list) -> None:
    row = table_row(by=by)
    assert (list(row["authors"]), row["anonymous"]) == (authors, not authors)


def run_here(draft, items, make, arguments, **_) -> None:
    process, done = make(*arguments), draft.finished_shards()
    for index, item in enumerate(items):
        if index not in done:
            draft.write_shard(index, process(item))


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards of both steps in this process."""
    monkeypatch.setattr(labelled, "run_shards", run_here)
    monkeypatch.setattr(chunk, "run_shards", run_here)


# Lee writes with Rand, as does somebody who signs "A. Lee"; two papers name nobody; the last is the first again.
PEOPLE = ["Ann Lee", "Ann Lee and Bo Rand", "A. Lee", "Cy Dole", "Di Esk", None, "", "Ed Foy", "Gil Ham", "Ann Lee"]


def papers_folder(folder: Path) -> Path:
    """A snapshot of ten papers with whole texts."""
    folder.mkdir()
    topics = [*tiny.TOPICS, *tiny.TOPICS][:9]
    texts = [" ".join(tiny.book(topic, f"p{i}", 40, seed=i).split()) for i, topic in enumerate(topics)]
    rows = [
        {
            "id": f"0704.{i:04d}",
            "title": f"On {i}",
            "abstract": "Short.",
            "text": text,
            "authors": by,
            "categories": "a.B",
        }
        for i, (text, by) in enumerate(zip([*texts, texts[0]], PEOPLE, strict=True))
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def check_chunks_of_papers(folder: Path, root: Path) -> None:
    """By the steps themselves: papers of one author, or of who may be one, or of one text, share a split."""
    where = f"runtime.root={root}"
    given = ["name=p", "source.kind=full_text", f"source.folder={folder}", where]
    made = arxiv.run(config.load(arxiv.CONFIG, None, given))
    assert made.manifest["rows_out"] == 10
    words = ["name=c", "documents=p", "english=false", "size=8", "split.method=balanced", where]
    rows = chunk.run(config.load(chunk.CONFIG, None, words)).read().to_pylist()
    texts = {row["document_id"]: row["text"] for row in made.read().to_pylist()}
    assert all(texts[row["document_id"]][row["start"] : row["end"]] == row["text"] for row in rows)
    found = {int(row["document_id"][5:]): row for row in rows}
    assert sorted(found) == list(range(10))
    assert {found[i]["author_group"] for i in (0, 1, 2, 9)} == {"author:a_lee"}
    assert len({found[i]["split"] for i in (0, 1, 2, 9)}) == 1
    assert [found[i]["anonymous"] for i in range(10)] == [not name for name in PEOPLE]
    assert found[5]["author_group"] != found[6]["author_group"]  # nobody is no author
    assert found[9]["work_id"] == found[0]["document_id"]


def test_papers_become_chunks_with_their_authors_in_one_split(tmp_path: Path, serial: None) -> None:
    check_chunks_of_papers(papers_folder(tmp_path / "papers"), tmp_path / "root")


@pytest.mark.ray
def test_papers_become_chunks_through_the_steps_on_ray(tmp_path: Path, local_ray: None) -> None:
    check_chunks_of_papers(papers_folder(tmp_path / "papers"), tmp_path / "root")


def test_a_data_set_names_its_authors_and_titles_by_column(tmp_path: Path, serial: None) -> None:
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


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12)), st.integers(1, 40))
def test_ranges_of_bytes_give_each_line_once(tmp_path_factory: pytest.TempPathFactory, lines: list, step: int) -> None:
    folder = tmp_path_factory.mktemp("lines")
    data = "\n".join(lines).encode()
    (folder / "a.jsonl").write_bytes(data)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data))
    wanted = [line for line in data.split(b"\n") if line.strip()]
    for file in ("a.jsonl", "a.jsonl.gz"):
        storage = Storage(str(folder))
        size, _ = streams.readable_size(storage, file)
        found = [pair for at in range(0, size, step) for pair in readers.json_lines(storage, file, at, at + step)]
        assert [line.rstrip(b"\n") for _, line in found] == wanted
        assert all(data[place : place + len(line)] == line for place, line in found)


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"id": "x" * 500}).encode() * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="a.jsonl.gz: cut off or not gzip"):
        readers.cut(Storage(str(tmp_path)), ["a.jsonl.gz"], 1000, strict=True)


def read(step: ModuleType, given: list[str]) -> list[papers.Row]:
    """All shards in this process, as the workers would make them."""
    made: list[papers.Row] = []

    def make(settings: object, items: list, content: str, open_source: Callable) -> None:
        process = labelled.shards(settings, open_source)
        made.extend(row for item in items for row in process(item).table.to_pylist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "make", make)
        step.run(config.load(step.CONFIG, None, ["name=x", *given]))
    return made


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


def test_a_paper_is_its_abstract_or_its_full_text(tmp_path: Path) -> None:
    record = {"id": "1", "title": "On this", "abstract": "and that", "categories": "cs.LG", "text": "Long ago\n ..."}
    lines = [record, {**record, "id": "2", "text": None}, {**record, "id": "3", "abstract": ""}]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, lines)))
    given = [f"source.folder={tmp_path}"]
    texts = {row["document_id"]: row["text"] for row in read(arxiv, ["source.kind=metadata", *given])}
    assert texts == {"1": "On this\n\nand that", "2": "On this\n\nand that"}
    rows = read(arxiv, ["source.kind=full_text", *given])
    assert {row["document_id"]: row["text"] for row in rows} == {"1": "Long ago\n ...", "3": "Long ago\n ..."}
    assert rows[0]["title"] == "On this" and rows[0]["categories"] == ["cs.LG"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared papers")
def test_every_shared_paper_has_its_categories() -> None:
    given = [f"source.folder={SHARED}"]
    whole = read(arxiv, ["source.kind=full_text", 'source.files=["arxiv_fulltext_sample.jsonl.gz"]', *given])
    assert len(whole) == 32 and sum(len(row["text"]) for row in whole) > 10**6
    short = read(arxiv, ["source.kind=metadata", 'source.files=["arxiv_fulltext_sample.jsonl.gz"]', *given])
    assert [row["categories"] for row in short] == [row["categories"] for row in whole]


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
    tmp_path: Path, serial: None, monkeypatch: pytest.MonkeyPatch
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
