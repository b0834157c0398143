"""A sweep as a list of points: every combination of a grid (or of several), times seeded samples of a search space."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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


Search = Choice | Between
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
        if isinstance(space, Choice):
            found[key] = space.values[int(draw * len(space.values))]
        elif space.kind == "uniform":
            found[key] = space.low + draw * (space.high - space.low)
        else:
            found[key] = math.exp(math.log(space.low) + draw * (math.log(space.high) - math.log(space.low)))
    return found


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
