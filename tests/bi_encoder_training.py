"""A tiny corpus with all that the bi-encoder's trainer may be given, its settings, and the trainer in this process."""

from pathlib import Path

import pytest
import tiny_matcher
import torch

from pipelines import teach
from quire import artifact, bi_encoder, cross_encoder, hub, loop, training_sets
from trainers.bi_encoder import CONFIG, BiEncoderConfig, BiEncoderTask

EVERYTHING = {
    "pooling": "attention",
    "negatives": "tiny",
    "num_hard_negatives": 2,
    "teacher": "taught",
    "distill_pairs": 6,
    "adversary_weight": 0.1,
}


BY_AUTHOR = {"positives": "author", "pairs": "by-author", "views": (), "pair_weight": 0.0, "mask_names": True}


def make_root(folder: Path, encoder_folder: str) -> str:
    """The corpus, a bi-encoder and a cross-encoder as models, the teacher's logits, and a negatives artefact."""
    made = tiny_matcher.corpus(folder)
    torch.manual_seed(0)
    models = {
        "first": bi_encoder.BiEncoder(
            bi_encoder.build_encoder(encoder_folder, pooling="mean", max_seq_length=48), bi_encoder.PairHead(32, 16)
        ),
        "cross": cross_encoder.CrossEncoder(cross_encoder.build_model(encoder_folder, 64)),
    }
    for name, model in models.items():
        draft = artifact.begin(str(folder), "models", name, recipe={"name": name}, inputs={})
        with draft.storage.local_folder(draft.folder) as target:
            model.save(target)
        draft.publish()
    taught(str(folder))
    tiny_matcher.publish(folder, "negatives", made["pairs"].read(["pair_id"]))
    tiny_matcher.author_pairs(folder, made["chunks"])
    return str(folder)


def teach_settings(root: str, name: str = "taught") -> teach.TeachConfig:
    made = teach.TeachConfig(name=name, chunks="tiny", pairs="tiny", cross_encoder="cross", shard_size=40)
    return made.model_copy(update={"runtime": made.runtime.model_copy(update={"root": root})})


def taught(root: str, name: str = "taught") -> artifact.Artifact:
    """As `pipelines.teach` makes it, in this process."""

    def run_shards(draft, items, make, arguments, **_) -> None:
        process = make(*arguments)
        for index, item in enumerate(items):
            draft.write_shard(index, process(item))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teach, "run_shards", run_shards)
        return teach.run(teach_settings(root, name))


def settings(root: str, model: str, runtime: dict | None = None, **changes: object) -> BiEncoderConfig:
    optimisation = {"max_steps": 4, "learning_rate": 1e-3, "eval_every": 4, "checkpoint_every": 4, "metric": "auc"}
    values = {
        "name": "m",
        **dict.fromkeys(("chunks", "pairs", "neighbors"), "tiny"),
        "model": model,
        "max_seq_length": 48,
        "works_per_batch": 4,
        "chunks_per_work": 3,
        "head_size": 16,
        "loop": {**optimisation, "higher_is_better": True},
        "runtime": {"root": root, **(runtime or {})},
        **changes,
    }
    return CONFIG.model_validate(values)


def further(root: str, **changes: object) -> BiEncoderConfig:
    return settings(root, hub.MINILM, **{"start": "first", "views": (), "max_seq_length": 40, **changes})


def plant_mined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mined negatives, planted."""
    monkeypatch.setattr(
        training_sets,
        "mined_negatives",
        lambda chunks, negatives, split, relative_margin: {} if relative_margin else tiny_matcher.mined(chunks),
        raising=False,
    )


def task(settings: BiEncoderConfig) -> BiEncoderTask:
    torch.manual_seed(settings.loop.seed)
    return BiEncoderTask(settings)


def train(made: BiEncoderTask, folder: Path) -> list[dict]:
    draft = artifact.begin(str(folder), "models", "m", recipe={}, inputs={})
    return loop.train(made, made.settings.loop, draft, log=lambda record: None).history
