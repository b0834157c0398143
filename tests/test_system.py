"""The whole flow as users run it: submitted as a job, under S3, killed and repeated, and asked again."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Head, head, s3_server, wait_for
from safetensors.numpy import load_file

from quire.artifact import WORK, open_artifact
from quire.storage import Storage

pytestmark = pytest.mark.system
STEPS = {
    "documents": "documents/demo",
    "chunk": "chunks/demo",
    "embed": "embeddings/demo",
    "neighbors": "neighbors/demo",
    "pairs": "pairs/demo",
    "bi_encoder": "models/demo-bi-encoder",
    "cross_encoder": "models/demo-cross-encoder",
    "score": "predictions/demo",
    "calibrate": "models/demo-matcher",
    "evaluate": "reports/demo",
    "try_out": "reports/demo-answer",
}


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    patch = pytest.MonkeyPatch()
    with s3_server() as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        with head(tmp_path_factory.mktemp("h"), **environment) as started:
            yield started
    patch.undo()


@pytest.fixture(scope="module")
def words(encoder_folder: str, books_folder: Path) -> list[str]:
    """The demo flow, with a tiny encoder and few steps, on a folder of books."""
    changes = {
        "documents.source.kind": "folder",
        "documents.source.folder": books_folder,
        "chunk.size": 6,
        "chunk.overlap": 2,
        "documents.source.shard_bytes": 100_000,
        "embed.model": encoder_folder,
        "cross_encoder.model": encoder_folder,
        "bi_encoder.model": encoder_folder,
        "score.untrained": encoder_folder,
        "score.shard_size": 60,
        "cross_encoder.loop.max_steps": 60,
        "cross_encoder.loop.checkpoint_every": 10,
        "cross_encoder.max_length": 96,
        "bi_encoder.loop.max_steps": 60,
        "bi_encoder.loop.checkpoint_every": 10,
        "bi_encoder.max_seq_length": 96,
        "cross_encoder.loop.learning_rate": 0.001,
        "bi_encoder.loop.learning_rate": 0.001,
        "cross_encoder.runtime.wandb": "disabled",
        "bi_encoder.runtime.wandb": "disabled",
    }
    return ["quire.flow", "flows/demo.toml", *(f"{key}={value}" for key, value in changes.items())]


def contents(storage: Storage) -> dict[str, dict]:
    """SHA-256 of every published data file, by artefact; reports hold clock times and addresses and are left out."""
    found = {}
    for folder in STEPS.values():
        if not folder.startswith("reports/"):
            made = open_artifact(storage, *folder.split("/"))
            found[folder] = {name: facts["sha256"] for name, facts in made.manifest["files"].items()}
    return found


@pytest.fixture(scope="module")
def submitted(ray_head: Head, words: list[str]) -> Storage:
    """The flow run once, undisturbed, as a job, under an s3:// root."""
    done = ray_head.submit(*words, "root=s3://corpora/quire")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return Storage("s3://corpora/quire")


def test_a_submitted_job_leaves_every_artefact_under_s3(submitted: Storage) -> None:
    for folder in STEPS.values():
        made = open_artifact(submitted, *folder.split("/"))
        assert not [name for name in submitted.files(folder) if name.startswith(("_", WORK))], folder
        assert made.manifest["fingerprint"]


def test_the_report_and_the_answer_are_whole(submitted: Storage) -> None:
    results = submitted.read_json("reports/demo/results.json")
    assert set(results) >= {"two-stage", "bi-encoder", "cross-encoder", "untrained encoder", "character 4-grams"}
    assert "overall" in results["two-stage"]
    answer = submitted.read_json("reports/demo-answer/exchange.json")["answer"]
    assert 0 <= answer["probability"] <= 1 and answer["stage"] in ("bi-encoder", "cross-encoder")


def test_training_beats_the_untrained_encoder(submitted: Storage) -> None:
    results = submitted.read_json("reports/demo/results.json")
    assert results["bi-encoder"]["overall"]["auc"] > results["untrained encoder"]["overall"]["auc"]


def test_a_second_run_does_nothing(ray_head: Head, words: list[str], submitted: Storage) -> None:
    before = {folder: submitted.read_bytes(f"{folder}/manifest.json") for folder in STEPS.values()}
    done = ray_head.driver(*words, "root=s3://corpora/quire")
    output, _ = done.communicate(timeout=300)
    assert done.returncode == 0, output
    assert output.count("already published, skipped") == len(STEPS)
    assert before == {folder: submitted.read_bytes(f"{folder}/manifest.json") for folder in STEPS.values()}


