"""The steps that read labelled texts, in this process."""

from collections.abc import Callable
from types import ModuleType

import pytest

from pipelines import labelled
from quire import config, papers


def read(step: ModuleType, given: list[str]) -> list[papers.Row]:
    """All shards in this process, as the workers would make them."""
    made: list[papers.Row] = []

    def make(settings: object, items: list, content: str, open_source: Callable) -> None:
        process = labelled.shards(settings, open_source)
        made.extend(row for item in items for row in process(item).table.to_pylist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelled, "make", make)
        step.run(config.load(step.CONFIG, None, ["name=x", *given]))
    return made
