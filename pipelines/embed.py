"""Chunks to embeddings: an actor pool, each actor tokenising once and packing by length.

    python -m pipelines.embed pipelines/experiments/books/embed.toml [key=value ...] [--estimate]

Any sentence-transformers model, with its own pooling, normalisation and prompt. Token ids that the chunks hold are used
as they are. A sample of every shard is encoded again in float32, and the run stops where the two differ too much.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from pipelines.embedded_before import Earlier
from pipelines.shards import gpus, on_a_worker, run_shards, speed
from quire import (
    artifact,
    config,
    device,
    embedding_report,
    embeddings,
    encoder,
    hub,
    ledger,
    sampled,
    token_chunks,
)
from quire.artifact import Artifact, Draft, Shard
from quire.errors import UserError
from quire.packing import Budget

_BLOCK = 8192  # rows prepared at once while those before them are encoded
# One row alone in float32 costs up to ten times what it costs in bfloat16 and in company.
_CHECKED, _MOST_CHECKED = 128, 16
_SAMPLE_PARTS, _SAMPLE_ROWS = 3, {False: 96, True: 8192}  # what an estimate encodes, on a CPU and on a GPU


class EmbedRuntime(config.GpuRuntime):
    max_batch_tokens: int | None = Field(default=None, gt=0, description="padded; default by device")
    check_rows: int | None = Field(
        default=None, ge=0, description="of each shard, encoded again in float32; default: one in 128, from 1 to 16"
    )
    min_cosine: float = Field(default=0.99, ge=-1, le=1, description="of those rows to what is stored")


class EmbedConfig(config.Config):
    """What `pipelines.embed` computes."""

    name: str
    chunks: str
    model: str = Field(default=hub.MINILM, description="a folder, a name on the hub, or models/NAME below the root")
    max_seq_length: int | None = Field(
        default=None, gt=0, description="tokens, special ones and prompt included; default: the model's own"
    )
    prompt: str | None = Field(
        default=None, description='before each chunk, "" for none; default: the model\'s own for documents'
    )
    prompt_name: str | None = Field(default=None, description="of the model's prompts")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: what the processor does well"
    )
    stored: Literal["float32", "float16"] = "float32"
    max_chunks: int | None = Field(default=None, gt=0, description="per document, evenly spaced; default all")
    reuse: str | None = Field(
        default=None,
        description="embeddings of the corpus before it grew, by the same recipe; chunks are known by id and text, so "
        "where files grow at other places than their ends, cut them with source.key",
    )
    runtime: EmbedRuntime = EmbedRuntime()


CONFIG = EmbedConfig


def run(settings: EmbedConfig) -> Artifact:
    """Make the `embeddings` artefact: chunk_id, embedding, num_tokens. Raises UserError when a check fails."""
    root = settings.runtime.root
    chunks = artifact.open_artifact(root, "chunks", settings.chunks)
    folder = hub.model_folder(settings.model, settings.runtime.root)
    weights = hub.weights_sha256(folder)
    inputs = {"chunks": chunks, "model_weights": weights}
    earlier = Earlier.open(settings, weights) if settings.reuse else None
    if earlier:
        inputs |= {"reuse": earlier.embeddings}
    draft = artifact.begin_step(settings, "embeddings", inputs)
    if draft.published:
        return draft.published
    runtime = settings.runtime
    wants = {"num_workers": runtime.num_workers, "memory": 2 * 2**30 + 2 * hub.weights_size(folder)}
    wants["num_gpus"] = gpus(runtime.num_gpus, can_use=True)
    reader = draft.settle("reader", lambda: on_a_worker(_reader, settings, **wants))
    _check_reader(draft, reader, chunks, settings, earlier)
    shared = earlier.shared(chunks) if earlier else [()] * len(chunks.parts)
    run_shards(
        draft,
        list(zip(chunks.parts, shared, strict=True)),
        _embedder,
        (chunks, settings, earlier, reader["precision"]),
        **wants,
        can_use_gpus=True,
    )
    return _publish(draft, chunks, weights, _check_ids(draft, chunks, settings.max_chunks))


def estimate(settings: EmbedConfig, drawn: Mapping[str, ledger.Drawn] | None = None) -> str:
    """What the whole would take, from rows of a few parts, encoded as a worker would and thrown away.

    Chunks that are not made yet are those that their own estimate has `drawn`.
    """
    num_gpus = gpus(settings.runtime.num_gpus, can_use=True)
    known = (drawn or {}).get(f"chunks/{settings.chunks}")
    size = _SAMPLE_ROWS[num_gpus > 0]
    few = _of_drawn(settings, known, size) if known else _of_published(settings, size)
    sample, embedded = on_a_worker(_sample, few, settings, num_gpus, num_gpus=num_gpus)
    if drawn is not None:
        drawn[f"embeddings/{settings.name}"] = ledger.Drawn(embedded, sample.share)
    return ledger.estimate(sample, settings.runtime.prices and settings.runtime.prices.model_dump())


class _Few(NamedTuple):
    """Some chunks, how many there are to encode, and how many of them are a part."""

    rows: pa.Table
    num_rows: float
    part_rows: float


def _of_published(settings: EmbedConfig, size: int) -> _Few:
    """About `size` chunks."""
    chunks = artifact.open_artifact(settings.runtime.root, "chunks", settings.chunks)
    parts = sampled.spaced(chunks.parts, _SAMPLE_PARTS)
    tables = [chunks.storage.read_table(part, ["chunk_id", "text"]) for part in parts]
    rows = pa.concat_tables(sampled.rows(table, size // len(tables) + 1) for table in tables)
    num_rows = _num_rows(chunks, settings.max_chunks)
    return _Few(sampled.rows(rows, min(size, num_rows)), num_rows, num_rows / len(chunks.parts))


def _of_drawn(settings: EmbedConfig, known: ledger.Drawn, size: int) -> _Few:
    """`_of_published` of chunks that are not made yet."""
    rows = known.rows
    if settings.max_chunks is not None:
        rows = rows.take(pa.array(embeddings.spaced(rows["document_id"].to_pylist(), settings.max_chunks), pa.int64()))
    if not rows.num_rows:
        raise UserError(f"chunks = {settings.chunks!r}: the sample of the corpus gives no chunk; look at its estimate")
    return _Few(sampled.rows(rows, size), rows.num_rows / known.share, rows.num_rows / known.parts)


def _sample(few: _Few, settings: EmbedConfig, num_gpus: float) -> tuple[ledger.Sample, pa.Table]:
    """What it took, the comparison with float32 included, and the embeddings."""
    rows, texts = few.rows, few.rows["text"].to_pylist()
    model, prompt, budget = _model(settings)
    exact = _exact(model, settings)
    spent = []
    for some in (rows.slice(0, 1), rows):  # what is done for the first time takes longer
        begun = _clocks()
        tokens = encoder.tokenize(model, some["text"].to_pylist(), prompt=prompt)
        vectors = encoder.encode_tokens(model, tokens, budget, autocast=torch.float32, prompt=prompt)
        vectors = vectors.astype(settings.stored)
        encoded = _clocks()
        checked = _checked(vectors, some, _to_check(few.part_rows, settings), exact, prompt, False, settings)
        spent = [encoded - begun, (_clocks() - encoded) / max(1, len(checked["cosines"]))]
    share_checked = min(1.0, _to_check(few.part_rows, settings) / max(1, few.part_rows))
    cpu, wall = spent[0] + len(texts) * share_checked * spent[1]
    sizes = [len(ids) for ids in tokens]
    sample = ledger.Sample(
        share=len(texts) / max(1, few.num_rows),
        rows=len(texts),
        tokens=sum(sizes),
        bytes_out=vectors.nbytes,
        cpu=cpu,
        gpu=num_gpus * wall,
    )
    return sample, embeddings.table(rows["chunk_id"].to_pylist(), vectors, sizes)


def _clocks() -> np.ndarray:
    """(2,) seconds of the processor and of the clock."""
    return np.asarray([time.process_time(), time.perf_counter()])


def _num_rows(chunks: Artifact, max_chunks: int | None) -> int:
    if max_chunks is None:
        return chunks.manifest["rows_out"]
    documents = (chunks.storage.read_table(part, ["document_id"])["document_id"] for part in chunks.parts)
    return sum(len(embeddings.spaced(column.to_pylist(), max_chunks)) for column in documents)


def _reader(settings: EmbedConfig) -> dict[str, Any]:
    """Which precision the model has here, how many tokens it reads, and how many of them no chunk can have."""
    model, prompt, _ = _model(settings)
    around = len(encoder.tokenize(model, [""], prompt=prompt)[0])
    return {"precision": _precision(settings), "tokens": model.max_seq_length, "around": around}


def _check_reader(
    draft: Draft, reader: dict[str, Any], chunks: Artifact, settings: EmbedConfig, earlier: Earlier | None
) -> None:
    """Raises UserError where the model would cut chunks that nobody asked it to cut, or vectors of two precisions
    would be mixed."""
    most, reads, around = chunks.manifest["recipe"].get("max_tokens"), reader["tokens"], reader["around"]
    if settings.max_seq_length is None and most is not None and most + around > reads:
        raise draft.given_up(
            f"chunks = {settings.chunks!r}: max_tokens = {most}, with special tokens and prompt {most + around}, but "
            f"model = {settings.model!r} reads {reads}; cut them with max_tokens={max(1, reads - around)}, or set "
            f"max_seq_length: higher where the model has the positions, {reads} to cut chunks off"
        )
    before = set(earlier.embeddings.manifest["facts"]["precision"]) if earlier else set()
    if before - {reader["precision"]}:
        raise draft.given_up(
            f"reuse = {settings.reuse!r}: made in {', '.join(sorted(before))}, but precision = {settings.precision} is "
            f"{reader['precision']} here; embed where it is the same, or without reuse"
        )


def _precision(settings: EmbedConfig) -> str:
    """Of the model's weights, on this machine."""
    if settings.precision != "auto":
        return settings.precision
    return str(device.inference_precision()).removeprefix("torch.")


