"""Evaluate every model of a sweep over K on frozen test windows: JSON, Parquet, a table, and a self-contained page.

    python -m trainers.evaluate_lm trainers/experiments/arxiv/evaluate.toml [key=value ...]

Every model reads the same windows of every category: its own mixture's, those of the K = 1 category of its seed, and
those of categories that it has never seen. A model of all categories counts for the K = 1 category of every seed that
has none of its own. The control's models learnt from permuted labels, and are read windows drawn by the same permuted
labels: there K changes the number of labels and nothing else.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire import artifact, config, device, hub, k_effect, mixture, mixture_report, next_token, windows
from quire.artifact import Artifact
from quire.errors import UserError
from quire.mixture_report import Baseline, Run
from quire.tokens import TokenStore
from trainers import tracker

SEEDS = ("category_seed", "init_seed", "data_seed")
POSITIONS = pa.schema(  # of positions.parquet: those of a pretrained model have no K, those of the sweep no sd
    [("trial", pa.string()), ("k", pa.int64()), *((key, pa.int64()) for key in SEEDS), ("control", pa.bool_())]
    + [("measure", pa.string()), ("position", pa.int64()), ("loss", pa.float64()), ("sd", pa.float64())]
)
# What the trials of a sweep over K may differ in; anything else would be taken for the spread over seeds.
VARIED = {"name", "k", "category_seed", "init_seed", "shuffle_labels", "loop.seed"}


class EvaluateLmConfig(config.Config):
    """What `trainers.evaluate_lm` computes."""

    name: str
    sweep: str
    control: str | None = Field(default=None, description="a sweep whose trials set shuffle_labels")
    num_windows: int = Field(default=64, gt=0, description="of each category")
    seed: int = Field(default=0, ge=0)
    pretrained: str | None = Field(default=None, description="a model by name or folder, for its in-context curve")
    runtime: tracker.TrackedRuntime = tracker.TrackedRuntime()


CONFIG = EvaluateLmConfig


def run(settings: EvaluateLmConfig) -> Artifact:
    """Make the `reports` artefact: losses.parquet, positions.parquet, results.json, table.txt, table.md, figures,
    index.html."""
    root = settings.runtime.root
    names = {"sweep": settings.sweep} | ({"control": settings.control} if settings.control else {})
    inputs: dict[str, Any] = {key: artifact.open_artifact(root, "sweeps", name) for key, name in names.items()}
    models = _models(list(inputs.values()))
    if settings.pretrained:
        inputs["pretrained"] = hub.weights_sha256(hub.find_model(settings.pretrained))
    draft = artifact.begin_step(settings, "reports", inputs)
    if draft.published:
        return draft.published
    tests = _Tests(models, settings)
    runs = [_read(model, tests) for model in tqdm(models, desc=f"      {draft.folder}", unit="model", mininterval=5)]
    results = mixture_report.results(runs)
    pretrained = _Pretrained(settings.pretrained, tests) if settings.pretrained else None
    rows = mixture_report.category_rows(runs)
    if pretrained is not None:
        best = min(np.mean([r["bits_per_byte"] for r in rows if r["trial"] == run.trial]) for run in runs)
        results["pretrained"] = {**pretrained.described(), "best_of_sweep": float(best)}
    text = mixture_report.table(results)
    baseline = pretrained and pretrained.baseline
    figures = mixture_report.figures(runs, baseline)
    details = {"sweep": {key: inputs["sweep"].manifest[key] for key in ("recipe", "inputs", "fingerprint")}}
    page = mixture_report.page(settings.name, runs, results, list(figures.values()), details)
    draft.storage.write_table(f"{draft.folder}/losses.parquet", pa.Table.from_pylist(rows))
    positions = pa.Table.from_pylist(mixture_report.position_rows(runs, baseline), POSITIONS)
    draft.storage.write_table(f"{draft.folder}/positions.parquet", positions)
    draft.storage.write_json(f"{draft.folder}/results.json", {**results, "models": _without_nan(rows)})
    files = {"table.txt": text, "table.md": mixture_report.markdown(results), "index.html": page}
    files |= {f"{name}.svg": plot.svg for name, plot in figures.items()}
    for name, content in files.items():
        draft.storage.write_bytes(f"{draft.folder}/{name}", content.encode())
    tracker.log_report(settings, draft, page, results, {"losses": _without_nan(rows)})
    where = draft.storage.uri(f"{draft.folder}/index.html")
    return draft.publish(summary=f"{text}\nreport: {where}", facts={"results": results})


def _without_nan(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON has no NaN: the bounds of a category with one document are null."""
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def _models(sweeps: Sequence[Artifact]) -> list[Artifact]:
    """The different models of finished trials, the control's last.

    Two trials can be one model: with K = all categories, `category_seed` chooses nothing. They count once. Raises
    UserError when there is none, or when they differ in more than K and the seeds.
    """
    models: dict[str, Artifact] = {}
    for sweep, is_control in zip(sweeps, (False, True), strict=False):
        rows = [row for row in sweep.read_json("trials.json") if row["state"] == "finished"]
        if not rows:
            raise UserError(f"sweep = {sweep.name!r}: no trial is finished")
        for row in rows:
            model = artifact.open_artifact(sweep.storage, "models", row["trial"])
            if model.fingerprint != row["fingerprint"]:
                raise UserError(f"models/{row['trial']} is not the one that sweep {sweep.name!r} made: run it again")
            if (model.manifest["recipe"]["shuffle_labels"] is not None) != is_control:
                raise UserError(
                    f"{'control' if is_control else 'sweep'} = {sweep.name!r}: {model.name} was trained on "
                    f"{'its categories; name the sweep' if is_control else 'shuffled labels; name the control'} so"
                )
            models.setdefault(model.manifest["files"]["model.safetensors"]["sha256"], model)
    found = list(models.values())
    _check_comparable([model.manifest["recipe"] for model in found], [sweep.name for sweep in sweeps])
    return found


