"""Mined negatives join the training pairs in the share asked for, and leave every other pair as it was."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_mine_step import books, corpus, publish, serially

from pipelines import mine, neighbors
from pipelines import pairs as step
from quire import artifact, config, hub, mining, schema
from quire.artifact import Artifact
from quire.errors import UserError
from quire.mined_pairs import mined_pairs
from quire.pairs import sample_pairs
from quire.training_sets import mined_negatives


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one after another in this process."""
    for module in (mine, neighbors, step):
        monkeypatch.setattr(module, "run_shards", serially)


def settings(module: Any, root: Path, **changes: Any) -> Any:
    given = {"name": "p", "chunks": "c", "runtime": {"root": str(root)}}
    return config.build(module.CONFIG, given | changes, "test")


def mined(root: Path) -> Artifact:
    """Chunks, embeddings, neighbours and mined negatives of 30 works."""
    corpus(root, books(num_works=30, num_chunks=12))
    neighbors.run(settings(neighbors, root, embeddings="e"))
    return mine.run(settings(mine, root, name="m", embeddings="e", duplicate_share=0.0, num_negatives=9))


def test_only_training_pairs_change_and_by_mined_ones_alone(tmp_path: Path, serial: None) -> None:
    negatives = mined(tmp_path)
    plain = step.run(settings(step, tmp_path, neighbors="p"))
    more = step.run(settings(step, tmp_path, name="more", neighbors="p", negatives="m", mined_share=0.4))
    differing = [name for name, file in more.manifest["files"].items() if plain.manifest["files"][name] != file]
    assert differing == ["part-00000.parquet"]  # the training split
    before, after = (made.read() for made in (plain, more))
    train = before["split"].to_pylist().count("train")
    assert after.slice(0, train).equals(before.slice(0, train))
    joined = after.slice(train, after.num_rows - before.num_rows).to_pylist()
    assert {(row["negative_type"], row["split"], row["label"]) for row in joined} == {("ann_mined", "train", 0)}
    found = {(row["chunk_id"], row["negative_id"]) for row in negatives.read().to_pylist()}
    assert all((r["chunk_a"], r["chunk_b"]) in found or (r["chunk_b"], r["chunk_a"]) in found for r in joined)
    sets = [frozenset((row["chunk_a"], row["chunk_b"])) for row in after.to_pylist()]
    assert len(set(sets)) == len(sets)
    counts = more.manifest["facts"]["train"]["counts"]
    assert counts["ann_mined"] / (sum(counts.values()) - counts["positive"]) == pytest.approx(0.4, abs=0.02)
    known = {row["chunk_id"]: row for row in artifact.open_artifact(str(tmp_path), "chunks", "c").read().to_pylist()}
    for row in joined:
        for side in "ab":
            chunk = known[row[f"chunk_{side}"]]
            assert (row[f"work_{side}"], row[f"author_{side}"]) == (chunk["work_id"], chunk["author"])
    split_of = {row[key]: row["split"] for row in known.values() for key in ("chunk_id", "work_id")}
    near = artifact.open_artifact(str(tmp_path), "neighbors", "p").read().to_pylist()
    assert {(row["level"], row["split"]) for row in near} > {("work", "train"), ("chunk", "validation")}
    for row in near:  # another split's would leak into the pairs of this one
        assert row["neighbor_ids"] and {split_of[one] for one in (row["id"], *row["neighbor_ids"])} == {row["split"]}


def test_pairs_without_mining_have_the_recipe_that_they_had_before(tmp_path: Path, serial: None) -> None:
    mined(tmp_path)
    recipe = step.run(settings(step, tmp_path, neighbors="p")).manifest["recipe"]
    known = {"chunks", "neighbors", "num_positives", "num_negatives", "random_share", "neighbor_share", "seed"}
    assert set(recipe) == known


def tables(num_works: int = 8, num_chunks: int = 12) -> tuple[pa.Table, pa.Table]:
    """A chunk table of one split and its drawn pairs."""
    rows = [
        {
            **{"chunk_id": f"w{w}:{i}", "document_id": f"w{w}", "work_id": f"w{w}", "author": f"a{w}"},
            **{"author_group": f"a{w}", "anonymous": False, "start": i * 1000, "end": i * 1000 + 900},
        }
        for w in range(num_works)
        for i in range(num_chunks if w else 4)
    ]
    chunks = pa.Table.from_pylist(rows)
    return chunks, sample_pairs(chunks, {}, num_positives_per_work=10, num_negatives_per_work=20, seed=0)[0]


def negatives(pairs: list[tuple[str, str]]) -> pa.Table:
    rows = [{"chunk_id": a, "negative_id": b, "negative_type": "model_mined"} for a, b in pairs]
    return pa.Table.from_pylist(rows, pa.schema([schema.NEGATIVES.field(name) for name in rows[0]]))


