"""Classical views against a naive twin, kept to the bit when saved, the same for (a, b) and (b, a); the baselines."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from quire import baselines, metrics, views
from quire.errors import UserError
from quire.evenly import evenly
from quire.proper_names import masked, proper_names, shows_masks
from quire.views import Rows, Views

BOOKS = [tiny.book(topic, f"w{chr(97 + place)}", 40, seed=place) for place, topic in enumerate(sorted(tiny.TOPICS) * 2)]
TEXTS = [*BOOKS[:6], 'Then Ahab said: "Come -- Starbuck!" And Mr. Starbuck came…', "", "Rose.", "?!"]


@pytest.fixture(scope="module")
def fitted() -> Views:
    return Views.fit([book[:600] for book in BOOKS] + TEXTS[6:], num_cohort=8)


def twin_word_cosine(training: list[str], a: str, b: str) -> float:
    """tf-idf with logarithmic counts, the mean of the training rows taken from both sides; no hashing."""
    count = [Counter(text.lower().replace(".", "").split()) for text in training]
    idf = {w: math.log((1 + len(count)) / (1 + sum(w in c for c in count))) for c in count for w in c}

    def row(text: str) -> dict[str, float]:
        raw = {w: (1 + math.log(n)) * idf[w] for w, n in Counter(text.lower().replace(".", "").split()).items()}
        length = math.sqrt(sum(x * x for x in raw.values()))
        return {w: x / length for w, x in raw.items()}

    mean = {w: sum(row(text).get(w, 0) for text in training) / len(training) for w in idf}
    u, v = ([row(text).get(w, 0) - mean[w] for w in sorted(idf)] for text in (a, b))
    return sum(x * y for x, y in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))


def test_the_word_cosine_equals_its_naive_twin() -> None:
    words = Views.fit(BOOKS, ["words"], num_cohort=0)
    found = words.compare([BOOKS[0]] * 3, BOOKS[:3])
    expected = [twin_word_cosine(BOOKS, BOOKS[0], other) for other in BOOKS[:3]]
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-3)  # two of 400 words may share one of 65,536 buckets


def test_dense_views_equal_their_naive_twin() -> None:
    marks = Views.fit(BOOKS + TEXTS[6:7], ["punctuation"], num_cohort=0)
    mean, deviation = marks.weights["punctuation.mean"], marks.weights["punctuation.deviation"]

    def row(text: str, num_words: int) -> np.ndarray:
        raw = [math.sqrt(text.count(mark) / num_words) for mark in (",", ".", ";", ":", "?", "!")]
        return ((np.array(raw) - mean[:6]) / deviation[:6]).clip(-5, 5)

    a, b = "One, two; three.", "Four! Five? Six: seven."
    found = marks.compare([a], [b])[0]
    np.testing.assert_allclose(found[1:7], np.abs(row(a, 3) - row(b, 4)), rtol=1e-4, atol=1e-5)


def test_both_orders_give_the_same_bits_and_all_pairs_the_same_numbers(fitted: Views) -> None:
    rows = fitted.rows(TEXTS)
    a, b = np.divmod(np.arange(len(TEXTS) ** 2), len(TEXTS))
    aligned = fitted.pairs(rows[a], rows[b])
    assert aligned.shape == (len(TEXTS) ** 2, len(fitted.feature_names)) and np.isfinite(aligned).all()
    assert np.array_equal(aligned, fitted.pairs(rows[b], rows[a]))
    every = fitted.all_pairs(rows, rows)
    np.testing.assert_allclose(every.reshape(aligned.shape), aligned, atol=2e-5, rtol=1e-4)
    cosines = [place for place, name in enumerate(fitted.feature_names) if name.endswith("cosine")]
    itself = np.diagonal(every[:6, :6, cosines])
    words_to_style = [place for place, column in enumerate(cosines) if "names" not in fitted.feature_names[column]]
    np.testing.assert_allclose(itself[words_to_style], 1, atol=1e-4)


def test_a_text_is_read_alike_whatever_stands_beside_it(fitted: Views) -> None:
    together = fitted.rows(TEXTS)
    alone = Rows.joined([fitted.rows([text]) for text in TEXTS])
    for name in fitted.names:
        one, other = (rows.sparse.get(name, rows.dense.get(name)) for rows in (together, alone))
        one, other = (matrix.toarray() if name in together.sparse else matrix for matrix in (one, other))
        assert np.array_equal(one, other), name
        assert np.array_equal(together.among[name], alone.among[name]), name


def test_compared_in_blocks_as_at_once(fitted: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted.compare(TEXTS, TEXTS[::-1])
    monkeypatch.setattr(views, "PAIRS_PER_BLOCK", 3)
    assert np.array_equal(fitted.compare(TEXTS, TEXTS[::-1]), whole)


def test_beside_a_cohort_equals_its_naive_twin() -> None:
    made, plain = (Views.fit(BOOKS, ["words", "sentences"], num_cohort=number) for number in (len(BOOKS), 0))
    a, b = BOOKS[0][:500], BOOKS[1][300:900]

    def cosine(one: str, other: str) -> np.ndarray:
        return plain.compare([one], [other])[0, [0, 1]].astype(np.float64)

    def deviations(text: str) -> np.ndarray:
        with_cohort = np.stack([cosine(text, other) for other in BOOKS])
        return (cosine(a, b) - with_cohort.mean(0)) / with_cohort.std(0)

    found = made.compare([a], [b])[0]
    columns = [made.feature_names.index(f"{name}.cohort") for name in ("words", "sentences")]
    np.testing.assert_allclose(found[columns], (deviations(a) + deviations(b)) / 2, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(np.delete(found, columns), plain.compare([a], [b])[0])


def test_pairs_with_masked_names_have_features_of_their_own(tmp_path: Path) -> None:
    training = [f"Then old Ahab{n} met {tiny.book('sea', 'x', 4, seed=n)}" for n in range(6)]
    training_masked = [masked(text) for text in training]
    apart = Views.fit(training, ["words", "names"], num_cohort=4, masked_apart=True)
    plain, of_masked = (Views(apart.names, (), apart.weights) for _ in range(2))  # each knows one of the cohorts
    plain.cohorts = (plain.rows([training[place] for place in evenly(6, 4)]),)
    of_masked.cohorts = (of_masked.rows([training_masked[place] for place in evenly(6, 4)]),)
    assert {key: w.tolist() for key, w in apart.weights.items()} == {
        key: w.tolist() for key, w in Views.fit([*training, *training_masked], ["words", "names"]).weights.items()
    }
    text, other = training[0], "The sea was calm, and Queequeg slept by old Ishmael."
    hidden, hidden_other, count = masked(text), masked(other), len(plain.feature_names)
    assert apart.feature_names[count:] == ("masked", *(f"masked.{name}" for name in plain.feature_names))
    found = apart.compare([text, hidden, other], [other, hidden_other, hidden])
    np.testing.assert_array_equal(found[0, :count], plain.compare([text], [other])[0])
    assert not found[0, count:].any()
    np.testing.assert_array_equal(found[1:, count], 1)
    np.testing.assert_array_equal(found[1, :count], of_masked.compare([hidden], [hidden_other])[0])
    np.testing.assert_array_equal(found[1:, :count], found[1:, count + 1 :])
    rows = apart.rows([text, hidden])
    np.testing.assert_allclose(apart.all_pairs(rows, rows)[0, 1], apart.compare([text], [hidden])[0], atol=1e-5)
    apart.save(tmp_path)
    assert np.array_equal(Views.load(tmp_path).compare([hidden], [hidden_other]), found[1:2])
    plain.save(tmp_path)
    config = json.loads((tmp_path / "views.json").read_text())
    del config["masked_apart"]  # as models were saved before they knew of it
    (tmp_path / "views.json").write_text(json.dumps(config))
    assert np.array_equal(Views.load(tmp_path).compare([text], [other]), plain.compare([text], [other]))


def test_the_distorted_view_does_not_see_content_words() -> None:
    texts = [f"The cat sat on the {word}." for word in ("mat", "hat", "bed")] + ["Of the and."]
    made = Views.fit(texts, ["distorted"], num_cohort=0)
    made.vocabulary = ("the", "on", "of")
    found = made.compare(["The dog ran on the road."] * 2, ["The man was on the ship.", "Of the dog, the road."])[:, 0]
    assert found[0] == pytest.approx(1, abs=1e-5) and found[1] < 0.9


@pytest.mark.parametrize("names", [views.NAMES, ("function_words", "names"), ()])
def test_saved_views_are_loaded_to_the_bit(names: tuple, tmp_path: Path) -> None:
    made = Views.fit(BOOKS, names)
    made.save(tmp_path)
    again = Views.load(tmp_path)
    assert again.feature_names == made.feature_names
    assert np.array_equal(again.compare(TEXTS, TEXTS[::-1]), made.compare(TEXTS, TEXTS[::-1]))
    assert made.compare(TEXTS, TEXTS).shape == (len(TEXTS), len(made.feature_names))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 3e6 + 2e4 * views.NUM_COHORT


def test_damaged_or_misnamed_views_are_refused(fitted: Views, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    weights = load_file(tmp_path / "views.safetensors")
    for changed in ({"more": np.zeros(2)}, {"words.mean": np.zeros(3, np.float32)}):
        save_file({**weights, **changed}, tmp_path / "views.safetensors")
        with pytest.raises(UserError, match=next(iter(changed))):
            Views.load(tmp_path)
    save_file({name: w for name, w in weights.items() if name != "style.mean"}, tmp_path / "views.safetensors")
    with pytest.raises(UserError, match=r"style\.mean"):
        Views.load(tmp_path)
    cohort = "words.cohort.indices"
    for changed, message in (({cohort: weights[cohort] + 2**16}, "cohort"), ({}, "style.cohort.rows")):
        kept = {name: w for name, w in {**weights, **changed}.items() if changed or name != "style.cohort.rows"}
        save_file(kept, tmp_path / "views.safetensors")
        with pytest.raises(UserError, match=message):
            Views.load(tmp_path)
    (tmp_path / "views.json").write_text(json.dumps({"names": []}))
    with pytest.raises(UserError, match="vocabulary"):
        Views.load(tmp_path)
    (tmp_path / "views.json").unlink()
    with pytest.raises(UserError, match="without its views"):
        Views.load(tmp_path)
    with pytest.raises(UserError, match="at most once"):
        Views(["words", "topics"])
    with pytest.raises(UserError, match="expected as many"):
        fitted.compare(["a"], ["a", "b"])
    with pytest.raises(UserError, match="training split"):
        Views.fit(["", "?"])


def test_names_are_found_where_capitals_show_them() -> None:
    text = "Ahab rose. Then old Ahab's men saw I was with Mr. Starbuck. “Come,” said Peleg: “Go. THE END came.”"
    assert proper_names(text) == ["Ahab", "Mr", "Starbuck", "Peleg"]


def test_a_text_shows_whether_its_names_are_masked() -> None:
    text = "Then old Ahab met Starbuck and Mr. Peleg. Soon the ship left Nantucket."
    assert shows_masks(masked(text)) and not shows_masks(text)
    assert shows_masks(masked("He boarded the _Pequod_ at dawn. The old Ahab slept."))
    for plain in ("Give the Name of the ship to Ahab and to Peleg.", '"Name it," said he, and the boy was silent.'):
        assert not shows_masks(plain)  # a word like any other
    assert not shows_masks("") and not shows_masks("The sea was calm.")


def pairs_of_books(start: int) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Pairs of pieces of six books: the same book, or two different ones."""
    pieces = [(book[:1500], book[1500:3000]) for book in BOOKS[start : start + 6]]
    found = [(x[0], y[1], int(i == j)) for i, x in enumerate(pieces) for j, y in enumerate(pieces)]
    a, b, labels = map(list, zip(*found, strict=True))
    return a, b, np.array(labels), np.array(["" if label else "random" for label in labels])


