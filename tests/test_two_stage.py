"""The matcher in one process: levels, promises and priors, and the specs and models that it refuses."""

import json
import shutil
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from cluster import s3_server
from matchers import SHORT, A, B, certificate, publish_matcher

from quire import calibration, certify, matcher
from quire.bi_encoder import BiEncoder
from quire.errors import UserError
from quire.matcher import TwoStage
from quire.storage import Storage


def test_both_orders_give_the_same_bits_and_long_texts_are_cut(matcher_address: str) -> None:
    two_stage = TwoStage.open(matcher_address)
    one, other, short = two_stage.match([(A, B), (B, A), (SHORT, A)])
    assert one == other
    assert one.stage == short.stage == "cross-encoder" and 0 < short.probability < 1


def test_below_the_prefilter_the_first_stage_is_final(tmp_path: Path, encoder_folder: str) -> None:
    (found,) = TwoStage.open(publish_matcher(tmp_path, encoder_folder, prefilter=1.0)).match([(A, B)])
    assert (found.stage, found.cross_probability, found.probability) == ("bi-encoder", None, found.bi_probability)


def test_what_is_promised_is_decided_and_nothing_else(tmp_path: Path, encoder_folder: str) -> None:
    pair = (A[:250], B[:250])  # one passage each
    bare = TwoStage.open(publish_matcher(tmp_path / "bare", encoder_folder, prefilter=0.0)).match([pair])[0]
    assert bare.decision in ("same", "different") and bare.code is None and bare.same_threshold is None
    low, high = bare.probability - 0.01, bare.probability + 0.01
    expected = {
        ("same", low): ("same", True, None),
        ("different", high): ("different", False, None),
        ("same", high): ("undecided", None, None),
    }
    for number, ((side, threshold), answer) in enumerate(expected.items()):
        certificates = (certificate(side, threshold),)
        address = publish_matcher(tmp_path / str(number), encoder_folder, prefilter=0.0, certificates=certificates)
        one, short = TwoStage.open(address).match([pair, (SHORT, B[:250])])
        assert (one.decision, one.same_book, one.code) == answer
        assert (short.decision, short.code) == ("undecided", "not_calibrated")
        assert getattr(one, f"{side}_threshold") == pytest.approx(threshold) and one.threshold is None


def test_at_another_prior_the_probability_moves_and_a_promise_holds_on_one_side_only(
    tmp_path: Path, encoder_folder: str
) -> None:
    pair = (A[:250], B[:250])
    plain = publish_matcher(tmp_path / "plain", encoder_folder, prefilter=0.0)
    probability = TwoStage.open(plain).match([pair])[0].probability
    address = publish_matcher(
        tmp_path / "m", encoder_folder, prefilter=0.0, certificates=(certificate("same", probability - 0.01),)
    )
    higher, lower = (TwoStage.open(address, prior).match([pair])[0] for prior in (0.9, 0.2))
    assert higher.probability == pytest.approx(float(certify.shift(probability, 0.5, 0.9)))
    assert (higher.decision, higher.prior) == ("same", 0.9) and higher.same_threshold < higher.probability
    assert lower.decision == "undecided" and lower.same_threshold is None
    with pytest.raises(UserError, match="calibrate with prior=0.2"):
        TwoStage.open(publish_matcher(tmp_path / "r", encoder_folder, prefilter=0.0, objective="recall"), 0.2)


def test_two_texts_are_answered_at_the_largest_level_that_both_have_passages_for(
    matcher_address: str, tmp_path: Path, encoder_folder: str
) -> None:
    two_stage = TwoStage.open(matcher_address)
    one, two, many = A[:250], B[:500], A
    counts = [len(matcher.passages(text, two_stage.spec)) for text in (one, two, many)]
    assert counts == [1, 2, 5]
    found = two_stage.match([(one, two), (two, one), (two, many), (many, B), (SHORT, many)])
    assert [match.k for match in found] == [1, 1, 2, 3, 1] and found[0] == found[1]
    assert [match.calibrated for match in found] == [True, True, True, True, False]
    gap = publish_matcher(tmp_path, encoder_folder, prefilter=0.0, k=(1, 3))
    assert [match.k for match in TwoStage.open(gap).match([(two, many), (many, B)])] == [1, 3]


def test_a_text_is_answered_as_it_would_be_read_from_a_book(matcher_address: str) -> None:
    two_stage, accented = TwoStage.open(matcher_address), A.replace("e", "é")
    sent = "\ufeff" + unicodedata.normalize("NFD", accented).replace("\n", "\r\n")
    expected, found = two_stage.match([(accented, B), (sent, B)])
    assert found.probability == pytest.approx(expected.probability, abs=1e-6) and found.k == expected.k
    assert matcher.passages(sent, two_stage.spec) == matcher.passages(accented, two_stage.spec)
    assert 0 < two_stage.match([("\ufeff", B)])[0].probability < 1  # nothing is left of it


