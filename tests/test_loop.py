"""The training loop: resume is exact, workers do not matter, a step is what it says."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
import workers
from looping import Killed, Regression, config, draft, evaluations, float32, scored  # noqa: F401, the fixture float32

from quire import ahead, artifact, checkpoint, device, loop
from quire.errors import UserError


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
