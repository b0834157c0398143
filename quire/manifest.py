"""What a manifest says beside the recipe: totals of shards, costs, versions; and how two recipes differ."""

import importlib.metadata
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# A card that tells `datasets.load_dataset(folder)`, and the hub, which files are the rows.
CARD = """---
configs:
- config_name: default
  data_files: part-*.parquet
---
# {kind}

Made by Quire; `manifest.json` says from what and how, `rejects-*.parquet` what was dropped and why.
"""
_VERSIONED = ("ray", "torch", "transformers", "sentence-transformers", "pyarrow", "numpy", "faiss-cpu", "faiss-gpu")


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two recipes and their inputs differ, each with both values."""
    old, new = (_flat(manifest["recipe"] | {"input": manifest["inputs"]}) for manifest in (found, wanted))
    return [
        f"{key}: {old.get(key, '(unset)')!r} there, {new.get(key, '(unset)')!r} asked for"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return flat


def totals(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the records of shards: rows_in, rows_out, dropped by reason, cost (cpu and gpu seconds, bytes)."""
    records = list(records)
    dropped: Counter[str] = Counter()
    for record in records:
        dropped.update(record["dropped"])
    total = {key: sum(record[key] for record in records) for key in ("rows_in", "rows_out", "bytes_in", "bytes_out")}
    cost = {
        "cpu": round(sum(record["cpu"] for record in records), 3),
        "gpu": round(sum(record["gpu"] for record in records), 3),
        "bytes_in": total.pop("bytes_in"),
        "bytes_out": total.pop("bytes_out"),
    }
    return {**total, "dropped": dict(sorted(dropped.items())), "cost": cost}


def git_commit() -> str | None:
    """The commit of the code that runs, or None outside a checkout (a shipped working directory has no .git)."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what comes out."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
