"""A question in words finds the texts that are nearest to it, or says in one sentence why it cannot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
from test_artifact import s3_root  # noqa: F401
from test_index import one_thread  # noqa: F401

from pipelines import embed, search
from pipelines import index as step
from quire import artifact, config, encoder, hub, lookup, schema, storage
from quire.artifact import Artifact, Shard
from quire.errors import UserError
from quire.storage import Storage

ROOT = Path(__file__).parents[1]
PART_ROWS = 25


def write_chunks(root: Path) -> list[dict]:
    """A chunks artefact of six documents, one a topic, of twenty chunks each."""
    rows = []
    for number, (topic, words) in enumerate(sorted(tiny.TOPICS.items())):
        draw = np.random.default_rng(number)
        texts = [" ".join(tiny.sentence(draw, words) for _ in range(8)) for _ in range(20)]
        rows += [
            {"chunk_id": f"{topic}.txt:{i}", "document_id": f"{topic}.txt", "index": i, "text": text}
            for i, text in enumerate(texts)
        ]
    rows[7]["text"] += " \x1b[31mred"  # what a terminal would obey
    draft = artifact.begin(str(root), "chunks", "c", recipe={}, inputs={})
    for part, start in enumerate(range(0, len(rows), PART_ROWS)):
        draft.write_shard(part, Shard(table=pa.Table.from_pylist(rows[start : start + PART_ROWS])))
    draft.publish()
    return rows


def write_embeddings(root: Path, chunks: list[dict], model: str, **recipe: str) -> None:
    """What `pipelines.embed` writes, but of every row that is not the third, so that rows and chunks part company."""
    made = artifact.open_artifact(str(root), "chunks", "c")
    weights = hub.weights_sha256(model)
    recipe = {"model": model, "max_seq_length": 64, "prompt": None, "prompt_name": None, **recipe}
    inputs = {"chunks": made, "model_weights": weights}
    draft = artifact.begin(str(root), "embeddings", "e", recipe=recipe, inputs=inputs)
    loaded, prompt = encoder.load_encoder(model, 64), recipe["prompt"] or ""
    for part, start in enumerate(range(0, len(chunks), PART_ROWS)):
        rows = [row for i, row in enumerate(chunks[start : start + PART_ROWS]) if i % 3 != 2]
        vectors = encoder.encode(loaded, [row["text"] for row in rows], prompt=prompt)
        columns = [[row["chunk_id"] for row in rows], schema.lists(vectors), [1] * len(rows)]
        draft.write_shard(part, Shard(table=pa.table(columns, schema=schema.embeddings(vectors.shape[1]))))
    draft.publish(facts={"model_weights": weights})


def write_index(root: Path | str, **changes: str | int) -> Artifact:
    """As `pipelines.index` makes it, in this process."""

    def run_shards(draft, items, make, arguments, **_) -> None:
        process = make(*arguments)
        for number in set(range(len(items))) - set(draft.finished_shards()):
            draft.write_shard(number, process(items[number]))

    settings = step.IndexConfig(**{"name": "i", "embeddings": "e", "runtime": {"root": str(root)}, **changes})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "run_shards", run_shards)
        return step.run(settings)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> tuple[Path, list[dict]]:
    """A root with chunks, embeddings, and the indexes i (flat, three shards) and v (an inverted file)."""
    root = tmp_path_factory.mktemp("root")
    chunks = write_chunks(root)
    write_embeddings(root, chunks, encoder_folder)
    write_index(root, shard_bytes=40 * 4 * 32)
    write_index(root, name="v", method="ivf")
    return root, chunks


@pytest.fixture
def own(corpus: tuple[Path, list[dict]], tmp_path: Path) -> Path:
    """A copy of the root, to be spoilt."""
    return Path(shutil.copytree(corpus[0], tmp_path / "root"))


def ask(root: Path | str, *words: str, index: str = "i") -> search.Answer:
    return search.run(config.load(search.CONFIG, None, [f"index={index}", f"runtime.root={root}", *words]))


@pytest.mark.parametrize("index", ["i", "v"])
def test_a_text_of_the_corpus_finds_itself_with_its_own_words(corpus: tuple, index: str) -> None:
    root, chunks = corpus
    for row in (chunks[0], chunks[51], chunks[118]):
        hits = ask(root, f"query={row['text']}", "k=5", index=index).hits
        assert {"rank": 1, **{key: row[key] for key in ("document_id", "chunk_id", "text")}} == {
            key: hits[0][key] for key in ("rank", "document_id", "chunk_id", "text")
        }
        assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
        assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]


def test_the_answer_is_that_of_brute_force(corpus: tuple, encoder_folder: str) -> None:
    root, chunks = corpus
    table = artifact.open_artifact(str(root), "embeddings", "e").read()
    model = encoder.load_encoder(encoder_folder, 64)
    scores = schema.matrix(table["embedding"]) @ encoder.encode(model, ["the storm broke the mast"])[0]
    exact = dict(zip(table["chunk_id"].to_pylist(), scores.tolist(), strict=True))
    hits = ask(root, "query=the storm broke the mast", f"k={len(exact)}").hits
    found = [exact[hit["chunk_id"]] for hit in hits]
    assert len({hit["chunk_id"] for hit in hits}) == len(exact)
    assert [hit["score"] for hit in hits] == pytest.approx(found, abs=1e-6)
    assert (np.diff(found) < 1e-6).all()  # two that differ by the rounding of a sum may change places
    texts = {row["chunk_id"]: row["text"] for row in chunks}
    assert all(hit["text"] == texts[hit["chunk_id"]] for hit in hits)
    # An inverted file is searched until k are found.
    assert len(ask(root, "query=the storm broke the mast", f"k={len(exact)}", index="v").hits) == len(exact)


def test_the_prompt_of_the_embeddings_is_that_of_the_query(corpus: tuple, own: Path, encoder_folder: str) -> None:
    _, chunks = corpus
    for kind in ("embeddings", "index"):
        shutil.rmtree(own / kind)
    write_embeddings(own, chunks, encoder_folder, prompt="witness: ")
    write_index(own)
    query = f"query={chunks[0]['text']}"
    assert ask(own, query, "k=1").hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert ask(own, query, "k=1", 'prompt=""').hits[0]["score"] < 0.9999


def test_what_is_printed_can_be_read_and_commands_no_terminal(corpus: tuple) -> None:
    root, chunks = corpus
    query = f"query={json.dumps(chunks[7]['text'])}"  # with its escape
    shown = ask(root, query, "k=3").told(0)
    assert "\x1b" not in shown and "  court.txt  court.txt:7\n" in shown
    assert chunks[7]["text"][:300] in shown and "\ufffd[31mred" not in shown
    assert "\ufffd[31mred" in ask(root, query, "whole=true").told(0)
    lines = ask(root, query, "k=3", "json_lines=true").told(0)
    assert "\x1b" not in lines
    hits = [json.loads(line) for line in lines.splitlines()]
    assert hits[0]["text"] == chunks[7]["text"] and [hit["rank"] for hit in hits] == [1, 2, 3]


def test_a_number_is_a_query_too(corpus: tuple) -> None:
    for word in ("1984", "true", "0.5"):
        assert ask(corpus[0], f"query={word}", "k=1").settings.query == word


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "query: missing"),
        (["query="], "query: an empty query"),
        (["query=  "], "query: an empty query"),
        (["query=x", "k=0"], "k = 0"),
        (["query=x", "k=1000"], "k = 1000: the index has 82 rows; ask for fewer"),
        (["query=x", "index=none"], "index 'none' .* does not exist: run the step"),
        (["query=x", "model=/nowhere"], "model '/nowhere'"),
    ],
)
def test_what_cannot_be_answered_is_said(corpus: tuple, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(corpus[0], *words)


def test_another_model_is_refused(corpus: tuple, encoder_folder: str, tmp_path: Path) -> None:
    moved = shutil.copytree(encoder_folder, tmp_path / "model")
    assert ask(corpus[0], "query=ship", f"model={moved}", "k=1").hits == ask(corpus[0], "query=ship", "k=1").hits
    weights = moved / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="its files have the SHA-256 .*, those that made embeddings 'e' had"):
        ask(corpus[0], "query=ship", f"model={moved}")


def test_damaged_and_missing_artefacts_are_named(own: Path) -> None:
    name = own / "index/i/index-00002.faiss"
    data = name.read_bytes()
    name.write_bytes(data[:-5])
    with pytest.raises(UserError, match="index-00002.faiss: .* bytes, the manifest says"):
        ask(own, "query=ship")
    name.write_bytes(data[:8] + b"\xff" * 8 + data[16:])
    with pytest.raises(UserError, match="index-00002.faiss: FAISS cannot read it"):
        ask(own, "query=ship")
    trained = own / "index/v/trained.faiss"
    trained.write_bytes(trained.read_bytes()[:100])
    with pytest.raises(UserError, match="trained.faiss: FAISS cannot read it"):
        ask(own, "query=ship", index="v")
    shutil.rmtree(own / "chunks")
    with pytest.raises(UserError, match="chunks 'c' .* does not exist"):
        ask(own, "query=ship")


def test_texts_that_were_made_again_are_refused(own: Path) -> None:
    manifest = own / "chunks/c/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["part-00000.parquet"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(facts))
    with pytest.raises(
        UserError, match="chunks 'c' was made again since embeddings 'e': delete .* run pipelines.embed"
    ):
        ask(own, "query=ship")


def test_a_remote_shard_that_is_cut_off_is_named_and_found_once_it_is_mended(
    corpus: tuple,
    s3_root: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "cache_folder", lambda: tmp_path)
    root, chunks = corpus
    for kind in ("chunks", "embeddings"):
        Storage(s3_root).upload(root / kind, kind)
    made = write_index(s3_root, name="cut", shard_bytes=40 * 4 * 32)
    name = f"{made.folder}/{made.manifest['facts']['shards'][0]['file']}"
    whole = made.storage.read_bytes(name)
    made.storage.write_bytes(name, whole[:100])
    query = f"query={chunks[0]['text']}"
    with pytest.raises(UserError, match=rf"100 bytes long, its manifest says {len(whole):,} bytes; delete s3://"):
        ask(s3_root, query, index="cut")
    made.storage.write_bytes(name, whole)
    assert ask(s3_root, query, index="cut").hits == ask(root, query).hits


@pytest.mark.parametrize("method", ["flat", "ivf"])
def test_an_index_is_made_and_searched_on_s3(corpus: tuple, s3_root: str, method: str) -> None:  # noqa: F811
    root, chunks = corpus
    for kind in ("chunks", "embeddings"):
        Storage(s3_root).upload(root / kind, kind)
    made = write_index(s3_root, name=f"s-{method}", method=method, shard_bytes=40 * 4 * 32)
    local = write_index(root, name=f"s-{method}", method=method, shard_bytes=40 * 4 * 32)
    assert made.manifest["files"] == local.manifest["files"]
    query = f"query={chunks[51]['text']}"
    assert ask(s3_root, query, index=made.name).hits == ask(root, query, index=made.name).hits


def test_rows_are_found_wherever_they_stand(corpus: tuple) -> None:
    root, chunks = corpus
    made = artifact.open_artifact(str(root), "chunks", "c")
    wanted = {chunks[3]["chunk_id"]: 0, chunks[30]["chunk_id"]: 4, chunks[90]["chunk_id"]: 99}
    found = lookup.rows_by_id(made, wanted, "chunk_id", ["text"])
    assert found == {chunks[i]["chunk_id"]: {"text": chunks[i]["text"]} for i in (3, 30, 90)}
    with pytest.raises(UserError, match="chunks/c: no row with chunk_id = 'other'"):
        lookup.rows_by_id(made, {"other": 0}, "chunk_id", ["text"])


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mistake_shows_before_anything_heavy_is_loaded() -> None:
    python("import sys, pipelines.search\nassert not {'ray', 'torch', 'transformers'} & sys.modules.keys()")


@pytest.mark.system
def test_the_command_answers_without_ray(corpus: tuple) -> None:
    root, chunks = corpus
    words = ["index=i", f"runtime.root={root}", f"query={chunks[0]['text']}", "k=2", "json_lines=true"]
    main = f"config.main(search.CONFIG, search.run, {words!r})"
    printed = python(
        f"import sys\nfrom pipelines import search\nfrom quire import config\n{main}\nassert 'ray' not in sys.modules"
    )
    assert json.loads(printed.splitlines()[0])["chunk_id"] == chunks[0]["chunk_id"]


@pytest.mark.ray
def test_from_chunks_to_answers(tmp_path: Path, encoder_folder: str, local_ray: None) -> None:
    chunks = write_chunks(tmp_path)
    runtime = {"root": str(tmp_path)}
    embed.run(embed.EmbedConfig(name="e", chunks="c", model=encoder_folder, max_seq_length=64, runtime=runtime))
    made = step.run(step.IndexConfig(name="i", embeddings="e", shard_bytes=4_000, runtime=runtime))
    assert len(made.manifest["facts"]["shards"]) == 5
    hits = ask(tmp_path, f"query={chunks[77]['text']}", "k=3").hits
    assert hits[0]["text"] == chunks[77]["text"] and hits[0]["score"] == pytest.approx(1, abs=1e-3)
