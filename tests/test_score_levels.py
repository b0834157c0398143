"""Scores of pairs of stretches: the means that they say they are, in shards of any size, as the matcher answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tiny
from matchers import publish_matcher
from pydantic import ValidationError
from tiny_matcher import publish

from pipelines import score
from quire import artifact, chunks, encoder, levels, schema
from quire.errors import UserError
from quire.matcher import TwoStage
from quire.pairs import sample_pairs

SPLITS = ("train", "calibration", "test")


def texts() -> dict[str, str]:
    """Four books by two authors in each split."""
    topics = sorted(tiny.TOPICS)
    return {
        f"{split}{i}": tiny.book(topics[(i + j) % len(topics)], f"{split[:2]}{'abcd'[i]}", 70, seed=i)
        for j, split in enumerate(SPLITS)
        for i in range(4)
    }


def tables() -> tuple[pa.Table, pa.Table]:
    """Chunks and frozen pairs of all splits."""
    rows: list[dict[str, Any]] = []
    for work, text in texts().items():
        author = f"{work[:-1]}-{int(work[-1]) // 2}"
        for chunk in chunks.chunk_text(text, size=6, overlap=2, min_chars=100).chunks:
            ids = {"chunk_id": f"{work}:{chunk.index}", "document_id": work, "work_id": work, "split": work[:-1]}
            ids |= {"author": author, "author_group": author, "anonymous": False}
            place = {"index": chunk.index, "start": chunk.start, "end": chunk.end, "num_sentences": chunk.num_sentences}
            rows.append({**ids, **place, "text": text[chunk.start : chunk.end]})
    made = pa.Table.from_pylist(rows, schema=schema.CHUNKS)
    pairs = []
    for split in SPLITS:
        near = {f"{split}{i}": [f"{split}{(i + 2) % 4}"] for i in range(4)}
        of_split = made.filter(pc.equal(made["split"], split))
        found, _ = sample_pairs(of_split, near, num_positives_per_work=6, num_negatives_per_work=12, seed=0)
        found = found.append_column("split", pa.array([split] * found.num_rows))
        pairs.append(found.select(schema.PAIRS.names).cast(schema.PAIRS))
    return made, pa.concat_tables(pairs)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    folder = tmp_path_factory.mktemp("root")
    made, pairs = tables()
    publish(folder, "chunks", made)
    publish(folder, "pairs", pairs)
    publish_matcher(folder, encoder_folder, prefilter=0.0)
    for name in ("bi", "cross", "older"):
        recipe = {} if name == "older" else {levels.LIE: levels.STRANGERS}
        artifact.begin(str(folder), "models", name, recipe=recipe, inputs={}).publish()
    return str(folder)


def settings(root: str, encoder_folder: str, **changes: Any) -> score.ScoreConfig:
    values = {"chunks": "tiny", "pairs": "tiny", "bi_encoder": "bi", "cross_encoder": "cross"}
    values |= {"untrained": encoder_folder, "runtime": {"root": root}}
    levels_of = {"levels": (1, 2, 3), "num_level_pairs": 18, "max_cross_pairs": 2}
    return score.ScoreConfig(name="p", **values | levels_of | changes)


def scorer(root: str, encoder_folder: str, **changes: Any) -> score.Scorer:
    kinds = {"chunks": "tiny", "pairs": "tiny"}
    inputs = {kind: artifact.open_artifact(root, kind, name) for kind, name in kinds.items()}
    inputs |= {f"{name}_encoder": artifact.open_artifact(root, "models", name) for name in ("bi", "cross")}
    return score.Scorer(inputs, settings(root, encoder_folder, **changes))


@pytest.fixture(scope="module")
def whole(root: str, encoder_folder: str) -> tuple[score.Scorer, list[dict[str, Any]]]:
    """A scorer, and the test split's pairs of stretches in one shard."""
    made = scorer(root, encoder_folder)
    table = made(("stretches", "test", 0)).table
    assert tuple(table.column_names) == score.COLUMNS
    return made, table.to_pylist()


def stretch(root: str, row: dict[str, Any], side: str) -> list[dict[str, Any]]:
    table = artifact.open_artifact(root, "chunks", "tiny").read()
    first = pc.index(table["chunk_id"], row[f"chunk_{side}"]).as_py()
    return table.slice(first, row[f"num_{side}"]).to_pylist()


