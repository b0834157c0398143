"""A corpus to chunks of tokens to embeddings: checked, reused when the corpus grows, read by the users' libraries."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
from sentence_transformers import SentenceTransformer

from pipelines import embed, token_chunks
from quire import config, embedding_report, embeddings, flow, schema
from quire.artifact import Artifact
from quire.errors import UserError


def test_a_sample_is_the_same_in_any_order() -> None:
    ids = [f"c{number}" for number in range(100)]
    chosen = {ids[row] for row in embeddings.sample(ids, 7)}
    assert len(chosen) == 7 and chosen == {ids[::-1][row] for row in embeddings.sample(ids[::-1], 7)}
    assert embeddings.sample(ids[:3], 7).tolist() == [0, 1, 2]


def test_only_chunks_of_the_same_id_and_text_are_known() -> None:
    rows = pa.table({"chunk_id": ["a:0", "a:1", "b:0", "c:0"], "text": ["x", "y", "z", "w"]})
    first = pa.table({"chunk_id": ["a:0", "a:1"], "text": ["x", "changed"]})
    second = pa.table({"chunk_id": ["q:0", "b:0", "c:0"], "text": ["q", "z", "w"]})
    earlier = [(first, first), (second, second.slice(0, 2))]  # c:0 was not embedded
    tables, places = embeddings.known(rows, earlier)
    assert tables.tolist() == [0, -1, 1, -1] and places[[0, 2]].tolist() == [0, 1]


def test_cosines_of_a_zero_vector_are_zero() -> None:
    a = np.asarray([[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert embeddings.cosines(a, np.asarray([[2.0, 0.0], [1.0, 0.0], [4.0, 3.0]])).tolist() == [1.0, 0.0, 0.96]


def test_the_page_tells_nothing_that_another_run_of_the_same_recipe_would_tell_otherwise() -> None:
    facts = {"tokens": 9, "new_rows": 3, "precision": {"float32": 1}, "prompt": "", "truncated": 1}
    facts |= {"token_ids_used": True, "ids_checked": 3}
    facts |= {"cosine_to_float32": {"rows": 2, "min": 0.9, "median": 0.95, "mean": 0.95}}
    chunks = {"rows_out": 3, "dropped": {"no_text": 2}, "facts": {}}

    def page(seconds: float) -> str:
        shard = {"rows_out": 3, "cpu": seconds, "gpu": seconds, "facts": {"tokens": 9, "cosines": [0.9, 1.0]}}
        return embedding_report.page("e", facts, [shard], chunks)

    assert page(1.0) == page(2.0) and "2 no_text" in page(1.0)


def write(folder: Path, file: str, topic: str, count: int) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": tiny.book(topic, f"{file}{i}", 4 + 3 * i)}) for i in range(count)]
    (folder / file).write_text("\n".join(lines))


class Corpus:
    """A growing folder of documents, its chunks and their embeddings."""

    def __init__(self, folder: Path, model: str):
        self.folder, self.model = folder, model
        write(folder / "source", "a.jsonl", "sea", 12)
        write(folder / "source", "b.jsonl", "war", 12)

    def chunks(self, name: str) -> Artifact:
        given = [f"name={name}", f"source.folder={self.folder / 'source'}", f"model={self.model}"]
        sizes = ["max_tokens=60", "overlap=10", "source.shard_bytes=4000", f"runtime.root={self.folder / 'root'}"]
        return token_chunks.run(config.load(token_chunks.CONFIG, None, [*given, *sizes]))

    def embeddings(self, name: str, *changes: str) -> Artifact:
        given = [f"name={name}", f"model={self.model}", "precision=float32", f"runtime.root={self.folder / 'root'}"]
        return embed.run(config.load(embed.CONFIG, None, [*given, *changes]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str, local_ray: None) -> Corpus:
    made = Corpus(tmp_path_factory.mktemp("corpus"), encoder_folder)
    made.chunks("c")
    made.embeddings("e", "chunks=c")
    return made


@pytest.mark.ray
def test_embeddings_are_those_of_the_users_library_one_a_chunk(corpus: Corpus, encoder_folder: str) -> None:
    chunks, made = corpus.chunks("c"), corpus.embeddings("e", "chunks=c")
    rows, table = chunks.read(), made.read()
    assert table["chunk_id"].to_pylist() == rows["chunk_id"].to_pylist() and table.num_rows > 50
    assert table["num_tokens"].to_pylist() == [size + 2 for size in rows["num_tokens"].to_pylist()]
    found = schema.matrix(table["embedding"])
    theirs = SentenceTransformer(encoder_folder, device="cpu").encode(rows["text"].to_pylist())
    first = np.asarray(rows["index"]) == 0  # later ones may begin within a word, whose ids are then others
    np.testing.assert_allclose(found[first], theirs[first], atol=1e-5)
    facts = made.manifest["facts"]
    with_rows = [part for part in made.parts if made.storage.read_table(part).num_rows]
    assert facts["cosine_to_float32"]["min"] > 0.99999 and facts["cosine_to_float32"]["rows"] >= len(with_rows) > 1
    page = made.storage.read_bytes(f"{made.folder}/index.html").decode()
    one = corpus.embeddings("one", "chunks=c", "runtime.num_workers=1")
    names = list(made.manifest["files"])
    same = [one.storage.sha256(f"{one.folder}/{n}") == made.storage.sha256(f"{made.folder}/{n}") for n in names]
    assert [n for n, equal in zip(names, same, strict=True) if not equal] == ["index.html"]  # it has the name on it
    assert one.storage.read_bytes(f"{one.folder}/index.html").decode().replace(": one<", ": e<") == page
    assert f"{table.num_rows:,} chunks" in page and "Cosine to float32" in page and "Length of chunks" in page


@pytest.mark.ray
def test_a_corpus_that_grew_is_encoded_only_where_it_is_new(corpus: Corpus) -> None:
    before = corpus.embeddings("e", "chunks=c").read()
    write(corpus.folder / "source", "a.jsonl", "sea", 14)  # two documents more in a file that was there
    write(corpus.folder / "source", "aa.jsonl", "farm", 3)
    rows = corpus.chunks("grown").read(["chunk_id", "text"])
    made = corpus.embeddings("grown", "chunks=grown", "reuse=e")
    old = set(before["chunk_id"].to_pylist())
    new = sum(name not in old for name in rows["chunk_id"].to_pylist())
    assert made.manifest["facts"]["new_rows"] == new and 0 < new < rows.num_rows - len(old) + 1
    table = made.read()
    vectors = dict(zip(table["chunk_id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    pairs = zip(before["chunk_id"].to_pylist(), before["embedding"].to_pylist(), strict=True)
    assert all(vectors[name] == vector for name, vector in pairs)
    anew = corpus.embeddings("anew", "chunks=grown").read()
    np.testing.assert_allclose(schema.matrix(table["embedding"]), schema.matrix(anew["embedding"]), atol=1e-6)
    with pytest.raises(UserError, match="reuse = 'e': made with another prompt, stored"):
        corpus.embeddings("other", "chunks=grown", "reuse=e", "prompt=x: ", "stored=float16")


@pytest.mark.ray
def test_small_numbers_and_a_prompt_are_told_and_a_bound_that_is_not_met_stops_the_run(corpus: Corpus) -> None:
    made = corpus.embeddings("half", "chunks=c", "stored=float16", "prompt=the ship: ")
    assert made.read()["embedding"].type == pa.list_(pa.float16(), 32)
    assert made.manifest["facts"]["prompt"] == "the ship: "
    assert 0.9999 < made.manifest["facts"]["cosine_to_float32"]["min"] <= 1
    with pytest.raises(UserError, match=r"cosine 0\.\d+ to its embedding in float32, below runtime.min_cosine = 1"):
        corpus.embeddings("strict", "chunks=c", "stored=float16", "runtime.min_cosine=1.0")


@pytest.mark.ray
def test_an_estimate_knows_how_many_rows_there_will_be(corpus: Corpus) -> None:
    asked = [f"model={corpus.model}", f"runtime.root={corpus.folder / 'root'}", "name=e", "chunks=c"]
    rows = corpus.embeddings("e", "chunks=c").manifest["rows_out"]
    told = embed.estimate(config.load(embed.CONFIG, None, asked))
    assert f"\n  {float(f'{rows:.2g}'):,.10g} rows" in told
    one = embed.estimate(config.load(embed.CONFIG, None, [*asked, "max_chunks=1"]))
    assert "\n  24 rows" in one  # of 24 documents


@pytest.mark.parametrize(("max_chunks", "spread"), [(None, 0.3), (1, 0.05)])
def test_a_flow_tells_what_it_would_take_before_anything_runs(
    max_chunks: int | None,
    spread: float,
    encoder_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    asked = []
    monkeypatch.setattr(embed, "gpus", lambda given, can_use: asked.append(given) or 0.0)
    monkeypatch.setattr(embed, "on_a_worker", lambda function, *arguments, num_gpus: function(*arguments))
    for number in range(40):
        write(tmp_path / "source", f"{number:02d}.jsonl", "sea", 6)
    (tmp_path / "flow.toml").write_text(
        "".join(
            f'[[steps]]\nname = "{name}"\nrun = "pipelines.{run}"\n'
            for name, run in {"chunks": "token_chunks", "near": "neighbors", "lost": "embed", "embed": "embed"}.items()
        )
    )
    root, source = tmp_path / "root", tmp_path / "source"
    words = ["chunks.name=c", f"chunks.source.folder={source}", "chunks.source.shard_bytes=20_000"]
    words += ["chunks.max_tokens=60", "chunks.overlap=10", "near.name=n", "near.chunks=c", "near.embeddings=e"]
    words += ["lost.name=l", "lost.chunks=nowhere", "embed.name=e", "embed.chunks=c"]
    words += [f"{step}.model={encoder_folder}" for step in ("chunks", "lost", "embed")]
    words += [f"embed.max_chunks={max_chunks}"] if max_chunks else []
    flow.main([str(tmp_path / "flow.toml"), f"root={root}", "prices.cpu_hour=1.0", *words, "--estimate"])
    told = capsys.readouterr().out
    assert not root.exists() and asked == [None, None]
    assert "[2/4] near: pipelines.neighbors\n      has no estimate" in told
    assert "no estimate: " in told and "chunks/nowhere" in told
    chunks, embedded = (int(found.replace(",", "")) for found in re.findall(r"\n  ([\d,]+) rows", told))
    documents = 240
    assert embedded == pytest.approx(documents if max_chunks else chunks, rel=spread) and chunks > 2 * documents
    assert told.count("USD") == 2


@pytest.mark.ray
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_the_rows_are_a_data_set(corpus: Corpus, tmp_path: Path, stored: str) -> None:
    datasets = pytest.importorskip("datasets")
    made = corpus.embeddings(f"e-{stored}", "chunks=c", f"stored={stored}")
    rows = datasets.load_dataset(made.storage.uri(made.folder), split="train", cache_dir=str(tmp_path))
    assert rows.num_rows == made.manifest["rows_out"]
    assert rows.features["embedding"].feature.dtype == stored and rows.features["embedding"].length == 32
    read = np.asarray(rows.with_format("numpy")["embedding"][:], np.float32)
    assert np.array_equal(read, schema.matrix(made.read()["embedding"]).astype(np.float32))
