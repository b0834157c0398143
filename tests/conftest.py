"""Fixtures that several tests use."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
# Before torch is imported, and for every process that tests start: float32 on every x86 processor. Those that multiply
# bf16 natively train and embed in it, and round by a hundredth where tests compare to a millionth.
os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
os.environ["RAY_AUTH_MODE"] = "disabled"  # tests start private clusters and tear them down
os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "0"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # an actor that looks for clouds that take nodes back
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"  # so often Ray Train looks whether workers are done; else 2

import matchers  # noqa: E402
import tiny  # noqa: E402

# A busy machine is no fault, and what a test says does not depend on luck.
hypothesis.settings.register_profile("quire", deadline=None, derandomize=True)
hypothesis.settings.load_profile("quire")


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny real sentence-transformers model."""
    return tiny.tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def matcher_address(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    """A published matcher whose second stage answers every pair."""
    return matchers.publish_matcher(tmp_path_factory.mktemp("matcher"), encoder_folder, prefilter=0.0)


@pytest.fixture(scope="session")
def books_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve authors with three small books each."""
    return tiny.write_books(tmp_path_factory.mktemp("books"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the Ray of `local_ray` come first: it is started once, and gone before others start theirs."""
    items.sort(key=lambda item: "local_ray" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory):
    """A private two-CPU Ray for all tests that ask for it."""
    import ray

    root = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(tmp_path_factory.mktemp("r", numbered=True)),
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_ray_of_others(request: pytest.FixtureRequest) -> None:
    """A test that does not ask for `local_ray` does not find it running."""
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and "local_ray" not in request.fixturenames:
        ray.shutdown()


@pytest.fixture(autouse=True, scope="session")
def quiet_servers() -> None:
    """A line per S3 request would bury what a failing test has to say."""
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)


@pytest.fixture
def steps_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards of the steps from labelled texts to chunks in this process."""
    import here

    from pipelines import chunk, labelled

    for step in (labelled, chunk):
        monkeypatch.setattr(step, "run_shards", here.run_here)


@pytest.fixture
def harvest_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves of the step that fetches books, and the steps to chunks, in this process."""
    import gutenberg_steps
    import here

    from pipelines import chunk, documents, gutenberg

    for step in (gutenberg, chunk, documents):
        monkeypatch.setattr(step, "run_shards", here.run_here)
    monkeypatch.setattr(gutenberg, "fetch_all", gutenberg_steps.fetch_here)
