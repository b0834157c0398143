"""Pairs to a teacher's logits: what the cross-encoder says of every training pair, once, for a bi-encoder to learn.

python -m pipelines.teach pipelines/experiments/books/teach.toml [key=value ...]
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.shards import run_shards, speed
from quire import artifact, config, hub, schema
from quire.artifact import Artifact, Shard
from quire.cross_encoder import CrossEncoder
from quire.errors import UserError

SPLIT = "train"  # of no other split: a student must not know what it is tested on


class TeachConfig(config.Config):
    """What `pipelines.teach` computes."""

    name: str
    chunks: str
    pairs: str
    cross_encoder: str
    shard_size: int = Field(default=2000, gt=0, description="pairs; they are sorted by length within a shard")
    runtime: config.GpuRuntime = config.GpuRuntime()


CONFIG = TeachConfig


def run(settings: TeachConfig) -> Artifact:
    """Make the `predictions` artefact: the columns of the training pairs, and `logit` float64."""
    root = settings.runtime.root
    inputs = {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
        "cross_encoder": artifact.open_artifact(root, "models", settings.cross_encoder),
    }
    draft = artifact.begin_step(settings, "predictions", inputs)
    if draft.published:
        return draft.published
    count = pc.sum(pc.equal(inputs["pairs"].read(["split"])["split"], SPLIT)).as_py() or 0
    if not count:
        raise draft.given_up(f"pairs = {settings.pairs!r}: no pair in split {SPLIT!r}; nothing to teach")
    items = list(range(0, count, settings.shard_size))
    run_shards(
        draft,
        items,
        teacher,
        (inputs, settings.shard_size),
        num_workers=settings.runtime.num_workers,
        num_gpus=settings.runtime.num_gpus,
        can_use_gpus=True,
        memory=3 * 2**30,
    )
    summary = f"{count:,} training pairs; {speed(draft, count, 'pairs')}"
    # What the logits are of: the trainer asks for it, and a model made again under that name has another.
    facts = {"teacher_sha256": hub.weights_sha256(inputs["cross_encoder"].local())}
    return draft.publish(num_shards=len(items), summary=summary, facts=facts)


def teacher(inputs: dict[str, Artifact], shard_size: int) -> Any:
    """The function that a worker runs on one item, the first pair of a shard."""
    cross = CrossEncoder.load(inputs["cross_encoder"].local())
    chunks = inputs["chunks"].memory_map(["chunk_id", "text"])
    ids = chunks["chunk_id"].combine_chunks()
    pairs = inputs["pairs"].read()
    pairs = pairs.filter(pc.equal(pairs["split"], SPLIT))

    def process(start: int) -> Shard:
        table = pairs.slice(start, shard_size)
        rows = [pc.index_in(table[side], value_set=ids) for side in ("chunk_a", "chunk_b")]
        if any(places.null_count for places in rows):
            raise UserError("pairs: some are of chunks that the chunk artefact lacks; make them again from it")
        texts = (chunks["text"].take(places).to_pylist() for places in rows)
        logits = cross.logits(list(zip(*texts, strict=True)))
        table = table.append_column("logit", pa.array(logits, pa.float64()))
        return Shard(table=table.select([*schema.PAIRS.names, "logit"]), rows_in=table.num_rows)

    return process


if __name__ == "__main__":
    config.main(CONFIG, run)
