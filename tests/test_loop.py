"""The training loop: resume is exact, workers do not matter, bad numbers stop it."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
import workers
from safetensors.torch import load_file, save_file
from torch import nn

from quire import ahead, artifact, checkpoint, device, loop
from quire.errors import UserError


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


def test_a_run_killed_at_any_step_resumes_to_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole = Regression(dropout=0.3)
    expected = loop.train(whole, config(), draft(tmp_path / "whole"), log=lambda record: None)

    def die(record: dict) -> None:
        if record["step"] == 13 and "loss" in record:
            raise Killed

    with pytest.raises(Killed):
        loop.train(Regression(dropout=0.3), config(), draft(tmp_path / "cut"), log=die)
    resumed = Regression(dropout=0.3)
    state = loop.train(resumed, config(), draft(tmp_path / "cut"), log=lambda record: None)
    assert state.history == expected.history
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.module.state_dict().values(), resumed.module.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    def begun(seed: int) -> artifact.Draft:
        return artifact.begin(str(tmp_path), "models", "m", recipe={"loop": {"seed": seed}}, inputs={})

    def die(record: dict) -> None:
        if record["step"] == 11:
            raise Killed

    with pytest.raises(Killed):
        loop.train(Regression(), config(), begun(0), log=die)
    with pytest.raises(UserError, match="loop.seed: 0 there, 1 asked for"):
        begun(1)
    other = replace(begun(0), fingerprint="f" * 64)  # as if the checkpoints of one run lay in the folder of another
    with pytest.raises(UserError, match="checkpoint-00000010 is of another recipe .* this run's is ffffffffffff"):
        loop.train(Regression(), config(seed=1), other, log=lambda record: None)
    assert loop.train(Regression(), config(), begun(0), log=lambda record: None).step == 20


def test_a_checkpoint_without_a_fingerprint_is_refused(tmp_path: Path) -> None:
    made = draft(tmp_path)
    loop.train(Regression(), config(), made, log=lambda record: None)
    name = f"{made.folder}/{artifact.WORK}/checkpoint-00000020/state.json"
    state = made.storage.read_json(name)
    made.storage.write_json(name, {key: value for key, value in state.items() if key != "fingerprint"})
    with pytest.raises(UserError, match=r"checkpoint-00000020 .* \(fingerprint none, .* choose another name="):
        loop.train(Regression(), config(), made, log=lambda record: None)


def test_a_checkpoint_cut_off_while_writing_is_passed_over(tmp_path: Path) -> None:
    made = draft(tmp_path)
    loop.train(Regression(), config(), made, log=lambda record: None)
    made.storage.write_bytes(f"{made.folder}/{artifact.WORK}/checkpoint-00000099/state.safetensors", b"cut")
    task = Regression()
    state = checkpoint.load_latest(made, task.module, loop.optimizer_for(task.module, config()), loop.State)
    assert state.step == 20


def test_accumulating_two_micro_batches_counts_both(tmp_path: Path) -> None:
    class Halves(Regression):
        def batch(self, step, micro, rank, world):
            whole = Regression.batch(self, step, 0, 0, 1)
            return {key: value[micro * 4 : micro * 4 + 4] for key, value in whole.items()}

    class Whole(Regression):
        def batch(self, step, micro, rank, world):
            return Regression.batch(self, step, 0, 0, 1)

    a, b = Halves(), Whole()
    loop.train(a, config(accumulation=2), draft(tmp_path / "a"), log=lambda record: None)
    loop.train(b, config(), draft(tmp_path / "b"), log=lambda record: None)
    torch.testing.assert_close(a.module.linear.weight, b.module.linear.weight)


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


def test_a_gradient_is_clipped_to_its_norm_before_the_step(tmp_path: Path) -> None:
    task = Regression()
    before = task.module.linear.weight.detach().clone()
    loss = task.module(task.batch(0, 0, 0, 1))["loss"]
    whole = torch.autograd.grad(loss, list(task.module.parameters()))
    norm = torch.cat([g.ravel() for g in whole]).norm()
    after = []

    def log(record: dict) -> None:
        if "grad_norm" in record:
            after.append((record["grad_norm"], task.module.linear.weight.detach().clone()))

    # With eps far above the gradient AdamW's first step is in proportion to it.
    made = config(max_steps=1, warmup_steps=0, clip_norm=0.01, eps=1.0, weight_decay=0.0)
    loop.train(task, made, draft(tmp_path), log=log)
    clipped = whole[0] * 0.01 / norm
    torch.testing.assert_close(after[0][1], before - made.learning_rate * clipped / (clipped.abs() + 1.0))
    assert after[0][0] == pytest.approx(float(norm)) and norm > 1  # the norm that is told is the one before


def test_an_embedding_that_no_batch_has_met_stays_finite() -> None:
    table = nn.Embedding(4, 2)
    optimizer = loop.optimizer_for(table, config())
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    assert table.weight.isfinite().all()


def test_weights_below_float32_are_refused() -> None:
    with pytest.raises(UserError, match="not float32"):
        loop.optimizer_for(Regression().module.to(torch.bfloat16), config())


def test_training_stops_early_when_nothing_improves_and_keeps_the_best(tmp_path: Path) -> None:
    class Worse(Regression):
        scores = iter([1.0, 0.5, 0.9, 0.8, 0.7, 0.6])

        def evaluate(self, rank, world):
            value = next(self.scores)
            if value == 0.5:
                self.at_best = self.module.linear.weight.detach().clone()
            return {"loss": value}

    task = Worse()
    state = loop.train(task, config(patience=2, max_steps=50), draft(tmp_path), log=lambda record: None)
    assert (state.step, state.best, state.best_step) == (15, 0.5, 5)
    assert torch.equal(task.module.linear.weight, task.at_best)


def test_the_schedule_warms_up_then_falls_to_zero() -> None:
    made = config(max_steps=10, warmup_steps=4)
    factors = [loop.learning_rate_factor(made, step) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[-1] == pytest.approx(1 / 6)


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


def test_the_schedule_ends_at_its_floor() -> None:
    made = config(max_steps=10, warmup_steps=0, schedule="cosine", min_learning_rate_share=0.1)
    factors = [loop.learning_rate_factor(made, step) for step in range(11)]
    assert factors[0] == 1.0 and factors[5] == pytest.approx(0.55) and factors[10] == pytest.approx(0.1)


def test_warm_up_counts_optimiser_steps_whatever_the_accumulation(tmp_path: Path) -> None:
    made = config(accumulation=4, warmup_steps=5, schedule="constant", max_steps=8)
    state = loop.train(Regression(), made, draft(tmp_path), log=lambda record: None)
    peak = made.learning_rate
    assert evaluations(state, "learning_rate") == pytest.approx([peak * f for f in (0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1)])


def test_a_token_budget_is_paid_in_whole_steps() -> None:
    made = config(max_steps=None, max_tokens=1_000, warmup_steps=0)
    assert made.in_steps(300).max_steps == 3
    with pytest.raises(UserError, match="loop.max_tokens = 1000: 0 steps, since one takes 1001 tokens"):
        made.in_steps(1_001)
    with pytest.raises(UserError, match="loop.warmup_steps = 3: loop.max_tokens = 1000 pays for 3 steps"):
        config(max_steps=None, max_tokens=1_000, warmup_steps=3).in_steps(300)


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


def test_a_warmup_that_outlasts_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps = 9: the run ends at step 9, before its peak"):
        config(max_steps=9, warmup_steps=9)


@pytest.mark.parametrize("budget", [{"max_steps": 3, "max_tokens": 3}, {"max_steps": None}])
def test_exactly_one_budget_is_set(budget: dict) -> None:
    with pytest.raises(ValueError, match="exactly one of max_steps and max_tokens"):
        config(**budget)


def test_a_token_budget_that_no_one_turned_into_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loop.max_tokens"):
        loop.train(Regression(), config(max_steps=None, max_tokens=10), draft(tmp_path), log=lambda record: None)


def test_the_moving_average_follows_the_metric_up_again_and_stops_the_run(tmp_path: Path) -> None:
    task = scored(3.0, 2.9, 2.8, *[3.2] * 30)  # an average that only ever meets the best value sticks at 2.995
    made = config(ema_smoothing=0.2, patience=5, max_steps=100)
    state = loop.train(task, made, draft(tmp_path), log=lambda record: None)
    averages = evaluations(state, "eval_loss_ema")
    assert averages[:4] == pytest.approx([3.0, 2.98, 2.944, 2.9952])
    assert averages[-1] > 3.09 and state.best == pytest.approx(2.944) and state.best_step == 10 and state.stopped


def test_the_best_weights_are_those_of_the_best_step_even_where_a_killed_run_had_gone_on_to_better_ones(
    tmp_path: Path,
) -> None:
    at_ten = {}
    task = scored(5.0, 4.0, 3.0, 2.0)
    made = config(max_steps=40, checkpoint_every=10)

    def die(record: dict) -> None:
        if record["step"] == 10 and "eval_loss" in record:
            at_ten.update({name: tensor.clone() for name, tensor in task.module.state_dict().items()})
        if record["step"] == 17:
            raise Killed

    with pytest.raises(Killed):
        loop.train(task, made, draft(tmp_path), log=die)
    work = tmp_path / "models" / "m" / artifact.WORK
    assert sorted(file.name for file in work.glob("best-*")) == [f"best-000000{step}.safetensors" for step in (10, 15)]
    resumed = scored(*[9.0] * 9)  # on other processors, say, it does not get there again
    state = loop.train(resumed, made, draft(tmp_path), log=lambda record: None)
    assert state.best_step == 10 and [file.name for file in work.glob("best-*")] == ["best-00000010.safetensors"]
    torch.testing.assert_close(resumed.module.state_dict(), at_ten, rtol=0, atol=0)
    (work / "best-00000010.safetensors").unlink()
    with pytest.raises(UserError, match=r"best-00000010.safetensors is missing, .* choose another name="):
        loop.train(resumed, made, draft(tmp_path), log=lambda record: None)


def test_a_gain_below_min_delta_is_none(tmp_path: Path) -> None:
    small = scored(1.0, *(1.0 - 0.04 * i for i in range(1, 30)))
    state = loop.train(small, config(min_delta=0.1, patience=3, max_steps=50), draft(tmp_path / "a"), lambda r: None)
    assert not state.stopped and state.best == pytest.approx(0.64)  # every third evaluation gains .12 on the best
    flat = scored(1.0, *(1.0 - 0.01 * i for i in range(1, 30)))
    state = loop.train(flat, config(min_delta=0.1, patience=2, max_steps=50), draft(tmp_path / "b"), lambda r: None)
    assert state.stopped and (state.step, state.best_step) == (10, 0)


def test_weights_are_kept_at_every_nth_step_at_falls_of_the_loss_and_at_the_end(tmp_path: Path) -> None:
    task = scored(1.0, 0.97, 0.94, 0.90, 0.80)  # below .95 of the last kept: 1, .94, then not .90, then .80
    made = config(geometric_ratio=0.95, keep_every=8, keep_last=True, max_steps=19)
    loop.train(task, made, draft(tmp_path), log=lambda record: None)
    kept = sorted(path.name for path in (tmp_path / "models" / "m" / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (0, 8, 10, 16, 19)]
    last = load_file(tmp_path / "models" / "m" / "checkpoints" / "step-00000016" / "weights.safetensors")
    assert not torch.equal(last["linear.weight"], task.module.linear.weight)


def test_every_step_tells_its_norms_speed_and_wait_and_the_history_holds_no_clock(tmp_path: Path) -> None:
    told = []
    state = loop.train(scored(*[1.0] * 9), config(max_steps=4), draft(tmp_path), log=told.append)
    steps = [record for record in told if "loss" in record]
    assert len(steps) == 4
    for record in steps:
        assert record["grad_norm"] > 0 and record["parameter_norm"] > 0 and record["tokens_per_second"] > 0
        assert 0 <= record["data_share"] <= 1 and "mfu_of_a_line" in record
    assert not any("tokens_per_second" in record or "data_share" in record for record in state.history)
    assert evaluations(state, "eval_curve") == [[1.0, 2.0]] * 2


def test_the_mfu_is_the_flops_a_second_over_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "peak_flops", lambda dtype: 1e3)
    assert device.utilisation(flops=500.0, seconds=2.0) == 0.25
    told: list[dict] = []
    loop.train(Regression(), config(max_steps=4), draft(tmp_path), log=told.append)
    for record in (record for record in told if "loss" in record):  # 2 FLOPs a token
        assert record["mfu_of_a_line"] == pytest.approx(record["tokens_per_second"] * 2.0 / 1e3)


def test_batches_made_ahead_come_in_order_and_an_error_comes_at_its_place() -> None:
    def make(number: int) -> int:
        if number == 6:
            raise ValueError("six")
        return number * number

    with ahead.Ahead(make, start=2, stop=9, depth=3) as batches:
        assert [batches.next() for _ in range(4)] == [4, 9, 16, 25]
        with pytest.raises(ValueError, match="six"):
            batches.next()
        assert [batches.next(), batches.next()] == [49, 64]


def test_the_thread_of_the_batches_begins_on_the_gpu_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = threading.local()
    monkeypatch.setattr(device, "for_threads", lambda: lambda: setattr(place, "gpu", 1))

    class Placed(Regression):
        def batch(self, step, micro, rank, world):
            assert step == 10_000 or place.gpu == 1  # 10,000 is the evaluation's, in the loop's own thread
            return super().batch(step, micro, rank, world)

    assert loop.train(Placed(), config(max_steps=4), draft(tmp_path), log=lambda record: None).step == 4


def _ddp_worker(rank: int, world: int, folder: str) -> None:
    workers.join(folder, rank, world)
    device.precision, device.peak_flops = (lambda: torch.float32), (lambda dtype: 1e3)
    told: list[dict] = []
    state = loop.train(Regression(), config(), draft(Path(folder) / "run"), log=told.append)
    facts = {"steps": [record for record in told if "loss" in record], "flops": state.flops, "tokens": state.tokens}
    Path(folder, f"facts-{rank}.json").write_text(json.dumps(facts))
    workers.leave()


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


@pytest.mark.ray
def test_two_workers_equal_one_with_the_global_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(_ddp_worker, args=(2, str(tmp_path)), nprocs=2)
    alone = Regression()
    expected = loop.train(alone, config(), draft(tmp_path / "alone"), log=lambda record: None)
    both = Regression()
    checkpoint.load_best(draft(tmp_path / "run"), both.module, 20)
    state = draft(tmp_path / "run").storage.read_json(f"models/m/{artifact.WORK}/checkpoint-00000020/state.json")
    torch.testing.assert_close(alone.module.linear.weight, both.module.linear.weight)
    assert [r.get("loss") for r in state["history"]] == pytest.approx([r.get("loss") for r in expected.history])
    facts = json.loads((tmp_path / "facts-0.json").read_text())
    assert facts["tokens"] == 20 * 8 and facts["flops"] == 20 * 4 * 2.0  # of all workers; of the half of one
    for record in facts["steps"]:  # 2 FLOPs a token, over the peak of two devices
        assert record["mfu_of_a_line"] == pytest.approx(record["tokens_per_second"] * 2.0 / (2 * 1e3))
