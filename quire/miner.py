"""A corpus and a search to negatives, document by document: what the filters look at, and the tables they leave."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy.special import expit

from quire import dedup, mining, mining_report, schema
from quire.candidates import Found
from quire.mining import Mined, Rules
from quire.mining_corpus import Corpus

Search = Callable[[np.ndarray], Found]
Logits = Callable[[Sequence[tuple[str, str]]], np.ndarray]
_CACHED_TEXTS = 20_000  # whose runs of words are kept: 2 kB each


@dataclass(frozen=True)
class Recipe:
    """What the miner needs to know beside the rules."""

    rules: Rules
    positive: str = "mean"
    queries_per_document: int | None = None
    rejected_share: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """The queries of one document and what the search found for them."""

    first: int  # the document's rows in the corpus
    last: int
    rows: np.ndarray  # (q,) of the queries in the corpus
    keys: np.ndarray  # (q,) random numbers
    theirs: np.ndarray  # (q, k) rows of the candidates
    scores: np.ndarray  # (q, k)


@dataclass
class Made:
    """Tables of schema.NEGATIVES, schema.REJECTED and rows of schema.REJECTS, and counts, of some documents."""

    negatives: list[pa.Table] = field(default_factory=list)
    rejected: list[pa.Table] = field(default_factory=list)
    lost: list[dict[str, str]] = field(default_factory=list)
    candidates: Counter[str] = field(default_factory=Counter)
    queries: int = 0


class Miner:
    """Mines the documents of a corpus. `texts` holds the text of `text_row`, `groups` (n,) what must differ.

    `cross` gives the logits of pairs of texts. It reads all candidates of a document together, sorted by length and
    packed, so that its answers do not depend on how documents are cut into shards.
    """

    def __init__(
        self,
        corpus: Corpus,
        groups: np.ndarray,
        texts: pa.ChunkedArray,
        recipe: Recipe,
        cross: Logits | None = None,
    ):
        self.corpus, self.texts, self.recipe, self.cross = corpus, texts, recipe, cross
        self.groups, self.author, self.text_row = groups, corpus.column("author"), corpus.column("text_row")
        self.start, self.end = corpus.column("start"), corpus.column("end")
        self.documents = corpus.documents()
        self.runs: dict[int, np.ndarray] = {}

    def mine(self, first: int, last: int, search: Search, *, apart: bool) -> Made:
        """Mine the documents [first, last). `apart`: the search takes the queries of one document at a time."""
        made = Made()
        for asked in self._asked(first, last, search, apart):
            mined, positive = self._mined(asked)
            made.candidates.update(mined.counts())
            made.queries += len(asked.rows)
            made.negatives.append(self._negatives(asked, mined, positive))
            made.rejected.append(self._rejected(asked, mined, positive))
            made.lost += self._lost(asked, mined)
        return made

    def text(self, row: int) -> str:
        return self.texts[int(self.text_row[row])].as_py()

    def _asked(self, first: int, last: int, search: Search, apart: bool) -> list[Asked]:
        bounds = list(
            zip(self.documents[first:last].tolist(), self.documents[first + 1 : last + 1].tolist(), strict=True)
        )
        queries = [self._queries(*bound) for bound in bounds]
        if apart:
            found = [search(rows) for rows, _ in queries]
        else:
            theirs, scores = search(np.concatenate([rows for rows, _ in queries]))
            cuts = np.cumsum([len(rows) for rows, _ in queries])[:-1]
            found = list(zip(np.split(theirs, cuts), np.split(scores, cuts), strict=True))
        return [Asked(*b, *q, *f) for b, q, f in zip(bounds, queries, found, strict=True)]

    def _queries(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        keys = mining.keys(self.corpus.ids.slice(first, last - first).to_pylist(), self.recipe.seed)
        places = mining.drawn(keys, self.recipe.queries_per_document or len(keys))
        return first + places, keys[places]

    def _mined(self, asked: Asked) -> tuple[Mined, np.ndarray]:
        """What became of the candidates, and the queries' positive scores (q,)."""
        document = slice(asked.first, asked.last)
        positive = mining.positive_scores(
            self.corpus.vectors(asked.first, asked.last),
            np.asarray(self.start[document]),
            np.asarray(self.end[document]),
            asked.rows - asked.first,
            how=self.recipe.positive,
        )
        ours, theirs = asked.rows, asked.theirs

        def shared(queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
            pairs = zip(ours[queries].tolist(), theirs[queries, columns].tolist(), strict=True)
            return np.fromiter((dedup.shared(self._runs(a), self._runs(b)) for a, b in pairs), np.float32, len(queries))

        def cross(queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
            pairs = zip(ours[queries].tolist(), theirs[queries, columns].tolist(), strict=True)
            return expit(self.cross([(self.text(a), self.text(b)) for a, b in pairs])).astype(np.float32)

        looks = {"shared": shared, "cross": cross if self.cross else None}
        return mining.mine(asked.scores, positive, asked.keys, self.recipe.rules, **looks), positive

    def _runs(self, row: int) -> np.ndarray:
        if row not in self.runs:
            if len(self.runs) >= _CACHED_TEXTS:
                self.runs.clear()
            self.runs[row] = dedup.shingles(self.text(row), mining.SHINGLE_SIZE)
        return self.runs[row]

    def _columns(self, asked: Asked, mined: Mined, positive: np.ndarray, places: tuple) -> dict[str, pa.Array]:
        queries, columns = places
        ours, theirs = asked.rows[queries], asked.theirs[queries, columns]
        own = self.corpus.ids.slice(asked.first, asked.last - asked.first).take(pa.array(ours - asked.first))
        # One by one: `take` would look at all of a column that may be far larger than memory.
        others = [self.corpus.ids[int(row)].as_py() for row in theirs]
        author = self.author[ours]
        return {
            "chunk_id": own,
            "negative_id": pa.array(others, pa.string()),
            "rank": pa.array(columns, pa.int32()),
            "score": pa.array(asked.scores[queries, columns]),
            "positive_score": _nullable(positive[queries]),
            "cross_score": _nullable(mined.cross[queries, columns]),
            "shared": _nullable(mined.shared[queries, columns]),
            "same_author": pa.array((author >= 0) & (author == self.author[theirs])),
        }

    def _negatives(self, asked: Asked, mined: Mined, positive: np.ndarray) -> pa.Table:
        columns = self._columns(asked, mined, positive, mined.chosen())
        kind = "model_mined" if self.cross else "ann_mined"
        columns["negative_type"] = pa.array([kind] * len(columns["rank"]), pa.string())
        return pa.table({name: columns[name] for name in schema.NEGATIVES.names}).cast(schema.NEGATIVES)

    def _rejected(self, asked: Asked, mined: Mined, positive: np.ndarray) -> pa.Table:
        places = mining.sample_rejected(mined, asked.keys, self.recipe.rejected_share)
        columns = self._columns(asked, mined, positive, places)
        columns["reason"] = pa.array([mining.REASONS[i] for i in mined.reason[places].tolist()], pa.string())
        return pa.table({name: columns[name] for name in schema.REJECTED.names}).cast(schema.REJECTED)

    def _lost(self, asked: Asked, mined: Mined) -> list[dict[str, str]]:
        """Queries without a negative, and what speaks against their candidates."""
        lost = []
        for i in np.flatnonzero(~(mined.reason == mining.CHOSEN).any(axis=1)).tolist():
            against = Counter(mining.REASONS[reason] for reason in mined.reason[i].tolist() if reason >= 0)
            detail = ", ".join(f"{count} {reason}" for reason, count in sorted(against.items())) or "no candidate"
            row = {"id": self.corpus.ids[int(asked.rows[i])].as_py(), "reason": "no_negative", "detail": detail}
            lost.append(row)
        return lost


def facts(made: Made) -> dict[str, object]:
    """What adds up over shards."""
    audit = mining_report.audit(pa.concat_tables(made.negatives))
    return {"queries": made.queries, "candidates": dict(made.candidates), "audit": audit}


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
