"""How cost grows: chunks, embeddings and index of 1, 2, 4 and 8 times the corpus, time a document and peaks of memory.

    python -m bench.growth [--folder BOOKS] [--megabytes 4] [--passes 1] [--rounds 3]

The text, of a folder of .txt files or else the documentation of installed Python packages (which suffices for 1 MB or
so), is cut into documents of 2,000 characters; the 1x corpus is `megabytes` of it, and none of it is repeated up to 8x,
so that the vocabulary grows as a corpus' does. With more `passes` a folder's text is gone through again, cut at other
places, so that no two chunks are equal: what that leaves out is the growth of the vocabulary. Each size runs in a
process and on a Ray of its own: `pipelines.token_chunks`, `pipelines.embed` with a BERT of two layers and width 32,
whose weights are random, and `pipelines.index`, as in flows/corpus.toml. Told are, a document: seconds from beginning
to end, in which the start of the workers counts and weighs most at 1x, and the CPU seconds of the steps, in which it
does not; and the peak of the process that leads and of the largest worker. Ratios are to 1x of the same round. Beside
them stand what holds neither start nor imports, between 1x and each other size: the seconds for each document more
(`slope`), and the bytes for each chunk more in the process that leads (`driver_bytes_per_chunk`).
"""

import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.apart import apart, on_ray
from bench.contest import keep, options, spread, where
from bench.corpus import DOCUMENT_CHARS, corpus
from pipelines import embed, index, token_chunks
from quire import hub

TIMES = (1, 2, 4, 8)
GROUP_ROWS = 100  # documents of a row group, 0.2 MB
SHARDS = 7  # of 1x at least, so that it has enough for every core
_APART = 211  # characters by which a pass is cut further on than the one before
MEASURES = {"wall": "s/document", "cpu": "CPU s/document", "driver": "MB, driver", "worker": "MB, worker"}


