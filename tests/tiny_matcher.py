"""A tiny corpus as the matcher's trainers read it: chunks, neighbours and pairs, written without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tiny

from quire import artifact, schema
from quire.artifact import Artifact
from quire.author_pairs import sample_author_pairs

NUM_CHUNKS = 8  # of a work


def publish(root: Path | str, kind: str, table: pa.Table, name: str = "tiny") -> Artifact:
    """A table as an artefact of one part."""
    draft = artifact.begin(str(root), kind, name, recipe={"kind": kind, "name": name}, inputs={})
    draft.write_shard(0, artifact.Shard(table=table, rows_in=table.num_rows))
    return draft.publish(num_shards=1)


def corpus(root: Path | str) -> dict[str, Artifact]:
    """Eight works of four authors to train on, six of three to validate with."""
    works = [(f"w{i:02d}", f"author{i // 2}", "train" if i < 8 else "validation") for i in range(14)]
    rows, pairs = [], []
    topics = sorted(tiny.TOPICS)
    for number, (work, author, split) in enumerate(works):
        sentences = tiny.book(topics[number % len(topics)], work, 5 * NUM_CHUNKS).split("\n\n")
        for index, text in enumerate(sentences[:NUM_CHUNKS]):
            place = {"index": index, "start": 1000 * index, "end": 1000 * index + 500}
            ids = {"chunk_id": f"{work}:{index}", "document_id": work, "work_id": work}
            names = {"author": author, "author_group": author, "anonymous": False, "split": split}
            rows.append({**ids, **names, **place, "num_sentences": 5, "text": " ".join(text.split())})
    for number, (work, author, split) in enumerate(works):
        same = next(w for w in works if w[1] == author and w[0] != work)
        others = [w for w in works if w[2] == split and w[1] != author]
        sides = [(work, work, None), (work, same[0], "same_author"), (work, others[number % len(others)][0], "random")]
        for index in range(0, NUM_CHUNKS - 2, 2):
            for a, b, kind in sides:
                first, second = f"{a}:{index}", f"{b}:{index + 2}"
                authors = {"author_a": author, "author_b": author if kind != "random" else "another"}
                pairs.append(
                    {"pair_id": f"{first}|{second}", "split": split, "chunk_a": first, "chunk_b": second, **authors}
                    | {"label": int(kind is None), "negative_type": kind, "distance": 1500 if kind is None else None}
                    | {"work_a": a, "work_b": b}
                )
    near = [
        {"level": "work", "split": split, "id": work, "neighbor_ids": [w[0] for w in works if w[2] == split][:3]}
        | {"scores": [0.5, 0.4, 0.3]}
        for work, _, split in works
    ]
    tables = {"chunks": (rows, schema.CHUNKS), "pairs": (pairs, schema.PAIRS), "neighbors": (near, schema.NEIGHBORS)}
    return {kind: publish(root, kind, pa.Table.from_pylist(*table)) for kind, table in tables.items()}


def author_pairs(root: Path | str, chunks: Artifact, name: str = "by-author", **sizes: int) -> Artifact:
    """Pairs by author of every split, as `pipelines.pairs positives=author` draws them."""
    table, made = chunks.read(), []
    for split in sorted(set(table["split"].to_pylist())):
        part = table.filter(pc.equal(table["split"], split))
        found, _ = sample_author_pairs(part, {}, **sizes, seed=0)
        made.append(found.append_column("split", pa.array([split] * found.num_rows, pa.string())))
    pairs = pa.concat_tables(made).select(schema.PAIRS.names)
    draft = artifact.begin(str(root), "pairs", name, recipe={"positives": "author"}, inputs={"chunks": chunks})
    draft.write_shard(0, artifact.Shard(table=pairs, rows_in=pairs.num_rows))
    return draft.publish(num_shards=1)


def mined(chunks: Artifact) -> dict[int, np.ndarray]:
    """row of a training chunk -> rows of the next work's chunks of the same number."""
    works = chunks.read(["split", "work_id"]).to_pylist()
    train = [row for row, chunk in enumerate(works) if chunk["split"] == "train"]
    return {row: np.asarray([(row + NUM_CHUNKS) % len(train), (row + 2 * NUM_CHUNKS) % len(train)]) for row in train}
