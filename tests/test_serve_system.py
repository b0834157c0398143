"""The service as README starts it: with `serve run`, from the config on one host, and from a bucket on any node."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
import yaml
from cluster import ROOT, Head, free_ports, head, s3_server, wait_for
from matchers import SHORT, publish_matcher

pytestmark = pytest.mark.system
SERVE = str(Path(sys.executable).with_name("serve"))
STARTS = 240  # seconds; three processes that load torch, on two cores


def serve(started: Head, *words: str) -> None:
    """A command of Serve's own, from the repository's root."""
    done = subprocess.run([SERVE, *words], cwd=ROOT, env=started.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def check(port: int) -> None:
    """The service answers, is healthy, and shows its page."""
    wait_for(lambda: answers(port), STARTS, "the service")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        answer = client.post("/v1/match", json={"a": SHORT, "b": SHORT})
        assert (answer.status_code, answer.json()["stage"]) == (200, "cross-encoder")
        assert client.get("/healthz").json()["status"] == "ok"
        assert "Quire" in client.get("/docs").text


def deploy(started: Head, folder: Path, matcher: str, **changes: object) -> None:
    """`serve deploy serve/config.yaml` with another port and matcher, checked, and taken away again."""
    (port,) = free_ports(1)
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["matcher"] = matcher
    config["applications"][0].update(changes)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    serve(started, "deploy", str(file), "--address", started.dashboard)
    try:
        check(port)
    finally:
        serve(started, "shutdown", "--yes", "--address", started.dashboard)
        wait_for(lambda: not answers(port), 60, "the end of the service")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("root")
    publish_matcher(folder, encoder_folder, prefilter=0.0)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head that was started in the repository's root, as on one host."""
    with head(tmp_path_factory.mktemp("h")) as started:
        yield started


def test_serve_run_answers_for_a_matcher_at_a_relative_path(here: Head, root: Path) -> None:
    (port,) = free_ports(1)
    serve(here, "start", "--http-host", "127.0.0.1", "--http-port", str(port), "--address", here.address)
    relative = os.path.relpath(root / "models" / "m", ROOT)
    run = subprocess.Popen(
        [SERVE, "run", "serve.app:build", f"matcher={relative}", "--address", here.address],
        cwd=ROOT,
        env=here.environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    try:
        check(port)
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(120)


def test_serve_deploy_answers_on_one_host(here: Head, root: Path, tmp_path: Path) -> None:
    deploy(here, tmp_path, str(root / "models" / "m"))


@pytest.fixture
def bucket(root: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a bucket with the matcher's artefacts and the code as a zip file."""
    for room in ("quire", "serve"):
        shutil.copytree(ROOT / room, tmp_path / "code" / "quire" / room, ignore=shutil.ignore_patterns("__pycache__"))
    code = shutil.make_archive(str(tmp_path / "quire"), "zip", tmp_path / "code")
    with s3_server() as environment:
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **keys)
        s3.upload_file(code, "corpora", "quire.zip")
        for file in root.rglob("*"):
            if file.is_file():
                s3.upload_file(str(file), "corpora", f"artifacts/{file.relative_to(root)}")
        yield environment


def test_serve_deploy_brings_code_and_matcher_from_a_bucket_to_nodes_that_have_neither(
    bucket: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("b")
    with head(folder, cwd=folder, TMPDIR=str(folder), **bucket) as started:
        working_dir = {"working_dir": "s3://corpora/quire.zip"}
        deploy(started, tmp_path, "s3://corpora/artifacts/models/m", runtime_env=working_dir)
