"""Training tokens a second of `trainers.lm` beside the Hugging Face Trainer and a nanoGPT-style loop.

    python -m bench.lm [--preset micro] [--batch 32] [--length 128] [--steps 30] [--rounds 3]     # on a CPU
    python -m bench.lm --preset pythia-70m --batch 64 --length 1024 --steps 50                    # on a GPU

All three train the same model from the same random weights on windows of the same token store, with the same batch,
optimiser, schedule, clipping and precision (bf16 autocast where the processor multiplies it, else float32). Each is
timed by the clock on the wall from the end of its first `warmup` steps to the end of its last one. Ours logs every
step to Weights & Biases offline, as a user's run does, and its waiting for data is kept as `data_share`; the other two
report to nobody. `--batch` windows of `--length` tokens are one step: on a GPU as many as fill it. The MFU of all three
counts 6 N + 12 L d T FLOPs a token, N without the input embedding. Needs no Ray.
"""

import argparse
import gc
import math
import tempfile
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from bench.contest import contest
from quire import artifact, device, lm, loop
from quire.loop_config import learning_rate_factor
from quire.tokens import TokenStore, write_store
from trainers.fit import tracking
from trainers.lm import LmConfig, LmLoop, LmTask

VOCABULARY = {"micro": 4_096, "pythia-70m": 50_277}


def make_store(root: str, vocab_size: int) -> None:
    """Random ids in documents of 200 to 2,000: what they say makes no difference to speed."""
    draw = np.random.default_rng(0)
    counts = {"train": 2_000, "validation": 8, "test": 8}
    documents = (
        (f"{split}-{i}", "any", ["any"], split, draw.integers(0, vocab_size, int(draw.integers(200, 2_000))))
        for split, count in counts.items()
        for i in range(count)
    )
    draft = artifact.begin(root, "tokens", "bench", recipe={"seed": 0, "vocab_size": vocab_size}, inputs={})
    with draft.storage.local_folder(draft.folder) as folder:
        write_store(folder, documents, vocab_size)
    draft.publish()


class Clock:
    """Tokens a second from the end of step `warmup` on."""

    def __init__(self, asked: argparse.Namespace):
        self.asked, self.steps, self.started = asked, 0, math.nan

    def tick(self) -> None:
        self.steps += 1
        if self.steps == self.asked.warmup:
            self._wait()
            self.started = time.perf_counter()

    def speed(self) -> float:
        self._wait()
        seconds = time.perf_counter() - self.started
        return (self.steps - self.asked.warmup) * self.asked.batch * self.asked.length / seconds

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def optimisation(asked: argparse.Namespace) -> LmLoop:
    """The settings that all three use."""
    return LmLoop(
        max_steps=asked.warmup + asked.steps,
        learning_rate=1e-3,
        weight_decay=0.1,
        schedule="cosine",
        warmup_steps=5,
        eval_every=10**9,
        checkpoint_every=10**9,
    )


def quire_loop(asked: argparse.Namespace, root: str, waits: list[float]) -> float:
    """`trainers.lm` in one process, as a Ray Train worker runs it, with its log of every step.

    Adds to `waits` the share of the time after the warm-up that was spent waiting for data.
    """
    settings = LmConfig(
        name="ours",
        tokens="bench",
        model={"preset": asked.preset},
        sequence_length=asked.length,
        batch_size=asked.batch,
        num_eval_windows=1,
        loop=optimisation(asked),
        runtime={"root": root, "compile": torch.cuda.is_available()},
    )
    clock = Clock(asked)
    found = math.nan
    seconds = waited = 0.0

    def log(record: dict) -> None:
        nonlocal found, seconds, waited
        track(record)
        if "loss" in record:
            clock.tick()
            if clock.steps > asked.warmup:
                seconds += (took := asked.batch * asked.length / record["tokens_per_second"])
                waited += took * record["data_share"]
            if clock.steps == asked.warmup + asked.steps:
                found = clock.speed()

    with tempfile.TemporaryDirectory() as elsewhere:
        draft = artifact.begin(elsewhere, "models", f"ours-{len(waits)}", recipe={}, inputs={})
        track, finish = tracking(settings, draft, rank=0)
        loop.train(LmTask(settings), settings.loop, draft, log)
        finish()
    waits.append(waited / seconds)
    return found


