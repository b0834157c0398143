"""A sweep as a list of points: every combination of a grid (or of several), times seeded samples of a search space."""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quire.config import Config
from quire.errors import UserError
from quire.sampler import generator


class Choice(Config):
    """One of some values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)


class Between(Config):
    """A number between two, evenly or evenly in its logarithm."""

    kind: Literal["uniform", "loguniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "Between":
        if not self.low < self.high or (self.kind == "loguniform" and self.low <= 0):
            raise ValueError("low must be below high, and above 0 for loguniform")
        return self


class Integers(Config):
    """A whole number from `low` to `high`, both included, evenly or evenly in its logarithm."""

    kind: Literal["int", "logint"]
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "Integers":
        if not self.low < self.high or (self.kind == "logint" and self.low <= 0):
            raise ValueError("low must be below high, and above 0 for logint")
        return self


class Normal(Config):
    """A number of a normal distribution."""

    kind: Literal["normal"]
    mean: float
    sd: float = Field(gt=0)


Search = Annotated[Choice | Between | Integers | Normal, Field(discriminator="kind")]
Point = dict[str, Any]  # dotted key -> value


Grid = Mapping[str, Sequence[Any]]


def points(grids: Sequence[Grid], search: Mapping[str, Search], num_samples: int, seed: int) -> list[Point]:
    """All points, in a fixed order: the same sweep has the same trials whenever it is started.

    Every combination of each grid, as of a list of grids in scikit-learn's ParameterGrid, times the samples.
    Raises UserError for a key in both, a grid key without values, and grids that vary other keys than the first.
    """
    for grid in grids:
        both = sorted(set(grid) & set(search))
        if both:
            raise UserError(f"{both[0]!r} stands in grid and in search: it can be varied in one way")
        other = sorted(set(grid) ^ set(grids[0]))
        if other:
            raise UserError(f"grid: {other[0]!r} stands in one of the {len(grids)} grids and not in another")
        empty = [key for key, values in grid.items() if not values]
        if empty:
            raise UserError(f"grid.{empty[0]}: no value")
    cells = [
        dict(zip(grid, values, strict=True)) for grid in grids or [{}] for values in itertools.product(*grid.values())
    ]
    if not search:
        return cells
    drawn = [_sample(search, seed, number) for number in range(num_samples)]
    return [cell | sample for cell in cells for sample in drawn]


def _sample(search: Mapping[str, Search], seed: int, number: int) -> Point:
    draws = generator(seed, number).random(len(search))
    found: Point = {}
    for (key, space), draw in zip(search.items(), draws.tolist(), strict=True):
        found[key] = _value(space, draw)
    return found


def _value(space: Search, draw: float) -> Any:
    """The value at a share `draw` (0 to below 1) of the distribution."""
    match space:
        case Choice():
            return space.values[int(draw * len(space.values))]
        case Normal():
            return NormalDist(space.mean, space.sd).inv_cdf(max(draw, 2**-54))  # the inverse has no value at 0
        case Integers(kind="int"):
            return space.low + int(draw * (space.high + 1 - space.low))
        case Integers():
            found = int(_evenly_in_logarithm(space.low, space.high + 1, draw))
            return min(max(found, space.low), space.high)  # rounding: exp(log(5)) is below 5
        case Between(kind="uniform"):
            return space.low + draw * (space.high - space.low)
        case _:
            return _evenly_in_logarithm(space.low, space.high, draw)


def _evenly_in_logarithm(low: float, high: float, draw: float) -> float:
    return math.exp(math.log(low) + draw * (math.log(high) - math.log(low)))


def nested(point: Point) -> dict[str, Any]:
    """`{"loop.seed": 1}` as `{"loop": {"seed": 1}}`."""
    made: dict[str, Any] = {}
    for key, value in point.items():
        place = made
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def trial_name(sweep: str, point: Point) -> str:
    """A readable artefact name: the sweep's, and each varied key with its value."""
    parts = [
        f"{key.split('.')[-1]}{value:.4g}" if isinstance(value, float) else f"{key.split('.')[-1]}{value}"
        for key, value in point.items()
    ]
    return "-".join([sweep, *("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts)])
