"""Plots as inline SVG: the same data gives the same bytes, and several share a page."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that colour-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


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
        axes.set(title=label(name), xlabel="optimiser step")
        axes.set_ylabel("training loss", color=COLORS[0])
        other = axes.twinx()
        other.plot(evaluated[:, 0], evaluated[:, 1], color=COLORS[1], marker="o")
        other.set_ylabel(f"validation {metric.upper()}", color=COLORS[1])
    return _render("losses", figure)


def bands(x: np.ndarray, curves: Mapping[str, tuple[np.ndarray, np.ndarray | None]], xlabel: str, ylabel: str) -> str:
    """Curves (points,) over a logarithmic x (points,), each in a band of so much (points,) to both sides."""

    def draw(axes: Axes) -> None:
        for name, (curve, half) in curves.items():
            (line,) = axes.plot(x, curve, label=label(name), linewidth=1.4)
            if half is not None:
                axes.fill_between(x, curve - half, curve + half, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        axes.legend(loc="upper right")

    return svg("bands", draw)


def bars(name: str, edges: Sequence[float], counts: Sequence[int], xlabel: str) -> str:
    """A histogram of n bins from its n + 1 edges; `name` tells it from the others of a page."""

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLORS[0], edgecolor="white", linewidth=0.6)
        axes.set(xlabel=xlabel, ylabel="chunks")

    return svg(name, draw)


def strips(groups: Mapping[str, Sequence[float]], xlabel: str) -> str:
    """One dimension: every value of a group as a dot in the group's own row, in the order of its values."""

    def draw(axes: Axes) -> None:
        for row, (name, values) in enumerate(groups.items()):
            height = -row + np.linspace(-0.28, 0.28, max(2, len(values)))[: len(values)]
            axes.scatter(np.sort(values), height, s=22, alpha=0.8, label=label(name))
        axes.axvline(0, color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel=xlabel)
        axes.set_yticks([-row for row in range(len(groups))], [label(name) for name in groups])

    return svg("strips", draw)


def against_k(
    series: Mapping[str, Sequence[tuple[int, int, float]]], levels: Mapping[str, Mapping[int, float]], ylabel: str
) -> str:
    """Points (K, seed, value) of several series over log2 K: thin lines are seeds, the thick one each K's level."""

    def draw(axes: Axes) -> None:
        every: set[int] = set()
        for name, points in series.items():
            k, seeds, values = (np.asarray(column) for column in zip(*points, strict=True))
            (line,) = axes.plot(*zip(*levels[name].items(), strict=True), label=label(name), linewidth=2.4)
            for seed in np.unique(seeds):
                of_seed = np.flatnonzero(seeds == seed)[np.argsort(k[seeds == seed])]
                axes.plot(k[of_seed], values[of_seed], ".-", color=line.get_color(), alpha=0.45, linewidth=0.8)
            every |= set(levels[name])
        axes.set(xlabel="K, categories in the mixture", ylabel=ylabel)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(every), [str(k) for k in sorted(every)])
        axes.legend(loc="best")

    return svg("k", draw)


def against_level(
    lines: Mapping[str, Sequence[tuple[int, float]]], intervals: Mapping[str, Sequence[Sequence[float]]]
) -> str:
    """AUC (points,) over log2 k, chunks a side, of several systems; a band where there are intervals (points, 2)."""

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(lines.items()):
            k, values = zip(*points, strict=True)
            style = "-" if place < len(COLORS) else "--"  # colours begin anew
            (line,) = axes.plot(k, values, style, marker="o", markersize=4, linewidth=1.6, label=label(name))
            if name in intervals:
                low, high = zip(*intervals[name], strict=True)
                axes.fill_between(k, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        every = sorted({k for points in lines.values() for k, _ in points})
        axes.set(xlabel="k, chunks a side", ylabel="AUC")
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [str(k) for k in every])
        axes.legend(loc="lower right", fontsize=7)

    return svg("level", draw)


def label(name: str) -> str:
    """The name as it is read: a pair of dollar signs would open matplotlib's mathematics."""
    return name.replace("$", r"\$")


def svg(name: str, draw: Callable[[Axes], None]) -> str:
    """What `draw` puts on axes, as an <svg> element; `name` tells it from the others of a page."""
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
    drawn = sink.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    # Two plots of one kind differ in content, so the prefix holds its hash. Tags only: a name may read like an id.
    prefix = f"{name}-{hashlib.sha256(drawn.encode()).hexdigest()[:8]}-"
    drawn = re.sub(r"<[^>]+>", lambda tag: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0]), drawn)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', drawn, count=1)
