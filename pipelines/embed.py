"""Chunks to embeddings: an actor pool, each actor tokenising once and packing by length.

python -m pipelines.embed pipelines/experiments/books/embed.toml [key=value ...]
"""

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.shards import connect, run_shards, speed
from quire import artifact, config, encoder, hub, schema
from quire.artifact import Artifact, Shard


class EmbedRuntime(config.Runtime):
    num_gpus: float = Field(default=0.0, ge=0, description="per worker")
    max_batch_tokens: int | None = Field(default=None, gt=0, description="padded; default by device")


class EmbedConfig(config.Config):
    """What `pipelines.embed` computes."""

    name: str
    chunks: str
    model: str = hub.MINILM
    max_seq_length: int = Field(default=256, gt=0, description="tokens, special ones included")
    max_chunks: int | None = Field(default=None, gt=0, description="per document, evenly spaced; default all")
    runtime: EmbedRuntime = EmbedRuntime()


CONFIG = EmbedConfig


def run(settings: EmbedConfig) -> Artifact:
    """Make the `embeddings` artefact: chunk_id, embedding, num_tokens."""
    chunks = artifact.open_artifact(settings.runtime.root, "chunks", settings.chunks)
    weights = hub.weights_sha256(hub.find_model(settings.model))
    draft = artifact.begin(
        settings.runtime.root,
        "embeddings",
        settings.name,
        recipe=config.recipe(settings),
        inputs={"chunks": chunks, "model_weights": weights},
    )
    if draft.published:
        return draft.published
    connect()
    run_shards(
        draft,
        chunks.parts,
        _embedder,
        (chunks, settings),
        num_workers=settings.runtime.num_workers,
        num_gpus=settings.runtime.num_gpus,
        memory=2 * 2**30,
    )
    records = draft.finished_shards().values()
    tokens = sum(record["facts"]["tokens"] for record in records)
    rows = sum(record["rows_out"] for record in records)
    summary = f"{rows:,} chunks, {tokens:,} tokens; {speed(draft, tokens, 'tokens')}"
    return draft.publish(
        num_shards=len(chunks.parts), summary=summary, facts={"tokens": tokens, "model_weights": weights}
    )


def _embedder(chunks: Artifact, settings: EmbedConfig) -> Any:
    model = encoder.load_encoder(hub.find_model(settings.model), settings.max_seq_length)

    def process(part: str) -> Shard:
        table = chunks.storage.read_table(part, ["chunk_id", "document_id", "text"])
        if settings.max_chunks is not None:
            rows = spaced(table["document_id"].to_pylist(), settings.max_chunks)
            table = table.take(pa.array(rows, pa.int64()))
        tokens = encoder.tokenize(model, table["text"].to_pylist())
        embeddings = encoder.encode_tokens(model, tokens, settings.runtime.max_batch_tokens)
        lengths = [len(ids) for ids in tokens]
        flat = pa.array(embeddings.reshape(-1), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
        columns = [pa.array(table["chunk_id"].to_pylist(), pa.string()), vectors, pa.array(lengths, pa.int32())]
        made = pa.Table.from_arrays(columns, schema=schema.embeddings(embeddings.shape[1]))
        return Shard(table=made, rows_in=table.num_rows, bytes_in=table["text"].nbytes, facts={"tokens": sum(lengths)})

    return process


def spaced(documents: list[str], max_chunks: int) -> list[int]:
    """Row numbers of at most `max_chunks` rows of each document, evenly spaced over it, in order."""
    if not documents:
        return []
    names = np.asarray(documents, dtype=object)
    bounds = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    chosen: list[int] = []
    for start, end in zip(bounds, np.r_[bounds[1:], len(names)], strict=True):
        count = min(max_chunks, end - start)
        chosen += (start + (np.arange(count) * (end - start)) // count).tolist()
    return chosen


if __name__ == "__main__":
    config.main(CONFIG, run)