def test_an_answer_is_all_cells_beside_the_texts_own_and_the_telling_ones_on_its_level_s_scale(
    matcher_address: str,
) -> None:
    two_stage = TwoStage.open(matcher_address)
    (found,) = two_stage.match([(A, B)])
    spec = two_stage.spec
    a, b = (matcher.passages(text, spec) for text in matcher.ordered(A, B))
    a, b = [a[0], a[2], a[4]], [b[0], b[2], b[4]]  # three of five
    grid = np.array([[float(two_stage.bi.score([x], [y])[0]) for y in b] for x in a])
    own = [float(two_stage.bi.score([x[i]], [x[2 - i]])[0]) for x in (a, b) for i in (0, 2)]  # neighbours left out
    evidence = (grid.mean() + 1) / (max(np.mean(own), 0) + 1)
    cells = [np.unravel_index(place, (3, 3)) for place in (grid.argmax(), grid.argmin())]
    cross = two_stage.cross.logits([(a[i], b[j]) for i, j in cells]).mean()
    level = spec.level(3)
    assert found.bi_probability == pytest.approx(float(level.bi_scale.probability(evidence)), abs=1e-5)
    assert found.probability == pytest.approx(float(level.fusion.probability(cross, evidence)), abs=1e-5)


def test_a_second_stage_that_no_pair_reaches_is_not_loaded(tmp_path: Path, encoder_folder: str) -> None:
    some = TwoStage.open(publish_matcher(tmp_path / "some", encoder_folder, prefilter=1.0))
    address = publish_matcher(tmp_path / "none", encoder_folder, prefilter=calibration.NONE_PASSES)
    shutil.rmtree(tmp_path / "none/models/cross")
    none = TwoStage.open(address)
    assert some.cross is not None and some.spec.has_second_stage
    assert none.cross is None and not none.spec.has_second_stage
    (found,) = none.match([(A, B)])
    assert found.stage == "bi-encoder" and found.probability == some.match([(A, B)])[0].bi_probability


def test_a_model_that_was_not_calibrated_is_refused(tmp_path: Path, encoder_folder: str) -> None:
    address = publish_matcher(tmp_path, encoder_folder, prefilter=0.5)
    (tmp_path / "models/bi/config_sentence_transformers.json").write_text("{}")
    with pytest.raises(UserError, match="are not the calibrated"):
        matcher.open_model(address, "bi_encoder")


def test_a_wrong_model_in_a_bucket_is_refused_until_the_right_one_is_back(
    tmp_path: Path, encoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish_matcher(tmp_path / "root", encoder_folder, prefilter=0.5)
    with s3_server() as environment:
        for name, value in {**environment, "TMPDIR": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tempfile, "tempdir", None)  # the cache is looked for anew, in TMPDIR
        bucket = Storage("s3://corpora/artifacts")
        for file in Path(made).parent.rglob("*.*"):
            bucket.write_bytes(str(file.relative_to(tmp_path / "root")), file.read_bytes())
        config, address = "models/bi/config_sentence_transformers.json", "s3://corpora/artifacts/models/m"
        right = bucket.read_bytes(config)
        bucket.write_bytes(config, b"{}")
        with pytest.raises(UserError, match="are not the calibrated"):
            matcher.open_model(address, "bi_encoder")
        bucket.write_bytes(config, right)
        assert BiEncoder.load(matcher.open_model(address, "bi_encoder")).encode([SHORT]).shape == (1, 32)


def test_the_spec_is_read_without_the_models(matcher_address: str, tmp_path: Path) -> None:
    made = tmp_path / "models" / "m"
    made.mkdir(parents=True)
    (made / "matcher.json").write_bytes((Path(matcher_address) / "matcher.json").read_bytes())
    assert matcher.open_spec(str(made)) == matcher.open_spec(matcher_address)


def test_a_matcher_that_is_not_there_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert matcher.absolute("artifacts/models/m") == str(tmp_path / "artifacts/models/m")
    assert matcher.absolute("s3://b/p/models/m?region=x") == "s3://b/p/models/m?region=x"
    with pytest.raises(UserError, match=f"no {tmp_path}/artifacts/models/m/matcher.json"):
        matcher.open_spec("artifacts/models/m")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"treshold": 1}, "unknown key 'treshold'.*calibrate again"),
        ({"prior": 0.1}, "does not|do not|fingerprint"),
        ({"evidence": "mean logit"}, "another evidence, 'mean logit'; score and calibrate again"),
        ({"levels": [{"k": 1}]}, "calibrate again"),
    ],
)
def test_a_spec_that_was_edited_is_refused(matcher_address: str, change: dict, words: str) -> None:
    values = json.loads((Path(matcher_address) / "matcher.json").read_text())
    with pytest.raises(UserError, match=words):
        matcher.load_spec(json.dumps({**values, **change}))


@pytest.mark.parametrize("cross", [[0.5, 2.0, np.nan], [0.5, 2.0, 9.0]])
def test_the_rule_takes_the_second_stage_from_the_prefilter_on(cross: list[float]) -> None:
    scale, fusion = calibration.Scale(1.0, 0.0), calibration.Fusion(1.0, 0.5, 0.1)
    bi = np.array([0.0, 1.0, -0.1])
    found = matcher.two_stage(scale, fusion, 0.5, bi, np.array(cross))
    assert found.tolist() == [
        *fusion.probability(np.array(cross[:2]), bi[:2]).tolist(),
        float(scale.probability(bi[2])),
    ]


def test_the_rule_refuses_a_pair_whose_second_stage_is_missing() -> None:
    with pytest.raises(ValueError, match="needs the cross-encoder"):
        matcher.two_stage(
            calibration.Scale(1.0, 0.0), calibration.Fusion(1.0, 0.5, 0.1), 0.5, np.array([1.0]), np.array([np.nan])
        )
