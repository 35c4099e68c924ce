"""Hardness over a training, and single unlabeled images whose hardness is worth following (Figure 3c of iMAS)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from semiseg.report.series import Curve
from semiseg.runs import mean_hardness

EACH = 4  # images of a kind
PARTS, _PARTS_OF_IMAGE = 200, 60  # intervals of steps

Table = Float64[np.ndarray, "n 3"]  # step, index of the image, hardness


@dataclass(frozen=True)
class Followed:
    """An image to follow.

    Attributes:
        name: its name.
        why: what is special about it: `hardest`, `easiest` or `most varied`.
        curve: its hardness over the training.
    """

    name: str
    why: str
    curve: Curve


def course(table: Table, last: int, parts: int = PARTS) -> Curve:
    """Computes mean and standard deviation of the hardness in equal intervals of steps, each drawn at its last step.

    Args:
        table: the hardness of single images.
        last: the last step of the last interval.
        parts: the largest number of intervals.
    """
    width = max(1, -(-last // parts))
    place = (table[:, 0].astype(int) - 1) // width
    count, total = np.bincount(place), np.bincount(place, table[:, 2])
    used = np.flatnonzero(count)
    mean = total[used] / count[used]
    means = np.zeros(len(count))
    means[used] = mean
    squares = np.bincount(place, (table[:, 2] - means[place]) ** 2)
    deviation = np.sqrt(squares[used] / count[used])
    steps = tuple(min(int(each + 1) * width, last) for each in used)
    return Curve(
        steps=steps,
        values=tuple(mean.tolist()),
        band_steps=steps,
        low=tuple(np.maximum(mean - deviation, 0.0).tolist()),  # hardness lies between 0 and 1
        high=tuple(np.minimum(mean + deviation, 1.0).tolist()),
    )


def follow(table: Table, names: Sequence[str], each: int = EACH) -> list[Followed]:
    """Chooses the images with the highest and the lowest mean in the second half, and with the largest deviation.

    Args:
        table: the hardness of single images, in the order of the steps.
        names: names of the unlabeled images.
        each: number of images of a kind.
    """
    means = mean_hardness(table)
    order = sorted(means, key=lambda index: (means[index], index))
    deviations = _deviations(table)
    kinds = {
        "hardest": order[::-1],
        "easiest": order,
        "most varied": sorted(means, key=lambda index: (-deviations[index], index)),
    }
    chosen: dict[int, str] = {}
    for kind, indices in kinds.items():
        chosen |= dict.fromkeys([index for index in indices if index not in chosen][:each], kind)
    last = int(table[-1, 0]) if len(table) else 1
    return [
        Followed(names[index], kind, course(table[table[:, 1] == index], last, _PARTS_OF_IMAGE))
        for index, kind in chosen.items()
    ]


def _deviations(table: Table) -> Float64[np.ndarray, " images"]:
    """Computes the standard deviation of each image over the whole training; 0 for images that were never seen."""
    index = table[:, 1].astype(int)
    count = np.maximum(np.bincount(index), 1)
    mean = np.bincount(index, table[:, 2]) / count
    return np.sqrt(np.bincount(index, (table[:, 2] - mean[index]) ** 2) / count)
