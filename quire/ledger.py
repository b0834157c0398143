"""What stages cost: seconds of processors, bytes, tokens, and money by a table of prices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COLUMNS = ("stage", "wall s", "CPU s", "GPU s", "MB in", "MB out", "tokens", "money")


def money(cost: Mapping[str, Any], prices: Mapping[str, Any]) -> float:
    """Of the CPU and GPU seconds of a manifest's `cost`, by the hours of `config.Prices`; in its currency."""
    return (cost["cpu"] * prices["cpu_hour"] + cost["gpu"] * prices["gpu_hour"]) / 3600


def told(cost: Mapping[str, Any]) -> str:
    """The money, `0.0123 USD`; a dash where no prices were given."""
    return f"{cost['money']:.4f} {cost['prices']['currency']}" if "money" in cost else "-"


@dataclass(frozen=True)
class Sample:
    """What a part of a stage's work took and made, and which share of the whole it is."""

    share: float  # above 0, at most 1
    rows: int
    tokens: int
    bytes_out: int
    cpu: float
    gpu: float = 0.0


def estimate(sample: Sample, prices: Mapping[str, Any] | None) -> str:
    """What the whole would take, in two digits: the sample times its share's inverse."""
    whole = {key: getattr(sample, key) / sample.share for key in ("rows", "tokens", "bytes_out", "cpu", "gpu")}
    if prices:
        whole |= {"money": money(whole, prices), "prices": prices}
    made = (f"{_rounded(whole[key])} {key}" for key in ("rows", "tokens"))
    lines = [
        f"estimate from {sample.rows:,} rows, {sample.share:.1%} of the work:",
        f"  {', '.join(made)}, {_rounded(whole['bytes_out'] / 1e6)} MB",
        f"  {_rounded(whole['cpu'] / 3600)} CPU hours, {_rounded(whole['gpu'] / 3600)} GPU hours; money: {told(whole)}",
    ]
    return "\n".join(lines)


def _rounded(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.10g}"


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
