"""FAISS indexes in shards: chosen by size, trained once, filled apart, searched apart or together, merged by score.

Vectors have length 1, scores are inner products, ids are row numbers over the whole corpus. A flat index is exact to
the last bit however it is cut (`quire.neighbors` ranks what FAISS finds). The shards of an inverted file share one
training, and their files leave its centroids out: at 100 million rows those are 60 MB, which each of some hundred
shards would hold again. `read` puts those of the trained index in.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib import ivf_tools

from quire import neighbors
from quire.errors import UserError

METHODS = ("flat", "ivf", "ivf_pq")
# Up to here a query reads 300 MB of 384 values each. FAISS's guidelines ("Guidelines to choose an index", its wiki)
# advise a flat index for few searches, and below a million vectors an inverted file of 4 to 16 sqrt(n) lists, trained
# on 30 to 256 vectors a list; FAISS itself warns below 39 (ClusteringParameters.min_points_per_centroid).
FLAT_ROWS = 200_000
MAX_LISTS = 65_536  # the guidelines want an approximate search among more
_TRAINING_ROWS, _MIN_TRAINING_ROWS = 64, 39  # a list
_CODE_BITS = 8
_CODE_VALUES = 4  # of a vector that share one byte, so that a code takes a sixteenth of the vector's memory
MIN_CODE_ROWS = 2**_CODE_BITS * _MIN_TRAINING_ROWS

_BLOCK_ROWS = 65_536
# An index file's first bytes, by method, as faiss/impl/index_write.cpp writes them.
_MAGIC = {"flat": b"IxMp", "ivf": b"IwFl", "ivf_pq": b"IwPQ"}
_KIND = {"flat": "IndexIDMap", "ivf": "IndexIVFFlat", "ivf_pq": "IndexIVFPQ"}
_NO_TABLE = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE  # it serves Euclidean distances alone, and would be gigabytes
_MAX_LOOP = 2**27  # turns that a file may ask of a loop of FAISS's reader; lists and ids stay far below


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
    scaled = (vectors / np.where(good, lengths, 1)[:, None]).astype(np.float32)
    scaled[~good] = 0
    return scaled, good


def untrained(wanted: Plan, seed: int) -> faiss.IndexIVF:
    """An inverted file that has no centroids yet, and no codes."""
    sizes = (faiss.IndexFlatIP(wanted.dim), wanted.dim, wanted.num_lists)
    if wanted.method == "ivf":
        index = faiss.IndexIVFFlat(*sizes, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(*sizes, wanted.code_size, _CODE_BITS, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = seed
    index.cp.seed = seed
    return index


def train(wanted: Plan, sample: np.ndarray, *, seed: int = 0, gpu: bool | None = False) -> faiss.IndexIVF | None:
    """An inverted file without vectors, trained on `sample` (n, d); None for a flat index, which needs no training.

    The same sample, seed and kind of processor give the same bytes. `gpu` as in `quire.neighbors.search`.
    """
    if wanted.method == "flat":
        return None
    if len(sample) < wanted.num_lists:
        raise UserError(f"{len(sample):,} vectors to train {wanted.num_lists:,} lists: the others have no direction")
    index = untrained(wanted, seed)
    assigner = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(wanted.dim)) if neighbors.use_gpu(gpu) else None
    index.clustering_index = assigner  # the index does not keep it alive
    index.train(np.ascontiguousarray(sample, np.float32))
    index.clustering_index = None
    return index


def fill(
    trained: faiss.IndexIVF | None, flat: faiss.IndexFlatIP, rows: np.ndarray, *, gpu: bool | None = False
) -> faiss.Index:
    """A shard of the vectors in `flat` under the ids `rows` (n,) int64; `trained` itself stays empty."""
    rows, vectors = np.ascontiguousarray(rows, np.int64), neighbors.flat_vectors(flat)
    if trained is None:
        index = faiss.IndexIDMap(faiss.IndexFlatIP(flat.d))
        index.add_with_ids(vectors, rows)
        return index
    index = faiss.clone_index(trained)
    nearest = lists_of(trained, gpu)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        lists = nearest.search(vectors[block], 1)[1].ravel()
        ivf_tools.add_preassigned(index, vectors[block], lists, rows[block])
    return index


def lists_of(trained: faiss.IndexIVF, gpu: bool | None) -> faiss.Index:
    """What finds the list that is nearest to a vector."""
    return faiss.index_cpu_to_all_gpus(trained.quantizer) if neighbors.use_gpu(gpu) else trained.quantizer


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
    if trained is not None:
        closeness, lists = trained.quantizer.search(queries, min(num_probes, trained.nlist))
    for shard in shards:
        if trained is None:
            answer = _search_flat(shard, queries, k, gpu)
        else:
            shard.nprobe = lists.shape[1]
            scores, rows = shard.search_preassigned(queries, k + neighbors.SLACK, lists, closeness)
            answer = rows, np.where(rows < 0, -np.inf, scores)
        found = merge([found, answer], k)
        del shard  # before the next one is read
    return found


def _search_flat(
    shard: faiss.IndexIDMap, queries: np.ndarray, k: int, gpu: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    return exact(faiss.downcast_index(shard.index), faiss.vector_to_array(shard.id_map), queries, k=k, gpu=gpu)


def exact(
    flat: faiss.IndexFlatIP, rows: np.ndarray, queries: np.ndarray, *, k: int, gpu: bool | None = False
) -> tuple[np.ndarray, np.ndarray]:
    """What `search` is to find among the vectors of `flat`, whose ids are `rows` (n,), ascending."""
    positions, scores = neighbors.search_flat(queries, flat, k=k, gpu=gpu)
    return np.append(rows, -1)[positions], scores  # position -1: there is none


def merge(found: Iterable[tuple[np.ndarray, ...]], k: int) -> tuple[np.ndarray, ...]:
    """The k best of several answers (rows, scores), each (q, any), to the same queries, in the order of `search`.

    Whatever else the answers hold beside, (q, any) too, goes along.
    """
    rows, scores, *others = (np.hstack(part) for part in zip(*found, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return tuple(np.take_along_axis(part, order, axis=1) for part in (rows, scores, *others))


def num_candidates(wanted: Plan, k: int, rerank: int) -> int:
    """How many rows to search for, when k are wanted: of codes `rerank` times as many, whose order is then made anew.

    A code knows its vector to a few bits a value, so the best rows stand among the first, but not in their order:
    on 156,000 vectors of texts recall@10 was .54 to .70 by codes alone, .90 to .94 with their candidates read again.
    """
    return k * rerank if wanted.code_size and rerank else k


def exact_scores(queries: np.ndarray, found: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products (q, c) float32, summed in double precision, of queries (q, d) with their candidates (q, c).

    `vectors` (n, d) are those of `rows` (n,), ascending, and a superset of the candidates; -1 scores -inf.
    """
    scores = np.full(found.shape, -np.inf, np.float32)
    for number, (query, candidates) in enumerate(zip(queries.astype(np.float64), found, strict=True)):
        real = candidates >= 0
        scores[number, real] = vectors[np.searchsorted(rows, candidates[real])].astype(np.float64) @ query
    return scores


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact rows (q, k), -1 where there are fewer, that were found (q, any)."""
    real = exact >= 0
    right = real & (exact[:, :, None] == found[:, None, :]).any(axis=2)
    return float(right.sum() / real.sum()) if real.any() else 1.0


def write(index: faiss.Index, path: Path) -> None:
    """Write a shard; of an inverted file without the centroids."""
    if not isinstance(index, faiss.IndexIVF):
        faiss.write_index(index, str(path))
        return
    quantizer = faiss.downcast_index(index.quantizer)
    centroids = neighbors.flat_vectors(quantizer).copy()
    index.nprobe = 1
    quantizer.reset()
    faiss.write_index(index, str(path))
    quantizer.add(centroids)


def read(path: Path, wanted: Plan, trained: faiss.IndexIVF | None, *, rows: int, size: int) -> faiss.Index:
    """A shard that `write` has written: `rows` vectors in `size` bytes, as its manifest says.

    The lists of an inverted file stay on disk, and a search reads those it looks into. Raises UserError naming the file
    when it is not that shard.
    """
    if not path.is_file() or path.stat().st_size != size:
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise UserError(f"{path}: {found}, the manifest says {size:,} bytes: {_REMEDY}")
    flags = 0 if trained is None else _NO_TABLE | faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    with path.open("rb") as file:
        _check_magic(file.read(4), str(path), wanted)
    with _limits(str(path), size):
        index = faiss.read_index(str(path), flags)
    _check_shape(index, str(path), wanted, rows, 0)
    if trained is not None:
        faiss.downcast_index(index.quantizer).add(neighbors.flat_vectors(faiss.downcast_index(trained.quantizer)))
    return index


def read_trained(data: bytes, where: str, wanted: Plan) -> faiss.IndexIVF | None:
    """The trained index in `data`; None for a flat one, of which there is no file. Raises UserError as `read` does."""
    if wanted.method == "flat":
        return None
    _check_magic(data[:4], where, wanted)
    with _limits(where, len(data)):
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8), _NO_TABLE)
    _check_shape(index, where, wanted, 0, wanted.num_lists)
    return index


# A FAISS file holds numbers and no code, but it says itself how much memory it wants. So nothing but the planned kind
# of index is read at all, no vector of it may take more than the whole file does, and what was read must fit together.

_REMEDY = "it is damaged or another index's; delete the index's folder and run pipelines.index again"


def _check_magic(found: bytes, where: str, wanted: Plan) -> None:
    if found != _MAGIC[wanted.method]:
        raise UserError(f"{where}: begins with {found!r}, not {_MAGIC[wanted.method]!r}: {_REMEDY}")


@contextlib.contextmanager
def _limits(where: str, size: int) -> Iterator[None]:
    """What FAISS reads in the block comes from the file `where` of `size` bytes."""
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(size + 1)
    faiss.set_deserialization_loop_limit(_MAX_LOOP)
    try:
        yield
    except RuntimeError as error:  # every error of FAISS is one
        raise UserError(f"{where}: FAISS cannot read it ({str(error).splitlines()[-1][-200:]}): {_REMEDY}") from error
    finally:
        faiss.set_deserialization_vector_byte_limit(limits[0])
        faiss.set_deserialization_loop_limit(limits[1])


def _check_shape(index: faiss.Index, where: str, wanted: Plan, rows: int, num_centroids: int) -> None:
    found = {"kind": type(index).__name__, "dim": index.d, "rows": index.ntotal, "metric": index.metric_type}
    expected = {"kind": _KIND[wanted.method], "dim": wanted.dim, "rows": rows, "metric": faiss.METRIC_INNER_PRODUCT}
    if found == expected:
        found |= _flat_parts(index) if wanted.method == "flat" else _ivf_parts(index)
        if wanted.method == "flat":
            expected |= {"inner": "IndexFlatIP", "inner_dim": wanted.dim, "inner_rows": rows, "ids": rows}
        else:
            code_size = wanted.code_size or 4 * wanted.dim
            expected |= {"quantizer": "IndexFlatIP", "quantizer_dim": wanted.dim, "centroids": num_centroids}
            expected |= {"lists": (wanted.num_lists,) * 2, "code_size": (code_size,) * 2, "in_lists": rows}
            expected |= {"codes": (wanted.code_size, _CODE_BITS, wanted.dim, True)} if wanted.code_size else {}
    for key in expected:
        if found[key] != expected[key]:
            raise UserError(f"{where}: {key} = {found[key]}, the manifest says {expected[key]}: {_REMEDY}")


def _flat_parts(index: faiss.IndexIDMap) -> dict[str, Any]:
    inner = faiss.downcast_index(index.index)
    return {"inner": type(inner).__name__, "inner_dim": inner.d, "inner_rows": inner.ntotal, "ids": index.id_map.size()}


def _ivf_parts(index: faiss.IndexIVF) -> dict[str, Any]:
    quantizer, lists = faiss.downcast_index(index.quantizer), index.invlists
    parts = {"quantizer": type(quantizer).__name__, "quantizer_dim": quantizer.d, "centroids": quantizer.ntotal}
    parts |= {"lists": (index.nlist, lists.nlist), "code_size": (index.code_size, lists.code_size)}
    parts |= {"in_lists": lists.compute_ntotal()}
    if isinstance(index, faiss.IndexIVFPQ):
        parts |= {"codes": (index.pq.M, index.pq.nbits, index.pq.d, index.by_residual)}
    return parts


def check_rows(rows: np.ndarray, num_rows: int, where: str) -> None:
    """Raise UserError when a shard answers with ids that the index cannot have."""
    if rows.max(initial=-1) >= num_rows or rows.min(initial=0) < -1:
        raise UserError(f"{where}: a shard holds row {int(rows.max())} of an index of {num_rows:,}: {_REMEDY}")