def _model(settings: EmbedConfig) -> tuple[Any, str, Budget]:
    """The model in the precision it computes in, what stands before each chunk, and how much is a batch."""
    folder = hub.model_folder(settings.model, settings.runtime.root)
    model = encoder.load_encoder(folder, settings.max_seq_length, getattr(torch, _precision(settings)))
    most = settings.runtime.max_batch_tokens
    budget = Budget(most) if most else encoder.batch_budget()
    return model, encoder.document_prompt(model, settings.prompt, settings.prompt_name), budget


def _embedder(
    chunks: Artifact, settings: EmbedConfig, earlier: Earlier | None, precision: str
) -> Callable[[Any], Shard]:
    model, prompt, budget = _model(settings)
    exact = _exact(model, settings)
    with_ids = _holds_ids(chunks, model, prompt)

    def process(item: tuple[str, tuple[int, ...]]) -> Shard:
        if precision != (here := _precision(settings)):
            raise UserError(
                f"precision = {settings.precision}: the run was begun in {precision}, this worker's processor has "
                f"{here}; go on where it is {precision}, or set precision= and another name="
            )
        part, shared = item
        rows = chunks.storage.read_table(
            part, ["chunk_id", "document_id", "text", *(["token_ids"] if with_ids else [])]
        )
        if settings.max_chunks is not None:
            chosen = embeddings.spaced(rows["document_id"].to_pylist(), settings.max_chunks)
            rows = rows.take(pa.array(chosen, pa.int64()))
        vectors = np.zeros((rows.num_rows, model.get_embedding_dimension()), settings.stored)
        num_tokens = np.zeros(rows.num_rows, np.int32)
        new = np.arange(rows.num_rows)
        if earlier and shared:
            new = earlier.fill(rows, shared, vectors, num_tokens)
        lowered, truncated = budget.lowered, 0
        for block, tokens, cut in _prepared(model, rows, new, prompt, with_ids):
            truncated += cut
            vectors[block] = encoder.encode_tokens(model, tokens, budget, autocast=torch.float32, prompt=prompt)
            num_tokens[block] = [len(ids) for ids in tokens]
        known = np.setdiff1d(np.flatnonzero(num_tokens == model.max_seq_length), new)  # taken, and perhaps cut
        truncated += sum(cut for _, _, cut in _prepared(model, rows, known, prompt, with_ids))
        ids = rows["chunk_id"].to_pylist()
        facts = {
            "tokens": int(num_tokens.sum()),
            "new_rows": len(new),
            "truncated": truncated,
            "token_ids_used": with_ids,
            "precision": precision,
            "budget_lowered": budget.lowered - lowered,
            "prompt": prompt,
            **_checked(vectors, rows, _to_check(rows.num_rows, settings), exact, prompt, with_ids, settings),
        }
        table = embeddings.table(ids, vectors, num_tokens)
        return Shard(table=table, rows_in=rows.num_rows, bytes_in=rows["text"].nbytes, facts=facts)

    return process


