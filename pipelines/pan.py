"""A verification set in PAN's layout, scored by a published matcher and by the untrained encoder beside it.

    python -m pipelines.pan pipelines/experiments/pan.toml pairs=PAIRS.jsonl truth=TRUTH.jsonl [key=value ...]

Texts of any length are cut as the service cuts them. PAN asks for the same author where a matcher was calibrated on the
same book: `fit_pairs` and `fit_truth` name a set of other authors (PAN's training set) to fit the probabilities on.
"""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from scipy.special import logit

from pipelines.shards import run_shards, speed
from quire import artifact, calibration, config, encoder, hub, matcher, metrics, pan, readers
from quire.artifact import Artifact, Draft, Shard
from quire.calibration import Scale
from quire.errors import UserError
from quire.matcher import TwoStage
from quire.storage import Storage

SYSTEMS = ("two_stage", "bi_encoder", "untrained")
OFFICIAL = {"auc": "AUC", "c_at_1": "c@1", "f05u": "F0.5u", "f1": "F1", "brier": "Brier", "overall": "mean"}
SCHEMA = pa.schema(
    [("set", pa.string()), ("id", pa.string()), ("chunks_a", pa.int32()), ("chunks_b", pa.int32()), ("k", pa.int32())]
    + [(system, pa.float64()) for system in SYSTEMS]  # logits at the matcher's prior, by its scales of level k
)


class PanConfig(config.Config):
    """What `pipelines.pan` computes."""

    name: str
    matcher: str
    pairs: str = Field(description="a file of {id, pair}, .jsonl or .jsonl.gz")
    truth: str | None = Field(default=None, description="a file of {id, same, authors}; without it, answers only")
    fit_pairs: str | None = Field(default=None, description="another set, to fit the probabilities on")
    fit_truth: str | None = None
    prior: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of same-author problems, where nothing is fitted; default: matcher's",
    )
    untrained: str = hub.MINILM
    num_bootstraps: int = Field(default=500, gt=0)
    seed: int = 0
    shard_size: int = Field(default=100, gt=0, description="pairs")
    runtime: config.GpuRuntime = config.GpuRuntime()

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.fit_pairs is None) != (self.fit_truth is None):
            raise ValueError("fit_pairs, fit_truth: give both or neither")
        if self.fit_pairs and self.prior is not None:
            raise ValueError(f"prior = {self.prior}: fit_pairs says what share is of one author; leave it out")
        return self

    def sets(self) -> dict[str, str]:
        """Files of pairs by what they are for."""
        return {"answer": self.pairs} | ({"fit": self.fit_pairs} if self.fit_pairs else {})


CONFIG = PanConfig


def run(settings: PanConfig) -> Artifact:
    """Make the `predictions` artefact: a row a problem, answers.jsonl, and with a truth results.json and table.txt."""
    made = artifact.open_artifact(settings.runtime.root, "models", settings.matcher)
    problems = {name: pan.ids(file) for name, file in settings.sets().items()}
    both = problems["answer"] & problems.get("fit", set())
    if both:
        raise UserError(
            f"fit_pairs = {settings.fit_pairs!r}: {len(both)} of its problems, such as {min(both)!r}, are in pairs: "
            "answers would rest on what they were fitted on; name a set of other authors"
        )
    sizes = {name: len(found) for name, found in problems.items()}
    truths = {name: pan.truth(file) for name, file in _truth_files(settings).items()}
    inputs = {"matcher": made, "untrained_weights": hub.weights_sha256(hub.find_model(settings.untrained))}
    files = {name: getattr(settings, name) for name in ("pairs", "truth", "fit_pairs", "fit_truth")}
    inputs |= {name: readers.contents(*_place(file)) for name, file in files.items() if file}
    draft = artifact.begin_step(settings, "predictions", inputs)
    if draft.published:
        return draft.published
    items = [(name, start) for name, size in sizes.items() for start in range(0, size, settings.shard_size)]
    runtime = settings.runtime
    arguments = (made, settings)
    workers = {"num_workers": runtime.num_workers, "num_gpus": runtime.num_gpus, "can_use_gpus": True}
    run_shards(draft, items, _scorer, arguments, memory=3 * 2**30, **workers)
    parts = (f"{draft.folder}/part-{index:05d}.parquet" for index in range(len(items)))
    table = pa.concat_tables(draft.storage.read_table(part) for part in parts)
    return _finish(draft, table, truths, made, settings, len(items))


def _truth_files(settings: PanConfig) -> dict[str, str]:
    files = {"answer": settings.truth, "fit": settings.fit_truth}
    return {name: file for name, file in files.items() if file}


def _place(file: str) -> tuple[Storage, list[str]]:
    folder, _, name = str(file).rpartition("/")
    return Storage(folder or "."), [name]


def _finish(
    draft: Draft, table: pa.Table, truths: dict[str, dict[str, pan.Truth]], made: Artifact, settings: PanConfig, n: int
) -> Artifact:
    scales, prior = _scales(table, truths.get("fit"), made, settings)
    answered = table.filter(pc.equal(table["set"], "answer"))
    ids = answered["id"].to_pylist()
    values = {system: scales[system].probability(answered[system].to_numpy()) for system in SYSTEMS}
    lines = pan.answers(ids, values["two_stage"])
    draft.storage.write_bytes(f"{draft.folder}/answers.jsonl", lines.encode())
    where = f"answers: {draft.storage.uri(f'{draft.folder}/answers.jsonl')}"
    fitted = {"scales": {system: vars(scale) for system, scale in scales.items()}, "prior": prior}
    took = f"{len(ids):,} problems; {speed(draft, len(table), 'problems')}"
    if "answer" not in truths:
        return draft.publish(num_shards=n, summary=f"{took}\n{where}", facts=fitted)
    rows = results(ids, values, truths["answer"], settings, prior)
    text = official_table(rows)
    draft.storage.write_json(f"{draft.folder}/results.json", rows)
    draft.storage.write_bytes(f"{draft.folder}/table.txt", text.encode())
    return draft.publish(num_shards=n, summary=f"{text}\n{took}\n{where}", facts=fitted | {"results": rows})


