"""Pairs to predictions: what every system says of the calibration and test pairs, one score each.

    python -m pipelines.score pipelines/experiments/books/score.toml [key=value ...]

With `mask_names` every system reads the same pairs with the names in them masked.
Systems: bi_encoder, cross_encoder, untrained (cosine of the pretrained encoder), and the classical baselines: cosines
of single views, a logistic regression over all of them.

With `levels` also pairs of longer texts (`quire.stretches`), of which so many evenly spaced chunks are read, as rows of
their own `k`: the mean over all pairs of these, for the bi-encoder beside what each side has within itself
(`quire.levels.evidence`), and for the cross-encoder over the few that `quire.levels.cells` chooses by the bi-encoder.
"""

from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipelines.shards import run_shards, speed
from quire import artifact, baselines, config, encoder, hub, levels, proper_names, schema
from quire.artifact import Artifact, Shard
from quire.bi_encoder import BiEncoder
from quire.cross_encoder import CrossEncoder
from quire.errors import UserError
from quire.evenly import evenly
from quire.stretches import stretches, told
from quire.training_sets import PairSet

SYSTEMS = ("bi_encoder", "cross_encoder", "untrained", *baselines.NAMES)
LENGTHS = ("chars_a", "chars_b")  # of the texts as they are, names and all
NUMS = ("num_a", "num_b")  # chunks of the texts, of which k are read
COLUMNS = (*schema.PAIRS.names, "k", *NUMS, *LENGTHS, *SYSTEMS)
SPLITS = ("calibration", "test")


class ScoreConfig(config.Config):
    """What `pipelines.score` computes."""

    name: str
    chunks: str
    pairs: str
    bi_encoder: str
    cross_encoder: str
    untrained: str = hub.MINILM
    mask_names: bool = Field(default=False, description="every name becomes one word, for every system")
    levels: tuple[int, ...] = Field(
        default=(1,), description="chunks read of each text; 1: the frozen pairs, more: pairs of longer texts"
    )
    num_level_pairs: int = Field(default=200, gt=0, description="pairs of stretches a level and split")
    max_cross_pairs: int = Field(
        default=4, gt=0, description="pairs of chunks that the cross-encoder reads of two texts"
    )
    shard_size: int = Field(default=400, gt=0, description="pairs")
    num_fit_chunks: int = Field(default=3000, gt=0, description="training chunks that the views are fitted on")
    num_fit_pairs: int = Field(default=4000, gt=1, description="training pairs that the regression is fitted on")
    runtime: config.GpuRuntime = config.GpuRuntime()

    @model_validator(mode="after")
    def _rising_levels(self) -> Self:
        if self.levels[:1] != (1,) or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels = {list(self.levels)}: numbers of chunks, rising from 1, such as [1, 2, 5, 10]")
        return self


CONFIG = ScoreConfig


def run(settings: ScoreConfig) -> Artifact:
    """Make the `predictions` artefact: the pair columns, `k`, lengths, and one column of scores per system."""
    root = settings.runtime.root
    inputs = {
        "chunks": artifact.open_artifact(root, "chunks", settings.chunks),
        "pairs": artifact.open_artifact(root, "pairs", settings.pairs),
        "bi_encoder": artifact.open_artifact(root, "models", settings.bi_encoder),
        "cross_encoder": artifact.open_artifact(root, "models", settings.cross_encoder),
        "untrained_weights": hub.weights_sha256(hub.find_model(settings.untrained)),
    }
    levels.check_strangers(inputs["bi_encoder"])
    recipe = config.recipe(settings) | {levels.SAYS: levels.EVIDENCE}
    draft = artifact.begin_step(settings, "predictions", inputs, recipe)
    if draft.published:
        return draft.published
    counts = pc.value_counts(inputs["pairs"].read(["split"])["split"]).to_pylist()
    sizes = {count["values"]: count["counts"] for count in counts}
    judged = [split for split in SPLITS if split in sizes]  # folds have none for calibration
    if not judged:
        raise UserError(
            f"pairs = {settings.pairs!r}: none for calibration or test; change the shares of the chunk step"
        )
    items = [("chunks", split, start) for split in judged for start in range(0, sizes[split], settings.shard_size)]
    drawn = {split: draw(inputs["chunks"], inputs["pairs"], split, settings) for split in judged}
    items += [
        ("stretches", split, start)
        for split, (table, _) in drawn.items()
        for start in range(0, table.num_rows, settings.shard_size)
    ]
    run_shards(
        draft,
        items,
        Scorer,
        (inputs, settings),
        num_workers=settings.runtime.num_workers,
        num_gpus=settings.runtime.num_gpus,
        can_use_gpus=True,
        memory=3 * 2**30,
    )
    rows = sum(record["rows_out"] for record in draft.finished_shards().values())
    summary = f"{rows:,} pairs by {len(SYSTEMS)} systems; {speed(draft, rows, 'pairs')}"
    facts = {split: found for split, (_, found) in drawn.items()}
    return draft.publish(num_shards=len(items), summary="\n".join([*told(facts), summary]), facts={"stretches": facts})


def draw(chunks: Artifact, pairs: Artifact, split: str, settings: ScoreConfig) -> tuple[pa.Table, dict[int, Any]]:
    """The pairs of stretches of a split, with rows of the whole chunk table, and what is missing."""
    frozen, table = pairs.read(), chunks.read(["chunk_id", "document_id", "start", "end", "split"])
    rows = np.flatnonzero(pc.equal(table["split"], split).to_numpy())
    made, facts = stretches(
        frozen.filter(pc.equal(frozen["split"], split)), table.take(rows), settings.levels[1:], settings.num_level_pairs
    )
    for side in ("row_a", "row_b"):  # the rows of a document follow each other in the whole table, too
        made = made.set_column(made.column_names.index(side), side, pa.array(rows[made[side].to_numpy()], pa.int64()))
    return made, facts


