"""FAISS indexes in shards: chosen by size, trained once, filled apart, searched apart or together, merged by score.

Vectors have length 1, scores are inner products, ids are row numbers over the whole corpus. A flat index is exact to the
last bit however it is cut (`quire.neighbors` ranks what FAISS finds). The shards of an inverted file share one
training, and their files leave its centroids out: at 100 million rows those are 60 MB, which each of some hundred shards
would hold again. `read` lends them the trained index's.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib import ivf_tools

from quire import neighbors
from quire.errors import UserError

METHODS = ("flat", "ivf", "ivf_pq")
# Below this a query reads every vector in a tenth of a second. FAISS's guidelines ("Guidelines to choose an index", its
# wiki) advise a flat index while searches are few, and below a million vectors an inverted file of 4 to 16 sqrt(n) lists,
# trained on 30 to 256 vectors a list; FAISS itself warns below 39 (ClusteringParameters.min_points_per_centroid).
FLAT_ROWS = 200_000
MAX_LISTS = 65_536  # the guidelines want an approximate search among more
_TRAINING_ROWS, _MIN_TRAINING_ROWS = 64, 39  # a list
_CODE_BITS = 8
_CODE_VALUES = 4  # of a vector that share one byte, so that a code takes a sixteenth of the vector's memory
MIN_CODE_ROWS = 2**_CODE_BITS * _MIN_TRAINING_ROWS

_BLOCK_ROWS = 65_536
# An index file's first bytes, by method, as faiss/impl/index_write.cpp writes them.
_MAGIC = {"flat": b"IxMp", "ivf": b"IwFl", "ivf_pq": b"IwPQ"}
_MAX_LIST_LOOP = 2**27  # turns that a file may ask of a loop of FAISS's reader; lists and ids stay far below


@dataclass(frozen=True)
class Plan:
    """What is built, of how many vectors of which dimension."""

    method: str
    rows: int
    dim: int
    num_lists: int = 0
    code_size: int = 0  # bytes of a vector's code, ivf_pq only

    @property
    def training_rows(self) -> int:
        """How many sampled vectors train it."""
        wanted = max(_TRAINING_ROWS * self.num_lists, 2 * MIN_CODE_ROWS if self.code_size else 0)
        return min(self.rows, wanted)

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def plan(rows: int, dim: int, method: str = "auto", max_bytes: int = 8 * 2**30) -> Plan:
    """The index for `rows` vectors of `dim` values: flat, an inverted file above FLAT_ROWS, of codes above `max_bytes`.

    Raises UserError when `method` asks for codes of too few rows.
    """
    if method == "auto":
        too_large = 4 * rows * dim > max_bytes and rows >= MIN_CODE_ROWS
        method = "ivf_pq" if too_large else "flat" if rows <= FLAT_ROWS else "ivf"
    if method == "flat":
        return Plan(method, rows, dim)
    num_lists = max(1, min(int(4 * rows**0.5), rows // _MIN_TRAINING_ROWS, MAX_LISTS))
    if method == "ivf":
        return Plan(method, rows, dim, num_lists)
    if rows < MIN_CODE_ROWS:
        raise UserError(f'method = "ivf_pq": {rows:,} vectors, and codes are trained on {MIN_CODE_ROWS:,}: use "ivf"')
    code_size = next(size for size in range(max(1, dim // _CODE_VALUES), 0, -1) if dim % size == 0)
    return Plan(method, rows, dim, num_lists, code_size)


def unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float32 rows scaled to length 1, and of which that could be done: (n,) bool. The others become zero."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    good = np.isfinite(lengths) & (lengths > 0)
    scaled = vectors / np.where(good, lengths, 1).astype(np.float32)[:, None]
    scaled[~good] = 0
    return scaled, good


def train(wanted: Plan, sample: np.ndarray, *, seed: int = 0, gpu: bool | None = False) -> faiss.IndexIVF | None:
    """An inverted file without vectors, trained on `sample` (n, d); None for a flat index, which needs no training.

    The same sample, seed and kind of processor give the same bytes. `gpu` as in `quire.neighbors.search`.
    """
    if wanted.method == "flat":
        return None
    metric = faiss.METRIC_INNER_PRODUCT
    sizes = (wanted.dim, wanted.num_lists)
    quantizer = faiss.IndexFlatIP(wanted.dim)
    if wanted.method == "ivf":
        index = faiss.IndexIVFFlat(quantizer, *sizes, metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, *sizes, wanted.code_size, _CODE_BITS, metric)
        index.pq.cp.seed = seed
    index.cp.seed = seed
    if neighbors.use_gpu(gpu):
        index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(wanted.dim))
    index.train(np.ascontiguousarray(sample, np.float32))
    index.clustering_index = None
    return index


def fill(
    trained: faiss.IndexIVF | None, flat: faiss.IndexFlatIP, rows: np.ndarray, *, gpu: bool | None = False
) -> faiss.Index:
    """A shard of the vectors in `flat` under the ids `rows` (n,) int64; `trained` itself stays empty."""
    rows = np.ascontiguousarray(rows, np.int64)
    if trained is None:
        index = faiss.IndexIDMap(flat)
        faiss.copy_array_to_vector(rows, index.id_map)
        index.ntotal = flat.ntotal
        return index
    index, vectors = faiss.clone_index(trained), neighbors.flat_vectors(flat)
    nearest = faiss.index_cpu_to_all_gpus(trained.quantizer) if neighbors.use_gpu(gpu) else trained.quantizer
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        lists = nearest.search(vectors[block], 1)[1].ravel()
        ivf_tools.add_preassigned(index, vectors[block], lists, rows[block])
    return index


def search(
    shards: Iterable[faiss.Index],
    queries: np.ndarray,
    *,
    k: int,
    trained: faiss.IndexIVF | None = None,
    num_probes: int = 1,
    gpu: bool | None = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the highest scores over all shards: rows (q, k) int64, scores (q, k) float32.

    Ordered by (score descending, row ascending), padded with -1 and -inf. `queries` (q, d) have length 1. Shards are
    asked for one after the other, so that an iterator which reads them holds one at a time; how rows are cut into
    shards changes nothing. `num_probes` lists of an inverted file are looked into.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    found = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    if trained is None:
        return merge([found, *(_search_flat(shard, queries, k, gpu) for shard in shards)], k)
    closeness, lists = trained.quantizer.search(queries, min(num_probes, trained.nlist))
    for shard in shards:
        shard.nprobe = lists.shape[1]
        scores, rows = shard.search_preassigned(queries, k + neighbors.SLACK, lists, closeness)
        found = merge([found, (rows, np.where(rows < 0, -np.inf, scores))], k)
    return found


def _search_flat(
    shard: faiss.IndexIDMap, queries: np.ndarray, k: int, gpu: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    flat, rows = faiss.downcast_index(shard.index), faiss.vector_to_array(shard.id_map)
    positions, scores = neighbors.search_flat(queries, flat, k=k, gpu=gpu)
    return np.where(positions < 0, -1, rows[positions]), scores


def merge(found: Iterable[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of several answers (rows, scores), each (q, any), to the same queries, in the order of `search`."""
    rows, scores = (np.hstack(part) for part in zip(*found, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact rows (q, k), -1 where there are fewer, that were found (q, any)."""
    real = exact >= 0
    return float((real & (exact[:, :, None] == found[:, None, :]).any(axis=2)).sum() / max(1, real.sum()))


def write(index: faiss.Index, path: Path) -> None:
    """Write a shard; of an inverted file without the centroids."""
    if not isinstance(index, faiss.IndexIVF):
        faiss.write_index(index, str(path))
        return
    quantizer = index.quantizer
    index.nprobe, index.own_fields, index.quantizer = 1, False, faiss.IndexFlatIP(index.d)
    try:
        faiss.write_index(index, str(path))
    finally:
        index.quantizer, index.own_fields = quantizer, True


def read(path: Path, wanted: Plan, trained: faiss.IndexIVF | None, *, rows: int, size: int) -> faiss.Index:
    """A shard that `write` has written: `rows` vectors in `size` bytes, as its manifest says.

    The lists of an inverted file stay on disk, and a search reads those it looks into. Raises UserError naming the file
    when it is not that shard.
    """
    if not path.is_file() or path.stat().st_size != size:
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise UserError(f"{path}: {found}, the manifest says {size:,} bytes: {_REMEDY}")
    flags = 0 if trained is None else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    with path.open("rb") as file:
        magic = file.read(4)
    index = _read(lambda: faiss.read_index(str(path), flags), magic, str(path), wanted, rows, size)
    if trained is not None:
        hollow = index.quantizer
        index.own_fields, index.quantizer = False, trained.quantizer
        index.referenced_objects = [trained]  # which owns the centroids
        hollow.this.own(True)
    return index


def read_trained(data: bytes, where: str, wanted: Plan) -> faiss.IndexIVF | None:
    """The trained index in `data`; None for a flat one, of which there is no file."""
    if wanted.method == "flat":
        return None
    array = np.frombuffer(data, np.uint8)
    index = _read(lambda: faiss.deserialize_index(array), data[:4], where, wanted, 0, len(data))
    if index.quantizer.ntotal != wanted.num_lists:
        raise UserError(f"{where}: {index.quantizer.ntotal:,} centroids of {wanted.num_lists:,} lists: {_REMEDY}")
    return index


_REMEDY = "it is damaged or another index's; delete the index's folder and run pipelines.index again"


def _read(
    read_file: Callable[[], faiss.Index], magic: bytes, where: str, wanted: Plan, rows: int, size: int
) -> faiss.Index:
    """What `read_file` reads, if it is what was planned.

    A FAISS file holds numbers and no code, but it says itself how much memory it wants: no vector of it may take more
    than the whole file does, and nothing but the one planned kind of index is read at all.
    """
    if magic != _MAGIC[wanted.method]:
        raise UserError(f"{where}: begins with {magic!r}, not {_MAGIC[wanted.method]!r}: {_REMEDY}")
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(size + 1)
    faiss.set_deserialization_loop_limit(_MAX_LIST_LOOP)
    try:
        index = read_file()
    except RuntimeError as error:  # every error of FAISS is one
        raise UserError(f"{where}: FAISS cannot read it ({str(error).splitlines()[-1][-200:]}): {_REMEDY}") from error
    finally:
        faiss.set_deserialization_vector_byte_limit(limits[0])
        faiss.set_deserialization_loop_limit(limits[1])
    found = _shape(index)
    if found != (wanted.method, wanted.dim, wanted.num_lists, wanted.code_size, rows, faiss.METRIC_INNER_PRODUCT):
        raise UserError(f"{where}: holds {found}, the manifest says {wanted} and {rows:,} rows: {_REMEDY}")
    return index


def _shape(index: faiss.Index) -> tuple[Any, ...]:
    """Method, dimension, lists, bytes of a code, rows, metric, as far as all parts of the index agree on them."""
    rows, inner, method = index.ntotal, index, type(index).__name__
    if isinstance(index, faiss.IndexIDMap):
        inner = faiss.downcast_index(index.index)
        agree = type(inner) is faiss.IndexFlatIP and index.id_map.size() == inner.ntotal == rows
        return ("flat" if agree else method), inner.d, 0, 0, rows, inner.metric_type
    if type(index) not in (faiss.IndexIVFFlat, faiss.IndexIVFPQ):
        return (method,)
    lists, quantizer = index.invlists, faiss.downcast_index(index.quantizer)
    coded = type(index) is faiss.IndexIVFPQ
    code_size = index.code_size if coded else 0
    agree = (
        lists.nlist == index.nlist
        and lists.code_size == index.code_size == (index.pq.M if coded else 4 * index.d)
        and (not coded or (index.pq.nbits, index.pq.d, index.by_residual) == (_CODE_BITS, index.d, True))
        and type(quantizer) is faiss.IndexFlatIP
        and quantizer.d == index.d
        and lists.compute_ntotal() == rows
    )
    method = ("ivf_pq" if coded else "ivf") if agree else method
    return method, index.d, index.nlist, code_size, rows, index.metric_type


def check_rows(rows: np.ndarray, num_rows: int, where: str) -> None:
    """Raise UserError when a shard answers with ids that the index cannot have."""
    if rows.max(initial=-1) >= num_rows or rows.min(initial=0) < -1:
        raise UserError(f"{where}: a shard holds row {int(rows.max())} of an index of {num_rows:,}: {_REMEDY}")
