"""PAN's layout: what is read, what is refused and where, and a whole set scored by a matcher."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from matchers import publish_matcher

from quire import artifact, encoder, pan
from quire.artifact import Artifact
from quire.errors import UserError
from quire.storage import Storage

SHARED = Path(__file__).parents[2] / "shared" / "data" / "pan"


def write(file: Path, rows: list) -> str:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8") as lines:
        lines.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return str(file)


def problems(number: int, first: int = 0) -> tuple[list[dict], list[dict]]:
    """Pairs of books of six authors, each on a topic of its own, and the truth."""
    topics, draw = sorted(tiny.TOPICS), np.random.default_rng(first)
    pairs, truths = [], []
    for i in range(first, first + number):
        a, b = draw.integers(6), draw.integers(6)
        b = a if i % 2 else b if b != a else (b + 1) % 6
        texts = [tiny.book(topics[author], f"n{i}{side}", 30, seed=i) for author, side in ((a, "a"), (b, "b"))]
        pairs.append({"id": f"p{i}", "fandoms": ["x", "y"], "pair": texts})
        truths.append({"id": f"p{i}", "same": bool(a == b), "authors": [f"w{a}", f"w{b}"]})
    return pairs, truths


def test_pairs_and_truth_are_read_plain_and_compressed_and_by_ranges(tmp_path: Path) -> None:
    pairs, truths = problems(5)
    for name in ("p.jsonl", "p.jsonl.gz"):
        file = write(tmp_path / name, pairs)
        found = [*pan.Problems(file).read(0, 2), *pan.Problems(file).read(2, 9)]
        assert found == [pan.Problem(row["id"], *row["pair"]) for row in pairs] and len(pan.ids(file)) == 5
    told = pan.truth(write(tmp_path / "t.jsonl", truths))
    assert told["p1"] == pan.Truth(True, ("w" + told["p1"].authors[0][1:], told["p1"].authors[0]))
    assert pan.truth(write(tmp_path / "u.jsonl", [{"id": "a", "same": False}]))["a"] == pan.Truth(False, ("a", "a"))


def test_going_forward_no_line_of_a_set_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, reads, lines = [f"p{i}" for i in range(9)], [], pan._lines
    found = pan.Problems(write(tmp_path / "p.jsonl.gz", [{"id": name, "pair": ["x", "y"]} for name in names]))

    def counted(path: str) -> Iterator[tuple[str, bytes]]:
        for where, line in lines(path):
            reads.append(where)
            yield where, line

    monkeypatch.setattr(pan, "_lines", counted)
    asked = [(0, 2), (4, 6), (8, 12), (12, 14), (2, 4), (4, 5)]  # as a worker among others gets them, then one again
    told = [[problem.id for problem in found.read(*place)] for place in asked]
    assert told == [names[slice(*place)] for place in asked]
    assert len(reads) == len(names) + 5


GOOD = {"id": "a", "pair": ["x", "y"]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object, got list"),
        ({"pair": ["x", "y"]}, "line 2: id: missing; the line has pair"),
        ({"id": 7, "pair": ["x", "y"]}, "line 2: id: expected str, got 7"),
        ({"id": "b"}, "line 2: pair: missing"),
        ({"id": "b", "pair": ["x"]}, "line 2: pair: expected two texts"),
        ({"id": "b", "pair": ["x", " "]}, "line 2: pair: expected two texts"),
        ({"id": "b", "pair": ["x", None]}, "line 2: pair: expected two texts"),
    ],
)
def test_a_broken_line_is_named_by_file_line_and_field(tmp_path: Path, line: object, words: str) -> None:
    file = write(tmp_path / "p.jsonl", [GOOD, line])
    with pytest.raises(UserError, match=f"p.jsonl, {words}"):
        pan.Problems(file).read()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a", "same": "yes"}], 'line 1: same: expected bool, got "yes"'),
        ([{"id": "a", "same": True, "authors": ["x"]}], "line 1: authors: expected two"),
        ([{"id": "a", "same": True}, {"id": "a", "same": True}], "line 2: id: 'a' stands twice"),
        ([], "no truth"),
    ],
)
def test_a_broken_truth_is_named_too(tmp_path: Path, rows: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pan.truth(write(tmp_path / "t.jsonl", rows))


def test_missing_empty_repeated_and_cut_off_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        pan.ids(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(UserError, match="no problem in it"):
        pan.ids(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match="line 2: id: 'a' stands twice"):
        pan.ids(write(tmp_path / "twice.jsonl", [GOOD, GOOD]))
    whole = gzip.compress(b"".join(json.dumps(GOOD | {"id": str(i)}).encode() + b"\n" for i in range(99)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut off or not gzip"):
        pan.ids(str(tmp_path / "cut.jsonl.gz"))


def test_answers_are_read_back_as_they_were_and_must_be_probabilities() -> None:
    rows = [json.loads(line) for line in pan.answers(["a", "b"], [0.5, 0.123456]).splitlines()]
    assert rows == [{"id": "a", "value": 0.5}, {"id": "b", "value": 0.123456}]
    with pytest.raises(UserError, match="value of 'b' = 1.5"):
        pan.answers(["a", "b"], [0.5, 1.5])


def test_the_derived_set_is_read_whole() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no sets at {SHARED}")
    told = pan.truth(str(SHARED / "derived_pairs_truth.jsonl"))
    found = pan.Problems(str(SHARED / "derived_pairs.jsonl.gz")).read()
    assert {problem.id for problem in found} == set(told) and len(found) == 400


def matcher(root: Path, encoder_folder: str) -> None:
    publish_matcher(root, encoder_folder, prefilter=0.3)
    scales = {str(k): {"systems": {"untrained": {"scale": {"slope": 9.0 * k, "bias": -5.0}}}} for k in (1, 2, 3)}
    Storage(str(root)).write_json("models/m/calibration.json", {"levels": scales})
    artifact.begin(str(root), "models", "m", recipe={}, inputs={}).publish()


def run(root: Path, encoder_folder: str, **changes: object) -> Artifact:
    from pipelines import pan as step

    values = {"name": "p", "matcher": "m", "untrained": encoder_folder, "num_bootstraps": 20, "shard_size": 7}
    text = json.dumps(values | changes | {"runtime": {"root": str(root)}})
    return step.run(step.CONFIG.model_validate_json(text))


@pytest.mark.ray
def test_a_set_is_scored_fitted_on_another_and_answered_in_pan_s_format(
    tmp_path: Path, encoder_folder: str, local_ray: None
) -> None:
    matcher(tmp_path, encoder_folder)
    files = {}
    for name, (pairs, truths) in {"": problems(20), "fit_": problems(20, 100)}.items():
        files[f"{name}pairs"] = write(tmp_path / f"{name}pairs.jsonl.gz", pairs)
        files[f"{name}truth"] = write(tmp_path / f"{name}truth.jsonl", truths)
    made = run(tmp_path, encoder_folder, **files)
    rows = made.read_json("results.json")
    assert set(rows) == {"two_stage", "bi_encoder", "untrained"} and rows["untrained"]["num_positives"] == 10
    answers = (made.local() / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in answers] == [f"p{i}" for i in range(20)]
    assert all(0 <= json.loads(line)["value"] <= 1 for line in answers)
    table = made.read().to_pylist()
    assert [row["set"] for row in table] == ["answer"] * 20 + ["fit"] * 20
    assert all(row["chunks_a"] > 3 and row["k"] == 3 for row in table)  # cut and read as the service does
    alone = run(tmp_path, encoder_folder, name="q", pairs=files["pairs"])
    assert not (alone.local() / "results.json").exists() and (alone.local() / "answers.jsonl").exists()
    assert [row["two_stage"] for row in alone.read().to_pylist()] == [row["two_stage"] for row in table[:20]]


def test_a_whole_shard_is_what_the_matcher_says_of_its_pairs(tmp_path: Path, encoder_folder: str) -> None:
    from pipelines import pan as step
    from quire.matcher import TwoStage

    matcher(tmp_path, encoder_folder)
    pairs, _ = problems(3)
    file = write(tmp_path / "pairs.jsonl", pairs)
    settings = step.CONFIG(name="p", matcher="m", pairs=file, untrained=encoder_folder, shard_size=2)
    made = artifact.open_artifact(str(tmp_path), "models", "m")
    shard = step._scorer(made, settings)(("answer", 2))
    (row,) = shard.table.to_pylist()
    two_stage = TwoStage.open(str(tmp_path / "models/m"))
    (match,) = two_stage.match([tuple(pairs[2]["pair"])])
    assert row["id"] == "p2" and 1 / (1 + np.exp(-row["two_stage"])) == pytest.approx(match.probability)
    read = two_stage.question(*pairs[2]["pair"])
    untrained = encoder.load_encoder(encoder_folder)
    cosine = (encoder.encode(untrained, read.a) @ encoder.encode(untrained, read.b).T).mean()
    assert row["k"] == match.k == 3 and row["untrained"] == pytest.approx(27 * cosine - 5, abs=1e-4)


def test_results_need_the_truth_of_every_problem_and_fit_needs_both_files(tmp_path: Path) -> None:
    from pipelines import pan as step

    settings = step.CONFIG(name="p", matcher="m", pairs="p.jsonl", truth="t.jsonl", num_bootstraps=5)
    told = {"a": pan.Truth(True, ("x", "x")), "b": pan.Truth(False, ("x", "y"))}
    rows = step.results(["a", "b"], {"s": np.asarray([0.9, 0.2])}, told, settings)
    assert rows["s"]["c_at_1"] == 1 and rows["s"]["brier"] == pytest.approx(1 - 0.025)
    assert rows["s"]["overall"] == pytest.approx((1 + 1 + 1 + 1 + 0.975) / 5)
    assert "0.995" in step.official_table(rows)
    with pytest.raises(UserError, match="t.jsonl: no truth for the problem 'c'"):
        step.results(["a", "c"], {"s": np.asarray([0.9, 0.2])}, told, settings)
    with pytest.raises(ValueError, match="give both or neither"):
        step.CONFIG(name="p", matcher="m", pairs="p.jsonl", fit_pairs="x.jsonl")


def test_a_set_is_not_fitted_on_itself(tmp_path: Path) -> None:
    from pipelines import pan as step

    a, b = (write(tmp_path / f"{name}.jsonl", [GOOD]) for name in "ab")
    draft = artifact.begin(str(tmp_path), "models", "m", recipe={}, inputs={})
    draft.publish()
    files = {"pairs": str(a), "fit_pairs": str(b), "fit_truth": str(b)}
    with pytest.raises(UserError, match="1 of its problems, such as .* are in pairs: answers"):
        step.run(step.CONFIG.model_validate({"name": "p", "matcher": "m", **files, "runtime": {"root": str(tmp_path)}}))
