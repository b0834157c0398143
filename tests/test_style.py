"""Style features measure the writing, not the layout or the length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.style import NAMES, style_features

TEXT = 'Mr. Smith came in. "Well," he said, "it is late; we must go." They went -- slowly... and didn\'t speak.'
TTR, MARKS, LENGTH = range(len(NAMES))


def test_one_row_for_each_text_and_zeros_for_no_words() -> None:
    features = style_features([TEXT, "", " \n", "?!"])
    assert features.shape == (4, 3)
    assert features.dtype == np.float32
    assert not features[1:].any()
    assert style_features([]).shape == (0, 3)


def test_the_three_numbers_by_hand() -> None:
    features = style_features(["The cat saw the dog. The dog ran!"])[0]
    assert features[TTR] == pytest.approx(5 / 8)
    assert features[MARKS] == pytest.approx(2 / 26)
    assert features[LENGTH] == pytest.approx(np.log(4))


def test_white_space_does_not_matter() -> None:
    laid_out = TEXT.replace(" ", "\n   ")
    assert np.array_equal(style_features([TEXT]), style_features([laid_out]))


def test_typed_and_typeset_marks_count_alike() -> None:
    typeset = TEXT.replace("--", "—").replace("...", "…").replace("'", "’").replace('"', "”")
    assert np.allclose(style_features([TEXT])[:, : MARKS + 1], style_features([typeset])[:, : MARKS + 1])


def test_a_title_ends_no_sentence() -> None:
    assert style_features(["Mr. Smith met Dr. Jones."])[0, LENGTH] == pytest.approx(np.log(5))


def test_vocabulary_does_not_fall_with_length() -> None:
    words = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(150)) + ". "
    once, often = style_features([words, words * 20])[:, TTR]
    assert once == often == 1.0


@given(st.lists(st.text(), max_size=4))
def test_features_are_finite_and_within_bounds(texts: list[str]) -> None:
    features = style_features(texts)
    assert np.isfinite(features).all()
    assert (features >= 0).all()
    assert (features[:, : MARKS + 1] <= 1).all()


def test_each_text_stands_alone() -> None:
    both = style_features([TEXT, "One. Two."])
    assert np.array_equal(both[1:], style_features(["One. Two."]))
