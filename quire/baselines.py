"""The baselines that a neural model must beat: single classical views, a logistic regression over all of them, and one
over those beside a cohort as well, which is what the pair head starts from.

Shape letters: N pairs, F pair features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from quire.errors import UserError
from quire.views import Rows, Views

# System -> the pair feature that is its score.
SINGLE_VIEWS = {
    "word_tfidf": "words.cosine",
    "char_4gram": "characters.cosine",
    "function_words": "function_words.cosine",
    "style": "style.cosine",
}
ALL_VIEWS = "all_views"  # what stylometry compares by plain cosines and differences
COHORT_VIEWS = "cohort_views"
NAMES = (*SINGLE_VIEWS, ALL_VIEWS, COHORT_VIEWS)
_PENALTY = 1.0  # scikit-learn's C, on standardised features
_CLIP = 5.0  # standard deviations, as the pair head clips


@dataclass(frozen=True)
class Regression:
    """A logit from pair features: bias + weights . clipped (features - mean) / deviation, all (F,)."""

    mean: np.ndarray
    deviation: np.ndarray
    weights: np.ndarray
    bias: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(..., F) to (...) float64."""
        return standardised(features, self.mean, self.deviation) @ self.weights + self.bias


def standardised(features: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(..., F) float64 in deviations from the mean, five at most."""
    return ((np.asarray(features, np.float64) - mean) / deviation).clip(-_CLIP, _CLIP)


def fit_regression(features: np.ndarray, labels: np.ndarray, negative_types: Sequence[str]) -> Regression:
    """Logistic regression on features (N, F) of training pairs, whose authors stand in no other split.

    Positives weigh one half, and every type of negative an equal share of the other: the types are never blended by
    how often they happen to be drawn. `negative_types` (N,) is not looked at for positives. Raises UserError when a
    class is missing.
    """
    labels = np.asarray(labels)
    kinds = np.where(labels == 1, "", np.asarray(negative_types, dtype=object).astype(str))
    names, kind, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"all {len(labels)} training pairs have one label: need pairs of the same book and of different"
        )
    share = np.where(names == "", 0.5, 0.5 / (len(names) - 1))
    mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64).clip(min=1e-6)
    inputs = standardised(features, mean, deviation)
    if not features.shape[1]:
        return Regression(mean, deviation, np.zeros(0), 0.0)
    model = LogisticRegression(C=_PENALTY, max_iter=1000)
    model.fit(inputs, labels, sample_weight=(share / counts)[kind] * len(labels))
    return Regression(mean, deviation, model.coef_[0], float(model.intercept_[0]))


class Baselines:
    """All baselines of one training split."""

    def __init__(self, views: Views, classical: Regression, beside: Regression):
        self.views, self.classical, self.beside = views, classical, beside

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        pairs: tuple[Sequence[str], Sequence[str]],
        labels: np.ndarray,
        negative_types: Sequence[str],
    ) -> "Baselines":
        """Weights from `texts` and regression from the N `pairs` (texts a, texts b), all of the training split."""
        views = Views.fit(texts)
        features = views.compare(*pairs)
        sets = (features[:, _classical(views)], features)
        return cls(views, *(fit_regression(chosen, labels, negative_types) for chosen in sets))

    def scores(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> dict[str, np.ndarray]:
        """One score (N,) float64 a pair by each of NAMES: cosines, and the logits of the regressions."""
        return self._scores(self.views.compare(texts_a, texts_b))

    def mean_scores(self, a: Rows, b: Rows) -> dict[str, float]:
        """The mean score of every text of one list with every one of another, by each of NAMES, from their views."""
        return {name: float(scores.mean()) for name, scores in self._scores(self.views.all_pairs(a, b)).items()}

    def _scores(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """(..., F) to (...) float64 each."""
        column = {name: place for place, name in enumerate(self.views.feature_names)}
        scores = {name: features[..., column[feature]].astype(np.float64) for name, feature in SINGLE_VIEWS.items()}
        scores[ALL_VIEWS] = self.classical.logits(features[..., _classical(self.views)])
        return {**scores, COHORT_VIEWS: self.beside.logits(features)}


def _classical(views: Views) -> np.ndarray:
    """Columns of the features that need no cohort and are of a text as it is."""
    names = views.feature_names
    return np.flatnonzero([not name.endswith(".cohort") and not name.startswith("distorted.") for name in names])
