"""The columns of every table, in one place."""

from typing import Any

import numpy as np
import pyarrow as pa

DOCUMENTS = pa.schema(
    [
        ("document_id", pa.string()),
        ("author", pa.string()),  # one slug for all its people together
        ("authors", pa.list_(pa.string())),  # the slug of each who has a name; none of them straddles two splits
        ("author_name", pa.string()),
        ("anonymous", pa.bool_()),  # an anonymous author is never the same author as another
        ("title", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("encoding", pa.string()),
        ("kept", pa.float32()),  # share of the source's characters that cleaning kept
        ("signature", pa.list_(pa.uint32())),  # dedup.minhash of the text; null where it is made when chunked
    ]
)
CHUNKS = pa.schema(
    [
        ("chunk_id", pa.string()),  # document_id:index
        ("document_id", pa.string()),
        ("work_id", pa.string()),  # near-duplicate documents are one work
        ("author", pa.string()),  # of an anonymous document anonymous:work_id, so that equal authors are one author
        ("author_group", pa.string()),  # authors linked by common works; works of two groups share no author
        ("anonymous", pa.bool_()),
        ("split", pa.string()),
        ("index", pa.int32()),
        ("start", pa.int64()),  # characters of the cleaned document, half-open
        ("end", pa.int64()),
        ("num_sentences", pa.int32()),
        ("text", pa.string()),  # document text[start:end], exactly
    ]
)
REJECTS = pa.schema(
    [("id", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("start", pa.int64()), ("end", pa.int64())]
)
INDEX = pa.schema(
    [
        ("row", pa.int64()),  # of the embeddings, counted over all parts
        ("chunk_id", pa.string()),
        ("part", pa.int32()),  # of the embeddings
    ]
)
HARVEST = pa.schema(
    [
        ("document_id", pa.string()),
        ("gutenberg_id", pa.int64()),
        (
            "status",
            pa.string(),
        ),  # done | missing | refused (by the selection; or once read: not_english, empty) | failed
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source_url", pa.string()),  # where it was found, after redirects; a path in a mirror
        ("asked_url", pa.string()),
        ("fetched_at", pa.string()),  # UTC, ISO 8601; null of a mirror, from which nothing is fetched
        ("sha256", pa.string()),  # of the bytes as they were fetched
        ("num_bytes", pa.int64()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),  # an HTTP date: the server's header, or when a mirror's file was written
        ("title", pa.string()),  # this and the next two as the catalogue states them
        ("languages", pa.list_(pa.string())),
        ("licence", pa.string()),
    ]
)
NEIGHBORS = pa.schema(
    [
        ("level", pa.string()),  # work | chunk
        ("split", pa.string()),
        ("id", pa.string()),
        ("neighbor_ids", pa.list_(pa.string())),  # best first
        ("scores", pa.list_(pa.float32())),  # cosine
    ]
)
NEGATIVES = pa.schema(
    [
        ("chunk_id", pa.string()),  # the query
        ("negative_id", pa.string()),  # a chunk of another work, the query's nearest first
        ("negative_type", pa.string()),  # ann_mined | model_mined
        ("rank", pa.int32()),  # among all chunks of other groups, 0 the nearest
        ("score", pa.float32()),  # cosine
        ("positive_score", pa.float32()),  # the query's cosine to its own document; null where that has one chunk
        ("cross_score", pa.float32()),  # probability of one book by the cross-encoder, null without one
        ("shared", pa.float32()),  # share of the shorter text's runs of eight words that the other has, too
        ("same_author", pa.bool_()),
    ]
)
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("split", pa.string()),
        ("chunk_a", pa.string()),
        ("chunk_b", pa.string()),
        ("label", pa.int8()),
        ("negative_type", pa.string()),  # null for positives
        ("distance", pa.int64()),  # characters between the two chunks of a positive
        ("work_a", pa.string()),
        ("work_b", pa.string()),
        ("author_a", pa.string()),  # as the chunks have them
        ("author_b", pa.string()),
    ]
)


# A few of the candidates that became no negative, and why.
REJECTED = pa.schema(
    [
        *(
            NEGATIVES.field(name)
            for name in ("chunk_id", "negative_id", "rank", "score", "positive_score", "cross_score", "shared")
        ),
        pa.field("reason", pa.string()),
    ]
)


def embeddings(width: int, number: pa.DataType = pa.float32()) -> pa.Schema:  # noqa: B008
    """Schema of embeddings of `width` numbers: plain fixed-size lists, readable by any Parquet reader."""
    return pa.schema([("chunk_id", pa.string()), ("embedding", pa.list_(number, width)), ("num_tokens", pa.int32())])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size list column as (n, d) float32."""
    width = column.type.list_size
    arrays = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks if len(chunk)
    ]
    return np.concatenate(arrays).astype(np.float32, copy=False) if arrays else np.empty((0, width), np.float32)


def lists(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """(n, d) as a fixed-size list column of the same numbers."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def rejects(rows: list[dict]) -> pa.Table | None:
    """Dropped rows with their reasons, or None when nothing was dropped."""
    if not rows:
        return None
    columns = {name: [_encodable(row.get(name)) for row in rows] for name in REJECTS.names}
    return pa.table(columns, schema=REJECTS)


def _encodable(value: Any) -> Any:
    """What is told of bad input may hold what makes it bad: half a surrogate pair is spelt out."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def summarise(dropped: dict[str, int]) -> str:
    """`12 short, 3 over_cap` or `nothing dropped`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items())) or "nothing dropped"
