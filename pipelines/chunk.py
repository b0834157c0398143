"""Documents to chunks: sentence windows with exact offsets, near-duplicate works joined, authors split.

    python -m pipelines.chunk pipelines/experiments/books/chunk.toml [key=value ...]

Three passes: the documents' MinHash signatures make works and splits; the chunks, shard by shard; and the removal of
chunks whose text occurs in more than `max_repeats` works.
"""

from typing import Any, Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipelines.shards import drop_all, run_shards, speed
from quire import artifact, chunks, config, dedup, schema, splits
from quire.artifact import WORK, Artifact, Draft, Shard
from quire.errors import UserError


class Shares(splits.Shares):
    """Share of each split; they add up to 1."""

    train: float = Field(default=0.6, ge=0)
    validation: float = Field(default=0.1, ge=0)
    calibration: float = Field(default=0.15, ge=0)
    test: float = Field(default=0.15, ge=0)


class Split(config.Config):
    """How groups go to splits: by hash alone (stable when the corpus grows), or balanced (for small corpora).

    With folds the groups of one are tested, and the shares are of the others: so every author can be tested once.
    """

    by: Literal["author", "work"] = "author"
    method: Literal["hash", "balanced"] = "hash"
    seed: int = 0
    shares: Shares = Shares()
    num_folds: int | None = Field(default=None, ge=2, description="that all groups are dealt into, evenly by size")
    fold: int | None = Field(default=None, ge=0, description="the one that is tested, from 0")

    @model_validator(mode="after")
    def _a_fold_of_them(self) -> Self:
        if (self.num_folds is None) != (self.fold is None):
            raise ValueError(f"num_folds = {self.num_folds}, fold = {self.fold}: give both or neither")
        if self.fold is not None and self.fold >= self.num_folds:
            raise ValueError(f"fold = {self.fold}: folds are numbered 0 to {self.num_folds - 1}")
        if self.fold is not None and self.shares.test:
            raise ValueError(f"shares.test = {self.shares.test:g}: the fold is tested; set shares.test = 0")
        return self


class ChunkConfig(config.Config):
    """What `pipelines.chunk` computes."""

    name: str
    documents: str
    size: int = Field(default=14, gt=0, description="sentences")
    overlap: int = Field(default=4, ge=0, description="sentences")
    min_chars: int = Field(default=200, ge=0)
    max_chunks: int = Field(default=800, gt=0, description="per document")
    english: bool = True
    max_repeats: int = Field(default=3, gt=0, description="works that may share a chunk's text")
    near_duplicate: float = Field(default=dedup.THRESHOLD, gt=0, le=1, description="Jaccard similarity of one work")
    split: Split = Split()
    runtime: config.Runtime = config.Runtime()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError(f"overlap = {self.overlap}: give fewer sentences than size = {self.size}")
        return self


CONFIG = ChunkConfig


def run(settings: ChunkConfig) -> Artifact:
    """Make the `chunks` artefact."""
    documents = artifact.open_artifact(settings.runtime.root, "documents", settings.documents)
    draft = artifact.begin_step(settings, "chunks", {"documents": documents})
    if draft.published:
        return draft.published
    works = _works(documents, draft, settings)
    items = list(enumerate(documents.parts))
    run_shards(draft, items, _chunker, (documents, settings, works, draft), num_workers=settings.runtime.num_workers)
    _drop_repeated(draft, len(items), settings.max_repeats)
    return _publish(draft, documents, len(items), works)


class Work(NamedTuple):
    """Where a document belongs."""

    work_id: str
    split: str
    author_group: str


def _works(documents: Artifact, draft: Draft, settings: ChunkConfig) -> dict[str, Work]:
    """document_id -> its work; computed once and kept in the draft for a resumed run."""
    kept = f"{draft.folder}/{WORK}/works.json"
    if draft.storage.exists(kept):
        return {key: Work(*values) for key, values in draft.storage.read_json(kept).items()}
    _check_columns(documents)
    sizes, signed = [], []
    for part in documents.parts:  # one at a time: all texts together may be more than memory holds
        table = documents.storage.read_table(part, ["document_id", "authors", "signature", "text"])
        sizes += pc.utf8_length(table["text"]).to_pylist()
        signed.append(_signed(table))
    works = assign(pa.concat_tables(signed), sizes, settings)
    draft.storage.write_json(kept, works)
    return works


