"""arXiv papers to documents with categories: the metadata snapshot (title and abstract), or full texts.

python -m pipelines.arxiv pipelines/experiments/arxiv/papers.toml source.folder=FOLDER [key=value ...]
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from pipelines import labelled
from quire import config, papers, readers
from quire.artifact import Artifact
from quire.readers import Dropped, Piece
from quire.storage import Storage


class Metadata(labelled.Files):
    """The metadata snapshot, JSON lines as published (`id`, `title`, `abstract`, `categories`): title and abstract."""

    kind: Literal["metadata"] = "metadata"


class FullText(labelled.Files):
    """Records of the same columns and one more with the whole paper, which alone becomes the document's text."""

    kind: Literal["full_text"] = "full_text"
    text: str = Field(default="text", description="column of the paper")


class ArxivConfig(config.Config):
    """What `pipelines.arxiv` computes."""

    name: str
    source: Metadata | FullText = Field(discriminator="kind")
    runtime: config.Runtime = config.Runtime()


CONFIG = ArxivConfig


def run(settings: ArxivConfig) -> Artifact:
    """Make the `documents` artefact. Raises UserError when no document is left."""
    columns = {"source.text": settings.source.text} if isinstance(settings.source, FullText) else {}
    return labelled.make(settings, *labelled.pieces(settings.source, columns), open_source)


def open_source(settings: ArxivConfig) -> labelled.Reader:
    """What reads a piece of the files."""
    storage = Storage(settings.source.folder)
    column = settings.source.text if isinstance(settings.source, FullText) else None

    def read(piece: Piece) -> Iterator[papers.Row | Dropped]:
        for file, _, record in readers.records(storage, piece):
            yield record if isinstance(record, Dropped) else papers.arxiv_row(record, file, text=column)

    return read


if __name__ == "__main__":
    config.main(CONFIG, run)
