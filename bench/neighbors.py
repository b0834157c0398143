"""k-nearest neighbours, queries/s: Quire's index beside faiss flat and sentence-transformers.

    python -m bench.neighbors [--rows 1000000] [--dim 384] [--queries 2000] [--k 10] [--rounds 3]

`pipelines.index` builds the index from an embeddings artefact, before the rounds; how long that took, and its
recall@10, stand among the facts. `quire.neighbors` is exact, and its answers are checked against those of
`semantic_search`. `mine_hard_negatives` gets its embeddings from its own cache, so that it encodes nothing, and uses
FAISS's flat index. Each is measured in a process of its own, whose memory is told beyond what its imports took. The
vectors are drawn from a mixture in 32 dimensions and laid into `dim` with some noise: how many lists an index must
search for its recall depends on the vectors, and on texts is another number; the speed of flat search is the same.
"""

import hashlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from bench.contest import contest, options
from pipelines import index as index_step
from pipelines import search
from quire import artifact, index, neighbors, schema
from quire.artifact import Artifact, Shard

PART_ROWS = 50_000
NUM_CENTRES, LATENT_DIM = 2_000, 32


def blocks(rows: int, dim: int) -> Iterator[np.ndarray]:
    """Vectors of length 1 in blocks of `PART_ROWS`."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((NUM_CENTRES, LATENT_DIM))
    laid = draw.standard_normal((LATENT_DIM, dim)) / LATENT_DIM**0.5
    for start in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - start)
        latent = centres[draw.integers(0, NUM_CENTRES, count)] + 0.7 * draw.standard_normal((count, LATENT_DIM))
        yield index.unit(latent @ laid + 0.1 * draw.standard_normal((count, dim)))[0]


def prepare(root: str, rows: int, dim: int, num_queries: int) -> Artifact:
    """The vectors as a file and as an embeddings artefact, the queries (rows of them) as a file, and the index."""
    draft = artifact.begin(root, "embeddings", "bench", recipe={"rows": rows, "dim": dim}, inputs={})
    vectors = np.lib.format.open_memmap(f"{root}/vectors.npy", "w+", np.float32, (rows, dim))
    for part, block in enumerate(blocks(rows, dim)):
        first = part * PART_ROWS
        vectors[first : first + len(block)] = block
        columns = [[str(first + row) for row in range(len(block))], schema.lists(block), np.ones(len(block), np.int32)]
        draft.write_shard(part, Shard(table=pa.table(columns, schema=schema.embeddings(dim)), rows_in=len(block)))
    draft.publish()
    chosen = np.sort(np.random.default_rng(1).choice(rows, num_queries, replace=False))
    np.save(f"{root}/queries.npy", vectors[chosen])
    settings = index_step.IndexConfig(name="bench", embeddings="bench", method="ivf", runtime={"root": root})
    return index_step.run(settings)


def loaded(root: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(f"{root}/queries.npy"), np.load(f"{root}/vectors.npy")


Answer = tuple[np.ndarray, float]  # scores (q, k) and seconds


def quire_index(root: str, k: int) -> Answer:
    """Shards stay on disk, of which the lists searched are read; the vectors are never loaded."""
    queries, made = np.load(f"{root}/queries.npy"), artifact.open_artifact(root, "index", "bench")
    started = time.perf_counter()
    plan, trained = search.opened(made)
    shards, num_probes = search.shards(made, plan, trained), made.manifest["facts"]["num_probes"]
    scores = index.search(shards, queries, k=k, trained=trained, num_probes=num_probes)[1]
    return scores, time.perf_counter() - started


def quire_neighbors(root: str, k: int) -> Answer:
    queries, vectors = loaded(root)
    nobody, everybody = np.full(len(queries), -1), np.zeros(len(vectors), np.int8)
    started = time.perf_counter()
    scores = neighbors.search(queries, vectors, k=k, query_groups=nobody, corpus_groups=everybody)[1]
    return scores, time.perf_counter() - started


def semantic_search(root: str, k: int) -> Answer:
    from sentence_transformers.util import dot_score
    from sentence_transformers.util import semantic_search as searched

    queries, vectors = loaded(root)
    started = time.perf_counter()
    found = searched(queries, vectors, top_k=k, score_function=dot_score)
    seconds = time.perf_counter() - started
    return np.asarray([[hit["score"] for hit in hits] for hits in found], np.float32), seconds


def mine_hard_negatives(root: str, k: int) -> Answer:
    """Each query is an anchor whose positive is a text of the corpus; its k negatives are the next best."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as mined
    from sentence_transformers.util import pairwise_dot_score

    queries, vectors = loaded(root)
    anchors, texts = [f"q{row}" for row in range(len(queries))], [str(row) for row in range(len(vectors))]
    with tempfile.TemporaryDirectory(dir=root) as cache:
        for role, names, rows in (("query", anchors, queries), ("corpus", texts, vectors)):
            # The key of its cache, as sentence-transformers 6 makes it.
            key = hashlib.sha256(repr(("bench", None, None, names)).encode()).hexdigest()
            np.save(f"{cache}/{role}_embeddings_{key}.npy", rows)
        del vectors
        model: Any = SimpleNamespace(
            device="cpu",
            model_card_data=SimpleNamespace(base_model="bench"),
            get_embedding_dimension=lambda: queries.shape[1],
            similarity_pairwise=pairwise_dot_score,
        )
        pairs = Dataset.from_dict({"anchor": anchors, "positive": texts[: len(anchors)]})
        options = {"num_negatives": k, "range_max": k, "use_faiss": True, "output_scores": True, "verbose": False}
        started = time.perf_counter()
        mined(pairs, model, corpus=texts, cache_folder=cache, output_format="n-tuple", **options)
        return np.empty((0, k), np.float32), time.perf_counter() - started


