"""The service over real HTTP: right answers, refusals that name the field, and life after a bad request."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from matchers import SHORT, A, B
from tiny import book

from quire import matcher
from quire.bi_encoder import BiEncoder
from quire.errors import UserError
from quire.matcher import TwoStage

# Five passages each, of which the last level reads three.
LONG = [book("sea", "alpha", 20, seed=seed)[:2900] for seed in range(6)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.ray
def test_a_try_out_starts_serve_and_leaves_nothing_running(matcher_address: str, local_ray: None) -> None:
    from ray import serve as ray_serve

    from serve.try_out import TryOutRuntime, ask

    assert ask(matcher_address, {"a": SHORT, "b": A[:900]}, TryOutRuntime())["stage"] == "cross-encoder"
    assert not ray_serve.status().proxies  # the fixture `client`, below, has not started one yet


@pytest.fixture(scope="module")
def client(matcher_address: str, local_ray: None) -> Iterator[httpx.Client]:
    from ray import serve as ray_serve

    from serve.app import MatcherArgs, build

    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    limits = {"max_pairs": 3, "max_chars": 5000, "max_body_bytes": 20_000, "max_passages": 12, "max_cross_pairs": 4}
    arguments = MatcherArgs(matcher=matcher_address, num_cpus=0.5, **limits)
    ray_serve.run(build(arguments), name="test", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as made:
        yield made
    ray_serve.shutdown()


@pytest.mark.ray
def test_one_pair_is_answered_as_the_offline_matcher_answers(client: httpx.Client, matcher_address: str) -> None:
    answer = client.post("/v1/match", json={"a": A[:4000], "b": B[:4000]}).json()
    expected = TwoStage.open(matcher_address).match([(A[:4000], B[:4000])])[0]
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert answer["stage"] == expected.stage and answer["model"] == expected.model
    assert answer["same_book"] == (answer["probability"] >= answer["threshold"])
    assert (answer["num_passages_a"], answer["k"], answer["calibrated"]) == (5, 3, True)


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
    assert [result["calibrated"] for result in results] == [True, True, False]
    assert [result["num_passages_b"] for result in results] == [1, 5, 1]


@pytest.mark.ray
def test_texts_of_all_lengths_are_answered_as_offline(client: httpx.Client, matcher_address: str) -> None:
    pairs = [(A[:250], B[:500]), (B[:500], A[:800]), (A, A[:800])]
    results = []
    for together in (pairs[:2], pairs[2:]):  # a request may cost four pairs of passages here
        asked = {"pairs": [{"a": a, "b": b} for a, b in together]}
        results += client.post("/v1/match", json=asked).json()["results"]
    offline = TwoStage.open(matcher_address).match(pairs)
    assert [result["k"] for result in results] == [match.k for match in offline] == [1, 2, 3]
    for result, match in zip(results, offline, strict=True):
        assert result["probability"] == pytest.approx(match.probability, abs=1e-5)
        assert (result["decision"], result["stage"]) == (match.decision, match.stage)


@pytest.mark.ray
def test_the_service_tells_its_levels(client: httpx.Client) -> None:
    told = client.get("/v1/matcher").json()
    assert [(level["k"], level["num_calibration_pairs"]) for level in told["levels"]] == [(1, 100), (2, 200), (3, 300)]
    assert told["max_cross_pairs"] == 2 and told["levels"][0]["same_threshold"] == 0.5


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
def test_a_try_out_beside_a_running_service_asks_and_leaves_it_running(
    client: httpx.Client, matcher_address: str
) -> None:
    from ray import serve as ray_serve

    from serve.try_out import TryOutRuntime, application_name, ask

    question = {"a": SHORT, "b": A[:900]}

    class Left:  # by one that was killed
        pass

    name = application_name(matcher_address, question)
    ray_serve.run(ray_serve.deployment(Left, name="Left").bind(), name=name, route_prefix="/left")
    assert ask(matcher_address, question, TryOutRuntime())["stage"] == "cross-encoder"
    assert set(ray_serve.status().applications) == {"test"}
    assert client.post("/v1/match", json={"a": SHORT, "b": SHORT}).status_code == 200


@pytest.mark.ray
def test_a_try_out_refuses_another_port_than_the_running_service_has(
    client: httpx.Client, matcher_address: str
) -> None:
    from serve.try_out import TryOutRuntime, ask

    with pytest.raises(UserError, match=rf"runtime.port = 1: .* at port {client.base_url.port}"):
        ask(matcher_address, {"a": SHORT, "b": SHORT}, TryOutRuntime(port=1))


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


@pytest.mark.ray
def test_requests_that_come_together_share_a_model_call(client: httpx.Client, matcher_address: str) -> None:
    from ray import serve as ray_serve

    from serve.app import BiEncoderModel

    class Counting(BiEncoderModel):
        def __init__(self, uri: str):
            super().__init__(uri, batch_size=16, batch_wait=1.0)
            self.sizes: list[int] = []

        def _read(self, texts: list[str]) -> list:
            self.sizes.append(len(texts))
            return super()._read(texts)

        def called(self) -> list[int]:
            return self.sizes

    options = {"max_ongoing_requests": 32, "ray_actor_options": {"num_cpus": 0}}
    handle = ray_serve.run(
        ray_serve.deployment(Counting, **options).bind(matcher_address), name="counting", route_prefix=None
    )
    try:
        texts = [f"{A[:300]} {number}" for number in range(16)]
        found = [response.result() for response in [handle.embed.remote(text) for text in texts]]
        sizes = handle.called.remote().result()
    finally:
        ray_serve.delete("counting")
    assert sum(sizes) == 16 and max(sizes) > 1 and len(sizes) < 16
    alone = BiEncoder.load(matcher.open_model(matcher_address, "bi_encoder"))
    np.testing.assert_allclose([vector for vector, _ in found], alone.encode(texts), atol=1e-5)


@pytest.mark.ray
def test_a_busy_service_refuses_gives_up_in_time_and_stays_alive(client: httpx.Client, matcher_address: str) -> None:
    from ray import serve as ray_serve

    from serve.app import MatcherArgs, build

    # Batches that wait for company longer than a request may take: every request that is let in is in work until then.
    slow = MatcherArgs(matcher=matcher_address, max_requests=1, request_timeout=6, batch_wait=8, num_cpus=0)
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
        assert wanted and all(client.get(found).status_code == 200 for found in wanted)
    finally:
        ray_serve.delete("slow")
