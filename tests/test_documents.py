"""Who wrote a file, what is dropped and why, and which losses stop the run; without a cluster."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny

from pipelines import chunk, documents
from quire import config, metrics, pairs, splits, strata
from quire.artifact import Artifact, Shard
from quire.decode import decode
from quire.errors import UserError
from quire.gutenberg_header import Header, parse_header
from quire.identity import identify, read_manifest
from quire.storage import Storage

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"
HEADER_BYTES = 20_000  # a book's header ends before that
PROSE = "It was the best of times and it was the worst of times, as all of them had known it would be.\n\n"
LICENCE = "*** END OF THE PROJECT GUTENBERG EBOOK ***\n\n" + "The Project Gutenberg licence of this eBook.\n\n" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "books"
    (made / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/a.txt", "sub/B.TXT"):
        (made / name).write_text(PROSE * 60)
    return made


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards as workers make them, one after another."""

    def run_shards(draft, items, make, arguments, **_) -> None:
        process, done = make(*arguments), draft.finished_shards()
        for index, item in enumerate(items):
            if index not in done:
                draft.write_shard(index, process(item))

    monkeypatch.setattr(documents, "run_shards", run_shards)
    monkeypatch.setattr(chunk, "run_shards", run_shards)


def settings(folder: Path, **changes: object) -> documents.DocumentsConfig:
    source = {"kind": "folder", "folder": str(folder), **changes.pop("source", {})}
    values = {"name": "b", "source": source, "runtime": {"root": str(folder.parent / "root")}, **changes}
    return config.build(documents.DocumentsConfig, values, source="test")


def made(folder: Path, **changes: object) -> Artifact:
    return documents.run(settings(folder, **changes))


def test_the_suffix_is_read_in_any_case(folder: Path) -> None:
    assert made(folder).read()["document_id"].to_pylist() == ["a", "sub/b", "sub/a"]


def test_an_unreadable_file_is_dropped_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(self: Storage, relative: str, read=Storage.read_bytes) -> bytes:
        if relative == "sub/a.txt":
            raise PermissionError("locked")
        return read(self, relative)

    monkeypatch.setattr(Storage, "read_bytes", locked)
    monkeypatch.setattr(Storage, "sha256", lambda self, relative: locked(self, relative) and "0")
    found = made(folder)
    assert found.manifest["dropped"] == {"unreadable": 1}
    assert found.manifest["rows_in"] == 3


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        (LICENCE, {"empty": 1}),
        ("Der Hund und die Katze sind nicht hier, wo das Haus ist.\n\n" * 12 + LICENCE, {"not_english": 1}),
        (PROSE + LICENCE, {}),
    ],
)
def test_a_book_that_cleaning_nearly_empties_stops_the_run_until_it_is_allowed(
    folder: Path, text: str, dropped: dict[str, int]
) -> None:
    (folder / "lost.txt").write_text(text)
    with pytest.raises(UserError, match=r"1 document\(s\) kept less than min_kept = 0.5.*'lost' "):
        made(folder)
    for changes in ({"allow_losses": ["lost"]}, {"min_kept": 0.0}):
        found = made(folder, **changes)
        assert (found.manifest["rows_in"], found.manifest["dropped"]) == (4, dropped)
    with pytest.raises(UserError, match="allow_losses"):
        made(folder)  # what is published is not what is asked for, either


def test_a_book_mended_after_a_loss_is_read_again(folder: Path) -> None:
    (folder / "lost.txt").write_text(LICENCE)
    with pytest.raises(UserError, match="look at the file"):
        made(folder)
    (folder / "lost.txt").write_text(PROSE * 60)
    assert made(folder).manifest["rows_out"] == 4


def test_a_foreign_book_is_dropped_however_much_of_it_is_licence(folder: Path) -> None:
    head = (
        "The Project Gutenberg EBook of Faust\n\nLanguage: German\n\n*** START OF THE PROJECT GUTENBERG EBOOK ***\n\n"
    )
    (folder / "faust.txt").write_text(head + "Habe nun, ach!\n\n" + LICENCE)
    assert made(folder).manifest["dropped"] == {"not_english": 1}


