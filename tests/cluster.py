"""A Ray head of our own on free ports, and the commands a user would type against it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import httpx
import psutil
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


class Head:
    """A started head: its addresses, and what runs below it."""

    def __init__(self, process: subprocess.Popen, port: int, dashboard: int, environment: dict[str, str]):
        self.process, self.environment = process, environment
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"

    def driver(self, *words: str, **options: object) -> subprocess.Popen:
        """`python -m ...` attached to this head, in a process group of its own."""
        environment = {**self.environment, "RAY_ADDRESS": self.address}
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def submit(self, *words: str) -> subprocess.CompletedProcess:
        """`ray job submit --working-dir . -- python -m ...`, waited for."""
        command = [
            RAY,
            "job",
            "submit",
            "--address",
            self.dashboard,
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
            *words,
        ]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=900)

    def workers(self, part: str) -> list[psutil.Process]:
        """Processes below this head whose title contains `part`."""
        return below(self.process.pid, part)


def below(pid: int, part: str) -> list[psutil.Process]:
    """Processes that this one has started, or that those have, whose title contains `part`."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if part in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def head(folder: Path, cwd: Path = ROOT, **environment: str):
    """Start `ray start --head` with two CPUs, from `cwd`; end it, and only it, afterwards."""
    port, dashboard, client = free_ports(3)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    full = {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1", **environment}
    full.pop("RAY_ADDRESS", None)
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        "--node-ip-address=127.0.0.1",
        "--object-store-memory=300000000",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    ]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(command, cwd=cwd, env=full, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    started = Head(process, port, dashboard, full)
    try:
        wait_for(lambda: _answers(dashboard), 120, "the head's dashboard")
        yield started
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        os.killpg(process.pid, signal.SIGKILL)  # asked to end, it would wait half a minute
        for child in left:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait(60)
        log.close()


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """A local S3 server with an empty bucket `corpora`, as the environment that finds it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()  # all servers of a process share what they hold
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys).create_bucket(Bucket="corpora")
    yield {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    server.stop()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until the condition holds. Raises AssertionError naming what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
