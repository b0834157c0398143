"""What the tests of the training loop train: a line, and tasks whose evaluations are given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quire import artifact, device, loop


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to agree to rounding does so in float32; a processor that multiplies bfloat16 would round otherwise."""
    monkeypatch.setattr(device, "precision", lambda: torch.float32)


class Regression:
    """A linear model on data that is a function of the step."""

    mfu_key = "mfu_of_a_line"

    def __init__(self, dropout: float = 0.0, poison: int | None = None):
        torch.manual_seed(3)
        self.module = Net(dropout)
        self.poison = poison

    def batch(self, step: int, micro: int, rank: int, world: int) -> loop.Batch:
        draw = np.random.default_rng([step, micro])
        x = draw.normal(size=(8, 4)).astype(np.float32)
        if step == self.poison:
            x[0, 0] = np.nan
        y = x @ np.asarray([1, -2, 3, 0.5], np.float32)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        return {"x": torch.from_numpy(x[mine]), "y": torch.from_numpy(y[mine])}

    def num_tokens(self, batch: loop.Batch) -> int:
        return len(batch["x"])

    def flops(self, batch: loop.Batch) -> float:
        return 2.0 * len(batch["x"])

    def evaluate(self, rank: int, world: int) -> dict[str, float]:
        batch = self.batch(10_000, 0, 0, 1)
        with torch.no_grad():
            return {"loss": float(self.module(batch)["loss"])}


class Net(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 1), nn.Dropout(dropout)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(self.dropout(batch["x"]))[:, 0] - batch["y"]).square().mean()}


def config(**changes: object) -> loop.LoopConfig:
    values = {
        "max_steps": 20,
        "learning_rate": 0.05,
        "warmup_steps": 3,
        "eval_every": 5,
        "checkpoint_every": 5,
        **changes,
    }
    return loop.LoopConfig(**values)


def draft(folder: Path) -> artifact.Draft:
    return artifact.begin(str(folder), "models", "m", recipe={}, inputs={})


class Killed(Exception):
    pass


def scored(*values: float) -> Regression:
    """A task whose evaluations give these values, one after another."""

    class Scored(Regression):
        scores = iter(values)

        def evaluate(self, rank, world):
            return {"loss": next(self.scores), "curve": [1.0, 2.0]}

        def save(self, folder):
            save_file(self.module.state_dict(), folder / "weights.safetensors")

    return Scored()


def evaluations(state: loop.State, key: str) -> list[float]:
    return [record[key] for record in state.history if key in record]