def _scales(
    table: pa.Table, truth: dict[str, pan.Truth] | None, made: Artifact, settings: PanConfig
) -> tuple[dict[str, Scale], float]:
    """How scores become probabilities, and for what share of same-author problems: fitted on the other set where there
    is one, else the matcher's own, whose answers are for `prior` already."""
    if truth is None:
        prior = settings.prior or made.read_json("matcher.json")["prior"]
        return dict.fromkeys(SYSTEMS, Scale(1.0, 0.0)), prior
    rows = table.filter(pc.equal(table["set"], "fit"))
    same = np.asarray([t.same for t in _told(rows["id"].to_pylist(), truth, settings.fit_truth)])
    fitted = {system: calibration.fit_scale(rows[system].to_numpy(), same, must_rise=False) for system in SYSTEMS}
    return fitted, float(same.mean())


def results(
    ids: list[str], values: dict[str, np.ndarray], truth: dict[str, pan.Truth], settings: PanConfig, prior: float = 0.5
) -> dict[str, dict[str, Any]]:
    """PAN's metrics of every system, ECE and Cllr beside them, and the intervals over authors of AUC and mean."""
    told = list(_told(ids, truth, settings.truth))
    labels = np.asarray([t.same for t in told])
    authors = [[t.authors[side] for t in told] for side in (0, 1)]
    rows = {}
    for system, answers in values.items():
        found = metrics.metrics(labels, answers, 0.5, prior)
        bounds = metrics.metric_intervals(
            labels, answers, *authors, 0.5, prior, num_samples=settings.num_bootstraps, seed=settings.seed
        )
        rows[system] = {
            **metrics.pan(labels, answers),
            **{name: found[name] for name in ("ece", "cllr", "least_cllr", "num_positives", "num_negatives")},
            **{f"{name}_interval": list(bounds[key]) for name, key in (("auc", "auc"), ("overall", "pan"))},
        }
    return rows


def official_table(rows: dict[str, dict[str, Any]]) -> str:
    """The table of PAN's overviews, as text."""
    lines = [" " * 14 + "".join(f"{name:>8}" for name in OFFICIAL.values()) + "   mean's 95 % interval over authors"]
    for system, found in rows.items():
        low, high = found["overall_interval"]
        cells = "".join(f"{found[name]:>8.3f}" for name in OFFICIAL)
        lines.append(f"{system.replace('_', ' '):<14}{cells}   {low:.3f} to {high:.3f}")
    return "\n".join(lines)


def _told(ids: list[str], truth: dict[str, pan.Truth], file: str | None) -> Iterator[pan.Truth]:
    for name in ids:
        if name not in truth:
            raise UserError(f"{file}: no truth for the problem {name!r}")
        yield truth[name]


def _scorer(made: Artifact, settings: PanConfig) -> Any:
    two_stage = TwoStage.open(made.storage.uri(made.folder), settings.prior)
    untrained = encoder.load_encoder(hub.find_model(settings.untrained))
    scales = _untrained_scales(made, settings)
    sets = {name: pan.Problems(file) for name, file in settings.sets().items()}

    def process(item: tuple[str, int]) -> Shard:
        which, start = item
        found = sets[which].read(start, start + settings.shard_size)
        pairs = [(problem.a, problem.b) for problem in found]
        matches = two_stage.match(pairs)
        cut = [[matcher.passages(text, two_stage.spec) for text in pair] for pair in pairs]
        cosines = []
        for sides in cut:
            read = matcher.question(two_stage.spec, *sides)
            cosines.append(_cosine(encoder.encode(untrained, read.a), encoder.encode(untrained, read.b)))
        columns = {
            "set": [which] * len(found),
            "id": [problem.id for problem in found],
            "chunks_a": [len(a) for a, _ in cut],
            "chunks_b": [len(b) for _, b in cut],
            "k": [match.k for match in matches],
            "two_stage": _logits([match.probability for match in matches]),
            "bi_encoder": _logits([match.bi_probability for match in matches]),
            "untrained": [
                scales[match.k].slope * cosine + scales[match.k].bias
                for match, cosine in zip(matches, cosines, strict=True)
            ],
        }
        return Shard(table=pa.table(columns, schema=SCHEMA), rows_in=len(found))

    return process


def _untrained_scales(made: Artifact, settings: PanConfig) -> dict[int, Scale]:
    """By k, the scale of the untrained encoder's cosines for the prior of the answers."""
    spec, reports = made.read_json("matcher.json"), made.read_json("calibration.json")["levels"]
    wanted, scales = settings.prior or spec["prior"], {}
    for level in spec["levels"]:
        known = Scale(**reports[str(level["k"])]["systems"]["untrained"]["scale"])
        shift = float(logit(wanted) - logit(level["calibration_prior"]))
        scales[level["k"]] = Scale(known.slope, known.bias + shift)
    return scales


def _logits(probabilities: list[float]) -> np.ndarray:
    return logit(np.clip(probabilities, 1e-12, 1 - 1e-12))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of all pairs of chunks, from their vectors of length 1: (m, d) and (n, d)."""
    return float((a @ b.T).mean(dtype=np.float64))


if __name__ == "__main__":
    config.main(CONFIG, run)
