"""Evaluate every system once on the test split: JSON, a table, and a self-contained HTML report.

    python -m trainers.evaluate trainers/experiments/books/evaluate.toml [key=value ...]
"""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from quire import artifact, config, metrics, report
from quire.artifact import Artifact
from quire.calibration import Scale

TITLES = {
    "two_stage": "two-stage",
    "bi_encoder": "bi-encoder",
    "cross_encoder": "cross-encoder",
    "untrained": "untrained encoder",
    "char_4gram": "character 4-grams",
}


class EvaluateConfig(config.Config):
    """What `trainers.evaluate` computes."""

    name: str
    predictions: str
    matcher: str
    num_bootstraps: int = Field(default=500, gt=0)
    seed: int = 0
    runtime: config.Runtime = config.Runtime()


CONFIG = EvaluateConfig


def run(settings: EvaluateConfig) -> Artifact:
    """Make the `reports` artefact: results.json, table.txt, index.html."""
    root = settings.runtime.root
    inputs = {
        "predictions": artifact.open_artifact(root, "predictions", settings.predictions),
        "matcher": artifact.open_artifact(root, "models", settings.matcher),
    }
    draft = artifact.begin(root, "reports", settings.name, recipe=config.recipe(settings), inputs=inputs)
    if draft.published:
        return draft.published
    table = inputs["predictions"].read()
    test = {split: table.filter(pc.equal(table["split"], split)) for split in ("calibration", "test")}["test"]
    labels = test["label"].to_numpy()
    kinds = np.asarray(test["negative_type"].fill_null("positive").to_pylist(), dtype=object)
    calibration = inputs["matcher"].read_json("calibration.json")
    spec = inputs["matcher"].read_json("matcher.json")
    probabilities, thresholds = system_probabilities(test, calibration, spec)
    rows = {
        TITLES[name]: metrics.by_negative_type(labels, kinds, probabilities[name], thresholds[name]) for name in TITLES
    }
    authors = [np.asarray(test[side].to_pylist(), dtype=object) for side in ("author_a", "author_b")]
    for name, title in TITLES.items():
        for stratum, values in rows[title].items():
            chosen = np.ones(len(labels), bool) if stratum == "overall" else (labels == 1) | (kinds == stratum)
            values["auc_interval"] = list(
                metrics.author_bootstrap(
                    labels[chosen], probabilities[name][chosen], authors[0][chosen], authors[1][chosen], "auc",
                    num_samples=settings.num_bootstraps, seed=settings.seed,
                )
            )
    ancestry = ancestors(root, inputs)
    text = report.table(rows, ("auc", "average_precision", "f1", "brier", "ece"))
    page = report.render(_page(settings, rows, labels, kinds, probabilities, calibration, ancestry))
    draft.storage.write_json(f"{draft.folder}/results.json", rows)
    draft.storage.write_bytes(f"{draft.folder}/table.txt", text.encode())
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    where = draft.storage.uri(f"{draft.folder}/index.html")
    return draft.publish(summary=f"{text}\nreport: {where}", facts={"results": rows})


def system_probabilities(table: Any, calibration: dict, spec: dict) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Calibrated probability of every system for each pair (n,), and each system's threshold."""
    probabilities = {}
    for name, facts in calibration["systems"].items():
        probabilities[name] = Scale(**facts["scale"]).probability(table[name].to_numpy())
    bi = probabilities["bi_encoder"]
    cross = Scale(**spec["cross_scale"]).probability(table["cross_encoder"].to_numpy())
    probabilities["two_stage"] = np.where(bi >= spec["prefilter"], cross, bi)
    return probabilities, {**calibration["thresholds"], "two_stage": spec["threshold"]}


def ancestors(root: str, inputs: dict[str, Artifact]) -> list[Artifact]:
    """Every artefact that the inputs came from, oldest first."""
    found: dict[str, Artifact] = {}
    waiting = list(inputs.values())
    while waiting:
        item = waiting.pop()
        found.pop(item.folder, None)
        found[item.folder] = item
        for described in item.manifest["inputs"].values():
            if isinstance(described, dict):
                waiting.append(artifact.open_artifact(root, described["kind"], described["name"]))
    return sorted(found.values(), key=lambda item: item.manifest["ended"])


