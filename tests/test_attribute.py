"""Attribution by function words: texts of known authors first, then the Federalist papers themselves."""

import json
from pathlib import Path

import numpy as np
import pytest

from quire import attribution
from quire.errors import UserError
from trainers import attribute

SHARED = Path(__file__).parents[2] / "shared" / "data" / "pan" / "federalist.jsonl"
WORDS = [*attribution.WORDS, *"people government constitution war union senate judge law treaty commerce".split()]  # noqa: SIM905


def text(author: int, seed: int, num_words: int = 1500) -> str:
    """Words of a topic, which says nothing, and function words at the rates of one of two authors."""
    draw = np.random.default_rng([author, seed])
    shares = np.ones(len(WORDS))
    shares[[attribution.WORDS.index("upon"), attribution.WORDS.index("by")]] = ((4, 0.5), (0.5, 4))[author]
    shares[len(attribution.WORDS) :] = draw.random(len(WORDS) - len(attribution.WORDS)) * 5
    return "Head: " + " ".join(draw.choice(WORDS, num_words, p=shares / shares.sum())) + " PUBLIUS"


def settings(file: Path, rows: list, **changes: object) -> attribute.AttributeConfig:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    values = {"name": "f", "source": str(file), "candidates": ["H", "M"], "disputed": "?", "end": "PUBLIUS"}
    return attribute.CONFIG.model_validate_json(json.dumps(values | changes | {"runtime": {"root": str(file.parent)}}))


def rows(disputed: int) -> list[dict]:
    known = [{"id": f"{name}{i}", "author": name, "text": text(a, i)} for a, name in enumerate("HM") for i in range(12)]
    return [*known, *({"id": f"d{i}", "author": "?", "text": text(disputed, 100 + i)} for i in range(4))]


def test_rates_count_words_of_a_thousand_whatever_their_case() -> None:
    found = attribution.rates(["Upon the hill, the TREE", "tree"])
    assert found[0, attribution.WORDS.index("the")] == pytest.approx(np.sqrt(400))
    assert found[0, attribution.WORDS.index("upon")] == pytest.approx(np.sqrt(200)) and not found[1].any()
    assert len(attribution.WORDS) == len(set(attribution.WORDS)) == 70
    with pytest.raises(UserError, match=r"texts\[1\] holds no word"):
        attribution.rates(["a", "1787"])


@pytest.mark.parametrize("author", [0, 1])
def test_disputed_texts_go_to_their_author_and_the_page_says_so(tmp_path: Path, author: int) -> None:
    made = attribute.run(settings(tmp_path / "f.jsonl", rows(author)))
    results = made.read_json("results.json")
    assert results["accuracy"] > 0.75  # two words of 70 tell, and 24 texts are few to find them
    assert all((row["probability"] > 0.5) == (author == 1) for row in results["disputed"])
    assert {row["word"] for row in results["words"][:2]} == {"upon", "by"}
    page = (made.local() / "index.html").read_text("utf-8")
    assert f"{4 * author} of 4 disputed texts speak for M" in page


def test_a_known_text_is_judged_by_a_model_that_has_not_read_it() -> None:
    draw = np.random.default_rng(0)  # pure noise, more words than texts: a model that had read them would know them all
    noise, second = draw.normal(size=(30, 70)), np.arange(30) < 15
    seen = attribution.attribute(noise, second, noise, strength=10.0).log_odds
    unseen = attribution.leave_one_out(noise, second, strength=10.0)
    assert ((seen > 0) == second).all() and ((unseen > 0) == second).mean() < 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made[:-4], "no text by '[?]'; its authors are H, M"),
        (lambda made: [*made, "{"], "line 29: not JSON"),
        (lambda made: [*made, {"id": "x", "author": "H"}], "line 29: text: expected a string"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, change, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attribute.run(settings(tmp_path / "f.jsonl", change(rows(0))))


def test_the_twelve_disputed_federalist_papers_are_madison_s(tmp_path: Path) -> None:
    if not SHARED.is_file():
        pytest.skip(f"no papers at {SHARED}")
    from quire import config

    file = Path(__file__).parents[1] / "trainers" / "experiments" / "federalist.toml"
    made = attribute.run(config.load(attribute.CONFIG, str(file), [f"source={SHARED}", f"runtime.root={tmp_path}"]))
    results = made.read_json("results.json")
    assert len(results["known"]) == 65 and results["accuracy"] >= 0.95
    # As Mosteller and Wallace found; number 55 is the weakest of theirs too.
    assert [row["probability"] > 0.5 for row in results["disputed"]] == [True] * 12
    assert min(results["disputed"], key=lambda row: row["probability"])["id"] == "federalist-55"
    assert results["words"][0]["word"] == "upon" and results["words"][0]["weight"] < 0
