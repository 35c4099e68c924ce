"""Curves of a run, thinned out for a page: every part of the run stays, and so do its peaks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Points = Mapping[int, float]  # step -> value

MOST = 800  # points of a curve on a page


@dataclass(frozen=True)
class Curve:
    """A curve, or the mean of several with their spread.

    Attributes:
        steps: completed steps.
        values: the value after each of them.
        band_steps: completed steps of the band; empty without one.
        low: lower border of the band: mean minus standard deviation.
        high: upper border of the band.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]
    band_steps: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def curve(members: Sequence[Points], most: int = MOST) -> Curve:
    """Makes a curve of one run, or the mean over the seeds at each step, with the spread as a band.

    A step that only some of the seeds have (the others have not come so far) is the mean of these; it has a band if
    there are two of them.

    Args:
        members: the values of each seed.
        most: the largest number of points.
    """
    steps = sorted({step for each in members for step in each})
    at = [[each[step] for each in members if step in each] for step in steps]
    means = [sum(values) / len(values) for values in at]
    kept = thinned(means, most)
    spread = [
        (step, mean, _deviation(values, mean))
        for step, mean, values in zip(steps, means, at, strict=True)
        if len(values) > 1
    ]
    buckets = [spread[part.start : part.stop] for part in _parts(len(spread), most // 2)]
    return Curve(
        steps=tuple(steps[index] for index in kept),
        values=tuple(means[index] for index in kept),
        band_steps=tuple(part[len(part) // 2][0] for part in buckets),
        low=tuple(min(mean - deviation for _, mean, deviation in part) for part in buckets),
        high=tuple(max(mean + deviation for _, mean, deviation in part) for part in buckets),
    )


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Chooses which values of a long curve are drawn: the first, the last, and of each part the lowest and the highest.

    Example:
        The peak of 9 stays, wherever it is.

        >>> thinned([0.0, 1.0, 0.0, 9.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], most=6)
        [0, 3, 5, 6, 9]
    """
    if len(values) <= most:
        return [*range(len(values))]
    kept = {0, len(values) - 1}
    for part in _parts(len(values), (most - 2) // 2):
        kept |= {min(part, key=values.__getitem__), max(part, key=values.__getitem__)}
    return sorted(kept)


def _deviation(values: Sequence[float], mean: float) -> float:
    """Computes the standard deviation; statistics.stdev, which is exact, takes 20 times as long."""
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _parts(length: int, number: int) -> list[range]:
    """Splits `range(length)` into at most `number` parts of nearly equal length; none is empty."""
    number = min(number, length)
    return [range(index * length // number, (index + 1) * length // number) for index in range(number)]
