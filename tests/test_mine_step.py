"""Embeddings to negatives: what brute force gives, however the work is cut or killed; false negatives come to light."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny

from pipelines import index as index_step
from pipelines import mine as step
from quire import artifact, config, mining, schema, works
from quire import index as indexes
from quire.artifact import Artifact, Draft, Shard
from quire.errors import UserError
from quire.storage import Storage

DIM = 8
TOPICS = sorted(tiny.TOPICS)


def serially(draft: Draft, items: list, make: Any, arguments: tuple, **_: Any) -> None:
    process = make(*arguments)
    for number in sorted(set(range(len(items))) - set(draft.finished_shards()), reverse=True):
        draft.write_shard(number, process(items[number]))


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one after another in this process, the last first."""
    monkeypatch.setattr(step, "run_shards", serially)
    monkeypatch.setattr(index_step, "run_shards", serially)


def books(num_works: int = 12, num_chunks: int = 9) -> list[dict]:
    """Rows of schema.CHUNKS: works of one or two documents, three works an author, one author in four anonymous; every
    fifth work is not for training; chunk i of a document overlaps the next and nearly touches the one behind it."""
    rows = []
    for w in range(num_works):
        author, anonymous = f"a{w // 3}", w // 3 == 3
        for d in range(1 + w % 2):
            words = tiny.book(TOPICS[w % len(TOPICS)], f"w{w}d{d}", 3 * num_chunks).split()
            for i in range(num_chunks - w % 3):
                document, text = f"w{w:02d}.{d}", " ".join(words[12 * i : 12 * i + 20])
                group = f"w{w:02d}" if anonymous else author
                split = "validation" if w % 5 == 4 else "train"
                values = [f"{document}:{i}", document, f"w{w:02d}", author, group, anonymous, split, i, 600 * i]
                rows.append(dict(zip(schema.CHUNKS.names, [*values, 600 * i + 1000, 5, text], strict=True)))
    return rows


def publish(
    root: Path, kind: str, name: str, tables: list[pa.Table], inputs: dict, facts: dict | None = None
) -> Artifact:
    draft = artifact.begin(str(root), kind, name, recipe={}, inputs=inputs)
    if draft.published:
        return draft.published
    for number, table in enumerate(tables):
        draft.write_shard(number, Shard(table=table, rows_in=table.num_rows))
    return draft.publish(facts=facts)


def corpus(
    root: Path, rows: list[dict] | None = None, seed: int = 0, name: str = "e", ties: bool = True
) -> tuple[Artifact, Artifact]:
    """Chunks and embeddings in two parts. Vectors have few values, so that many cosines tie; some chunks have none."""
    rows = rows or books()
    middle = next(i for i, row in enumerate(rows) if row["work_id"] == "w06")
    parts = [rows[:middle], rows[middle:]]
    tables = [pa.Table.from_pylist(part, schema.CHUNKS) for part in parts]
    chunks = publish(root, "chunks", "c", tables, {})
    vectors = []
    for number, part in enumerate(parts):
        draw = np.random.default_rng([seed, number])
        found = draw.choice([-1.0, 0.0, 1.0], (len(part), DIM)).astype(np.float32)
        found[:, 0] = 2  # no vector is zero
        if not ties:
            found = draw.standard_normal(found.shape).astype(np.float32)
        kept = [i for i in range(len(part)) if i % 7 != 6]
        columns = [[part[i]["chunk_id"] for i in kept], schema.lists(found[kept]), [9] * len(kept)]
        vectors.append(pa.table(columns, schema=schema.embeddings(DIM)))
    weights = {"model_weights": f"weights {seed}"}
    return chunks, publish(root, "embeddings", name, vectors, {"chunks": chunks, **weights}, weights)


def settings(root: Path, **changes: Any) -> step.MineConfig:
    runtime = {"root": str(root), **changes.pop("runtime", {})}
    given = {"name": "n", "chunks": "c", "embeddings": "e", "shard_rows": 30, **changes, "runtime": runtime}
    return config.build(step.CONFIG, given, "test")


