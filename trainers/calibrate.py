"""Fit the matcher's probabilities and thresholds on the calibration split, and publish what is served.

With several predictions, one a fold (`pipelines.chunk split.num_folds`), it is fitted on the test pairs of all folds:
each was scored by models that had not seen its authors. What is served is then trained on all authors by one recipe
with them (cross-fitting: every author calibrates, none by a model that knows him); `trainers.cross_validate` judges.
Nothing is certified of it: nobody is left whom it has not seen.

    python -m trainers.calibrate trainers/experiments/books/calibrate.toml [key=value ...]
    ... same_precision=0.95 different_precision=0.95 confidence=0.95    # decide only what is certified

Every level of the predictions, so many passages a side, is fitted on pairs of its own. With a precision, a part of the
authors is held back from the fit, and thresholds are certified on independent pairs of theirs, at every level; what
cannot be certified ends the run, unless allow_uncertified=true publishes it as never decided.
"""

import hashlib
from dataclasses import replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from quire import artifact, baselines, calibration, certify, config, decisions, folds, hub, levels, matcher, promises
from quire.artifact import Artifact
from quire.calibration import Scale
from quire.errors import UserError
from quire.levels import Level
from quire.promises import Promises

BASELINES = ("untrained", *baselines.NAMES)
MIN_PASSED = 10  # of each class: ten events a coefficient is the usual floor (Peduzzi et al. 1996)


class CalibrateConfig(config.Config):
    """What `trainers.calibrate` computes."""

    name: str
    predictions: str | tuple[str, ...] = Field(description="or several, of the test pairs of a fold each")
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
    runtime: config.Runtime = config.Runtime()

    @model_validator(mode="after")
    def _target_where_needed(self) -> Self:
        needed = self.objective in ("precision", "recall")
        if needed and self.target is None:
            raise ValueError(f"objective = {self.objective!r} needs a target, such as target = 0.9")
        if not needed and self.target is not None:
            raise ValueError(f"target = {self.target}: objective = {self.objective!r} has none; leave it out")
        return self

    @model_validator(mode="after")
    def _certified_of_one(self) -> Self:
        for side in certify.SIDES if self.by_fold else ():
            if getattr(self, f"{side}_precision") is not None:
                raise ValueError(
                    f"{side}_precision: a certificate holds for the models that scored its pairs, and predictions = "
                    f"{list(self.by_fold)} are of several; calibrate with one predictions artefact"
                )
        return self

    @property
    def by_fold(self) -> tuple[str, ...]:
        """The predictions of folds, if it is fitted on those."""
        return () if isinstance(self.predictions, str) else self.predictions

    def asked(self) -> Promises:
        """What is to be certified."""
        targets = {"same": self.same_precision, "different": self.different_precision}
        precisions = {side: targets[side] for side in certify.SIDES if targets[side] is not None}
        return Promises(precisions, self.confidence, self.unit, self.certify_share, self.seed)


CONFIG = CalibrateConfig


def run(settings: CalibrateConfig) -> Artifact:
    """Make the `models` artefact with `matcher.json`. Raises UserError when the objective's target cannot be met."""
    root = settings.runtime.root
    names = settings.by_fold or (settings.predictions,)
    scored = [artifact.open_artifact(root, "predictions", name) for name in names]
    roles = [f"fold {place}" for place in range(len(names))] if settings.by_fold else ["predictions"]
    inputs = dict(zip(roles, scored, strict=True)) | {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "bi_encoder": artifact.open_artifact(root, "models", settings.bi_encoder),
        "cross_encoder": artifact.open_artifact(root, "models", settings.cross_encoder),
    }
    for made in scored:
        levels.check_says(made)
    draft = artifact.begin_step(settings, "models", inputs)
    if draft.published:
        return draft.published
    for made in scored:
        _check_scored(made, inputs, by_fold=bool(settings.by_fold))
    if settings.by_fold:
        folds.check_cells(scored)
        folds.check_models(scored, {role: inputs[role] for role in folds.ROLES})
        tables = [folds.tested(made) for made in scored]
        folds.check_apart(names, tables)
        folds.check_levels(names, tables)
        table = pa.concat_tables(tables)
    else:
        _check_unseen(inputs["bi_encoder"])
        table = scored[0].read()
        table = table.filter(pc.equal(table["split"], "calibration"))
    max_cross_pairs = scored[0].manifest["recipe"]["max_cross_pairs"]  # as the logits were made
    spec, report = _fit(table, inputs, settings, max_cross_pairs)
    draft.storage.write_json(f"{draft.folder}/matcher.json", matcher.spec_dict(spec))
    draft.storage.write_json(f"{draft.folder}/calibration.json", report)
    lines = [line for level in spec.levels for line in _told(level, report["levels"][str(level.k)], settings)]
    return draft.publish(summary="\n".join(lines), facts=report)


