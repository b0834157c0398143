"""A sweep over K as numbers, a table and a page: levels and trends by measure, losses by category and by position.

Shape letters: N windows of a category, T predictions of a window, R runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from quire import k_effect, plots, report
from quire.next_token import perplexity

MEASURES = {
    "first": "the K = 1 category of the seed",
    "own": "own mixture",
    "own_excess": "own mixture, each category beside its mean over all models",
}
# Every K reads the same texts, or has the texts' difficulty taken out; without that K would get the credit or blame
# for how hard the categories are that it happens to hold.
TESTED = ("first", "own_excess")


@dataclass(frozen=True)
class Run:
    """One trained model and its losses (N, T) in nats on the frozen windows of every category."""

    trial: str
    k: int
    seeds: Mapping[str, int]  # category_seed, init_seed, data_seed
    categories: Sequence[str]  # of its mixture
    first: str  # the K = 1 category of its seed
    control: bool  # trained on permuted labels
    losses: Mapping[str, np.ndarray]
    documents: Mapping[str, np.ndarray]  # (N,) which document each window is from
    bytes_per_token: Mapping[str, float]
    distinct_tokens: int | None = None  # different ones read in training


@dataclass(frozen=True)
class Baseline:
    """A pretrained model's loss by position, (T,) nats in its own tokens: mean and standard deviation over texts."""

    name: str
    mean: np.ndarray
    sd: np.ndarray


def counted(runs: Sequence[Run], measure: str) -> list[Run]:
    """The runs as a measure counts them: for `first`, one of all categories also for the other seeds' K = 1 categories.

    With all categories `category_seed` chooses nothing, so a design may train them with one alone; every seed that has
    no such run of its own is given these, as readings that follow the runs.
    """
    if measure != "first":
        return list(runs)
    whole = [run for run in runs if run.k == len(run.losses)]
    firsts = {run.seeds["category_seed"]: run.first for run in runs}
    without = sorted(firsts.keys() - {run.seeds["category_seed"] for run in whole})
    read = [replace(run, seeds={**run.seeds, "category_seed": s}, first=firsts[s]) for s in without for run in whole]
    return [*runs, *read]


def curves(runs: Sequence[Run], measure: str, unit: Literal["nats", "bits"] = "nats") -> np.ndarray:
    """Loss by position (R, T) of runs that are all controls or all not, by one of MEASURES.

    In nats a token, or in bits a byte, each category by its own texts.
    """
    by_category = {
        name: np.stack([run.losses[name].mean(0, dtype=np.float64) * _worth(run, name, unit) for run in runs])
        for name in runs[0].losses
    }
    if measure == "first":
        return np.stack([by_category[run.first][row] for row, run in enumerate(runs)])
    if measure == "own_excess":
        by_category = {name: found - found.mean(0) for name, found in by_category.items()}
    return np.stack([np.mean([by_category[name][row] for name in run.categories], 0) for row, run in enumerate(runs)])


def _worth(run: Run, category: str, unit: str) -> float:
    return k_effect.bits_per_byte(1.0, run.bytes_per_token[category]) if unit == "bits" else 1.0


def seeds_of(runs: Sequence[Run]) -> list[int]:
    """A number for each combination of the three seeds: what the levels are compared within."""
    keys = [tuple(sorted(run.seeds.items())) for run in runs]
    return [sorted(set(keys)).index(key) for key in keys]


def results(runs: Sequence[Run]) -> dict[str, Any]:
    """By measure, the controls' with `control_` before it: every K's level, the spread, and the trend over log2 K.

    Levels are in nats a token; `bits_per_byte` are the same in bits a byte. Levels count a run of all categories once
    for every category seed (`counted`); the test counts every run once, under its own: read under three seeds it would
    pass for three draws, and chance for an effect of K twice as often as the p value says (simulated: .11 at .05).
    """
    found: dict[str, Any] = {}
    for control in sorted({run.control for run in runs}):
        part = [run for run in runs if run.control == control]
        chosen = [run.seeds["category_seed"] for run in part]
        for measure in MEASURES:
            read = counted(part, measure)
            k, seeds = [run.k for run in read], seeds_of(read)
            values, bits = (curves(read, measure, unit).mean(1) for unit in ("nats", "bits"))
            level = k_effect.levels(k, seeds, values)
            in_bits = k_effect.levels(k, seeds, bits)
            by_k = {
                str(number): {
                    "level": float(mean),
                    "mean": float(values[np.asarray(k) == number].mean()),
                    "bits_per_byte": float(of_byte),
                    "runs": sum(run.k == number for run in part),
                    "readings": k.count(number),
                }
                for number, mean, of_byte in zip(level.k, level.means, in_bits.means, strict=True)
            }
            for number, about in by_k.items():
                about["distinct_tokens"] = _distinct([run for run in part if str(run.k) == number])
            entry: dict[str, Any] = {"by_k": by_k, "spread": None if level.spread is None else float(level.spread)}
            if measure in TESTED and (trend := k_effect.trend(k[: len(part)], chosen, values[: len(part)])):
                entry["trend"] = asdict(trend)
            found[f"{'control_' if control else ''}{measure}"] = entry
    return found


