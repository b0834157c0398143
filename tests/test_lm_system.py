"""The mixture flow as users run it: under S3, killed in the middle of its sweep, and started again."""

import json
import os
import signal
from pathlib import Path

import pytest
import tiny
from cluster import head, s3_server, wait_for
from test_tracker import logged

from quire.artifact import MANIFEST, WORK, open_artifact
from quire.storage import Storage

pytestmark = pytest.mark.system
ROOT = "s3://corpora/lm"
STEPS = 300
SWEEPS = {
    "sweep": "arxiv-k",
    "control": "arxiv-k-control",
    "sweep_fixed": "arxiv-k-fixed",
    "control_fixed": "arxiv-k-fixed-control",
}


def write_papers(folder: Path) -> None:
    lines = [
        json.dumps(
            {
                "id": f"{topic}/{i:03d}",
                "title": f"On the {topic}",
                "abstract": tiny.book(topic, f"{topic}{i % 5}", 10, seed=i),
                "categories": f"{topic}.AA",
            }
        )
        for topic in sorted(tiny.TOPICS)[:3]
        for i in range(30)
    ]
    folder.mkdir()
    (folder / "papers.jsonl").write_text("\n".join(lines), "utf-8")


def overrides(papers: Path, runs: Path) -> list[str]:
    """The flow on a tiny corpus: three categories, a model of one layer, a few steps; W&B's files under `runs`."""
    trial = {
        "sequence_length": 32,
        "batch_size": 8,
        "num_eval_windows": 4,
        "model.layers": 1,
        "model.width": 16,
        "model.heads": 2,
        "loop.max_tokens": STEPS * 8 * 32,
        "loop.eval_every": 100,
        "loop.checkpoint_every": 20,
        "runtime.wandb_folder": runs,
    }
    made = {
        "root": ROOT,
        "papers.source.folder": papers,
        "tokenize.tokenizer.vocab_size": 400,
        "tokenize.categories.min_documents": 1,
        "sweep.grid": "{k = [1, 3], category_seed = [0, 1]}",
        "control.grid": "{k = [3], shuffle_labels = [0]}",
        "sweep_fixed.grid": "{k = [1, 3]}",
        "control_fixed.grid": "{k = [3], shuffle_labels = [0]}",
        "sweep_fixed.set.distinct_tokens": 900,
        "control_fixed.set.distinct_tokens": 900,
        "evaluate.num_windows": 4,
        "evaluate_fixed.num_windows": 4,
    }
    made |= {f"{step}.set.{key}": value for step in SWEEPS for key, value in trial.items()}
    return [f"{key}={value}" for key, value in made.items()]


def test_the_mixture_flow_under_s3_killed_in_its_sweep_repeats_nothing_finished(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers, runs = tmp_path / "papers", tmp_path / "runs"
    write_papers(papers)
    words = ("quire.flow", "flows/arxiv.toml", *overrides(papers, runs))
    with s3_server() as environment, head(tmp_path_factory.mktemp("h"), **environment) as started:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage = Storage(ROOT)

        def published() -> list[str]:
            return [f for f in storage.files("models") if f.startswith("arxiv-k-k") and f.endswith(f"/{MANIFEST}")]

        def checkpoints() -> list[str]:
            files = (f.split("/") for f in storage.files("models"))
            return [f[0] for f in files if f[-2].startswith("checkpoint-") and f[-1] == "state.json"]

        def first_step(trial: str) -> int:
            """The first that the trial's last attempt trained, beyond all where it was killed after its last step: only
            what is trained anew has a speed."""
            last = max((runs / "wandb").glob(f"offline-run-*-{trial}-*"))
            return min((row["_step"] for row in logged(last) if "tokens_per_second" in row), default=STEPS + 1)

        driver = started.driver(*words)
        wait_for(checkpoints, 400, "a checkpoint")
        begun = set(checkpoints())
        for worker in started.workers("RayTrainWorker"):
            worker.kill()  # the trials go on from their checkpoints
        wait_for(published, 400, "a finished trial")
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
        kept = {name: storage.read_bytes(f"models/{name}") for name in published()}
        assert 0 < len(kept) < 4
        again = started.driver(*words)
        output, _ = again.communicate(timeout=900)
        assert again.returncode == 0, output[-6000:]
        assert f"{len(kept)} are done" in output
        assert all(storage.read_bytes(f"models/{name}") == manifest for name, manifest in kept.items())
        for name in SWEEPS.values():
            assert {row["state"] for row in open_artifact(ROOT, "sweeps", name).read_json("trials.json")} == {
                "finished"
            }
        for name in published():
            history = storage.read_json(f"models/{name.removesuffix(MANIFEST)}history.json")["history"]
            assert [record["step"] for record in history if "loss" in record] == list(range(1, STEPS + 1))
        assert begun and all(first_step(trial) > 20 for trial in begun)  # from the checkpoint, not from scratch
        for name in ("arxiv-k", "arxiv-k-fixed"):
            results = open_artifact(ROOT, "reports", name).read_json("results.json")
            assert {"first", "own", "own_excess", "control_first"} <= results.keys()
        assert not [name for name in storage.files("tokens/arxiv") if name.startswith((WORK, "_"))]
