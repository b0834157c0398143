"""Embeddings to an index that is searched by `pipelines.search`: FAISS, in shards, its recall measured.

    python -m pipelines.index pipelines/experiments/corpus/index.toml [key=value ...] [--estimate]

Shard 0 is the training, on a seeded sample. Each of the others is filled by one worker, which also answers the sampled
queries, exactly and through the index; merged, the answers are the recall of the whole. Where vectors are searched by
codes, the order of the candidates is made anew from the embeddings. Rows that have no direction are dropped;
`part-*.parquet` says which chunk a row of the index is.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.shards import gpus, on_a_worker, run_shards, speed
from pipelines.workers import free_cpus
from quire import artifact, config, grouping, index, index_cost, index_report, ledger, neighbors, sampled, schema
from quire.artifact import WORK, Artifact, Draft, Shard
from quire.errors import UserError
from quire.index import Plan

K = 10  # recall@10
TRAINED = "trained.faiss"
_QUERIES = f"{WORK}/queries.parquet"
# A plateau: more lists than the fewest that come this near to the best recall are not worth their time.
_PLATEAU = 0.005
_MAX_POWER = 10  # of two: the most lists that are searched
_SAMPLE_PARTS, _SAMPLE_ROWS = 3, 16384  # what an estimate reads; where there are fewer rows, they are used again
_NEAREST_ROWS = 2048  # of them, that it looks for the nearest list of


class IndexConfig(config.Config):
    """What `pipelines.index` computes."""

    name: str
    embeddings: str
    method: Literal["auto", "flat", "ivf", "ivf_pq"] = "auto"
    max_bytes: int = Field(default=8 * 2**30, gt=0, description="of vectors as float32; auto takes codes above it")
    shard_bytes: int = Field(default=256 * 2**20, gt=0, description="of vectors as float32; a part is never cut")
    recall: float = Field(default=0.95, gt=0, le=1, description="@10; as many lists are searched as it takes")
    num_queries: int = Field(default=256, gt=0, description="rows of the corpus that recall is measured with")
    rerank: int = Field(
        default=10, ge=0, description="ivf_pq: candidates for each answer, ordered by their embeddings; 0: by codes"
    )
    seed: int = Field(default=0, ge=0)
    runtime: config.GpuRuntime = config.GpuRuntime()


CONFIG = IndexConfig


class Cut(NamedTuple):
    """A shard: its number, its first row in the corpus, and the parts of the embeddings that it is made of."""

    number: int
    first_row: int
    parts: tuple[int, ...]


def run(settings: IndexConfig) -> Artifact:
    """Make the `index` artefact. Raises UserError when there is nothing to index."""
    embeddings = artifact.open_artifact(settings.runtime.root, "embeddings", settings.embeddings)
    draft = artifact.begin_step(settings, "index", {"embeddings": embeddings})
    if draft.published:
        return draft.published
    sizes = [embeddings.storage.read_table(part, []).num_rows for part in embeddings.parts]
    if not sum(sizes):
        raise draft.given_up(f"embeddings = {settings.embeddings!r}: no rows to index")
    dim = embeddings.storage.read_table(embeddings.parts[0], ["embedding"])["embedding"].type.list_size
    plan = index.plan(sum(sizes), dim, settings.method, settings.max_bytes)
    cuts = cut(sizes, max(1, settings.shard_bytes // (4 * dim)))
    runtime, arguments = settings.runtime, (embeddings, draft, plan, settings)
    options = {"num_workers": runtime.num_workers, "num_gpus": runtime.num_gpus}
    options |= {"can_use_gpus": neighbors.built_for_gpus()}
    if 0 not in draft.finished_shards():
        memory = 2**30 + 8 * plan.training_rows * dim
        run_shards(draft, cuts[:1], _worker, arguments, memory=memory, **options)
    # Twice: the vectors as they are read, and in the index.
    most = max(sum(sizes[part] for part in c.parts) for c in cuts[1:])
    run_shards(draft, cuts, _worker, arguments, memory=2**30 + 8 * most * dim, **options)
    return _publish(draft, plan, cuts, settings)


def estimate(settings: IndexConfig, drawn: Mapping[str, ledger.Drawn] | None = None) -> str:
    """What the whole would take, from rows of a few parts, indexed as a worker would and thrown away.

    Embeddings that are not made yet are those that their own estimate has `drawn`.
    """
    known = (drawn or {}).get(f"embeddings/{settings.embeddings}")
    rows, num_rows = (known.rows, round(known.rows.num_rows / known.share)) if known else _of_published(settings)
    if not rows.num_rows:
        raise UserError(f"embeddings = {settings.embeddings!r}: no rows to index")
    plan = index.plan(num_rows, rows["embedding"].type.list_size, settings.method, settings.max_bytes)
    num_gpus = gpus(settings.runtime.num_gpus, neighbors.built_for_gpus())
    memory = 2**30 + 8 * plan.dim * (_SAMPLE_ROWS + 2 * plan.num_lists)
    sample = on_a_worker(_measured, rows, plan, settings, num_gpus, num_gpus=num_gpus, memory=memory)
    return ledger.estimate(sample, settings.runtime.prices and settings.runtime.prices.model_dump())


def _of_published(settings: IndexConfig) -> tuple[pa.Table, int]:
    """Rows of embeddings, about `_SAMPLE_ROWS`, and how many there are."""
    embeddings = artifact.open_artifact(settings.runtime.root, "embeddings", settings.embeddings)
    parts = sampled.spaced(embeddings.parts, _SAMPLE_PARTS)
    tables = [embeddings.storage.read_table(part, ["chunk_id", "embedding"]) for part in parts]
    rows = pa.concat_tables(sampled.rows(table, _SAMPLE_ROWS // len(tables)) for table in tables)
    return rows, embeddings.manifest["rows_out"]


def _measured(rows: pa.Table, plan: Plan, settings: IndexConfig, num_gpus: float) -> ledger.Sample:
    """Everything that a run does, with fewer rows and an untrained index of the whole's shape."""
    vectors, good = index.unit(schema.matrix(rows["embedding"]))
    if not good.any():
        raise UserError(f"embeddings = {settings.embeddings!r}: none of {len(good):,} vectors has a direction")
    vectors = index_cost.repeated(vectors[good], min(plan.rows, _SAMPLE_ROWS))
    with tempfile.TemporaryDirectory() as scratch:
        embeddings = _embedded(scratch, vectors, rows.filter(pa.array(good)))
        draft = artifact.begin(scratch, "index", settings.name, recipe={}, inputs={})
        flat = Plan("flat", len(vectors) + 1, plan.dim)  # with the row that is a shard of its own
        read, _ = _taken(lambda: _train(embeddings, draft, flat, settings))
        codes, trained = _taken(lambda: index_cost.stand_in(plan, vectors))
        queries = schema.matrix(draft.storage.read_table(f"{draft.folder}/{_QUERIES}")["query"])

        def filled(number: int) -> np.ndarray:
            item = Cut(number, 0, (number,))
            spent, shard = _taken(lambda: _fill(embeddings, draft, plan, item, trained, queries, settings.rerank))
            size = draft.write_shard(number, shard)["bytes_out"] + draft.storage.size(f"{draft.folder}/{file(number)}")
            return spent + [0, 0, size]

        filled(0)  # what is done for the first time takes longer, here and below
        training = np.zeros(3)
        if trained is not None:
            nearest, asked = index.lists_of(trained, None), vectors[:_NEAREST_ROWS]
            nearest.search(asked, 1)
            found, _ = _taken(lambda: nearest.search(asked, 1))
            training = good.mean() * index_cost.training(plan, trained, found / len(asked), codes / len(vectors))
            training[2] = faiss.serialize_index(trained).nbytes
        measured = index_cost.Measured(len(vectors), read, filled(0), filled(1), training)
    num_shards = max(1, -(-4 * plan.rows * plan.dim // settings.shard_bytes))
    share = len(good) / plan.rows
    cpu, wall, size = share * measured.whole(round(good.mean() * plan.rows), num_shards)
    return ledger.Sample(share, rows=int(good.sum()), tokens=0, bytes_out=size, cpu=cpu, gpu=num_gpus * wall)


def _embedded(root: str, vectors: np.ndarray, like: pa.Table) -> Artifact:
    """Embeddings of two parts, one row and all `vectors` (n, d), with ids and numbers like those of some rows."""
    ids, number = like["chunk_id"].to_pylist(), like["embedding"].type.value_type.to_pandas_dtype()
    names = [f"{ids[row % len(ids)]}{row // len(ids) or ''}" for row in range(len(vectors))]
    draft = artifact.begin(root, "embeddings", "sample", recipe={}, inputs={})
    for part, rows in enumerate((1, len(vectors))):
        columns = {"chunk_id": names[:rows], "embedding": schema.lists(vectors[:rows].astype(number))}
        draft.write_shard(part, Shard(table=pa.table(columns)))
    return draft.publish()


def _taken(function: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """Seconds of the processor and of the clock, and no bytes (3,); and what the function returns."""
    begun = np.asarray([time.process_time(), time.perf_counter()])
    made = function()
    return np.asarray([*(np.asarray([time.process_time(), time.perf_counter()]) - begun), 0.0]), made


def cut(sizes: list[int], max_rows: int) -> list[Cut]:
    """Shard 0 with all parts, which are `sizes` rows long, and shards of parts of at most `max_rows` rows together."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    parts = [tuple(found) for found in grouping.groups(sizes, max_rows)]
    cuts = [Cut(number, starts[found[0]], found) for number, found in enumerate(parts, start=1)]
    return [Cut(0, 0, tuple(range(len(sizes)))), *cuts]


def _worker(embeddings: Artifact, draft: Draft, plan: Plan, settings: IndexConfig) -> Callable[[Cut], Shard]:
    held: dict[str, Any] = {}

    def process(item: Cut) -> Shard:
        if not item.number:
            with _threads(free_cpus()):  # however many there are, the training has the same bytes
                return _train(embeddings, draft, plan, settings)
        if not held:
            name = f"{draft.folder}/{TRAINED}"
            data = b"" if plan.method == "flat" else draft.storage.read_bytes(name)
            held["trained"] = index.read_trained(data, draft.storage.uri(name), plan)
            held["queries"] = schema.matrix(draft.storage.read_table(f"{draft.folder}/{_QUERIES}")["query"])
        return _fill(embeddings, draft, plan, item, held["trained"], held["queries"], settings.rerank)

    return process


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """FAISS with so many threads, and as before once it is left: Ray lends the process to other steps."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _train(embeddings: Artifact, draft: Draft, plan: Plan, settings: IndexConfig) -> Shard:
    """Leaves the trained index, and the queries that recall is measured with."""
    wanted = plan.training_rows, min(plan.rows, settings.num_queries)
    chosen = [_sample(plan.rows, size, [settings.seed, number]) for number, size in enumerate(wanted)]
    taken = [np.empty((len(rows), plan.dim), np.float32) for rows in chosen]  # a sample may be gigabytes: held once
    usable = [np.empty(len(rows), bool) for rows in chosen]
    first = size = 0
    for part in embeddings.parts:
        vectors = schema.matrix(embeddings.storage.read_table(part, ["embedding"])["embedding"])
        for rows, found, good in zip(chosen, taken, usable, strict=True):
            low, high = np.searchsorted(rows, [first, first + len(vectors)])
            found[low:high], good[low:high] = index.unit(vectors[rows[low:high] - first])
        first, size = first + len(vectors), size + vectors.nbytes
    (sample, queries), (good, answered) = taken, usable
    trained = index.train(plan, sample if good.all() else sample[good], seed=settings.seed, gpu=None)
    if trained is not None:
        draft.storage.write_bytes(f"{draft.folder}/{TRAINED}", memoryview(faiss.serialize_index(trained)))
    columns = {"row": pa.array(chosen[1][answered]), "query": schema.lists(queries[answered])}
    draft.storage.write_table(f"{draft.folder}/{_QUERIES}", pa.table(columns))
    return Shard(bytes_in=size)


def _sample(rows: int, size: int, seed: list[int]) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))


def _fill(
    embeddings: Artifact,
    draft: Draft,
    plan: Plan,
    item: Cut,
    trained: faiss.IndexIVF | None,
    queries: np.ndarray,
    rerank: int,
) -> Shard:
    flat, tables, rejects, first = faiss.IndexFlatIP(plan.dim), [], [], item.first_row
    for part in item.parts:
        read = embeddings.storage.read_table(embeddings.parts[part], ["chunk_id", "embedding"])
        vectors, good = index.unit(schema.matrix(read["embedding"]))
        flat.add(vectors[good])
        lost = read["chunk_id"].filter(pa.array(~good)).to_pylist()
        rejects += [{"id": chunk, "reason": "no_direction"} for chunk in lost]
        kept = read["chunk_id"].filter(pa.array(good)).combine_chunks()
        columns = [first + np.flatnonzero(good), kept, np.full(len(kept), part)]
        tables.append(pa.table(dict(zip(schema.INDEX.names, columns, strict=True)), schema=schema.INDEX))
        first += len(vectors)
    table = pa.concat_tables(tables)
    rows = table["row"].to_numpy()
    shard = index.fill(trained, flat, rows, gpu=None)  # which a worker without GPUs does not see
    with draft.storage.local_folder(draft.folder) as folder:
        index.write(shard, folder / file(item.number))
    found: Found = {0: index.exact(flat, rows, queries, k=K + 1, gpu=None)}
    most, vectors = index.num_candidates(plan, K + 1, rerank), neighbors.flat_vectors(flat)
    for num_probes in ladder(plan):
        answer = index.search([shard], queries, k=most, trained=trained, num_probes=num_probes)
        found[num_probes] = (*answer, index.exact_scores(queries, answer[0], vectors, rows)) if most > K + 1 else answer
    draft.storage.write_table(f"{draft.folder}/{_found(item.number)}", _table(found))
    num_rows = first - item.first_row
    return Shard(table=table, rows_in=num_rows, rejects=schema.rejects(rejects), bytes_in=4 * plan.dim * num_rows)


def file(number: int) -> str:
    """The name of a shard's file in the artefact."""
    return f"index-{number:05d}.faiss"


def ladder(plan: Plan) -> list[int]:
    """The numbers of lists searched that recall is measured with; none for a flat index, which has no lists."""
    return [2**power for power in range(_MAX_POWER + 1) if 2**power <= plan.num_lists]


# Number of lists searched (0: the truth) -> rows and scores, (q, K + 1); of candidates, more of both and exact scores.
Found = dict[int, tuple[np.ndarray, ...]]


def _found(number: int) -> str:
    return f"{WORK}/found-{number:05d}.parquet"


def _table(found: Found) -> pa.Table:
    names = ("row", "score", "exact")  # where the order is not made anew, a score is as exact as it will be
    parts = [(*answer, answer[1])[:3] if len(answer) == 2 else answer for answer in found.values()]
    columns = {"num_probes": np.repeat(list(found), [part[0].size for part in parts])}
    columns |= {name: np.concatenate([part[i].ravel() for part in parts]) for i, name in enumerate(names)}
    return pa.table(columns)


class Measured(NamedTuple):
    """Recall@K by the number of lists searched (0: flat), the query's own row left out, with and without `rerank`."""

    num_queries: int
    recall: dict[int, float]
    by_codes: dict[int, float]


def _measure(draft: Draft, plan: Plan, numbers: list[int], rerank: int) -> Measured:
    own = draft.storage.read_table(f"{draft.folder}/{_QUERIES}", ["row"])["row"].to_numpy()
    most = index.num_candidates(plan, K + 1, rerank)
    merged: Found = {}
    for number in numbers:
        table = draft.storage.read_table(f"{draft.folder}/{_found(number)}")
        steps, *columns = (table[name].to_numpy() for name in ("num_probes", "row", "score", "exact"))
        for step in [0, *ladder(plan)]:
            found = tuple(column[steps == step].reshape(len(own), -1) for column in columns)
            merged[step] = index.merge([merged[step], found] if step in merged else [found], most if step else K + 1)

    def others(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        rows, scores = index.merge([(rows, scores)], K + 1)
        return neighbors.drop_range(scores, rows, own, own + 1, K)[0]

    truth = others(*merged[0][:2])
    recall, by_codes = {}, {}
    for step in ladder(plan) or [0]:
        rows, scores, exact = merged[step]
        recall[step] = index.recall(others(rows, exact), truth)
        by_codes[step] = index.recall(others(rows, scores), truth)
    return Measured(len(own), recall, by_codes)


def choose(recall: dict[int, float], wanted: float) -> int:
    """The fewest lists that reach the wanted recall or, where none do, come near the best there is."""
    best = max(recall.values())
    enough = wanted if best >= wanted else best - _PLATEAU
    return min(step for step, found in recall.items() if found >= enough)


def _publish(draft: Draft, plan: Plan, cuts: list[Cut], settings: IndexConfig) -> Artifact:
    records = draft.finished_shards()
    numbers = [cut.number for cut in cuts[1:]]
    rows = {number: records[number]["rows_out"] for number in numbers}
    if not sum(rows.values()):
        raise draft.given_up(f"embeddings = {settings.embeddings!r}: none of {plan.rows:,} vectors has a direction")
    found = _measure(draft, plan, numbers, settings.rerank)
    num_probes = choose(found.recall, settings.recall)
    facts = {
        "plan": plan.facts(),
        "trained": TRAINED if plan.num_lists else None,
        "shards": [{"file": file(c.number), "first_row": c.first_row, "rows": rows[c.number]} for c in cuts[1:]],
        "num_probes": num_probes,
        "recall": {"k": K, "num_queries": found.num_queries, "by_num_probes": list(found.recall.items())},
    }
    if plan.code_size:
        facts |= {"rerank": settings.rerank}
        facts["recall"] |= {"by_codes": list(found.by_codes.items())}
    told = _told(draft, facts, plan, settings)
    draft.storage.write_bytes(f"{draft.folder}/index.html", index_report.page(facts, told).encode())
    return draft.publish(num_shards=len(cuts), summary=told, facts=facts)


def _told(draft: Draft, facts: dict[str, Any], plan: Plan, settings: IndexConfig) -> str:
    rows, recall = sum(shard["rows"] for shard in facts["shards"]), dict(facts["recall"]["by_num_probes"])
    lists = f" of {plan.num_lists:,} lists" if plan.num_lists else ""
    codes = f", {plan.code_size} bytes a vector" if plan.code_size else ""
    reached = recall[facts["num_probes"]]
    how = f" with {facts['num_probes']} lists searched" if plan.num_lists else ", exact"
    if facts.get("rerank"):
        by_codes = dict(facts["recall"]["by_codes"])[facts["num_probes"]]
        how += (
            f" and {settings.rerank} candidates for each answer ordered by their embeddings ({by_codes:.3f} by codes)"
        )
    short = "" if reached >= settings.recall else f", short of the {settings.recall} asked for"
    steps = "; by lists: " + ", ".join(f"{n} {r:.3f}" for n, r in recall.items()) if plan.num_lists else ""
    dropped = schema.summarise({"no_direction": plan.rows - rows} if rows < plan.rows else {})
    return (
        f"{rows:,} vectors of {plan.dim} values, {plan.method}{lists}{codes}, in {len(facts['shards'])} shards\n"
        f"recall@{K} {reached:.3f}{how}{short} ({facts['recall']['num_queries']} queries{steps})\n"
        f"{dropped}; {speed(draft, rows, 'vectors')}"
    )


if __name__ == "__main__":
    config.main(CONFIG, run, estimate=estimate)
