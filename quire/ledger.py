"""What stages cost: seconds of processors, bytes, tokens, and money by a table of prices."""

from collections.abc import Mapping
from typing import Any

_COLUMNS = ("stage", "wall s", "CPU s", "GPU s", "MB in", "MB out", "tokens", "money")


def money(cost: Mapping[str, Any], prices: Mapping[str, Any]) -> float:
    """Of the CPU and GPU seconds of a manifest's `cost`, by the hours of `config.Prices`; in its currency."""
    return (cost["cpu"] * prices["cpu_hour"] + cost["gpu"] * prices["gpu_hour"]) / 3600


def told(cost: Mapping[str, Any]) -> str:
    """The money, `0.0123 USD`; a dash where no prices were given."""
    return f"{cost['money']:.4f} {cost['prices']['currency']}" if "money" in cost else "-"


def table(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Manifests by stage as aligned text, with their sum where they share one currency.

    Of a stage that was skipped, what it cost when it was made.
    """
    costs = {stage: manifest["cost"] for stage, manifest in manifests.items()}
    rows = [_COLUMNS, *(_row(stage, cost) for stage, cost in costs.items())]
    if len({cost["prices"]["currency"] for cost in costs.values() if "money" in cost}) <= 1:
        rows.append(_row("sum", _sum(list(costs.values()))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return "\n".join(lines)


def _row(stage: str, cost: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = (f"{cost[key]:,.1f}" for key in ("wall", "cpu", "gpu"))
    megabytes = (f"{cost[key] / 1e6:,.1f}" for key in ("bytes_in", "bytes_out"))
    return (stage, *seconds, *megabytes, f"{cost['tokens']:,}" if cost.get("tokens") else "-", told(cost))


def _sum(costs: list[Mapping[str, Any]]) -> dict[str, Any]:
    keys = ("wall", "cpu", "gpu", "bytes_in", "bytes_out")
    whole = {key: sum(cost[key] for cost in costs) for key in keys} | {"tokens": 0}  # of one stage those of another
    priced = [cost for cost in costs if "money" in cost]
    if len(priced) == len(costs) and costs:
        whole |= {"money": sum(cost["money"] for cost in costs), "prices": costs[0]["prices"]}
    return whole
