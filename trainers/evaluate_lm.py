"""Evaluate every model of a sweep over K on frozen test windows: JSON, Parquet, a table, and a self-contained page.

    python -m trainers.evaluate_lm trainers/experiments/arxiv/evaluate.toml [key=value ...]

Every model reads the same windows of every category: its own mixture's, those of the K = 1 category of its seed, and
those of categories that it has never seen.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire import artifact, config, device, hub, lm, mixtures, plots, report, windows
from quire.artifact import Artifact
from quire.errors import UserError
from quire.tokens import TokenStore
from trainers.tracker import TrackedRuntime


class EvaluateLmConfig(config.Config):
    """What `trainers.evaluate_lm` computes."""

    name: str
    sweep: str
    num_windows: int = Field(default=64, gt=0, description="of each category")
    seed: int = 0
    pretrained: str | None = Field(default=None, description="a model by name or folder, for its in-context curve")
    runtime: TrackedRuntime = TrackedRuntime()


CONFIG = EvaluateLmConfig


def run(settings: EvaluateLmConfig) -> Artifact:
    """Make the `reports` artefact: losses.parquet, results.json, table.txt, index.html."""
    root = settings.runtime.root
    sweep = artifact.open_artifact(root, "sweeps", settings.sweep)
    draft = artifact.begin(root, "reports", settings.name, recipe=config.recipe(settings), inputs={"sweep": sweep})
    if draft.published:
        return draft.published
    models = [
        artifact.open_artifact(root, "models", row["trial"])
        for row in sweep.read_json("trials.json")
        if row["state"] == "finished"
    ]
    tests = _Tests(models, settings)
    runs = [_Run(model, tests) for model in tqdm(models, desc=f"      {draft.folder}", unit="model", mininterval=5)]
    results = _results(runs)
    curve = _pretrained_curve(settings, tests)
    draft.storage.write_table(f"{draft.folder}/losses.parquet", pa.Table.from_pylist([r for x in runs for r in x.rows]))
    draft.storage.write_json(f"{draft.folder}/results.json", results)
    text = _table(results)
    draft.storage.write_bytes(f"{draft.folder}/table.txt", text.encode())
    page = report.render(_page(settings, runs, results, text, curve, sweep))
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    return draft.publish(
        summary=f"{text}\nreport: {draft.storage.uri(draft.folder)}/index.html", facts={"results": results}
    )


class _Tests:
    """The frozen test windows of every category that a model of the sweep may have learnt."""

    def __init__(self, models: Sequence[Artifact], settings: EvaluateLmConfig):
        if not models:
            raise UserError(f"sweep = {settings.sweep!r}: no trial is finished")
        recipes = [model.manifest["recipe"] for model in models]
        first, root = recipes[0], settings.runtime.root
        if any((r["tokens"], r["sequence_length"]) != (first["tokens"], first["sequence_length"]) for r in recipes):
            raise UserError(
                f"sweep = {settings.sweep!r}: its trials read different tokens or windows; compare them apart"
            )
        self.store = TokenStore.open(artifact.open_artifact(root, "tokens", first["tokens"]))
        self.universe = list(first["categories"] or self.store.names())
        asked = (self.store, "test", self.universe, first["sequence_length"], settings.num_windows, settings.seed)
        self.windows = windows.evaluation_windows(*asked)
        self.rows = {name: rows for name, (rows, _) in windows.evaluation_plan(*asked).items()}
        tokenizer = AutoTokenizer.from_pretrained(self.store.folder / "tokenizer")
        self.bytes_per_token = {
            name: sum(len(tokenizer.decode(row[1:]).encode()) for row in found.tolist()) / found[:, 1:].size
            for name, found in self.windows.items()
        }


class _Run:
    """One trained model on all test windows."""

    def __init__(self, model: Artifact, tests: _Tests):
        facts = model.read_json("mixture.json")
        recipe = model.manifest["recipe"]
        self.k, self.seed, self.categories = facts["k"], facts["category_seed"], facts["categories"]
        self.replicate = (facts["category_seed"], facts["init_seed"], facts["data_seed"])
        self.control = recipe["shuffle_labels"] is not None
        self.first = windows.choose_categories(tests.universe, 1, self.seed)[0]
        network = AutoModelForCausalLM.from_pretrained(str(model.local()), use_safetensors=True, local_files_only=True)
        network = network.to(device.device()).eval()
        self.losses = {name: lm.position_losses(network, found) for name, found in tests.windows.items()}
        self.own = np.concatenate([self.losses[name] for name in self.categories])
        self.rows = []
        for name, losses in self.losses.items():
            estimate = mixtures.interval(losses, tests.rows[name])
            self.rows.append(
                {
                    "trial": model.name,
                    "k": self.k,
                    "category_seed": self.seed,
                    "init_seed": facts["init_seed"],
                    "data_seed": facts["data_seed"],
                    "control": self.control,
                    "category": name,
                    "in_mixture": name in self.categories,
                    "loss": estimate.mean,
                    "loss_low": estimate.low,
                    "loss_high": estimate.high,
                    "perplexity": float(np.exp(estimate.mean)),
                    "bits_per_byte": mixtures.bits_per_byte(estimate.mean, tests.bytes_per_token[name]),
                }
            )

    def mean(self, what: str) -> float:
        """Mean loss on the run's own mixture, or on the K = 1 category of its seed."""
        return float(self.own.mean() if what == "own" else self.losses[self.first].mean())


