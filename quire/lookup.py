"""Some rows of an artefact by their ids, without reading it whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from quire.artifact import Artifact
from quire.errors import UserError
from quire.storage import Storage


def rows_by_id(artifact: Artifact, places: Mapping[str, int], key: str, columns: Sequence[str]) -> dict[str, dict]:
    """id -> its row, with `columns`. `places` says in which part (by number) an id most likely stands.

    Only ids are read of a part until one is found, and then the columns of its row group alone; what does not stand
    where it was looked for is looked for everywhere. Raises UserError when an id stands nowhere.
    """
    found: dict[str, dict] = {}
    likely = [part for part in sorted(set(places.values())) if 0 <= part < len(artifact.parts)]
    for part in likely:
        found |= _rows(artifact.storage, artifact.parts[part], {i for i in places if places[i] == part}, key, columns)
    for part in artifact.parts:
        missing = places.keys() - found.keys()
        if missing:
            found |= _rows(artifact.storage, part, missing, key, columns)
    for missing in sorted(places.keys() - found.keys()):
        raise UserError(f"{artifact.storage.uri(artifact.folder)}: no row with {key} = {missing!r}")
    return found


def _rows(storage: Storage, part: str, wanted: set[str], key: str, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with storage.filesystem.open_input_file(storage.path(part)) as opened:
        file = pq.ParquetFile(opened)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, [key])[key]
            rows = pc.indices_nonzero(pc.is_in(ids, value_set=pa.array(sorted(wanted), ids.type)))
            if len(rows):
                table = file.read_row_group(group, list(columns)).take(rows)
                found |= zip(ids.take(rows).to_pylist(), table.to_pylist(), strict=True)
    return found