CONTENDERS: dict[str, Callable[[str, int], Answer]] = {
    "quire index": quire_index,
    "quire.neighbors, exact": quire_neighbors,
    "mine_hard_negatives, faiss flat": mine_hard_negatives,
    "semantic_search": semantic_search,
}


def measured(name: str, root: str, k: int) -> tuple[np.ndarray, float, float]:
    """Scores, seconds, and the peak of memory in MB, the vectors among it and the imports not."""
    before = _peak()
    scores, seconds = CONTENDERS[name](root, k)
    return scores, seconds, _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux


def alone(name: str, root: str, k: int) -> tuple[np.ndarray, float, float]:
    """`measured` in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (name, root, k))


def main() -> None:
    asked = options(__doc__, rows=1_000_000, dim=384, queries=2_000, k=10, rounds=3)
    peaks: dict[str, float] = {}

    def speed(name: str) -> float:
        _, seconds, peaks[name] = alone(name, root, asked.k)
        return asked.queries / seconds

    with tempfile.TemporaryDirectory() as root:
        made = prepare(root, asked.rows, asked.dim, asked.queries)
        print(made.manifest["summary"], flush=True)
        exact = [alone(name, root, asked.k)[0] for name in ("quire.neighbors, exact", "semantic_search")]
        assert np.allclose(*exact, atol=1e-5), "quire.neighbors and semantic_search differ"
        facts = {key: made.manifest["facts"][key] for key in ("plan", "num_probes", "recall")}
        facts |= {"build_seconds": made.manifest["cost"]["wall"], "queries": asked.queries, "k": asked.k}
        facts |= {"vectors_mb": asked.rows * asked.dim * 4 / 1e6, "peak_mb": peaks}  # filled by the rounds
        contest("neighbors", "queries", {name: partial(speed, name) for name in CONTENDERS}, asked.rounds, **facts)
        print({name: f"{peak:,.0f} MB at most" for name, peak in peaks.items()})


if __name__ == "__main__":
    main()
