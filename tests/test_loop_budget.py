"""How long training goes on, at which rate, and which weights it keeps."""

from pathlib import Path

import pytest
import torch
from looping import Killed, Regression, config, draft, evaluations, float32, scored  # noqa: F401, the fixture float32
from safetensors.torch import load_file

from quire import artifact, loop
from quire.errors import UserError


def test_the_schedule_warms_up_then_falls_to_zero() -> None:
    made = config(max_steps=10, warmup_steps=4)
    factors = [loop.learning_rate_factor(made, step) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[-1] == pytest.approx(1 / 6)


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
