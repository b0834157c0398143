"""What stages cost: seconds of processors, bytes, tokens, and money by a table of prices."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from quire import report

PAGE = "ledger.html"  # in a root
_COLUMNS = ("stage", "wall s", "CPU s", "GPU s", "MB in", "MB out", "tokens", "money")
_RATES = ("MB in per CPU s", "tokens per CPU s", "money per million tokens")


def money(cost: Mapping[str, Any], prices: Mapping[str, Any]) -> float:
    """Of the CPU and GPU seconds of a manifest's `cost`, by the hours of `config.Prices`; in its currency."""
    return (cost["cpu"] * prices["cpu_hour"] + cost["gpu"] * prices["gpu_hour"]) / 3600


def priced(cost: Mapping[str, Any], prices: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A manifest's `cost` by these prices; without any by those that its run was given, if it was."""
    return {**cost, "money": money(cost, prices), "prices": prices} if prices else cost


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


@dataclass(frozen=True)
class Drawn:
    """A few rows of an artefact that is not made yet, for the estimates of steps that will read it."""

    rows: pa.Table
    share: float  # of all its rows, about
    parts: int = 1  # of the artefact, as large as it will have them, that these rows are


def estimate(sample: Sample, prices: Mapping[str, Any] | None) -> str:
    """What the whole would take, in two digits: the sample times its share's inverse."""
    whole = {key: getattr(sample, key) / sample.share for key in ("rows", "tokens", "bytes_out", "cpu", "gpu")}
    if prices:
        whole |= {"money": money(whole, prices), "prices": prices}
    made = (f"{_rounded(whole[key])} {key}" for key in ("rows", "tokens")[: 1 + bool(sample.tokens)])
    lines = [
        f"estimate from {sample.rows:,} rows, {sample.share:.1%} of the work:",
        f"  {', '.join(made)}, {_rounded(whole['bytes_out'] / 1e6)} MB",
        f"  {_rounded(whole['cpu'] / 3600)} CPU hours, {_rounded(whole['gpu'] / 3600)} GPU hours; money: {told(whole)}",
        f"  by the clock {_rounded(_clock(whole) / 3600)} hours on {_machine(whole)}, all of it busy; "
        "Ray's start, hashing of the source and publishing come on top",
    ]
    return "\n".join(lines)


def _clock(cost: Mapping[str, Any]) -> float:
    """Seconds on one GPU where GPUs are used, else on the CPUs of this machine."""
    return cost["gpu"] or cost["cpu"] / (os.cpu_count() or 1)


def _machine(cost: Mapping[str, Any]) -> str:
    return "one GPU" if cost["gpu"] else f"the {os.cpu_count()} CPUs of this machine"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.10g}"


def table(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Manifests by stage as aligned text, with their sum where they share one currency.

    Of a stage that was skipped, what it cost when it was made.
    """
    rows = [_COLUMNS, *_rows({stage: manifest["cost"] for stage, manifest in manifests.items()})]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return "\n".join(lines)


def page(where: str, costs: Mapping[str, Mapping[str, Any]], unfinished: Sequence[str] = ()) -> str:
    """Costs by stage as a self-contained page.

    Clocks stand on it, so it belongs to a root and is no part of an artefact, whose bytes no clock may change.
    """
    rows = [(*_row(stage, cost), *_rates(cost)) for stage, cost in costs.items()]
    rows += [(*row, "", "", "") for row in _rows(costs)[len(costs) :]]
    lacking = [stage for stage, cost in costs.items() if "money" not in cost]
    told = (
        f"Made without prices, so without money: {', '.join(lacking)}; prices.cpu_hour= sets them. " if lacking else ""
    )
    told += f"Unfinished and not counted: {', '.join(unfinished)}." if unfinished else ""
    summed = _rows(costs)[len(costs) :]
    money = summed[0][-1] if summed and summed[0][-1] != "-" else "an unknown sum of money"
    return report.render(
        report.Report(
            title=f"Ledger: {where}",
            question="What did it take, and what did it cost?",
            headline=f"{len(costs)} stages, {sum(c['cpu'] for c in costs.values()) / 3600:,.2f} CPU hours, "
            f"{sum(c['gpu'] for c in costs.values()) / 3600:,.2f} GPU hours, {money}.",
            sections=[report.Section("By stage", told, (*_COLUMNS, *_RATES), rows)],
        ),
        ledger=None,
    )


def _rates(cost: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a stage did for its time and its money."""
    tokens, seconds = cost.get("tokens") or 0, max(cost["cpu"], 1e-9)
    paid = cost.get("money") or 0
    dear = f"{paid * 1e6 / tokens:.4f}" if tokens and paid else "-"
    return f"{cost['bytes_in'] / 1e6 / seconds:,.2f}", f"{tokens / seconds:,.0f}" if tokens else "-", dear


def _rows(costs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row a stage, and their sum where they share one currency."""
    rows = [_row(stage, cost) for stage, cost in costs.items()]
    if len({cost["prices"]["currency"] for cost in costs.values() if "money" in cost}) <= 1:
        rows.append(_row("sum", _sum(list(costs.values()))))
    return rows


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
