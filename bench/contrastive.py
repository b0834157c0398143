"""Contrastive training, pairs/s: Quire's loop beside SentenceTransformerTrainer, without and with gradient caching.

    python -m bench.contrastive [--batch 64] [--cached 256] [--chunk 32] [--length 128] [--steps 10] [--rounds 3]

Both train the same all-MiniLM-L6-v2 on the same pairs in the same batches (of `batch` pairs, and of `cached` pairs in
chunks of `chunk` texts) with the same loss: the cross-entropy of each anchor's own text among all second texts, cosines
times 20, which is MultipleNegativesRankingLoss, checked here before anything is timed. AdamW, one learning rate.
sentence-transformers runs as it comes (float32, the model's dropout) and at its best (bf16 where the processor
multiplies it, no dropout, on a GPU torch.compile as well). Timed from the end of step `warmup` on. Needs no Ray.
"""

import argparse
import gc
import math
import tempfile
import time
from functools import partial
from pathlib import Path

import datasets
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import TrainerCallback
from transformers.utils import logging

from bench.contest import contest, options
from bench.corpus import corpus
from quire import artifact, device, encoder, gradcache, hub, loop, packing, token_chunks, training_sets
from quire.loop_config import LoopConfig

SCALE = 20.0
WARMUP = 2


class Ranking(gradcache.Contrastive):
    """MultipleNegativesRankingLoss in Quire's terms: the first half of the rows are anchors, the second their texts."""

    def __init__(self, model: SentenceTransformer, chunk: int | None):
        super().__init__()
        self.model, self.chunk_size = model, chunk

    def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return self.model(inputs)["sentence_embedding"].float()

    def loss(self, embeddings: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        a, b = torch.nn.functional.normalize(embeddings, dim=1).chunk(2)
        return {"loss": torch.nn.functional.cross_entropy(SCALE * a @ b.T, torch.arange(len(a), device=a.device))}


class Pairs:
    """Quire's side: the pairs in order, tokenised ahead of the step that needs them."""

    mfu_key = "mfu"

    def __init__(self, asked: argparse.Namespace, pairs: datasets.Dataset, size: int, chunk: int | None):
        self.pairs, self.size = pairs, size
        self.model = opened(asked, dropout=0.0)
        self.module = Ranking(self.model, chunk)

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        rows = self.pairs[step * self.size : (step + 1) * self.size]
        tokens = encoder.tokenize(self.model, [*rows["anchor"], *rows["positive"]])
        ids, mask = packing.pad(tokens, self.model.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask}

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return 0.0

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        return {"loss": 0.0}

    def save(self, folder: Path) -> None:
        self.model.save(str(folder), create_model_card=False)


class Clock:
    """Pairs a second from the end of step `WARMUP` on."""

    def __init__(self, steps: int, size: int):
        self.last, self.size, self.steps, self.started, self.found = WARMUP + steps, size, 0, math.nan, math.nan

    def tick(self) -> None:
        self.steps += 1
        if self.steps in (WARMUP, self.last) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.steps == WARMUP:
            self.started = time.perf_counter()
        if self.steps == self.last:
            self.found = (self.last - WARMUP) * self.size / (time.perf_counter() - self.started)


def opened(asked: argparse.Namespace, dropout: float | None) -> SentenceTransformer:
    """The model with sequences of `length` tokens, and its own dropout or this one."""
    model = SentenceTransformer(hub.find_model(hub.MINILM), device=str(device.device()))
    model.max_seq_length = asked.length
    encoder.freeze_unused(model[0])
    if dropout is not None:
        training_sets.set_dropout(model[0].model, dropout)
    return model


def pairs_of(asked: argparse.Namespace, count: int) -> datasets.Dataset:
    """Each chunk of documentation with the next one, of `length` tokens at most each."""
    tokenizer = token_chunks.whole(opened(asked, None).tokenizer.backend_tokenizer)
    whole = "\n".join(corpus(1 + 2 * count * asked.length * 6 // 10**6))
    found = token_chunks.chunk_texts([whole], tokenizer, max_tokens=asked.length - 2, overlap=0)
    texts = [whole[a:b] for a, b in zip(found.start.tolist(), found.end.tolist(), strict=True)][: 2 * count]
    return datasets.Dataset.from_dict({"anchor": texts[::2], "positive": texts[1::2]})


def quire_loop(asked: argparse.Namespace, pairs: datasets.Dataset, size: int, chunk: int | None) -> float:
    """Quire's training loop in one process, as a Ray Train worker runs it."""
    clock = Clock(asked.steps, size)
    config = LoopConfig(max_steps=clock.last, learning_rate=2e-5, eval_every=10**9, checkpoint_every=10**9)
    with tempfile.TemporaryDirectory() as folder:
        draft = artifact.begin(folder, "models", "ours", recipe={}, inputs={})
        loop.train(Pairs(asked, pairs, size, chunk), config, draft, lambda record: "loss" in record and clock.tick())
    return clock.found


def theirs(
    asked: argparse.Namespace, pairs: datasets.Dataset, size: int, chunk: int | None, best: bool = False
) -> float:
    """SentenceTransformerTrainer, with the defaults or the best of its settings."""
    logging.set_verbosity_error()
    model = opened(asked, dropout=0.0 if best else None)
    clock = Clock(asked.steps, size)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=clock.last,
                per_device_train_batch_size=size,
                learning_rate=2e-5,
                bf16=best and device.precision() == torch.bfloat16,
                torch_compile=best and torch.cuda.is_available(),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=pairs,
            loss=their_loss(model, chunk),
            callbacks=[Ticks()],
        ).train()
    return clock.found


def their_loss(model: SentenceTransformer, chunk: int | None) -> torch.nn.Module:
    if chunk is None:
        return MultipleNegativesRankingLoss(model, scale=SCALE)
    return CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=chunk)


def check_same_loss(asked: argparse.Namespace, pairs: datasets.Dataset, size: int, chunk: int | None) -> None:
    """Raise AssertionError when the two sides do not compute one loss on their first batch."""
    task = Pairs(asked, pairs, size, None)
    batch = {key: tensor.to(device.device()) for key, tensor in task.batch(0, 0, 0, 1).items()}
    rows = pairs[:size]
    features = [task.model.preprocess(rows[side]) for side in ("anchor", "positive")]
    features = [{key: v.to(device.device()) for key, v in f.items() if torch.is_tensor(v)} for f in features]
    task.model.eval()
    with torch.no_grad():
        ours, other = task.module(batch)["loss"], their_loss(task.model, chunk)(features, None)
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def main() -> None:
    asked = options(__doc__, batch=64, cached=256, chunk=32, length=128, steps=10, rounds=3)
    pairs = pairs_of(asked, (WARMUP + asked.steps) * max(asked.batch, asked.cached))

    def timed(run, *arguments, **settings) -> float:
        gc.collect()
        torch.cuda.empty_cache()
        return run(asked, pairs, *arguments, **settings)

    for name, size, chunk in (("contrastive", asked.batch, None), ("contrastive-cached", asked.cached, asked.chunk)):
        check_same_loss(asked, pairs, size, chunk)
        contenders = {
            "quire": partial(timed, quire_loop, size, chunk),
            "sentence-transformers": partial(timed, theirs, size, chunk),
            "sentence-transformers, best": partial(timed, theirs, size, chunk, best=True),
        }
        facts = {"batch": size, "chunk": chunk, "length": asked.length}
        contest(name, "pairs", contenders, asked.rounds, precision=str(device.precision()), **facts)


if __name__ == "__main__":
    main()
