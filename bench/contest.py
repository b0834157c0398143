"""Contenders side by side in one run: rounds in turn, a ratio each round, and a record of where it was measured."""

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def contest(
    name: str, unit: str, contenders: Mapping[str, Callable[[], float]], rounds: int = 3, **facts: Any
) -> dict[str, Any]:
    """Run every contender once a round and compare the first with each of the others.

    A contender returns its speed in `unit`s a second. The ratio is taken within a round, because a shared machine is
    slower in one minute than in the next; median, least and most over the rounds are kept. The order turns with the
    rounds. Prints a table and writes bench/results/NAME-PROCESSOR.json.
    """
    names = list(contenders)
    speeds: dict[str, list[float]] = {key: [] for key in names}
    for round_number in range(rounds):
        turn = round_number % len(names)
        for key in names[turn:] + names[:turn]:
            speeds[key].append(contenders[key]())
            print(f"      round {round_number + 1} of {rounds}, {key}: {speeds[key][-1]:,.1f} {unit}/s", flush=True)
    ours = speeds[names[0]]
    result = {
        "bench": name,
        "unit": f"{unit}/s",
        "contenders": {
            key: {"speed": spread(found), "ratio": spread([a / b for a, b in zip(ours, found, strict=True)])}
            for key, found in speeds.items()
        },
        **facts,
        **where(),
    }
    show(result)
    keep(result)
    return result


def keep(result: Mapping[str, Any]) -> None:
    """Write bench/results/NAME-PROCESSOR.json."""
    RESULTS.mkdir(exist_ok=True)
    name = f"{result['bench']}-{_slug(result['processor'])}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def options(doc: str, **defaults: float | str) -> argparse.Namespace:
    """The command line of a bench: `--name value` for each default, and its docstring for `--help`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def where() -> dict[str, Any]:
    """Date, commit, processor and versions of this run."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.is_available()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or None,
        "processor": torch.cuda.get_device_name() if gpu else _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }


def show(result: Mapping[str, Any]) -> None:
    """The result as a table: speed, and how many times as fast the first contender is."""
    names = list(result["contenders"])
    table = Table(title=f"{result['bench']}: {result['processor']}, {result['cores']} cores")
    table.add_column("")
    table.add_column(result["unit"], justify="right")
    table.add_column(f"{names[0]} is", justify="right")
    for key, found in result["contenders"].items():
        ratio = found["ratio"]
        times = "" if key == names[0] else f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})"
        table.add_row(key, f"{found['speed']['median']:,.1f}", times)
    Console(width=120).print(table)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())[:40]
