"""Files of any format to a `chunks` artefact: good rows are done, bad ones named and counted, too many stop the run."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from test_artifact import s3_root  # noqa: F401
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipelines import token_chunks as step
from pipelines import token_drops
from quire import artifact, config, token_chunks
from quire.artifact import Artifact, Shard
from quire.errors import UserError
from quire.hub_sets import Found
from quire.storage import Storage

WORDS = [f"w{i}" for i in range(50)]


def text(number: int, size: int) -> str:
    return "  ".join(WORDS[(number + i) % 50].upper() for i in range(size))


def rows(count: int) -> list[dict]:
    return [{"id": f"d{i}", "text": text(i, 1 + i % 30), "url": f"u{i}", "score": i / 2} for i in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of 50 words, whose file asks for truncation."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder = tmp_path_factory.mktemp("model")
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=4)
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards one after another in this process."""

    def run_shards(draft, items, make, arguments, **_) -> None:
        for index in set(range(len(items))) - set(draft.finished_shards()):
            draft.write_shard(index, make(*arguments)(items[index]))

    monkeypatch.setattr(step, "run_shards", run_shards)


def settings(folder: Path, model: str, *changes: str) -> step.TokenChunksConfig:
    given = ["name=c", f"source.folder={folder / 'source'}", f"model={model}", "max_tokens=10", "overlap=2"]
    return config.load(step.CONFIG, None, [*given, f"runtime.root={folder / 'root'}", *changes])


