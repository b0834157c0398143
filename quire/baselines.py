"""The classical baseline that a neural model must beat: character n-grams with tf-idf weights."""

import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

_SPACE = re.compile(r"\s+")


def char_tfidf(
    fit_texts: Sequence[str], texts_a: Sequence[str], texts_b: Sequence[str], n: int = 4, max_features: int = 200_000
) -> np.ndarray:
    """Cosine similarity (pairs,) float32 of tf-idf weighted character n-grams (as in PAN's baselines).

    The weights come from `fit_texts` (the training split). White space counts as one blank; each distinct text is
    vectorised once.
    """
    vectorizer = TfidfVectorizer(
        analyzer="char",
        ngram_range=(n, n),
        sublinear_tf=True,
        max_features=max_features,
        dtype=np.float32,
        preprocessor=lambda text: _SPACE.sub(" ", text).lower(),
    )
    vectorizer.fit(fit_texts)
    distinct = list(dict.fromkeys([*texts_a, *texts_b]))
    row = {text: index for index, text in enumerate(distinct)}
    vectors = vectorizer.transform(distinct)
    a, b = (vectors[[row[text] for text in texts]] for texts in (texts_a, texts_b))
    return np.asarray(a.multiply(b).sum(1), dtype=np.float32).reshape(-1)
