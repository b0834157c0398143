"""The report of a matcher: every system beside the others, by stratum and by pair type, with what it was made from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quire import decision_plots, plots, report
from quire.artifact import Artifact
from quire.report import Section

TITLES = {
    "two_stage": "two-stage",
    "bi_encoder": "bi-encoder",
    "cross_encoder": "cross-encoder",
    "untrained": "untrained encoder",
    "word_tfidf": "words, tf-idf",
    "char_4gram": "character 4-grams",
    "function_words": "function words",
    "style": "three style numbers",
    "all_views": "regression over all views",
    "cohort_views": "the same beside a cohort",
}
# As many as there are colours.
_PLOTTED = ("two_stage", "bi_encoder", "cross_encoder", "untrained", "word_tfidf", "char_4gram", "all_views")
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # system -> stratum or pair type -> metrics
SB_SA_DA = (
    "SB: two passages of the same book; SA: of two books of the same author; DA: of books of different authors, drawn "
    "at random. AUC with its 95 % interval over authors. A system that knows books by their authors alone would have "
    "SB vs SA near .5; one that knows authors has SA vs DA above it. Where names are masked, baselines were fitted on "
    "masked training texts; the models are those that read the texts as they are."
)

LEAD = (
    "AUC of the two-stage answer less the system's, by the same draws of authors: beyond chance where the interval "
    "does not hold 0."
)


def title(system: str) -> str:
    """A system's name as reports have it."""
    return TITLES.get(system, system.replace("_", " "))


def pair_type_tables(pair_types: Mapping[str, Results]) -> str:
    """AUC of each system for each two pair types as aligned text, raw, and names masked where that was measured; and by
    how much the answer leads."""
    found = lead_section(pair_types)
    return "\n".join([_aligned(pair_type_section(pair_types)), "", f"{found.title}: {LEAD}", _aligned(found)])


def _aligned(section: Section) -> str:
    width = max(len(str(row[0])) for row in section.rows) + 2
    names, *texts = section.columns
    lines = [f"{names:<{width}}" + "".join(f"{name:>27}" for name in texts)]
    lines += [f"{row[0]:<{width}}" + "".join(f"{cell:>27}" for cell in row[1:]) for row in section.rows]
    return "\n".join(lines)


def pair_type_section(pair_types: Mapping[str, Results]) -> Section:
    """`pair_types`: "raw" and "names masked" -> system -> "SB vs DA" -> AUC and interval."""
    return _pair_types(pair_types, "auc", "Same book, same author, different authors", SB_SA_DA)


def lead_section(pair_types: Mapping[str, Results]) -> Section:
    """By how much the AUC of the answer is higher than each other system's, from the same."""
    others = {
        texts: {system: cells for system, cells in found.items() if system != TITLES["two_stage"]}
        for texts, found in pair_types.items()
    }
    return _pair_types(others, "lead", "How far the answer is ahead", LEAD)


def _pair_types(pair_types: Mapping[str, Results], value: str, name_of_all: str, text: str) -> Section:
    compared = list(dict.fromkeys(name for found in pair_types.values() for cells in found.values() for name in cells))
    columns = [(texts, name) for name in compared for texts in pair_types]
    rows = [
        (system, *(_shown(pair_types[texts].get(system, {}).get(name), value) for texts, name in columns))
        for system in next(iter(pair_types.values()))
    ]
    heads = [name if texts == "raw" else f"{name}, {texts}" for texts, name in columns]
    return Section(name_of_all, text, ("System", *heads), rows)


def stratum_section(rows: Results, described: Mapping[str, Mapping[str, Any]]) -> Section:
    """AUC of every system in every stratum, a line a stratum, with the topic score's own beside it."""
    lines = []
    for name, facts in described.items():
        size = f"{facts['num_positives']:,} + {facts['num_negatives']:,}"
        topic = "" if facts["topic_auc"] is None else f"{facts['topic_auc']:.3f}"
        lines.append((facts["title"], size, topic, *(_shown(system.get(name)) for system in rows.values())))
    return Section(
        "Strata",
        "AUC with its 95 % interval over authors. Pairs are positives + negatives. Topic is the score by which pairs "
        "were matched: where the topic is matched it is near .5, and what a system reaches there it owes to something "
        "else.",
        ("Stratum", "pairs", "topic alone", *rows),
        lines,
    )


def _shown(cell: Mapping[str, Any] | None, value: str = "auc") -> str:
    return "" if cell is None else report.shown(cell[value], cell.get(f"{value}_interval"))


