"""What a sweep over the number of categories K says: losses by category and position, and whether K has an effect.

Shape letters: N windows, T predictions of a window, R runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

LN2 = float(np.log(2))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(losses: np.ndarray, documents: np.ndarray) -> Estimate:
    """Mean of losses (N, T) with an interval over documents: windows of one document are not independent.

    Cluster-robust standard error of a mean, with Student's t for as many degrees of freedom as documents but one
    (Cameron & Miller 2015, sections II and VI). One document gives no interval: its bounds are NaN.
    """
    values = losses.mean(1, dtype=np.float64)
    mean = float(values.mean())
    _, cluster = np.unique(documents, return_inverse=True)
    sums = np.bincount(cluster, weights=values - mean)
    count = len(sums)
    if count < 2:
        return Estimate(mean, float("nan"), float("nan"))
    error = float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))
    half = float(student_t.ppf(0.975, count - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The loss of a token as bits for each byte of the text, which tokenizers cannot change."""
    return nats_per_token / LN2 / bytes_per_token


@dataclass(frozen=True)
class Levels:
    """Losses as the sum of an effect of K, one of the seed, and a rest: a randomised block design, seeds as blocks.

    `means` are the losses at each K, seeds levelled out; `rest` (R, ...) is what neither explains, and `spread` its
    standard deviation: what runs of one K differ by once their seeds' level is taken out. None where nothing is left
    to estimate it from. `spreads` are the same for the runs of each K alone; NaN where they leave nothing.
    """

    k: tuple[int, ...]
    means: np.ndarray  # (levels, ...)
    rest: np.ndarray  # (R, ...)
    spread: np.ndarray | None  # (...)
    spreads: np.ndarray  # (levels, ...)


def levels(k: Sequence[int], seeds: Sequence[int], losses: np.ndarray) -> Levels:
    """The additive model of losses (R, ...) in K and seed, by least squares (Box, Hunter & Hunter 2005, chapter 4).

    The variance of one K's runs is the mean of their squared rests, each over its share that the fit leaves free
    (HC2, MacKinnon & White 1985): the fit follows a run that has few beside it more closely.
    """
    losses = np.asarray(losses, float)
    k_levels, k_index = np.unique(np.asarray(k), return_inverse=True)
    seed_levels, seed_index = np.unique(np.asarray(seeds), return_inverse=True)
    # A column for each K, and one for each seed but those that its seeds' sum gives: seed effects add up to zero.
    of_seed = np.eye(len(seed_levels))[seed_index]
    of_seed = of_seed[:, :-1] - of_seed[:, -1:]
    design = np.concatenate([np.eye(len(k_levels))[k_index], of_seed], axis=1)
    flat = losses.reshape(len(losses), -1)
    found, _, rank, _ = np.linalg.lstsq(design, flat, rcond=None)
    rest = (flat - design @ found).reshape(losses.shape)
    freedom = len(losses) - int(rank)
    means = found[: len(k_levels)].reshape(len(k_levels), *losses.shape[1:])
    spread = np.sqrt(np.square(rest).sum(0) / freedom) if freedom else None
    free = 1 - np.einsum("rp,pr->r", design, np.linalg.pinv(design))  # share of each run
    free[free < 1e-9] = np.nan
    each = np.square(rest) / free.reshape(-1, *[1] * (losses.ndim - 1))
    left = [each[(k_index == level) & np.isfinite(free)] for level in range(len(k_levels))]
    spreads = np.stack([np.sqrt(some.mean(0)) if len(some) else np.full(rest.shape[1:], np.nan) for some in left])
    return Levels(tuple(k_levels.tolist()), means, rest, spread, spreads)


@dataclass(frozen=True)
class Trend:
    """Mean slope of a loss over log2 K within seeds, nats per doubling of K, and how likely chance gives as much."""

    slope: float
    p_value: float
    seed_slopes: tuple[float, ...]


def trend(
    k: Sequence[int], seeds: Sequence[int], losses: Sequence[float], num_permutations: int = 10_000
) -> Trend | None:
    """Does the loss change with K by more than chance? None when no seed has two values of K.

    A permutation test with seeds as blocks (Good 2005, chapter 5): K is shuffled inside each seed, the statistic is
    the mean over seeds of the least-squares slope over log2 K, two-sided. `seeds` are those that choose the
    categories. Runs of one seed and K share their categories, so they count once, by their mean: shuffled one by one
    they would pass for so many draws of categories, and what one draw happens to hold for an effect of K. The test
    holds for means that would be exchangeable within a seed if K did nothing: on the same texts for every K, or with
    what makes one text harder than another taken out. A seed with one value of K says nothing about a slope.
    """
    k, seeds, losses = np.log2(np.asarray(k, float)), np.asarray(seeds), np.asarray(losses, float)
    blocks = [_means(k[seeds == seed], losses[seeds == seed]) for seed in np.unique(seeds)]
    blocks = [(x, y) for x, y in blocks if len(x) > 1]
    if not blocks:
        return None
    slopes = [_slope(x, y) for x, y in blocks]
    draw = np.random.Generator(np.random.Philox(0))
    shuffled = np.zeros(num_permutations)
    for x, y in blocks:
        orders = draw.permuted(np.tile(np.arange(len(y)), (num_permutations, 1)), axis=1)
        centred = x - x.mean()
        shuffled += y[orders] @ centred / np.square(centred).sum()
    observed = abs(sum(slopes))
    p_value = (1 + int((np.abs(shuffled) >= observed - 1e-12).sum())) / (1 + num_permutations)
    return Trend(float(np.mean(slopes)), p_value, tuple(slopes))


def _means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of x, and the mean of y at each."""
    values, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return values, np.bincount(place, weights=y) / counts


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float(y @ centred / np.square(centred).sum())