def documents(folder: str, megabytes: float, passes: int) -> list[str]:
    """Documents of 8x. Raises SystemExit where the text is too short."""
    if not folder:
        texts = list(corpus(megabytes * TIMES[-1]))
    else:
        whole = "\n".join(file.read_text("utf-8", "replace") for file in sorted(Path(folder).rglob("*.txt")))
        most = int(megabytes * TIMES[-1] * 10**6)
        starts = chain.from_iterable(range(_APART * number, len(whole), DOCUMENT_CHARS) for number in range(passes))
        texts = [whole[start : start + DOCUMENT_CHARS] for start in islice(starts, -(-most // DOCUMENT_CHARS))]
    texts = [text for text in dict.fromkeys(texts) if text.strip()]  # beyond its end the corpus begins anew
    found = sum(map(len, texts)) / 1e6
    if found < 0.9 * megabytes * TIMES[-1]:
        raise SystemExit(
            f"--megabytes {megabytes}: 8x of that is more than the {found:.1f} MB of text; "
            f"give {found / TIMES[-1]:.1f} or fewer, a larger --folder, or more --passes"
        )
    return texts


def prepare(root: str, texts: list[str]) -> None:
    """A folder of each size, and the model."""
    for times in TIMES:
        some = texts[: len(texts) * times // TIMES[-1]]
        folder = Path(root, f"source-{times}")
        folder.mkdir()
        table = pa.table({"id": [f"d{number}" for number in range(len(some))], "text": some})
        pq.write_table(table, folder / "texts.parquet", row_group_size=GROUP_ROWS)
    _write_model(f"{root}/model")


def _write_model(folder: str) -> None:
    """With the tokenizer of all-MiniLM-L6-v2, so that the chunks' token ids are used as they are."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(hub.MINILM))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(f"{folder}-raw")
    tokenizer.save_pretrained(f"{folder}-raw")
    transformer = Transformer(f"{folder}-raw", max_seq_length=256)
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
    model.save(folder, create_model_card=False)


def flow(root: str, times: int, shard_bytes: int) -> dict[str, float]:
    """Seconds and CPU seconds of all steps, and the number of chunks."""
    name, runtime = f"times-{times}", {"root": f"{root}/{time.monotonic_ns()}"}
    started = time.perf_counter()
    chunks = token_chunks.run(
        token_chunks.TokenChunksConfig(
            name=name,
            source=token_chunks.Corpus(folder=f"{root}/source-{times}", key="id", shard_bytes=shard_bytes),
            model=f"{root}/model",
            runtime=runtime,
        )
    )
    vectors = embed.run(embed.EmbedConfig(name=name, chunks=name, model=f"{root}/model", runtime=runtime))
    found = index.run(index.IndexConfig(name=name, embeddings=name, runtime=runtime))
    cpu = sum(made.manifest["cost"]["cpu"] for made in (chunks, vectors, found))
    return {"seconds": time.perf_counter() - started, "cpu": cpu, "chunks": chunks.manifest["rows_out"]}


def measure(root: str, times: int, num_documents: int, shard_bytes: int) -> dict[str, float]:
    made, peaks = apart(on_ray, flow, root, times, shard_bytes)
    wall, cpu = made["seconds"] / num_documents, made["cpu"] / num_documents
    return {**made, "documents": num_documents, "wall": wall, "cpu": cpu, **peaks}


def summed(found: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """By size and measure, value and ratio to 1x with their spread over the rounds."""
    return {
        f"{times}x": {
            key: {
                "value": spread([row[key] for row in rows]),
                "ratio": spread([row[key] / first[key] for row, first in zip(rows, found[1], strict=True)]),
            }
            for key in MEASURES
        }
        for times, rows in found.items()
    }


def slopes(found: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """From 1x to each other size, with their spread over the rounds."""

    def slope(times: int, what: str, each: str) -> dict[str, float]:
        rounds = zip(found[times], found[1], strict=True)
        return spread([(row[what] - first[what]) / (row[each] - first[each]) for row, first in rounds])

    others = [times for times in found if times > 1]
    per_chunk = {f"{times}x": slope(times, "driver", "chunks") for times in others}
    return {
        "slope": {f"{times}x": slope(times, "seconds", "documents") for times in others},
        "driver_bytes_per_chunk": {size: {k: v * 1e6 for k, v in row.items()} for size, row in per_chunk.items()},
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"growth: {result['processor']}, {result['cores']} cores")
    for title in ("", *MEASURES.values()):
        table.add_column(title, justify="right")
    for size, measures in result["sizes"].items():
        cells = [
            f"{m['value']['median']:,.4g}; {m['ratio']['median']:.2f}x "
            f"({m['ratio']['least']:.2f} to {m['ratio']['most']:.2f})"
            for m in measures.values()
        ]
        table.add_row(size, *cells)
    Console(width=140).print(table)
    for size, found in result["slope"].items():
        driver = result["driver_bytes_per_chunk"][size]["median"]
        print(f"      1x to {size}: {found['median']:.4g} s for each document more, {driver:,.0f} bytes for each chunk")


def main() -> None:
    asked = options(__doc__, folder="", megabytes=4.0, passes=1, rounds=3)
    texts = documents(asked.folder, asked.megabytes, asked.passes)
    shard_bytes = min(token_chunks.MOST_BYTES, int(asked.megabytes * 10**6 / SHARDS))
    found: dict[int, list[dict[str, float]]] = {times: [] for times in TIMES}
    with tempfile.TemporaryDirectory() as root:
        prepare(root, texts)
        for number in range(asked.rounds):
            for times in TIMES if number % 2 == 0 else TIMES[::-1]:
                found[times].append(measure(root, times, len(texts) * times // TIMES[-1], shard_bytes))
                print(f"      round {number + 1} of {asked.rounds}, {times}x: {found[times][-1]}", flush=True)
    name = "growth" if asked.passes == 1 else "growth-passes"
    facts = {"documents": len(texts), "megabytes": asked.megabytes, "shard_bytes": shard_bytes}
    result = {"bench": name, **facts, "sizes": summed(found), **slopes(found), **where()}
    show(result)
    keep(result)


if __name__ == "__main__":
    main()
