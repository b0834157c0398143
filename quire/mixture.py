"""Which categories of a token store a run trains on, and how many distinct tokens of each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from quire.errors import UserError
from quire.sampler import generator
from quire.tokens import TokenStore
from quire.windows import choose_categories


@dataclass(frozen=True)
class Mixture:
    """K categories out of a universe; `tokens_per_category` is None when all their tokens are used."""

    categories: list[str]
    universe: list[str]
    tokens_per_category: int | None

    def described(self) -> dict[str, Any]:
        """For `mixture.json`."""
        return {**asdict(self), "k": len(self.categories)}


def choose_mixture(
    store: TokenStore, universe: Sequence[str] | None, k: int | None, seed: int, distinct_tokens: int | None
) -> Mixture:
    """K of the universe's categories (default: all of the store's) by `seed`, nested in K for one seed.

    Raises UserError for a category that the store does not have, K out of range, and `distinct_tokens` that K does
    not divide.
    """
    known = store.names("train")
    names = sorted(set(universe)) if universe is not None else known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"categories = {unknown[0]!r}: the token store has {', '.join(known)}; choose among these")
    chosen = choose_categories(names, len(names) if k is None else k, seed)
    if distinct_tokens is not None and distinct_tokens % len(chosen):
        nearest = distinct_tokens // len(chosen) * len(chosen)
        raise UserError(
            f"distinct_tokens = {distinct_tokens}: does not divide by k = {len(chosen)}; "
            f"{nearest or len(chosen)} does (for a sweep, a multiple of every k)"
        )
    return Mixture(chosen, names, None if distinct_tokens is None else distinct_tokens // len(chosen))


def shuffle_labels(store: TokenStore, universe: Sequence[str], seed: int) -> TokenStore:
    """The same store with the universe's category labels permuted over its documents, in each split by itself.

    The control of a K sweep: categories keep their number of documents and lose their meaning.
    """
    categories = np.array(store.categories, dtype=object)
    inside = np.isin(categories.astype(str), list(universe))
    for stream, split in enumerate(("train", "validation", "test")):
        rows = np.flatnonzero(inside & (store.splits == split))
        categories[rows] = categories[rows][generator(seed, 0, 10 + stream).permutation(len(rows))]
    return replace(store, categories=categories)