class Scorer:
    """Every system, loaded or fitted once by a worker."""

    def __init__(self, inputs: dict[str, Any], settings: ScoreConfig):
        self.inputs, self.settings = inputs, settings
        self.bi = BiEncoder.load(inputs["bi_encoder"].local())
        self.cross = CrossEncoder.load(inputs["cross_encoder"].local())
        self.untrained = encoder.load_encoder(hub.find_model(settings.untrained))
        self.chunks = inputs["chunks"].memory_map(["chunk_id", "split", "text"])
        self.ids = self.chunks["chunk_id"].combine_chunks()
        self.frozen = inputs["pairs"].read()
        self.drawn: dict[str, pa.Table] = {}  # by split, when one is asked for
        train = np.flatnonzero(pc.equal(self.chunks["split"], "train").to_numpy())
        train = train[:: max(1, len(train) // settings.num_fit_chunks)]
        training = PairSet(inputs["chunks"], inputs["pairs"], "train").spaced(settings.num_fit_pairs)
        sides = zip(*(training.texts(row) for row in range(len(training.labels))), strict=True)
        sides = tuple([self._read(text) for text in side] for side in sides)
        texts = self._texts(train)[1]
        self.classical = baselines.Baselines.fit(texts, sides, training.labels, training.negative_types)

    def __call__(self, item: tuple[str, str, int]) -> Shard:
        what, split, start = item
        if what == "chunks":
            pairs = self.frozen.filter(pc.equal(self.frozen["split"], split))
            table = self._chunks(pairs.slice(start, self.settings.shard_size))
        else:
            if split not in self.drawn:
                self.drawn[split] = draw(self.inputs["chunks"], self.inputs["pairs"], split, self.settings)[0]
            table = self._stretches(self.drawn[split].slice(start, self.settings.shard_size))
        return Shard(table=table.select(COLUMNS), rows_in=table.num_rows)

    def _chunks(self, table: pa.Table) -> pa.Table:
        """Pairs of chunks with what every system says of them."""
        places = (pc.index_in(table[side], value_set=self.ids) for side in ("chunk_a", "chunk_b"))
        (whole_a, a), (whole_b, b) = (self._texts(rows) for rows in places)
        for name, texts in zip(LENGTHS, (whole_a, whole_b), strict=True):
            table = table.append_column(name, pa.array(map(len, texts), pa.int64()))
        table = table.append_column("k", pa.array(np.ones(len(a)), pa.int32()))
        for name in NUMS:
            table = table.append_column(name, pa.array(np.ones(len(a)), pa.int64()))
        vectors = encoder.encode(self.untrained, [*a, *b])
        logits = {
            "bi_encoder": levels.drawn_in(self.bi.score(a, b)),
            "cross_encoder": self.cross.logits(list(zip(a, b, strict=True))),
            "untrained": (vectors[: len(a)] * vectors[len(a) :]).sum(1).astype(np.float64),
        }
        return _with_scores(table, logits | self.classical.scores(a, b))

    def _stretches(self, table: pa.Table) -> pa.Table:
        """Pairs of stretches with what every system says of them. Each chunk is read once, however many pairs it is in;
        the cross-encoder reads each chosen pair of chunks once."""
        sides = [
            [first + evenly(num, k) for first, num, k in zip(*table.select(columns).to_pydict().values(), strict=True)]
            for columns in (("row_a", "num_a", "k"), ("row_b", "num_b", "k"))
        ]
        distinct = np.unique(np.concatenate([rows for side in sides for rows in side]))
        _, texts = self._texts(distinct)
        couples = list(zip(*([np.searchsorted(distinct, rows) for rows in side] for side in sides), strict=True))
        embeddings, views = self.bi.encode(texts), self.bi.rows(texts)
        vectors, classical = encoder.encode(self.untrained, texts), self.classical.views.rows(texts)
        scores: dict[str, list[float]] = {name: [] for name in SYSTEMS}
        chosen: list[list[tuple[str, str]]] = []
        for a, b in couples:
            grid, evidence = self.bi.evidence((embeddings[a], embeddings[b]), (views[a], views[b]))
            cells = levels.cells(grid, self.settings.max_cross_pairs)
            chosen.append([(texts[a[i]], texts[b[j]]) for i, j in cells])
            scores["bi_encoder"].append(evidence)
            scores["untrained"].append(float((vectors[a] @ vectors[b].T).mean(dtype=np.float64)))
            for name, value in self.classical.mean_scores(classical[a], classical[b]).items():
                scores[name].append(value)
        asked = list(dict.fromkeys(pair for pairs in chosen for pair in pairs))
        logit = dict(zip(asked, self.cross.logits(asked), strict=True))
        scores["cross_encoder"] = [float(np.mean([logit[pair] for pair in pairs])) for pairs in chosen]
        return _with_scores(table, scores)

    def _texts(self, rows: Any) -> tuple[list[str], list[str]]:
        """Chunks as they are, and as the systems read them."""
        whole = self.chunks["text"].take(rows).to_pylist()
        return whole, [self._read(text) for text in whole]

    def _read(self, text: str) -> str:
        return proper_names.masked(text) if self.settings.mask_names else text


def _with_scores(table: pa.Table, scores: dict[str, Any]) -> pa.Table:
    for name in SYSTEMS:
        table = table.append_column(name, pa.array(scores[name], pa.float64()))
    return table


if __name__ == "__main__":
    config.main(CONFIG, run)
