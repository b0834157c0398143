"""Calibrate the cosine of an encoder as a probability of one author, and measure it on test: style similarity.

    python -m trainers.style trainers/experiments/books/style.toml [key=value ...]
    ... model=sentence-transformers/all-MiniLM-L6-v2 name=books-minilm-style    # any encoder

Needs pairs by `pipelines.pairs positives=author`. Curves are fitted on the calibration split's pairs, one for each
number of passages in `levels`; the test split is read once, for the report, by authors that nothing was fitted on.
"""

import hashlib
from typing import Any, Literal, Self

import numpy as np
import pyarrow.compute as pc
from pydantic import Field, model_validator

from quire import artifact, baselines, calibration, config, encoder, hub, style_report, style_similarity, views
from quire.artifact import Artifact, Draft
from quire.errors import UserError
from quire.proper_names import masked
from quire.style_pairs import AuthorPairs, ChunkTable, Encoded, cosines
from quire.style_scale import Criterion, Method, choose_curve
from quire.style_similarity import Level, StyleSpec
from trainers.tracker import TrackedRuntime, log_report

STYLE_VIEWS: tuple[views.Name, ...] = ("function_words", "punctuation", "sentences")
READINGS = {"names as they are": False, "names masked": True}


class StyleConfig(config.Config):
    """What `trainers.style` computes."""

    name: str
    chunks: str
    pairs: str = Field(description="by author")
    model: str = Field(description="models/NAME below the root, a folder, or a name on the hub")
    mask_names: bool | None = Field(default=None, description="in every text; default: as the model was trained")
    levels: tuple[int, ...] = Field(default=(1, 2, 5), description="passages of a text that may be read, rising from 1")
    max_passages: int = Field(default=20, gt=0, description="of a text that counts as calibrated")
    method: Literal["auto"] | Method = Field(default="auto", description="auto: by cross-validation")
    criterion: Criterion = "brier"
    num_folds: int = Field(default=5, ge=3, description="of author groups; two at a time are left out")
    max_pairs: int = Field(default=400, gt=1, description="of each split, evenly spaced")
    untrained: str = Field(default=hub.MINILM, description="the encoder that is shown beside it")
    num_fit_chunks: int = Field(default=2000, gt=0, description="training chunks that the style views are fitted on")
    num_fit_pairs: int = Field(default=2000, gt=1, description="training pairs that their regression is fitted on")
    num_bootstraps: int = Field(default=500, gt=0)
    seed: int = Field(default=0, ge=0)
    runtime: TrackedRuntime = TrackedRuntime()

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = list(self.levels)
        if not levels or levels != sorted(set(levels)) or levels[0] != 1:
            raise ValueError(f"levels = {levels}: rising numbers that begin with 1, which short texts need")
        if self.max_passages < levels[-1]:
            raise ValueError(f"max_passages = {self.max_passages}: at least the highest level, {levels[-1]}")
        return self


CONFIG = StyleConfig


def run(settings: StyleConfig) -> Artifact:
    """Make the `models` artefact with style.json, results.json, table.txt and index.html.

    Raises UserError for pairs by work or of other chunks, and where the cosine falls.
    """
    inputs = _inputs(settings)
    draft = artifact.begin_step(settings, "models", inputs)
    if draft.published:
        return draft.published
    model, sha256 = style_similarity.load_model(settings.model, settings.runtime.root, settings.mask_names)
    table = ChunkTable(inputs["chunks"])
    calibrated, test = (table.pairs(inputs["pairs"], split, settings.max_pairs) for split in ("calibration", "test"))
    encoded = Encoded(model, table)
    spec = fit(calibrated, encoded, inputs["chunks"], settings, sha256)
    draws = {"num_samples": settings.num_bootstraps, "seed": settings.seed}
    levels, curves = {}, {}
    for level in spec.levels:
        pairs, scores = cosines(encoded, test, level.passages, _most(settings, level.passages), settings.seed + 1)
        probabilities = level.scale.probability(scores)
        levels[str(level.passages)] = style_report.measured(pairs, probabilities, scores, level.prior, **draws)
        curves[str(level.passages)] = (pairs.labels, probabilities)
    beside = Systems(settings, inputs, encoded, (calibrated, test))
    systems = {reading: beside.measured(mask, **draws) for reading, mask in READINGS.items()}
    return _publish(draft, spec, levels, systems, curves, settings)


