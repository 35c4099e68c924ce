"""The options of a prediction of files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from semiseg.errors import UserError

KINDS = ("masks", "overlays", "probabilities", "coco", "labelme", "areas")
LEAST_REGION = 16  # px
SIMPLIFY = 1.0  # px
POLYGONS = ("coco", "labelme")


@dataclass(frozen=True)
class Options:
    """What to write, and how to predict.

    Attributes:
        write: kinds of outputs, of KINDS.
        flip: whether to predict each image mirrored, too. The mean of the probabilities counts.
        scales: factors of the image's size; of several the mean of the probabilities counts.
        window: side of the windows (px of the image) in which larger images are predicted; None: only very large
            images are predicted in windows.
        least_region: regions of fewer pixels become no polygon; None: LEAST_REGION.
        simplify: how far polygons may be from the border of their region, px; 0: they follow each pixel; None:
            SIMPLIFY.
        overwrite: whether files that an earlier prediction wrote are replaced.

    Raises:
        UserError: an option is wrong, or would be ignored.
    """

    write: tuple[str, ...] = ("masks", "overlays")
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: int | None = None
    least_region: int | None = None
    simplify: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.write:
            raise UserError(f"--write: names nothing; choose of {', '.join(KINDS)}")
        for kind in self.write:
            if kind not in KINDS:
                raise UserError(f"--write {kind}: there is no such output; choose of {', '.join(KINDS)}")
        _refuse_twice("--write", self.write)
        if not self.scales:
            raise UserError("--scales: names no scale; use e.g. 0.75,1,1.25")
        for scale in self.scales:
            if not (math.isfinite(scale) and 0 < scale <= 8):
                raise UserError(f"--scales {scale:g}: is not between 0 and 8; use e.g. 0.75,1,1.25")
        _refuse_twice("--scales", self.scales)
        if self.least_region is not None and self.least_region < 1:
            raise UserError(f"--least-region {self.least_region}: is no number of pixels; use 1 to keep all regions")
        if self.simplify is not None and not (math.isfinite(self.simplify) and self.simplify >= 0):
            raise UserError(f"--simplify {self.simplify:g}: is no distance in pixels; use 0 to follow each pixel")
        for name, value in (("--least-region", self.least_region), ("--simplify", self.simplify)):
            if value is not None and not set(POLYGONS) & set(self.write):
                raise UserError(f"{name}: has no effect without polygons; add coco or labelme to --write")

    @property
    def predicting(self) -> tuple[object, ...]:
        """Returns what the predicted classes depend on."""
        return self.flip, self.scales, self.window

    @property
    def tracing(self) -> tuple[int, float]:
        """Returns the smallest region and the tolerance of polygons."""
        least = LEAST_REGION if self.least_region is None else self.least_region
        return least, SIMPLIFY if self.simplify is None else self.simplify


def _refuse_twice(option: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option}: names {value} twice; name it once")
