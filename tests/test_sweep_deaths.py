"""A sweep of which one trial's worker dies whenever it is started: in a file of its own, for a Ray of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_tokens
from test_sweep import settings

from quire import config
from quire.artifact import open_artifact
from quire.storage import Storage

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]


@pytest.fixture
def ray_of_the_dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=True,  # Ray Train frees the places of a trial through it
        dashboard_port=0,
        log_to_driver=False,
        _temp_dir=str(tmp_path_factory.mktemp("r", numbered=True)),
        runtime_env={
            "env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            "worker_process_setup_hook": "dying.at_checkpoints",
        },
    )
    yield
    ray.shutdown()


def test_a_trial_whose_worker_always_dies_is_retried_then_named_and_the_sweep_fails(
    tmp_path: Path, ray_of_the_dying: None, capsys: pytest.CaptureFixture
) -> None:
    from tune import sweep

    tiny_tokens.token_store(str(tmp_path), 64)
    asked = settings(
        str(tmp_path), name="dying", grid={"k": [1, 2]}, runtime={"root": str(tmp_path), "max_failures": 1}
    )
    file = tmp_path / "sweep.toml"
    file.write_text(config.to_toml(asked))
    with pytest.raises(SystemExit) as left:
        config.main(sweep.CONFIG, sweep.run, [str(file)])
    assert left.value.code == 2
    assert "1 of 2 trials failed:\n  dying-k2: " in capsys.readouterr().err
    rows = {row["trial"]: row for row in Storage(str(tmp_path)).read_json("sweeps/dying/trials.json")}
    assert [rows[f"dying-k{k}"]["state"] for k in (1, 2)] == ["finished", "failed"]
    assert rows["dying-k2"]["error"] and rows["dying-k1"]["error"] is None
    assert (tmp_path / "deaths").read_text() == "xx"  # the first start and one more
    assert open_artifact(str(tmp_path), "models", "dying-k1").fingerprint == rows["dying-k1"]["fingerprint"]