def _told(level: Level, report: dict[str, Any], settings: CalibrateConfig) -> list[str]:
    """What the terminal says of a level: of single passages every system, of more the final answer."""
    systems = report["systems"] if level.k == 1 else {}
    lines = [
        f"{name:<14} NLL {r['before']['nll']:.3f} -> {r['after']['nll']:.3f}   Brier {r['before']['brier']:.3f} -> "
        f"{r['after']['brier']:.3f}   ECE {r['before']['ece']:.3f} -> {r['after']['ece']:.3f}"
        for name, r in systems.items()
    ]
    asked = f"prefilter {level.prefilter:.3f} ({report['passed']:.0%} of pairs reach the cross-encoder), "
    if level.fusion.cross_slope == 0:
        told = "the cross-encoder adds nothing to the bi-encoder on these pairs: it is sent none"
        lines.append(f"{told}, and the bi-encoder's answer is final for every pair")
        asked = ""
    flat = [name for name, scale in systems.items() if scale["scale"]["slope"] == 0]
    if flat:
        lines.append(f"no better than chance, so one probability for every pair: {', '.join(flat)}")
    both = report["two_stage"]
    lines.append(
        f"{asked}threshold {level.threshold:.3f} for {settings.objective}, on {level.num_calibration_pairs} pairs; "
        f"Brier {both['brier']:.3f}, ECE {both['ece']:.3f}"
    )
    lines += [certificate.told() for certificate in level.certificates]
    return lines if level.k == 1 else [f"k = {level.k:<2} {line}" for line in lines]


def _check_scored(predictions: Artifact, inputs: dict[str, Artifact], *, by_fold: bool) -> None:
    """Scales and promises hold for the very models that made the predictions, on texts as they are.

    Of folds the models are others, and only the texts must be cut alike.
    """
    if by_fold:
        described = predictions.manifest["inputs"]["chunks"]
        cut = artifact.open_artifact(predictions.storage, described["kind"], described["name"]).manifest["recipe"]
        for key in ("size", "overlap", "min_chars"):
            if cut[key] != inputs["chunks"].manifest["recipe"][key]:
                raise UserError(
                    f"chunks = {inputs['chunks'].name!r}: {key} = {inputs['chunks'].manifest['recipe'][key]}, but "
                    f"{cut[key]} in {described['name']!r}, of which {predictions.name!r} is; chunk both alike"
                )
    if predictions.manifest["recipe"].get("mask_names"):
        raise UserError(
            f"predictions = {predictions.name!r}: scored with names masked; name those of texts as they are"
        )
    for role in () if by_fold else ("chunks", "bi_encoder", "cross_encoder"):
        scored = predictions.manifest["inputs"].get(role)
        if scored and scored["content"] != inputs[role].content:
            raise UserError(
                f"{role} = {inputs[role].name!r}: {predictions.name!r} was made with {scored['name']!r}, or "
                "with an earlier one of that name; score again"
            )


def _check_unseen(bi_encoder: Artifact) -> None:
    """Raise UserError for a model that the calibration pairs have had a part in, as sweeps that look at them have."""
    splits = bi_encoder.manifest["recipe"].get("eval_splits", ())
    if "calibration" in splits:
        raise UserError(
            f"bi_encoder = {bi_encoder.name!r}: eval_splits = {list(splits)}, so calibration pairs chose its step and "
            "its weights; train it with eval_splits = ['validation'], or calibrate by folds"
        )


def _fit(
    table: pa.Table, inputs: dict[str, Artifact], settings: CalibrateConfig, max_cross_pairs: int
) -> tuple[matcher.MatcherSpec, dict[str, Any]]:
    """Every level by itself, all for the prior that is asked for, or else the first level's own."""
    asked = settings.asked()
    groups = _author_groups(inputs["chunks"]) if asked.precisions and settings.unit == "author" else {}
    fitted: list[Level] = []
    reports: dict[str, dict[str, Any]] = {}
    for k in levels.scored(table):
        prior = fitted[0].calibration_prior if fitted else None
        try:
            level, reports[str(k)] = _fit_level(k, levels.of_level(table, k), groups, settings.prior or prior, settings)
        except UserError as error:
            if k == 1:
                raise
            raise UserError(f"k = {k}: {error}; or score again without that level (pipelines.score levels)") from error
        fitted.append(level)
    spec = _spec(
        inputs,
        settings,
        data_sha256=data_sha256(table),
        levels=tuple(fitted),
        prior=settings.prior or fitted[0].calibration_prior,
        max_cross_pairs=max_cross_pairs,
    )
    return spec, {"levels": reports}