def _holds_ids(chunks: Artifact, model: Any, prompt: str) -> bool:
    """Whether the chunks hold token ids of this model's tokenizer that may be used as they are."""
    same = chunks.manifest["inputs"].get("tokenizer") == token_chunks.digest(model.tokenizer.backend_tokenizer)
    return same and encoder.takes_ids(model, prompt)


def _prepared(
    model: Any, rows: pa.Table, chosen: np.ndarray, prompt: str, with_ids: bool
) -> Iterator[tuple[np.ndarray, list[np.ndarray], int]]:
    """(rows, their tokens, how many were cut) of the chosen rows, in blocks; one is prepared while one is encoded."""

    def prepare(block: np.ndarray) -> tuple[list[np.ndarray], int]:
        part = rows.take(pa.array(block))
        if with_ids:
            return encoder.framed(model, [ids.values.to_numpy() for ids in part["token_ids"]], prompt)
        return encoder.tokenize_counting(model, part["text"].to_pylist(), prompt=prompt)

    blocks = [chosen[at : at + _BLOCK] for at in range(0, len(chosen), _BLOCK)]
    with ThreadPoolExecutor(1) as pool:
        ready = [pool.submit(prepare, block) for block in blocks[:1]]
        for number, block in enumerate(blocks):
            tokens, cut = ready.pop().result()
            ready += [pool.submit(prepare, after) for after in blocks[number + 1 : number + 2]]
            yield block, tokens, cut


