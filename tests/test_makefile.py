"""`make demo` hands the flow what its user typed: a folder however it is called, and settings of steps."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from quire import flow

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(*words: str) -> subprocess.CompletedProcess:
    """`make -n`: what it would run; a make of its own also where these tests run under `make test`."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", "-n", *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def command(*words: str) -> list[str]:
    """The words of the flow's command line."""
    printed = make("demo", *words)
    assert printed.returncode == 0, printed.stderr
    found = shlex.split(printed.stdout.splitlines()[-1])
    assert found[1:4] == ["-m", "quire.flow", "flows/demo.toml"]
    return found[3:]


@pytest.mark.parametrize("name", ["books", "Bob's old books", "a.b-c"])
def test_books_of_a_folder_go_to_artifacts_of_their_own(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / name
    folder.mkdir()
    path, *changes = command(f"BOOKS={folder}/", "SET=chunk.split.by=work score.levels='[1, 2]'")
    configs = {step.name: settings for step, _, settings in flow.configs(flow.load_flow(path, changes))}
    assert configs["documents"].source.folder == str(folder)
    assert {settings.runtime.root for settings in configs.values()} == {f"artifacts/{name}"}
    assert configs["chunk"].split.by == "work" and configs["score"].levels == (1, 2)


def test_without_books_it_reads_the_documentation_of_packages(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    path, *changes = command()
    assert changes == ["root=artifacts"]
    assert flow.configs(flow.load_flow(path, changes))[0][2].source.kind == "docstrings"


def test_a_folder_that_is_not_there_is_named_before_anything_is_made(tmp_path: Path) -> None:
    refused = make("demo", f"BOOKS={tmp_path}/none")
    assert refused.returncode == 2 and f"BOOKS = {tmp_path}/none: no such folder" in refused.stderr
