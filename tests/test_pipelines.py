"""From a folder as people have it to chunks: what is kept, what is dropped and why, and what counts as one work."""

import random
from pathlib import Path

import pytest
import tiny

from pipelines import chunk, documents
from quire.artifact import Artifact

pytestmark = pytest.mark.ray

LICENCE = "*** END OF THE PROJECT GUTENBERG EBOOK {title} ***\n\nSTART: FULL LICENSE\n\nThe Project Gutenberg licence."


def gutenberg_file(author: str, title: str, text: str, encoding: str = "UTF-8") -> str:
    head = f"The Project Gutenberg EBook of {title}, by {author}\n\nTitle: {title}\n\nAuthor: {author}\n\n"
    rest = f"Language: English\n\nCharacter set encoding: {encoding}\n\n"
    mark = f"*** START OF THE PROJECT GUTENBERG EBOOK {title} ***\n\n"
    return head + rest + mark + text + "\n\n" + LICENCE.format(title=title)


def another_edition(text: str) -> str:
    """The same book with one word in sixty misprinted."""
    draw = random.Random(0)
    return " ".join(word[::-1] if draw.random() < 1 / 60 else word for word in text.split(" "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.write_books(tmp_path_factory.mktemp("corpus"), authors=6, books=2)
    storm = tiny.book("sea", "storm", 200)
    (made / "gutenberg").mkdir()
    files = {
        "gutenberg/1.txt": gutenberg_file("Ann Author", "The Storm", storm).encode(),
        "gutenberg/1-again.txt": gutenberg_file("Ann Author", "The Storm", storm).encode(),  # downloaded twice
        "gutenberg/other-edition.txt": gutenberg_file("Author, A.", "Storm", another_edition(storm)).encode(),
        "gutenberg/latin.txt": gutenberg_file(
            "Zo\xeb Writer", "Caf\xe9", tiny.book("love", "cafe", 90) + "\nA caf\xe9.\n", "ISO-8859-1"
        ).encode("latin-1"),
        "empty.txt": b"",
        "picture.txt": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01",
        "deutsch.txt": ("Der Hund und die Katze sind nicht mit dem Haus auf einer Wiese. " * 80).encode(),
        "notes.md": b"not a book",
    }
    for name, data in files.items():
        (made / name).write_bytes(data)
    return made


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Artifact, Artifact]:
    runtime = {"root": str(tmp_path_factory.mktemp("root"))}
    source = {"kind": "folder", "folder": str(folder)}
    first = documents.run(documents.DocumentsConfig(name="b", source=source, runtime=runtime))
    settings = chunk.ChunkConfig(
        name="b", documents="b", size=6, overlap=2, split={"method": "balanced"}, runtime=runtime
    )
    return first, chunk.run(settings)


def test_every_file_is_kept_or_dropped_for_a_reason(made: tuple[Artifact, Artifact]) -> None:
    rows = made[0].read().to_pylist()
    assert made[0].manifest["dropped"] == {"empty": 1, "binary": 1, "not_english": 1}
    assert made[0].manifest["rows_in"] == len(rows) + 3
    assert len(rows) == 12 + 4
    latin = next(row for row in rows if row["source"] == "gutenberg/latin.txt")
    assert (latin["author_name"], latin["title"], latin["text"].split()[-1]) == ("Zo\xeb Writer", "Caf\xe9", "caf\xe9.")
    assert not any("Gutenberg" in row["text"] for row in rows)


def test_repeated_downloads_and_other_editions_are_one_work_in_one_split(made: tuple[Artifact, Artifact]) -> None:
    rows = made[1].read().to_pylist()
    storms = [row for row in rows if row["document_id"].startswith(("gutenberg/1", "gutenberg/other"))]
    assert len({row["document_id"] for row in storms}) == 3
    assert len({row["work_id"] for row in storms}) == len({row["split"] for row in storms}) == 1
    assert len({row["work_id"] for row in rows}) == 12 + 2
    splits_of = {}
    for row in rows:
        splits_of.setdefault(row["author"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits_of.values())


def test_every_author_is_tested_in_one_fold_and_shares_it_with_nobody_who_trains(
    made: tuple[Artifact, Artifact],
) -> None:
    documents_made = made[0]
    options = {"method": "balanced", "shares": {"train": 0.7, "validation": 0.3, "calibration": 0, "test": 0}}
    tested: list[str] = []
    for fold in range(3):
        split = options | {"num_folds": 3, "fold": fold}
        runtime = {"root": documents_made.storage.root}
        settings = chunk.ChunkConfig(
            name=f"fold-{fold}", documents="b", size=6, overlap=2, split=split, runtime=runtime
        )
        table = chunk.run(settings).read(["author_group", "split"])
        groups = {split: set() for split in ("train", "validation", "test")}
        for row in table.to_pylist():
            groups[row["split"]].add(row["author_group"])
        assert all(groups.values()) and sum(map(len, groups.values())) == len(set().union(*groups.values()))
        tested += groups["test"]
    assert sorted(tested) == sorted({row["author_group"] for row in made[1].read(["author_group"]).to_pylist()})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"num_folds": 3}, "fold = None: give both or neither"),
        ({"num_folds": 3, "fold": 3}, "folds are numbered 0 to 2"),
        ({"num_folds": 3, "fold": 0}, "set shares.test = 0"),
    ],
)
def test_folds_that_make_no_sense_are_refused(split: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunk.Split(**split)


def test_offsets_of_every_chunk_reproduce_its_text(made: tuple[Artifact, Artifact]) -> None:
    texts = {row["document_id"]: row["text"] for row in made[0].read().to_pylist()}
    rows = made[1].read().to_pylist()
    assert all(texts[row["document_id"]][row["start"] : row["end"]] == row["text"] for row in rows)
    assert all(row["text"].rstrip()[-1] in ".!?" for row in rows)
