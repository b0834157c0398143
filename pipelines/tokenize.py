"""Documents to a token store: one memory-mapped file of token ids, an index, splits by document.

    python -m pipelines.tokenize pipelines/experiments/arxiv/tokenize.toml [key=value ...]

Shards are tokenised in parallel and merged in order, so the bytes do not depend on the workers. Whole documents, no
special tokens, nothing between documents. About a megabyte of text is tokenised at once: a document's ids are those of
its whole text read at once, but for what `quire.token_chunks.document_ids` names.
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.shards import run_shards, speed
from quire import artifact, bpe, config, schema, splits, token_chunks, tokens
from quire.artifact import WORK, Artifact, Draft, Shard
from quire.errors import UserError


class Pretrained(config.Config):
    """A tokenizer by its name on the hub or its folder."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = "EleutherAI/pythia-70m-deduped"


class Trained(config.Config):
    """A byte-level BPE trained on training documents of the store, chosen by the hashes of their ids."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(default=4096, ge=257)
    max_documents: int = Field(default=20_000, gt=0)


class Categories(config.Config):
    """Which categories documents are filed under."""

    level: Literal["full", "archive"] = Field(default="full", description="archive: cs.LG is filed under cs")
    min_documents: int = Field(default=1, gt=0, description="documents of rarer categories are dropped")


class Shares(splits.Shares):
    """Share of each split; they add up to 1."""

    train: float = Field(default=0.8, ge=0)
    validation: float = Field(default=0.1, ge=0)
    test: float = Field(default=0.1, ge=0)


class TokenizeConfig(config.Config):
    """What `pipelines.tokenize` computes."""

    name: str
    documents: str
    tokenizer: Pretrained | Trained = Field(discriminator="kind")
    vocab_size: int | None = Field(default=None, gt=0, description="default: the tokenizer's, rounded up to 64")
    categories: Categories = Categories()
    shares: Shares = Field(default=Shares(), description="for documents whose source has no splits")
    split_seed: int = 0
    runtime: config.Runtime = config.Runtime()


CONFIG = TokenizeConfig


def run(settings: TokenizeConfig) -> Artifact:
    """Make the `tokens` artefact. Raises UserError when no document yields a token."""
    if settings.vocab_size is not None:
        tokens.token_type(settings.vocab_size)  # a size beyond every type shows before the work, not after
    documents = artifact.open_artifact(settings.runtime.root, "documents", settings.documents)
    _check_columns(documents)
    inputs: dict[str, Any] = {"documents": documents}
    if isinstance(settings.tokenizer, Pretrained):
        inputs["tokenizer"] = _sha256(bpe.load(settings.tokenizer.name))
    draft = artifact.begin_step(settings, "tokens", inputs)
    if draft.published:
        return draft.published
    frequent = _frequent(draft, documents, settings.categories)
    tokenizer, vocab_size = _tokenizer(draft, documents, settings, frequent)
    items = list(enumerate(documents.parts))
    arguments = (documents, draft, settings, tokenizer.backend_tokenizer.to_str(), frequent)
    run_shards(draft, items, _encoder, arguments, num_workers=settings.runtime.num_workers)
    facts = _merge(draft, len(items), tokenizer, vocab_size)
    return _publish(draft, len(items), facts)


def _check_columns(documents: Artifact) -> None:
    with documents.storage.filesystem.open_input_file(documents.storage.path(documents.parts[0])) as file:
        lacking = sorted({"category", "categories", "split"} - set(pq.read_schema(file).names))
    if lacking:
        raise UserError(
            f"documents = {documents.name!r} has no column {lacking[0]!r}: make it with pipelines.arxiv, or with "
            'pipelines.datasets, whose source.kind = "table" reads any folder with a column of categories'
        )
    if documents.manifest["facts"].get("categories") == {}:
        raise UserError(
            f"documents = {documents.name!r}: made without categories; make it again under another name, with "
            "source.category naming their column"
        )


def _sha256(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _tokenizer(draft: Draft, documents: Artifact, settings: TokenizeConfig, frequent: set[str]) -> tuple[Any, int]:
    """The tokenizer and the store's vocabulary; a trained one is kept in the draft for a resumed run."""
    choice = settings.tokenizer
    if isinstance(choice, Pretrained):
        tokenizer = bpe.load(choice.name)
    else:
        kept = f"{draft.folder}/{WORK}/tokenizer"
        if not draft.storage.exists(f"{kept}/done.json"):
            places = bpe.spread(_to_train_on(documents, settings, frequent), choice.max_documents)
            trained = bpe.train(_texts(documents, places), choice.vocab_size)
            with draft.storage.local_folder(kept) as folder:
                bpe.save(trained, Path(folder))
            draft.storage.write_json(f"{kept}/done.json", {})
        with tempfile.TemporaryDirectory() as folder:
            draft.storage.download(kept, folder)
            tokenizer = bpe.load(folder)
    vocab_size = settings.vocab_size or -(-len(tokenizer) // 64) * 64
    if vocab_size < len(tokenizer):
        raise draft.given_up(f"vocab_size = {vocab_size}: the tokenizer has {len(tokenizer)} ids; ask for as many")
    return tokenizer, vocab_size


def _to_train_on(documents: Artifact, settings: TokenizeConfig, frequent: set[str]) -> Iterator[str | None]:
    """Of each document in order its id, or None for what a tokenizer must not learn from: validation and test, and
    what the store leaves out."""
    for part in documents.parts:
        for row in documents.storage.read_table(part, ["document_id", "split", "category"]).to_pylist():
            kept = _filed(row["category"], settings.categories.level) in frequent
            mine = kept and _split(row["document_id"], row["split"], settings) == "train"
            yield row["document_id"] if mine else None


def _split(document_id: str, own: str | None, settings: TokenizeConfig) -> str:
    return own or split_of(document_id, settings.shares, settings.split_seed)


def _columns(documents: Artifact, name: str) -> Iterator[pa.ChunkedArray]:
    """A column of each part of the documents, one in memory at a time."""
    for part in documents.parts:
        yield documents.storage.read_table(part, [name])[name]


def _texts(documents: Artifact, places: list[int]) -> Iterator[str]:
    """The texts at these places."""
    wanted, start = np.asarray(places), 0
    for texts in _columns(documents, "text"):
        inside = wanted[(wanted >= start) & (wanted < start + len(texts))] - start
        yield from texts.take(pa.array(inside)).to_pylist()
        start += len(texts)


def _filed(category: str, level: str) -> str:
    return category.split(".")[0] if level == "archive" else category


def _frequent(draft: Draft, documents: Artifact, categories: Categories) -> set[str]:
    counts: Counter[str] = Counter()
    for column in _columns(documents, "category"):
        for found in column.value_counts().to_pylist():
            counts[_filed(found["values"], categories.level)] += found["counts"]
    kept = {name for name, count in counts.items() if count >= categories.min_documents}
    if not kept:
        most = counts.most_common(1)[0]
        raise draft.given_up(
            f"categories.min_documents = {categories.min_documents}: the largest, {most[0]}, has {most[1]}"
        )
    return kept


def split_of(document_id: str, shares: Shares, seed: int) -> str:
    """The split of a document, by the hash of its id alone."""
    place = int.from_bytes(hashlib.sha256(f"{seed} {document_id}".encode()).digest()[:8], "big") / 2**64
    for name, share in shares.model_dump().items():
        place -= share
        if place < 0:
            return name
    return "train"


def _encoder(
    documents: Artifact, draft: Draft, settings: TokenizeConfig, tokenizer: str, frequent: set[str]
) -> Callable[[tuple[int, str]], Shard]:
    backend = token_chunks.whole(tokenizer)
    cutting = token_chunks.cutting(backend)
    level = settings.categories.level

    def process(item: tuple[int, str]) -> Shard:
        index, part = item
        rows, dropped, size, found = [], [], 0, 0
        for batch in documents.storage.read_table(part).to_batches(max_chunksize=256):
            records = batch.to_pylist()
            found += len(records)
            encoded = token_chunks.document_ids([record["text"] for record in records], backend, cutting)
            for record, ids in zip(records, encoded, strict=True):
                names = list(dict.fromkeys(_filed(name, level) for name in record["categories"]))
                reason = "no_token" if not len(ids) else "rare_category" if names[0] not in frequent else None
                if reason:
                    dropped.append({"id": record["document_id"], "reason": reason, "detail": names[0]})
                    continue
                size += len(record["text"].encode())
                split = _split(record["document_id"], record["split"], settings)
                rows.append((record["document_id"], names, split, ids))
        names = ("document_id", "categories", "split", "ids")
        types = (pa.string(), pa.list_(pa.string()), pa.string(), pa.list_(pa.uint32()))
        columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]
        draft.storage.write_table(f"{draft.folder}/{WORK}/{index:05d}.parquet", pa.table(columns, names=names))
        facts = {"documents": len(rows), "tokens": sum(len(row[3]) for row in rows)}
        rejects = schema.rejects(dropped)
        return Shard(rows_in=found, rejects=rejects, bytes_in=size, facts=facts, rows_elsewhere=len(rows))

    return process


