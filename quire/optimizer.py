"""The optimiser and its learning rate, as `quire.loop.LoopConfig` says."""

import math
from typing import Any

import torch
from torch import nn

from quire import device
from quire.errors import UserError


def learning_rate_factor(config: Any, step: int) -> float:
    """Share of the peak learning rate at optimiser step `step` (0-based): linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_learning_rate_share + (1.0 - config.min_learning_rate_share) * left


def optimizer_for(module: nn.Module, config: Any) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases, norms and scalars are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    wrong = [name for name, p in named if p.dtype != torch.float32]
    if wrong:  # bf16 weights lose updates smaller than 1/256 of themselves, silently
        raise UserError(f"parameter {wrong[0]} is not float32: master weights must be, autocast does the rest")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((".head." in f".{name}", parameter.ndim >= 2), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "multiplier": config.head_multiplier if is_head else 1.0,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for (is_head, is_matrix), parameters in sorted(groups.items())
    ]
    fused = device.device().type == "cuda"
    return torch.optim.AdamW(settings, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)
