"""The service over real HTTP: right answers, refusals that name the field, and life after a bad request."""

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from cluster import s3_server
from tiny import book

from quire import calibration, certify, hub, matcher, views
from quire.bi_encoder import BiEncoder, PairHead, build_encoder
from quire.cross_encoder import CrossEncoder, build_model
from quire.errors import UserError
from quire.matcher import TwoStage
from quire.storage import Storage
from serve.checks import Admission, RequestError

A, B = book("sea", "alpha", 20), book("war", "beta", 20, seed=1)
SHORT = "The ship was at sea and the crew was on deck."


def publish_matcher(root: Path, encoder_folder: str, prefilter: float, **changes: Any) -> str:
    """A matcher with tiny real models, and what else its spec may say; its address."""
    torch.manual_seed(1)
    fitted = views.Views.fit([A, B])
    head = PairHead(32, num_features=len(fitted.feature_names))
    torch.nn.init.normal_(head.feature_weight)
    bi = BiEncoder(build_encoder(encoder_folder, pooling="mean", max_seq_length=64), head, fitted)
    bi.save(root / "models" / "bi")
    cross = CrossEncoder(build_model(encoder_folder, 64))
    cross.save(root / "models" / "cross")
    spec = matcher.make_spec(
        bi_encoder="models/bi",
        cross_encoder="models/cross",
        bi_encoder_sha256=hub.weights_sha256(root / "models/bi"),
        cross_encoder_sha256=hub.weights_sha256(root / "models/cross"),
        bi_scale=calibration.Scale(1.0, 0.0),
        fusion=calibration.Fusion(1.0, 0.5, 0.1),
        prefilter=prefilter,
        threshold=0.5,
        size=6,
        overlap=2,
        min_chars=100,
        max_chunks_per_text=3,
        max_cross_pairs=2,
        num_calibration_pairs=100,
        **{"objective": "accuracy"} | changes,
    )
    Storage(str(root)).write_json("models/m/matcher.json", matcher.spec_dict(spec))
    return str(root / "models" / "m")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, encoder_folder: str) -> str:
    return publish_matcher(tmp_path_factory.mktemp("root"), encoder_folder, prefilter=0.0)


def test_both_orders_give_the_same_bits_and_long_texts_are_cut(address: str) -> None:
    two_stage = TwoStage.open(address)
    one, other, short = two_stage.match([(A, B), (B, A), (SHORT, A)])
    assert one == other
    assert one.stage == short.stage == "cross-encoder" and 0 < short.probability < 1


def test_below_the_prefilter_the_first_stage_is_final(tmp_path: Path, encoder_folder: str) -> None:
    (found,) = TwoStage.open(publish_matcher(tmp_path, encoder_folder, prefilter=1.0)).match([(A, B)])
    assert (found.stage, found.cross_probability, found.probability) == ("bi-encoder", None, found.bi_probability)


def certificate(side: str, threshold: float | None) -> certify.Certificate:
    return certify.Certificate(side, 0.9, 0.95, "author", 0.5, threshold, 0.91, 60, 59, 100, 100)


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
        one, long = TwoStage.open(address).match([pair, (A, B)])
        assert (one.decision, one.same_book, one.code) == answer
        assert (long.decision, long.code) == ("undecided", "not_calibrated")
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


def test_cross_pairs_are_the_same_for_swapped_texts() -> None:
    for m, n in ((1, 1), (3, 8), (8, 8), (2, 5)):
        assert matcher.cross_pairs(m, n, 4) == [(i, j) for j, i in matcher.cross_pairs(n, m, 4)]
        assert len(set(matcher.cross_pairs(m, n, 4))) == min(4, max(m, n))


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


