"""How often an index finds what an exact search finds, as one page: the same for the same embeddings and recipe."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quire import plots, report

_SHOWN = 200  # shards


def page(facts: Mapping[str, Any], summary: str) -> str:
    """A self-contained page from the facts of an index's manifest, and their first line of `summary`."""
    recall, chosen = facts["recall"], facts["num_probes"]
    steps, by_codes = dict(recall["by_num_probes"]), dict(recall.get("by_codes", []))
    what = f"recall@{recall['k']}"
    how = f"with {chosen:,} of {facts['plan']['num_lists']:,} lists searched" if chosen else "by comparing all"
    drawn = []
    if len(steps) > 1:
        curves = {what: (np.array(list(steps.values())), None)}
        if by_codes:
            curves["by codes alone"] = (np.array(list(by_codes.values())), None)
        svg = plots.bands(np.array(list(steps)), curves, "lists searched for a query", what)
        text = f"{recall['num_queries']:,} vectors of the index, beside an exact search. What is searched costs time."
        drawn = [report.Plot("Recall against lists searched", svg, text)]
    return report.render(
        report.Report(
            title="An index of embeddings",
            question="How often does it find what an exact search finds?",
            headline=f"{summary.splitlines()[0]}; {what} {steps[chosen]:.3f} {how}.",
            plots=drawn,
            sections=[_steps(steps, by_codes, chosen, what), _shards(facts["shards"])],
            details={"facts": dict(facts)},
        )
    )


def _steps(steps: Mapping[int, float], by_codes: Mapping[int, float], chosen: int, what: str) -> report.Section:
    columns = ("lists searched", what, *(["by codes alone"] if by_codes else []), "")
    lines = [
        (
            f"{step:,}" if step else "all vectors",
            f"{value:.3f}",
            *([f"{by_codes[step]:.3f}"] if by_codes else []),
            "unless asked otherwise" if step == chosen else "",
        )
        for step, value in steps.items()
    ]
    return report.Section("Recall", "", columns, lines)


def _shards(shards: list[Mapping[str, Any]]) -> report.Section:
    lines = [(shard["file"], f"{shard['first_row']:,}", f"{shard['rows']:,}") for shard in shards[:_SHOWN]]
    shown = "" if len(shards) <= _SHOWN else f"The first {_SHOWN} of {len(shards):,}."
    return report.Section("Files", shown, ("file", "first row", "vectors"), lines)
