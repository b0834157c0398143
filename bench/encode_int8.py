"""Encoding in 8 bits on a CPU, tokens/s: MiniLM with torch's dynamic quantisation beside float32, same batches.

    python -m bench.encode_int8 [--chunks 256] [--rounds 3]

An experiment, not a way that Quire takes: `torch.ao.quantization.quantize_dynamic` makes every linear layer's weights
int8 (by channel) once and its inputs int8 batch by batch; attention, norms and embeddings stay float32. Each backend
that this torch has for it (x86, fbgemm, onednn) runs beside `quire.encoder` in float32 and sentence-transformers as it
comes. Least and mean cosine to float32 stand in the result: the least must be .995 for a way to be taken.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from bench.contest import contest, options
from bench.encode import texts_of
from quire import embeddings, encoder, hub

BACKENDS = ("x86", "fbgemm", "onednn")


def quantised(folder: str, backend: str) -> SentenceTransformer:
    """The model with int8 linear layers, made for one backend; its weights are packed for that one."""
    torch.backends.quantized.engine = backend
    model = encoder.load_encoder(folder)
    per_channel = torch.ao.quantization.per_channel_dynamic_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch points to torchao, whose int8 is for GPUs first
        model[0].model = torch.ao.quantization.quantize_dynamic(model[0].model, {nn.Linear: per_channel})
    return model


def speed(
    run: Callable[[], np.ndarray],
    backend: str | None,
    num_tokens: int,
    exact: np.ndarray,
    told: dict[str, dict[str, float]],
    name: str,
) -> float:
    """Tokens a second; the cosines to float32 are left in `told`."""
    if backend:
        torch.backends.quantized.engine = backend
    started = time.perf_counter()
    vectors = run()
    seconds = time.perf_counter() - started
    cosines = embeddings.cosines(vectors, exact)
    told[name] = {"min": float(cosines.min()), "mean": float(cosines.mean())}
    return num_tokens / seconds


def main() -> None:
    asked = options(__doc__, chunks=256, rounds=3)
    folder = hub.find_model(hub.MINILM)
    texts = texts_of(asked.chunks, mixed=True)
    plain, theirs = encoder.load_encoder(folder), SentenceTransformer(folder, device="cpu")
    tokens = encoder.tokenize(plain, texts)
    num_tokens, told = sum(len(ids) for ids in tokens), {}
    exact = encoder.encode_tokens(plain, tokens, autocast=torch.float32)
    ways: dict[str, tuple[Callable[[], np.ndarray], str | None]] = {}
    for backend in (name for name in BACKENDS if name in torch.backends.quantized.supported_engines):
        model = quantised(folder, backend)
        run = partial(encoder.encode_tokens, model, tokens, autocast=torch.float32)
        ways[f"int8, {backend}"] = run, backend
    ways["quire, float32"] = partial(encoder.encode_tokens, plain, tokens, autocast=torch.float32), None
    ways["sentence-transformers, float32"] = partial(theirs.encode, texts), None
    contenders = {n: partial(speed, run, backend, num_tokens, exact, told, n) for n, (run, backend) in ways.items()}
    contest(
        "encode-int8", "tokens", contenders, asked.rounds, num_chunks=len(texts), num_tokens=num_tokens, cosines=told
    )
    for name, found in told.items():
        print(f"      {name}: cosine to float32 at least {found['min']:.6f}, mean {found['mean']:.6f}")


if __name__ == "__main__":
    main()
