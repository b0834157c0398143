"""What Weights & Biases is told, read back from the files of an offline run."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from quire import artifact, config
from trainers import tracker


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
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                found.append(record)
                whole = b""
    return found


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
    tracker.log_report(settings, draft_at(tmp_path), "<p>page</p>", results)

    found = records(tmp_path / "w")
    configured = {item.key or item.nested_key[0]: item.value_json for r in found for item in r.run.config.update}
    assert json.loads(configured["learning_rate"]) == 0.125
    logged = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item} for r in found]
    assert any(step.get("loss") == 2.5 and step.get("_step") == 1 for step in logged)
    assert [r.artifact.name for r in found if r.artifact.type == "report"] == ["told"]
    summary = {i.key or i.nested_key[0]: json.loads(i.value_json) for r in found for i in r.summary.update}
    assert summary["two_stage/all/auc"] == 0.75 and summary["p_value"] == 0.5 and "two_stage/all/note" not in summary
    pages = list((tmp_path / "w").rglob("*.html"))
    assert any("page" in path.read_text("utf-8") for path in pages)


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
