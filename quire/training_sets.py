"""What trainers read: pairs and chunks of one split, texts on the local disk and not in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score
from torch import nn

from quire.artifact import Artifact
from quire.errors import UserError
from quire.evenly import evenly


@dataclass(frozen=True)
class PairSet:
    """Pairs of some splits: labels (n,), negative types (n,), and rows of both chunks in the chunk table."""

    labels: np.ndarray
    negative_types: np.ndarray
    rows_a: np.ndarray
    rows_b: np.ndarray
    chunk_texts: pa.ChunkedArray
    chunk_ids: pa.Array

    def __init__(self, chunks: Artifact, pairs: Artifact, *splits: str):
        table = pairs.read()
        for split in splits:
            if not pc.any(pc.equal(table["split"], split)).as_py():
                raise UserError(
                    f"pairs {pairs.name!r} has no pair in split {split!r}: change the shares of the chunk step"
                )
        table = table.filter(pc.is_in(table["split"], pa.array(splits, table["split"].type)))
        mapped = chunks.memory_map(["chunk_id", "text"])
        ids = mapped["chunk_id"].combine_chunks()
        rows = [pc.index_in(table[side], value_set=ids) for side in ("chunk_a", "chunk_b")]
        for side, found in zip(("chunk_a", "chunk_b"), rows, strict=True):
            if found.null_count:
                missing = table[side].filter(pc.is_null(found))[0].as_py()
                raise UserError(
                    f"pairs {pairs.name!r}: {chunks.name!r} has no chunk {missing!r}; name the chunks of these pairs"
                )
        kinds = table["negative_type"].fill_null("positive").to_pylist()
        values = (
            table["label"].to_numpy(),
            np.asarray(kinds, dtype=object),
            *(r.to_numpy() for r in rows),
            mapped["text"],
            ids,
        )
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def texts(self, row: int, swapped: bool = False) -> tuple[str, str]:
        """Both texts of a pair, as (b, a) when swapped."""
        a, b = (self.chunk_texts[int(rows[row])].as_py() for rows in (self.rows_a, self.rows_b))
        return (b, a) if swapped else (a, b)

    def named(self, row: int, swapped: bool = False) -> str:
        """Both chunk ids of a pair, in the order of `texts`."""
        a, b = (self.chunk_ids[int(rows[row])].as_py() for rows in (self.rows_a, self.rows_b))
        return f"{b} and {a}" if swapped else f"{a} and {b}"

    def spaced(self, count: int) -> "PairSet":
        """At most `count` pairs, evenly spaced over the set."""
        keep = evenly(len(self.labels), count)
        part = object.__new__(PairSet)
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            object.__setattr__(part, name, value if name.startswith("chunk_") else value[keep])
        return part


def mean_auc(pairs: PairSet, scores: np.ndarray) -> dict[str, float]:
    """AUC of positives against each negative type, and their plain mean as `auc`: the types are never blended."""
    positive = pairs.labels == 1
    aucs = {}
    for kind in sorted(set(pairs.negative_types[~positive])):
        chosen = positive | (pairs.negative_types == kind)
        aucs[f"auc_{kind}"] = float(roc_auc_score(pairs.labels[chosen], scores[chosen]))
    return {"auc": float(np.mean(list(aucs.values()))), **aucs}


def rows_by_work(chunks: Artifact, split: str) -> tuple[dict[str, np.ndarray], pa.ChunkedArray]:
    """work -> (n, 3) int64 of (row, start, end), and the text column that the rows point into.

    For a work of several documents the offsets of the later ones are shifted behind the earlier ones.
    """
    mapped = chunks.memory_map(["work_id", "document_id", "split", "start", "end", "text"])
    rows = np.flatnonzero(pc.equal(mapped["split"], split).to_numpy())
    works, documents = (mapped[name].take(rows).to_pylist() for name in ("work_id", "document_id"))
    start, end = (mapped[name].take(rows).to_numpy() for name in ("start", "end"))
    gathered: dict[str, list[tuple[int, int, int]]] = {}
    shift: dict[str, tuple[str, int]] = {}
    for i, row in enumerate(rows.tolist()):
        work = gathered.setdefault(works[i], [])
        document, offset = shift.get(works[i], (documents[i], 0))
        if document != documents[i]:
            offset = max(last for _, _, last in work) + 2
        shift[works[i]] = (documents[i], offset)
        work.append((row, int(start[i]) + offset, int(end[i]) + offset))
    return {work: np.asarray(found, dtype=np.int64) for work, found in gathered.items()}, mapped["text"]


def near_works(neighbors: Artifact, split: str) -> dict[str, list[str]]:
    """work -> works of near centroids, the nearest first."""
    near = neighbors.read()
    near = near.filter(pc.and_(pc.equal(near["level"], "work"), pc.equal(near["split"], split)))
    return {row["id"]: list(row["neighbor_ids"][:10]) for row in near.select(["id", "neighbor_ids"]).to_pylist()}


def related_works(chunks: Artifact, neighbors: Artifact, split: str) -> Mapping[str, list[str]]:
    """work -> works of the same author and near works, the hard company for a batch."""
    related = near_works(neighbors, split)
    table = chunks.read(["work_id", "author", "anonymous", "split"])
    table = table.filter(pc.and_(pc.equal(table["split"], split), pc.invert(table["anonymous"])))
    by_author: dict[str, set[str]] = {}
    for work, author in set(zip(table["work_id"].to_pylist(), table["author"].to_pylist(), strict=True)):
        by_author.setdefault(author, set()).add(work)
    for works in by_author.values():
        for work in works:
            same = sorted(works - {work})
            related[work] = same * 3 + [other for other in related.get(work, []) if other not in same]
    return related


def authors_of_works(chunks: Artifact, split: str) -> dict[str, tuple[str | None, str]]:
    """work -> its author, None where nobody is known, and its author group.

    The author of a work is that of its first chunk with a name, as the pairs have it.
    """
    table = chunks.read(["work_id", "author", "author_group", "anonymous", "split"])
    table = table.filter(pc.equal(table["split"], split)).drop_columns(["split"])
    found: dict[str, tuple[str | None, str]] = {}
    for row in table.to_pylist():
        author, group = found.get(row["work_id"], (None, row["author_group"]))
        found[row["work_id"]] = (author or (None if row["anonymous"] else row["author"]), group)
    return found


def mined_negatives(
    chunks: Artifact, negatives: Artifact, split: str = "train", relative_margin: float | None = None
) -> dict[int, np.ndarray]:
    """row of a query -> rows of its mined negatives, (m,) int64, the nearest first; rows of the chunk table.

    With a margin, of them those that it does not reject, as in `pipelines.mine`: `score` at most the positive score
    less that part of it. None is mined in the place of another. A chunk without mined negatives is not in it. Raises
    UserError when the negatives are of other chunks, or hold a chunk outside `split`.
    """
    if negatives.manifest["inputs"]["chunks"]["content"] != chunks.content:
        raise UserError(
            f"negatives {negatives.name!r} are not mined from chunks {chunks.name!r} as they are: mine these"
        )
    table, known = negatives.read(["chunk_id", "negative_id"]), chunks.read(["chunk_id", "split"])
    ids, inside = known["chunk_id"].combine_chunks(), pc.equal(known["split"], split).to_numpy()
    query, negative = (pc.index_in(table[side], value_set=ids).to_numpy() for side in ("chunk_id", "negative_id"))
    outside = np.flatnonzero(~(inside[query] & inside[negative]))
    if len(outside):
        row = table.slice(int(outside[0]), 1).to_pylist()[0]
        raise UserError(
            f"negatives {negatives.name!r}: {row['chunk_id']} or {row['negative_id']} is not in split {split!r}"
        )
    if relative_margin is not None:
        scores = negatives.read(["score", "positive_score"])
        exact, near = (scores[name].to_numpy().astype(np.float64) for name in ("score", "positive_score"))
        kept = exact <= near - np.abs(near) * relative_margin  # never for a document of one chunk: no positive score
        query, negative = query[kept], negative[kept]
    order = np.argsort(query, kind="stable")
    queries, first = np.unique(query[order], return_index=True)
    lists = np.split(negative[order].astype(np.int64), first[1:])
    return dict(zip(queries.tolist(), lists, strict=False))


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout of a pretrained model. 0 keeps attention on its fused path, which doubles the speed."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
    for name in ("attention_probs_dropout_prob", "hidden_dropout_prob"):
        if hasattr(model.config, name):
            setattr(model.config, name, probability)


def flops_per_token(model: nn.Module) -> Callable[[int], float]:
    """FLOPs of forward and backward per token as a function of the sequence length T: 6 N + 12 L d T.

    N counts the parameters without embeddings (Kaplan et al. 2020, arXiv:2001.08361; the attention term as in
    PaLM, Chowdhery et al. 2022, appendix B).
    """
    embedded = sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    parameters = sum(p.numel() for p in model.parameters()) - embedded
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    return lambda length: 6.0 * parameters + 12.0 * layers * width * length
