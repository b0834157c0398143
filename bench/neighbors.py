"""k-nearest neighbours, queries/s: exact beside exact, then an inverted file beside FAISS's own.

    python -m bench.neighbors [--rows 1000000] [--dim 384] [--queries 2000] [--k 10] [--rounds 3]

The first contest is of exact searches: `quire.neighbors`, sentence-transformers' `semantic_search` and
`mine_hard_negatives` (which gets its embeddings from its own cache, so that it encodes nothing, and uses FAISS's flat
index), and that flat index by itself. Every clock runs from the vectors' file on disk to the answer: loading and adding
to an index count for all. All must find the same scores, which is checked before the rounds.

The second is of approximate searches, from an index on disk to the answer: what `pipelines.index` has built, and an
`IndexIVFFlat` with as many lists, built as FAISS does by itself, of which as many are searched. How long each took to
build, and its recall@k against the exact answer, stand in the result.

Each runs in a process of its own, whose peak of memory is told with its imports and the pages of files that it maps.
Ray is up for no other than the build. The vectors are drawn from a mixture in 32 dimensions and laid into `dim` with
some noise: how many lists an index must search for its recall depends on the vectors, and on texts is another number;
the speed of exact search is the same. The queries are the first of the vectors.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from bench.apart import apart, on_ray
from bench.contest import contest, options
from pipelines import index as index_step
from pipelines import search
from quire import artifact, index, neighbors, schema
from quire.artifact import Shard

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


def prepare(root: str, rows: int, dim: int, num_queries: int) -> None:
    """The vectors as a file and as an embeddings artefact, the queries as a file."""
    draft = artifact.begin(root, "embeddings", "bench", recipe={"rows": rows, "dim": dim}, inputs={})
    vectors = np.lib.format.open_memmap(f"{root}/vectors.npy", "w+", np.float32, (rows, dim))
    for part, block in enumerate(blocks(rows, dim)):
        first = part * PART_ROWS
        vectors[first : first + len(block)] = block
        columns = [[str(first + row) for row in range(len(block))], schema.lists(block), np.ones(len(block), np.int32)]
        draft.write_shard(part, Shard(table=pa.table(columns, schema=schema.embeddings(dim)), rows_in=len(block)))
    draft.publish()
    np.save(f"{root}/queries.npy", vectors[:num_queries])


def loaded(root: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(f"{root}/queries.npy"), np.load(f"{root}/vectors.npy")


Answer = tuple[np.ndarray, np.ndarray, float]  # rows (q, k), scores (q, k), seconds


def quire_neighbors(root: str, k: int) -> Answer:
    started = time.perf_counter()
    queries, vectors = loaded(root)
    nobody, everybody = np.full(len(queries), -1), np.zeros(len(vectors), np.int8)
    rows, scores = neighbors.search(queries, vectors, k=k, query_groups=nobody, corpus_groups=everybody)
    return rows, scores, time.perf_counter() - started


def semantic_search(root: str, k: int) -> Answer:
    from sentence_transformers.util import dot_score
    from sentence_transformers.util import semantic_search as searched

    started = time.perf_counter()
    found = searched(*loaded(root), top_k=k, score_function=dot_score)
    seconds = time.perf_counter() - started
    rows, scores = ([[hit[key] for hit in hits] for hits in found] for key in ("corpus_id", "score"))
    return np.asarray(rows), np.asarray(scores, np.float32), seconds


def mine_hard_negatives(root: str, k: int) -> Answer:
    """Each query is an anchor whose positive is itself; behind it stand its k negatives, which are the next best."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as mined
    from sentence_transformers.util import pairwise_dot_score

    num_queries, num_rows = (len(np.load(f"{root}/{name}.npy", "r")) for name in ("queries", "vectors"))
    anchors, texts = [f"q{row}" for row in range(num_queries)], [str(row) for row in range(num_rows)]
    with tempfile.TemporaryDirectory(dir=root) as cache:
        for role, names, file in (("query", anchors, "queries"), ("corpus", texts, "vectors")):
            # The key of its cache, as sentence-transformers 6 makes it.
            key = hashlib.sha256(repr(("bench", None, None, names)).encode()).hexdigest()
            Path(cache, f"{role}_embeddings_{key}.npy").symlink_to(f"{root}/{file}.npy")
        model: Any = SimpleNamespace(
            device="cpu",
            model_card_data=SimpleNamespace(base_model="bench"),
            get_embedding_dimension=lambda: np.load(f"{root}/queries.npy", "r").shape[1],
            similarity_pairwise=pairwise_dot_score,
        )
        pairs = Dataset.from_dict({"anchor": anchors, "positive": texts[:num_queries]})
        options = {"num_negatives": k, "range_max": k, "use_faiss": True, "output_scores": True, "verbose": False}
        started = time.perf_counter()
        found = mined(pairs, model, corpus=texts, cache_folder=cache, output_format="n-tuple", **options)
        seconds = time.perf_counter() - started
    columns = [name for name in found.column_names if name.startswith(("positive", "negative"))]
    rows = np.stack([np.asarray(found[name], np.int64) for name in columns], axis=1)
    return rows, np.asarray(found["scores"], np.float32), seconds


