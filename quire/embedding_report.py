"""What a run of embedding made, as one page: how much, how long the chunks are, how near float32.

No time stands on it, nor how often memory was short: the same input and recipe give the same bytes. What it took is in
the manifest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quire import chunk_report, plots, report, schema


def spread(values: np.ndarray) -> dict[str, float]:
    """Least, median and mean of a sample, for a manifest; nothing of an empty one."""
    if not len(values):
        return {}
    return {"min": float(values.min()), "median": float(np.median(values)), "mean": float(values.mean())}


def page(name: str, facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]], chunks: Mapping[str, Any]) -> str:
    """A self-contained page; `records` of the shards, `chunks` the manifest of the chunks."""
    rows, found = sum(record["rows_out"] for record in records), facts["cosine_to_float32"]
    near = f"; cosine to float32 at least {found['min']:.6f} of {found['rows']:,}" if found["rows"] else ""
    cosines = [cosine for record in records for cosine in record["facts"]["cosines"]]
    counts, edges = np.histogram(cosines, bins=20)
    svg = plots.bars("cosines", edges, counts, "cosine to the embedding in float32")
    text = "A sample of every shard, encoded again one text at a time; 1 is the same direction."
    figures = [report.Plot("Cosine to float32", svg, text)]
    if chunks["facts"].get("histogram"):
        figures.append(chunk_report.length_plot(chunks["facts"]))
    return report.render(
        report.Report(
            title=f"Embeddings: {name}",
            question="What was embedded, and can it be trusted?",
            headline=f"{rows:,} chunks, {facts['tokens']:,} tokens{near}.",
            plots=figures,
            sections=[_whole(facts, records, chunks), _shards(records)],
            details={"facts": dict(facts), "facts of the chunks": dict(chunks["facts"])},
        )
    )


def _whole(facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]], chunks: Mapping[str, Any]) -> report.Section:
    rows = sum(record["rows_out"] for record in records)
    lines = [
        ("chunks in", f"{chunks['rows_out']:,}"),
        ("chunks embedded", f"{rows:,}"),
        ("of these taken from before", f"{rows - facts['new_rows']:,}"),
        ("records that gave no chunk", schema.summarise(chunks["dropped"])),
        ("tokens, special ones included", f"{facts['tokens']:,}"),
        ("precision, in shards", ", ".join(f"{name}: {count}" for name, count in facts["precision"].items())),
        ("prompt", repr(facts["prompt"]) if facts["prompt"] else "none"),
        ("chunks cut to what the model reads", f"{facts['truncated']:,}"),
        ("token ids", "those of the chunks" if facts["token_ids_used"] else "of the texts, tokenised anew"),
        ("ids compared, in and out, one to one", f"{facts['ids_checked']:,}"),
    ]
    return report.Section("The whole", "", ("what", "value"), lines)


def _shards(records: Sequence[Mapping[str, Any]]) -> report.Section:
    lines = []
    for number, record in enumerate(records):
        found = spread(np.asarray(record["facts"]["cosines"]))
        least = f"{found['min']:.6f}" if found else "-"
        lines.append((number, f"{record['rows_out']:,}", f"{record['facts']['tokens']:,}", least))
    columns = ("shard", "chunks", "tokens", "least cosine")
    shown = "" if len(lines) <= 200 else f"The first 200 of {len(lines):,}."
    return report.Section("By shard", shown, columns, lines[:200])