MEASURES = {"own": "own mixture", "first": "the K = 1 category of the seed"}


def _results(runs: Sequence[_Run]) -> dict[str, Any]:
    """By measure: mean and spread over seeds for every K, and the trend; the control's beside it where there is one."""
    found: dict[str, Any] = {}
    for control in sorted({run.control for run in runs}):
        part = [run for run in runs if run.control == control]
        for what in MEASURES:
            values = {k: [run.mean(what) for run in part if run.k == k] for k in sorted({run.k for run in part})}
            levels = {
                k: {
                    "mean": float(np.mean(v)),
                    "deviation": float(np.std(v, ddof=1)) if len(v) > 1 else None,
                    "runs": len(v),
                }
                for k, v in values.items()
            }
            replicates = sorted({run.replicate for run in part})
            blocks = [replicates.index(run.replicate) for run in part]
            entry: dict[str, Any] = {"by_k": levels}
            if len(levels) > 1:
                entry["trend"] = asdict(mixtures.trend([r.k for r in part], blocks, [r.mean(what) for r in part]))
            found[f"{'control_' if control else ''}{what}"] = entry
    return found


def _table(results: dict[str, Any]) -> str:
    lines = []
    for key, entry in results.items():
        control, what = key.startswith("control_"), key.removeprefix("control_")
        lines.append(f"{'labels shuffled: ' if control else ''}test loss on {MEASURES[what]}, nats a token")
        for k, level in entry["by_k"].items():
            deviation = "" if level["deviation"] is None else f" +- {level['deviation']:.3f} over {level['runs']} seeds"
            lines.append(f"  K = {k:<3} {level['mean']:.3f}{deviation}   perplexity {np.exp(level['mean']):.1f}")
        if trend := entry.get("trend"):
            lines.append(
                f"  {trend['slope']:+.3f} nats for each doubling of K; spread over seeds {trend['spread']:.3f}; "
                f"permutation test p = {trend['p_value']:.4f}"
            )
    return "\n".join(lines)


def _pretrained_curve(settings: EvaluateLmConfig, tests: _Tests) -> np.ndarray | None:
    """Mean loss (T',) by position of a pretrained model on the same texts, in its own tokens."""
    if settings.pretrained is None:
        return None
    folder = hub.find_model(settings.pretrained)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    ours = AutoTokenizer.from_pretrained(tests.store.folder / "tokenizer")
    texts = [ours.decode(row) for found in tests.windows.values() for row in found.tolist()]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    length = int(np.percentile([len(ids) for ids in encoded], 20))
    ids = np.asarray([row[:length] for row in encoded if len(row) >= length], dtype=np.int64)
    return lm.position_losses(network.to(device.device()).eval(), ids).mean(0)


def _page(
    settings: EvaluateLmConfig,
    runs: Sequence[_Run],
    results: dict[str, Any],
    text: str,
    pretrained: np.ndarray | None,
    sweep: Artifact,
) -> report.Report:
    real = [run for run in runs if not run.control]
    levels = sorted({run.k for run in real})
    curves = {
        what: {
            f"K = {k}": np.stack(
                [(run.own if what == "own" else run.losses[run.first]).mean(0) for run in real if run.k == k]
            )
            for k in levels
        }
        for what in MEASURES
    }
    if pretrained is not None:
        curves["own"][f"pretrained {settings.pretrained}"] = pretrained[None]
    series = {
        ("labels shuffled: " if run_control else "") + title: [
            (run.k, run.mean(what)) for run in runs if run.control == run_control
        ]
        for run_control in sorted({run.control for run in runs})
        for what, title in MEASURES.items()
    }
    trend = results["first"].get("trend")
    headline = (
        text.splitlines()[0]
        if trend is None
        else (
            f"On the K = 1 category the loss changes by {trend['slope']:+.3f} nats for each doubling of K "
            f"(spread over seeds {trend['spread']:.3f}, permutation test p = {trend['p_value']:.4f})."
        )
    )
    rows = [
        (r["trial"], r["k"], r["category"], "yes" if r["in_mixture"] else "", f"{r['loss']:.3f}")
        + (f"{r['loss_low']:.3f} to {r['loss_high']:.3f}", f"{r['perplexity']:.1f}", f"{r['bits_per_byte']:.3f}")
        for run in runs
        for r in run.rows
    ]
    columns = ("Trial", "K", "Category", "in mixture", "loss, nats", "95 % interval", "perplexity", "bits a byte")
    return report.Report(
        title=f"Category mixtures: {settings.name}",
        question="How does a language model's loss change with the number K of categories in its training mixture?",
        headline=headline,
        plots=[
            report.Plot("Loss against K", plots.against_k(series, "test loss, nats a token"), "A point is one model."),
            *(
                report.Plot(
                    f"Loss by position, {title}",
                    plots.bands(curves[what], "tokens of context", "test loss, nats", log_x=True),
                    "The mean over seeds; the band is one standard deviation over seeds.",
                )
                for what, title in MEASURES.items()
            ),
        ],
        sections=[
            report.Section("Findings", "The same as in the terminal.", (), [(line,) for line in text.splitlines()]),
            report.Section("Every model on every category", "Intervals over documents.", columns, rows),
        ],
        details={"sweep": {key: sweep.manifest[key] for key in ("recipe", "inputs", "fingerprint", "git_commit")}},
    )


if __name__ == "__main__":
    config.main(CONFIG, run)
