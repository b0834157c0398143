"""Fit the matcher's probabilities and thresholds on the calibration split, and publish what is served.

    python -m trainers.calibrate trainers/experiments/books/calibrate.toml [key=value ...]
    ... same_precision=0.95 different_precision=0.95 confidence=0.95    # decide only what is certified

With a precision, a part of the authors is held back from the fit, and thresholds are certified on independent pairs of
theirs; what cannot be certified ends the run, unless allow_uncertified=true publishes it as never decided.
"""

import hashlib
from collections import Counter
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from quire import artifact, baselines, calibration, certify, config, decisions, hub, matcher
from quire.artifact import Artifact
from quire.calibration import Scale
from quire.certify import Certificate
from quire.errors import UserError

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
    same_precision: float | None = Field(default=None, gt=0, lt=1, description="certified; none: one threshold decides")
    different_precision: float | None = Field(default=None, gt=0, lt=1, description="certified, of the other decision")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of each certificate")
    unit: certify.Unit = Field(
        default="author", description="certify for authors never seen (each used once), or for further pairs of these"
    )
    certify_share: float = Field(default=0.5, gt=0, lt=1, description="of the authors (or pairs): not fitted on")
    allow_uncertified: bool = Field(default=False, description="publish a side that cannot be certified: never decided")
    prior: float | None = Field(
        default=None, gt=0, lt=1, description="share of same-book pairs where it is used; default: the pairs' own"
    )
    seed: int = Field(default=0, description="which authors are held back, and which of their pairs are drawn")
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
    _check_scored(inputs)
    table = inputs["predictions"].read()
    table = table.filter(pc.equal(table["split"], "calibration"))
    spec, report = _fit(table, inputs, settings)
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
        f"threshold {spec['threshold']:.3f} for {settings.objective}, on {spec['num_calibration_pairs']} pairs"
    )
    lines += [Certificate(**certificate).told() for certificate in spec["certificates"]]
    return draft.publish(summary="\n".join(lines), facts=report)


def _check_scored(inputs: dict[str, Artifact]) -> None:
    """Scales and promises hold for the very models that made the predictions, on texts as they are."""
    predictions = inputs["predictions"]
    if predictions.manifest["recipe"].get("mask_names"):
        raise UserError(
            f"predictions = {predictions.name!r}: scored with names masked; name those of texts as they are"
        )
    for role in ("chunks", "bi_encoder", "cross_encoder"):
        scored = predictions.manifest["inputs"].get(role)
        if scored and scored["content"] != inputs[role].content:
            raise UserError(
                f"{role} = {inputs[role].name!r}: {predictions.name!r} was made with {scored['name']!r}, or "
                "with an earlier one of that name; score again"
            )


