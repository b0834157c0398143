"""Plots of decisions, as `plots` draws them; apart, since what they load is not for every process that makes a page.

`systems` maps a name to (labels (n,), probabilities (n,)).
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve, roc_curve

from quire import plots
from quire.metrics import calibration_bins

Systems = Mapping[str, tuple[np.ndarray, np.ndarray]]
# How a page says they are read.
READ_ROC = "The further to the upper left, the better; the diagonal is guessing."
READ_RELIABILITY = "On the diagonal, a stated probability is what happens."


def roc(systems: Systems) -> str:
    """True positive rate against false positive rate."""

    def draw(axes: Axes) -> None:
        for name, (labels, probabilities) in systems.items():
            false, true, _ = roc_curve(labels, probabilities)
            axes.plot(false, true, label=plots.label(name))
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower right")

    return plots.svg("roc", draw)


def precision_recall(systems: Systems) -> str:
    """Precision against recall."""

    def draw(axes: Axes) -> None:
        for name, (labels, probabilities) in systems.items():
            precision, recall, _ = precision_recall_curve(labels, probabilities)
            axes.plot(recall, precision, label=plots.label(name))
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(loc="lower left")

    return plots.svg("pr", draw)


def reliability(systems: Systems, positives: str = "the same book") -> str:
    """Observed share of positives against mean probability, in equal-mass bins."""

    def draw(axes: Axes) -> None:
        for name, (labels, probabilities) in systems.items():
            predicted, observed, _ = calibration_bins(labels, probabilities)
            axes.plot(predicted, observed, marker="o", markersize=4, label=plots.label(name))
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        axes.set(xlabel="predicted probability", ylabel=f"observed share of {positives}", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")

    return plots.svg("reliability", draw)


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
                label=plots.label(name),
            )
        axes.set(xlabel="probability of the same book", ylabel="density", xlim=(0, 1))
        axes.legend(loc="upper center")

    return plots.svg("scores", draw)
