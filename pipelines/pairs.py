"""Chunks and neighbours to pairs: ids into the chunk table, every negative with its type, frozen for every model.

    python -m pipelines.pairs pipelines/experiments/books/pairs.toml [key=value ...]

With positives=author the pairs are those of style: one author in two works, or authors who never wrote together.

Mined negatives (`pipelines.mine`) change the training pairs alone: validation, calibration and test pairs have the same
bytes whatever was mined, so that the rounds of a model can be compared.
"""

from collections import Counter
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipelines.shards import run_shards
from quire import artifact, config, pairs, schema, splits
from quire.artifact import Artifact, Shard
from quire.author_pairs import sample_author_pairs
from quire.errors import UserError
from quire.mined_pairs import mined_pairs


class PairsConfig(config.Config):
    """What `pipelines.pairs` computes."""

    name: str
    chunks: str
    neighbors: str
    positives: Literal["work", "author"] = Field(default="work", description="author: of two works of one author")
    num_positives: int = Field(default=20, gt=0, description="per work")
    num_negatives: int = Field(default=40, gt=0, description="per work")
    random_share: float = Field(
        default=0.10, ge=0, le=0.9, description="of the negatives; the hard types share the rest"
    )
    neighbor_share: float = Field(
        default=0.25, gt=0, le=1, description="of a split's other works, the nearest, that count as a work's neighbours"
    )
    negatives: str | None = Field(default=None, description="mined ones, which join the training pairs and no others")
    mined_share: float = Field(default=0.25, ge=0, lt=1, description="of the training negatives that are mined")
    seed: int = 0
    runtime: config.Runtime = config.Runtime()

    @model_validator(mode="after")
    def _judged_by_author(self) -> Self:
        if self.positives == "author" and self.negatives is not None:
            raise ValueError(f"negatives = {self.negatives!r}: mined to tell books apart; leave it out, or positives")
        return self


CONFIG = PairsConfig


def run(settings: PairsConfig) -> Artifact:
    """Make the `pairs` artefact; one shard a split."""
    root = settings.runtime.root
    chunks = artifact.open_artifact(root, "chunks", settings.chunks)
    near = artifact.open_artifact(root, "neighbors", settings.neighbors)
    inputs, recipe = {"chunks": chunks, "neighbors": near}, config.recipe(settings)
    mined = None
    if settings.positives == "work":
        del recipe["positives"]
    if settings.negatives is None:  # pairs are frozen: those drawn before there was mining have this recipe
        del recipe["negatives"], recipe["mined_share"]
    else:
        inputs["negatives"] = mined = _opened(settings, chunks)
    draft = artifact.begin_step(settings, "pairs", inputs, recipe)
    if draft.published:
        return draft.published
    arguments = (chunks, near, mined, settings)
    run_shards(draft, splits.SPLITS, _sampler, arguments, num_workers=settings.runtime.num_workers)
    records = draft.finished_shards()
    facts = {split: records[index]["facts"] for index, split in enumerate(splits.SPLITS)}
    for split, counts in facts.items():
        if counts["counts"] and not (counts["counts"].get("positive") and len(counts["counts"]) > 1):
            few = "works" if settings.positives == "work" else "authors with two works"
            raise draft.given_up(
                f"split {split!r} has only {counts['counts']}: too few {few}; add books, change split.shares of the "
                "chunk step, or set its split.by = 'work'"
            )
    lines = [
        f"{split:<12}" + "  ".join(f"{count:>6,} {kind}" for kind, count in fact["counts"].items())
        for split, fact in facts.items()
    ]
    return draft.publish(num_shards=len(splits.SPLITS), summary="\n".join(lines), facts=facts)


def _opened(settings: PairsConfig, chunks: Artifact) -> Artifact:
    """The mined negatives; raises UserError when they are of other chunks."""
    mined = artifact.open_artifact(settings.runtime.root, "negatives", settings.negatives)
    used = mined.manifest["inputs"]["chunks"]
    if used["content"] != chunks.content:
        raise UserError(
            f"negatives = {settings.negatives!r}: mined from chunks {used['name']!r}, not from {chunks.name!r} as they "
            "are now; mine these"
        )
    return mined


def _sampler(chunks: Artifact, near: Artifact, mined: Artifact | None, settings: PairsConfig) -> Any:
    def process(split: str) -> Shard:
        columns = ["chunk_id", "document_id", "work_id", "author", "author_group", "anonymous", "split", "start", "end"]
        table = chunks.read(columns)
        table = table.filter(pc.equal(table["split"], split)).drop_columns(["split"])
        found = near.read()
        found = found.filter(pc.equal(found["split"], split))
        near_works, near_chunks = (_mapping(found, level) for level in ("work", "chunk"))
        sample = pairs.sample_pairs if settings.positives == "work" else sample_author_pairs
        made, rejects = sample(
            table,
            pairs.nearest_share(near_works, settings.neighbor_share),
            near_chunks,
            num_positives_per_work=settings.num_positives,
            num_negatives_per_work=settings.num_negatives,
            random_share=settings.random_share,
            seed=settings.seed,
        )
        if mined is not None and split == "train":
            found = mined.read(["chunk_id", "negative_id", "negative_type"])
            more, lacking = mined_pairs(made, found, table, share=settings.mined_share, seed=settings.seed)
            made, rejects = pa.concat_tables([made, more]), rejects | lacking
        made = made.append_column("split", pa.array([split] * made.num_rows, pa.string()))
        kinds = Counter(kind or "positive" for kind in made["negative_type"].to_pylist())
        facts = {"counts": dict(sorted(kinds.items())), "short_of": rejects}
        return Shard(table=made.select(schema.PAIRS.names).cast(schema.PAIRS), rows_in=table.num_rows, facts=facts)

    return process


def _mapping(found: pa.Table, level: str) -> dict[str, list[str]]:
    rows = found.filter(pc.equal(found["level"], level))
    return dict(zip(rows["id"].to_pylist(), rows["neighbor_ids"].to_pylist(), strict=True))


if __name__ == "__main__":
    config.main(CONFIG, run)
