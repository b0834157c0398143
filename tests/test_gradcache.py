"""GradCache: the gradients of the whole batch, to 1e-6, dropout included, whatever the chunks and the workers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import workers
from torch import nn

from quire import artifact, gradcache, loop
from quire.gather import gather
from quire.losses import supervised_info_nce

N, LONGEST = 10, 6


class Tiny(gradcache.Contrastive):
    """Word vectors with dropout, their mean, a layer with dropout; a parameter behind the embeddings."""

    def __init__(self, chunk_size: int | None = None, dropout: float = 0.3):
        super().__init__()
        torch.manual_seed(1)
        self.words, self.layer = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.chunk_size = chunk_size

    def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = batch["attention_mask"][..., None].float()
        mean = (self.dropout(self.words(batch["input_ids"])) * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(self.dropout(self.layer(mean)), dim=1)

    def loss(self, embeddings: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": supervised_info_nce(gather(embeddings), gather(batch["works"]), self.scale)}


def batch(part: slice = slice(None)) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, LONGEST + 1, (N,), generator=draw)
    whole = {
        "input_ids": torch.randint(1, 50, (N, LONGEST), generator=draw),
        "attention_mask": (torch.arange(LONGEST) < lengths[:, None]).long(),
        "works": torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2, 3]),
    }
    return {key: rows[part] for key, rows in whole.items()}


def naive(module: Tiny, whole: dict[str, torch.Tensor], size: int) -> torch.Tensor:
    """The loss with the graphs of all chunks at once; what chunks have for columns decides how dropout falls."""
    parts = []
    for start in range(0, N, size):
        rows = {key: value[start : start + size] for key, value in whole.items()}
        width = int(rows["attention_mask"].sum(1).max())
        parts.append(module.embed({key: value[:, :width] for key, value in rows.items() if key != "works"}))
    return module.loss(torch.cat(parts), whole)["loss"]


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_gradients_and_loss_are_those_of_the_naive_loss_with_dropout(size: int) -> None:
    expected, module = Tiny(), Tiny(size)
    torch.manual_seed(7)
    loss = naive(expected, batch(), size)
    (0.5 * loss).backward()
    torch.manual_seed(7)
    rest = gradcache.all_but_last(module, batch(), 0.5)
    found = module(rest)["loss"]
    (0.5 * found).backward()
    assert len(rest["input_ids"]) == (N % size or size) and len(rest["works"]) == N
    torch.testing.assert_close(found, loss, rtol=0, atol=1e-6)
    for name, gradient in gradients(expected).items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradients(module)[name], gradient, rtol=0, atol=1e-6, msg=name)
    other = Tiny()  # another draw of dropout is another gradient: the test would see it
    torch.manual_seed(8)
    (0.5 * naive(other, batch(), size)).backward()
    assert (other.layer.weight.grad - module.layer.weight.grad).abs().max() > 1e-3


def test_random_numbers_after_it_are_those_after_one_pass() -> None:
    module = Tiny(4)
    torch.manual_seed(7)
    naive(module, batch(), 4)
    expected = torch.rand(3)
    torch.manual_seed(7)
    module(gradcache.all_but_last(module, batch(), 1.0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [None, N, N + 1])
def test_a_batch_that_memory_holds_is_left_alone(size: int | None) -> None:
    whole = batch()
    assert gradcache.all_but_last(Tiny(size), whole, 1.0) is whole


class Task:
    """One batch, again and again."""

    mfu_key = "mfu"

    def __init__(self, chunk_size: int | None):
        self.module = Tiny(chunk_size, dropout=0.0)

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        return batch(slice(rank * N // world, (rank + 1) * N // world))

    def num_tokens(self, batch: loop.Batch) -> int:
        return int(batch["attention_mask"].sum())

    def flops(self, batch: loop.Batch) -> float:
        return 1.0

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        return {"loss": 0.0}


def trained(folder: Path, chunk_size: int | None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The last weights and the losses of six steps of two micro-batches."""
    task = Task(chunk_size)
    config = loop.LoopConfig(max_steps=6, learning_rate=0.01, accumulation=2, eval_every=99, checkpoint_every=99)
    last = {}

    def keep(record: dict) -> None:
        last.update({name: p.detach().clone() for name, p in task.module.named_parameters()})

    state = loop.train(task, config, artifact.begin(str(folder), "models", "m", recipe={}, inputs={}), keep)
    return last, [record["loss"] for record in state.history if "loss" in record]


def _worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    workers.join(folder, rank, world)
    weights, losses = trained(Path(folder) / "two", 2)  # of 5 texts a worker: two chunks of 2, one of 1
    if rank == 0:
        torch.save({"weights": weights, "losses": losses}, f"{folder}/two.pt")
    dist.barrier()
    workers.leave()


def test_the_loop_trains_alike_with_chunks_and_with_chunks_on_two_workers(tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    whole, losses = trained(tmp_path / "whole", None)
    chunked, losses_chunked = trained(tmp_path / "chunked", 3)
    assert losses[-1] < 0.9 * losses[0]
    assert losses_chunked == pytest.approx(losses, rel=1e-5) and two["losses"] == pytest.approx(losses, rel=1e-5)
    for name, weight in whole.items():
        torch.testing.assert_close(chunked[name], weight, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=name)
