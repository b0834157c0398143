"""Embeddings to hard negatives: for each training chunk the nearest chunks of other works that are no false negatives.

    python -m pipelines.mine pipelines/experiments/books/mine.toml [key=value ...]

The embeddings are those of the bi-encoder that is to be trained on (`pipelines.embed model=models/NAME`): other
weights, other negatives. The search is exact, or goes through an index of these embeddings (`pipelines.index`), whose
recall is then measured. With a cross-encoder the candidates are read again and their probabilities kept within a band.
Option names as in `mine_hard_negatives` of sentence-transformers; `quire.mining` says what each does, in which order.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines import search
from pipelines.shards import run_shards, speed
from quire import (
    artifact,
    candidates,
    config,
    grouping,
    index,
    lookup,
    miner,
    mining,
    mining_corpus,
    mining_report,
    schema,
)
from quire.artifact import Artifact, Draft, Shard
from quire.errors import UserError
from quire.mining import Rules
from quire.neighbors import built_for_gpus

_RECALL_QUERIES = 256
_RECIPE = ("positive", "queries_per_document", "rejected_share", "seed")


class MineRuntime(config.GpuRuntime):
    block_bytes: int = Field(default=2**30, gt=0, description="of the corpus in memory at a time, as float32")


class MineConfig(config.Config):
    """What `pipelines.mine` computes."""

    name: str
    chunks: str
    embeddings: str
    index: str | None = Field(default=None, description="an inverted file of these embeddings; default: exact search")
    num_probes: int | None = Field(default=None, gt=0, description="lists searched; default: what the index chose")
    cross_encoder: str | None = Field(default=None, description="models artefact that reads the candidates again")
    mask: Literal["work", "author"] = Field(
        default="work", description="what a query and its negatives must not share; author: nor any co-author"
    )
    positive: Literal["mean", "lowest", "best"] = Field(
        default="mean", description="of a query's cosines to its own document, for the margins"
    )
    num_negatives: int = Field(default=3, gt=0, description="of a query")
    range_min: int = Field(default=0, ge=0, description="rank of the first candidate, the nearest being 0")
    range_max: int | None = Field(default=None, gt=0, description="rank behind the last; default: 10 a negative")
    min_score: float | None = Field(default=None, ge=-1, le=1, description="cosine")
    max_score: float | None = Field(default=None, ge=-1, le=1, description="cosine")
    absolute_margin: float | None = Field(default=None, description="below the positive score")
    relative_margin: float | None = Field(default=None, description="below the positive score, as a part of it")
    duplicate_share: float = Field(
        default=mining.NEAR_DUPLICATE,
        ge=0,
        le=1,
        description="of common runs of words that rejects a candidate; 0: none",
    )
    cross_min_score: float | None = Field(default=None, ge=0, le=1, description="probability of one book")
    cross_max_score: float | None = Field(default=None, ge=0, le=1, description="probability of one book")
    num_rescored: int = Field(
        default=12, gt=0, description="candidates of a query that the cross-encoder reads at most"
    )
    sampling_strategy: Literal["top", "random"] = "top"
    queries_per_document: int | None = Field(default=None, gt=0, description="default: every embedded chunk")
    rejected_share: float = Field(
        default=0.1, ge=0, le=1, description="of the queries, of whose rejected candidates one for each reason is kept"
    )
    num_suspicious: int = Field(default=20, ge=0, description="negatives shown with both texts")
    shard_rows: int = Field(default=8192, gt=0, description="a document is never cut")
    seed: int = Field(default=0, ge=0)
    runtime: MineRuntime = MineRuntime()


CONFIG = MineConfig


class Cut(NamedTuple):
    """A shard: its number, and the documents [first, last) of the corpus; with none the recall is measured."""

    number: int
    first: int
    last: int


class Inputs(NamedTuple):
    chunks: Artifact
    embeddings: Artifact
    index: Artifact | None
    cross_encoder: Artifact | None


def run(settings: MineConfig) -> Artifact:
    """Make the `negatives` artefact. Raises UserError when there is nothing to mine, or nothing is left of it."""
    rules(settings).check(cross=settings.cross_encoder is not None)
    root = settings.runtime.root
    wanted = {"chunks": "chunks", "embeddings": "embeddings", "index": "index", "cross_encoder": "models"}
    found = {
        role: artifact.open_artifact(root, kind, getattr(settings, role))
        for role, kind in wanted.items()
        if getattr(settings, role) is not None
    }
    inputs = Inputs(*(found.get(role) for role in Inputs._fields))
    _check(inputs, settings)
    draft = artifact.begin_step(settings, "negatives", found)
    if draft.published:
        return draft.published
    corpus = mining_corpus.corpus(inputs.chunks, inputs.embeddings)
    if not corpus.num_rows:
        raise draft.given_up(f"embeddings = {settings.embeddings!r}: no chunk of the training split among them")
    cuts = cut(corpus.documents(), settings.shard_rows, with_recall=inputs.index is not None)
    run_shards(
        draft,
        cuts,
        worker,
        (inputs, draft, settings),
        num_workers=settings.runtime.num_workers,
        num_gpus=settings.runtime.num_gpus,
        can_use_gpus=built_for_gpus() or inputs.cross_encoder is not None,
        memory=2 * 2**30 + 5 * min(settings.runtime.block_bytes, 4 * corpus.num_rows * corpus.dim) // 2,
    )
    return _publish(draft, inputs, len(cuts), settings)


def rules(settings: MineConfig) -> Rules:
    return Rules(**{name: getattr(settings, name) for name in Rules.__dataclass_fields__})


def cut(documents: np.ndarray, max_rows: int, *, with_recall: bool) -> list[Cut]:
    """Shards of whole documents with at most `max_rows` rows together; first, if wanted, the one for the recall."""
    found = [(0, 0)] if with_recall else []
    found += [(group[0], group[-1] + 1) for group in grouping.groups(np.diff(documents).tolist(), max_rows)]
    return [Cut(number, *bounds) for number, bounds in enumerate(found)]


def _check(inputs: Inputs, settings: MineConfig) -> None:
    if inputs.index is not None:
        used = inputs.index.manifest["inputs"]["embeddings"]
        if used["content"] != inputs.embeddings.content:
            raise UserError(
                f"index = {settings.index!r}: made from embeddings {used['name']!r}, not these as they are now"
            )
        if not inputs.index.manifest["facts"]["plan"]["num_lists"]:
            raise UserError(f"index = {settings.index!r}: a flat one, which is as slow as exact search; leave it out")
    elif settings.num_probes:
        raise UserError(f"num_probes = {settings.num_probes}: of which index? set index=, or leave it out")
    if inputs.cross_encoder is None:
        for name in ("cross_min_score", "cross_max_score"):
            if getattr(settings, name) is not None:
                raise UserError(f"{name} = {getattr(settings, name)}: by which model? set cross_encoder=")


def worker(inputs: Inputs, draft: Draft, settings: MineConfig) -> Callable[[Cut], Shard]:
    """What makes a shard's negatives, or measures the recall."""
    corpus = mining_corpus.corpus(inputs.chunks, inputs.embeddings)
    groups = corpus.column("work" if settings.mask == "work" else "author_group")
    depth, block_rows = rules(settings).depth, max(1, settings.runtime.block_bytes // (4 * corpus.dim))
    exact = candidates.Exact(corpus, groups, k=depth, block_rows=block_rows)
    inverted = _inverted(inputs.index, corpus, groups, depth, settings) if inputs.index else None
    cross = None
    if inputs.cross_encoder:
        from quire.cross_encoder import CrossEncoder  # brings torch

        cross = CrossEncoder.load(inputs.cross_encoder.local()).logits
    recipe = miner.Recipe(rules(settings), **{name: getattr(settings, name) for name in _RECIPE})
    mines = miner.Miner(corpus, groups, inputs.chunks.memory_map(["chunk_id", "text"])["text"], recipe, cross)

    def process(item: Cut) -> Shard:
        if item.first == item.last:
            return Shard(facts={"recall": _recall(corpus, inverted, exact)})
        made = mines.mine(item.first, item.last, inverted or exact, apart=inverted is not None)
        few = pa.concat_tables(made.rejected)
        if few.num_rows:
            draft.storage.write_table(f"{draft.folder}/rejected-{item.number:05d}.parquet", few)
        dropped = corpus.dropped if item.first == 0 else ()
        rejects = [{"id": chunk, "reason": "no_direction"} for chunk in dropped] + made.lost
        return Shard(
            table=pa.concat_tables(made.negatives),
            rows_in=made.queries + len(dropped),
            rejects=schema.rejects(rejects),
            bytes_in=4 * corpus.dim * made.queries,
            facts=miner.facts(made),
        )

    return process


def _inverted(
    made: Artifact, corpus: mining_corpus.Corpus, groups: np.ndarray, depth: int, settings: MineConfig
) -> candidates.Inverted:
    plan, trained = search.opened(made)
    num_probes = settings.num_probes or made.manifest["facts"]["num_probes"]
    shards = partial(search.shards, made, plan, trained)
    return candidates.Inverted(corpus, groups, k=depth, shards=shards, num_probes=num_probes)


def _recall(corpus: mining_corpus.Corpus, inverted: candidates.Inverted, exact: candidates.Exact) -> dict[str, Any]:
    """Of the candidates that exact search finds for some queries, evenly spaced, the share that the index finds."""
    rows = np.unique(np.linspace(0, corpus.num_rows - 1, _RECALL_QUERIES).astype(np.int64))
    found = np.concatenate([inverted(rows[i : i + 1])[0] for i in range(len(rows))])
    return {"k": exact.k, "num_queries": len(rows), "recall": index.recall(found, exact(rows)[0])}


def _publish(draft: Draft, inputs: Inputs, num_shards: int, settings: MineConfig) -> Artifact:
    records = [record for _, record in sorted(draft.finished_shards().items())]
    found = [record["facts"] for record in records if "audit" in record["facts"]]
    tally: Counter[str] = Counter()
    for shard in found:
        tally.update(shard["candidates"])
    facts: dict[str, Any] = {
        "model_weights": inputs.embeddings.manifest["facts"].get("model_weights"),
        "queries": sum(shard["queries"] for shard in found),
        "training_chunks": inputs.chunks.read(["split"])["split"].to_pylist().count("train"),
        "candidates": dict(tally),
        "audit": mining_report.added([shard["audit"] for shard in found]),
        "recall": next((record["facts"]["recall"] for record in records if "recall" in record["facts"]), None),
    }
    if not tally["chosen"]:
        against = schema.summarise({reason: count for reason, count in tally.items() if count})
        raise draft.given_up(f"no candidate became a negative: {against}; widen the range, the margins or the band")
    page = mining_report.page(draft.name, facts, _suspicious(draft, inputs.chunks, num_shards, settings))
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    return draft.publish(num_shards=num_shards, summary=_told(draft, facts), facts=facts)


def _suspicious(draft: Draft, chunks: Artifact, num_shards: int, settings: MineConfig) -> list[dict[str, Any]]:
    """The most suspicious of all negatives, with both texts; one shard is read at a time."""
    best = schema.NEGATIVES.empty_table()
    for number in range(num_shards):
        name = f"{draft.folder}/part-{number:05d}.parquet"
        if draft.storage.exists(name):
            table = pa.concat_tables([best, draft.storage.read_table(name)])
            best = mining_report.most_suspicious(table, settings.num_suspicious)
    rows = best.to_pylist()
    places = {row[side]: -1 for row in rows for side in ("chunk_id", "negative_id")}
    texts = lookup.rows_by_id(chunks, places, "chunk_id", ["text"])
    sides = {"text": "chunk_id", "negative_text": "negative_id"}
    return [row | {name: texts[row[side]]["text"] for name, side in sides.items()} for row in rows]


def _told(draft: Draft, facts: dict[str, Any]) -> str:
    tally, audit, recall = facts["candidates"], facts["audit"], facts["recall"]
    rejected = schema.summarise({reason: count for reason, count in tally.items() if count and reason != "chosen"})
    how = (
        f"; recall@{recall['k']} {recall['recall']:.3f}, {recall['num_queries']} queries"
        if recall
        else ", exact search"
    )
    signs = ", ".join(f"{mining_report.share(audit, sign):.1%} {sign}" for sign in mining_report.SIGNS)
    queries = facts["queries"]
    return (
        f"{queries:,} queries of {facts['training_chunks']:,} training chunks, {tally['chosen']:,} negatives{how}; "
        f"{speed(draft, queries, 'queries')}\n"
        f"of the candidates {rejected}\nof the negatives {signs}"
    )


if __name__ == "__main__":
    config.main(CONFIG, run)
