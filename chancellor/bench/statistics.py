"""The arithmetic of benchmarks: percentiles, ratios of paired runs, and what differs by more than its noise."""

import math
from collections.abc import Sequence
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

__all__ = ["Percentiles", "Ratio", "beyond_chance", "median", "paired_ratios", "percentile"]

_STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""What Student's t exceeds, either way, in 5 % of cases, for 1, 2, ... degrees of freedom."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie, interpolated linearly between neighbours.

    The same as numpy.percentile's default, type 7 of Hyndman and Fan (1996).

    Raises:
        ValueError: there are no values, or `share` is not between 0 and 1.
    """
    if not values:
        raise ValueError("A percentile of no values does not exist.")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"A share lies between 0 and 1, and {share} does not.")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below], ordered[above]
    # Clamped: rounding must not carry the result out of its neighbours.
    return min(max(low + (high - low) * (position - below), low), high)


def median(values: Sequence[float]) -> float:
    """Return the 50th percentile."""
    return percentile(values, 0.5)


class Percentiles(BaseModel):
    """A distribution in a few figures, in the unit of its values."""

    model_config = ConfigDict(frozen=True)

    n: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Sum up the values; None if there are none."""
        if not values:
            return None
        ordered = sorted(values)
        low, high = ordered[0], ordered[-1]
        return cls(
            n=len(ordered),
            mean=min(max(math.fsum(ordered) / len(ordered), low), high),
            min=low,
            p50=percentile(ordered, 0.50),
            p90=percentile(ordered, 0.90),
            p99=percentile(ordered, 0.99),
            max=high,
        )


class Ratio(BaseModel):
    """How many times as much, from pairs that were measured one after the other."""

    model_config = ConfigDict(frozen=True)

    value: float
    """Median of the pairs."""
    low: float
    high: float
    spread: float | None
    """high - low; None where there is only one pair, and the noise is unknown."""
    pairs: tuple[float, ...]

    @classmethod
    def of(cls, subject: Sequence[float | None], other: Sequence[float | None]) -> Self | None:
        """Compare the subject's measurements with the other's, block by block; None if no block has both."""
        pairs = paired_ratios(subject, other)
        if not pairs:
            return None
        low, high = min(pairs), max(pairs)
        return cls(
            value=median(pairs), low=low, high=high, spread=high - low if len(pairs) > 1 else None, pairs=tuple(pairs)
        )


def paired_ratios(subject: Sequence[float | None], other: Sequence[float | None]) -> list[float]:
    """Divide element by element, leaving out pairs where a measurement is missing or zero."""
    return [ours / theirs for ours, theirs in zip(subject, other, strict=False) if ours and theirs]


def beyond_chance(before: Sequence[float], after: Sequence[float]) -> bool:
    """Tell whether two means differ by more than 5 % of chance explain, by Student's t-test with a common variance.

    Raises:
        ValueError: there are less than three values in all, or none on a side.
    """
    freedom = len(before) + len(after) - 2
    if freedom < 1 or not before or not after:
        raise ValueError("A t-test needs three values, and some on each side.")
    ours, theirs = math.fsum(before) / len(before), math.fsum(after) / len(after)
    squares = math.fsum((x - ours) ** 2 for x in before) + math.fsum((x - theirs) ** 2 for x in after)
    error = math.sqrt(squares / freedom * (1 / len(before) + 1 / len(after)))
    return abs(ours - theirs) > _STUDENT[min(freedom, len(_STUDENT)) - 1] * error
