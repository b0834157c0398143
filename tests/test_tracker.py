"""What Weights & Biases is told, read back from the files of an offline run."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import artifact, checkpoint, config, loop
from quire.loop_config import LoopConfig
from trainers import fit, tracker


def records(folder: Path) -> list[Any]:
    """Every record of the offline runs below a folder, as `wandb sync` would read them.

    A .wandb file is a header of 7 bytes and a LevelDB log: blocks of 32 KiB that hold pieces, each with its checksum
    (4 bytes), length (2) and type (1: whole, 2: first, 3: middle, 4: last).
    """
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted(folder.rglob("*.wandb")):
        data, place, whole = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if 32_768 - place % 32_768 < 7:  # the rest of a block is padding
                place += 32_768 - place % 32_768
                continue
            length, kind = struct.unpack_from("<HB", data, place + 4)
            if place + 7 + length > len(data):  # its process was killed while it wrote
                break
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                found.append(record)
                whole = b""
    return found


def ended(folder: Path, num_runs: int) -> list[Any]:
    """The records of that many runs, waited for: W&B lets go of a run before its last bytes are in the file."""
    deadline, found = time.monotonic() + 60, []
    while sum(record.WhichOneof("record_type") == "exit" for record in found) < num_runs:
        assert time.monotonic() < deadline, found
        found = records(folder)
    return found


def logged(folder: Path) -> list[dict[str, Any]]:
    """What was logged in the offline runs below a folder, a dict a step, in order."""
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.history.item
    ]


class Settings(config.Config):
    name: str = "told"
    learning_rate: float = 0.125
    runtime: tracker.TrackedRuntime


def draft_at(root: Path) -> artifact.Draft:
    return artifact.begin(str(root), "reports", "told", recipe={"a": 1}, inputs={})


def test_an_offline_run_holds_config_metrics_and_the_report(tmp_path: Path) -> None:
    settings = Settings(runtime={"root": str(tmp_path), "wandb_folder": str(tmp_path / "w")})
    run = tracker.start(settings, draft_at(tmp_path))
    run.log({"loss": 2.5, "curve": tracker.loggable([3.0, 2.0])}, step=1)
    run.finish()
    results = {"two_stage": {"all": {"auc": 0.75, "note": "words"}}, "p_value": 0.5}
    rows = [{"category": "sea", "loss": 2.5, "low": None}, {"category": "war", "loss": 3.5, "low": 3.0}]
    tracker.log_report(settings, draft_at(tmp_path), "<p>page</p>", results, {"losses": rows})

    found = ended(tmp_path / "w", 2)
    configured = {item.key or item.nested_key[0]: item.value_json for r in found for item in r.run.config.update}
    assert json.loads(configured["learning_rate"]) == 0.125
    steps = logged(tmp_path / "w")
    assert any(step.get("loss") == 2.5 and step.get("_step") == 1 for step in steps)
    assert [r.artifact.name for r in found if r.artifact.type == "report"] == ["told"]
    summary = {i.key or i.nested_key[0]: json.loads(i.value_json) for r in found for i in r.summary.update}
    assert summary["two_stage/all/auc"] == 0.75 and summary["p_value"] == 0.5 and "two_stage/all/note" not in summary
    (table,) = (tmp_path / "w").rglob("losses*.table.json")
    kept = json.loads(table.read_text("utf-8"))
    assert kept["columns"] == ["category", "loss", "low"] and kept["data"] == [["sea", 2.5, None], ["war", 3.5, 3.0]]
    pages = list((tmp_path / "w").rglob("*.html"))
    assert any("page" in path.read_text("utf-8") for path in pages)


def test_a_resumed_run_tells_what_its_killed_one_may_have_taken_along(tmp_path: Path) -> None:
    class Trained(Settings):
        loop: LoopConfig = LoopConfig(max_steps=5, learning_rate=0.1)
        runtime: fit.TrainRuntime

    runtime = {"root": str(tmp_path), "wandb_folder": str(tmp_path / "w")}
    module = torch.nn.Linear(2, 1)
    past = [
        {"step": 0, "eval_loss": 9.0, "eval_curve": [1.0, 2.0]},
        {"step": 1, "loss": 8.0},
        {"step": 2, "loss": 7.0},
        {"step": 2, "eval_loss": 6.5},
    ]
    state = loop.State(step=2, history=past)
    checkpoint.save(draft_at(tmp_path), module, torch.optim.AdamW(module.parameters()), state, rank=0)
    log, finish = fit.tracking(Trained(runtime=runtime), draft_at(tmp_path), rank=0)
    log({"step": 3, "loss": 5.0, "tokens_per_second": 10.0})
    finish()
    ended(tmp_path / "w", 1)
    steps = {row["_step"]: row for row in logged(tmp_path / "w")}
    assert [steps[step].get("loss") for step in range(4)] == [None, 8.0, 7.0, 5.0]
    assert (steps[0]["eval_loss"], steps[2]["eval_loss"]) == (9.0, 6.5)
    assert "tokens_per_second" in steps[3] and not any("tokens_per_second" in steps[step] for step in range(3))


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    settings = Settings(runtime={"root": str(tmp_path), "wandb": "disabled", "wandb_folder": str(tmp_path / "w")})
    assert tracker.start(settings, draft_at(tmp_path)) is None
    tracker.log_report(settings, draft_at(tmp_path), "<p>page</p>", {})
    assert not (tmp_path / "w").exists()


def test_no_secret_of_the_environment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "f" * 40
    monkeypatch.setenv("WANDB_API_KEY", secret)
    settings = Settings(runtime={"root": str(tmp_path), "wandb_folder": str(tmp_path / "w")})
    tracker.start(settings, draft_at(tmp_path)).finish()
    files = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert files and not any(secret.encode() in path.read_bytes() for path in files)