def _fit(
    table: pa.Table, inputs: dict[str, Artifact], settings: CalibrateConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    asked = settings.same_precision is not None or settings.different_precision is not None
    groups = _author_groups(inputs["chunks"]) if asked and settings.unit == "author" else {}
    clusters = _clusters(table, groups)
    kinds = np.asarray(table["negative_type"].fill_null("positive").to_pylist(), dtype=object)
    fitted, held = _divided(clusters, kinds, settings) if asked else (np.ones(table.num_rows, bool), None)
    labels = table["label"].to_numpy()
    level, scales, report = _fit_stages(table.filter(pa.array(fitted)), settings)
    certificates: tuple[Certificate, ...] = ()
    if held is not None:
        certificates = _certify(table, kinds, clusters, held, level, settings)
        report["certification"] = {
            "pairs": {
                "fitted": int(fitted.sum()),
                "held back": int(held.sum()),
                "unused": int((~fitted & ~held).sum()),
            }
        }
    refused = [certificate.told() for certificate in certificates if certificate.threshold is None]
    if refused and not settings.allow_uncertified:
        raise UserError(
            "; ".join(refused) + f" (unit = {settings.unit!r}, certify_share = {settings.certify_share:g} of "
            f"{len(labels)} pairs). Give more authors, a lower precision or confidence, or allow_uncertified=true, "
            "which publishes a matcher that never decides such a side"
        )
    systems = {name: table[name].to_numpy() for name in scales}
    report["systems"] = {
        name: _quality(logits[fitted], labels[fitted], scales[name]) for name, logits in systems.items()
    }
    spec = _spec(inputs, settings, data_sha256=data_sha256(table), certificates=certificates, **level)
    return matcher.spec_dict(spec), report


def _fit_stages(table: pa.Table, settings: CalibrateConfig) -> tuple[dict[str, Any], dict[str, Scale], dict[str, Any]]:
    """What the spec says of both stages, the scale of every system, and the report."""
    labels = table["label"].to_numpy()
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
    calibration_prior = float(labels.mean())
    prior = settings.prior or calibration_prior
    moved = decisions.at_prior(two_stage, calibration_prior, prior)
    weights = None if settings.prior is None else calibration.prior_weights(labels, prior)
    threshold = calibration.choose_threshold(labels, moved, settings.objective, settings.target, weights)
    level = {
        "bi_scale": scales["bi_encoder"],
        "fusion": fusion,
        "prefilter": prefilter,
        "threshold": threshold.value,
        "calibration_prior": calibration_prior,
        "prior": prior,
        "num_calibration_pairs": len(labels),
    }
    report = {
        "two_stage": calibration.quality(labels, two_stage),
        "threshold": {"value": threshold.value, "objective": settings.objective, "achieved": threshold.achieved},
        "thresholds": {
            name: calibration.choose_threshold(labels, scale.probability(systems[name]), "accuracy").value
            for name, scale in scales.items()
        },
        "passed": float(passed.mean()),
    }
    return level, scales, report


def _author_groups(chunks: Artifact) -> dict[str, str]:
    """The author group of each work: authors who are linked by common works are not independent of each other."""
    table = chunks.read(["work_id", "author_group"])
    return dict(zip(table["work_id"].to_pylist(), table["author_group"].to_pylist(), strict=True))


def _clusters(table: pa.Table, groups: dict[str, str]) -> tuple[list[str], list[str]]:
    """What each pair's two sides must share with no other pair: author groups, or without any the pair itself."""
    if not groups:
        return table["pair_id"].to_pylist(), table["pair_id"].to_pylist()
    a, b = ([groups[work] for work in table[side].to_pylist()] for side in ("work_a", "work_b"))
    return a, b


def _divided(
    clusters: tuple[list[str], list[str]], kinds: np.ndarray, settings: CalibrateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs (n,) are fitted on, and which certify.

    A pair of a fitted and a certifying author does neither. That takes away pairs of two authors alone, so of the
    other kinds as large a part is left out: the kinds stay mixed as they were, and so do the probabilities.
    """
    held = certify.held_back([*clusters[0], *clusters[1]], settings.certify_share, settings.seed)
    a, b = (np.fromiter((name in held for name in side), bool, len(side)) for side in clusters)
    order = np.random.default_rng(settings.seed).permutation(np.flatnonzero(~a & ~b))
    names, wanted = np.unique(kinds.astype(str), return_counts=True)
    rows = {name: order[kinds[order] == name] for name in names}
    part = min(len(rows[name]) / count for name, count in zip(names, wanted, strict=True))
    fitted = np.zeros(len(kinds), bool)
    for name, count in zip(names, wanted, strict=True):
        fitted[rows[name][: round(part * count)]] = True
    if not part:
        raise UserError(
            f"certify_share = {settings.certify_share:g}: of {len(set(clusters[0]))} authors too few are left to fit "
            "the scales on; give more authors, or another share or seed"
        )
    return fitted, a & b


def _certify(
    table: pa.Table,
    kinds: np.ndarray,
    clusters: tuple[list[str], list[str]],
    held: np.ndarray,
    level: dict[str, Any],
    settings: CalibrateConfig,
) -> tuple[Certificate, ...]:
    """A certificate of each side that was asked for, certified or not, from the pairs that were held back."""
    prior = level["prior"]
    counts = Counter(kind for kind in kinds if kind != "positive")
    shares = {kind: (1 - prior) * count / counts.total() for kind, count in counts.items()} | {"positive": prior}
    rows = np.flatnonzero(held)
    sides = [[side[row] for row in rows] for side in clusters]
    here = {kinds[row] for row in rows}
    absent = [kind for kind in shares if kind not in here]
    if absent:
        raise UserError(
            f"certify_share = {settings.certify_share:g}: the {len(rows)} pairs held back have none of the kind "
            f"{absent[0]!r}; give more authors, or another share or seed"
        )
    rows = rows[certify.independent_pairs([kinds[row] for row in rows], *sides, shares, settings.seed)]
    logits = (table[name].to_numpy()[rows] for name in ("bi_encoder", "cross_encoder"))
    raw = matcher.two_stage(level["bi_scale"], level["fusion"], level["prefilter"], *logits)
    probabilities = decisions.at_prior(raw, level["calibration_prior"], prior)
    labels = table["label"].to_numpy()[rows]
    targets = {"same": settings.same_precision, "different": settings.different_precision}
    return tuple(
        certify.certify(
            labels, probabilities, side, targets[side], settings.confidence, unit=settings.unit, prior=prior
        )
        for side in certify.SIDES
        if targets[side] is not None
    )


def data_sha256(table: pa.Table) -> str:
    """SHA-256 of the pairs, their labels and both stages' logits, in their order."""
    digest = hashlib.sha256()
    for name in ("pair_id", "label", "bi_encoder", "cross_encoder"):
        digest.update("\n".join([name, *map(repr, table[name].to_pylist())]).encode())
    return digest.hexdigest()


def _spec(inputs: dict[str, Artifact], settings: CalibrateConfig, **fitted: Any) -> matcher.MatcherSpec:
    """What is served: both models by place and hash, the scales, and how texts are cut."""
    recipe = inputs["chunks"].manifest["recipe"]
    models = {key: inputs[key] for key in ("bi_encoder", "cross_encoder")}
    return matcher.make_spec(
        **{key: model.folder for key, model in models.items()},
        **{f"{key}_sha256": hub.weights_sha256(model.local()) for key, model in models.items()},
        **{key: recipe[key] for key in ("size", "overlap", "min_chars")},
        **fitted,
        objective=settings.objective,
        max_chunks_per_text=settings.max_chunks_per_text,
        max_cross_pairs=settings.max_cross_pairs,
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