def _signed(table: pa.Table) -> pa.Table:
    """The documents without their texts, signed where they came unsigned, as papers do: few are read as books are."""
    rows = zip(table["signature"].to_pylist(), table["text"].to_pylist(), strict=True)
    signatures = [known or dedup.minhash(text).tolist() for known, text in rows]
    column = pa.array(signatures, schema.DOCUMENTS.field("signature").type)
    return table.select(["document_id", "authors"]).append_column("signature", column)


def assign(table: pa.Table, sizes: list[int], settings: ChunkConfig) -> dict[str, Work]:
    """document_id -> its work, of documents (document_id, authors, signature) that are `sizes` characters long."""
    ids, authors = table["document_id"].to_pylist(), table["authors"].to_pylist()
    signatures = pc.list_flatten(table["signature"]).to_numpy().reshape(-1, dedup.NUM_HASHES)
    work_of = dedup.work_ids(ids, signatures, settings.near_duplicate)
    work_ids = [work_of[document] for document in ids]
    author_groups = splits.split_groups(authors, work_ids)
    groups = author_groups if settings.split.by == "author" else splits.split_groups(authors, work_ids, by="work")
    assigned = _assigned(groups, sizes, work_ids, settings.split)
    return dict(zip(ids, map(Work, work_ids, assigned, author_groups), strict=True))


def _assigned(groups: list[str], sizes: list[int], works: list[str], asked: Split) -> list[str]:
    """The split of each document."""
    options = asked.model_dump(include={"seed", "method"}) | {"shares": asked.shares.model_dump()}
    if asked.num_folds is None:
        return splits.assign_splits(groups, sizes, **options, works=works)
    folds = splits.deal(groups, sizes, asked.num_folds, asked.seed, works)
    others = [row for row, fold in enumerate(folds) if fold != asked.fold]
    found = splits.assign_splits(
        *([given[row] for row in others] for given in (groups, sizes)), **options, works=[works[row] for row in others]
    )
    split_of = dict(zip(others, found, strict=True))
    return [split_of.get(row, "test") for row in range(len(groups))]


def _check_columns(documents: Artifact) -> None:
    with documents.storage.filesystem.open_input_file(documents.storage.path(documents.parts[0])) as file:
        lacking = sorted(set(schema.DOCUMENTS.names) - set(pq.read_schema(file).names))
    if lacking:
        raise UserError(
            f"documents = {documents.name!r} has no column {lacking[0]!r}: an older version made it; make it again "
            "under another name, or delete its folder first"
        )


def _chunker(documents: Artifact, settings: ChunkConfig, works: dict[str, Work], draft: Draft) -> Any:
    def process(item: tuple[int, str]) -> Shard:
        index, part = item
        rows, dropped, size = [], [], 0
        for document in documents.storage.read_table(part).to_pylist():
            size += len(document["text"].encode())
            made, rejected = chunk_document(document, settings, works[document["document_id"]])
            rows += made
            dropped += rejected
        columns = {name: [row[name] for row in rows] for name in schema.CHUNKS.names}
        table = pa.table(columns, schema=schema.CHUNKS)
        _mark(draft, index, table)
        return Shard(table=table, rows_in=len(rows) + len(dropped), rejects=schema.rejects(dropped), bytes_in=size)

    return process


