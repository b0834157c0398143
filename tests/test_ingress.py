"""The ingress in this process, its models beside it: what it answers, what counts against its limits, what it tells."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matchers import SHORT, A, B, certificate, publish_matcher

from quire import matcher
from quire.calibration import NONE_PASSES
from quire.matcher import TwoStage
from serve.checks import Admission, Pair, RequestError, Result


class Local:
    """A deployment's method in this process: the models are real, only the way to them is not Serve's."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    async def remote(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def answers(address: str, pairs: list[tuple[str, str]], **limits: int) -> list[Result]:
    """What the ingress answers."""
    from serve.app import Ingress, MatcherArgs

    offline = TwoStage.open(address)
    made = object.__new__(Ingress.__bases__[0])  # the class under Serve's wrapper, which needs a replica
    made.args, made.spec = MatcherArgs(matcher=address, **limits), offline.spec
    made.bi = SimpleNamespace(
        embed=Local(lambda text: (offline.bi.encode([text])[0], offline.bi.views.rows([text]))),
        evidence=Local(lambda asked: [offline.bi.evidence(*pair) for pair in asked]),
    )
    cross = offline.cross and SimpleNamespace(score=Local(lambda pair: float(offline.cross.logits([pair])[0])))
    made.cross = cross
    return asyncio.run(made.answer([Pair(a=a, b=b) for a, b in pairs], "pairs"))


def test_the_ingress_answers_texts_of_all_lengths_as_the_offline_matcher(matcher_address: str) -> None:
    pairs = [(A[:250], B[:500]), (B[:500], A[:800]), (A, B), (B, A), (SHORT, A)]
    found, expected = answers(matcher_address, pairs), TwoStage.open(matcher_address).match(pairs)
    assert [answer.k for answer in found] == [match.k for match in expected] == [1, 2, 3, 3, 1]
    assert [answer.calibrated for answer in found] == [True] * 4 + [False]
    assert (found[2].num_passages_a, found[2].num_passages_b) == (5, 5)
    assert found[2].probability == found[3].probability
    for answer, match in zip(found, expected, strict=True):
        assert answer.probability == pytest.approx(match.probability, abs=1e-4)
        assert answer.bi_probability == pytest.approx(match.bi_probability, abs=1e-4)
        assert (answer.decision, answer.stage) == (match.decision, match.stage)


def test_a_service_without_a_second_stage_has_no_replica_of_it_and_answers(tmp_path: Path, encoder_folder: str) -> None:
    from serve.app import MatcherArgs, build

    def deployments(address: str) -> set[str]:
        graph = build(MatcherArgs(matcher=address))
        found, waiting = set(), [graph]
        while waiting:
            node = waiting.pop()._bound_deployment
            found.add(node.name)
            waiting += [argument for argument in node.init_args if hasattr(argument, "_bound_deployment")]
        return found

    one = publish_matcher(tmp_path / "one", encoder_folder, prefilter=NONE_PASSES)
    two = publish_matcher(tmp_path / "two", encoder_folder, prefilter=0.5)
    assert deployments(one) == {"Ingress", "BiEncoder"}
    assert deployments(two) == {"Ingress", "BiEncoder", "CrossEncoder"}
    assert answers(one, [(A, B)])[0].stage == "bi-encoder"


def test_of_long_texts_the_passages_that_are_read_count_against_the_limits_and_no_others(matcher_address: str) -> None:
    assert len(answers(matcher_address, [(A, B)], max_passages=6, max_cross_pairs=2)) == 1  # of ten passages
    with pytest.raises(RequestError, match="6 passages in all; at most max_passages = 5"):
        answers(matcher_address, [(A, B)], max_passages=5)
    with pytest.raises(RequestError, match="2 cross pairs in all; at most max_cross_pairs = 1"):
        answers(matcher_address, [(A, B)], max_cross_pairs=1)


def test_a_cross_encoder_without_weight_costs_a_request_nothing(tmp_path: Path, encoder_folder: str) -> None:
    address = publish_matcher(tmp_path, encoder_folder, prefilter=NONE_PASSES)
    (found,) = answers(address, [(A, B)], max_cross_pairs=1)
    assert (found.stage, found.cross_probability, found.probability) == ("bi-encoder", None, found.bi_probability)


def test_the_matcher_tells_its_levels_and_what_each_certifies(tmp_path: Path, encoder_folder: str) -> None:
    from serve.schema import Matcher

    made = publish_matcher(tmp_path, encoder_folder, prefilter=0.0, certificates=(certificate("same", 0.7),))
    told = Matcher.of(matcher.open_spec(made), None)
    assert [(level.k, level.num_calibration_pairs) for level in told.levels] == [(1, 100), (2, 200), (3, 300)]
    assert [level.same_threshold for level in told.levels] == [0.7, 0.5, 0.5]
    assert [len(level.certificates) for level in told.levels] == [1, 0, 0] and told.prior == 0.5
    assert Matcher.of(matcher.open_spec(made), 0.2).levels[0].same_threshold is None


def test_requests_beyond_the_limit_are_refused_at_once_and_others_go_on() -> None:
    admission = Admission(1)
    with admission:
        with pytest.raises(RequestError) as refused, admission:
            pass
        assert (refused.value.status, "max_requests = 1" in refused.value.message) == (503, True)
    with admission:
        pass
