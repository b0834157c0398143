"""Two thousand books fetched by the real command, killed ten times: none is fetched twice, the bytes are the same."""

import os
import random
import signal
import time
from pathlib import Path

import cluster
import pytest
from gutenberg_server import Fault, Server, number_of, path_of, small_book
from test_gutenberg_step import contents

from quire import artifact
from quire.artifact import Artifact

pytestmark = pytest.mark.system
NUMBERS = range(1, 2001)
COMMAND = ["pipelines.gutenberg", "select.first=1", "select.last=2000", "keep_raw=true", "runtime.concurrency=8"]
COMMAND += ["runtime.contact=tests@example.org", "runtime.limits.first_wait=0.01"]
RATE = 100  # requests a second: slow enough to be killed ten times


def comparable(made: Artifact) -> dict[str, object]:
    """All but the addresses, of which the port differs, and the sentences that name them."""
    addressed = dict.fromkeys(("source_url", "asked_url", "detail"))
    rows = [row | addressed for row in contents(made)["metadata"]]
    raw = {name: facts for name, facts in made.manifest["files"].items() if name.startswith("raw/")}
    columns = [name for name in made.read().column_names if name != "source"]
    return {"raw": raw, "rows": rows, "documents": made.read(columns), "dropped": made.manifest["dropped"]}


def test_two_thousand_ids_killed_ten_times_end_in_the_same_bytes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw = random.Random(1)
    files = {path_of(n, "pg{id}.txt" if n % 5 else "pg{id}-0.txt"): small_book(n, 8) for n in NUMBERS if n % 11}
    faults = {n: Fault("status", 1, "503 Busy") for n in range(7, 2000, 97)} | {n: Fault("half", 1) for n in (3, 400)}

    def settled(name: str) -> set[str]:
        return {file.stem for file in (tmp_path / "documents" / name / "_work/records").glob("pg*.json")}

    with cluster.head(tmp_path_factory.mktemp("h")) as head:

        def start(server: Server, name: str):
            return head.driver(
                *COMMAND,
                f"name={name}",
                f"runtime.root={tmp_path}",
                f'runtime.base_urls=["{server.base}"]',
                f"runtime.rate={RATE}",
            )

        with Server(files, faults) as server:
            whole = start(server, "whole")
            output, _ = whole.communicate(timeout=900)
            assert whole.returncode == 0, output
        with Server(files, faults) as server:
            twice: list[str] = []
            for _ in range(10):
                known, begun = settled("killed"), len(server.paths)
                goal = len(known) + draw.randrange(10, 60)
                driver = start(server, "killed")
                cluster.wait_for(lambda: len(settled("killed")) >= goal, 240, f"{goal} books")  # noqa: B023
                time.sleep(draw.random() / 10)  # anywhere between two books
                os.killpg(driver.pid, signal.SIGKILL)
                driver.communicate()
                twice += [path for path in server.paths[begun:] if f"pg{number_of(path)}" in known]
            known, begun = settled("killed"), len(server.paths)
            last = start(server, "killed")
            output, _ = last.communicate(timeout=900)
            assert last.returncode == 0, output
            twice += [path for path in server.paths[begun:] if f"pg{number_of(path)}" in known]
            assert not twice and len(known) < 2000
    made = [artifact.open_artifact(str(tmp_path), "documents", name) for name in ("whole", "killed")]
    assert comparable(made[0]) == comparable(made[1])
    assert made[1].manifest["rows_in"] == 2000 and len(comparable(made[1])["raw"]) == len(files)
