"""Classical views of a text, fitted on the training split, and how alike two texts are in each.

A view is what stylometry and retrieval look at: words, character 4-grams, the same without content words, names,
function words, punctuation, how marks are set, sentence lengths, style. Pairs are compared by cosines, by those cosines
beside what both texts have with a cohort of other texts, and by differences of the small views; every comparison is the
same for (a, b) and (b, a). Shape letters: N texts or pairs, m and n the texts of two lists, F pair features.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import HashingVectorizer

from quire import cohort, reading
from quire.errors import UserError
from quire.evenly import evenly
from quire.proper_names import masked, shows_masks
from quire.reading import Reading

# The sparse ones first, as their features stand.
Name = Literal[
    "words", "characters", "distorted", "names", "function_words", "punctuation", "typography", "sentences", "style"
]
NAMES: tuple[Name, ...] = get_args(Name)
# Curly or straight quotes and the length of a dash are the habit of who transcribed a book, not of who wrote it.
DEFAULT = tuple(name for name in NAMES if name != "typography")
PAIRS_PER_BLOCK = 4096  # bounds the rows that are copied: a text of 300 words takes about 10 kB
_WEIGHTS, _CONFIG = "views.safetensors", "views.json"
_MAX_DEVIATION = 5.0  # standard deviations: one odd text must not rule a cosine
_NUM_FUNCTION_WORDS = 300


@dataclass(frozen=True)
class _Sparse:
    """A hashed tf-idf view: log term counts times idf^power, cosines of rows with the training mean taken away."""

    terms: Callable[..., list[str]]  # of a reading; of `distorted`, and of the frequent words
    num_bits: int
    power: float
    is_centred: bool


# Sizes, powers and centring as chosen on pairs of the 39 training and 5 validation novels (LOG, 2026-11-21; the weights
# came from the same 39): what all texts share says nothing of a pair, and subtracting the mean takes it away more
# thoroughly than idf.
_SPARSE: dict[str, _Sparse] = {
    "words": _Sparse(reading.words, 16, 1.0, True),
    "characters": _Sparse(reading.characters, 17, 1.5, True),
    "distorted": _Sparse(reading.distorted, 17, 1.0, True),
    "names": _Sparse(reading.names, 16, 1.0, False),
}
NUM_COHORT = 256  # texts: a quarter of them serve as well within .002 (LOG, 2026-11-22)
_NAME_FEATURES = ("shared", "overlap", "fewest", "difference")  # beside the cosine


@dataclass(frozen=True)
class Rows:
    """N texts as their views: L2-normalised sparse rows (N, buckets), standardised dense rows (N, columns); by view the
    mean and deviation (N, 2) of the cosines with the cohort; whether a text has its names masked (N,)."""

    count: int
    sparse: Mapping[str, sp.csr_matrix]
    dense: Mapping[str, np.ndarray]
    among: Mapping[str, np.ndarray]
    masked: np.ndarray

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: np.ndarray | Sequence[int]) -> "Rows":
        """The texts at these places (n,)."""
        rows = np.asarray(rows, np.int64)
        sparse, dense, among = (
            {name: matrix[rows] for name, matrix in found.items()} for found in (self.sparse, self.dense, self.among)
        )
        return Rows(len(rows), sparse, dense, among, self.masked[rows])

    @staticmethod
    def joined(parts: Sequence["Rows"]) -> "Rows":
        """One after the other; at least one part."""
        sparse = {name: sp.vstack([part.sparse[name] for part in parts], "csr") for name in parts[0].sparse}
        dense = {name: np.concatenate([part.dense[name] for part in parts]) for name in parts[0].dense}
        among = {name: np.concatenate([part.among[name] for part in parts]) for name in parts[0].among}
        return Rows(sum(map(len, parts)), sparse, dense, among, np.concatenate([part.masked for part in parts]))


class _How(NamedTuple):
    """How rows meet: `product` makes their dot products; numpy brings together what the lifts make of values by row."""

    product: Callable
    lift_a: Callable
    lift_b: Callable


class Views:
    """Some of the views with what they learnt from the training split. `Views()` has none: no pair feature at all.

    `masked_apart`: texts whose names are masked have a cohort of masked texts; every feature stands a second time for
    pairs with such a text, and is 0 for all others, so that a regression gives those pairs weights of their own: words
    and characters mean other things there.
    """

    def __init__(
        self,
        names: Sequence[Name] = (),
        vocabulary: Sequence[str] = (),
        weights: Mapping[str, np.ndarray] | None = None,
        masked_apart: bool = False,
    ):
        unknown = sorted(set(names) - set(NAMES))
        if unknown or len(set(names)) != len(names):
            raise UserError(f"views = {list(names)}: each of {', '.join(NAMES)} at most once")
        self.names = tuple(name for name in NAMES if name in names)  # one order, however they are asked for
        self.vocabulary, self.weights = tuple(vocabulary), dict(weights or {})
        self.masked_apart = masked_apart
        self.cohorts: tuple[Rows, ...] = ()  # as many rows each; of two, the second has its names masked

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        names: Sequence[Name] = DEFAULT,
        num_cohort: int = NUM_COHORT,
        masked_apart: bool = False,
    ) -> "Views":
        """From the texts of the training split, of which `num_cohort` evenly spaced ones are the cohort; 0: none. With
        `masked_apart` from the same texts with names masked as well.

        Raises UserError when no text has a word.
        """
        views = cls(names, masked_apart=masked_apart)
        if not views.names:
            return views
        kinds = [texts, [masked(text) for text in texts]] if masked_apart else [texts]
        readings = [reading.read(text) for kind in kinds for text in kind]
        counts = Counter(word for one in readings for word in one.words)
        if not counts:
            raise UserError(f"texts: none of {len(texts)} has a word; give the texts of the training split")
        if {"function_words", "distorted"} & set(views.names):
            by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            views.vocabulary = tuple(word for word, _ in by_count[:_NUM_FUNCTION_WORDS])
        for name in views.names:
            if name in _SPARSE:
                views._fit_sparse(name, readings)
            else:
                raw = views._raw(name, readings)
                views.weights[f"{name}.mean"] = raw.mean(0)
                views.weights[f"{name}.deviation"] = raw.std(0).clip(min=1e-6)
        if num_cohort:
            places = evenly(len(texts), num_cohort)
            views.cohorts = tuple([views.rows([kind[place] for place in places]) for kind in kinds])
        return views

    def _fit_sparse(self, name: str, readings: Sequence[Reading]) -> None:
        view, counted = _SPARSE[name], self._count(name, readings)
        frequency = np.bincount(counted.indices, minlength=counted.shape[1])
        # Smoothed as scikit-learn does it, but a term of every text has no weight.
        idf = np.log((1 + len(readings)) / (1 + frequency)) ** view.power
        self.weights[f"{name}.weight"] = idf.astype(np.float32)
        if view.is_centred:
            mean = np.asarray(self._weighted(name, counted).mean(0), np.float32).reshape(-1)
            self.weights[f"{name}.mean"] = mean

    @classmethod
    def load(cls, folder: str | Path) -> "Views":
        """From a folder that `save` wrote. Raises UserError for another set of weights than the views need."""
        folder = Path(folder)
        if not (folder / _CONFIG).is_file():
            raise UserError(f"{folder}: no {_CONFIG}; the model was saved without its views, train it again")
        config = {"masked_apart": False} | json.loads((folder / _CONFIG).read_text("utf-8"))  # older ones lack the key
        if set(config) != {"names", "vocabulary", "num_cohort", "masked_apart"}:
            raise UserError(
                f"{folder / _CONFIG}: expected the keys names, vocabulary, num_cohort and masked_apart, "
                f"found {sorted(config)}; train again"
            )
        stored = load_file(folder / _WEIGHTS)
        weights = {key: stored[key] for key in stored if not cohort.is_part(key)}
        views = cls(config["names"], config["vocabulary"], weights, config["masked_apart"])
        found = {key: weights.shape for key, weights in views.weights.items()}
        if found != views._shapes():
            wrong = sorted(set(found.items()) ^ set(views._shapes().items()))[0]
            raise UserError(f"{folder / _WEIGHTS}: {wrong[0]!r} is missing, unknown or of another shape; train again")
        if config["num_cohort"]:
            count = config["num_cohort"] * (2 if config["masked_apart"] else 1)
            buckets = {name: 2 ** _SPARSE[name].num_bits for name in views.names if name in _SPARSE}
            columns = {name: len(views.weights[f"{name}.mean"]) for name in views.names if name not in _SPARSE}
            try:
                sparse, dense = cohort.unpacked(stored, count, buckets, columns)
            except ValueError as error:
                raise UserError(f"{folder / _WEIGHTS}: {error}; train again") from error
            every = Rows(count, sparse, dense, {}, np.zeros(count, bool))
            kinds = np.split(np.arange(count), count // config["num_cohort"])
            views.cohorts = tuple(every[rows] for rows in kinds)
        return views

    def save(self, folder: str | Path) -> None:
        """Write views.safetensors and views.json, together under 3 MB and 20 kB for each text of a cohort."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored = dict(self.weights)
        if self.cohorts:
            others = Rows.joined(self.cohorts)
            stored |= cohort.packed(others.sparse, others.dense)
        save_file({key: np.ascontiguousarray(weights) for key, weights in stored.items()}, folder / _WEIGHTS)
        config = {key: getattr(self, key) for key in ("names", "vocabulary", "masked_apart")}
        config["num_cohort"] = len(self.cohorts[0]) if self.cohorts else 0
        (folder / _CONFIG).write_text(json.dumps(config, sort_keys=True), "utf-8")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.names:
            if name in _SPARSE:
                parts = ("weight", "mean") if _SPARSE[name].is_centred else ("weight",)
                shapes |= {f"{name}.{part}": (2 ** _SPARSE[name].num_bits,) for part in parts}
            else:
                columns = reading.NUM_COLUMNS.get(name, len(self.vocabulary))
                shapes |= {f"{name}.{part}": (columns,) for part in ("mean", "deviation")}
        return shapes

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What the F pair features are, such as `words.cosine`."""
        found: list[str] = []
        for name in self.names:
            found += [f"{name}.cosine", *([f"{name}.cohort"] if self.cohorts else [])]
            if name == "names":
                found += [f"names.{what}" for what in _NAME_FEATURES]
            found += [f"{name}.difference_{column}" for column in range(reading.NUM_COLUMNS.get(name, 0))]
        if self.masked_apart and found:
            found += ["masked", *(f"masked.{name}" for name in found)]
        return tuple(found)

    def rows(self, texts: Sequence[str]) -> Rows:
        """N texts as their views: each text by itself, whatever stands beside it."""
        readings = [reading.read(text) for text in texts] if self.names else []
        sparse = {name: self._weighted(name, self._count(name, readings)) for name in self.names if name in _SPARSE}
        dense = {name: self._standard(name, readings) for name in self.names if name not in _SPARSE}
        are_masked = np.fromiter((self.masked_apart and shows_masks(text) for text in texts), bool, len(texts))
        return self._among_cohort(Rows(len(texts), sparse, dense, {}, are_masked))

    def _among_cohort(self, rows: Rows) -> Rows:
        """The same rows beside the cohort of their kind, where there is one."""
        if not self.cohorts:
            return rows
        among = {name: np.zeros((len(rows), 2)) for name in self.names}
        kind = rows.masked.astype(int) if self.masked_apart else np.zeros(len(rows), int)
        for number, others in enumerate(self.cohorts):
            places = np.flatnonzero(kind == number)
            some = rows[places]
            for name in self.names:
                among[name][places] = cohort.moments(self._cosine(name, some, others, _EACH))
        return replace(rows, among=among)

    def pairs(self, a: Rows, b: Rows) -> np.ndarray:
        """Features (N, F) float32 of N pairs, row by row; (a, b) and (b, a) agree to the last bit."""
        if len(a) != len(b):
            raise UserError(f"a has {len(a)} texts, b {len(b)}: expected as many")
        return self._compare(a, b, _BY_ROW, (len(a),))

    def all_pairs(self, a: Rows, b: Rows) -> np.ndarray:
        """Features (m, n, F) float32 of every text of `a` with every one of `b`, by matrix products."""
        return self._compare(a, b, _ALL, (len(a), len(b)))

    def compare(self, texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        """Features (N, F) float32 of N pairs of texts; each distinct text is read once. UserError if not as many."""
        if len(texts_a) != len(texts_b):
            raise UserError(f"texts_a has {len(texts_a)} texts, texts_b {len(texts_b)}: expected as many")
        row = {text: place for place, text in enumerate(dict.fromkeys([*texts_a, *texts_b]))}
        rows = self.rows(list(row))
        a, b = (np.asarray([row[text] for text in texts], np.int64) for texts in (texts_a, texts_b))
        blocks = [slice(start, start + PAIRS_PER_BLOCK) for start in range(0, max(1, len(a)), PAIRS_PER_BLOCK)]
        return np.concatenate([self.pairs(rows[a[block]], rows[b[block]]) for block in blocks])

    def _compare(self, a: Rows, b: Rows, how: _How, shape: tuple[int, ...]) -> np.ndarray:
        features: list[np.ndarray] = []  # of the shape of the pairs each
        for name in self.names:
            cosine = self._cosine(name, a, b, how)
            features.append(cosine)
            if self.cohorts:
                features.append(cohort.beside(cosine, how.lift_a(a.among[name]), how.lift_b(b.among[name])))
            if name == "names":
                features += _name_features(a.sparse[name], b.sparse[name], how)
            if name in reading.NUM_COLUMNS:
                differences = np.abs(how.lift_a(a.dense[name]) - how.lift_b(b.dense[name]))
                features += list(np.moveaxis(differences, -1, 0))
        if not features:
            return np.zeros((*shape, 0), np.float32)
        found = np.stack(features, -1).astype(np.float32)
        if not self.masked_apart:
            return found
        apart = (how.lift_a(a.masked) | how.lift_b(b.masked))[..., None].astype(np.float32)
        return np.concatenate([found, apart, found * apart], -1)

    def _cosine(self, name: str, a: Rows, b: Rows, how: _How) -> np.ndarray:
        if name in _SPARSE:
            return self._sparse_cosine(name, a.sparse[name], b.sparse[name], how)
        return how.product(_unit(a.dense[name]), _unit(b.dense[name]))

    def _sparse_cosine(self, name: str, x: sp.csr_matrix, y: sp.csr_matrix, how: _How) -> np.ndarray:
        """Cosine of two rows after the training mean is taken from both; 0 where one of them is empty."""
        product, lift_a, lift_b = how
        if not _SPARSE[name].is_centred:
            return product(x, y)
        mean = self.weights[f"{name}.mean"]
        square = float(np.square(mean).sum(dtype=np.float64))

        def against_mean(rows: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
            along = _sums(rows, rows.data * mean[rows.indices])
            length = np.sqrt(np.maximum(1 - 2 * along + square, 1e-12))
            return along, np.where(_sums(rows, rows.data**2) > 0, 1 / length, 0.0)

        (along_x, scale_x), (along_y, scale_y) = against_mean(x), against_mean(y)
        dot = product(x, y) - (lift_a(along_x) + lift_b(along_y)) + square
        return dot * (lift_a(scale_x) * lift_b(scale_y))

    def _weighted(self, name: str, counted: sp.csr_matrix) -> sp.csr_matrix:
        """Term counts to L2-normalised rows."""
        data = (1 + np.log(counted.data)) * self.weights[f"{name}.weight"][counted.indices]
        length = np.sqrt(_sums(counted, data**2)).repeat(np.diff(counted.indptr))
        data = (data / np.maximum(length, 1e-12)).astype(np.float32)
        return sp.csr_matrix((data, counted.indices, counted.indptr), shape=counted.shape)

    def _raw(self, name: str, readings: Sequence[Reading]) -> np.ndarray:
        if name == "function_words":
            return reading.function_words(readings, self.vocabulary)
        return reading.DENSE[name](readings)

    def _standard(self, name: str, readings: Sequence[Reading]) -> np.ndarray:
        mean, deviation = (self.weights[f"{name}.{part}"] for part in ("mean", "deviation"))
        return ((self._raw(name, readings) - mean) / deviation).clip(-_MAX_DEVIATION, _MAX_DEVIATION)

    def _count(self, name: str, readings: Sequence[Reading]) -> sp.csr_matrix:
        view = _SPARSE[name]
        terms = partial(view.terms, frequent=frozenset(self.vocabulary)) if name == "distorted" else view.terms
        hashing = HashingVectorizer(
            analyzer=terms, n_features=2**view.num_bits, norm=None, alternate_sign=False, dtype=np.float32
        )
        if not readings:
            return sp.csr_matrix((0, 2**view.num_bits), dtype=np.float32)
        return hashing.transform(readings)


def _sums(matrix: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Sums (N,) of values that stand where the matrix has entries, row by row."""
    rows = np.arange(matrix.shape[0]).repeat(np.diff(matrix.indptr))
    return np.bincount(rows, weights=values, minlength=matrix.shape[0])


