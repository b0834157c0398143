"""Plots as inline SVG: the same data gives the same bytes, and several share a page.

`systems` maps a name to (labels (n,), probabilities (n,)).
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from quire import k_effect
from quire.metrics import calibration_bins

# Okabe & Ito 2008: eight colours that colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Systems = Mapping[str, tuple[np.ndarray, np.ndarray]]


def roc(systems: Systems) -> str:
    """True positive rate against false positive rate."""

    def draw(axes: Axes) -> None:
        for name, (labels, probabilities) in systems.items():
            false, true, _ = roc_curve(labels, probabilities)
            axes.plot(false, true, label=_label(name))
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower right")

    return _svg("roc", draw)


def precision_recall(systems: Systems) -> str:
    """Precision against recall."""

    def draw(axes: Axes) -> None:
        for name, (labels, probabilities) in systems.items():
            precision, recall, _ = precision_recall_curve(labels, probabilities)
            axes.plot(recall, precision, label=_label(name))
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower left")

    return _svg("pr", draw)


def reliability(systems: Systems, positives: str = "the same book") -> str:
    """Observed share of positives against mean probability, in equal-mass bins."""

    def draw(axes: Axes) -> None:
        for name, (labels, probabilities) in systems.items():
            predicted, observed, _ = calibration_bins(labels, probabilities)
            axes.plot(predicted, observed, marker="o", markersize=4, label=_label(name))
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel="predicted probability", ylabel=f"observed share of {positives}", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")

    return _svg("reliability", draw)


def losses(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str = "auc") -> str:
    """Training loss and validation metric over steps, a panel a model."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for axes, (name, history) in zip(
        figure.subplots(1, max(1, len(histories)), squeeze=False)[0], histories.items(), strict=False
    ):
        trained = np.asarray([(r["step"], r["loss"]) for r in history if "loss" in r]).reshape(-1, 2)
        evaluated = np.asarray([(r["step"], r[f"eval_{metric}"]) for r in history if f"eval_{metric}" in r]).reshape(
            -1, 2
        )
        axes.plot(trained[:, 0], trained[:, 1], color=COLORS[0], linewidth=1)
        axes.set(title=_label(name), xlabel="optimiser step")
        axes.set_ylabel("training loss", color=COLORS[0])
        other = axes.twinx()
        other.plot(evaluated[:, 0], evaluated[:, 1], color=COLORS[1], marker="o")
        other.set_ylabel(f"validation {metric.upper()}", color=COLORS[1])
    return _render("losses", figure)


def score_histograms(labels: np.ndarray, negative_types: np.ndarray, probabilities: np.ndarray) -> str:
    """Distribution of the probability for positives and for each type of negative."""

    def draw(axes: Axes) -> None:
        kinds = {"same book": labels == 1}
        kinds |= {kind: (labels == 0) & (negative_types == kind) for kind in sorted(set(negative_types[labels == 0]))}
        for name, chosen in kinds.items():
            axes.hist(
                probabilities[chosen],
                bins=np.linspace(0, 1, 26),
                density=True,
                histtype="step",
                linewidth=1.8,
                label=_label(name),
            )
        axes.set(xlabel="probability of the same book", ylabel="density", xlim=(0, 1))
        axes.legend(loc="upper center")

    return _svg("scores", draw)


def bands(x: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray | None]], xlabel: str, ylabel: str) -> str:
    """Curves (points,) over a logarithmic x (points,), each in a band of so much (points,) to both sides."""

    def draw(axes: Axes) -> None:
        for name, (curve, half) in curves.items():
            (line,) = axes.plot(x, curve, label=_label(name), linewidth=1.4)
            if half is not None:
                axes.fill_between(x, curve - half, curve + half, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        axes.legend(loc="upper right")

    return _svg("bands", draw)


def bars(name: str, edges: Sequence[float], counts: Sequence[int], xlabel: str) -> str:
    """A histogram of n bins from its n + 1 edges; `name` tells it from the others of a page."""

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLORS[0], edgecolor="white", linewidth=0.6)
        axes.set(xlabel=xlabel, ylabel="chunks")

    return _svg(name, draw)


def strips(groups: Mapping[str, Sequence[float]], xlabel: str) -> str:
    """One dimension: every value of a group as a dot in the group's own row, in the order of its values."""

    def draw(axes: Axes) -> None:
        for row, (name, values) in enumerate(groups.items()):
            height = -row + np.linspace(-0.28, 0.28, max(2, len(values)))[: len(values)]
            axes.scatter(np.sort(values), height, s=22, alpha=0.8, label=_label(name))
        axes.axvline(0, color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel=xlabel)
        axes.set_yticks([-row for row in range(len(groups))], [_label(name) for name in groups])

    return _svg("strips", draw)


def against_k(series: Mapping[str, Sequence[tuple[int, int, float]]], ylabel: str) -> str:
    """Points (K, seed, value) of several series over log2 K: thin lines are seeds, the thick one each K's level."""

    def draw(axes: Axes) -> None:
        every: set[int] = set()
        for name, points in series.items():
            k, seeds, values = (np.asarray(column) for column in zip(*points, strict=True))
            level = k_effect.levels(k, seeds, values)
            (line,) = axes.plot(level.k, level.means, label=_label(name), linewidth=2.4)
            for seed in np.unique(seeds):
                of_seed = np.flatnonzero(seeds == seed)[np.argsort(k[seeds == seed])]
                axes.plot(k[of_seed], values[of_seed], ".-", color=line.get_color(), alpha=0.45, linewidth=0.8)
            every |= set(level.k)
        axes.set(xlabel="K, categories in the mixture", ylabel=ylabel)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(every), [str(k) for k in sorted(every)])
        axes.legend(loc="best")

    return _svg("k", draw)


def against_level(
    lines: Mapping[str, Sequence[tuple[int, float]]], intervals: Mapping[str, Sequence[Sequence[float]]]
) -> str:
    """AUC (points,) over log2 k, chunks a side, of several systems; a band where there are intervals (points, 2)."""

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(lines.items()):
            k, values = zip(*points, strict=True)
            style = "-" if place < len(COLORS) else "--"  # colours begin anew
            (line,) = axes.plot(k, values, style, marker="o", markersize=4, linewidth=1.6, label=_label(name))
            if name in intervals:
                low, high = zip(*intervals[name], strict=True)
                axes.fill_between(k, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        every = sorted({k for points in lines.values() for k, _ in points})
        axes.set(xlabel="k, chunks a side", ylabel="AUC")
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [str(k) for k in every])
        axes.legend(loc="lower right", fontsize=7)

    return _svg("level", draw)


def _label(name: str) -> str:
    return name.replace("$", r"\$")  # a pair of dollar signs would open matplotlib's mathematics


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=COLORS)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    draw(axes)
    return _render(name, figure)


def _render(name: str, figure: Figure) -> str:
    """The figure as an <svg> element whose ids are its own and whose bytes depend on nothing but the data."""
    sink = io.StringIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5}
    ):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Two plots of one kind differ in content, so the prefix holds its hash. Tags only: a name may read like an id.
    prefix = f"{name}-{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0]), svg)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
