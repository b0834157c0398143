"""Papers to a token store to a sweep to its report, on a local Ray: real steps, small sizes."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import arxiv, tokenize
from quire import artifact
from quire.config import to_toml
from quire.errors import UserError
from quire.tokens import TokenStore
from trainers import evaluate_lm, lm
from tune import sweep

pytestmark = pytest.mark.ray
TOPICS = sorted(tiny.TOPICS)[:3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metadata as published: a plain file and a compressed one, some records that cannot be used."""
    made = tmp_path_factory.mktemp("arxiv")
    records = [
        {
            "id": f"{topic}/{i:04d}",
            "title": f"On the {topic} of\n  things",
            "abstract": "  " + " ".join(tiny.book(topic, f"{topic}{i % 7}", 12, seed=i).split()),
            "categories": f"{topic}.AA other.BB" if i % 2 else [f"{topic}.BB"],
            "versions": [{"version": "v1", "created": "Mon, 2 Apr 2007"}],
        }
        for topic in TOPICS
        for i in range(40)
    ]
    lines = [json.dumps(record) for record in records]
    bad = ["not json", json.dumps({"id": "x", "title": "t", "abstract": "", "categories": "a"})]
    bad += [json.dumps({"id": "y", "title": "t", "abstract": "some text", "categories": ""}), lines[0]]
    (made / "a.json").write_text("\n".join(lines[:60]) + "\n", "utf-8")
    with gzip.open(made / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines[60:] + bad))
    return made


