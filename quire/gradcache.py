"""Contrastive batches beyond memory: GradCache (Gao et al. 2021, arXiv:2101.06983), exact, dropout included.

A loss over all embeddings of a batch needs the graphs of all its texts at once; its gradient those of one chunk at a
time. Embed all chunks without graphs, take the loss's gradient with respect to the embeddings, then embed chunk by
chunk again, under the same random state, and carry that gradient on. Shape letters: N texts, D embedding width.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from quire import device


class Contrastive(nn.Module, ABC):
    """A module whose loss joins the embeddings of all texts of a batch, which are embedded one by one.

    `loss` must not draw random numbers: it is computed twice where `chunk_size` cuts the batch.
    """

    chunk_size: int | None = None  # texts whose graphs the memory holds; None: those of a whole batch

    @abstractmethod
    def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """`input_ids` and `attention_mask` (n, T), padded on the right, to embeddings (n, D) float32."""

    @abstractmethod
    def loss(self, embeddings: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"loss": scalar, **other scalars} from embeddings (N, D) of all texts of this rank and what stands beside."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embeddings = self.embed(batch)
        if "cached" in batch:
            embeddings = torch.cat([batch["cached"], embeddings])
        return self.loss(embeddings, batch)


def all_but_last(module: Contrastive, batch: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Add `scale` times the gradients through all chunks but the last; the batch that the last one is left to.

    `module(rest)["loss"]` is the loss of the whole batch, and its backward pass gives what is still missing: gradients
    through the last chunk, and those of all parameters behind the embeddings. Every parameter thus takes part in one
    ordinary pass at the end, where workers exchange gradients; here they do not (`module` is the one inside DDP).
    """
    size = module.chunk_size
    if size is None or len(batch["input_ids"]) <= size:
        return batch
    chunks = [_chunk(batch, start, size) for start in range(0, len(batch["input_ids"]), size)]
    states, parts = [], []
    # Autocast is entered anew for each pass: it keeps its casts of the weights, also those made without a graph.
    with torch.no_grad(), device.autocast():
        for chunk in chunks:
            states.append(_random_state())
            parts.append(module.embed(chunk))
    embeddings = torch.cat(parts).requires_grad_()
    with device.autocast():
        loss = module.loss(embeddings, batch)["loss"]
    (gradient,) = torch.autograd.grad(loss * scale, embeddings)
    for chunk, state, part in zip(chunks[:-1], states[:-1], gradient.split(size), strict=False):
        _set_random_state(state)
        with device.autocast():
            embedded = module.embed(chunk)
        embedded.backward(part)
    _set_random_state(states[-1])
    return batch | chunks[-1] | {"cached": embeddings.detach()[: -len(parts[-1])]}


def _chunk(batch: dict[str, torch.Tensor], start: int, size: int) -> dict[str, torch.Tensor]:
    """Rows of the batch without the columns where none of them has a token."""
    mask = batch["attention_mask"][start : start + size]
    width = int(mask.sum(1).max())
    return {"input_ids": batch["input_ids"][start : start + size, :width], "attention_mask": mask[:, :width]}


def _random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if device.device().type == "cuda" else None


def _set_random_state(state: tuple[Any, Any]) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
