"""A loss, gradient or evaluation that is no number stops the training and says where it comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
import workers
from looping import Regression, config, draft, float32, scored  # noqa: F401, the fixture float32
from safetensors.torch import load_file
from torch import nn

from quire import artifact, loop
from quire.errors import UserError


class Described(Regression):
    """One that has NaN in the second micro-batch of step 7, in the half of the second of two workers."""

    def batch(self, step, micro, rank, world):
        made = Regression.batch(self, step, micro, rank, world)
        if (step, micro, rank) == (7, 1, world - 1):
            made["x"][0, 0] = np.nan
        return made

    def describe(self, step, micro, rank, world):
        return [f"row {step}.{micro}.{rank}.{row}" for row in range(8 // world)]


def bad_batch(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Names of what is kept of the bad batches, what is said of their rows, and the lines of the error."""
    made = draft(folder)
    with pytest.raises(loop.NonFinite) as caught:
        loop.train(Described(), config(accumulation=3), made, log=lambda record: None)
    work = f"{made.folder}/{artifact.WORK}"
    names = [name for name in made.storage.files(work) if name.startswith("nonfinite")]
    rows = [row for name in names if name.endswith(".json") for row in made.storage.read_json(f"{work}/{name}")]
    return names, rows, str(caught.value).splitlines()


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_its_batch_and_its_rows(tmp_path: Path) -> None:
    names, rows, lines = bad_batch(tmp_path)
    kept = "nonfinite-step-00000007-micro-1-rank-0"
    assert names == [f"{kept}.json", f"{kept}.safetensors"]
    assert rows == [f"row 7.1.0.{row}" for row in range(8)]
    assert load_file(tmp_path / f"models/m/{artifact.WORK}/{kept}.safetensors")["x"].isnan().sum() == 1
    assert lines[0] == "step 7: loss nan, gradient norm nan" and len(lines) == 2
    assert f"micro-batch 1 of worker 0, loss nan: {tmp_path}" in lines[1] and "made from row 7.1.0.0, " in lines[1]


def test_a_gradient_that_is_not_a_number_names_every_batch_of_its_step(tmp_path: Path) -> None:
    class Steep(Regression):
        """Its loss is 0 and its gradient infinite, as that of a square root at 0."""

        def batch(self, step, micro, rank, world):
            made = Regression.batch(self, step, micro, rank, world)
            return {key: value * (step != 4) for key, value in made.items()}

    task = Steep()
    task.module.forward = lambda batch: {"loss": task.module.linear(batch["x"])[:, 0].sub(batch["y"]).norm().sqrt()}
    nn.init.zeros_(task.module.linear.bias).requires_grad_(False)
    with pytest.raises(
        loop.NonFinite, match="step 4: loss 0.0, gradient norm nan\n.*micro-batch 0 of worker 0, loss 0.0"
    ):
        loop.train(task, config(), draft(tmp_path), log=lambda record: None)


def test_an_embedding_that_no_batch_has_met_stays_finite() -> None:
    table = nn.Embedding(4, 2)
    optimizer = loop.optimizer_for(table, config())
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    assert table.weight.isfinite().all()


def test_weights_below_float32_are_refused() -> None:
    with pytest.raises(UserError, match="not float32"):
        loop.optimizer_for(Regression().module.to(torch.bfloat16), config())


def test_an_evaluation_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    task = scored(3.0, float("inf"), 1.0)
    with pytest.raises(loop.NonFinite, match="step 5: the evaluation's loss is inf"):
        loop.train(task, config(max_steps=100), draft(tmp_path), log=lambda record: None)


def test_an_evaluation_that_is_not_a_number_names_and_keeps_what_it_read(tmp_path: Path) -> None:
    class Overflown(Regression):
        def evaluate(self, rank, world):
            return {"loss": float("nan"), "loss_sea": float("inf"), "loss_war": 1.0}

        def bad_evaluation(self, rank, world):
            return {"x": torch.ones(9, 2)}, [f"sea d{row}" for row in range(9)]

    with pytest.raises(loop.NonFinite) as caught:
        loop.train(Overflown(), config(), draft(tmp_path), log=lambda record: None)
    lines = str(caught.value).splitlines()
    kept = tmp_path / f"models/m/{artifact.WORK}/nonfinite-step-00000000-evaluation"
    assert lines[0] == "step 0: the evaluation's loss is nan; lower loop.learning_rate"
    assert lines[1].endswith(": loss_sea") and lines[2].startswith(f"  {kept}.safetensors, made from sea d0, sea d1, ")
    assert lines[2].endswith(" and 1 more")
    assert json.loads(kept.with_suffix(".json").read_text()) == [f"sea d{row}" for row in range(9)]
    assert load_file(kept.with_suffix(".safetensors"))["x"].shape == (9, 2)


def _ddp_bad_batch(rank: int, world: int, folder: str) -> None:
    workers.join(folder, rank, world)
    found = bad_batch(Path(folder) / "run")
    Path(folder, f"told-{rank}.json").write_text(json.dumps(found))
    workers.leave()


@pytest.mark.ray
def test_all_workers_name_the_one_whose_batch_is_bad(tmp_path: Path) -> None:
    multiprocessing.spawn(_ddp_bad_batch, args=(2, str(tmp_path)), nprocs=2)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0][2] == told[1][2] and "micro-batch 1 of worker 1, loss nan" in told[0][2][1]
    kept = "nonfinite-step-00000007-micro-1-rank-1"
    assert told[1][:2] == [[f"{kept}.json", f"{kept}.safetensors"], [f"row 7.1.1.{row}" for row in range(4)]]