def _row_products(x: sp.csr_matrix | np.ndarray, y: sp.csr_matrix | np.ndarray) -> np.ndarray:
    products = x.multiply(y).tocsr() if sp.issparse(x) else x * y
    return np.asarray(products.sum(1)).reshape(-1)


def _products(x: sp.csr_matrix | np.ndarray, y: sp.csr_matrix | np.ndarray) -> np.ndarray:
    product = x @ y.T
    return product.toarray() if sp.issparse(product) else product


def _each_product(x: sp.csr_matrix | np.ndarray, y: sp.csr_matrix | np.ndarray) -> np.ndarray:
    """As `_products`, each by itself: the last bits of a matrix product depend on how many rows share it."""
    return _products(x, y) if sp.issparse(x) else np.vecdot(x[:, None], y[None])


_BY_ROW = _How(_row_products, lambda x: x, lambda x: x)
_ALL = _How(_products, lambda x: x[:, None], lambda x: x[None])
_EACH = _ALL._replace(product=_each_product)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _name_features(x: sp.csr_matrix, y: sp.csr_matrix, how: _How) -> list[np.ndarray]:
    """How many names both have, as a share of the fewer, how many the one with fewer has, and the difference."""
    present = [sp.csr_matrix((np.ones_like(m.data), m.indices, m.indptr), shape=m.shape) for m in (x, y)]
    shared = how.product(*present)
    number_a, number_b = how.lift_a(np.diff(x.indptr)), how.lift_b(np.diff(y.indptr))
    fewest = np.minimum(number_a, number_b)
    difference = np.abs(np.log1p(number_a) - np.log1p(number_b))
    return [np.log1p(shared), shared / np.maximum(fewest, 1), np.log1p(fewest), difference]
