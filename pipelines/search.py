"""A question in words to the chunks that are nearest to it, from an index, with their texts.

    python -m pipelines.search pipelines/experiments/corpus/search.toml query="..." [k=10] [json_lines=true]

The query is encoded by the model that made the embeddings, which is known by its weights. One shard of the index is
open at a time, and of an inverted file the lists alone that are searched. Ray has no part in it.
"""

import json
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from quire import artifact, config, index, lookup, schema
from quire.artifact import Artifact
from quire.errors import UserError

_SHOWN_CHARS = 300
_COLUMNS = ("document_id", "text")


class SearchConfig(config.Config):
    """What `pipelines.search` answers."""

    index: str
    query: str
    k: int = Field(default=10, gt=0)
    num_probes: int | None = Field(default=None, gt=0, description="lists searched; default: what the index chose")
    rerank: int | None = Field(
        default=None, ge=0, description="of codes, candidates for each answer, ordered by their embeddings"
    )
    model: str | None = Field(default=None, description="where the model lies now, if not where it was")
    prompt: str | None = Field(default=None, description="before the query; default: the documents' or the model's own")
    whole: bool = Field(default=False, description=f"texts as they are, not their first {_SHOWN_CHARS} characters")
    json_lines: bool = Field(default=False, description="a JSON object a line, with whole texts")
    runtime: config.Runtime = config.Runtime()

    @field_validator("query", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        """A command line reads query=1984 as a number."""
        return json.dumps(value) if isinstance(value, bool | int | float) else value

    @field_validator("query")
    @classmethod
    def _check(cls, value: str) -> str:
        if not value.strip():
            raise ValueError('an empty query; write query="some words"')
        return value


CONFIG = SearchConfig


@dataclass(frozen=True)
class Answer:
    """What was found, best first: rank, score, document_id, chunk_id, text; and how it is to be shown."""

    hits: list[dict[str, Any]]
    settings: SearchConfig

    def told(self, started: float) -> str:
        """For the terminal; `started` in seconds since the epoch."""
        if self.settings.json_lines:
            return "\n".join(json.dumps(hit) for hit in self.hits)  # ASCII: a text cannot command the terminal
        lines = []
        for hit in self.hits:
            text = hit["text"] if self.settings.whole else hit["text"][:_SHOWN_CHARS]
            more = "" if len(text) == len(hit["text"]) else " ..."
            lines.append(
                f"{hit['rank']:>3}  {hit['score']:.4f}  {_plain(hit['document_id'])}  {_plain(hit['chunk_id'])}"
            )
            lines.append(textwrap.indent(_plain(text) + more, "     "))
        return "\n".join([*lines, f"{len(self.hits)} chunks in {time.time() - started:.1f} s"])


def run(settings: SearchConfig) -> Answer:
    """Answer a query. Raises UserError when an artefact is missing or was made again, or the model is another."""
    root = settings.runtime.root
    made = artifact.open_artifact(root, "index", settings.index)
    embeddings = _input(made, "embeddings", "pipelines.index")
    chunks = _input(embeddings, "chunks", "pipelines.embed")
    rows = sum(shard["rows"] for shard in made.manifest["facts"]["shards"])
    if settings.k > rows:
        raise UserError(f"k = {settings.k}: the index has {rows:,} rows; ask for fewer")
    query = _encode(settings, embeddings)
    found, scores, places = nearest(made, embeddings, query, settings)
    texts = lookup.rows_by_id(chunks, dict(places.values()), "chunk_id", _COLUMNS)
    hits = []
    for rank, (row, score) in enumerate(zip(found.tolist(), scores.tolist(), strict=True), start=1):
        chunk = places[row][0]
        text = texts[chunk]
        document, words = text["document_id"], text["text"]
        hits.append({"rank": rank, "score": score, "document_id": document, "chunk_id": chunk, "text": words})
    return Answer(hits, settings)


def _input(made: Artifact, kind: str, step: str) -> Artifact:
    """The artefact that `made` was made from, if it still has the same content."""
    used = made.manifest["inputs"][kind]
    found = artifact.open_artifact(made.storage, kind, used["name"])
    if found.content != used.get("content", found.content):  # manifests of the first days lack it
        raise UserError(
            f"{kind} {found.name!r} was made again since {made.kind} {made.name!r}: delete "
            f"{made.storage.uri(made.folder)} and run {step} again"
        )
    return found


def _encode(settings: SearchConfig, embeddings: Artifact) -> np.ndarray:
    """The query's vector (1, d), of length 1."""
    # Here, since they bring torch: seconds that a mistake of the user need not wait for.
    from quire import encoder, hub

    recipe, wanted = embeddings.manifest["recipe"], embeddings.manifest["facts"]["model_weights"]
    name = settings.model or recipe["model"]
    folder = hub.model_folder(name, settings.runtime.root)
    weights = hub.weights_sha256(folder)
    if weights != wanted:
        raise UserError(
            f"model = {name!r}: its files have the SHA-256 {weights[:16]}..., those that made embeddings "
            f"{embeddings.name!r} had {wanted[:16]}...: set model= to the model it was, or embed again"
        )
    model = encoder.load_encoder(folder, recipe["max_seq_length"])
    prompt = settings.prompt
    if prompt is None:
        prompt = encoder.query_prompt(model, recipe["prompt"], recipe["prompt_name"])
    vector, good = index.unit(encoder.encode(model, [settings.query], prompt=prompt))
    if not good.all():
        raise UserError(f"query = {settings.query!r}: the model gives it no direction; use other words")
    return vector


Places = dict[int, tuple[str, int]]  # row -> its chunk_id and the number of its part of the embeddings


def nearest(
    made: Artifact, embeddings: Artifact, query: np.ndarray, settings: SearchConfig
) -> tuple[np.ndarray, np.ndarray, Places]:
    """Rows, scores, at most k of each, and places of what is nearest to a query's vector (1, d) of length 1."""
    found, scores = _search(made, query, settings)
    places = _places(made, found)
    if len(found) > settings.k:
        found, scores = _reranked(embeddings, query, found, places, settings.k)
    return found, scores, {row: places[row] for row in found.tolist()}


def _search(made: Artifact, query: np.ndarray, settings: SearchConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores, at most k of each; of codes, the candidates for them."""
    plan, trained = opened(made)
    if query.shape[1] != plan.dim:
        raise UserError(f"index {made.name!r} holds {plan.dim} values a vector, the model makes {query.shape[1]}")
    facts = made.manifest["facts"]
    probes = settings.num_probes or facts["num_probes"]
    rerank = facts.get("rerank", 0) if settings.rerank is None else settings.rerank
    most = index.num_candidates(plan, settings.k, rerank)
    while True:
        found = shards(made, plan, trained)
        rows, scores = index.search(found, query, k=most, trained=trained, num_probes=probes)
        index.check_rows(rows, plan.rows, made.storage.uri(made.folder))
        if (rows >= 0).sum() >= settings.k or settings.num_probes or probes >= plan.num_lists:
            return rows[0][rows[0] >= 0], scores[0][rows[0] >= 0]
        probes *= 2  # the lists searched held fewer than k


def _reranked(
    embeddings: Artifact, query: np.ndarray, found: np.ndarray, places: Places, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates and their scores by what the embeddings hold; one part of them is in memory at a time."""
    vectors = np.zeros((len(found), query.shape[1]), np.float32)
    parts = np.asarray([places[row][1] for row in found.tolist()])
    for part in np.unique(parts).tolist():
        table = embeddings.storage.read_table(embeddings.parts[part], ["chunk_id", "embedding"])
        wanted = np.flatnonzero(parts == part)
        ids = pa.array([places[row][0] for row in found[wanted].tolist()])
        at = pc.index_in(ids, table["chunk_id"].combine_chunks())
        vectors[wanted] = schema.matrix(table["embedding"].take(at))
    ascending = np.argsort(found)
    unit = index.unit(vectors[ascending])[0]
    rows, scores = index.merge([(found[None], index.exact_scores(query, found[None], unit, found[ascending]))], k)
    return rows[0], scores[0]


def opened(made: Artifact) -> tuple[index.Plan, faiss.IndexIVF | None]:
    """What an `index` artefact is, and what its shards share."""
    facts = made.manifest["facts"]
    plan = index.Plan(**facts["plan"])
    if facts["trained"] is None:
        return plan, None
    name = f"{made.folder}/{facts['trained']}"
    return plan, index.read_trained(made.storage.read_bytes(name), made.storage.uri(name), plan)


def shards(made: Artifact, plan: index.Plan, trained: faiss.IndexIVF | None) -> Iterator[faiss.Index]:
    """One after the other, each gone when the next one comes."""
    for shard in made.manifest["facts"]["shards"]:
        path, size = made.local_file(shard["file"]), made.manifest["files"][shard["file"]]["bytes"]
        yield index.read(path, plan, trained, rows=shard["rows"], size=size)


def _places(made: Artifact, found: np.ndarray) -> Places:
    """By the index's own parts. The part of the embeddings most often is that of the chunks."""
    places: Places = {}
    first_rows = [shard["first_row"] for shard in made.manifest["facts"]["shards"]]
    for shard in np.unique(np.searchsorted(first_rows, found, side="right") - 1).tolist():
        table = made.storage.read_table(made.parts[shard])
        for row in table.filter(pa.array(np.isin(table["row"].to_numpy(), found))).to_pylist():
            places[row["row"]] = row["chunk_id"], row["part"]
    missing = set(found.tolist()) - places.keys()
    if missing:
        raise UserError(f"{made.storage.uri(made.folder)}: row {min(missing)} is in no part; run pipelines.index again")
    return places


def _plain(text: str) -> str:
    """Without what a terminal would take for a command."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


if __name__ == "__main__":
    config.main(CONFIG, run)
