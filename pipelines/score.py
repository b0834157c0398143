"""Pairs to predictions: what every system says of the calibration and test pairs, one logit each.

    python -m pipelines.score pipelines/experiments/books/score.toml [key=value ...]

With `mask_names` every system reads the same pairs with the names in them masked.
Systems: bi_encoder, cross_encoder, untrained (cosine of the pretrained encoder), and the classical baselines: cosines
of single views, a logistic regression over all of them.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.shards import run_shards, speed
from quire import artifact, baselines, config, encoder, hub, proper_names, schema
from quire.artifact import Artifact, Shard
from quire.bi_encoder import BiEncoder
from quire.cross_encoder import CrossEncoder
from quire.training_sets import PairSet

SYSTEMS = ("bi_encoder", "cross_encoder", "untrained", *baselines.NAMES)
LENGTHS = ("chars_a", "chars_b")  # of the texts as they are, names and all
SPLITS = ("calibration", "test")


class ScoreRuntime(config.Runtime):
    num_gpus: float = Field(default=0.0, ge=0, description="per worker")


class ScoreConfig(config.Config):
    """What `pipelines.score` computes."""

    name: str
    chunks: str
    pairs: str
    bi_encoder: str
    cross_encoder: str
    untrained: str = hub.MINILM
    mask_names: bool = Field(default=False, description="every name becomes one word, for every system")
    shard_size: int = Field(default=400, gt=0, description="pairs")
    num_fit_chunks: int = Field(default=3000, gt=0, description="training chunks that the views are fitted on")
    num_fit_pairs: int = Field(default=4000, gt=1, description="training pairs that the regression is fitted on")
    runtime: ScoreRuntime = ScoreRuntime()


CONFIG = ScoreConfig


def run(settings: ScoreConfig) -> Artifact:
    """Make the `predictions` artefact: the pair columns and one logit column per system."""
    root = settings.runtime.root
    inputs = {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
        "bi_encoder": artifact.open_artifact(root, "models", settings.bi_encoder),
        "cross_encoder": artifact.open_artifact(root, "models", settings.cross_encoder),
        "untrained_weights": hub.weights_sha256(hub.find_model(settings.untrained)),
    }
    draft = artifact.begin_step(settings, "predictions", inputs)
    if draft.published:
        return draft.published
    counts = pc.value_counts(inputs["pairs"].read(["split"])["split"]).to_pylist()
    sizes = {count["values"]: count["counts"] for count in counts}
    items = [(split, start) for split in SPLITS for start in range(0, sizes.get(split, 0), settings.shard_size)]
    run_shards(
        draft,
        items,
        _scorer,
        (inputs, settings),
        num_workers=settings.runtime.num_workers,
        num_gpus=settings.runtime.num_gpus,
        memory=3 * 2**30,
    )
    rows = sum(record["rows_out"] for record in draft.finished_shards().values())
    summary = f"{rows:,} pairs by {len(SYSTEMS)} systems; {speed(draft, rows, 'pairs')}"
    return draft.publish(num_shards=len(items), summary=summary)


def _scorer(inputs: dict[str, Any], settings: ScoreConfig) -> Any:
    bi, cross = BiEncoder.load(inputs["bi_encoder"].local()), CrossEncoder.load(inputs["cross_encoder"].local())
    untrained = encoder.load_encoder(hub.find_model(settings.untrained))
    chunks = inputs["chunks"].memory_map(["chunk_id", "split", "text"])
    ids = chunks["chunk_id"].combine_chunks()
    train = np.flatnonzero(pc.equal(chunks["split"], "train").to_numpy())
    train = train[:: max(1, len(train) // settings.num_fit_chunks)]
    training = PairSet(inputs["chunks"], inputs["pairs"], "train").spaced(settings.num_fit_pairs)
    sides = zip(*(training.texts(row) for row in range(len(training.labels))), strict=True)
    texts, *sides = (
        [_read(text, settings) for text in part] for part in (chunks["text"].take(train).to_pylist(), *sides)
    )
    classical = baselines.Baselines.fit(texts, tuple(sides), training.labels, training.negative_types)
    pairs = inputs["pairs"].read()

    def process(item: tuple[str, int]) -> Shard:
        split, start = item
        table = pairs.filter(pc.equal(pairs["split"], split)).slice(start, settings.shard_size)
        a, b = (
            chunks["text"].take(pc.index_in(table[side], value_set=ids)).to_pylist() for side in ("chunk_a", "chunk_b")
        )
        for name, texts in zip(LENGTHS, (a, b), strict=True):
            table = table.append_column(name, pa.array(map(len, texts), pa.int64()))
        a, b = ([_read(text, settings) for text in texts] for texts in (a, b))
        vectors = encoder.encode(untrained, [*a, *b])
        logits = {
            "bi_encoder": bi.score(a, b),
            "cross_encoder": cross.logits(list(zip(a, b, strict=True))),
            "untrained": (vectors[: len(a)] * vectors[len(a) :]).sum(1).astype(np.float64),
        }
        logits |= classical.scores(a, b)
        for name in SYSTEMS:
            table = table.append_column(name, pa.array(logits[name], pa.float64()))
        return Shard(table=table.select([*schema.PAIRS.names, *LENGTHS, *SYSTEMS]), rows_in=table.num_rows)

    return process


def _read(text: str, settings: ScoreConfig) -> str:
    return proper_names.masked(text) if settings.mask_names else text


if __name__ == "__main__":
    config.main(CONFIG, run)