def _inputs(settings: StyleConfig) -> dict[str, Any]:
    root = settings.runtime.root
    inputs: dict[str, Any] = {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
        "untrained_weights": hub.weights_sha256(hub.model_folder(settings.untrained, root)),
    }
    if settings.model.startswith("models/"):
        inputs["model"] = artifact.open_artifact(root, "models", settings.model.removeprefix("models/"))
    else:
        inputs["model_weights"] = hub.weights_sha256(hub.model_folder(settings.model, root))
    pairs = inputs["pairs"]
    if pairs.manifest["recipe"].get("positives") != "author":
        raise UserError(f"pairs = {pairs.name!r}: of the same book, not of one author; draw some with positives=author")
    used = pairs.manifest["inputs"]["chunks"]
    if used["content"] != inputs["chunks"].content:
        raise UserError(f"chunks = {settings.chunks!r}: {pairs.name!r} were drawn from {used['name']!r}; name those")
    return inputs


def _most(settings: StyleConfig, passages: int) -> int:
    """Passages of the longest text that is read at a level: one less than the next level takes."""
    return next((level - 1 for level in settings.levels if level > passages), settings.max_passages)


def fit(pairs: AuthorPairs, encoded: Encoded, chunks: Artifact, settings: StyleConfig, model_sha256: str) -> StyleSpec:
    """A curve for each level on the calibration pairs. Raises UserError as `choose_curve`."""
    levels, digest = [], hashlib.sha256()
    for passages in settings.levels:
        kept, scores = cosines(encoded, pairs, passages, _most(settings, passages), settings.seed)
        labels, num_authors = kept.labels, len({*kept.groups[0], *kept.groups[1]})
        if not 0 < labels.sum() < len(labels):
            raise UserError(
                f"levels = {list(settings.levels)}: too few documents of the calibration split have {passages} chunks; "
                "leave that level out"
            )
        options = {key: getattr(settings, key) for key in ("method", "criterion", "seed")}
        num_folds = min(settings.num_folds, num_authors)
        chosen = choose_curve(scores, labels, kept.groups, **options, num_folds=num_folds)
        for row in zip(kept.ids, labels.tolist(), scores.tolist(), strict=True):
            digest.update(repr((passages, *row)).encode())
        levels.append(
            Level(
                passages=passages,
                method=chosen.method,
                curve=vars(chosen.curve),
                prior=float(labels.mean()),
                num_pairs=len(labels),
                num_authors=num_authors,
                num_too_short=len(pairs.ids) - len(labels),
                cross_validated=chosen.cross_validated,
                num_cross_validated=chosen.num_judged,
            )
        )
    recipe = chunks.manifest["recipe"]
    return style_similarity.make_spec(
        model=settings.model,
        model_sha256=model_sha256,
        mask_names=encoder.masks_names(encoded.model),
        **{key: recipe[key] for key in ("size", "overlap", "min_chars")},
        levels=tuple(levels),
        max_passages=settings.max_passages,
        criterion=settings.criterion,
        data_sha256=digest.hexdigest(),
        num_pairs=len(pairs.ids),
        num_authors=len({*pairs.groups[0], *pairs.groups[1]}),
    )


