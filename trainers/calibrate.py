"""Fit the matcher's probabilities and thresholds on the calibration split, and publish what is served.

python -m trainers.calibrate trainers/experiments/books/calibrate.toml [key=value ...]
"""

from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from quire import artifact, baselines, calibration, config, hub, matcher
from quire.artifact import Artifact
from quire.calibration import Scale

BASELINES = ("untrained", *baselines.NAMES)
MIN_PASSED = 10  # of each class: ten events a coefficient is the usual floor (Peduzzi et al. 1996)


class CalibrateConfig(config.Config):
    """What `trainers.calibrate` computes."""

    name: str
    predictions: str
    chunks: str
    bi_encoder: str
    cross_encoder: str
    objective: Literal["accuracy", "balanced_accuracy", "f1", "precision", "recall"] = "accuracy"
    target: float | None = Field(default=None, gt=0, le=1, description="for objective precision or recall")
    prefilter_recall: float = Field(default=0.95, gt=0, le=1, description="positives that must reach the cross-encoder")
    max_chunks_per_text: int = Field(default=8, gt=0)
    max_cross_pairs: int = Field(default=4, gt=0)
    runtime: config.Runtime = config.Runtime()

    @model_validator(mode="after")
    def _target_where_needed(self) -> Self:
        needed = self.objective in ("precision", "recall")
        if needed and self.target is None:
            raise ValueError(f"objective = {self.objective!r} needs a target, such as target = 0.9")
        if not needed and self.target is not None:
            raise ValueError(f"target = {self.target}: objective = {self.objective!r} has none; leave it out")
        return self


CONFIG = CalibrateConfig


def run(settings: CalibrateConfig) -> Artifact:
    """Make the `models` artefact with `matcher.json`. Raises UserError when the objective's target cannot be met."""
    root = settings.runtime.root
    inputs = {
        "predictions": artifact.open_artifact(root, "predictions", settings.predictions),
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "bi_encoder": artifact.open_artifact(root, "models", settings.bi_encoder),
        "cross_encoder": artifact.open_artifact(root, "models", settings.cross_encoder),
    }
    draft = artifact.begin_step(settings, "models", inputs)
    if draft.published:
        return draft.published
    table = inputs["predictions"].read()
    table = table.filter(pc.equal(table["split"], "calibration"))
    labels = table["label"].to_numpy()
    spec, report = _fit(table, labels, inputs, settings)
    draft.storage.write_json(f"{draft.folder}/matcher.json", spec)
    draft.storage.write_json(f"{draft.folder}/calibration.json", report)
    lines = [
        f"{name:<14} NLL {r['before']['nll']:.3f} -> {r['after']['nll']:.3f}   Brier {r['before']['brier']:.3f} -> "
        f"{r['after']['brier']:.3f}   ECE {r['before']['ece']:.3f} -> {r['after']['ece']:.3f}"
        for name, r in report["systems"].items()
    ]
    if spec["fusion"]["cross_slope"] == 0:
        lines.append("the cross-encoder adds nothing to the bi-encoder on these pairs: it has no weight in the answer")
    flat = [name for name, scale in report["systems"].items() if scale["scale"]["slope"] == 0]
    if flat:
        lines.append(f"no better than chance, so one probability for every pair: {', '.join(flat)}")
    lines.append(
        f"prefilter {spec['prefilter']:.3f} ({report['passed']:.0%} of pairs reach the cross-encoder), "
        f"threshold {spec['threshold']:.3f} for {settings.objective}, on {len(labels)} pairs"
    )
    return draft.publish(summary="\n".join(lines), facts=report)


def _fit(
    table: pa.Table, labels: np.ndarray, inputs: dict[str, Artifact], settings: CalibrateConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    systems = {name: table[name].to_numpy() for name in ("bi_encoder", "cross_encoder", *BASELINES)}
    scales = {
        name: calibration.fit_scale(logits, labels, must_rise=name == "bi_encoder") for name, logits in systems.items()
    }
    bi = scales["bi_encoder"].probability(systems["bi_encoder"])
    prefilter = calibration.choose_prefilter(labels, bi, settings.prefilter_recall)
    passed = bi >= prefilter
    # The second stage answers only for pairs that pass, so it is fitted on those; on all, where a class hardly passes.
    enough = min(labels[passed].sum(), (1 - labels[passed]).sum()) >= MIN_PASSED
    fitted_on = passed if enough else np.ones(len(labels), bool)
    logits = (systems[name][fitted_on] for name in ("cross_encoder", "bi_encoder"))
    fusion = calibration.fit_fusion(*logits, labels[fitted_on])
    two_stage = matcher.two_stage(
        scales["bi_encoder"], fusion, prefilter, systems["bi_encoder"], systems["cross_encoder"]
    )
    threshold = calibration.choose_threshold(labels, two_stage, settings.objective, settings.target)
    spec = _spec(inputs, settings, scales["bi_encoder"], fusion, prefilter, threshold.value, len(labels))
    report = {
        "systems": {name: _quality(systems[name], labels, scales[name]) for name in systems},
        "two_stage": calibration.quality(labels, two_stage),
        "threshold": {"value": threshold.value, "objective": settings.objective, "achieved": threshold.achieved},
        "thresholds": {
            name: calibration.choose_threshold(labels, scale.probability(systems[name]), "accuracy").value
            for name, scale in scales.items()
        },
        "passed": float(passed.mean()),
    }
    return matcher.spec_dict(spec), report


def _spec(
    inputs: dict[str, Artifact],
    settings: CalibrateConfig,
    bi_scale: Scale,
    fusion: calibration.Fusion,
    prefilter: float,
    threshold: float,
    num_pairs: int,
) -> matcher.MatcherSpec:
    """What is served: both models by place and hash, the scales, and how texts are cut."""
    recipe = inputs["chunks"].manifest["recipe"]
    models = {key: inputs[key] for key in ("bi_encoder", "cross_encoder")}
    return matcher.make_spec(
        **{key: model.folder for key, model in models.items()},
        **{f"{key}_sha256": hub.weights_sha256(model.local()) for key, model in models.items()},
        **{key: recipe[key] for key in ("size", "overlap", "min_chars")},
        bi_scale=bi_scale,
        fusion=fusion,
        prefilter=prefilter,
        threshold=threshold,
        objective=settings.objective,
        max_chunks_per_text=settings.max_chunks_per_text,
        max_cross_pairs=settings.max_cross_pairs,
        num_calibration_pairs=num_pairs,
    )


def _quality(logits: np.ndarray, labels: np.ndarray, scale: Scale) -> dict[str, Any]:
    """NLL, Brier and ECE before (the plain sigmoid of the logit, or of the cosine) and after."""
    return {
        "scale": {"slope": scale.slope, "bias": scale.bias},
        "before": calibration.quality(labels, Scale(1.0, 0.0).probability(logits)),
        "after": calibration.quality(labels, scale.probability(logits)),
    }


if __name__ == "__main__":
    config.main(CONFIG, run)
