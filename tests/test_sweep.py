"""Sweeps on a local Ray: failures named, halving, kills, and what must never be mixed."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_tokens

from quire import artifact
from quire.artifact import MANIFEST, open_artifact
from quire.config import to_toml
from quire.errors import UserError
from quire.storage import Storage

pytestmark = pytest.mark.ray
LOOP = {"max_steps": 12, "learning_rate": 0.01, "eval_every": 6, "checkpoint_every": 6}


@pytest.fixture(scope="module")
def ray_with_dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Halving needs the dashboard: Ray frees the places of stopped trials through it."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=True,
        dashboard_port=0,
        log_to_driver=False,
        _temp_dir=str(tmp_path_factory.mktemp("r", numbered=True)),
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweeps")
    tiny_tokens.token_store(str(folder), 64)
    return str(folder)


MODEL = {"layers": 1, "width": 16, "heads": 2, "mlp_width": 32, "max_positions": 64}


def experiment(root: str, model: dict, **loop: object) -> str:
    from trainers.lm import CONFIG

    values = {
        "name": "base",
        "tokens": "tiny",
        "model": model,
        "sequence_length": 16,
        "batch_size": 8,
        "num_eval_windows": 4,
        "loop": {**LOOP, **loop},
        "runtime": {"wandb": "disabled"},
    }
    file = Path(root) / "lm.toml"
    file.write_text(to_toml(CONFIG.model_validate_json(json.dumps(values))))
    return str(file)


def settings(root: str, **changes: object):
    from tune.sweep import CONFIG

    file = experiment(root, changes.pop("model", MODEL), **changes.pop("loop", {}))
    values = {"trainer": "trainers.lm", "experiment": file, "runtime": {"root": root}, **changes}
    return CONFIG.model_validate_json(json.dumps(values))


def sweep(root: str, **changes: object):
    from tune.sweep import run

    return run(settings(root, **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"grid": {"k": [1, 9]}}, "k = 9: there are 4 categories"),
        ({"grid": {"kk": [1]}}, "kk: unknown key"),
        ({"grid": {"k": [3]}, "set": {"distinct_tokens": 400}}, "distinct_tokens = 400: does not divide by k = 3"),
        ({"grid": {"loop.max_tokens": [100]}, "set": {"loop": {"max_steps": 5}}}, "exactly one"),
        ({"grid": {"loop.learning_rate": [0.0012341, 0.0012342]}}, "two trials would be called"),
    ],
)
def test_a_mistake_in_any_trial_shows_before_the_first_one_starts(root: str, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        sweep(root, name="wrong", **changes)
    assert not (Path(root) / "sweeps" / "wrong").exists() and not list(Path(root).glob("models/wrong*"))


def test_the_cost_is_told_in_tokens_before_anything_runs(root: str) -> None:
    from tune.sweep import announce, configs

    asked = settings(root, name="cost", grid={"k": [1, 2], "batch_size": [8, 16]})
    line = announce(asked, configs(asked), set())
    least = 12 * 8 * 16
    assert f"4 trials of trainers.lm over k, batch_size: {least:,} to {2 * least:,} tokens each" in line
    assert f"{6 * least:,} in all" in line
    assert f"2 are done, {4 * least:,} tokens to go" in announce(
        asked, configs(asked), {"cost-k1-batch_size8", "cost-k2-batch_size8"}
    )


def test_as_many_trials_at_once_as_the_cluster_holds() -> None:
    from tune.trials import SweepRuntime, places

    assert places(SweepRuntime(), {"CPU": 2.0}) == 2
    assert places(SweepRuntime(num_workers=2), {"CPU": 7.0}) == 3
    assert places(SweepRuntime(), {"CPU": 16.0, "GPU": 4.0}) == 4
    assert places(SweepRuntime(gpus_per_worker=0), {"CPU": 16.0, "GPU": 4.0}) == 16
    assert places(SweepRuntime(gpus_per_worker=0.2), {"CPU": 16.0, "GPU": 1.0}) == 5
    assert places(SweepRuntime(gpus_per_worker=0.2, cpus_per_worker=8), {"CPU": 16.0, "GPU": 1.0}) == 2
    with pytest.raises(UserError, match="a trial needs 3 CPU; the cluster has 2 CPU"):
        places(SweepRuntime(num_workers=3), {"CPU": 2.0})


def test_a_trial_that_fails_for_good_is_named_and_the_others_are_kept(root: str, ray_with_dashboard: None) -> None:
    asked = {"name": "broken", "grid": {"loop.learning_rate": [0.01, 1e30]}}
    with pytest.raises(UserError, match=r"1 of 2 trials failed:\n  broken-learning_rate1e_30: step \d+: loss"):
        sweep(root, **asked)
    good = open_artifact(root, "models", "broken-learning_rate0.01")
    rows = {row["trial"]: row for row in Storage(root).read_json("sweeps/broken/trials.json")}
    assert rows["broken-learning_rate0.01"]["state"] == "finished"
    assert rows["broken-learning_rate1e_30"]["state"] == "failed"
    with pytest.raises(UserError, match="1 of 2 trials failed"):  # asked again, it trains the good one no second time
        sweep(root, **asked)
    assert open_artifact(root, "models", good.name).manifest == good.manifest


def test_a_model_of_another_recipe_is_never_taken_for_a_trial(root: str, ray_with_dashboard: None) -> None:
    asked = {"name": "mixed", "grid": {"k": [1]}}
    sweep(root, **asked)
    Storage(root).delete("sweeps/mixed")
    with pytest.raises(UserError, match="loop.max_steps: 12 there, 18 asked for"):
        sweep(root, **asked, loop={"max_steps": 18})


def test_a_trial_may_train_on_two_workers_and_learns_the_same(root: str, ray_with_dashboard: None) -> None:
    def losses(name: str, num_workers: int) -> list[float]:
        made = sweep(root, name=name, grid={"k": [2]}, runtime={"root": root, "num_workers": num_workers})
        trial = open_artifact(root, "models", made.read_json("trials.json")[0]["trial"])
        return [record["loss"] for record in trial.read_json("history.json")["history"] if "loss" in record]

    assert losses("pair", 2) == pytest.approx(losses("alone", 1), rel=1e-4)


def test_variants_meet_every_point_and_are_compared_at_the_same_points(root: str, ray_with_dashboard: None) -> None:
    variants = {"as it ships": {}, "no step": {"loop": {"learning_rate": 1e-9}}}
    made = sweep(root, name="ablation", grid={"loop.seed": [0, 1]}, variants=variants)
    rows = made.read_json("trials.json")
    assert [(row["values"]["variant"], row["values"]["loop.seed"]) for row in rows] == [
        (variant, seed) for variant in variants for seed in (0, 1)
    ]
    best = np.asarray([row["best"] for row in rows]).reshape(2, 2)
    lines = {line.split("  ")[0]: line.split() for line in made.manifest["summary"].splitlines()}
    mean, sd, runs, gain, spread = map(float, lines["no step"][-5:])
    gains = best[1] - best[0]
    assert runs == 2 and gain > 0.1  # a loss: who takes no step has the higher one
    expected = [best[1].mean(), best[1].std(ddof=1), gains.mean(), gains.std(ddof=1)]
    assert [mean, sd, gain, spread] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="steps: unknown key"):
        sweep(root, name="wrong", variants={"more": {"steps": 3}})


def test_trials_find_weights_in_a_relative_folder(root: str, ray_with_dashboard: None) -> None:
    sweep(root, name="first", grid={"k": [1]})
    weights = os.path.relpath(Path(root) / "models" / "first-k1")
    made = sweep(root, name="second", grid={"k": [2]}, model={"weights": weights})
    assert made.read_json("trials.json")[0]["state"] == "finished"


def test_halving_that_is_started_again_remembers_its_rungs(tmp_path: Path) -> None:
    from quire.loop_config import LoopConfig
    from tune.trials import Asha, Halving

    draft = artifact.begin(str(tmp_path), "sweeps", "s", recipe={}, inputs={})
    loop = LoopConfig(max_steps=100, eval_every=10, learning_rate=0.1)

    def start() -> Callable[[int, float], str]:
        halving = Halving(Asha(reduction_factor=2.0), draft, ["a", "b", "c", "d"], [loop])
        assert halving.set_search_properties("loss", "min")

        def report(number: int, loss: float) -> str:
            trial = SimpleNamespace(trial_id=f"{id(halving)}-{number}", config={"number": number})
            halving.on_trial_add(None, trial)
            return halving.on_trial_result(None, trial, {"step": 10, "loss": loss})

        return report

    first = start()
    assert (first(0, 1.0), first(1, 2.0)) == ("CONTINUE", "STOP")
    again = start()
    assert again(0, 9.0) == "CONTINUE"  # a trial that went on from its checkpoint: this rung is behind it
    assert (again(2, 1.6), again(3, 1.4)) == ("STOP", "CONTINUE")  # the median is 1.5, then 1.6


def test_halving_stops_the_worse_and_a_later_start_leaves_them(root: str, ray_with_dashboard: None) -> None:
    rates = [0.01, 1e-7, 2e-7, 3e-7]
    asked = {
        "name": "halved",
        "grid": {"loop.learning_rate": rates},
        "asha": {"grace_evaluations": 1, "reduction_factor": 2.0},
        "loop": {"max_steps": 4000, "eval_every": 50, "checkpoint_every": 4000},
    }
    made = sweep(root, **asked)
    rows = made.read_json("trials.json")
    states = [row["state"] for row in rows]
    assert states[0] == "finished" and rows[0]["steps"] == 4000
    assert "stopped" in states and set(states) <= {"finished", "stopped"}
    for row in rows:
        assert (Path(root) / "models" / row["trial"] / MANIFEST).exists() == (row["state"] == "finished")
        assert row["state"] == "finished" or row["steps"] < 4000 and row["best"] > rows[0]["best"]