def brute_force(chunks: Artifact, embeddings: Artifact, asked: step.MineConfig) -> list[tuple]:
    """(query, negative, rank, score) by comparing everything with everything."""
    known = {row["chunk_id"]: row for row in chunks.read().to_pylist()}
    made = embeddings.read()
    unit = indexes.unit(schema.matrix(made["embedding"]))[0].astype(float)
    train = [
        (known[i], v) for i, v in zip(made["chunk_id"].to_pylist(), unit, strict=True) if known[i]["split"] == "train"
    ]
    group = "work_id" if asked.mask == "work" else "author_group"
    rules, found = step.rules(asked), []
    for query, vector in train:
        others = [(np.float32(vector @ v), i) for i, (c, v) in enumerate(train) if c[group] != query[group]]
        ranked = sorted(others, key=lambda other: (-other[0], other[1]))[: rules.depth]
        own = [
            v
            for c, v in train
            if c["document_id"] == query["document_id"]
            and (c["start"] >= query["end"] + works.MIN_GAP or c["end"] + works.MIN_GAP <= query["start"])
        ]
        positive = np.float32(np.mean([vector @ v for v in own])) if own else np.float32(np.nan)
        row = np.full((1, rules.depth), -np.inf, np.float32)
        row[0, : len(ranked)] = [score for score, _ in ranked]
        mined = mining.mine(row, np.asarray([positive]), mining.keys([query["chunk_id"]], asked.seed), rules)
        for rank in mined.chosen()[1].tolist():
            score, i = ranked[rank]
            found.append((query["chunk_id"], train[i][0]["chunk_id"], rank, float(score)))
    return found


def mined(made: Artifact) -> list[tuple]:
    names = ("chunk_id", "negative_id", "rank", "score")
    return [tuple(row[name] for name in names) for row in made.read().to_pylist()]


@pytest.mark.parametrize("changes", [
    {"duplicate_share": 0.0, "num_negatives": 4},
    {"duplicate_share": 0.0, "mask": "author", "range_min": 1, "range_max": 25, "max_score": 0.9, "min_score": 0.2},
    {"duplicate_share": 0.0, "relative_margin": 0.05, "absolute_margin": 0.1, "sampling_strategy": "random",
     "range_max": 100},
])  # fmt: skip
def test_the_step_finds_what_brute_force_finds(tmp_path: Path, serial: None, changes: dict) -> None:
    chunks, embeddings = corpus(tmp_path)
    asked = settings(tmp_path, **changes)
    made = step.run(asked)
    expected = brute_force(chunks, embeddings, asked)
    assert mined(made) == expected and len(expected) > 100
    known = {row["chunk_id"]: row for row in chunks.read().to_pylist()}
    group = "work_id" if asked.mask == "work" else "author_group"
    for row in made.read().to_pylist():
        a, b = known[row["chunk_id"]], known[row["negative_id"]]
        assert a[group] != b[group] and a["split"] == b["split"] == "train"
        assert row["same_author"] == (a["author"] == b["author"] and not a["anonymous"])
    tally = made.manifest["facts"]["candidates"]
    assert tally["chosen"] == made.manifest["rows_out"] == made.manifest["facts"]["audit"]["negatives"]
    assert made.manifest["rows_in"] == made.manifest["facts"]["queries"]
    assert made.manifest["facts"]["training_chunks"] == chunks.read()["split"].to_pylist().count("train")
    queries = {row[0] for row in expected}
    assert made.manifest["rows_in"] - len(queries) == made.manifest["dropped"].get("no_negative", 0)


def rejected(made: Artifact) -> list[dict]:
    names = [name for name in made.manifest["files"] if name.startswith("rejected-")]
    return [row for name in names for row in made.storage.read_table(f"{made.folder}/{name}").to_pylist()]


FILTERS = {"relative_margin": 0.02, "max_score": 0.95, "sampling_strategy": "random", "rejected_share": 0.5}


