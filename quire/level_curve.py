"""How AUC rises with the level, the number of chunks read of either text: table, section and plot of one curve.

A curve is system -> k, as text -> AUC, its interval, ECE, Brier and the numbers of pairs, and of the final answer also,
at the last level, the AUC by length of text.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quire import plots, report
from quire.report import Report, Section

Curve = Mapping[str, Mapping[str, Mapping[str, Any]]]
FINAL = "two-stage"  # the system whose probabilities are the answer
TITLE = "By chunks a side"
HOW = (
    "Texts around the pairs of single chunks, of which k evenly spaced chunks are read: the shorter one has fewer than "
    "the next k, at the last k both are of any length up to half a book, so texts grow with k. The mean score of all "
    "k x k cells, for the bi-encoder beside what each side has within itself, for the cross-encoder of those few that "
    "it reads. Every level has a scale of its own, fitted on calibration pairs of its own. A level above 1 has fewer "
    "pairs."
)
_OF_FINAL = {"Brier": "brier", "ECE": "ece"}
# Chunks of the shorter text, in k.
LENGTHS = {"texts of under 2k": (1, 2), "texts of 2k to 4k": (2, 4), "texts of 4k and more": (4, np.inf)}


def told(curve: Curve) -> str:
    """What a table in text ends with: nothing where there is one level."""
    return f"\n\n{table(curve)}" if len(curve[FINAL]) > 1 else ""


def added(page: Report, curve: Curve) -> Report:
    """The page with the curve, where there is more than one level."""
    if len(curve[FINAL]) == 1:
        return page
    return replace(page, tables=[*page.tables, section(curve)], plots=[*page.plots, plot(curve)])


def table(curve: Curve) -> str:
    """AUC of each system at each level as aligned text, and what else is known of the final answer."""
    final = curve[FINAL]
    rows = [(TITLE.lower(), list(final)), ("pairs", [str(_num_pairs(cell)) for cell in final.values()])]
    rows += [(system, [f"{cell['auc']:.3f}" for cell in cells.values()]) for system, cells in curve.items()]
    for name, place in (("from", 0), ("to", 1)):
        rows.append((f"{FINAL}, 95 % {name}", [f"{cell['auc_interval'][place]:.3f}" for cell in final.values()]))
    rows += [(f"{FINAL}, {what}", [f"{cell[key]:.3f}" for cell in final.values()]) for what, key in _OF_FINAL.items()]
    rows += by_length(final)
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in cells) for name, cells in rows)


def section(curve: Curve) -> Section:
    """The same with the intervals of every system."""
    final = curve[FINAL]
    rows: list[tuple[str, ...]] = [("pairs", *(f"{_num_pairs(cell):,}" for cell in final.values()))]
    for system, cells in curve.items():
        rows.append((system, *(report.shown(cell["auc"], cell["auc_interval"]) for cell in cells.values())))
    rows += [
        (f"{FINAL}, {what}", *(report.shown(cell[key]) for cell in final.values())) for what, key in _OF_FINAL.items()
    ]
    rows += [(name, *cells) for name, cells in by_length(final)]
    text = f"{HOW} AUC with its 95 % interval over authors."
    return Section(TITLE, text, ("System", *(f"k = {k}" for k in final)), rows)


def plot(curve: Curve) -> report.Plot:
    """AUC over k of every system, the final one with its interval."""
    lines = {system: [(int(k), cell["auc"]) for k, cell in cells.items()] for system, cells in curve.items()}
    band = [cell["auc_interval"] for cell in curve[FINAL].values()]
    svg = plots.against_level(lines, {FINAL: band})
    return report.Plot(TITLE, svg, "AUC as more chunks of either text are read; the band is the 95 % interval.")


def by_length(final: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """AUC of the final answer by length of the shorter text, of the last level, whose texts are of all lengths."""
    *others, last = final.values()
    return [
        (f"{FINAL}, {name} chunks ({part['num_pairs']} pairs)", [*[""] * len(others), f"{part['auc']:.3f}"])
        for name, part in last["by_length"].items()
        if len(last["by_length"]) > 1
    ]


def _num_pairs(cell: Mapping[str, Any]) -> int:
    return cell["num_positives"] + cell["num_negatives"]