def _distinct(runs: Sequence[Run]) -> float | None:
    """Mean number of different tokens that the runs read; None where one of them does not say."""
    read = [run.distinct_tokens for run in runs]
    return None if None in read else float(np.mean(read))


def category_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every model on every category: loss and perplexity with intervals over documents, bits a byte."""
    rows = []
    for run in runs:
        for name, losses in run.losses.items():
            loss = k_effect.interval(losses, run.documents[name])
            rows.append(
                {"trial": run.trial, "k": run.k, **run.seeds, "control": run.control}
                | {"category": name, "in_mixture": name in run.categories}
                | {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high}
                | {"perplexity": perplexity(loss.mean)}
                | {
                    "perplexity_low": perplexity(loss.low),
                    "perplexity_high": perplexity(loss.high),
                }
                | {"bits_per_byte": k_effect.bits_per_byte(loss.mean, run.bytes_per_token[name])}
            )
    return rows


def position_rows(runs: Sequence[Run], pretrained: Baseline | None = None) -> list[dict[str, Any]]:
    """Loss by position of every model, by measure: row `position` is the loss of a token after that many others.

    A pretrained model's measure is `pretrained`; its rows have `sd`, over texts, and no K.
    """
    rows = []
    for control in sorted({run.control for run in runs}):
        part = [run for run in runs if run.control == control]
        for measure in MEASURES:
            read = counted(part, measure)
            for run, curve in zip(read, curves(read, measure).tolist(), strict=True):
                about = {"trial": run.trial, "k": run.k, **run.seeds, "control": control, "measure": measure}
                rows += [{**about, "position": at, "loss": loss} for at, loss in enumerate(curve, 1)]
    if pretrained is not None:
        about = {"trial": pretrained.name, "control": False, "measure": "pretrained"}
        curve = zip(pretrained.mean.tolist(), pretrained.sd.tolist(), strict=True)
        rows += [{**about, "position": at, "loss": loss, "sd": sd} for at, (loss, sd) in enumerate(curve, 1)]
    return rows


def table(found: Mapping[str, Any]) -> str:
    """The results as text."""
    lines = []
    for key, entry in found.items():
        if key == "pretrained":
            lines.append(
                f"pretrained {entry['model']}: {entry['bits_per_byte']:.3f} bits a byte on the same texts; the best of "
                f"the sweep {entry['best_of_sweep']:.3f}"
            )
            continue
        control, measure = key.startswith("control_"), key.removeprefix("control_")
        spread = "" if entry["spread"] is None else f" (+- {entry['spread']:.4f} between runs, seeds levelled out)"
        lines.append(f"{'labels shuffled: ' if control else ''}test loss on {MEASURES[measure]}, nats a token{spread}")
        for k, level in entry["by_k"].items():
            sign = "+" if measure == "own_excess" else ""
            shown = f"{level['level']:{sign}.4f} over {level['runs']} runs"
            shown += "" if level["readings"] == level["runs"] else f" ({level['readings']} readings)"
            shown += "" if sign else f"   perplexity {perplexity(level['level']):.1f}"
            lines.append(f"  K = {k:<3} {shown}   {level['bits_per_byte']:{sign}.4f} bits a byte{_read(level)}")
        if "trend" in entry:
            lines.append(f"  {_slope(entry['trend'])}")
    return "\n".join(lines)


def _read(level: Mapping[str, Any]) -> str:
    return "" if level["distinct_tokens"] is None else f"   {level['distinct_tokens']:,.0f} different tokens read"


def markdown(found: Mapping[str, Any]) -> str:
    """The losses of every K in nats a token and bits a byte, as a table to be quoted."""
    entries = {key: entry for key, entry in found.items() if key != "pretrained"}
    every = sorted({k for entry in entries.values() for k in entry["by_k"]}, key=int)
    rows = [["test loss, nats a token / bits a byte", *(f"K = {k}" for k in every), "for each doubling of K"]]
    rows += [["---"] * len(rows[0])]
    for key, entry in entries.items():
        measure, by_k = key.removeprefix("control_"), entry["by_k"]
        sign = "+" if measure == "own_excess" else ""
        cells = [
            f"{by_k[k]['level']:{sign}.3f} / {by_k[k]['bits_per_byte']:{sign}.3f}" if k in by_k else "" for k in every
        ]
        trend = entry.get("trend")
        slope = "" if trend is None else f"{trend['slope']:+.3f} nats, p = {trend['p_value']:.4f}"
        name = f"{'labels shuffled: ' if measure != key else ''}{MEASURES[measure]}"
        rows.append([name, *cells, slope])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _slope(trend: Mapping[str, Any]) -> str:
    return f"{trend['slope']:+.4f} nats for each doubling of K, permutation test p = {trend['p_value']:.4f}"


def figures(runs: Sequence[Run], pretrained: Baseline | None = None) -> dict[str, report.Plot]:
    """By file name: loss against K and against position for the first two measures, and a pretrained model's curve."""
    made = {}
    real = [run for run in runs if not run.control]
    for measure in ("first", "own"):
        series, levels = {}, {}
        for control in sorted({run.control for run in runs}):
            part = counted([run for run in runs if run.control == control], measure)
            k, seeds, values = [run.k for run in part], seeds_of(part), curves(part, measure).mean(1)
            name = "labels shuffled" if control else "categories"
            series[name] = list(zip(k, seeds, values.tolist(), strict=True))
            level = k_effect.levels(k, seeds, values)
            levels[name] = dict(zip(level.k, level.means, strict=True))
        made[f"loss_against_k_{measure}"] = report.Plot(
            f"Loss against K, {MEASURES[measure]}",
            plots.against_k(series, levels, "test loss, nats a token"),
            "A point is one model, a thin line one seed, the thick line the level of each K.",
        )
        read = counted(real, measure)
        x, binned = _log_bins(curves(read, measure))
        level = k_effect.levels([run.k for run in read], seeds_of(read), binned)
        bands = {f"K = {k}": of_k for k, *of_k in zip(level.k, level.means, level.spreads, strict=True)}
        made[f"loss_by_position_{measure}"] = report.Plot(
            f"Loss by position, {MEASURES[measure]}",
            plots.bands(x, bands, "tokens of context", "test loss, nats"),
            "Means over ranges of positions, seeds levelled out; each band is what the runs of that K still differ by "
            "(one standard deviation). Every position stands in positions.parquet.",
        )
    if pretrained is not None:
        name, (x, binned) = pretrained.name, _log_bins(np.stack([pretrained.mean, pretrained.sd]))
        made["pretrained"] = report.Plot(
            f"Loss by position, pretrained {name}",
            plots.bands(x, {name: (binned[0], binned[1])}, "tokens of context", "test loss, nats"),
            "On the texts of the same windows, in its own tokens: the shape compares, the height does not. The band is "
            "one standard deviation of a single token's loss over the texts.",
        )
    return made