def test_other_shards_under_the_same_name_are_refused(folder: Path) -> None:
    made(folder)
    with pytest.raises(UserError, match="source.shard_bytes: 4194304 there, 1 asked for"):
        made(folder, source={"shard_bytes": 1})


def test_a_moved_folder_is_the_same_corpus(folder: Path) -> None:
    first = made(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    assert made(moved).manifest == first.manifest
    assert str(moved) not in repr(documents.TextFiles(settings(moved)).shards())  # nor does it hinder a resumed run


def test_the_manifest_tells_files_of_one_name_apart(folder: Path) -> None:
    rows = [
        {"file": "a.txt", "author": "Ann One", "title": "First"},
        {"file": "./sub/a.txt", "author": "Two, Bob; Cy Three"},
        {"file": "B.TXT", "title": "Third", "year": 1900},
    ]
    (folder / "list.txt").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = made(folder, source={"manifest": "list.txt"}).read().to_pylist()
    assert {row["source"]: (row["author_name"], row["authors"], row["title"]) for row in found} == {
        "a.txt": ("Ann One", ["ann_one"], "First"),
        "sub/a.txt": ("Bob Two; Cy Three", ["bob_two", "cy_three"], "a"),
        "sub/B.TXT": ("sub", ["sub"], "Third"),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{file: 1}", "line 2: not JSON"),
        (b'{"file": "\xff"}', "line 2: not JSON"),
        (b"[1]", 'line 2: no "file"'),
        (b'{"author": "A"}', 'line 2: no "file"'),
        (b'{"file": "c.txt"}', "line 2: file = 'c.txt': there is no such file"),
        (b'{"file": "other/a.txt"}', "line 2: file = 'other/a.txt': there is no such file"),
        (b'{"file": "b.txt"}', "line 2: file = 'b.txt': 2 files have that name, such as 'x/b.txt'"),
        (b'{"file": "a.txt"}', "line 2: a second row for 'a.txt'"),
        (b'{"file": "x/b.txt", "author": ["A"]}', r"line 2: author = \['A'\]: give a string"),
    ],
)
def test_a_bad_row_of_the_manifest_is_named_with_its_line(line: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"list.jsonl, {message}"):
        read_manifest(b'{"file": "a.txt"}\n' + line, ["a.txt", "x/b.txt", "y/b.txt"], "list.jsonl")


def test_authors_are_slugs_of_those_with_a_name_in_any_order() -> None:
    together = [
        identify("x.txt", Header(), {"author": author})
        for author in ("Dickens, Charles and Wilkie Collins", "Wilkie Collins; Charles Dickens")
    ]
    assert {found.author for found in together} == {"charles_dickens_wilkie_collins"}
    assert {frozenset(found.authors) for found in together} == {frozenset(["charles_dickens", "wilkie_collins"])}
    assert identify("x.txt", Header(), {}) == ("x", "", ())
    assert identify("Various/x.txt", Header(authors=("Anonymous", "Ann Lee")), {}).authors == ("ann_lee",)


def test_authors_are_all_whom_header_manifest_and_file_name_state_and_the_header_s_are_shown() -> None:
    header, stated = Header(title="Jane Eyre", authors=("Currer Bell",)), {"author": "Brontë, Charlotte"}
    every = ("currer_bell", "charlotte_bronte")
    for file, row in (("jane.txt", stated), ("charlotte_bronte__jane.txt", {}), ("charlotte_bronte__jane.txt", stated)):
        found = identify(file, header, row)
        assert (found.author_name, found.author, found.authors) == ("Currer Bell", "currer_bell", every)
    assert identify("novels/jane.txt", header, {}).authors == identify("novels/b__jane.txt", header, {}).authors
    assert identify("novels/jane.txt", header, {}).authors == ("currer_bell",)  # a folder may be a shelf
    nobody = identify("various__x.txt", Header(authors=("Anonymous",)), {"author": "Ann Lee"})
    assert nobody.authors == ("ann_lee",) and nobody.columns()["anonymous"] and nobody.author == "anonymous"