def test_neither_shards_nor_blocks_change_a_row(tmp_path: Path, serial: None) -> None:
    corpus(tmp_path)
    whole = step.run(settings(tmp_path, **FILTERS, shard_rows=10_000))
    assert len([name for name in whole.manifest["files"] if name.startswith("part-")]) == 1 and rejected(whole)
    for number, (rows, block) in enumerate([(40, 2**20), (90, 37 * 4 * DIM)]):
        changes = {"name": f"n{number}", "shard_rows": rows, "runtime": {"block_bytes": block}}
        made = step.run(settings(tmp_path, **FILTERS, **changes))
        assert made.read().equals(whole.read()) and rejected(made) == rejected(whole)
        assert made.manifest["facts"] == whole.manifest["facts"]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, serial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(tmp_path)
    whole, write = step.run(settings(tmp_path, **FILTERS)), Storage.write_bytes

    class Killed(BaseException):
        pass

    for writes in (2, 7):
        asked, left = settings(tmp_path, **FILTERS, name=f"killed{writes}"), iter(range(writes))

        def dying(*arguments: Any, left=left) -> None:
            if next(left, None) is None:
                raise Killed
            write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write_bytes", dying)
            with pytest.raises(Killed):
                step.run(asked)
        files = step.run(asked).manifest["files"]
        page = "index.html"  # its title is the artefact's name
        assert {n: f for n, f in files.items() if n != page} == {
            n: f for n, f in whole.manifest["files"].items() if n != page
        }


def test_only_drawn_queries_are_mined_and_each_document_draws_its_own(tmp_path: Path, serial: None) -> None:
    corpus(tmp_path)
    whole = step.run(settings(tmp_path, duplicate_share=0.0))
    few = step.run(settings(tmp_path, duplicate_share=0.0, queries_per_document=2, name="few"))
    by_document = Counter(query.split(":")[0] for query in {row[0] for row in mined(few)})
    assert set(by_document.values()) == {2} and few.manifest["rows_in"] == sum(by_document.values())
    assert set(mined(few)) < set(mined(whole))


