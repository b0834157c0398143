"""Which of two authors wrote a text, by the rates of its function words, as Mosteller and Wallace asked in 1964.

Shape letters: n texts, w words.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from quire.errors import UserError

# The 70 function words with which Mosteller and Wallace began (Inference and Disputed Authorship: The Federalist, 1964,
# section 2.5; from Miller, Newman and Friedman 1958): words of grammar, chosen without a look at who uses them.
_WORDS = """
a all also an and any are as at be been but by can do down even every for from had has have her his if in into is it its
may more must my no not now of on one only or our shall should so some such than that the their then there things this
to up upon was were what when which who will with would your
"""
WORDS = tuple(_WORDS.split())
_TOKEN = re.compile(r"[a-z]+")


def rates(texts: Sequence[str]) -> np.ndarray:
    """Square roots of how often each function word stands among 1,000 words, (n, w): the root evens out the spread.

    Raises UserError for a text without a word.
    """
    found = []
    for place, text in enumerate(texts):
        counts = Counter(_TOKEN.findall(text.lower()))
        total = counts.total()
        if not total:
            raise UserError(f"texts[{place}] holds no word")
        found.append([1000 * counts[word] / total for word in WORDS])
    return np.sqrt(np.asarray(found).reshape(-1, len(WORDS)))


@dataclass(frozen=True)
class Attribution:
    """Log-odds (n,) of the second author against the first, and the weight (w,) of each standardised rate in them."""

    log_odds: np.ndarray
    weights: np.ndarray


def attribute(known: np.ndarray, second: np.ndarray, asked: np.ndarray, strength: float = 0.1) -> Attribution:
    """Logistic regression on the rates of texts `known` (n, w), of which `second` (n,) bool are by the second author.

    Both authors count half, however many texts they left. `strength` is scikit-learn's C: with more words than texts of
    one author, a small one. Raises UserError when an author has no text.
    """
    second = np.asarray(second, dtype=bool)
    if second.all() or not second.any():
        raise UserError("known texts: need some of both authors")
    center, spread = known.mean(0), known.std(0).clip(min=1e-9)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit(
        (known - center) / spread, second
    )
    return Attribution(model.decision_function((asked - center) / spread), model.coef_[0])


def leave_one_out(known: np.ndarray, second: np.ndarray, strength: float = 0.1) -> np.ndarray:
    """Log-odds (n,) of each known text, by a model that has not seen it."""
    second = np.asarray(second, dtype=bool)
    found = np.zeros(len(known))
    for place in range(len(known)):
        others = np.arange(len(known)) != place
        found[place] = attribute(known[others], second[others], known[[place]], strength).log_odds[0]
    return found
