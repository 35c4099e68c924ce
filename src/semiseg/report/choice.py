"""Chooses between candidates that were measured on the same folds, and says why.

Candidates are compared fold by fold: how hard a fold is cancels in their difference.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semiseg.engine.advice import LOST
from semiseg.report.comparison import Interval, Spread


@dataclass(frozen=True)
class Candidate:
    """The result of a candidate.

    Attributes:
        name: its name.
        scores: mIoU on each fold, in the order of the folds.
        iou: mean IoU of each class over the folds that measure it, by the name of the class.
    """

    name: str
    scores: tuple[float, ...]
    iou: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Returns the mean mIoU."""
        return statistics.fmean(self.scores)

    @property
    def lost(self) -> tuple[str, ...]:
        """Returns the names of classes whose IoU is below 1 %."""
        return tuple(name for name, value in self.iou.items() if value < LOST)

    def gain(self, other: "Candidate") -> Interval:
        """Computes the paired difference to another candidate."""
        found = Interval.of(self._differences(other))
        assert found is not None, "there are folds"
        return found

    def may_equal(self, best: "Candidate") -> bool:
        """Returns whether the mean lies within one standard error (of their paired difference) of the best one's."""
        behind = best._differences(self)
        return statistics.fmean(behind) <= statistics.stdev(behind) / math.sqrt(len(behind))

    def _differences(self, other: "Candidate") -> list[float]:
        return [own - others for own, others in zip(self.scores, other.scores, strict=True)]


@dataclass(frozen=True)
class Choice:
    """A candidate, and one sentence that says why it was chosen."""

    name: str
    reason: str


def choose(candidates: Sequence[Candidate]) -> Choice:
    """Chooses the mildest candidate whose mean lies within one standard error of the highest one.

    If the 95 % interval of the best one's gain over the first candidate does not include 0, the first is not chosen.

    Args:
        candidates: the candidates, the mildest first; each with the scores of the same two or more folds.

    Example:
        The second one gains 10, 20 and 0 points: that may be chance, and so may be what the first one is behind.

        >>> plain, strong = Candidate("none", (0.5, 0.5, 0.5), {}), Candidate("jitter", (0.6, 0.7, 0.5), {})
        >>> choose([plain, strong]).name
        'jitter'
        >>> choose([plain, Candidate("jitter", (0.6, 0.45, 0.5), {})]).name
        'none'
    """
    first, best = candidates[0], max(candidates, key=lambda candidate: candidate.mean)
    if best is first:
        return Choice(first.name, f"{first.name} has the highest mean.")
    gain = best.gain(first)
    clear = gain.half is not None and gain.mean > gain.half
    mildest = next(each for each in candidates[1 if clear else 0 :] if each.may_equal(best))
    said = f"The gain of {best.name} over {first.name} ({gain.in_percent()}) "
    said += "is clear: its 95 % interval does not include 0" if clear else "may be chance"
    if mildest is not best:
        return Choice(mildest.name, f"{said}; {mildest.name} is the mildest one within one standard error of it.")
    no_milder = "" if clear else ", but no milder one comes within one standard error of it"
    return Choice(best.name, f"{said}{no_milder}.")


def table(candidates: Sequence[Candidate]) -> list[str]:
    """Makes the lines of a table: mean and deviation over folds, the gain over the first candidate, lost classes."""
    first = candidates[0]
    rows = [("", "mIoU", f"gain over {first.name}", "classes below 1 %")]
    for each in candidates:
        spread = Spread.of(each.scores)
        gain = "" if each is first else each.gain(first).in_percent()
        rows.append((each.name, spread.in_percent() if spread else "", gain, ", ".join(each.lost)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