def test_killed_in_every_stage_and_repeated_it_ends_with_the_same_bytes(
    ray_head: Head, words: list[str], submitted: Storage, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    command = [*words, f"root={root}"]
    marks = dict.fromkeys(("bi_encoder", "cross_encoder"), "_work/checkpoint-00000020/state.json")
    marks |= dict.fromkeys(("documents", "chunk", "embed", "score"), "_shards/*.json")  # with part of the work done
    for step in (step for step in STEPS if not STEPS[step].startswith("reports/")):
        folder = root / STEPS[step]
        driver = ray_head.driver(*command)
        begun = lambda: any(folder.glob(marks.get(step, "_draft.json"))) or (folder / "manifest.json").exists()  # noqa: B023, E731
        wait_for(begun, 240, f"stage {step}")
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
    last = ray_head.driver(*command, "num_workers=1")
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0, output
    assert contents(Storage(str(root))) == contents(submitted)


def test_killed_workers_of_ray_data_are_replaced_and_the_bytes_are_the_same(
    ray_head: Head, words: list[str], submitted: Storage, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    killed = ("documents", "chunk", "embed", "score")
    for step, folder in STEPS.items():
        if step not in killed and not folder.startswith("reports/"):
            submitted.download(folder, root / folder)
    driver = ray_head.driver(*words, f"root={root}")
    found = dict.fromkeys(killed, 0)
    for step in killed:
        folder = root / STEPS[step]
        begun = lambda: any(folder.glob("_shards/*.json")) or (folder / "manifest.json").exists()  # noqa: B023, E731
        wait_for(begun, 240, f"stage {step}")
        for worker in ray_head.workers("MapBatches("):
            worker.kill()
            found[step] += 1
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert sum(map(bool, found.values())) >= 2, found  # a stage may end before its workers are found
    assert contents(Storage(str(root))) == contents(submitted)


def test_killed_training_workers_are_replaced_and_the_losses_are_the_same(
    ray_head: Head, words: list[str], submitted: Storage, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    storage = Storage(str(root))
    for folder in ("documents/demo", "chunks/demo", "embeddings/demo", "neighbors/demo", "pairs/demo"):
        submitted.download(folder, root / folder)
    driver = ray_head.driver(*words, f"root={root}")
    models = [STEPS[step] for step in ("bi_encoder", "cross_encoder")]
    killed = []
    for model in models:
        wait_for((root / model / "_work/checkpoint-00000020/state.json").exists, 240, f"a checkpoint of {model}")
        for worker in ray_head.workers("RayTrainWorker"):
            worker.kill()
            killed.append(model)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert killed  # one at least: the last steps may be over before its worker is found
    for model in models:
        histories = [place.read_json(f"{model}/history.json")["history"] for place in (storage, submitted)]
        assert histories[0] == histories[1]
        assert storage.read_bytes(f"{model}/model.safetensors") == submitted.read_bytes(f"{model}/model.safetensors")
        assert load_file(root / model / "model.safetensors")


@pytest.mark.parametrize("step", ["evaluate", "try_out"])
def test_killed_in_a_last_step_and_repeated_it_ends_as_undisturbed(
    ray_head: Head, words: list[str], submitted: Storage, tmp_path: Path, step: str
) -> None:
    root = tmp_path / "artifacts"
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        submitted.download(STEPS[earlier], root / STEPS[earlier])
    folder, command = root / STEPS[step], [*words, f"root={root}"]
    driver = ray_head.driver(*command)
    wait_for((folder / "_draft.json").exists, 240, f"stage {step}")
    if step == "try_out":  # not before it has left something on Serve
        wait_for(lambda: ray_head.workers("ServeReplica"), 240, "a replica of the question's models")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert not (folder / "manifest.json").exists()
    last = ray_head.driver(*command)
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0, output
    made = Storage(str(root))
    for name in ("results.json", "strata.json", "decisions.json", "table.txt"):
        assert made.read_bytes(f"reports/demo/{name}") == submitted.read_bytes(f"reports/demo/{name}")
    exchanges = [storage.read_json("reports/demo-answer/exchange.json") for storage in (made, submitted)]
    assert exchanges[0]["request"] == exchanges[1]["request"]
    probabilities = [exchange["answer"]["probability"] for exchange in exchanges]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)
    wait_for(lambda: not ray_head.workers("ServeReplica"), 60, "the end of every replica, the killed one's too")


def test_a_mistake_in_a_step_shows_before_anything_starts(ray_head: Head, words: list[str], tmp_path: Path) -> None:
    driver = ray_head.driver(*words, f"root={tmp_path}", "evaluate.num_bootstrap=5")
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 2 and "num_bootstrap" in output and "num_bootstraps" in output
    assert not list(tmp_path.iterdir())
    assert json.dumps("unknown key")[1:-1] in output