def test_works_get_mined_negatives_in_proportion_to_their_positives() -> None:
    chunks, drawn = tables()
    every = [
        (f"w{w}:{i}", f"w{(w + 1 + j) % 8}:{j}") for w in range(8) for i in range(12 if w else 4) for j in range(4)
    ]
    made, missing = mined_pairs(
        drawn, negatives([pair for pair in every if pair[0] != pair[1]]), chunks, share=1 / 3, seed=0
    )
    ours = {frozenset(pair): pair[0].split(":")[0] for pair in every}
    counts = Counter(ours[frozenset((row["chunk_a"], row["chunk_b"]))] for row in made.to_pylist())
    positives = Counter(drawn.filter(pa.compute.equal(drawn["label"], 1))["work_a"].to_pylist())
    assert positives["w0"] < 10 == positives["w1"]
    assert [counts[work] for work in positives] == list(positives.values())  # 2 drawn, 1 mined a positive
    assert "mined_too_few" not in missing
    assert 0.3 < np.mean([row["chunk_a"].split(":")[0] == ours[frozenset((row["chunk_a"], row["chunk_b"]))]
                          for row in made.to_pylist()]) < 0.7  # fmt: skip


def test_what_was_drawn_before_or_mined_from_both_sides_comes_once_and_is_counted() -> None:
    chunks, drawn = tables()
    row = next(row for row in drawn.to_pylist() if not row["label"])
    found = [(row["chunk_b"], row["chunk_a"]), ("w1:0", "w2:0"), ("w2:0", "w1:0"), ("w3:1", "w4:1")]
    made, missing = mined_pairs(drawn, negatives(found), chunks, share=0.5, seed=0)
    sides = {frozenset((r["chunk_a"], r["chunk_b"])) for r in made.to_pylist()} - {frozenset(("w1:0", "w2:0"))}
    assert sides == {frozenset(("w3:1", "w4:1"))} and made.num_rows == 2
    wanted = drawn.num_rows - drawn["label"].to_pylist().count(1)
    assert missing == {"mined_drawn_before": 1, "mined_from_both_sides": 1, "mined_too_few": wanted - 2}


def test_mistakes_are_named(tmp_path: Path, serial: None) -> None:
    chunks, drawn = tables()
    with pytest.raises(UserError, match="'elsewhere:0' is no training chunk"):
        mined_pairs(drawn, negatives([("w1:0", "elsewhere:0")]), chunks, share=0.5, seed=0)
    with pytest.raises(UserError, match="mined_share = 1"):
        mined_pairs(drawn, negatives([("w1:0", "w2:0")]), chunks, share=1, seed=0)
    mined(tmp_path)
    other = publish(tmp_path, "chunks", "d", [pa.Table.from_pylist(books(5), schema.CHUNKS)], {})
    with pytest.raises(UserError, match="negatives = 'm': mined from chunks 'c', not from 'd'"):
        step.run(settings(step, tmp_path, chunks="d", neighbors="p", negatives="m"))
    with pytest.raises(UserError, match="negatives 'm' are not mined from chunks 'd'"):
        mined_negatives(other, artifact.open_artifact(str(tmp_path), "negatives", "m"))


def test_a_trainer_reads_mined_negatives_by_row(tmp_path: Path, serial: None) -> None:
    made = mined(tmp_path)
    chunks = artifact.open_artifact(str(tmp_path), "chunks", "c")
    ids = chunks.read(["chunk_id"])["chunk_id"].to_pylist()
    found = {ids[row]: [ids[r] for r in rows] for row, rows in mined_negatives(chunks, made).items()}
    expected: dict[str, list[str]] = {}
    for row in made.read().to_pylist():
        expected.setdefault(row["chunk_id"], []).append(row["negative_id"])
    assert found == expected
    with pytest.raises(UserError, match="is not in split 'test'"):
        mined_negatives(chunks, made, "test")


def test_a_trainer_keeps_of_mined_negatives_what_mining_with_its_margin_keeps(tmp_path: Path, serial: None) -> None:
    made = mined(tmp_path)
    chunks = artifact.open_artifact(str(tmp_path), "chunks", "c")
    ids, rows = chunks.read(["chunk_id"])["chunk_id"].to_pylist(), made.read().to_pylist()
    gaps = sorted((row["positive_score"] - row["score"]) / abs(row["positive_score"]) for row in rows)
    margin = float(np.mean(gaps[len(gaps) // 2 - 1 : len(gaps) // 2 + 1]))
    assert gaps[0] < margin < gaps[-1]
    found = mined_negatives(chunks, made, relative_margin=margin)
    kept = {(ids[row], ids[other]) for row, others in found.items() for other in others}
    score = np.asarray([[row["score"], row["positive_score"]] for row in rows], np.float32)
    judged = mining.judge(score[:, :1], score[:, 1], mining.Rules(relative_margin=margin))[:, 0]
    expected = {(r["chunk_id"], r["negative_id"]) for r, j in zip(rows, judged, strict=True) if j == mining.CHOSEN}
    assert kept == expected and 0 < len(kept) < len(rows)


def test_a_model_of_the_root_is_found_by_its_name(tmp_path: Path) -> None:
    draft = artifact.begin(str(tmp_path), "models", "mine", recipe={}, inputs={})
    draft.storage.write_bytes(f"{draft.folder}/model.safetensors", b"weights")
    folder = draft.publish().local()
    assert Path(hub.model_folder("models/mine", str(tmp_path))) == folder
    assert hub.model_folder(str(tmp_path), "elsewhere") == str(tmp_path)
    with pytest.raises(UserError, match="models 'other' .* does not exist"):
        hub.model_folder("models/other", str(tmp_path))