def test_the_spec_is_read_without_the_models(address: str, tmp_path: Path) -> None:
    made = tmp_path / "models" / "m"
    made.mkdir(parents=True)
    (made / "matcher.json").write_bytes((Path(address) / "matcher.json").read_bytes())
    assert matcher.open_spec(str(made)) == matcher.open_spec(address)


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
    [({"treshold": 1}, "unknown key 'treshold'"), ({"threshold": 0.1}, "does not|do not|fingerprint")],
)
def test_a_spec_that_was_edited_is_refused(address: str, change: dict, words: str) -> None:
    values = json.loads((Path(address) / "matcher.json").read_text())
    with pytest.raises(UserError, match=words):
        matcher.load_spec(json.dumps({**values, **change}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.ray
def test_a_try_out_starts_serve_and_leaves_nothing_running(address: str, local_ray: None) -> None:
    from ray import serve as ray_serve

    from serve.try_out import TryOutRuntime, ask

    assert ask(address, {"a": SHORT, "b": A[:900]}, TryOutRuntime())["stage"] == "cross-encoder"
    assert not ray_serve.status().proxies  # the fixture `client`, below, has not started one yet


@pytest.fixture(scope="module")
def client(address: str, local_ray: None) -> Iterator[httpx.Client]:
    from ray import serve as ray_serve

    from serve.app import MatcherArgs, build

    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    limits = {"max_pairs": 3, "max_chars": 5000, "max_body_bytes": 20_000, "max_passages": 12, "max_cross_pairs": 4}
    arguments = MatcherArgs(matcher=address, num_cpus=0.5, **limits)
    ray_serve.run(build(arguments), name="test", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as made:
        yield made
    ray_serve.shutdown()


@pytest.mark.ray
def test_one_pair_is_answered_as_the_offline_matcher_answers(client: httpx.Client, address: str) -> None:
    answer = client.post("/v1/match", json={"a": A[:4000], "b": B[:4000]}).json()
    expected = TwoStage.open(address).match([(A[:4000], B[:4000])])[0]
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert answer["stage"] == expected.stage and answer["model"] == expected.model
    assert answer["same_book"] == (answer["probability"] >= answer["threshold"])
    assert answer["num_passages_a"] == 3


@pytest.mark.ray
def test_a_list_is_answered_in_its_order_and_swapping_changes_nothing(client: httpx.Client) -> None:
    pairs = [{"a": A[:900], "b": B[:900]}, {"a": B[:900], "b": A[:900]}, {"a": SHORT, "b": SHORT}]
    results = client.post("/v1/match", json={"pairs": pairs}).json()["results"]
    assert len(results) == 3
    assert results[0]["probability"] == results[1]["probability"]
    swapped = client.post("/v1/match", json=pairs[1]).json()
    assert swapped["probability"] == pytest.approx(results[0]["probability"], abs=1e-6)


@pytest.mark.ray
def test_an_answer_says_whether_its_probability_is_calibrated(client: httpx.Client) -> None:
    one, long = A[:250], LONG[0]
    pairs = [{"a": one, "b": B[:250]}, {"a": one, "b": long}, {"a": one, "b": SHORT}]
    results = client.post("/v1/match", json={"pairs": pairs}).json()["results"]
    assert [result["calibrated"] for result in results] == [True, False, False]
    assert [result["num_passages_b"] for result in results] == [1, 3, 1]


LONG = [book("sea", "alpha", 20, seed=seed)[:2900] for seed in range(6)]  # three passages each


def body(*pairs: tuple[str, str]) -> bytes:
    return json.dumps({"pairs": [{"a": a, "b": b} for a, b in pairs]}).encode()


BAD = {
    "not json": (b"{", 400, "body"),
    "a number of 5,000 digits": (b'{"a": ' + b"1" * 5000 + b', "b": "x"}', 400, "body"),
    "nested too deeply": (b"[" * 15_000, 400, "body"),
    "not utf-8": (b'{"a": "\xff", "b": "x"}', 400, "body"),
    "a list": (b"[]", 422, "body"),
    "missing b": (b'{"a": "x"}', 422, "b"),
    "wrong type": (b'{"a": "x", "b": 5}', 422, "b"),
    "empty": (b'{"a": "", "b": "x"}', 422, "a"),
    "blank": (b'{"a": "  \\n", "b": "x"}', 422, "a"),
    "unknown field": (b'{"a": "x", "b": "y", "c": 1}', 422, "c"),
    "lone surrogate": (b'{"a": "\\ud800", "b": "y"}', 422, "a"),
    "lone surrogate in a key": (b'{"\\ud800": 1, "a": "x", "b": "y"}', 422, "\\ud800"),
    "lone surrogate in a pair's key": (b'{"pairs": [{"a": "x", "b": "y", "\\udfff": 1}]}', 422, "pairs.0.\\udfff"),
    "too long a text": (json.dumps({"a": "x" * 5001, "b": "y"}).encode(), 413, "a"),
    "too many pairs": (json.dumps({"pairs": [{"a": "x", "b": "y"}] * 4}).encode(), 413, "pairs"),
    "too many passages": (body(*zip(LONG[::2], LONG[1::2], strict=True)), 413, "pairs"),
    "too many cross pairs": (body(*zip(LONG[:3], [LONG[1], LONG[2], LONG[0]], strict=True)), 413, "pairs"),
    "no pairs": (b'{"pairs": []}', 422, "pairs"),
    "bad pair in a list": (b'{"pairs": [{"a": "x", "b": "y"}, {"a": "x"}]}', 422, "pairs.1.b"),
    "huge body": (b'{"a": "' + b"x" * 30_000 + b'", "b": "y"}', 413, "body"),
}


@pytest.mark.ray
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_names_the_field_and_the_service_goes_on(client: httpx.Client, name: str) -> None:
    content, status, field = BAD[name]
    refused = client.post("/v1/match", content=content, headers={"content-type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (status, field)
    assert client.post("/v1/match", json={"a": SHORT, "b": SHORT}).status_code == 200


@pytest.mark.ray
def test_an_endless_body_is_cut_off_at_the_limit(client: httpx.Client) -> None:
    parts = (b'{"a": "' if i == 0 else b"x" * 1000 for i in range(500))
    assert client.post("/v1/match", content=parts).status_code == 413


@pytest.mark.ray
def test_a_try_out_beside_a_running_service_asks_and_leaves_it_running(client: httpx.Client, address: str) -> None:
    from ray import serve as ray_serve

    from serve.try_out import TryOutRuntime, ask

    assert ask(address, {"a": SHORT, "b": A[:900]}, TryOutRuntime())["stage"] == "cross-encoder"
    assert set(ray_serve.status().applications) == {"test"}
    assert client.post("/v1/match", json={"a": SHORT, "b": SHORT}).status_code == 200


@pytest.mark.ray
def test_a_try_out_refuses_another_port_than_the_running_service_has(client: httpx.Client, address: str) -> None:
    from serve.try_out import TryOutRuntime, ask

    with pytest.raises(UserError, match=rf"runtime.port = 1: .* at port {client.base_url.port}"):
        ask(address, {"a": SHORT, "b": SHORT}, TryOutRuntime(port=1))


@pytest.mark.ray
def test_health_docs_and_schema(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == client.get("/livez").json()["status"] == "ok"
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/match", "/v1/matcher", "/healthz", "/livez"}
    assert "requestBody" in schema["paths"]["/v1/match"]["post"]
    assert "not calibrated" in schema["info"]["description"]
    page = client.get("/docs")
    assert page.status_code == 200
    wanted = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert wanted and all(address.startswith("/docs/") for address in wanted)  # nothing from another host
    assert all(client.get(address).status_code == 200 for address in wanted)
    assert client.get("/docs/index.j2").status_code == 404


def test_requests_beyond_the_limit_are_refused_at_once_and_others_go_on() -> None:
    admission = Admission(1)
    with admission:
        with pytest.raises(RequestError) as refused, admission:
            pass
        assert (refused.value.status, "max_requests = 1" in refused.value.message) == (503, True)
    with admission:
        pass


@pytest.mark.ray
def test_a_busy_service_refuses_gives_up_in_time_and_stays_alive(client: httpx.Client, address: str) -> None:
    from ray import serve as ray_serve

    from serve.app import MatcherArgs, build

    # Batches that wait for company longer than a request may take: every request that is let in is in work until then.
    slow = MatcherArgs(matcher=address, max_requests=1, request_timeout=6, batch_wait=8, num_cpus=0)
    ray_serve.run(build(slow), name="slow", route_prefix="/slow")
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(client.post, "/slow/v1/match", json={"a": SHORT, "b": SHORT}) for _ in range(8)]
            assert client.get("/slow/livez", timeout=5).status_code == 200
            answers = [future.result() for future in asked]
        assert sorted(answer.status_code for answer in answers) == [503] * 7 + [504]
        assert all("error" in answer.json() for answer in answers)
        page = client.get("/slow/docs")
        wanted = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert wanted and all(client.get(address).status_code == 200 for address in wanted)
    finally:
        ray_serve.delete("slow")


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