def chunk_document(document: dict, settings: ChunkConfig, work: Work) -> tuple[list[dict], list[dict]]:
    """Rows of `schema.CHUNKS` of one document (a row of `schema.DOCUMENTS`), and of `schema.REJECTS`."""
    text, document_id = document["text"], document["document_id"]
    result = chunks.chunk_text(
        text,
        size=settings.size,
        overlap=settings.overlap,
        min_chars=settings.min_chars,
        max_chunks=settings.max_chunks,
        english=settings.english,
    )
    # Nobody knows who wrote an anonymous work, so no two of them have one author, whatever their title pages say.
    author = f"anonymous:{work.work_id}" if document["anonymous"] else document["author"]
    rows = [
        {
            "chunk_id": f"{document_id}:{chunk.index}",
            "document_id": document_id,
            "work_id": work.work_id,
            "author": author,
            "author_group": work.author_group,
            "anonymous": document["anonymous"],
            "split": work.split,
            "index": chunk.index,
            "start": chunk.start,
            "end": chunk.end,
            "num_sentences": chunk.num_sentences,
            "text": text[chunk.start : chunk.end],
        }
        for chunk in result.chunks
    ]
    dropped = [{"id": document_id, "reason": r.reason, "start": r.start, "end": r.end} for r in result.rejects]
    return rows, dropped


def _mark(draft: Draft, index: int, table: pa.Table) -> None:
    """Leave beside a shard what `_drop_repeated` asks of it."""
    marks = dedup.chunk_fingerprints(table["text"].to_pylist())
    seen = table.select(["work_id", "chunk_id", "start", "end"]).append_column("mark", pa.array(marks))
    draft.storage.write_table(_marked(draft, index), seen)


def _marked(draft: Draft, index: int) -> str:
    return f"{draft.folder}/{WORK}/{index:05d}.parquet"


def _drop_repeated(draft: Draft, num_shards: int, max_repeats: int) -> None:
    """Rewrite the shards without the chunks that too many works share. Killed, a run finds the same again."""
    tables = [draft.storage.read_table(_marked(draft, index), ["mark", "work_id"]) for index in range(num_shards)]
    every = pa.concat_tables(tables)
    repeated = dedup.repeated(every["mark"].to_numpy(), every["work_id"].to_pylist(), max_repeats)
    start, drops, records = 0, {}, draft.finished_shards()
    for index, table in enumerate(tables):
        mask = repeated[start : start + table.num_rows]
        start += table.num_rows
        if mask.any() and records[index]["rows_out"] == table.num_rows:  # else it has had its turn
            seen = draft.storage.read_table(_marked(draft, index), ["chunk_id", "start", "end"])
            gone = seen.filter(pa.array(mask)).to_pylist()
            rows = [{"id": r["chunk_id"], "reason": "repeated", "start": r["start"], "end": r["end"]} for r in gone]
            drops[index] = (mask, rows)
    drop_all(draft, drops)  # decided for all before any is rewritten: a text is in too many works, or no longer


def _publish(draft: Draft, documents: Artifact, num_shards: int, works: dict[str, Work]) -> Artifact:
    names = [f"{draft.folder}/part-{index:05d}.parquet" for index in range(num_shards)]
    columns = ["split", "work_id", "author", "anonymous", "document_id"]
    table = pa.concat_tables(draft.storage.read_table(name, columns) for name in names)
    if not table.num_rows:
        raise draft.given_up(
            f"no chunk survived in {draft.folder}: look at its rejects; lower min_chars or set english=false"
        )
    counts = {}
    for split in splits.SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        counts[split] = {
            "authors": len(part.filter(pc.invert(part["anonymous"]))["author"].unique()),
            "works": len(part["work_id"].unique()),
            "documents": len(part["document_id"].unique()),
            "chunks": part.num_rows,
        }
    joined = len(works) - len({work.work_id for work in works.values()})
    size = documents.manifest["cost"]["bytes_out"]
    lines = [
        f"{split:<12}" + "  ".join(f"{count:>6,} {what}" for what, count in counts[split].items()) for split in counts
    ]
    text_bytes = sum(record["bytes_in"] for record in draft.finished_shards().values()) or size
    lines.append(f"{joined} near-duplicate document(s) joined; {speed(draft, text_bytes / 1e6, 'MB')}")
    return draft.publish(num_shards=num_shards, summary="\n".join(lines), facts={"splits": counts, "joined": joined})


if __name__ == "__main__":
    config.main(CONFIG, run)