class Systems:
    """What this encoder, an untrained one and style views make of the same pairs of single passages.

    Scores are of both splits: a scale is fitted to those of the calibration pairs and judged on those of test.
    """

    def __init__(
        self, settings: StyleConfig, inputs: dict[str, Any], encoded: Encoded, splits: tuple[AuthorPairs, AuthorPairs]
    ):
        self.settings, self.encoded, self.splits = settings, encoded, splits
        self.training = encoded.chunks.pairs(inputs["pairs"], "train", settings.num_fit_pairs)
        train = np.flatnonzero(pc.equal(encoded.chunks.table["split"], "train").to_numpy())
        self.sample = train[:: max(1, len(train) // settings.num_fit_chunks)]  # that the views are fitted on

    def measured(self, mask: bool, **draws: int) -> dict[str, Any]:
        """Every system, all of them reading with names masked or not: system -> metrics on test."""
        calibrated, test = self.splits
        scores = {"this encoder": self._cosines(self.settings.model, mask)}
        scores |= {"untrained encoder": self._cosines(self.settings.untrained, mask), **self._views(mask)}
        prior, found = float(calibrated.labels.mean()), {}
        for name, (fitted, judged) in scores.items():
            scale = calibration.fit_scale(fitted, calibrated.labels, must_rise=False)
            found[name] = style_report.measured(test, scale.probability(judged), judged, prior, **draws)
        return found

    def _cosines(self, address: str, mask: bool) -> list[np.ndarray]:
        """The cosine of an encoder."""
        reader = self.encoded
        if address != self.settings.model or encoder.masks_names(reader.model) != mask:
            model, _ = style_similarity.load_model(address, self.settings.runtime.root)
            model.mask_names = mask
            reader = Encoded(model, reader.chunks)
        sides = ([reader.means(rows[:, None]) for rows in pairs.rows] for pairs in self.splits)
        return [(a * b).sum(1) for a, b in sides]

    def _views(self, mask: bool) -> dict[str, list[np.ndarray]]:
        """The cosine of each style view, and a regression over all of them."""
        fitted = views.Views.fit(self._read(self.sample, mask), STYLE_VIEWS)
        of_training, *features = (
            fitted.compare(*(self._read(rows, mask) for rows in pairs.rows)) for pairs in (self.training, *self.splits)
        )
        regression = baselines.fit_regression(of_training, self.training.labels, self.training.kinds)
        column = {name: place for place, name in enumerate(fitted.feature_names)}
        found = {
            name.replace("_", " "): [values[:, column[f"{name}.cosine"]].astype(np.float64) for values in features]
            for name in STYLE_VIEWS
        }
        return {**found, "regression over these views": [regression.logits(values) for values in features]}

    def _read(self, rows: np.ndarray, mask: bool) -> list[str]:
        texts = self.encoded.chunks.texts(rows)
        return [masked(text) for text in texts] if mask else texts


def _publish(
    draft: Draft,
    spec: StyleSpec,
    levels: dict[str, Any],
    systems: dict[str, Any],
    curves: dict[str, Any],
    settings: StyleConfig,
) -> Artifact:
    results = {"levels": levels, "systems": systems}
    text = style_report.table(levels, systems)
    details = {
        "recipe": settings.model_dump(mode="json", exclude={"runtime"}),
        "style.json": vars(spec) | {"levels": ""},
    }
    page = style_report.page(settings.name, spec, levels, systems, curves, details)
    files = {"style.json": style_similarity.spec_dict(spec), "results.json": results}
    for name, content in files.items():
        draft.storage.write_json(f"{draft.folder}/{name}", content)
    draft.storage.write_bytes(f"{draft.folder}/table.txt", text.encode())
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    log_report(settings, draft, page, results)
    methods = ", ".join(f"{level.method} for {level.passages}" for level in spec.levels)
    summary = f"{text}\ncurve by passages: {methods}\nreport: {draft.storage.uri(f'{draft.folder}/index.html')}"
    return draft.publish(summary=summary, facts=results)


if __name__ == "__main__":
    config.main(CONFIG, run)