def test_the_regression_over_all_views_finds_the_book_of_a_text() -> None:
    a, b, labels, kinds = pairs_of_books(0)
    made = baselines.Baselines.fit(BOOKS[:6], (a, b), labels, kinds)
    a, b, labels, _ = pairs_of_books(6)
    scores = made.scores(a, b)
    assert tuple(scores) == baselines.NAMES
    for name in ("all_views", "cohort_views", "char_4gram"):
        assert metrics.auc(labels, scores[name]) > 0.9, name
    np.testing.assert_array_equal(made.scores(b, a)["all_views"], scores["all_views"])


def test_masked_baselines_do_not_see_names() -> None:
    texts = ["Then Ahab came to the ship.", "Then Peleg came to the ship.", "A rose is a rose."]
    facts = (texts, (texts[:2] * 2, texts[1:] * 2), np.array([1, 0, 1, 0]), ["", "random"] * 2)
    fitted = baselines.Baselines.fit(*facts)
    plain = ([texts[0]] * 2, texts[:2])
    hidden = tuple([masked(text) for text in side] for side in plain)
    same, other = (fitted.scores(*sides)["char_4gram"] for sides in (hidden, plain))
    assert same[0] == pytest.approx(same[1], abs=1e-6) and other[0] > other[1] + 0.1


def test_negative_types_weigh_alike_however_often_they_are_drawn() -> None:
    draw = np.random.default_rng(0)
    labels = np.array([1] * 50 + [0] * 60)
    kinds = np.array([""] * 50 + ["random"] * 50 + ["same_author"] * 10, dtype=object)
    features = draw.normal(size=(110, 2)) + labels[:, None] * [1.0, 0.5]
    more = np.r_[np.arange(110), np.arange(50, 100)]  # every random negative twice
    one = baselines.fit_regression(features, labels, kinds).logits(features)
    two = baselines.fit_regression(features[more], labels[more], kinds[more]).logits(features)
    np.testing.assert_allclose(one, two, atol=0.2)  # by plain counts the bias would fall by 0.6
    with pytest.raises(UserError, match="one label"):
        baselines.fit_regression(features[:50], labels[:50], kinds[:50])
