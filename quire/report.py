"""An evaluation as one self-contained HTML page, and as a table for the terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]  # system -> stratum -> metrics
COLUMNS = {
    "auc": "AUC",
    "average_precision": "Avg. precision",
    "f1": "F1",
    "c_at_1": "c@1",
    "f05u": "F0.5u",
    "pan": "PAN mean",
    "brier": "Brier",
    "ece": "ECE",
    "cllr": "Cllr",
    "least_cllr": "least Cllr",
}
IN_TERMINAL = ("auc", "average_precision", "f1", "brier", "ece")
ACROSS_STRATA = "Between strata compare AUC alone: the others move with the share of positives, which differs."
_LOWER_IS_BETTER = ("brier", "ece", "nll", "cllr", "least_cllr")


@dataclass(frozen=True)
class Plot:
    """An inline SVG with what it shows and how to read it."""

    title: str
    svg: str
    how_to_read: str


@dataclass(frozen=True)
class Section:
    """A plain table: a heading, a sentence, column names, rows."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Report:
    """What the page shows, as plain data."""

    title: str
    question: str
    headline: str
    rows: Rows = field(default_factory=dict)  # systems beside each other, where a report compares them
    tables: Sequence[Section] = ()  # what is read before the plots
    plots: Sequence[Plot] = ()
    sections: Sequence[Section] = ()  # and after them
    details: Mapping[str, Any] = field(default_factory=dict)


def strata(rows: Rows) -> list[str]:
    """In the order of the systems that have them, `overall` first."""
    every = dict.fromkeys(stratum for system in rows.values() for stratum in system)
    return sorted(every, key=lambda name: name != "overall")


def shown(value: float, interval: Sequence[float] | None = None) -> str:
    """A number of three digits with its interval: .812 [.790, .834], as tables of a page have it."""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def best(rows: Rows, stratum: str, column: str) -> float:
    """The best value of a column within a stratum, as shown: three digits, so that what reads equal counts equal."""
    values = [round(system[stratum][column], 3) for system in rows.values() if stratum in system]
    return min(values) if column in _LOWER_IS_BETTER else max(values)


def table(rows: Rows, columns: Sequence[str] = IN_TERMINAL) -> str:
    """Systems x metrics as aligned text, a block per stratum; the best value of a column is starred.

    At most 100 columns wide with the standard five metrics: a longer system name stands on a line of its own.
    """
    width = min(max(len(name) for name in rows) + 2, 24)
    lines = []
    for stratum in strata(rows):
        counts = next(system[stratum] for system in rows.values() if stratum in system)
        title = "overall" if stratum == "overall" else f"against {stratum} negatives"
        lines.append(f"{title} ({counts['num_positives']} positives, {counts['num_negatives']} negatives)")
        lines.append(" " * width + "".join(f"{COLUMNS.get(column, column):>15}" for column in columns))
        for name, system in ((name, system) for name, system in rows.items() if stratum in system):
            cells = [
                f"{system[stratum][c]:.3f}{'*' if round(system[stratum][c], 3) == best(rows, stratum, c) else ' '}"
                for c in columns
            ]
            if len(name) > width - 2:
                lines.append(f"  {name}")
                name = ""
            lines.append(f"  {name:<{width - 2}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def render(report: Report, *, ledger: str | None = "../../ledger.html") -> str:
    """The page: inline style and SVG, no script, nothing loaded from anywhere. All text is escaped.

    `ledger`: where the page of costs lies from here, for a link; by default from an artefact's folder. The costs
    themselves are on no page of an artefact, whose bytes no clock may change.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body><main>",
        f'<h1>{escape(report.title)}</h1><p class="question">{escape(report.question)}</p>',
        f'<p class="headline">{escape(report.headline)}</p>',
    ]
    if report.rows:
        parts += ["<h2>Results on the test split</h2>", _results(report.rows), f"<p>{ACROSS_STRATA}</p>"]
    parts += [_section(section) for section in report.tables]
    if report.plots:
        parts.append('<h2>Plots</h2><div class="plots">')
        for plot in report.plots:
            parts.append(
                f"<figure><figcaption><b>{escape(plot.title)}</b> {escape(plot.how_to_read)}</figcaption>"
                f"{plot.svg}</figure>"
            )
        parts.append("</div>")
    parts += [_section(section) for section in report.sections]
    for name, value in report.details.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True)
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    if ledger:
        parts.append(
            f'<p><a href="{escape(ledger)}">Ledger</a>: what everything below this root took and cost. A flow writes '
            "it at its end, as does <code>python -m pipelines.ledger</code>.</p>"
        )
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _results(rows: Rows) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("System", *COLUMNS.values()))
    body = []
    for stratum in strata(rows):
        counts = next(system[stratum] for system in rows.values() if stratum in system)
        title = "Overall" if stratum == "overall" else f"Against {stratum.replace('_', ' ')} negatives"
        size = f"{counts['num_positives']} positives, {counts['num_negatives']} negatives"
        body.append(
            f'<tr class="stratum"><th colspan="{len(COLUMNS) + 1}">{escape(title)} <small>{size}</small></th></tr>'
        )
        for name, system in ((name, system) for name, system in rows.items() if stratum in system):
            cells = "".join(_cell(rows, stratum, column, system[stratum]) for column in COLUMNS)
            body.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(rows: Rows, stratum: str, column: str, values: Mapping[str, Any]) -> str:
    cell = f"{values[column]:.3f}"
    if round(values[column], 3) == best(rows, stratum, column):
        cell = f"<b>{cell}</b>"
    interval = values.get(f"{column}_interval")
    if interval:
        cell += f" <small>[{interval[0]:.3f}, {interval[1]:.3f}]</small>"
    return f"<td>{cell}</td>"


def _section(section: Section) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in section.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in section.rows)
    return (
        f"<h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


_STYLE = """
:root{color-scheme:light}body{margin:0;background:#fff;color:#1c1c1c;font:16px/1.5 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem}h1{margin:.2em 0}h2{margin-top:2em;border-bottom:1px solid #ddd}
.question{color:#555;margin:.2em 0}.headline{font-size:1.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
td:first-child,th:first-child{text-align:left}small{color:#666;font-weight:normal}td small{display:block}
.stratum th{text-align:left;background:#f4f6f8}.plots{display:grid;gap:1.5rem;
grid-template-columns:repeat(auto-fit,minmax(22rem,1fr))}
figure{margin:0}figcaption{font-size:.9rem;color:#444;min-height:3em}svg{width:100%;height:auto}
details{margin:.6rem 0}pre{overflow-x:auto;background:#f6f6f6;padding:1rem;font-size:.8rem}
@media print{details{display:none}}
"""
