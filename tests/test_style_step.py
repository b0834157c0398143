"""Style similarity from author pairs to answers: what is published, what the report says, what is refused."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
import tiny_matcher
from sentence_transformers import SentenceTransformer

from quire import artifact, metrics, schema
from quire.artifact import Artifact, Shard
from quire.errors import UserError
from quire.style_pairs import ChunkTable, spread
from quire.style_similarity import StyleSimilarity, load_spec, open_spec
from trainers import style

NUM_CHUNKS, SIZE = 6, 5  # of a document, sentences of a chunk
AUTHORS = {"train": 4, "calibration": 6, "test": 6}
RECIPE = {"size": SIZE, "overlap": 0, "min_chars": 100}


def chunk_table() -> pa.Table:
    """Two books an author, each author with a topic of his own within his split; `calibration5` wrote one only."""
    topics, rows = sorted(tiny.TOPICS), []
    for split, count in AUTHORS.items():
        for number in range(count):
            for book in "xy"[: 1 if (split, number) == ("calibration", 5) else 2]:
                author, work = f"{split}{number}", f"{split}{number}{book}"
                text = tiny.book(topics[number], work, SIZE * NUM_CHUNKS)
                for index, part in enumerate(text.split("\n\n")[:NUM_CHUNKS]):
                    start = text.index(part)
                    ids = {"chunk_id": f"{work}:{index}", "document_id": work, "work_id": work}
                    names = {"author": author, "author_group": author, "anonymous": False, "split": split}
                    place = {"index": index, "start": start, "end": start + len(part.strip()), "num_sentences": SIZE}
                    rows.append({**ids, **names, **place, "text": part.strip()})
    return pa.Table.from_pylist(rows, schema.CHUNKS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    folder = str(tmp_path_factory.mktemp("style"))
    table = chunk_table()
    draft = artifact.begin(folder, "chunks", "tiny", recipe=RECIPE, inputs={})
    draft.write_shard(0, Shard(table=table, rows_in=table.num_rows))
    chunks = draft.publish(num_shards=1)
    tiny_matcher.author_pairs(folder, chunks, num_positives_per_work=8, num_negatives_per_work=8)
    draft = artifact.begin(folder, "models", "encoder", recipe={}, inputs={})
    with draft.storage.local_folder(draft.folder) as target:
        shutil.copytree(encoder_folder, target, dirs_exist_ok=True)
    draft.publish()
    return folder


def run(root: str, encoder_folder: str, name: str = "style", **changes: object) -> Artifact:
    sizes = {"levels": [1, 3], "max_passages": 5, "num_bootstraps": 10, "max_pairs": 90, "num_fit_chunks": 40}
    values = {"name": name, "chunks": "tiny", "pairs": "by-author", "model": "models/encoder", **sizes, **changes}
    runtime = {"root": root, "wandb": "disabled"}
    return style.run(
        style.CONFIG.model_validate_json(json.dumps(values | {"untrained": encoder_folder, "runtime": runtime}))
    )


@pytest.fixture(scope="module")
def made(root: str, encoder_folder: str) -> Artifact:
    return run(root, encoder_folder)


def text_of(work: str, first: int = 0, last: int = NUM_CHUNKS) -> str:
    rows = [row["text"] for row in chunk_table().to_pylist() if row["work_id"] == work]
    return "\n".join(rows[first:last])


def test_the_spec_says_what_the_calibration_rests_on(made: Artifact, root: str) -> None:
    _, spec = open_spec(f"{root}/models/style")
    assert (spec.model, spec.mask_names, spec.num_authors, spec.size) == ("models/encoder", False, 6, SIZE)
    assert [level.passages for level in spec.levels] == [1, 3] and len(spec.data_sha256) == 64
    for level in spec.levels:
        assert level.num_pairs == level.num_cross_validated == spec.num_pairs and level.num_too_short == 0
        assert set(level.cross_validated) == {"logistic", "isotonic"}
        best = min(level.cross_validated, key=lambda name: level.cross_validated[name]["brier"])
        assert level.method == best and 0 < level.prior < 1
        assert level.scale.probability(np.array([0.999])) > level.scale.probability(np.array([-0.5]))


def test_an_answer_is_the_calibrated_mean_of_all_cosines_the_same_both_ways_round(root: str, made: Artifact) -> None:
    found = StyleSimilarity.open(f"{root}/models/style")
    long, three, one = text_of("test0x"), text_of("test0y", 0, 3), text_of("test1x", 2, 3)
    answers = found.score([(long, three), (three, long), (one, three), (one, "Too short.")])
    theirs = SentenceTransformer(str(made.storage.path("models/encoder")), device="cpu")
    parts = [[text_of("test0x", i, i + 1) for i in (1, 3, 5)], [text_of("test0y", i, i + 1) for i in range(3)]]
    a, b = (theirs.encode(part) for part in parts)
    assert answers[0].cosine == pytest.approx(float((a @ b.T).mean()), abs=1e-2)  # half precision on some
    assert answers[0].cosine == answers[1].cosine and answers[0].probability == answers[1].probability
    assert [(x.passages, x.num_passages_a, x.num_passages_b) for x in answers[:3]] == [(3, 6, 3), (3, 3, 6), (1, 1, 3)]
    assert [answer.calibrated for answer in answers] == [False, False, True, False]  # six passages, none at all
    levels = {level.passages: level for level in found.spec.levels}
    for answer in answers:
        expected = levels[answer.passages].scale.probability(np.array([answer.cosine]))[0]
        assert answer.probability == pytest.approx(expected)


def test_a_text_is_read_as_its_book_would_be(root: str, made: Artifact) -> None:
    found, text = StyleSimilarity.open(f"{root}/models/style"), text_of("test0x").replace("e", "é")
    sent = "\ufeff" + unicodedata.normalize("NFD", text).replace("\n", "\r\n")
    assert found.passages(sent) == found.passages(text) and found.passages(text)[1]


def test_another_prior_moves_the_odds_by_as_much(root: str, made: Artifact) -> None:
    pair = [(text_of("test2x"), text_of("test3y"))]
    (even,) = StyleSimilarity.open(f"{root}/models/style").score(pair)
    (rare,) = StyleSimilarity.open(f"{root}/models/style", prior=0.01).score(pair)
    odds = [answer.probability / (1 - answer.probability) for answer in (even, rare)]
    assert odds[0] / odds[1] == pytest.approx((even.prior / (1 - even.prior)) / (0.01 / 0.99))
    assert even.cosine == rare.cosine and rare.prior == 0.01


def test_the_report_has_every_system_on_the_same_pairs_names_raw_and_masked(root: str, made: Artifact) -> None:
    results = made.read_json("results.json")
    assert set(results["systems"]) == {"names as they are", "names masked"}
    for found in results["systems"].values():
        assert set(found) == {
            *("this encoder", "untrained encoder", "function words", "punctuation", "sentences"),
            "regression over these views",
        }
        assert all(
            {"auc_interval", "brier_interval", "ece_interval", "auc_random"} <= set(row) for row in found.values()
        )
    raw = results["systems"]["names as they are"]
    here, bare = (raw[name]["auc"] for name in ("this encoder", "untrained encoder"))  # here they are one model
    assert here == pytest.approx(bare, abs=1e-3)
    table = ChunkTable(artifact.open_artifact(root, "chunks", "tiny"))
    pairs = table.pairs(artifact.open_artifact(root, "pairs", "by-author"), "test", 90)
    theirs = SentenceTransformer(str(made.storage.path("models/encoder")), device="cpu")
    a, b = (theirs.encode(table.texts(rows)) for rows in pairs.rows)
    assert raw["this encoder"]["auc"] == pytest.approx(metrics.auc(pairs.labels, (a * b).sum(1)), abs=0.01)
    page = Path(made.local() / "index.html").read_text("utf-8")
    assert f"{raw['punctuation']['auc']:.3f}" in page and "one author" in page and "same book" not in page


def test_passages_of_a_text_are_evenly_spaced_around_the_chunk_within_its_document(root: str, made: Artifact) -> None:
    table = ChunkTable(artifact.open_artifact(root, "chunks", "tiny"))
    rows = np.arange(len(table.first))
    chosen, fits = table.passages(rows, 3, 5, seed=4)
    assert chosen.shape == (len(rows), 3) and fits.all() and (np.diff(chosen) >= 1).all()
    assert (table.first[rows][:, None] <= chosen).all() and (chosen < table.last[rows][:, None]).all()
    assert (np.abs(chosen - rows[:, None]).min(1) <= 2).all() and len(np.unique(chosen[:, 2] - chosen[:, 0])) > 1
    assert np.array_equal(table.passages(rows, 1, 1, seed=4)[0][:, 0], rows)
    assert not table.passages(rows, NUM_CHUNKS + 1, 9, seed=0)[1].any()
    assert (
        spread(6, 3).tolist() == [1, 3, 5] and spread(7, 1).tolist() == [3] and spread(5, 5).tolist() == [0, 1, 2, 3, 4]
    )


def test_masked_names_change_the_answer_and_are_told(root: str, encoder_folder: str, made: Artifact) -> None:
    masked = run(root, encoder_folder, "masked", mask_names=True, method="logistic", levels=[1])
    _, spec = open_spec(f"{root}/{masked.folder}")
    assert spec.mask_names and spec.levels[0].method == "logistic" and spec.levels[0].cross_validated == {}
    found = StyleSimilarity.open(f"{root}/{masked.folder}")
    text, other = text_of("test0x", 0, 1), text_of("test0y", 0, 1)
    named = text.replace(".", " of Zed and Wxy.")
    hidden = text.replace(".", " of Name and Name.")
    one, two = found.score([(named, other), (hidden, other)])
    assert one.cosine == pytest.approx(two.cosine, abs=1e-5)


def test_what_was_edited_or_made_for_another_encoder_or_other_pairs_is_refused(
    root: str, encoder_folder: str, made: Artifact, tmp_path: Path
) -> None:
    text = (made.local() / "style.json").read_text("utf-8")
    values = json.loads(text)
    with pytest.raises(UserError, match="do not give its fingerprint"):
        load_spec(json.dumps(values | {"max_passages": 99}))
    with pytest.raises(UserError, match="unknown key 'more'"):
        load_spec(json.dumps(values | {"more": 1}))
    level = {key: value for key, value in values["levels"][0].items() if key != "prior"}
    with pytest.raises(UserError, match=r"levels.0: missing key 'prior'"):
        load_spec(json.dumps(values | {"levels": [level]}))
    shutil.copytree(root, tmp_path / "root")
    (tmp_path / "root/models/encoder/other.txt").write_text("x")
    with pytest.raises(UserError, match="are not the calibrated"):
        StyleSimilarity.open(str(tmp_path / "root/models/style"))
    with pytest.raises(UserError, match=r"no style.json in it"):
        open_spec(f"{root}/models/encoder")
    tiny_matcher.publish(root, "pairs", artifact.open_artifact(root, "pairs", "by-author").read(), "by-work")
    with pytest.raises(UserError, match="pairs = 'by-work': of the same book"):
        run(root, encoder_folder, "x", pairs="by-work")
    with pytest.raises(ValueError, match="rising numbers that begin with 1"):
        run(root, encoder_folder, "x", levels=[2, 5])