def passages(root: str, row: dict[str, Any], side: str) -> list[str]:
    """Texts of the chunks that are read: evenly spaced over the stretch."""
    chunks = stretch(root, row, side)
    return [chunks[(2 * place + 1) * len(chunks) // (2 * row["k"])]["text"] for place in range(row["k"])]


def test_scores_are_of_all_cells_and_the_cross_encoder_reads_the_telling_ones(
    whole: tuple[score.Scorer, list[dict[str, Any]]], root: str
) -> None:
    made, rows = whole
    assert {row["k"] for row in rows} == {2, 3} and {row["label"] for row in rows} == {0, 1}
    for row in [
        next(row for row in rows if row["k"] == k and row["label"] == label) for k in (2, 3) for label in (0, 1)
    ]:
        a, b = (passages(root, row, side) for side in "ab")
        couples = [(x, y) for x in a for y in b]
        bi = made.bi.score(*zip(*couples, strict=True))
        apart = [
            (side[i], side[j])
            for side in (a, b)
            for i in range(row["k"])
            for j in range(row["k"])
            if abs(i - j) > (row["k"] > 2)
        ]
        own = made.bi.score(*zip(*apart, strict=True))
        assert row["bi_encoder"] == pytest.approx((bi.mean() + 1) / (max(np.mean(own), 0) + 1), abs=1e-5)
        vectors = encoder.encode(made.untrained, [*a, *b])
        assert row["untrained"] == pytest.approx(float((vectors[: len(a)] @ vectors[len(a) :].T).mean()), abs=1e-5)
        for name, values in made.classical.scores(*zip(*couples, strict=True)).items():
            assert row[name] == pytest.approx(values.mean(), abs=1e-5)
        cells = levels.cells(bi.reshape(len(a), len(b)), 2)
        cross = made.cross.logits([(a[i], b[j]) for i, j in cells])
        assert row["cross_encoder"] == pytest.approx(cross.mean(), abs=1e-4)


def test_shards_of_any_size_hold_the_same_pairs_and_scores(
    whole: tuple[score.Scorer, list[dict[str, Any]]], root: str, encoder_folder: str
) -> None:
    made, rows = whole
    made.settings = settings(root, encoder_folder, shard_size=11)
    found = [row for start in range(0, len(rows), 11) for row in made(("stretches", "test", start)).table.to_pylist()]
    assert [(row["k"], row["pair_id"]) for row in found] == [(row["k"], row["pair_id"]) for row in rows]
    for name in score.SYSTEMS:
        np.testing.assert_allclose([row[name] for row in found], [row[name] for row in rows], atol=1e-4)


def test_the_matcher_reads_the_text_of_a_stretch_as_its_level_was_scored(
    whole: tuple[score.Scorer, list[dict[str, Any]]], root: str
) -> None:
    _, rows = whole
    two_stage, books = TwoStage.open(f"{root}/models/m"), texts()
    for row in rows[:6]:
        sides = [stretch(root, row, side) for side in "ab"]
        pair = tuple(books[side[0]["document_id"]][side[0]["start"] : side[-1]["end"]] for side in sides)
        assert [len(text) for text in pair] == [row["chars_a"], row["chars_b"]]
        (found,) = two_stage.match([pair])
        level = two_stage.spec.level(row["k"])
        assert found.k == row["k"] and found.calibrated
        expected = level.fusion.probability(row["cross_encoder"], row["bi_encoder"])
        assert found.probability == pytest.approx(float(expected), abs=1e-4)


def test_single_chunks_are_level_one_and_know_their_lengths(
    whole: tuple[score.Scorer, list[dict[str, Any]]], root: str
) -> None:
    made, _ = whole
    made.settings = made.settings.model_copy(update={"shard_size": 5})
    table = made(("chunks", "test", 5)).table
    assert tuple(table.column_names) == score.COLUMNS and table["k"].to_pylist() == [1] * 5
    for row in table.to_pylist():
        assert row["chars_a"] == len(stretch(root, row, "a")[0]["text"])


@pytest.mark.parametrize("wrong", [(2, 5), (1, 5, 2), (1, 1), ()])
def test_levels_rise_from_one(wrong: tuple[int, ...], root: str, encoder_folder: str) -> None:
    with pytest.raises(ValidationError, match="rising from 1"):
        settings(root, encoder_folder, levels=wrong)


def test_a_bi_encoder_whose_strangers_lie_elsewhere_is_refused(root: str, encoder_folder: str) -> None:
    with pytest.raises(UserError, match="bi_encoder = 'older': .* train it again under another name"):
        score.run(settings(root, encoder_folder, bi_encoder="older"))


@pytest.mark.ray
def test_the_step_publishes_all_levels_and_tells_what_is_missing(
    root: str, encoder_folder: str, local_ray: None, tmp_path: Path
) -> None:
    made = score.run(settings(root, encoder_folder, shard_size=20))
    table = made.read()
    assert levels.scored(table) == [1, 2, 3] and set(table["split"].to_pylist()) == {"calibration", "test"}
    frozen = artifact.open_artifact(root, "pairs", "tiny").read()
    single = levels.of_level(table, 1)["pair_id"].to_pylist()
    assert single == [
        row["pair_id"] for split in ("calibration", "test") for row in frozen.to_pylist() if row["split"] == split
    ]
    for split in ("calibration", "test"):
        of_split = table.filter(pc.equal(table["split"], split))
        for k in (2, 3):
            counts = made.manifest["facts"]["stretches"][split][str(k)]["counts"]
            assert sum(counts.values()) == levels.of_level(of_split, k).num_rows