def write_lines(folder: Path, records: list, file: str = "a.jsonl") -> None:
    (folder / "source").mkdir(exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    (folder / "source" / file).write_bytes(b"".join(line + b"\n" for line in lines))


def rejects(made: Artifact) -> list[dict]:
    names = [f"{made.folder}/{name}" for name in made.manifest["files"] if name.startswith("rejects-")]
    return [row for name in names for row in made.storage.read_table(name).to_pylist()]


KEEP = ("source.key=id", "source.keep.url=string", "source.keep.score=float64", "source.shard_bytes=2000")


def test_every_format_gives_the_same_chunks(tmp_path: Path, model: str, serial: None) -> None:
    found = {}
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"):
        folder = tmp_path / kind
        (folder / "source").mkdir(parents=True)
        lines, table = "".join(json.dumps(row) + "\n" for row in rows(100)).encode(), pa.Table.from_pylist(rows(100))
        if kind == "parquet":
            pq.write_table(table, folder / "source/a.parquet", row_group_size=30)
        elif kind == "arrow":
            with pa.ipc.new_stream(folder / "source/a.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=25)
        else:
            data = {"gz": gzip.compress, "zst": lambda d: pa.compress(d, "zstd", asbytes=True)}.get(kind[6:], bytes)
            (folder / f"source/a.{kind}").write_bytes(data(lines))
        found[kind] = step.run(settings(folder, model, *KEEP))
    table = found["jsonl"].read()
    assert table.schema == token_chunks.chunk_schema({"url": pa.string(), "score": pa.float64()})
    assert all(made.read().equals(table) for made in found.values())
    source = {row["id"]: row for row in rows(100)}
    for row in table.to_pylist():
        whole = source[row["document_id"]]
        assert row["text"] == whole["text"][row["start"] : row["end"]] and row["url"] == whole["url"]
        assert row["chunk_id"] == f"{row['document_id']}:{row['index']}"
        assert [WORDS[i - 1].upper() for i in row["token_ids"]] == row["text"].split()
    assert table["document_id"].unique().to_pylist() == list(source)
    facts = found["jsonl"].manifest["facts"]
    assert facts["rows"] == table.num_rows == sum(facts["histogram"]["counts"])
    assert facts["tokens"] == sum(table["num_tokens"].to_pylist())
    assert found["jsonl"].manifest["rows_in"] == 100 and found["jsonl"].manifest["dropped"] == {}


def test_a_csv_gives_the_chunks_of_its_rows(tmp_path: Path, model: str, serial: None) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source/a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text", "url", "score"])
        writer.writeheader()
        writer.writerows(rows(100))
    made = step.run(settings(tmp_path, model, *KEEP[:2], *KEEP[3:], "source.keep.score=string"))
    source = {row["id"]: row for row in rows(100)}
    for row in made.read().to_pylist():
        whole = source[row["document_id"]]
        assert row["text"] == whole["text"][row["start"] : row["end"]] and row["score"] == str(whole["score"])
    assert made.manifest["rows_in"] == 100 and made.manifest["dropped"] == {}


def test_bad_rows_are_named_and_counted_and_good_ones_done(tmp_path: Path, model: str, serial: None) -> None:
    bad = {
        "not_json": b"{",
        "bad_encoding": b'{"text": "\xff", "id": "x"}',
        "not_a_string": {"id": "x", "text": 5},
        "no_text": {"id": "x", "body": "words"},
        "no_id": {"text": "words"},
        "wrong_type": {"id": "x", "text": "words", "score": "high"},
        "no_token": {"id": "empty", "text": "\x00\x01"},
    }
    write_lines(tmp_path, [*rows(10), *bad.values(), *rows(12)[10:]])
    made = step.run(settings(tmp_path, model, *KEEP, "runtime.max_bad_share=0.5"))
    assert made.manifest["dropped"] == dict.fromkeys(sorted(bad), 1)
    assert made.read(["document_id"])["document_id"].unique().to_pylist() == [f"d{i}" for i in range(12)]
    ids = {row["reason"]: row["id"] for row in rejects(made)}
    size = sum(len(json.dumps(row)) + 1 for row in rows(10))
    assert ids["not_json"] == f"a.jsonl:{size}" and ids["no_token"] == "empty"
    lines = {row["reason"]: row["detail"].partition(":")[0] for row in rejects(made)}
    assert lines == {reason: f"a.jsonl, line {number}" for number, reason in enumerate(bad, 11)}
    page = (made.local() / "index.html").read_text("utf-8")
    assert all(f"<td>{reason}</td><td>1</td><td>a.jsonl, line {line}" in page for line, reason in enumerate(bad, 11))
    facts = made.manifest["facts"]
    assert f"{facts['rows']:,} chunks, {facts['tokens']:,} tokens of 19 records" in page and "<svg" in page


def test_damaged_files_cost_what_is_lost_and_no_more(tmp_path: Path, model: str, serial: None) -> None:
    write_lines(tmp_path, rows(50))
    (tmp_path / "source/b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "w1"}\n' * 100)[:-20])
    pq.write_table(pa.Table.from_pylist(rows(50)), tmp_path / "source/c.parquet")
    (tmp_path / "source/c.parquet").write_bytes((tmp_path / "source/c.parquet").read_bytes()[:500])
    made = step.run(settings(tmp_path, model, "runtime.max_bad_share=0.1"))
    assert made.manifest["dropped"]["damaged"] == 2
    assert sorted(row["id"] for row in rejects(made) if row["reason"] == "damaged") == [
        "b.jsonl.gz:end",
        "c.parquet:end",
    ]
    assert {"a.jsonl:0"} < set(made.read(["document_id"])["document_id"].to_pylist())


def test_too_many_bad_rows_stop_the_run_and_a_higher_share_goes_on(tmp_path: Path, model: str, serial: None) -> None:
    write_lines(tmp_path, [*rows(9), b"{"])
    told = r"runtime.max_bad_share = 0.05: .* 1 not_json of 10 records, such as not_json: a.jsonl, line 10: .*rejects-"
    with pytest.raises(UserError, match=told):
        step.run(settings(tmp_path, model))
    assert step.run(settings(tmp_path, model, "runtime.max_bad_share=0.1")).manifest["dropped"] == {"not_json": 1}


def test_a_run_ends_as_soon_as_its_bad_rows_are_too_many_for_the_whole(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth of 200 records is bad, in 20 shards or so: with .05 that is known after a third of them."""
    write_lines(tmp_path, [b"{" if n % 5 == 0 else row for n, row in enumerate(rows(200))])

    def run_shards(draft, items, make, arguments, hopeless, **_) -> None:
        process, asked = make(*arguments), 0
        for index in set(range(len(items))) - set(draft.finished_shards()):
            draft.write_shard(index, process(items[index]))
            if message := hopeless():
                raise UserError(message)
            asked += 1
        print(f"asked {asked} times")

    monkeypatch.setattr(step, "run_shards", run_shards)
    given = ("source.shard_bytes=1200",)
    with pytest.raises(
        UserError, match=r"max_bad_share = 0.05: after \d+ of \d+ shards .*not_json of .* records"
    ) as error:
        step.run(settings(tmp_path, model, *given))
    done, planned = map(int, re.search(r"after (\d+) of (\d+) shards", str(error.value)).groups())
    assert planned > 15 and 1 < done < planned / 2
    found = pq.read_table(next((tmp_path / "root").rglob("rejects-00000.parquet"))).to_pylist()
    assert found[0]["detail"].startswith("a.jsonl, line 1")
    made = step.run(settings(tmp_path, model, *given, "runtime.max_bad_share=0.2"))  # goes on, and is never hopeless
    assert made.manifest["dropped"] == {"not_json": 40}


def test_a_fraction_is_not_cut_off_to_fit_an_integer(tmp_path: Path, model: str, serial: None) -> None:
    records = [row | {"score": score} for row, score in zip(rows(4), (2, 3.0, 2.7, None), strict=True)]
    write_lines(tmp_path, records)
    made = step.run(settings(tmp_path, model, "source.keep.score=int64", "runtime.max_bad_share=0.5"))
    assert made.read(["score"])["score"].unique().to_pylist() == [2, 3, None]
    (reject,) = rejects(made)
    assert reject["reason"] == "wrong_type" and reject["detail"] == "a.jsonl, line 3: score = 2.7 is no int64"


def test_a_kept_column_that_no_record_has_is_refused(tmp_path: Path, model: str, serial: None) -> None:
    write_lines(tmp_path, rows(6))
    with pytest.raises(UserError, match=r"source.keep.scroe: none of 6 records has a value of it"):
        step.run(settings(tmp_path, model, "source.keep.scroe=float64"))
    draft = artifact.begin(str(tmp_path / "kept"), "chunks", "c", recipe={}, inputs={})
    for index, count in enumerate((0, 0, 1)):
        assert index == 0 or (token_drops.check_kept(draft) is None) == (index == 1)
        draft.write_shard(index, Shard(rows_in=6_000, facts={"kept": {"score": count}}))
    assert token_drops.check_kept(draft) is None  # the third shard has it


def test_a_key_whose_values_repeat_is_no_column_of_ids(tmp_path: Path, model: str, serial: None) -> None:
    write_lines(tmp_path, [row | {"dump": f"crawl-{n % 2}"} for n, row in enumerate(rows(9))])
    given = ("source.key=dump", "source.shard_bytes=900")
    with pytest.raises(UserError, match=r"source.key = 'dump': 7 of 9 records .*, such as a.jsonl, line 3; .*max_rep"):
        step.run(settings(tmp_path, model, *given))
    made = step.run(settings(tmp_path, model, *given, "runtime.max_repeated_share=0.9"))
    assert made.manifest["dropped"] == {"repeated_id": 7}


def test_a_column_of_csv_is_kept_as_a_string_or_not_at_all(tmp_path: Path, model: str, serial: None) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.csv").write_text("text,score\nw1 w2,1.5\n")
    with pytest.raises(UserError, match=r"source.keep.score = double: columns of CSV are strings \(a.csv\)"):
        step.run(settings(tmp_path, model, "source.keep.score=float64"))


def test_of_documents_that_share_an_id_the_first_stays(tmp_path: Path, model: str, serial: None) -> None:
    twice = [*rows(30), {"id": "d29", "text": text(1, 40)}, {"id": "d29", "text": "w1"}]
    write_lines(tmp_path, twice, "a.jsonl")
    write_lines(tmp_path, [{"id": "d5", "text": text(5, 25)}, {"id": "new", "text": "w9"}], "b.jsonl")
    made = step.run(settings(tmp_path, model, "source.key=id", "source.shard_bytes=1500"))
    table = made.read()
    first = {row["id"]: row["text"] for row in reversed([*twice, {"id": "new", "text": "w9"}])}
    whole = [row for row in table.to_pylist() if row["index"] == 0]
    assert [row["document_id"] for row in whole] == [*(f"d{i}" for i in range(30)), "new"]
    assert all(first[row["document_id"]].startswith(row["text"]) for row in whole)
    assert len(set(table["chunk_id"].to_pylist())) == table.num_rows == made.manifest["facts"]["rows"]
    assert made.manifest["dropped"] == {"repeated_id": 3}
    assert sorted((row["id"], row["detail"]) for row in rejects(made)) == [
        ("d29", "a.jsonl, line 31"),
        ("d29", "a.jsonl, line 32"),
        ("d5", "b.jsonl, line 1"),
    ]


def test_a_run_killed_while_it_drops_goes_on_to_the_same_bytes(
    tmp_path: Path, model: str, serial: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path, [*rows(20), *rows(3)])
    given = ("source.key=id", "source.shard_bytes=700")
    whole = step.run(settings(tmp_path, model, *given))
    for place, name in ((step.token_drops, "drop_repeated"), (step, "_publish")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                step.run(settings(tmp_path, model, *given, "name=killed"))
    made = step.run(settings(tmp_path, model, *given, "name=killed"))
    for key in ("files", "dropped", "facts", "rows_in", "rows_out"):
        assert made.manifest[key] == whole.manifest[key], key


@pytest.mark.parametrize(("megabytes", "shard_bytes"), [(1, 2**18), (128, 2**21), (4096, 2**24)])
def test_of_a_small_corpus_every_worker_gets_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int, shard_bytes: int
) -> None:
    monkeypatch.setattr(Storage, "size", lambda *_: megabytes * 2**20 // 4)
    found = Found(Storage(str(tmp_path)), [f"{number}.jsonl" for number in range(4)], None)
    source = step.Corpus(folder=str(tmp_path))
    assert step._shard_bytes(source, found) == shard_bytes
    assert step._shard_bytes(source.model_copy(update={"shard_bytes": 7}), found) == 7


def test_text_files_are_documents_by_their_names(tmp_path: Path, model: str, serial: None) -> None:
    (tmp_path / "source").mkdir()
    for name, data in {"a.txt": b"w1  W2 w3", "b.txt": b""}.items():
        (tmp_path / "source" / name).write_bytes(data)
    made = step.run(settings(tmp_path, model, "runtime.max_bad_share=0.5"))
    assert made.read(["chunk_id", "text"]).to_pylist() == [{"chunk_id": "a.txt:0", "text": "w1  W2 w3"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["source.text=body"], "source.text: no column 'body' in any file of .*; a.parquet has id, text, url, score"),
        (["source.key=doc"], "source.key: no column 'doc'"),
        (["source.keep.dump=string"], "source.keep.dump: no column 'dump'"),
        (["source.keep.url=text"], "keep.url = 'text': need an Arrow type such as string"),
        (["source.keep.text=string"], "keep.text: chunks have a column of that name"),
        (["overlap=10"], "max_tokens = 10, overlap = 10"),
        (["source.folder=/nowhere"], "source.folder = '/nowhere': no .json, .jsonl"),
        (["model=/nowhere/model"], "model '/nowhere/model'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(
    tmp_path: Path, model: str, changes: list[str], message: str
) -> None:
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows(3)), tmp_path / "source/a.parquet")
    with pytest.raises(UserError, match=message):
        step.run(settings(tmp_path, model, *changes))
    assert not (tmp_path / "root").exists()


def test_a_corpus_without_a_chunk_is_no_result(tmp_path: Path, model: str, serial: None) -> None:
    write_lines(tmp_path, [{"text": "\x00"}])
    with pytest.raises(UserError, match="no chunk is left: nothing dropped of 1 records"):
        step.run(settings(tmp_path, model))


@pytest.fixture
def near_and_far(tmp_path: Path, model: str, serial: None, s3_root: str) -> Callable[..., tuple[Artifact, Artifact]]:  # noqa: F811
    """The chunks of the folder `source`, and of the same files on S3."""
    (tmp_path / "source").mkdir()

    def cut(*given: str) -> tuple[Artifact, Artifact]:
        remote = Storage(s3_root.replace("/quire?", f"/{tmp_path.name}?"))
        for file in (tmp_path / "source").iterdir():
            remote.write_bytes(file.name, file.read_bytes())
        given = ("source.shard_bytes=2000", *given)
        near = step.run(settings(tmp_path, model, *given))
        far = step.run(settings(tmp_path, model, *given, f"source.folder={remote.root}", "name=far"))
        assert far.read().equals(near.read()) and rejects(far) == rejects(near)
        assert far.manifest["inputs"] == near.manifest["inputs"]
        return near, far

    return cut


def test_a_folder_on_s3_gives_the_chunks_of_the_same_folder_on_a_disk(
    tmp_path: Path, near_and_far: Callable[..., tuple[Artifact, Artifact]]
) -> None:
    parts = [rows(90)[at::3] for at in range(3)]
    pq.write_table(pa.Table.from_pylist(parts[0]), tmp_path / "source/a.parquet", row_group_size=20)
    lines = [json.dumps({"text": row["text"]}).encode() for row in parts[1]]
    (tmp_path / "source/b.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*lines, b"{"])))
    (tmp_path / "source/c.txt").write_text(parts[2][-1]["text"])
    near, far = near_and_far("runtime.max_bad_share=0.1")
    assert len(near.read()["document_id"].unique()) == 61
    assert rejects(far)[0]["detail"].startswith("b.jsonl.gz, line 31: ")


def test_every_format_whole_or_damaged_is_read_on_s3_as_on_a_disk(
    tmp_path: Path, near_and_far: Callable[..., tuple[Artifact, Artifact]]
) -> None:
    lines, table = "".join(json.dumps(row) + "\n" for row in rows(40)).encode(), pa.Table.from_pylist(rows(40))
    with pa.ipc.new_file(tmp_path / "source/a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    pq.write_table(table, tmp_path / "source/b.parquet", row_group_size=10)
    pa_csv.write_csv(table, tmp_path / "source/c.csv")
    noise = json.dumps({"id": "n", "text": " ".join(map(str, range(3000)))}).encode()  # so that half of it is some rows
    whole = {
        "d.jsonl": lines,
        "e.jsonl.gz": gzip.compress(lines),
        "f.jsonl.zst": pa.compress(lines, "zstd", asbytes=True),
    }
    for name, data in whole.items():
        (tmp_path / "source" / name).write_bytes(data)
    for name in ("b.parquet", "e.jsonl.gz"):
        data = (
            (tmp_path / "source" / name).read_bytes()
            if name[0] == "b"
            else gzip.compress(lines + noise + b"\n" + lines)
        )
        (tmp_path / "source" / f"half-{name}").write_bytes(data[: len(data) // 2])
    near, far = near_and_far("source.keep.url=string", "runtime.max_bad_share=0.3")
    files = {name.split(":")[0] for name in near.read()["document_id"].to_pylist()}
    assert {"a.arrow", "b.parquet", "c.csv", *whole} <= files
    assert {row["detail"].split(",")[0].split(":")[0] for row in rejects(far)} == {"half-b.parquet", "half-e.jsonl.gz"}


def test_a_kept_column_that_some_files_lack_or_have_in_another_type(tmp_path: Path, model: str, serial: None) -> None:
    (tmp_path / "source").mkdir()
    has = [{"text": text(n, 5), "url": f"u{n}"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(has), tmp_path / "source/a.parquet")
    pq.write_table(pa.table({"text": [text(4, 5)]}), tmp_path / "source/b.parquet")
    pq.write_table(pa.table({"text": [text(5, 5)], "url": [7]}), tmp_path / "source/c.parquet")
    made = step.run(settings(tmp_path, model, "source.keep.url=string", "runtime.max_bad_share=0.5"))
    assert made.read()["url"].to_pylist() == ["u0", "u1", "u2", None]
    assert [(row["reason"], row["detail"]) for row in rejects(made)] == [
        ("wrong_type", "c.parquet, row 0: url = 7 is no string")
    ]


@pytest.mark.ray
def test_an_interrupted_run_does_the_rest_and_ends_in_the_same_bytes(
    tmp_path: Path, model: str, local_ray: None
) -> None:
    write_lines(tmp_path, [*rows(100), *rows(2)])
    whole = step.run(settings(tmp_path, model, *KEEP))
    resumed = settings(tmp_path, model, *KEEP, "name=resumed", "runtime.num_workers=1")
    broken = tmp_path / "root/chunks/resumed/part-00003.parquet"
    broken.mkdir(parents=True)  # the worker that comes to it fails
    with pytest.raises(Exception, match="part-00003"):
        step.run(resumed)
    broken.rmdir()
    finished = sorted((tmp_path / "root/chunks/resumed/_shards").iterdir())
    assert finished and not (tmp_path / "root/chunks/resumed/manifest.json").exists()
    made = step.run(resumed)
    assert made.manifest["files"] == whole.manifest["files"] and made.manifest["dropped"] == {"repeated_id": 2}
    assert step.run(resumed).manifest == made.manifest


def test_an_estimate_is_near_what_the_run_makes_and_leaves_nothing(tmp_path: Path, model: str, serial: None) -> None:
    write_lines(tmp_path, rows(600))
    asked = settings(tmp_path, model, "source.shard_bytes=6000", "runtime.prices.cpu_hour=1.0")
    told = step.estimate(asked)
    assert not (tmp_path / "root").exists() and "USD" in told
    estimated = [int(word.replace(",", "")) for word in re.findall(r"([\d,]+) (?:rows|tokens), ", told)[1:]]
    made = step.run(asked).manifest
    for guess, true in zip(estimated, (made["rows_out"], made["facts"]["tokens"]), strict=True):
        assert 0.7 * true < guess < 1.4 * true