def test_after_fine_tuning_other_negatives_are_mined(tmp_path: Path, serial: None) -> None:
    corpus(tmp_path)
    first = step.run(settings(tmp_path))
    found = [mined(first)]
    corpus(tmp_path, seed=1, name="tuned")
    with pytest.raises(UserError, match="embeddings"):
        step.run(settings(tmp_path, embeddings="tuned"))
    second = step.run(settings(tmp_path, embeddings="tuned", name="n2"))
    found.append(mined(second))
    assert [made.manifest["facts"]["model_weights"] for made in (first, second)] == ["weights 0", "weights 1"]
    folder = Path(first.storage.path("embeddings/e"))
    for path in (folder, Path(first.storage.path("negatives/n"))):
        path.rename(path.with_name("before"))
    corpus(tmp_path, seed=2)  # under the name that the first ones had
    third = step.run(settings(tmp_path))
    assert third.manifest["facts"]["model_weights"] == "weights 2"
    found.append(mined(third))
    assert all(found[i] != found[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def planted() -> list[dict]:
    """Books, in which a chunk of one work stands in a work of another author, with a word changed."""
    rows = books()
    copied = next(row for row in rows if row["chunk_id"] == "w00.0:2")
    place = next(row for row in rows if row["chunk_id"] == "w06.0:3")
    place["text"] = copied["text"].upper().replace(copied["text"].split()[3].upper(), "misprint", 1)
    return rows


def test_the_audit_finds_a_planted_near_duplicate_and_the_filter_keeps_it_out(tmp_path: Path, serial: None) -> None:
    chunks, embeddings = corpus(tmp_path, planted())
    part = embeddings.read().to_pylist()
    vectors = {row["chunk_id"]: np.asarray(row["embedding"], np.float32) for row in part}
    vectors["w06.0:3"] = vectors["w00.0:2"] = np.eye(DIM, dtype=np.float32)[1] * 3
    tables = []
    for number in range(2):
        table = embeddings.storage.read_table(embeddings.parts[number])
        ids = table["chunk_id"].to_pylist()
        lists = schema.lists(np.stack([vectors[i] for i in ids]))
        tables.append(pa.table([ids, lists, table["num_tokens"]], schema=schema.embeddings(DIM)))
    publish(tmp_path, "embeddings", "same", tables, {"chunks": chunks}, {})
    pair = {"w00.0:2", "w06.0:3"}
    asked = {"embeddings": "same", "queries_per_document": None}
    blind = step.run(settings(tmp_path, duplicate_share=0.0, **asked))
    assert blind.manifest["facts"]["audit"]["near_duplicate"] == 2  # each is the other's nearest
    worst = [row for row in blind.read().to_pylist() if {row["chunk_id"], row["negative_id"]} == pair]
    assert [row["rank"] for row in worst] == [0, 0] and min(row["shared"] for row in worst) > 0.1
    page = (Path(blind.storage.path(blind.folder)) / "index.html").read_text("utf-8")
    first = page[page.index("<summary>1. ") :]
    assert all(chunk in first[:120] for chunk in pair) and "MISPRINT" in page.upper() and "<script" not in page
    seeing = step.run(settings(tmp_path, name="seeing", rejected_share=1.0, **asked))
    assert seeing.manifest["facts"]["audit"]["near_duplicate"] == 0
    assert not any({row[0], row[1]} == pair for row in mined(seeing))
    assert seeing.manifest["facts"]["candidates"]["near_duplicate"] == 2
    shown = [row for row in rejected(seeing) if row["reason"] == "near_duplicate"]
    assert [{row["chunk_id"], row["negative_id"]} for row in shown] == [pair, pair]


def test_an_index_with_all_lists_gives_what_exact_search_gives_and_with_few_its_recall(
    tmp_path: Path, serial: None
) -> None:
    rows = books(num_works=40, num_chunks=14)
    corpus(tmp_path, rows, ties=False)  # FAISS takes any of equals where its answer ends
    common = {"duplicate_share": 0.0, "range_max": 30, "max_score": 0.97}
    exact = step.run(settings(tmp_path, **common))
    index_step.run(config.build(index_step.CONFIG, {"name": "i", "embeddings": "e", "method": "ivf",
        "shard_bytes": 200 * 4 * DIM, "runtime": {"root": str(tmp_path)}}, "test"))  # fmt: skip
    every = step.run(settings(tmp_path, **common, name="all", index="i", num_probes=64))
    assert every.manifest["facts"]["recall"]["recall"] == 1.0
    assert every.read().equals(exact.read())
    few = step.run(settings(tmp_path, **common, name="few", index="i", num_probes=1))
    assert 0.02 < few.manifest["facts"]["recall"]["recall"] < 0.9
    again = step.run(settings(tmp_path, **common, name="again", index="i", num_probes=1, shard_rows=400))
    assert few.read().equals(again.read()) and not few.read().equals(exact.read())
    known = {row["chunk_id"]: row for row in rows}
    assert all(known[a]["work_id"] != known[b]["work_id"] and known[b]["split"] == "train" for a, b, *_ in mined(few))


@pytest.fixture(scope="module")
def cross_folder(encoder_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cross-encoder, untrained but for the scale of its head."""
    import torch

    from quire.cross_encoder import CrossEncoder, build_model

    torch.manual_seed(0)
    made = CrossEncoder(build_model(encoder_folder, 64))
    texts = [row["text"] for row in books()]
    made.standardise(list(zip(texts[:40], texts[40:80], strict=True)))
    folder = tmp_path_factory.mktemp("cross")
    made.save(folder)
    return folder


def test_the_cross_encoder_keeps_its_band_and_its_word_is_kept(
    tmp_path: Path, serial: None, cross_folder: Path
) -> None:
    chunks, _ = corpus(tmp_path)
    draft = artifact.begin(str(tmp_path), "models", "x", recipe={}, inputs={})
    with draft.storage.local_folder(draft.folder) as folder:
        for file in cross_folder.rglob("*"):
            if file.is_file():
                target = folder / file.relative_to(cross_folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    model = draft.publish()
    asked = {
        "cross_encoder": "x",
        "queries_per_document": 3,
        "num_rescored": 8,
        "num_negatives": 2,
        "duplicate_share": 0.0,
    }
    made = step.run(settings(tmp_path, **asked, cross_min_score=0.3, cross_max_score=0.6))
    rows = made.read().to_pylist()
    assert {row["negative_type"] for row in rows} == {"model_mined"} and len(rows) > 20
    assert all(0.3 <= row["cross_score"] <= 0.6 for row in rows)
    tally = made.manifest["facts"]["candidates"]
    assert tally["cross_min_score"] > 0 and tally["cross_max_score"] > 0
    assert made.manifest["facts"]["audit"]["rescored"] == len(rows)
    from scipy.special import expit

    from quire.cross_encoder import CrossEncoder

    texts = {row["chunk_id"]: row["text"] for row in chunks.read().to_pylist()}
    told = CrossEncoder.load(model.local()).logits([(texts[r["chunk_id"]], texts[r["negative_id"]]) for r in rows])
    np.testing.assert_allclose(expit(told), [row["cross_score"] for row in rows], atol=2e-3)
    other = step.run(
        settings(tmp_path, **asked, cross_min_score=0.3, cross_max_score=0.6, name="one", shard_rows=9_999)
    )
    assert other.read().equals(made.read())


def test_mistakes_are_named(tmp_path: Path, serial: None) -> None:
    corpus(tmp_path)
    for changes, message in (
        ({"cross_max_score": 0.5}, "cross_max_score = 0.5: by which model"),
        ({"num_probes": 5}, "num_probes = 5: of which index"),
        ({"range_max": 2}, "num_negatives = 3"),
        ({"min_score": 0.99, "max_score": 0.995}, "no candidate became a negative: .*min_score"),
        ({"embeddings": "nothing"}, "embeddings 'nothing' .* does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            step.run(settings(tmp_path, **changes))
    rows = books()
    rows[0]["text"] += " more"
    chunks = publish(tmp_path, "chunks", "d", [pa.Table.from_pylist(rows, schema.CHUNKS)], {})
    with pytest.raises(UserError, match="embeddings = 'e': made from chunks 'c', not from 'd'"):
        step.run(settings(tmp_path, chunks="d"))
    validation = [row | {"split": "validation"} for row in rows]
    chunks = publish(tmp_path, "chunks", "v", [pa.Table.from_pylist(validation, schema.CHUNKS)], {})
    table = pa.table([["w00.0:0"], schema.lists(np.ones((1, DIM), np.float32)), [3]], schema=schema.embeddings(DIM))
    publish(tmp_path, "embeddings", "v", [table], {"chunks": chunks})
    with pytest.raises(UserError, match="no chunk of the training split"):
        step.run(settings(tmp_path, chunks="v", embeddings="v"))


def test_a_vector_without_direction_is_dropped_and_told(tmp_path: Path, serial: None) -> None:
    rows = books(4)
    chunks = publish(tmp_path, "chunks", "c", [pa.Table.from_pylist(rows, schema.CHUNKS)], {})
    vectors = np.random.default_rng(0).standard_normal((len(rows), DIM)).astype(np.float32)
    vectors[3] = 0
    ids = [row["chunk_id"] for row in rows]
    table = pa.table([ids, schema.lists(vectors), [3] * len(rows)], schema=schema.embeddings(DIM))
    publish(tmp_path, "embeddings", "e", [table], {"chunks": chunks})
    made = step.run(settings(tmp_path, duplicate_share=0.0))
    assert made.manifest["dropped"] == {"no_direction": 1}
    assert ids[3] not in {i for row in mined(made) for i in row[:2]}
    assert made.manifest["rows_in"] == sum(row["split"] == "train" for row in rows)


@pytest.mark.ray
def test_workers_change_no_byte_and_a_failed_run_goes_on(tmp_path: Path, local_ray: None) -> None:
    corpus(tmp_path)
    whole = step.run(settings(tmp_path, **FILTERS))
    resumed = settings(tmp_path, **FILTERS, name="resumed", runtime={"num_workers": 1})
    broken = tmp_path / "negatives/resumed/part-00003.parquet"
    broken.mkdir(parents=True)  # the worker that comes to it fails
    with pytest.raises(Exception, match="part-00003"):
        step.run(resumed)
    broken.rmdir()
    made = step.run(resumed)
    assert {n: f for n, f in made.manifest["files"].items() if n != "index.html"} == {
        n: f for n, f in whole.manifest["files"].items() if n != "index.html"
    }
    assert made.manifest["facts"] == whole.manifest["facts"]
    assert json.dumps(step.run(resumed).manifest, sort_keys=True) == json.dumps(made.manifest, sort_keys=True)
