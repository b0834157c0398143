"""Encoding chunks, tokens/s: `quire.encoder` beside sentence-transformers' own `encode`, same model and texts.

    python -m bench.encode [--rounds 3] [--chunks 0]

Two corpora: chunks of 250 tokens each, and a mix of lengths (log-normal around 80 tokens, sigma 1, at most 250);
`--chunks 0` is 256 of them on a CPU, 8,192 on a GPU. sentence-transformers is run as it comes (float32, batches of 32)
and at its best: other sizes of batches, each in float32 and, where the processor multiplies it, in half precision (on a
GPU both kinds), and in its ONNX and OpenVINO backends; where what they need is not installed, the result says so. Ours
starts from the token ids that chunks hold, as `pipelines.embed` does, and from the texts as well. Everybody encodes the
whole once before the first round, and is told by its least cosine to float32. Of a GPU stands the share of peak FLOP/s
beside: 2 for each weight of a layer and token, and 4 x width for each layer and pair of tokens of a text; what is
padding does not count.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from bench.contest import contest, keep, options
from bench.corpus import corpus
from quire import device, embeddings, encoder, hub, token_chunks

MAX_TOKENS = 250
NUM_CHUNKS = {"cpu": 256, "cuda": 8_192}
BATCHES = {
    "cpu": (32, 8, 16, 64),
    "cuda": (32, 128, 512, 2_048),
}  # the first is what sentence-transformers takes itself
BACKENDS = {"onnx": ("optimum", "onnxruntime"), "openvino": ("optimum", "optimum.intel", "openvino")}


def texts_of(num_chunks: int, mixed: bool) -> list[str]:
    """Texts of documentation, each cut to a number of tokens."""
    model = SentenceTransformer(hub.find_model(hub.MINILM), device="cpu")
    tokenizer = token_chunks.whole(model.tokenizer.backend_tokenizer)
    whole = "\n".join(corpus(max(8, num_chunks / 500)))[: num_chunks * 4_000]
    found = token_chunks.chunk_texts([whole], tokenizer, max_tokens=MAX_TOKENS, overlap=0)
    texts = [whole[a:b] for a, b in zip(found.start.tolist(), found.end.tolist(), strict=True)][:num_chunks]
    if not mixed:
        return texts
    draw = np.random.default_rng(0)
    sizes = np.clip(draw.lognormal(np.log(80), 1.0, len(texts)), 1, MAX_TOKENS).astype(int)
    cut = [
        token_chunks.chunk_texts([t], tokenizer, max_tokens=int(n), overlap=0)
        for t, n in zip(texts, sizes, strict=True)
    ]
    return [text[: int(found.end[0])] for text, found in zip(texts, cut, strict=True)]


def halves() -> list[torch.dtype]:
    """What sentence-transformers may gain from beside float32."""
    if not torch.cuda.is_available():
        return [device.precision()] if device.precision() != torch.float32 else []
    return [torch.float16, *([torch.bfloat16] if torch.cuda.get_device_capability() >= (8, 0) else [])]


def absent() -> dict[str, list[str]]:
    """By backend of sentence-transformers, the packages that it lacks."""

    def lacks(package: str) -> bool:
        parent = package.partition(".")[0]
        return find_spec(parent) is None or find_spec(package) is None

    missing = {backend: [package for package in needs if lacks(package)] for backend, needs in BACKENDS.items()}
    return {backend: packages for backend, packages in missing.items() if packages}


def rivals(folder: str) -> dict[str, SentenceTransformer]:
    """sentence-transformers in each precision and backend."""
    where, left_out = str(device.device()), absent()
    found = {"float32": SentenceTransformer(folder, device=where)}
    for half in halves():
        found[_name(half)] = SentenceTransformer(folder, device=where, model_kwargs={"dtype": half})
    for backend in (name for name in BACKENDS if name not in left_out):
        found[backend] = SentenceTransformer(folder, device=where, backend=backend)
    return found


def flops(model: SentenceTransformer, tokens: Sequence[np.ndarray]) -> float:
    """Of encoding them; the tables of embeddings are only looked up."""
    transformer = model[0].model
    named = transformer.named_parameters()
    weights = sum(p.numel() for name, p in named if not name.startswith(("embeddings.", "pooler.")))
    lengths = np.asarray([len(ids) for ids in tokens], np.float64)
    wide = transformer.config.num_hidden_layers * transformer.config.hidden_size
    return float(2 * weights * lengths.sum() + 4 * wide * (lengths**2).sum())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def speed(run: Callable[[], np.ndarray], num_tokens: int) -> float:
    """Tokens a second. All end with vectors in the computer's own memory, so that a GPU has nothing left to do."""
    started = time.perf_counter()
    run()
    return num_tokens / (time.perf_counter() - started)


def main() -> None:
    asked = options(__doc__, rounds=3, chunks=0)
    folder, half, kind = hub.find_model(hub.MINILM), device.inference_precision(), device.device().type
    ours, theirs = encoder.load_encoder(folder, dtype=half), rivals(folder)
    for shape in ("even", "mixed"):
        texts = texts_of(asked.chunks or NUM_CHUNKS[kind], shape == "mixed")
        tokens = encoder.tokenize(ours, texts)
        num_tokens = sum(len(ids) for ids in tokens)
        encode = partial(encoder.encode_tokens, ours, autocast=torch.float32)  # the weights have the precision
        ways: dict[str, Callable[[], np.ndarray]] = {
            "quire, from token ids": partial(encode, tokens),
            "quire, from texts": lambda texts=texts, encode=encode: encode(encoder.tokenize(ours, texts)),
        }
        for size in BATCHES[kind]:
            for name, model in theirs.items():
                way = partial(model.encode, texts, batch_size=size, show_progress_bar=False)
                ways[f"sentence-transformers, {name}, batches of {size}"] = way
        vectors = {name: np.asarray(run(), np.float32) for name, run in ways.items()}  # warms each
        exact = vectors[f"sentence-transformers, float32, batches of {BATCHES[kind][0]}"]
        facts = {"num_chunks": len(texts), "num_tokens": num_tokens, "precision": _name(half), "absent": absent()}
        facts["cosines"] = {name: float(embeddings.cosines(found, exact).min()) for name, found in vectors.items()}
        contenders = {name: partial(speed, run, num_tokens) for name, run in ways.items()}
        result = contest(f"encode-{shape}", "tokens", contenders, asked.rounds, **facts)
        if kind == "cuda":
            each, peak = flops(ours, tokens) / num_tokens, device.peak_flops(half)
            speeds = {name: found["speed"]["median"] for name, found in result["contenders"].items()}
            shares = {name: each * speed / peak for name, speed in speeds.items()}
            keep(result | {"flops_per_token": each, "peak_flops": peak, "share_of_peak": shares})
            print(f"      share of {peak / 1e12:,.0f} TFLOP/s: {shares}")


if __name__ == "__main__":
    main()
