"""Evaluate every system on authors who are each tested once: folds, and scales fitted on the other folds.

    python -m trainers.cross_validate trainers/experiments/books/cross_validate.toml [key=value ...]

Each of the predictions is of the test pairs of one fold (`pipelines.chunk split.num_folds`), by models that have seen
none of its authors. What is calibrated for a fold, at every level, is fitted on the pairs of all other folds
(cross-fitting), so no pair has a part in its own scale. All folds' pairs are then told as `trainers.evaluate` tells
those of one split: single-chunk strata, pair types, a curve over chunks a side, intervals over all authors.

Every AUC and average precision, but the AUC within PAN's mean, compares pairs of one fold alone: each fold has a model
of its own, and how far their scores lie apart says nothing of either (Forman & Scholz 2010, SIGKDD Explorations 12).
Probabilities are one answer, so what is measured of them (Brier, ECE, Cllr, PAN) is measured over all pairs; the
plotted curves rank by them, all folds together. Decisions are those of probability .5.
"""

from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from quire import artifact, config, folds, level_curve, levels, matcher_report, metrics, report, strata
from quire.artifact import Artifact
from quire.report import Section
from trainers import evaluate
from trainers.calibrate import fit_stages
from trainers.evaluate import Scores
from trainers.tracker import TrackedRuntime

THRESHOLD = 0.5


class CrossValidateConfig(config.Config):
    """What `trainers.cross_validate` computes."""

    name: str
    predictions: tuple[str, ...] = Field(min_length=2, description="one a fold, of its test pairs")
    masked: tuple[str, ...] = Field(default=(), description="of the same pairs with names masked, in the same order")
    topic: str = Field(default="untrained", description="the system whose score says how alike two topics are")
    objective: Literal["accuracy", "balanced_accuracy", "f1"] = "accuracy"
    prefilter_recall: float = Field(default=0.95, gt=0, le=1, description="positives that must reach the cross-encoder")
    num_bootstraps: int = Field(default=500, gt=0)
    seed: int = 0
    runtime: TrackedRuntime = TrackedRuntime()

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.masked and len(self.masked) != len(self.predictions):
            raise ValueError(f"masked: {len(self.masked)} names for {len(self.predictions)} predictions: one of each")
        return self

    @property
    def target(self) -> None:
        """None of these objectives has one."""
        return None


CONFIG = CrossValidateConfig


def run(settings: CrossValidateConfig) -> Artifact:
    """Make the `reports` artefact: results, strata, pair_types, levels and folds as JSON, table.txt, index.html.

    Raises UserError where an author is tested in two folds, or masked predictions are of other pairs or models.
    """
    root = settings.runtime.root
    scored = [artifact.open_artifact(root, "predictions", name) for name in settings.predictions]
    masked = [artifact.open_artifact(root, "predictions", name) for name in settings.masked]
    inputs = {f"fold {place}": made for place, made in enumerate(scored)}
    inputs |= {f"fold {place}, masked": made for place, made in enumerate(masked)}
    for made in (*scored, *masked):
        levels.check_says(made)
    for made, hidden in zip(scored, masked or [None] * len(scored), strict=True):
        evaluate.check_reading(made, hidden)
    draft = artifact.begin_step(settings, "reports", inputs)
    if draft.published:
        return draft.published
    every = [folds.tested(made) for made in scored]
    folds.check_apart(settings.predictions, every)
    draws = {"num_samples": settings.num_bootstraps, "seed": settings.seed}
    scored_at = folds.check_levels(settings.predictions, every)
    by_level = {k: cross_fitted([levels.of_level(table, k) for table in every], k, settings) for k in scored_at}
    test, scores = by_level[1]
    sizes = {k: [levels.of_level(table, k).num_rows for table in every] for k in by_level}
    groups = {k: np.repeat(np.arange(len(every)), counts) for k, counts in sizes.items()}
    measure = evaluate.Measure(test, draws, prior=float(test["label"].to_numpy().mean()), groups=groups[1])
    topic = evaluate.topic_of(test, settings.topic)
    singles = [levels.of_level(table, 1) for table in every]
    mined = [evaluate.mined_pairs(root, made, table) for made, table in zip(scored, singles, strict=True)]
    found = strata.strata(test, topic, groups[1], np.concatenate(mined))
    types = strata.pair_types(test, groups[1])
    rows, described = measure.strata(scores, found), strata.described(found, topic)
    pair_types = {"raw": measure.rankings(scores, types)}
    if masked:
        hidden = [evaluate.same_pairs(table, made) for table, made in zip(singles, masked, strict=True)]
        _, values = cross_fitted(singles, 1, settings, said_of=hidden)
        pair_types["names masked"] = measure.rankings(values, types)
    rising = evaluate.curve(by_level, draws, groups)
    by_fold = [
        _fold(name, test.filter(pa.array(groups[1] == fold)), scores.probabilities["two_stage"][groups[1] == fold])
        for fold, name in enumerate(settings.predictions)
    ]
    main = evaluate.main_strata(rows, test)
    text = "\n".join([report.table(main), "", matcher_report.pair_type_tables(pair_types)]) + level_curve.told(rising)
    tables = [
        matcher_report.pair_type_section(pair_types),
        matcher_report.lead_section(pair_types),
        matcher_report.stratum_section(rows, described),
        _fold_section(by_fold),
    ]
    page = _page(settings, main, tables, test, scores, evaluate.ancestors(root, inputs))
    page = report.render(level_curve.added(page, rising))
    files = {"results": rows, "strata": described, "pair_types": pair_types, "levels": rising, "folds": by_fold}
    return evaluate.published(settings, draft, text, page, files)


