"""The classical baseline that a neural model must beat: character n-grams with tf-idf weights."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from quire.errors import UserError

PAIRS_PER_BLOCK = 8192  # bounds the rows that are copied; two texts of 300 words take about 20 kB


class CharTfidf:
    """Cosine similarity of tf-idf weighted character n-grams (as in PAN's baselines).

    The weights come from `texts` (the training split); white space counts as one blank. Raises UserError when no text
    has `n` characters.
    """

    def __init__(self, texts: Sequence[str], n: int = 4, max_features: int = 200_000):
        if not any(len(_plain(text)) >= n for text in texts):
            raise UserError(f"texts: none of {len(texts)} has {n} characters; give the texts of the training split")
        self.vectorizer = TfidfVectorizer(
            analyzer="char",
            ngram_range=(n, n),
            sublinear_tf=True,
            max_features=max_features,
            dtype=np.float32,
            preprocessor=_plain,
        )
        self.vectorizer.fit(texts)

    def score(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        """Cosine similarities (pairs,) float32. Each distinct text is vectorised once.

        Raises UserError for unequal lengths.
        """
        if len(texts_a) != len(texts_b):
            raise UserError(f"texts_a has {len(texts_a)} texts, texts_b {len(texts_b)}: expected as many")
        cosines = np.zeros(len(texts_a), dtype=np.float32)
        if not len(cosines):
            return cosines
        row = {text: index for index, text in enumerate(dict.fromkeys([*texts_a, *texts_b]))}
        vectors = self.vectorizer.transform(row)
        rows_a, rows_b = (np.asarray([row[text] for text in texts]) for texts in (texts_a, texts_b))
        for start in range(0, len(cosines), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            cosines[block] = np.asarray(vectors[rows_a[block]].multiply(vectors[rows_b[block]]).sum(1)).reshape(-1)
        return cosines


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