def calibration_section(calibration: Mapping[str, Any]) -> Section:
    """What calibration changed on its own split."""
    return Section(
        "Calibration",
        "On the calibration split: before is the sigmoid of the raw score, after the fitted scale.",
        ("System", "NLL before", "after", "Brier before", "after", "ECE before", "after"),
        [
            (title(name), *(f"{facts[when][q]:.3f}" for q in ("nll", "brier", "ece") for when in ("before", "after")))
            for name, facts in calibration["systems"].items()
        ],
    )


def decision_section(decided: Sequence[Mapping[str, Any]]) -> Section:
    """What each side of the decisions promised (a `certify.Certificate`) and what it kept on test."""
    if not decided:
        return Section("Decisions", "No precision was asked for, so one threshold decides every pair.", (), [])
    rows = []
    for row in decided:
        made = row["certificate"]
        found = made["threshold"] is not None
        rows.append(
            (
                made["side"] if row["k"] == 1 else f"{made['side']}, {row['k']} chunks a side",
                f"{made['target']:g} at confidence {made['confidence']:g}",
                f"P {'>=' if made['side'] == 'same' else '<='} {made['threshold']:.3f}" if found else "cannot certify",
                f"{made['bound']:.3f} ({made['num_right']} of {made['num_decided']})",
                f"{row['decided']:.1%}",
                "" if row["precision"] is None else f"{row['precision']:.3f}",
                f"{row['c_at_1']:.3f}, {row['f05u']:.3f}",
            )
        )
    return Section(
        "Decisions",
        "What was promised of each decision when the matcher was calibrated, and what it kept on test; all other pairs "
        "are undecided. The bound is from independent pairs that nothing else was fitted on.",
        (
            "Decision",
            "precision promised",
            "decided where",
            "bound",
            "decided on test",
            "precision on test",
            "c@1, F0.5u",
        ),
        rows,
    )


def figures(
    labels: np.ndarray,
    kinds: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    rankings: Mapping[str, np.ndarray],
    ancestry: Sequence[Artifact],
) -> list[report.Plot]:
    """Plots of probabilities (n,) by system, and of the scores (n,) that rank; `kinds` (n,): types of the negatives."""
    trained = {title(name): (labels, probabilities[name]) for name in ("two_stage", "bi_encoder", "cross_encoder")}
    shown = {title(name): (labels, rankings[name]) for name in _PLOTTED if name in rankings}
    made = [a for a in ancestry if "history.json" in a.manifest["files"]]
    histories = {a.name: a.read_json("history.json")["history"] for a in made}
    scores = decision_plots.score_histograms(labels, kinds, probabilities["two_stage"])
    drawn = [
        ("ROC", decision_plots.roc(shown), decision_plots.READ_ROC),
        (
            "Precision and recall",
            decision_plots.precision_recall(shown),
            "How many are right among those called the same book, as more are found.",
        ),
        ("Reliability", decision_plots.reliability(trained), decision_plots.READ_RELIABILITY),
        ("Scores by negative type", scores, "Two-stage probabilities; negatives far to the right are the mistakes."),
        (
            "Losses",
            plots.losses(histories),
            "Training loss falls, validation AUC rises; where they part, training overfits.",
        ),
    ]
    return [report.Plot(*figure) for figure in drawn]


def split_by(ancestry: Sequence[Artifact]) -> str:
    """What the splits keep apart: `author` or `work`."""
    return next((a.manifest["recipe"]["split"]["by"] for a in ancestry if a.kind == "chunks"), "author")


def making_sections(ancestry: Sequence[Artifact]) -> list[Section]:
    """What the data were, how long each stage took, what was dropped and why."""
    splits = next((a.manifest["facts"]["splits"] for a in ancestry if a.kind == "chunks"), {})
    data = [(split, *(f"{count:,}" for count in counts.values())) for split, counts in splits.items()]
    names = tuple(next(iter(splits.values()))) if splits else ()
    stages = [
        (
            a.folder,
            *(f"{a.manifest['cost'][what]:.1f}" for what in ("wall", "cpu", "gpu")),
            f"{a.manifest['rows_out']:,}",
            a.manifest["summary"].splitlines()[-1] if a.manifest["summary"] else "",
        )
        for a in ancestry
    ]
    dropped = [(a.folder, reason, f"{count:,}") for a in ancestry for reason, count in a.manifest["dropped"].items()]
    return [
        Section("Data", f"No {split_by(ancestry)} stands in two splits.", ("Split", *names), data),
        Section("Stages", "Seconds.", ("Artefact", "wall", "CPU", "GPU", "rows", "summary"), stages),
        Section(
            "Dropped rows",
            "Each stands with its reason in rejects-*.parquet." if dropped else "Nothing was dropped.",
            ("Artefact", "reason", "rows") if dropped else (),
            dropped,
        ),
    ]
