"""Encoding chunks, tokens/s: `quire.encoder` beside sentence-transformers' own `encode`, same model and texts.

    python -m bench.encode [--rounds 3] [--chunks 256]

Two corpora: chunks of 250 tokens each, and a mix of lengths (log-normal around 80 tokens, sigma 1, at most 254).
sentence-transformers is run as it comes (float32, batches of 32) and at its best: with other sizes of batches and,
where the processor has it, in half precision. Ours starts from the token ids that chunks hold, as `pipelines.embed`
does, and from the texts as well. Least cosines to float32 are told beside.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from bench.contest import contest, options
from bench.corpus import corpus
from quire import device, embeddings, encoder, hub, token_chunks

MAX_TOKENS = 250


def texts_of(num_chunks: int, mixed: bool) -> list[str]:
    """Texts of documentation, each cut to a number of tokens."""
    model = SentenceTransformer(hub.find_model(hub.MINILM), device="cpu")
    tokenizer = token_chunks.whole(model.tokenizer.backend_tokenizer)
    whole = "\n".join(corpus(8))[: num_chunks * 4_000]
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


def speed(
    run: Callable[[], np.ndarray], num_tokens: int, exact: np.ndarray, told: dict[str, float], name: str
) -> float:
    """Tokens a second; the least cosine to float32 is left in `told`."""
    started = time.perf_counter()
    vectors = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    told[name] = float(embeddings.cosines(vectors, exact).min())
    return num_tokens / seconds


def main() -> None:
    asked = options(__doc__, rounds=3, chunks=256)
    folder, half = hub.find_model(hub.MINILM), device.inference_precision()
    theirs = SentenceTransformer(folder, device=str(device.device()))
    ours = encoder.load_encoder(folder, dtype=half)
    for shape in ("even", "mixed"):
        texts = texts_of(asked.chunks, shape == "mixed")
        tokens = encoder.tokenize(ours, texts)
        num_tokens, told = sum(len(ids) for ids in tokens), {}
        exact = theirs.encode(texts, convert_to_numpy=True)
        ways = {
            "quire, from token ids": lambda tokens=tokens: encoder.encode_tokens(ours, tokens, autocast=torch.float32),
            "quire, from texts": lambda texts=texts: encoder.encode_tokens(
                ours, encoder.tokenize(ours, texts), autocast=torch.float32
            ),
        }
        ways |= {
            f"sentence-transformers, batches of {size}": partial(theirs.encode, texts, batch_size=size)
            for size in ((32, 8, 16, 64) if not torch.cuda.is_available() else (32, 128, 512))
        }
        if half != torch.float32:
            cast = SentenceTransformer(folder, device=str(device.device()), model_kwargs={"dtype": half})
            ways[f"sentence-transformers, {half}"] = partial(cast.encode, texts)
        contenders = {name: partial(speed, run, num_tokens, exact, told, name) for name, run in ways.items()}
        contest(
            f"encode-{shape}",
            "tokens",
            contenders,
            asked.rounds,
            num_chunks=len(texts),
            num_tokens=num_tokens,
            cosines=told,
        )


if __name__ == "__main__":
    main()