def _merge(draft: Draft, num_shards: int, tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """tokens.bin and its index from the shards in order, one shard in memory at a time."""
    with draft.storage.local_folder(draft.folder) as target:
        folder = Path(target)
        writer = tokens.StoreWriter(folder, vocab_size)
        for index in range(num_shards):
            table = draft.storage.read_table(f"{draft.folder}/{WORK}/{index:05d}.parquet")
            ids, ends = table["ids"].combine_chunks(), table["ids"].combine_chunks().offsets.to_numpy()
            flat = ids.values.to_numpy()
            columns = [table[name].to_pylist() for name in ("document_id", "categories", "split")]
            for row, (document, categories, split) in enumerate(zip(*columns, strict=True)):
                writer.add(document, categories[0], categories, split, flat[ends[row] : ends[row + 1]])
        writer.close()
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        bpe.save(tokenizer, folder / "tokenizer")
        facts = json.loads((folder / "store.json").read_text("utf-8"))
    if not facts["num_tokens"]:
        raise draft.given_up(f"{draft.folder}: no document yields a token; look at its rejects")
    categories = {
        name: {**{split: writer.documents[name, split] for split in tokens.SPLITS}, "tokens": size}
        for name, size in sorted(writer.sizes.items())
    }
    return {**facts, "categories": categories}


def _publish(draft: Draft, num_shards: int, facts: dict[str, Any]) -> Artifact:
    totals = draft.totals()
    lines = [
        f"{name:<20}{c['tokens']:>14,} tokens " + " ".join(f"{c[split]:>8,} {split}" for split in tokens.SPLITS)
        for name, c in facts["categories"].items()
    ]
    if len(lines) > 20:
        lines = [*lines[:20], f"and {len(lines) - 20} more categories"]
    lines.append(
        f"{facts['num_tokens']:,} tokens of {facts['num_documents']:,} documents, vocabulary {facts['vocab_size']:,}; "
        f"{schema.summarise(totals['dropped'])}; {speed(draft, totals['cost']['bytes_in'] / 1e6, 'MB')}"
    )
    return draft.publish(num_shards=num_shards, summary="\n".join(lines), facts=facts)


if __name__ == "__main__":
    config.main(CONFIG, run)