def nanogpt_loop(asked: argparse.Namespace, root: str) -> float:
    """A loop by hand as nanoGPT's train.py writes it: random crops of a memory-map, one after another, and no more."""
    store, model, config = opened(asked, root)
    place, cuda = device.device(), torch.cuda.is_available()
    step_model = torch.compile(model) if cuda else model  # its own default
    tokens = store.tokens
    optimizer = torch.optim.AdamW(grouped(model), lr=config.learning_rate, betas=config.betas, fused=cuda)

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(tokens) - asked.length - 1, (asked.batch,))
        x = torch.stack([torch.from_numpy(tokens[i : i + asked.length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + asked.length].astype(np.int64)) for i in starts])
        if cuda:
            return x.pin_memory().to(place, non_blocking=True), y.pin_memory().to(place, non_blocking=True)
        return x, y

    clock = Clock(asked)
    x, y = get_batch()
    for step in range(config.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(config, step)
        with device.autocast():
            logits = step_model(input_ids=x, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
        x, y = get_batch()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()  # its log interval
        clock.tick()
    return clock.speed()


def hugging_face(asked: argparse.Namespace, root: str, compiled: bool = False) -> float:
    """`transformers.Trainer` with its defaults on a map-style data set of crops."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    store, model, config = opened(asked, root)

    class Crops(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return config.max_steps * asked.batch

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            start = int(np.random.default_rng(i).integers(len(store.tokens) - asked.length))
            ids = torch.from_numpy(store.tokens[start : start + asked.length].astype(np.int64))
            return {"input_ids": ids, "labels": ids}

    clock = Clock(asked)

    class Ticks(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as elsewhere:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=elsewhere,
                max_steps=config.max_steps,
                per_device_train_batch_size=asked.batch,
                learning_rate=config.learning_rate,
                adam_beta2=config.betas[1],
                weight_decay=config.weight_decay,
                max_grad_norm=config.clip_norm,
                lr_scheduler_type="cosine",
                warmup_steps=config.warmup_steps,
                bf16=device.precision() == torch.bfloat16,
                torch_compile=compiled,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Crops(),
            callbacks=[Ticks()],
        ).train()
    return clock.speed()


def opened(asked: argparse.Namespace, root: str) -> tuple[TokenStore, nn.Module, LmLoop]:
    """The store, a model with the same random weights as ours, and the settings."""
    store = TokenStore.open(artifact.open_artifact(root, "tokens", "bench"))
    model = lm.build_lm(lm.LmModel(preset=asked.preset), store.vocab_size, 0).to(device.device()).train()
    return store, model, optimisation(asked)


def grouped(model: nn.Module) -> list[dict]:
    """Matrices decayed, the rest not, as nanoGPT does."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="micro", choices=sorted(VOCABULARY))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        make_store(root, VOCABULARY[asked.preset])
        _, model, _ = opened(asked, root)
        flops = lm.flops_per_token(model, asked.length)

        def timed(run) -> float:
            gc.collect()
            torch.cuda.empty_cache()
            return run(asked, root)

        waits: list[float] = []
        ours = partial(quire_loop, waits=waits)
        contenders = {
            "quire trainers.lm, W&B offline": ours,
            "nanoGPT-style loop": nanogpt_loop,
            "HF Trainer": hugging_face,
        }
        if torch.cuda.is_available():
            contenders["HF Trainer, torch_compile"] = partial(hugging_face, compiled=True)
        result = contest(
            f"lm-{asked.preset}",
            "tokens",
            {name: partial(timed, run) for name, run in contenders.items()},
            asked.rounds,
            batch=asked.batch,
            length=asked.length,
            data_share=waits,  # of ours, one a round
            precision=str(device.precision()).removeprefix("torch."),
            flops_per_token_without_embeddings=flops,
            peak_flops=device.peak_flops(device.precision()),
        )
        for name, found in result["contenders"].items():
            mfu = found["speed"]["median"] * flops / result["peak_flops"]
            print(f"      MFU without embeddings {mfu:.1%}  {name}")
        print(f"      waiting for data {max(waits):.2%} of the time at most, in {len(waits)} rounds of ours")


if __name__ == "__main__":
    main()
