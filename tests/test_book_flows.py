"""Flows of books hold together: every artefact that a step reads is made before it, by settings that exist."""

from pathlib import Path

import pytest

from quire import flow

ROOT = Path(__file__).parents[1]
MADE_BY = {
    "pipelines.gutenberg": "documents",
    "pipelines.mine": "negatives",
    "trainers.evaluate": "reports",
    "serve.try_out": "reports",
}
READ = {
    "masked": "predictions",
    "matcher": "models",
    "bi_encoder": "models",
    "cross_encoder": "models",
    "start": "models",
}


def kind(run: str) -> str:
    room, verb = run.split(".")
    made = {"score": "predictions", "chunk": "chunks", "embed": "embeddings"}.get(verb, verb)
    return MADE_BY.get(run) or ("models" if room == "trainers" else made)


@pytest.mark.parametrize("name", ["books", "books_large", "books_rounds", "gutenberg", "style"])
def test_what_a_step_reads_an_earlier_one_has_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made: set[tuple[str, str]] = set()
    given = [] if name == "gutenberg" else ["documents.source.folder=books"]
    for step, _, settings in flow.configs(flow.load_flow(f"flows/{name}.toml", given)):
        for key, value in settings.model_dump(exclude={"runtime", "name"}, exclude_none=True).items():
            role = READ.get(key, key)
            if role in {
                "documents",
                "chunks",
                "embeddings",
                "neighbors",
                "negatives",
                "pairs",
                "predictions",
                "models",
            }:
                assert (role, value) in made, f"{step.name}.{key} = {value}"
            elif isinstance(value, str) and value.startswith("models/"):
                assert tuple(value.split("/")) in made, f"{step.name}.{key} = {value}"
        assert (kind(step.run), settings.name) not in made
        made.add((kind(step.run), settings.name))
