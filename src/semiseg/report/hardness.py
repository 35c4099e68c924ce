"""Chooses single unlabeled images whose hardness is worth following over a training (Figure 3c of the iMAS paper)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from semiseg.report.series import Curve, band

EACH = 4  # images of a kind
_POINTS = 60  # of the curve of an image


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


def follow(rows: Sequence[tuple[int, str, float]], each: int = EACH) -> list[Followed]:
    """Chooses the images with the highest and the lowest mean and the largest deviation in the second half of the rows.

    Args:
        rows: (step, name, hardness), in the order of the steps.
        each: number of images of a kind.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for step, name, hardness in rows:
        found.setdefault(name, []).append((step, hardness))
    middle = rows[len(rows) // 2][0] if rows else 0
    late = {name: [value for step, value in values if step >= middle] for name, values in found.items()}
    means = {name: statistics.fmean(values) for name, values in late.items() if values}
    order = sorted(means, key=lambda name: (means[name], name))
    varied = {name: statistics.pstdev(value for _, value in found[name]) for name in means if len(found[name]) > 2}
    kinds = {
        "hardest": order[::-1],
        "easiest": order,
        "most varied": sorted(varied, key=lambda name: (-varied[name], name)),
    }
    chosen: dict[str, str] = {}
    for kind, names in kinds.items():
        fresh = [name for name in names if name not in chosen]
        chosen |= dict.fromkeys(fresh[:each], kind)
    last = rows[-1][0] if rows else 1
    return [Followed(name, why, band(found[name], last, _POINTS)) for name, why in chosen.items()]
