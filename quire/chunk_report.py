"""What became of a corpus that was cut into chunks of tokens, as one page: how much, how long, what was dropped where.

No time and no name stands on it: the same source and recipe give the same bytes.
"""

from collections.abc import Mapping
from typing import Any

from quire import chunk_statistics, plots, report, schema


def page(facts: Mapping[str, Any], totals: Mapping[str, Any], examples: Mapping[str, str]) -> str:
    """A self-contained page; `totals` as `manifest.totals` has them, `examples` the first place of each reason."""
    records = f"of {totals['rows_in']:,} records"
    return report.render(
        report.Report(
            title="A corpus in chunks of tokens",
            question="What became of the corpus?",
            headline=f"{facts['rows']:,} chunks, {facts['tokens']:,} tokens {records}; "
            f"{schema.summarise(totals['dropped'])}.",
            tables=[_dropped(totals["dropped"], examples)],
            plots=[length_plot(facts)],
            sections=[_whole(facts, totals)],
        )
    )


def length_plot(facts: Mapping[str, Any]) -> report.Plot:
    """How many chunks have how many tokens."""
    lengths = facts["histogram"]
    svg = plots.bars("lengths", lengths["edges"], lengths["counts"], "tokens, special ones not counted")
    return report.Plot("Length of chunks", svg, chunk_statistics.told(facts))


def _dropped(dropped: Mapping[str, int], examples: Mapping[str, str]) -> report.Section:
    lines = [(reason, f"{count:,}", examples.get(reason, "")) for reason, count in dropped.items()]
    text = "Each stands with its file and row or line in rejects-*.parquet." if lines else "Nothing was."
    return report.Section("Dropped", text, ("reason", "records", "the first of them") if lines else (), lines)


def _whole(facts: Mapping[str, Any], totals: Mapping[str, Any]) -> report.Section:
    lines = [
        ("records", f"{totals['rows_in']:,}"),
        ("bytes of text", f"{totals['cost']['bytes_in']:,}"),
        ("chunks", f"{facts['rows']:,}"),
        ("tokens, special ones not counted", f"{facts['tokens']:,}"),
        *((f"share of chunks below {limit} tokens", f"{share:.2%}") for limit, share in facts["tiny"].items()),
        ("chunks with the text of an earlier one", f"{facts['duplicates']:,}"),
    ]
    return report.Section("The whole", "", ("what", "value"), lines)