def _log_bins(curves: np.ndarray, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Mean position (B,) and mean loss (R, B) of curves (R, T) in ranges of positions that grow geometrically."""
    length = curves.shape[1]
    edges = np.unique(np.geomspace(1, length + 1, count + 1).round().astype(int))
    ranges = [np.arange(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    return np.asarray([r.mean() for r in ranges]), np.stack([curves[:, r - 1].mean(1) for r in ranges], axis=1)


def page(name: str, runs: Sequence[Run], found: Mapping[str, Any], figures: Sequence[report.Plot], details: Any) -> str:
    """The self-contained HTML page."""
    trend = found["first"].get("trend")
    text = table(found).splitlines()
    rows = [
        (r["trial"], r["k"], r["category"], "yes" if r["in_mixture"] else "", f"{r['loss']:.3f}")
        + (f"{r['loss_low']:.3f} to {r['loss_high']:.3f}", f"{r['perplexity']:.1f}")
        + (f"{r['perplexity_low']:.1f} to {r['perplexity_high']:.1f}", f"{r['bits_per_byte']:.3f}")
        for r in category_rows(runs)
    ]
    columns = (
        "Trial",
        "K",
        "Category",
        "in mixture",
        "loss, nats",
        "95 % interval",
        "perplexity",
        "95 % interval",
        "bits a byte",
    )
    return report.render(
        report.Report(
            title=f"Category mixtures: {name}",
            question="How does a language model's loss change with the number K of categories in its training mixture?",
            headline=text[0] if trend is None else f"On {MEASURES['first']} the loss changes by {_slope(trend)}.",
            plots=figures,
            sections=[
                report.Section("Findings", "The same as in the terminal.", (), [(line,) for line in text]),
                report.Section("Every model on every category", "Intervals over documents.", columns, rows),
            ],
            details=details,
        )
    )