def faiss_flat(root: str, k: int) -> Answer:
    started = time.perf_counter()
    queries, vectors = loaded(root)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    scores, rows = flat.search(queries, k)
    return rows, scores, time.perf_counter() - started


def build_quire(root: str) -> tuple[float, dict[str, Any]]:
    """Seconds, and the facts of what was built."""
    started = time.perf_counter()
    made = index_step.run(
        index_step.IndexConfig(name="bench", embeddings="bench", method="ivf", runtime={"root": root})
    )
    return time.perf_counter() - started, made.manifest["facts"]


def build_faiss(root: str, num_lists: int) -> float:
    started = time.perf_counter()
    vectors = np.load(f"{root}/vectors.npy")
    made = faiss.index_factory(vectors.shape[1], f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    made.train(vectors)
    made.add(vectors)
    faiss.write_index(made, f"{root}/ivf.faiss")
    return time.perf_counter() - started


def quire_index(root: str, k: int, num_probes: int) -> Answer:
    """Shards stay on disk, of which the lists searched are read."""
    started = time.perf_counter()
    queries, made = np.load(f"{root}/queries.npy"), artifact.open_artifact(root, "index", "bench")
    plan, trained = search.opened(made)
    shards = search.shards(made, plan, trained)
    rows, scores = index.search(shards, queries, k=k, trained=trained, num_probes=num_probes)
    return rows, scores, time.perf_counter() - started


def faiss_ivf(root: str, k: int, num_probes: int) -> Answer:
    """Its lists stay on disk as well."""
    started = time.perf_counter()
    queries, made = np.load(f"{root}/queries.npy"), faiss.read_index(f"{root}/ivf.faiss", faiss.IO_FLAG_MMAP)
    made.nprobe = num_probes
    scores, rows = made.search(queries, k)
    return rows, scores, time.perf_counter() - started


EXACT: dict[str, Callable[[str, int], Answer]] = {
    "quire.neighbors": quire_neighbors,
    "semantic_search": semantic_search,
    "mine_hard_negatives, faiss flat": lambda root, k: mine_hard_negatives(root, k - 1),
    "faiss flat": faiss_flat,
}
APPROXIMATE: dict[str, Callable[[str, int, int], Answer]] = {"quire index": quire_index, "faiss IVF": faiss_ivf}


def run(name: str, *arguments: Any) -> Answer:
    return (EXACT | APPROXIMATE)[name](*arguments)


def compare(name: str, contenders: dict[str, Any], arguments: tuple[Any, ...], asked: Any, **facts: Any) -> None:
    peaks: dict[str, float] = {}  # filled by the rounds

    def speed(contender: str) -> float:
        (_, _, seconds), peak = apart(run, contender, *arguments)
        peaks[contender] = peak["driver"]
        return asked.queries / seconds

    facts |= {"rows": asked.rows, "dim": asked.dim, "queries": asked.queries, "k": asked.k}
    facts |= {"vectors_mb": asked.rows * asked.dim * 4 / 1e6, "peak_mb": peaks}
    contest(name, "queries", {each: partial(speed, each) for each in contenders}, asked.rounds, **facts)
    print({each: f"{peak:,.0f} MB at most" for each, peak in peaks.items()}, flush=True)


def main() -> None:
    asked = options(__doc__, rows=1_000_000, dim=384, queries=2_000, k=10, rounds=3)
    if not 2 <= asked.k <= asked.rows or asked.queries > asked.rows:
        raise SystemExit(f"--k {asked.k} --queries {asked.queries}: give k of 2 or more, neither beyond --rows")
    with tempfile.TemporaryDirectory() as root:
        prepare(root, asked.rows, asked.dim, asked.queries)
        rows, wanted, _ = apart(run, "quire.neighbors", root, asked.k)[0]
        for name in EXACT:
            scores = apart(run, name, root, asked.k)[0][1]
            assert np.allclose(scores, wanted, atol=1e-5), f"quire.neighbors and {name} differ"
        compare("neighbors", EXACT, (root, asked.k), asked)

        seconds, built = apart(on_ray, build_quire, root)[0]
        builds = {"quire index": seconds, "faiss IVF": apart(build_faiss, root, built["plan"]["num_lists"])[0]}
        arguments = (root, asked.k, built["num_probes"])
        recall = {name: index.recall(apart(run, name, *arguments)[0][0], rows) for name in APPROXIMATE}
        facts = {"plan": built["plan"], "num_probes": built["num_probes"], "build_seconds": builds, "recall": recall}
        print(facts, flush=True)
        compare("neighbors-ivf", APPROXIMATE, arguments, asked, **facts)


if __name__ == "__main__":
    main()
