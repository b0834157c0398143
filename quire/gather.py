"""Rows of all ranks on every rank, with gradients, so that a loss sees the whole global batch."""

from typing import Any

import torch
import torch.distributed as dist


class Gather(torch.autograd.Function):
    """Rows of all ranks in rank order, with gradients: each rank's slice receives the sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may use it elsewhere
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(B / world, ...) to (B, ...); every rank must have as many."""
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    return rows if alone else Gather.apply(rows)
