"""Labelled data sets to documents with categories: by name from the hub, or tables in a folder.

python -m pipelines.datasets pipelines/experiments/arxiv/papers_full.toml [key=value ...]
python -m pipelines.datasets name=NAME source.kind=table source.folder=FOLDER source.category=COLUMN
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines import labelled
from quire import config, hub_sets, papers, readers
from quire.artifact import Artifact
from quire.errors import UserError
from quire.readers import Dropped, Piece
from quire.storage import Storage


class Table(labelled.Files):
    """Files with a column of text and one of categories (a name or a list)."""

    kind: Literal["table"] = "table"
    text: str = "text"
    category: str = Field(default="category", description='"" for documents without one, which are chunked')
    title: str | None = None
    author: str | None = labelled.added(description="column of one author or several; default: each its own")
    key: str | None = Field(default=None, description="column of ids; default: the place in the file")


class Hub(config.Config):
    """A labelled data set by its name on the hub (ccdv/arxiv-classification) or by a local folder of it.

    Its own splits are kept. All workers read the commit that the revision is when the run begins.
    """

    kind: Literal["hub"] = "hub"
    dataset: str
    revision: str | None = labelled.added(description="of the data set; default: the newest")
    subset: str | None = Field(default=None, description="one of the data set's configurations; a folder has none")
    splits: tuple[str, ...] | None = labelled.added(description="which to read; default: all that the set has")
    text: str = "text"
    category: str = Field(default="label", description='"" for documents without one, which are chunked')
    title: str | None = labelled.added(description="column of titles")
    author: str | None = labelled.added(description="column of one author or several; default: each its own")
    shard_rows: int = Field(default=1000, gt=0)


class DatasetsConfig(config.Config):
    """What `pipelines.datasets` computes."""

    name: str
    source: Table | Hub = Field(discriminator="kind")
    runtime: config.Runtime = config.Runtime()


CONFIG = DatasetsConfig
# The hub's own branch of a set's rows as files: a folder for each subset, and no README that tells them apart.
_CONVERTED = "refs/convert/parquet"
_ROLES = ("text", "category", "title", "author")


def run(settings: DatasetsConfig) -> Artifact:
    """Make the `documents` artefact. Raises UserError when a column is missing or no document is left."""
    source = settings.source
    if isinstance(source, Hub):
        if commit := hub_sets.pinned(source.dataset, source.revision):
            source = source.model_copy(update={"revision": commit})
            settings = settings.model_copy(update={"source": source})
        return labelled.make(settings, *_rows(source, _load(source)), open_source)
    columns = {f"source.{role}": name for role, name in (*_columns(source).items(), ("key", source.key))}
    return labelled.make(settings, *labelled.pieces(source, columns), open_source)


def open_source(settings: DatasetsConfig) -> labelled.Reader:
    """What reads a piece of the files, or some rows of the data set."""
    source = settings.source
    if isinstance(source, Hub):
        loaded = _load(source)
        return lambda item: _hub_rows(loaded, source, item)
    storage = Storage(source.folder)

    def read(piece: Piece) -> Iterator[papers.Row | Dropped]:
        names = _columns(source) | {"key": source.key}
        for file, place, record in readers.records(storage, piece):
            yield record if isinstance(record, Dropped) else papers.table_row(record, file, place, **names)

    return read


def _columns(source: Table | Hub) -> dict[str, str | None]:
    """Role -> the column that plays it."""
    return {role: getattr(source, role) for role in _ROLES}


def _load(source: Hub) -> Any:
    import datasets

    if source.revision is not None and Path(source.dataset).is_dir():
        raise UserError(f"source.revision = {source.revision!r}: the folder {source.dataset} has none; leave it out")
    where = f"source.dataset = {source.dataset!r}" + (f", source.subset = {source.subset!r}" if source.subset else "")
    # Without a folder's name the rows of all subsets would come as one set.
    converted = source.revision == _CONVERTED
    part = {"data_dir": source.subset or "default"} if converted else {"name": source.subset}
    try:
        return datasets.load_dataset(source.dataset, revision=source.revision, **part)
    # What datasets raises for names and networks; and for damage, of which its cause tells more.
    except (ConnectionError, FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{where}: cannot be loaded: {error.__cause__ or error}; see whether the name, the network and its files "
            "are right"
        ) from error
    except RuntimeError as error:
        if "scripts" not in str(error):
            raise
        remedy = f"set source.revision={_CONVERTED}, where the hub keeps the same rows as files"
        if Path(source.dataset).is_dir():
            remedy = f"leave only its rows there, as Parquet or JSON lines, or name it as on the hub and {remedy}"
        raise UserError(
            f"{where}: is made by a script of its own, which no one runs any more ({error}); {remedy}"
        ) from error


def _rows(source: Hub, loaded: Any) -> tuple[list[dict[str, Any]], str]:
    """Ranges of rows of every split, and a hash of what the data set is. Raises UserError for what cannot be read."""
    chosen = tuple(loaded) if source.splits is None else source.splits
    for split in chosen:
        if split not in loaded:
            raise UserError(f"source.splits: {split!r} is no split of {source.dataset!r}; it has {', '.join(loaded)}")
        if split not in papers.SPLIT_NAMES:
            known = json.dumps([name for name in loaded if name in papers.SPLIT_NAMES])
            raise UserError(
                f"source.dataset = {source.dataset!r}: split {split!r} is none of {', '.join(papers.SPLIT_NAMES)}; "
                f"leave it out: source.splits={known}"
            )
        columns = loaded[split].column_names
        lacking = [name for name in _columns(source).values() if name and name not in columns]
        if lacking:
            raise UserError(
                f"source: no column {lacking[0]!r} in split {split!r} of the data set; it has {', '.join(columns)}"
            )
    step = source.shard_rows
    items = [
        {"split": split, "start": at, "end": min(at + step, len(loaded[split]))}
        for split in chosen
        for at in range(0, len(loaded[split]), step)
    ]
    return items, hashlib.sha256(json.dumps({s: loaded[s]._fingerprint for s in chosen}).encode()).hexdigest()


def _hub_rows(loaded: Any, source: Hub, item: dict[str, Any]) -> Iterator[papers.Row | Dropped]:
    split, names = loaded[item["split"]], _columns(source)
    coded = {name: split.features[name] for name in names.values() if name and hasattr(split.features[name], "int2str")}
    for number in range(item["start"], item["end"]):
        record = split[number]
        record |= {name: _decoded(label, record[name]) for name, label in coded.items()}
        key = f"{item['split']}_{number}"  # as the earlier system numbered them
        record |= {"split": item["split"], "key": key}
        yield papers.table_row(record, source.dataset, number, **names, key="key")


def _decoded(label: Any, value: int | None) -> str | None:
    """The name of a class; -1 is "no label"."""
    return label.int2str(value) if value is not None and 0 <= value < label.num_classes else None


if __name__ == "__main__":
    config.main(CONFIG, run)