@pytest.fixture(scope="module")
def root(folder: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    where = str(tmp_path_factory.mktemp("root"))
    source = {"kind": "metadata", "folder": str(folder), "shard_bytes": 9_000}
    arxiv.run(arxiv.ArxivConfig(name="p", source=source, runtime={"root": where}))
    tokenizer = {"kind": "bpe", "vocab_size": 400}
    categories = {"level": "archive"}
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    settings = {"documents": "p", "tokenizer": tokenizer, "categories": categories, "shares": shares}
    tokenize.run(tokenize.TokenizeConfig(name="t", **settings, runtime={"root": where}))
    return where


def test_every_record_is_kept_or_dropped_for_a_reason(root: str) -> None:
    made = artifact.open_artifact(root, "documents", "p")
    assert made.manifest["dropped"] == {"no_category": 1, "no_text": 1, "not_json": 1, "repeated_id": 1}
    rows = made.read().to_pylist()
    assert len(rows) == 120 and len(made.parts) > 8  # ranges of bytes give each line once
    first = next(row for row in rows if row["document_id"] == f"{TOPICS[0]}/0001")
    assert first["text"].startswith(f"On the {TOPICS[0]} of things\n\n") and "  " not in first["text"]
    assert first["categories"] == [f"{TOPICS[0]}.AA", "other.BB"] and first["created"] == "Mon, 2 Apr 2007"


def test_the_store_holds_the_documents_tokens_and_is_the_same_whatever_the_workers(root: str) -> None:
    made = artifact.open_artifact(root, "tokens", "t")
    store = TokenStore.open(made)
    tokenizer = AutoTokenizer.from_pretrained(store.folder / "tokenizer")
    texts = {r["document_id"]: r["text"] for r in artifact.open_artifact(root, "documents", "p").read().to_pylist()}
    for row in range(0, len(store.lengths), 17):
        ids = store.read(row, 0, int(store.lengths[row])).tolist()
        assert tokenizer.decode(ids) == texts[store.document_ids[row]]
    assert store.names() == TOPICS and len(store.lengths) == 120
    recipe = made.manifest["recipe"]
    again = tokenize.TokenizeConfig(
        **{key: recipe[key] for key in ("documents", "tokenizer", "categories", "shares")},
        name="t1",
        runtime={"root": root, "num_workers": 1},
    )
    assert tokenize.run(again).manifest["files"] == made.manifest["files"]


def lm_settings(root: str, **changes: object) -> lm.LmConfig:
    values = {
        "tokens": "t",
        "model": {"layers": 1, "width": 16, "heads": 2, "mlp_width": 32},
        "sequence_length": 32,
        "batch_size": 8,
        "num_eval_windows": 4,
        "loop": {"max_steps": 12, "learning_rate": 0.01, "eval_every": 6, "checkpoint_every": 6, "keep_every": 6},
        "runtime": {"root": root, "wandb": "disabled", "cpus_per_worker": 1},
    }
    return lm.LmConfig(**{**values, **changes})


def run_sweep(root: str, folder: Path, name: str, **changes: object) -> artifact.Artifact:
    base = folder / f"{name}.toml"
    base.write_text(to_toml(lm_settings(root, name="base")))
    values = {"name": name, "trainer": "trainers.lm", "experiment": str(base), "runtime": {"root": root}}
    return sweep.run(sweep.SweepConfig(**values, **changes))


@pytest.fixture(scope="module")
def swept(root: str, tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    return run_sweep(root, tmp_path_factory.mktemp("e"), "s", grid={"k": (1, 3), "category_seed": (0, 1)})


@pytest.fixture(scope="module")
def control(root: str, tmp_path_factory: pytest.TempPathFactory) -> artifact.Artifact:
    grid = {"k": (1, 3), "category_seed": (0,), "shuffle_labels": (7,)}
    return run_sweep(root, tmp_path_factory.mktemp("e"), "c", grid=grid)


def test_a_sweep_trains_every_point_and_its_report_reads_them(root: str, swept: artifact.Artifact) -> None:
    rows = swept.read_json("trials.json")
    assert [row["values"] for row in rows] == [{"k": k, "category_seed": s} for k in (1, 3) for s in (0, 1)]
    assert all(row["state"] == "finished" and row["tokens"] == 12 * 8 * 32 for row in rows)
    for row in rows:
        made = artifact.open_artifact(root, "models", row["trial"])
        history = made.read_json("history.json")
        assert history["best"] < history["untrained"] - 0.1  # it learns
        assert len(made.read_json("mixture.json")["categories"]) == row["values"]["k"]
        assert {file for file in made.manifest["files"] if file.endswith("model.safetensors")} == {
            "model.safetensors",
            "checkpoints/step-00000006/model.safetensors",
            "checkpoints/step-00000012/model.safetensors",
        }
        AutoModelForCausalLM.from_pretrained(made.local())


def evaluate(root: str, **changes: object) -> artifact.Artifact:
    runtime = {"root": root, "wandb": "disabled"}
    return evaluate_lm.run(evaluate_lm.EvaluateLmConfig(num_windows=4, runtime=runtime, **changes))


def test_the_report_of_a_sweep_with_its_control_and_a_pretrained_model(
    root: str, swept: artifact.Artifact, control: artifact.Artifact
) -> None:
    made = artifact.open_artifact(root, "models", swept.read_json("trials.json")[0]["trial"])
    report = evaluate(root, name="r", sweep="s", control="c", pretrained=str(made.local()))
    results = report.read_json("results.json")
    # with all three categories the second category_seed chooses the same: one model, counted once
    assert {k: level["runs"] for k, level in results["own"]["by_k"].items()} == {"1": 2, "3": 1}
    assert {k: level["runs"] for k, level in results["control_own"]["by_k"].items()} == {"1": 1, "3": 1}
    assert "trend" in results["first"] and "trend" not in results["own"]

    table = report.storage.read_table(f"{report.folder}/losses.parquet").to_pylist()
    real = [row for row in table if not row["control"]]
    assert len(real) == 3 * 3 and len(table) == 5 * 3 == len(results["models"])
    assert all(r["loss_low"] <= r["loss"] <= r["loss_high"] for r in table)
    assert all(r["perplexity"] == pytest.approx(np.exp(r["loss"])) for r in table)
    assert sum(r["in_mixture"] for r in real) == 1 + 1 + 3
    mine = [row for row in real if row["in_mixture"]]
    by_trial = {row["trial"]: np.mean([r["loss"] for r in mine if r["trial"] == row["trial"]]) for row in mine}
    positions = report.storage.read_table(f"{report.folder}/positions.parquet").to_pandas()
    pretrained = positions[positions.measure == "pretrained"]
    assert pretrained.loss.tolist() == results["pretrained"]["curve"] and pretrained.k.isna().all()
    assert pretrained.sd.tolist() == results["pretrained"]["sd"] and pretrained.sd.notna().all()
    own = positions[(positions.measure == "own") & ~positions.control].groupby("trial").loss.mean()
    assert own.to_dict() == pytest.approx(by_trial, abs=1e-6)

    # the pretrained model is one of the sweep's, so it has the same bits a byte, but for texts of another length
    ours = np.mean([r["bits_per_byte"] for r in real if r["trial"] == made.name])
    assert results["pretrained"]["bits_per_byte"] == pytest.approx(ours, rel=0.15)
    assert all(level["bits_per_byte"] > 0 for level in results["own"]["by_k"].values())
    assert report.storage.read_bytes(f"{report.folder}/table.md").decode().count("\n") == 2 + 6
    page = report.storage.read_bytes(f"{report.folder}/index.html").decode()
    assert page.count("<svg") == 5 and "labels shuffled" in page


def test_what_is_no_comparison_over_k_is_refused(
    root: str, swept: artifact.Artifact, control: artifact.Artifact, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="was trained on shuffled labels; name the control so"):
        evaluate(root, name="x", sweep="c")
    with pytest.raises(UserError, match="was trained on its categories; name the sweep so"):
        evaluate(root, name="x", sweep="s", control="s")
    other = run_sweep(root, tmp_path, "rates", grid={"k": (1,), "loop.learning_rate": (0.01, 0.02)})
    with pytest.raises(UserError, match=r"trials differ in loop.learning_rate \(0.01, 0.02\)"):
        evaluate(root, name="x", sweep=other.name)


def test_another_number_of_workers_trains_the_same_model(root: str) -> None:
    loop = {"max_steps": 6, "learning_rate": 0.01, "eval_every": 6, "checkpoint_every": 6}
    one = lm.run(lm_settings(root, name="one", loop=loop))
    runtime = {"root": root, "wandb": "disabled", "cpus_per_worker": 1, "num_workers": 2}
    two = lm.run(lm_settings(root, name="two", loop=loop, runtime=runtime))
    losses = [[r["loss"] for r in made.read_json("history.json")["history"] if "loss" in r] for made in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 4}, "k = 4: there are 3 categories.*; choose 1 to 3"),
        ({"categories": ("farm", "evil")}, "categories = 'evil': the token store has .*; choose among these"),
        ({"sequence_length": 4000}, "choose a shorter window"),
        ({"distinct_tokens": 10**9 + 2}, "are asked for: lower distinct_tokens"),
        ({"distinct_tokens": 100}, "does not divide by k = 3"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(root: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lm.run(lm_settings(root, name="bad", **changes))
    from quire.storage import Storage

    Storage(root).delete("models/bad")


@pytest.mark.parametrize("kept", [None, 100])
def test_a_missing_or_truncated_token_file_is_refused_before_training(
    root: str, tmp_path: Path, kept: int | None
) -> None:
    shutil.copytree(Path(root) / "tokens", tmp_path / "tokens")
    (tmp_path / "models").mkdir()
    file = tmp_path / "tokens" / "t" / "tokens.bin"
    data = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(data[:kept])
    state = "missing" if kept is None else "100 bytes long"
    message = f"tokens.bin: {state}, store.json says {len(data):,} bytes; delete the store and tokenize again"
    runtime = {"root": str(tmp_path), "wandb": "disabled"}
    with pytest.raises(UserError, match=message):
        lm.run(lm_settings(str(tmp_path), name="bad", runtime=runtime))
    with pytest.raises(UserError, match=message):
        run_sweep(str(tmp_path), tmp_path, "bad", grid={"k": (1, 3)})
    assert not list((tmp_path / "models").iterdir()) and not (tmp_path / "sweeps").exists()