@pytest.mark.parametrize("manifest", [True, False])
def test_every_author_of_the_shared_books_is_in_one_group(manifest: bool) -> None:
    if not BOOKS.is_dir():
        pytest.skip(f"no novels at {BOOKS}")
    rows = [json.loads(line) for line in (BOOKS / "manifest.jsonl").read_text("utf-8").splitlines()]
    authors = []
    for row in rows:
        with (BOOKS / row["file"]).open("rb") as file:
            head = b"".join(file.readlines(HEADER_BYTES))
        header = parse_header(decode(head).text)
        authors.append(identify(row["file"], header, row if manifest else {}).authors)
    groups = splits.split_groups(authors, [row["file"] for row in rows])
    found = {(row["author_slug"], group) for row, group in zip(rows, groups, strict=True)}
    assert len(rows) > 60 and len(found) == len({slug for slug, _ in found}) == len({group for _, group in found})


def test_authors_who_wrote_together_never_straddle_splits(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    people = ["Collins", "Dickens", "Dickens and Collins", "Gaskell", "Eliot", "Hardy"]
    for topic, author in zip(tiny.TOPICS, people, strict=True):
        (tmp_path / "books" / f"{author}__{topic}.txt").write_text(tiny.book(topic, author, 60))
    made(tmp_path / "books", english=False)
    values = {"name": "b", "documents": "b", "english": False, "size": 6, "split": {"method": "balanced"}}
    values |= {"runtime": {"root": str(tmp_path / "root")}}
    rows = chunk.run(config.build(chunk.ChunkConfig, values, source="test")).read().to_pylist()
    assert {(row["author"], row["author_group"]) for row in rows} == {
        *((author, "author:collins") for author in ("collins", "dickens", "collins_dickens")),
        *((author, f"author:{author}") for author in ("gaskell", "eliot", "hardy")),
    }
    assert len({row["split"] for row in rows if row["author_group"] == "author:collins"}) == 1


def test_two_anonymous_works_have_two_authors_in_strata_and_intervals(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for topic, author in zip(tiny.TOPICS, ["Various", "Various", "Anonymous", "Ann Lee", "Bo", "Cy"], strict=True):
        (tmp_path / "books" / f"{author}__{topic}.txt").write_text(tiny.book(topic, topic, 60))
    made(tmp_path / "books", english=False)
    values = {"name": "b", "documents": "b", "english": False, "size": 6, "split": {"method": "balanced"}}
    values |= {"runtime": {"root": str(tmp_path / "root")}}
    chunks = chunk.run(config.build(chunk.ChunkConfig, values, source="test")).read()
    assert len(chunks["author"].unique()) == len(chunks["work_id"].unique()) == 6
    drawn, _ = pairs.sample_pairs(chunks, {}, seed=1)
    two_works = np.asarray(drawn["work_a"]) != np.asarray(drawn["work_b"])
    assert two_works.any() and (strata.by_others(drawn) == two_works).all()
    authors, works = ([*drawn[f"{what}_a"].to_pylist(), *drawn[f"{what}_b"].to_pylist()] for what in ("author", "work"))
    assert len(set(zip(authors, works, strict=True))) == len(set(authors)) == 6  # what the bootstrap draws
    scores = np.random.default_rng(0).normal(size=drawn.num_rows)
    one = ["anonymous" if name.startswith("anonymous") else name for name in authors]
    apart, together = (
        metrics.author_bootstrap(drawn["label"].to_numpy(), scores, names[: len(scores)], names[len(scores) :])
        for names in (authors, one)
    )
    assert apart != together


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: chunk.ChunkConfig(name="c", documents="d", size=4, overlap=4), "overlap = 4: give fewer"),
        (lambda: chunk.Shares(train=0.9), "shares add up to 1.3"),
        (lambda: documents.Docstrings(min_chars=5, max_chars=4), "min_chars = 5: give at most max_chars = 4"),
        (lambda: config.Runtime(num_workers=0), "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_show_when_they_are_read(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_documents_without_the_columns_are_refused(tmp_path: Path) -> None:
    draft = documents.artifact.begin(str(tmp_path), "documents", "old", recipe={}, inputs={})
    draft.write_shard(0, Shard(table=pa.table({"document_id": ["a"]})))
    draft.publish(num_shards=1)
    values = {"name": "c", "documents": "old", "runtime": {"root": str(tmp_path)}}
    with pytest.raises(UserError, match="no column 'anonymous': an older version made it; make it again"):
        chunk.run(config.build(chunk.ChunkConfig, values, source="test"))
