"""Flows of books hold together: every artefact that a step reads is made before it, by settings that exist."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quire import config, flow
from quire.config import Config
from tune import sweep

ROOT = Path(__file__).parents[1]
MADE_BY = {
    "pipelines.gutenberg": "documents",
    "pipelines.mine": "negatives",
    "pipelines.teach": "predictions",
    "trainers.cross_validate": "reports",
    "tune.sweep": "sweeps",
    "trainers.evaluate": "reports",
    "serve.try_out": "reports",
}
READ = {
    "masked": "predictions",
    "matcher": "models",
    "bi_encoder": "models",
    "cross_encoder": "models",
    "start": "models",
    "teacher": "predictions",
}


def kind(run: str) -> str:
    room, verb = run.split(".")
    made = {"score": "predictions", "chunk": "chunks", "embed": "embeddings"}.get(verb, verb)
    return MADE_BY.get(run) or ("models" if room == "trainers" else made)


def read(settings: Config) -> Iterator[tuple[str, str]]:
    """Kind and name of each artefact that a step reads."""
    kinds = {"documents", "chunks", "embeddings", "neighbors", "negatives", "pairs", "predictions", "models"}
    given = settings.model_dump(exclude={"runtime", "name"}, exclude_none=True).items()
    for key, value in ((key, one) for key, some in given for one in (some if isinstance(some, tuple) else (some,))):
        if READ.get(key, key) in kinds:
            yield READ.get(key, key), value
        elif isinstance(value, str) and value.startswith("models/"):
            yield "models", value.removeprefix("models/")


def test_the_sweep_asks_for_trials_that_its_trainer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = config.load(sweep.CONFIG, "tune/experiments/books/bi_encoder.toml", [])
    trials = [trial.config for trial in sweep.configs(settings).values()]
    assert len(trials) == 3 * settings.num_samples and {trial.negatives for trial in trials} == {"books-1"}
    assert len({(t.pooling, t.loop.learning_rate, t.initial_temperature, t.relative_margin) for t in trials}) == 24


@pytest.mark.parametrize(
    "name", ["books", "books_ablation", "books_folds", "books_large", "books_rounds", "gutenberg", "style"]
)
def test_what_a_step_reads_an_earlier_one_has_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made: set[tuple[str, str]] = set()
    given = [] if name == "gutenberg" else ["documents.source.folder=books"]
    for step, _, settings in flow.configs(flow.load_flow(f"flows/{name}.toml", given)):
        trials = sweep.configs(settings).values() if step.run == "tune.sweep" else ()
        for asked in [trial.config for trial in trials] or [settings]:
            for role, value in read(asked):
                assert (role, value) in made, f"{step.name}: {role}/{value}"
        assert (kind(step.run), settings.name) not in made
        made.add((kind(step.run), settings.name))