def _exact(model: Any, settings: EmbedConfig) -> Any:
    """The model in float32, which it may be already."""
    if _precision(settings) == "float32" or settings.runtime.check_rows == 0:
        return model
    return encoder.load_encoder(hub.model_folder(settings.model, settings.runtime.root), settings.max_seq_length)


def _to_check(part_rows: float, settings: EmbedConfig) -> int:
    """How many of a part's rows are compared with float32."""
    asked = settings.runtime.check_rows
    return min(max(int(part_rows) // _CHECKED, 1), _MOST_CHECKED) if asked is None else asked


def _checked(
    vectors: np.ndarray,
    rows: pa.Table,
    count: int,
    exact: Any,
    prompt: str,
    with_ids: bool,
    settings: EmbedConfig,
) -> dict[str, Any]:
    """Cosines of `count` rows to float32, each encoded alone. Raises UserError for one too low or not a number."""
    ids, least = rows["chunk_id"].to_pylist(), settings.runtime.min_cosine
    if not np.isfinite(vectors).all():
        bad = ids[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise UserError(f"chunk {bad}: its embedding is not finite in {settings.precision}; set precision=float32")
    chosen = embeddings.sample(ids, count)
    tokens = [ids for _, block, _ in _prepared(exact, rows, chosen, prompt, with_ids) for ids in block]
    again = encoder.encode_tokens(exact, tokens, Budget(1), autocast=torch.float32, prompt=prompt)
    found = embeddings.cosines(vectors[chosen], again)
    if len(found) and found.min() < least:
        raise UserError(
            f"chunk {ids[chosen[int(found.argmin())]]}: cosine {found.min():.8f} to its embedding in float32, below "
            f"runtime.min_cosine = {least}; set precision=float32, or a lower bound"
        )
    return {"cosines": [round(float(cosine), 7) for cosine in found]}


def _check_ids(draft: Draft, chunks: Artifact, max_chunks: int | None) -> int:
    """One embedding for each chunk that was asked for, in the chunks' order: read again from what was written.

    Returns how many. Raises UserError for a part that has other ids.
    """
    checked = 0
    for number, part in enumerate(chunks.parts):
        rows = chunks.storage.read_table(part, ["chunk_id", "document_id"])
        if max_chunks is not None:
            rows = rows.take(pa.array(embeddings.spaced(rows["document_id"].to_pylist(), max_chunks), pa.int64()))
        written = draft.storage.read_table(f"{draft.folder}/part-{number:05d}.parquet", ["chunk_id"])
        if written["chunk_id"].to_pylist() != rows["chunk_id"].to_pylist():
            raise UserError(
                f"{draft.storage.uri(draft.folder)}: part {number} has other ids than {part}; make it again"
            )
        checked += rows.num_rows
    return checked


def _publish(draft: Draft, chunks: Artifact, weights: str, ids_checked: int) -> Artifact:
    records = [record for _, record in sorted(draft.finished_shards().items())]
    shards = [record["facts"] for record in records]
    rows = sum(record["rows_out"] for record in records)
    cosines = np.asarray([cosine for facts in shards for cosine in facts["cosines"]])
    facts = {
        "model_weights": weights,
        "prompt": shards[0]["prompt"],
        "precision": dict(Counter(facts["precision"] for facts in shards)),  # shards by each
        **{key: sum(facts[key] for facts in shards) for key in ("tokens", "new_rows", "truncated")},
        "token_ids_used": shards[0]["token_ids_used"],  # those that the chunks hold, else their texts were tokenised
        "ids_checked": ids_checked,
        "cosine_to_float32": {"rows": len(cosines), **embedding_report.spread(cosines)},
    }
    told = ""
    if "tokenizer" in chunks.manifest["inputs"] and not facts["token_ids_used"]:
        told = "; texts tokenised anew: the chunks' token ids are another model's, or its prompt changes them"
    told += f"; {facts['truncated']:,} cut to what the model reads" if facts["truncated"] else ""
    told += f"; {rows - facts['new_rows']:,} taken from before" if facts["new_rows"] < rows else ""
    summary = f"{rows:,} chunks, {facts['tokens']:,} tokens; {speed(draft, facts['tokens'], 'tokens')}{told}"
    if len(cosines):
        summary += f"\ncosine to float32: least {cosines.min():.6f} of {len(cosines):,}, a sample of every shard"
    page = embedding_report.page(draft.name, facts, records, chunks.manifest)
    draft.storage.write_bytes(f"{draft.folder}/index.html", page.encode())
    facts["budget_lowered"] = sum(facts["budget_lowered"] for facts in shards)  # not on the page: it is no result
    return draft.publish(num_shards=len(chunks.parts), summary=summary, facts=facts)


if __name__ == "__main__":
    config.main(CONFIG, run, estimate=estimate)
