"""Weights that rise from about 0 to 1 in the first part of a run. `1 - ramp` falls. `triangle` rises, then falls."""

import math

from semiseg.types import Progress


def linear(at: Progress, over: float) -> float:
    """Returns a weight that rises evenly from 0 to 1.

    Args:
        at: the step.
        over: the share of the run in which the weight rises, in [0, 1]. 0: the weight is always 1.

    Example:
        >>> [linear(Progress(step, 100), over=0.4) for step in (0, 10, 20, 40, 99)]
        [0.0, 0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, at.step / (over * at.num_steps)) if over else 1.0


def sigmoid(at: Progress, over: float) -> float:
    """Returns a weight that rises slowly, then fast, then slowly: `exp(-5 (1 - t)^2)`, where t rises evenly to 1.

    So temporal ensembling (Laine and Aila, ICLR 2017) and many later methods ramp their unlabeled loss up. The curve
    starts at exp(-5), not at 0.

    Args:
        at: the step.
        over: the share of the run in which the weight rises, in [0, 1]. 0: the weight is always 1.

    Example:
        >>> [round(sigmoid(Progress(step, 100), over=0.4), 4) for step in (0, 10, 20, 40, 99)]
        [0.0067, 0.0601, 0.2865, 1.0, 1.0]
    """
    return math.exp(-5 * (1 - linear(at, over)) ** 2)


def cosine(at: Progress, over: float) -> float:
    """Returns a weight that rises along half a period of a cosine: `(1 - cos(pi t)) / 2`, where t rises evenly to 1.

    Args:
        at: the step.
        over: the share of the run in which the weight rises, in [0, 1]. 0: the weight is always 1.

    Example:
        >>> [round(cosine(Progress(step, 100), over=0.4), 4) for step in (0, 10, 20, 40, 99)]
        [0.0, 0.1464, 0.5, 1.0, 1.0]
    """
    return (1 - math.cos(math.pi * linear(at, over))) / 2


def triangle(at: Progress, peak: float) -> float:
    """Returns a weight that rises evenly from 0 to 1, then falls evenly to 0 at the end of the run.

    Args:
        at: the step.
        peak: the share of the run after which the weight is 1, in (0, 1).

    Example:
        >>> [triangle(Progress(step, 100), peak=0.5) for step in (0, 25, 50, 75, 99)]
        [0.0, 0.5, 1.0, 0.5, 0.02]
    """
    share = at.step / at.num_steps
    return min(share / peak, (at.num_steps - at.step) / (at.num_steps * (1 - peak)))