def _fit_level(
    k: int, table: pa.Table, groups: dict[str, str], prior: float | None, settings: CalibrateConfig
) -> tuple[Level, dict[str, Any]]:
    """The level of these calibration pairs, and the report on it."""
    asked, labels = settings.asked(), table["label"].to_numpy()
    kinds = np.asarray(table["negative_type"].fill_null("positive").to_pylist(), dtype=object)
    fitted, held = np.ones(table.num_rows, bool), None
    if asked.precisions:
        clusters = promises.clusters(table, groups)
        fitted, held = promises.divided(clusters, kinds, asked)
    level, scales, report = fit_stages(k, table.filter(pa.array(fitted)), prior, settings)
    if held is not None:
        prior = prior or level.calibration_prior
        logits = [table[name].to_numpy() for name in ("bi_encoder", "cross_encoder")]

        def probabilities(rows: np.ndarray) -> np.ndarray:
            raw = matcher.two_stage(level.bi_scale, level.fusion, level.prefilter, *(side[rows] for side in logits))
            return decisions.at_prior(raw, level.calibration_prior, prior)

        made = promises.certificates(labels, kinds, clusters, held, probabilities, prior, asked)
        level = replace(level, certificates=made)
        unused = int((~fitted & ~held).sum())
        report["certification"] = {
            "pairs": {"fitted": int(fitted.sum()), "held back": int(held.sum()), "unused": unused}
        }
        _check_certified(level, len(labels), settings)
    report["systems"] = {
        name: _quality(k, table[name].to_numpy()[fitted], labels[fitted], scale) for name, scale in scales.items()
    }
    return level, report


def _check_certified(level: Level, num_pairs: int, settings: CalibrateConfig) -> None:
    refused = [certificate.told() for certificate in level.certificates if certificate.threshold is None]
    if refused and not settings.allow_uncertified:
        raise UserError(
            "; ".join(refused) + f" (unit = {settings.unit!r}, certify_share = {settings.certify_share:g} of "
            f"{num_pairs} pairs). Give more authors, a lower precision or confidence, or allow_uncertified=true, "
            "which publishes a matcher that never decides such a side"
        )


class Fitted(Protocol):
    """What fitting a level asks of a config."""

    objective: str
    target: float | None
    prefilter_recall: float


def fit_stages(
    k: int, table: pa.Table, prior: float | None, settings: Fitted
) -> tuple[Level, dict[str, Scale], dict[str, Any]]:
    """The level, the scale of every system, and the report. Without a prior, for that of the pairs themselves."""
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
    authors = tuple(table[side].filter(pa.array(fitted_on)).to_pylist() for side in ("author_a", "author_b"))
    fusion = calibration.fit_fusion(*logits, labels[fitted_on], authors)
    if fusion.cross_slope == 0:  # it would be asked for nothing, and pairs would fall under another scale for no reason
        prefilter, passed = calibration.NONE_PASSES, np.zeros(len(labels), bool)
    two_stage = matcher.two_stage(
        scales["bi_encoder"], fusion, prefilter, systems["bi_encoder"], systems["cross_encoder"]
    )
    calibration_prior = float(labels.mean())
    moved = decisions.at_prior(two_stage, calibration_prior, prior or calibration_prior)
    weights = None if prior is None else calibration.prior_weights(labels, prior)
    threshold = calibration.choose_threshold(labels, moved, settings.objective, settings.target, weights)
    level = Level(
        k=k,
        bi_scale=scales["bi_encoder"],
        fusion=fusion,
        prefilter=prefilter,
        threshold=threshold.value,
        calibration_prior=calibration_prior,
        num_calibration_pairs=len(labels),
    )
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


def data_sha256(table: pa.Table) -> str:
    """SHA-256 of the pairs, their labels and both stages' logits, in their order."""
    digest = hashlib.sha256()
    for name in ("k", "pair_id", "label", "bi_encoder", "cross_encoder"):
        digest.update("\n".join([name, *map(repr, table[name].to_pylist())]).encode())
    return digest.hexdigest()


def _spec(inputs: dict[str, Artifact], settings: CalibrateConfig, **fitted: Any) -> matcher.MatcherSpec:
    """What is served: both models by place and hash, the scales, and how texts are cut."""
    recipe = inputs["chunks"].manifest["recipe"]
    models = {key: inputs[key] for key in ("bi_encoder", "cross_encoder")}
    return matcher.make_spec(
        evidence=levels.EVIDENCE,
        **{key: model.folder for key, model in models.items()},
        **{f"{key}_sha256": hub.weights_sha256(model.local()) for key, model in models.items()},
        **{key: recipe[key] for key in ("size", "overlap", "min_chars")},
        **fitted,
        objective=settings.objective,
    )


def _quality(k: int, scores: np.ndarray, labels: np.ndarray, scale: Scale) -> dict[str, Any]:
    """NLL, Brier and ECE after, and of single passages before: by the plain sigmoid of the logit, or of the cosine."""
    before = {"before": calibration.quality(labels, Scale(1.0, 0.0).probability(scores))} if k == 1 else {}
    return {
        "scale": {"slope": scale.slope, "bias": scale.bias},
        **before,
        "after": calibration.quality(labels, scale.probability(scores)),
    }


if __name__ == "__main__":
    config.main(CONFIG, run)
