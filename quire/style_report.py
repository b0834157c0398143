"""The report of a style similarity: its levels, and other systems beside it on the same pairs, names raw and masked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quire import decision_plots, metrics, report
from quire.report import Plot, Report, Section
from quire.style_pairs import AuthorPairs
from quire.style_similarity import StyleSpec

Measured = Mapping[str, Any]
SYSTEMS = (
    "Texts of a single passage. Every system got a logistic scale of its own on the calibration pairs, read the same "
    "way; Brier and ECE are of that. In brackets the 95 % interval over authors. Random: authors drawn at random; "
    "neighbor: works of near content, where topic says least. The regression is fitted on training pairs."
)
LEVELS = (
    "Passages that are read of each text, and what the calibrated probability is worth on test pairs by authors that "
    "nothing was fitted on."
)
FITTED = (
    "How each level was calibrated: Brier score and log-loss of both curves on authors left out of their fit, two "
    "folds at a time, so that neither author of a judged pair stands in training."
)


def measured(
    pairs: AuthorPairs, probabilities: np.ndarray, scores: np.ndarray, prior: float, **draws: int
) -> dict[str, Any]:
    """Metrics of n test pairs: of the probabilities, and AUCs of the scores, a flat scale having no ranking.

    AUCs against all negatives and each type of them, with intervals over author groups; those of Brier and ECE too.
    """
    labels = pairs.labels
    bounds = metrics.metric_intervals(labels, probabilities, *pairs.groups, 0.5, prior, **draws)
    found: dict[str, Any] = metrics.metrics(labels, probabilities, 0.5, prior)
    for name in ("brier", "ece"):
        found[f"{name}_interval"] = list(bounds[name])
    for kind in ("all", *sorted(set(pairs.kinds[labels == 0]))):
        chosen = (labels == 1) | (pairs.kinds == kind) if kind != "all" else np.ones(len(labels), bool)
        these, groups = (labels[chosen], scores[chosen]), (side[chosen] for side in pairs.groups)
        name = "auc" if kind == "all" else f"auc_{kind}"
        found[name] = metrics.auc(*these)
        found[f"{name}_interval"] = list(metrics.author_bootstrap(*these, *groups, **draws))
    return found


def table(levels: Mapping[str, Measured], systems: Mapping[str, Mapping[str, Measured]]) -> str:
    """The two tables of results as aligned text."""
    lines = []
    for section in (_level_section(levels), *_system_sections(systems)):
        widths = [
            max(len(str(row[i])) for row in (section.columns, *section.rows)) for i in range(len(section.columns))
        ]
        lines.append(section.title)
        for row in (section.columns, *section.rows):
            lines.append("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def page(
    name: str,
    spec: StyleSpec,
    levels: Mapping[str, Measured],
    systems: Mapping[str, Mapping[str, Measured]],
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    details: Mapping[str, Any],
) -> str:
    """The HTML page. `curves`: level -> labels and probabilities (n,) of the test pairs."""
    first = levels["1"]
    reading = "names masked" if spec.mask_names else "names as they are"
    drawn = {f"{level} passages" if level != "1" else "1 passage": both for level, both in curves.items()}
    reliability = decision_plots.reliability(drawn, "pairs of one author")
    return report.render(
        Report(
            title=f"Style similarity: {name}",
            question="Did one author write both texts, though they are of different books?",
            headline=(
                f"AUC {report.shown(first['auc'], first['auc_interval'])} on {first['num_positives']} pairs of one "
                f"author and {first['num_negatives']} of two, single passages, {reading}; Brier {first['brier']:.3f}, "
                f"ECE {first['ece']:.3f}. Encoder: {spec.model}."
            ),
            tables=[_level_section(levels), *_system_sections(systems)],
            plots=[
                Plot("Reliability", reliability, decision_plots.READ_RELIABILITY),
                Plot("ROC", decision_plots.roc(drawn), decision_plots.READ_ROC),
            ],
            sections=[_fitted_section(spec)],
            details=details,
        )
    )


def _level_section(levels: Mapping[str, Measured]) -> Section:
    columns = ("Passages", "pairs", "AUC", "Brier", "ECE")
    rows = [
        (
            level,
            found["num_positives"] + found["num_negatives"],
            *(_shown(found, key) for key in ("auc", "brier", "ece")),
        )
        for level, found in levels.items()
    ]
    return Section("By number of passages", LEVELS, columns, rows)


def _system_sections(systems: Mapping[str, Mapping[str, Measured]]) -> list[Section]:
    sections = []
    for reading, found in systems.items():
        kinds = sorted(
            {key for row in found.values() for key in row if key.startswith("auc_") and "interval" not in key}
        )
        keys = ("auc", *kinds, "brier", "ece")
        heads = [key.replace("auc_", "AUC against ").replace("auc", "AUC").replace("brier", "Brier") for key in keys]
        rows = [(system, *(_shown(values, key) for key in keys)) for system, values in found.items()]
        heads[-1] = "ECE"
        sections.append(Section(f"Beside other systems, {reading}", SYSTEMS, ("System", *heads), rows))
    return sections


def _fitted_section(spec: StyleSpec) -> Section:
    rows = [
        (
            level.passages,
            level.method,
            level.num_pairs,
            level.num_authors,
            level.num_too_short,
            level.num_cross_validated,
            *(
                f"{level.cross_validated[method][key]:.4f}" if method in level.cross_validated else ""
                for method in ("logistic", "isotonic")
                for key in ("brier", "log_loss")
            ),
        )
        for level in spec.levels
    ]
    scores = ("Brier, logistic", "log-loss, logistic", "Brier, isotonic", "log-loss, isotonic")
    heads = ("Passages", "chosen", "pairs", "author groups", "too short", "cross-validated", *scores)
    return Section("Calibration", FITTED, heads, rows)


def _shown(found: Measured, key: str) -> str:
    return report.shown(found[key], found.get(f"{key}_interval")) if key in found else ""