def _check_comparable(recipes: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    flat = [recipe | {f"loop.{key}": value for key, value in recipe["loop"].items()} for recipe in recipes]
    for key in sorted(flat[0].keys() - VARIED - {"loop"}):
        values = {str(recipe.get(key)) for recipe in flat}
        if len(values) > 1:
            raise UserError(
                f"sweep {' and '.join(names)}: trials differ in {key} ({', '.join(sorted(values))}); a comparison "
                "over K lets only k and the seeds differ"
            )


class _Drawn(NamedTuple):
    ids: np.ndarray  # (N, L)
    documents: np.ndarray  # (N,) rows of the store
    bytes_per_token: float


class _Tests:
    """The frozen test windows of every category that a model of the sweep may have learnt."""

    def __init__(self, models: Sequence[Artifact], settings: EvaluateLmConfig):
        self.recipe = models[0].manifest["recipe"]
        opened = artifact.open_artifact(settings.runtime.root, "tokens", self.recipe["tokens"])
        self.store, self.settings = TokenStore.open(opened), settings
        self.universe = sorted(self.recipe["categories"] or self.store.names())
        self.tokenizer = AutoTokenizer.from_pretrained(self.store.folder / "tokenizer")
        self.drawn = cache(self._draw)

    def _draw(self, shuffle_labels: int | None) -> dict[str, _Drawn]:
        """The windows by category, of the labels as they are or permuted as a control's were."""
        store, settings = self.store, self.settings
        if shuffle_labels is not None:
            store = mixture.shuffle_labels(store, self.universe, shuffle_labels)
        asked = (store, "test", self.universe, self.recipe["sequence_length"], settings.num_windows, settings.seed)
        plan, found = windows.evaluation_plan(*asked), windows.evaluation_windows(*asked)
        return {name: _Drawn(ids, plan[name][0], self._bytes_per_token(plan[name][0])) for name, ids in found.items()}

    def _bytes_per_token(self, rows: np.ndarray) -> float:
        """Of whole documents: a window may begin inside a character."""
        documents = [self.store.read(row, 0, int(self.store.lengths[row])) for row in np.unique(rows)]
        return sum(len(self.tokenizer.decode(ids).encode()) for ids in documents) / sum(map(len, documents))


def _read(model: Artifact, tests: _Tests) -> Run:
    """A model's losses on all test windows."""
    facts, recipe = model.read_json("mixture.json"), model.manifest["recipe"]
    drawn = tests.drawn(recipe["shuffle_labels"])
    network = _load(str(model.local()))
    return Run(
        trial=model.name,
        k=facts["k"],
        seeds={key: facts[key] for key in SEEDS},
        categories=facts["categories"],
        first=windows.choose_categories(tests.universe, 1, facts["category_seed"])[0],
        control=recipe["shuffle_labels"] is not None,
        losses={name: next_token.position_losses(network, found.ids) for name, found in drawn.items()},
        documents={name: found.documents for name, found in drawn.items()},
        bytes_per_token={name: found.bytes_per_token for name, found in drawn.items()},
        # models of earlier versions do not say
        distinct_tokens=sum(facts["distinct_tokens_read"].values()) if "distinct_tokens_read" in facts else None,
    )


def _load(folder: str) -> Any:
    # Weights in float32 whatever the checkpoint's type: float16 on a CPU rounds losses in the second digit.
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return network.to(device.device()).eval()


class _Pretrained:
    """A pretrained model on the texts of the same windows, in its own tokens: the in-context baseline."""

    def __init__(self, name: str, tests: _Tests):
        folder = hub.find_model(name)
        tokenizer, network = AutoTokenizer.from_pretrained(folder, local_files_only=True), _load(str(folder))
        texts = [tests.tokenizer.decode(row) for found in tests.drawn(None).values() for row in found.ids.tolist()]
        texts = [text.strip("\ufffd") for text in texts]  # parts of characters that a window cuts
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        # Four of five texts are at least as long; the shorter ones are left out, so that every position has the same.
        length = int(np.percentile([len(ids) for ids in encoded], 20))
        length = min(length, getattr(network.config, "max_position_embeddings", length))
        ids = np.asarray([row[:length] for row in encoded if len(row) >= length], dtype=np.int64)
        losses = next_token.position_losses(network, ids)
        self.baseline = Baseline(name, losses.mean(0, dtype=np.float64), losses.std(0, dtype=np.float64))
        self.num_texts, self.left_out = len(ids), len(encoded) - len(ids)
        bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, encoded))
        self.bits_per_byte = k_effect.bits_per_byte(float(losses.mean()), bytes_per_token)

    def described(self) -> dict[str, Any]:
        """For results.json."""
        counts = {"texts": self.num_texts, "left_out": self.left_out}
        curves = {"curve": self.baseline.mean.tolist(), "sd": self.baseline.sd.tolist()}
        return {"model": self.baseline.name, "bits_per_byte": self.bits_per_byte, **counts, **curves}


if __name__ == "__main__":
    config.main(CONFIG, run)
