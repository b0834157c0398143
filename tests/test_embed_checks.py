"""What an embedding run counts, compares and refuses; shards one after another in this process."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from test_encoder import short_of_memory

from pipelines import embed, token_chunks
from quire import artifact, config, schema
from quire.artifact import Artifact, Draft
from quire.errors import UserError
from quire.packing import Budget


@pytest.fixture(autouse=True)
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_shards(draft: Draft, items: list, make: Callable, arguments: tuple, **_: object) -> None:
        for index in sorted(set(range(len(items))) - set(draft.finished_shards())):
            draft.write_shard(index, make(*arguments)(items[index]))

    for step in (embed, token_chunks):
        monkeypatch.setattr(step, "run_shards", run_shards)
    monkeypatch.setattr(embed, "gpus", lambda asked, can_use: 0.0)
    monkeypatch.setattr(embed, "on_a_worker", lambda function, *arguments, **_: function(*arguments))


@pytest.fixture
def root(tmp_path: Path, encoder_folder: str) -> Path:
    """Chunks c of 3 documents, 126 tokens at most: with the special ones 128, what the model reads."""
    (tmp_path / "source").mkdir()
    lines = [json.dumps({"text": tiny.book("sea", name, 20)}) for name in ("ab", "cd", "ef")]
    (tmp_path / "source/a.jsonl").write_text("\n".join(lines))
    cut(tmp_path, encoder_folder, "c", 126)
    return tmp_path


def cut(root: Path, model: str, name: str, max_tokens: int) -> Artifact:
    given = [f"name={name}", f"source.folder={root / 'source'}", f"model={model}", f"runtime.root={root}"]
    sizes = [f"max_tokens={max_tokens}", "overlap=0", "source.shard_bytes=4000"]
    return token_chunks.run(config.load(token_chunks.CONFIG, None, [*given, *sizes]))


def made(root: Path, model: str, name: str, *changes: str) -> Artifact:
    given = [f"name={name}", "chunks=c", f"model={model}", f"runtime.root={root}", "runtime.check_rows=1"]
    return embed.run(config.load(embed.CONFIG, None, [*given, *changes]))


def page(found: Artifact) -> str:
    return found.storage.read_bytes(f"{found.folder}/index.html").decode()


def test_the_page_tells_tiny_chunks_duplicates_and_that_ids_were_compared(root: Path, encoder_folder: str) -> None:
    opening = "Call me by the name that the sea has given me, and let nobody ask who was called so before me. "
    texts = [opening * 12 + tiny.book("sea", name, 9) for name in ("gh", "ij")] + ["Tiny."]
    (root / "source/a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    chunks = cut(root, encoder_folder, "odd", 20)
    facts, rows = chunks.manifest["facts"], chunks.manifest["rows_out"]
    assert facts["duplicates"] > 0 < facts["tiny"]["10"] < 1
    found = page(made(root, encoder_folder, "odd", "chunks=odd"))
    assert f"{facts['tiny']['10']:.1%} below 10" in found and f"{facts['duplicates'] / rows:.1%} duplicates" in found
    assert f"one to one</td><td>{rows:,}</td>" in found.replace("</td>\n<td>", "</td><td>")


def test_chunks_that_the_model_would_cut_are_refused_before_the_work(root: Path, encoder_folder: str) -> None:
    cut(root, encoder_folder, "long", 127)
    with pytest.raises(UserError, match=r"chunks = 'long': max_tokens = 127, .* 129, but model = .* reads 128; cut"):
        made(root, encoder_folder, "e", "chunks=long")
    with pytest.raises(UserError, match=r"max_tokens = 126, with special tokens and prompt 130, .* max_tokens=124,"):
        made(root, encoder_folder, "e", "prompt=the ship ")
    assert not list((root / "embeddings/e").glob("part-*"))
    assert made(root, encoder_folder, "e", "prompt=").manifest["facts"]["truncated"] == 0  # the name is free


def test_what_is_cut_on_purpose_is_counted_whether_ids_are_kept_tokenised_or_taken(
    root: Path, encoder_folder: str
) -> None:
    chunks = artifact.open_artifact(str(root), "chunks", "c")
    expected = sum(count + 2 > 100 for count in chunks.read(["num_tokens"])["num_tokens"].to_pylist())
    assert 3 < expected < chunks.manifest["rows_out"]
    kept = made(root, encoder_folder, "kept", "max_seq_length=100")
    taken = made(root, encoder_folder, "taken", "max_seq_length=100", "reuse=kept")
    anew = made(root, encoder_folder, "anew", "max_seq_length=102", "prompt=theship")  # its blank is missing
    for found, used in ((kept, True), (taken, True), (anew, False)):
        facts = found.manifest["facts"]
        assert ("texts tokenised anew" in found.manifest["summary"]) is not used
        assert facts["token_ids_used"] is used and f"<td>{facts['truncated']}</td>" in page(found)
    assert kept.manifest["facts"]["truncated"] == taken.manifest["facts"]["truncated"] == expected
    assert taken.manifest["facts"]["new_rows"] == 0 < anew.manifest["facts"]["truncated"]
    assert f"{expected} cut to what the model reads" in kept.manifest["summary"]


def test_one_run_has_one_precision_wherever_it_goes_on(
    root: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = [torch.float32, torch.bfloat16]
    monkeypatch.setattr(embed.device, "inference_precision", lambda: on[0])
    with monkeypatch.context() as patch:
        patch.setattr(embed, "_publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(root, encoder_folder, "e")
    (last := sorted((root / "embeddings/e/_shards").iterdir())[-1]).unlink()
    on.reverse()
    with pytest.raises(
        UserError, match=r"precision = auto: the run was begun in float32, .* has bfloat16; go on where"
    ):
        made(root, encoder_folder, "e")
    assert not last.exists()
    on.reverse()
    assert set(made(root, encoder_folder, "e").manifest["facts"]["precision"]) == {"float32"}
    on.reverse()
    with pytest.raises(UserError, match="reuse = 'e': made in float32, but precision = auto is bfloat16 here"):
        made(root, encoder_folder, "more", "reuse=e")


def test_how_often_memory_was_short_is_no_part_of_what_came_out(
    root: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, encode = made(root, encoder_folder, "e"), embed.encoder.encode_tokens

    def short(model: object, tokens: list, budget: Budget, **more: object) -> object:
        budget.lowered += 1
        return encode(model, tokens, budget, **more)

    (root / "embeddings/e").rename(root / "plain")
    monkeypatch.setattr(embed.encoder, "encode_tokens", short)
    lowered = made(root, encoder_folder, "e")
    assert lowered.manifest["facts"]["budget_lowered"] > 0 == plain.manifest["facts"]["budget_lowered"]
    assert lowered.content == plain.content


def test_a_model_that_is_short_of_memory_embeds_all_of_it_all_the_same(
    root: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, load, tried = made(root, encoder_folder, "plain"), embed.encoder.load_encoder, []

    def small(*arguments: object, **more: object) -> SentenceTransformer:
        model = load(*arguments, **more)
        tried.append(short_of_memory(model, 300))
        return model

    monkeypatch.setattr(embed.encoder, "load_encoder", small)
    found = made(root, encoder_folder, "tight")
    assert found.manifest["facts"]["budget_lowered"] == sum(size > 300 for sizes in tried for size in sizes) > 0
    a, b = (made.read() for made in (plain, found))
    assert a["chunk_id"].equals(b["chunk_id"]) and found.manifest["facts"]["ids_checked"] == a.num_rows
    u, v = (schema.matrix(table["embedding"]) for table in (a, b))
    assert (u * v).sum(1).min() > 0.9999
    assert f"{found.manifest['facts']['budget_lowered']}" in page(found)


@pytest.mark.parametrize("changes", [(), ("max_chunks=2",)])
def test_ids_out_are_the_ids_in(
    changes: tuple[str, ...], root: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(root, encoder_folder, "good", *changes)
    assert (
        found.manifest["facts"]["ids_checked"]
        == found.manifest["rows_out"]
        == (6 if changes else found.read().num_rows)
    )
    table = embed.embeddings.table

    def tampered(ids: list[str], *more: object) -> pa.Table:
        return table([*ids[:-1], "other"], *more)

    monkeypatch.setattr(embed.embeddings, "table", tampered)
    with pytest.raises(UserError, match=r"embeddings/bad: part 0 has other ids than chunks/c/part-00000.parquet"):
        made(root, encoder_folder, "bad", *changes)


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (5, 1), (300, 2), (1e6, 16)])
def test_a_small_part_is_not_compared_as_often_as_a_large_one(rows: float, count: int) -> None:
    asked = [config.load(embed.CONFIG, None, ["name=e", "chunks=c", *more]) for more in ([], ["runtime.check_rows=3"])]
    assert [embed._to_check(rows, settings) for settings in asked] == [count, 3]


def test_an_estimate_counts_the_comparison_with_float32(
    root: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is encoded in 100 s and two of its rows are compared in 8."""
    chunks = artifact.open_artifact(str(root), "chunks", "c")
    rows, parts = chunks.manifest["rows_out"], len(chunks.parts)
    given = ["name=e", "chunks=c", f"model={encoder_folder}", f"runtime.root={root}", "runtime.prices.cpu_hour=3600"]

    def money(check_rows: int) -> float:
        ticks = iter([0, 1, 2, 0, 100, 108])
        monkeypatch.setattr(embed, "_clocks", lambda: np.full(2, float(next(ticks))))
        told = embed.estimate(config.load(embed.CONFIG, None, [*given, f"runtime.check_rows={check_rows}"]))
        return float(re.search(r"money: ([\d.]+)", told)[1])

    assert rows > 2 * parts and money(0) == 100
    assert money(2) == pytest.approx(100 + 2 * parts * 4, rel=0.05)  # in two digits