def cross_fitted(
    tables: list[pa.Table], k: int, settings: CrossValidateConfig, said_of: list[pa.Table] | None = None
) -> tuple[pa.Table, Scores]:
    """All folds' pairs of one level, one after the other, and what every system says of them on the others' scales.

    `tables`: one a fold. `said_of`: the same pairs with other scores, which are put on those scales.
    """
    said = []
    for place, table in enumerate(said_of or tables):
        others = pa.concat_tables([fold for other, fold in enumerate(tables) if other != place])
        level, scales, _ = fit_stages(k, others, None, settings)
        said.append(evaluate.said(table, level, scales, {}))
    names = list(said[0].probabilities)
    probabilities, rankings = (
        {name: np.concatenate([getattr(scores, kind)[name] for scores in said]) for name in names}
        for kind in ("probabilities", "rankings")
    )
    return pa.concat_tables(said_of or tables), Scores(probabilities, rankings, dict.fromkeys(names, THRESHOLD))


def _fold(name: str, table: pa.Table, probabilities: np.ndarray) -> dict[str, Any]:
    labels = table["label"].to_numpy()
    authors = {author for side in ("author_a", "author_b") for author in table[side].to_pylist()}
    return {
        "predictions": name,
        "authors": len(authors),
        "pairs": table.num_rows,
        "auc": metrics.auc(labels, probabilities),
        **metrics.quality(labels, probabilities),
    }


def _fold_section(by_fold: list[dict[str, Any]]) -> Section:
    columns = ("predictions", "authors", "pairs", "auc", "brier", "ece")
    lines = [
        tuple(f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in columns) for row in by_fold
    ]
    text = "What the final answer is worth on each; its scale is fitted on all others."
    return Section("Folds", text, columns, lines)


def _page(
    settings: CrossValidateConfig,
    main: dict[str, Any],
    tables: list[Section],
    test: pa.Table,
    scores: Scores,
    ancestry: list[Artifact],
) -> report.Report:
    two, num_folds = main["two-stage"]["overall"], len(settings.predictions)
    low, high = two["auc_interval"]
    labels, kinds = test["label"].to_numpy(), strata.negative_types(test)
    return report.Report(
        title=f"Book matcher, every author tested once: {settings.name}",
        question="Do two passages come from the same book?",
        headline=(
            f"Two-stage AUC {two['auc']:.3f} (95 % interval over authors {low:.3f} to {high:.3f}) on {test.num_rows:,} "
            f"pairs in {num_folds} folds, each by models that saw none of its authors; ECE {two['ece']:.3f}."
        ),
        rows=main,
        # Each model's scores are on a scale of its own, but its probabilities are on one that the others made.
        plots=matcher_report.figures(labels, kinds, scores.probabilities, scores.probabilities, ancestry),
        tables=tables,
        sections=matcher_report.making_sections(ancestry),
    )


if __name__ == "__main__":
    config.main(CONFIG, run)
