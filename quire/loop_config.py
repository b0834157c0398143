"""What the training loop computes: its settings, the budget in steps or tokens, and the learning-rate schedule."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from quire.config import Config
from quire.errors import UserError


class LoopConfig(Config):
    """Settings of the loop. All of it is part of the recipe."""

    max_steps: int | None = Field(default=None, gt=0, description="optimiser steps; the schedule ends here")
    max_tokens: int | None = Field(default=None, gt=0, description="instead of max_steps, for batches of one size")
    learning_rate: float = Field(gt=0)
    head_multiplier: float = Field(
        default=1.0, gt=0, description="learning rate of `head.` parameters, which start anew"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, description="AdamW's; safe because master weights are float32")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=0, ge=0, description="optimiser steps, whatever the accumulation")
    min_learning_rate_share: float = Field(default=0.0, ge=0, lt=1, description="of the peak, where the schedule ends")
    accumulation: int = Field(default=1, gt=0, description="micro-batches per optimiser step")
    clip_norm: float = Field(default=1.0, gt=0)
    eval_every: int = Field(default=100, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    keep_every: int | None = Field(default=None, gt=0, description="publish the weights of every n-th step")
    keep_last: bool = Field(default=False, description="publish the weights of the last step beside the best")
    geometric_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="publish the weights when the metric is below this share of the last time"
    )
    patience: int | None = Field(default=None, gt=0, description="evaluations without improvement before stopping")
    min_delta: float = Field(default=0.0, ge=0)
    ema_smoothing: float | None = Field(
        default=None, gt=0, le=1, description="weight of a new metric in its moving average, which then decides"
    )
    metric: str = "loss"
    higher_is_better: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.max_steps is None) == (self.max_tokens is None):
            raise ValueError("set exactly one of max_steps and max_tokens")
        if self.geometric_ratio is not None and self.higher_is_better:
            raise ValueError("geometric_ratio follows a falling metric: leave it out where higher_is_better")
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps}: the run ends at step {self.max_steps}, before its peak"
            )
        return self

    @property
    def judged_by(self) -> str:
        """Name of the number that decides on the best weights and on stopping: the metric, or its moving average."""
        return self.metric if self.ema_smoothing is None else f"{self.metric}_ema"

    def in_steps(self, tokens_per_step: int) -> Self:
        """The same loop with its budget in optimiser steps. Raises UserError when it does not pay for one."""
        if self.max_tokens is None:
            return self
        steps = self.max_tokens // tokens_per_step
        if steps == 0:
            raise UserError(
                f"loop.max_tokens = {self.max_tokens}: 0 steps, since one takes {tokens_per_step} tokens; raise it, "
                "or make the batch, the sequence or loop.accumulation smaller"
            )
        if self.warmup_steps >= steps:
            raise UserError(
                f"loop.warmup_steps = {self.warmup_steps}: loop.max_tokens = {self.max_tokens} pays for {steps} steps; "
                "lower the warm-up or raise the budget"
            )
        return self.model_copy(update={"max_tokens": None, "max_steps": steps})


def learning_rate_factor(config: LoopConfig, step: int) -> float:
    """Share of the peak learning rate at optimiser step `step` (0-based): linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    factor = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_learning_rate_share + (1.0 - config.min_learning_rate_share) * factor
