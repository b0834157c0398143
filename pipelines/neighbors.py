"""Embeddings to neighbours, by FAISS: near works by centroid, and near chunks, inside a split, never the same work.

python -m pipelines.neighbors pipelines/experiments/books/neighbors.toml [key=value ...]
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.shards import run_shards
from quire import artifact, config, neighbors, schema, splits
from quire.artifact import Artifact, Shard


class NeighborsConfig(config.Config):
    """What `pipelines.neighbors` computes."""

    name: str
    chunks: str
    embeddings: str
    num_works: int = Field(default=50, gt=0, description="neighbours of a work, by centroid")
    num_chunks: int = Field(default=10, gt=0, description="neighbours of a chunk")
    runtime: config.GpuRuntime = config.GpuRuntime()


CONFIG = NeighborsConfig


def run(settings: NeighborsConfig) -> Artifact:
    """Make the `neighbors` artefact; one shard a split."""
    root = settings.runtime.root
    chunks = artifact.open_artifact(root, "chunks", settings.chunks)
    embeddings = artifact.open_artifact(root, "embeddings", settings.embeddings)
    draft = artifact.begin_step(settings, "neighbors", {"chunks": chunks, "embeddings": embeddings})
    if draft.published:
        return draft.published
    run_shards(
        draft,
        splits.SPLITS,
        _searcher,
        (chunks, embeddings, settings),
        num_workers=settings.runtime.num_workers,
        num_gpus=settings.runtime.num_gpus,
        can_use_gpus=neighbors.built_for_gpus(),
        memory=2 * 2**30,
    )
    records = draft.finished_shards()
    works = sum(record["facts"]["works"] for record in records.values())
    searched = sum(record["facts"]["chunks"] for record in records.values())
    summary = f"{works:,} works and {searched:,} chunks with their nearest of other works in the same split"
    return draft.publish(num_shards=len(splits.SPLITS), summary=summary)


def _searcher(chunks: Artifact, embeddings: Artifact, settings: NeighborsConfig) -> Any:
    def process(split: str) -> Shard:
        table = chunks.read(["chunk_id", "work_id", "split"])
        table = table.filter(pc.equal(table["split"], split))
        vectors = embeddings.read(["chunk_id", "embedding"])
        place = pc.index_in(vectors["chunk_id"], value_set=table["chunk_id"].combine_chunks())
        vectors, rows = vectors.filter(pc.is_valid(place)), place.drop_null()
        table = table.take(rows)
        matrix = schema.matrix(vectors["embedding"])
        works, group = np.unique(np.asarray(table["work_id"].to_pylist(), dtype=str), return_inverse=True)
        found = [_nearest("chunk", split, table["chunk_id"].to_pylist(), matrix, group, settings.num_chunks)]
        if len(works):
            centers = neighbors.centroids(matrix, group)
            found.insert(0, _nearest("work", split, works.tolist(), centers, np.arange(len(works)), settings.num_works))
        facts = {"works": len(works), "chunks": table.num_rows}
        return Shard(table=pa.concat_tables(found), rows_in=table.num_rows, bytes_in=matrix.nbytes, facts=facts)

    return process


def _nearest(level: str, split: str, ids: list[str], vectors: np.ndarray, group: np.ndarray, k: int) -> pa.Table:
    if not ids:
        return schema.NEIGHBORS.empty_table()
    found, scores = neighbors.search(vectors, vectors, k=k, query_groups=group, corpus_groups=group)
    real = found >= 0
    columns = {
        "level": [level] * len(ids),
        "split": [split] * len(ids),
        "id": ids,
        "neighbor_ids": [[ids[j] for j in row[ok]] for row, ok in zip(found, real, strict=True)],
        "scores": [row[ok].tolist() for row, ok in zip(scores, real, strict=True)],
    }
    return pa.table(columns, schema=schema.NEIGHBORS)


if __name__ == "__main__":
    config.main(CONFIG, run)
