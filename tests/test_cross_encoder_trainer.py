"""The cross-encoder's trainer: what its batches are made from."""

from pathlib import Path

import numpy as np
import pytest
import tiny_matcher

from quire import artifact, schema
from quire.artifact import Artifact, Shard
from quire.cross_encoder import tokenize_pairs
from quire.errors import UserError
from quire.training_sets import PairSet
from trainers.cross_encoder import CONFIG, CrossEncoderTask


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return tiny_matcher.corpus(tmp_path_factory.mktemp("matcher"))


def task(root: Path, model: str) -> CrossEncoderTask:
    optimisation = {"max_steps": 4, "learning_rate": 1e-3, "eval_every": 4, "checkpoint_every": 4, "metric": "auc"}
    values = {"name": "m", "chunks": "tiny", "pairs": "tiny", "model": model, "max_length": 64, "batch_size": 8}
    loop = {**optimisation, "higher_is_better": True, "accumulation": 2}
    return CrossEncoderTask(CONFIG.model_validate(values | {"loop": loop, "runtime": {"root": str(root)}}))


def test_a_batch_is_described_by_the_two_chunks_of_each_pair(made: dict[str, Artifact], encoder_folder: str) -> None:
    trained = task(Path(made["chunks"].storage.root), encoder_folder)
    texts = dict(zip(*made["chunks"].read(["chunk_id", "text"]).to_pydict().values(), strict=True))
    for rank in range(2):
        told = [line.split(" and ") for line in trained.describe(3, 1, rank, 2)]
        tokens, _ = tokenize_pairs(trained.cross.model, [(texts[a], texts[b]) for a, b in told], 64)
        batch = trained.batch(3, 1, rank, 2)
        found = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert len(told) == 4 and all(np.array_equal(a, b) for a, b in zip(found, tokens, strict=True))


def test_pairs_of_other_chunks_are_refused_by_name(made: dict[str, Artifact]) -> None:
    table = made["pairs"].read()
    strange = table.slice(0, 1).set_column(table.column_names.index("chunk_b"), "chunk_b", [["gone"]])
    draft = artifact.begin(made["chunks"].storage.root, "pairs", "strange", recipe={}, inputs={})
    draft.write_shard(0, Shard(table=strange.cast(schema.PAIRS), rows_in=1))
    with pytest.raises(UserError, match="pairs 'strange': 'tiny' has no chunk 'gone'"):
        PairSet(made["chunks"], draft.publish(num_shards=1), strange["split"][0].as_py())
