"""A score of two texts beside what each of them has with a cohort of others.

Some texts are like everything and some like nothing, so one cosine means more for the one than for the other. Speaker
verification takes that away by the mean and deviation of each side's scores against a cohort (symmetric score
normalisation, S-norm: Kenny 2010, "Bayesian speaker verification with heavy-tailed priors", section 4.3). Shape
letters: N texts, c texts of the cohort.
"""

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp

LEAST_DEVIATION = 1e-3  # of cosines: a text without names has the same with everybody
_PART = ".cohort."
_CSR = ("data", "indices", "indptr")


def moments(cosines: np.ndarray) -> np.ndarray:
    """Mean and deviation (N, 2) of cosines with the cohort (N, c)."""
    cosines = np.asarray(cosines, np.float64)
    return np.stack([cosines.mean(1), cosines.std(1).clip(min=LEAST_DEVIATION)], 1)


def beside(cosine: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (...) in deviations from what each side has with the cohort, the mean of both; moments (..., 2) each."""
    return 0.5 * ((cosine - a[..., 0]) / a[..., 1] + (cosine - b[..., 0]) / b[..., 1])


def is_part(key: str) -> bool:
    """Whether a stored array belongs to a cohort."""
    return _PART in key


def packed(sparse: Mapping[str, sp.csr_matrix], dense: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of a cohort as plain arrays by key."""
    found = {f"{name}{_PART}rows": rows for name, rows in dense.items()}
    return found | {f"{name}{_PART}{part}": getattr(rows, part) for name, rows in sparse.items() for part in _CSR}


def unpacked(
    stored: Mapping[str, np.ndarray], count: int, buckets: Mapping[str, int], columns: Mapping[str, int]
) -> tuple[dict[str, sp.csr_matrix], dict[str, np.ndarray]]:
    """What `packed` was given, of `count` texts, by the width of each view. ValueError for anything else."""
    wanted = {f"{name}{_PART}{part}" for name in buckets for part in _CSR} | {f"{name}{_PART}rows" for name in columns}
    wrong = sorted(wanted ^ {key for key in stored if is_part(key)})
    if wrong:
        raise ValueError(f"{wrong[0]!r} is missing or unknown")
    dense = {name: stored[f"{name}{_PART}rows"] for name in columns}
    for name, rows in dense.items():
        if rows.shape != (count, columns[name]):
            raise ValueError(f"{name + _PART + 'rows'!r} is {rows.shape}, not {(count, columns[name])}")
    sparse = {}
    for name, width in buckets.items():
        parts = tuple(stored[f"{name}{_PART}{part}"] for part in _CSR)
        try:
            sparse[name] = sp.csr_matrix(parts, shape=(count, width))
            sparse[name].check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{name + _PART[:-1]!r}: {error}") from error
    return sparse, dense
