"""What a sweep over the number of categories K says: losses by category and position, and whether K has an effect.

Shape letters: N windows, T predictions of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LN2 = float(np.log(2))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(losses: np.ndarray, documents: np.ndarray) -> Estimate:
    """Mean of losses (N, T) with an interval over documents: windows of one document are not independent.

    Cluster-robust standard error of a mean (Cameron & Miller 2015, section II), 1.96 of it to each side.
    """
    values = losses.mean(1, dtype=np.float64)
    mean = float(values.mean())
    _, cluster = np.unique(documents, return_inverse=True)
    sums = np.bincount(cluster, weights=values - mean)
    count = len(sums)
    if count < 2:
        return Estimate(mean, float("-inf"), float("inf"))
    error = float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))
    return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The loss of a token as bits for each byte of the text, which tokenizers cannot change."""
    return nats_per_token / LN2 / bytes_per_token


@dataclass(frozen=True)
class Trend:
    """Mean slope of a loss over log2 K within seeds, nats per doubling of K, and how likely chance gives as much."""

    slope: float
    p_value: float
    seed_slopes: tuple[float, ...]
    spread: float  # standard deviation over seeds at equal K, in nats


def trend(k: Sequence[int], seeds: Sequence[int], losses: Sequence[float], num_permutations: int = 10_000) -> Trend:
    """Does the loss change with K by more than seeds differ?

    A permutation test with seeds as blocks (Good 2005, chapter 5): K is shuffled inside each seed, the statistic is
    the mean over seeds of the least-squares slope over log2 K, two-sided. Raises ValueError when a seed has one K.
    """
    k, seeds, losses = np.log2(np.asarray(k, float)), np.asarray(seeds), np.asarray(losses, float)
    blocks = [(k[seeds == seed], losses[seeds == seed]) for seed in np.unique(seeds)]
    if any(len(np.unique(x)) < 2 for x, _ in blocks):
        raise ValueError("every seed needs at least two values of K")
    slopes = [_slope(x, y) for x, y in blocks]
    draw = np.random.Generator(np.random.Philox(0))
    shuffled = np.zeros(num_permutations)
    for x, y in blocks:
        orders = draw.permuted(np.tile(np.arange(len(y)), (num_permutations, 1)), axis=1)
        centred = x - x.mean()
        shuffled += y[orders] @ centred / np.square(centred).sum()
    observed = abs(sum(slopes))
    p_value = (1 + int((np.abs(shuffled) >= observed - 1e-12).sum())) / (1 + num_permutations)
    deviations = [losses[k == level] for level in np.unique(k)]
    spread = float(np.sqrt(np.mean([d.var(ddof=1) for d in deviations if len(d) > 1]))) if len(blocks) > 1 else 0.0
    return Trend(float(np.mean(slopes)), p_value, tuple(slopes), spread)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float(y @ centred / np.square(centred).sum())
