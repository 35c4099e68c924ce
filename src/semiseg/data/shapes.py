"""Turns drawn shapes into pixels: polygons, strokes (lines, points, circles) and runs (RLE).

Coordinates are px from the top left corner of the image, x to the right and y downward. So the first pixel reaches from
0 to 1, and its center is at 0.5. A pixel belongs to a shape if its center does. What lies outside the image is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from numpy.typing import NDArray

from semiseg.errors import UserError
from semiseg.types import IGNORE

Size = tuple[int, int]  # px, (height, width)
_FARTHEST = 10**6  # px; coordinates beyond it are no pixels


class Region(NamedTuple):
    """The pixels of a shape: `inside` is the box whose top left pixel is (top, left); the box is within the image."""

    top: int
    left: int
    inside: Bool[np.ndarray, "h w"]


@runtime_checkable
class Shape(Protocol):
    """Pixels of an image that were drawn together."""

    def region(self, size: Size) -> Region:
        """Returns the pixels of the shape in an image of `size`.

        Raises:
            UserError: the shape contradicts itself or does not fit the image. The message does not name the file.
        """
        ...

    def identity(self) -> bytes:
        """Returns bytes that differ if the pixels may differ."""
        ...


@dataclass(frozen=True)
class Polygons:
    """The union of polygons. Each has its corners in order; where one crosses itself, the even-odd rule holds."""

    rings: tuple[Float64[np.ndarray, "n 2"], ...]

    def region(self, size: Size) -> Region:
        """Returns the pixels whose centers are inside."""
        top, left, bottom, right = _box(np.concatenate(self.rings), 0.0, size)
        inside = np.zeros((bottom - top, right - left), dtype=bool)
        for ring in self.rings:
            inside |= _inside(ring - (left, top), inside.shape)
        return Region(top, left, inside)

    def identity(self) -> bytes:
        """Returns the corners as bytes."""
        return b"polygons" + b"".join(len(ring).to_bytes(8, "little") + ring.tobytes() for ring in self.rings)


@dataclass(frozen=True)
class Stroke:
    """The pixels whose centers are at most half of `width` (px) away from a line through `points`.

    A stroke through a single point is a disk.
    """

    points: Float64[np.ndarray, "n 2"]
    width: float

    def region(self, size: Size) -> Region:
        """Returns the pixels whose centers are near enough."""
        reach = self.width / 2
        top, left, bottom, right = _box(self.points, reach, size)
        inside = np.zeros((bottom - top, right - left), dtype=bool)
        ends = self.points[1:] if len(self.points) > 1 else self.points
        for start, end in zip(self.points, ends, strict=False):
            up, first, down, last = _box(np.stack([start, end]), reach, size)
            near = _near(start - (first, up), end - (first, up), reach, (down - up, last - first))
            inside[up - top : down - top, first - left : last - left] |= near
        return Region(top, left, inside)

    def identity(self) -> bytes:
        """Returns points and width as bytes."""
        return b"stroke" + np.float64(self.width).tobytes() + self.points.tobytes()


@dataclass(frozen=True)
class Runs:
    """A mask in COCO's run-length encoding: column by column, the numbers of pixels outside and inside in turn.

    Attributes:
        size: (height, width) of the mask, px.
        counts: the numbers, or the text in which COCO's own tools compress them.
    """

    size: Size
    counts: tuple[int, ...] | str

    def region(self, size: Size) -> Region:
        """Returns the pixels of the mask, which must have the size of the image."""
        from faster_coco_eval import mask  # other layouts need not wait for it

        if self.size != size:
            raise UserError(f"the RLE is {self.size[1]}x{self.size[0]} px, the image {size[1]}x{size[0]}")
        counts, total = self.counts, size[0] * size[1]
        if not isinstance(counts, str) and sum(counts) != total:
            raise UserError(f"the counts of the RLE have the sum {sum(counts)}, the image {total} pixels")
        runs = {"size": list(size), "counts": counts if isinstance(counts, str) else list(counts)}
        try:
            decoded = mask.decode(runs if isinstance(counts, str) else mask.frPyObjects(runs, *size))
        except (ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise UserError(f"the RLE does not describe {size[1]}x{size[0]} pixels; export it again") from error
        return Region(0, 0, np.ascontiguousarray(decoded).view(bool))

    def identity(self) -> bytes:
        """Returns size and counts as bytes."""
        return f"runs {self.size} {self.counts}".encode()


def rectangle(corners: Float64[np.ndarray, "2 2"]) -> Polygons:
    """Makes a rectangle of two opposite corners."""
    (left, top), (right, bottom) = corners.tolist()
    return Polygons((as_points([(left, top), (right, top), (right, bottom), (left, bottom)]),))


def circle(points: Float64[np.ndarray, "2 2"]) -> Stroke:
    """Makes a circle of its center and a point on its edge."""
    return Stroke(points[:1], 2 * float(np.hypot(*(points[1] - points[0]))))


def as_points(values: object) -> Float64[np.ndarray, "n 2"]:
    """Makes an array of points [[x, y], ...], or of the numbers x, y, x, y ... in one row.

    Raises:
        UserError: these are no pairs of numbers, or too large to be pixels. The message does not name the file.

    Example:
        >>> as_points([0, 1, 2.5, 3]).tolist()
        [[0.0, 1.0], [2.5, 3.0]]
    """
    try:
        numbers = np.array(values)
    except ValueError as error:  # rows of different lengths
        raise UserError("its points are no pairs of numbers x, y") from error
    fits = (numbers.ndim == 1 and numbers.size % 2 == 0) or (numbers.ndim == 2 and numbers.shape[1] == 2)
    if numbers.dtype.kind not in "iuf" or not fits:
        raise UserError("its points are no pairs of numbers x, y")
    points = numbers.astype(np.float64).reshape(-1, 2)
    if not (np.abs(points) <= _FARTHEST).all():  # NaN, too
        raise UserError(f"its points are no pixels: {points[~(np.abs(points) <= _FARTHEST)][0]:g} is too far away")
    return points


def paint(shapes: Sequence[tuple[int, Shape]], size: Size, fill: int) -> UInt8[np.ndarray, "h w"]:
    """Draws shapes one above the other.

    Args:
        shapes: (value, shape); a later one lies above an earlier one.
        size: (height, width) of the image, px.
        fill: the value of pixels in no shape.

    Returns:
        The value of each pixel.

    Raises:
        UserError: a shape cannot be drawn. The message does not name the file, but the number of the shape, from 0.

    Example:
        >>> low, high = rectangle(as_points([0, 0, 3, 2])), rectangle(as_points([2, 1, 4, 4]))
        >>> paint([(1, low), (2, high)], (3, 4), fill=0)
        array([[1, 1, 1, 0],
               [1, 1, 2, 2],
               [0, 0, 2, 2]], dtype=uint8)
    """
    return paint_and_count(shapes, size, fill)[0]


def paint_and_count(shapes: Sequence[tuple[int, Shape]], size: Size, fill: int) -> tuple[UInt8[np.ndarray, "h w"], int]:
    """Does what `paint` does, and counts the pixels in which shapes of different classes overlap.

    A shape that does not count (IGNORE) overlaps none.

    Example:
        >>> low, high = rectangle(as_points([0, 0, 3, 2])), rectangle(as_points([2, 1, 4, 4]))
        >>> [paint_and_count([(1, low), (value, high)], (3, 4), fill=0)[1] for value in (1, 2, 255)]
        [0, 1, 0]
    """
    mask = np.full(size, fill, dtype=np.uint8)
    below = np.full(size, IGNORE, dtype=np.uint8)  # the classes of shapes alone
    overlaps = np.zeros(size, dtype=bool)
    for number, (value, shape) in enumerate(shapes):
        try:
            top, left, inside = shape.region(size)
        except UserError as error:
            raise UserError(f"shape {number}: {error}") from error
        height, width = inside.shape
        box = np.s_[top : top + height, left : left + width]
        if value != IGNORE:
            overlaps[box] |= inside & (below[box] != IGNORE) & (below[box] != value)
        below[box][inside] = value
        mask[box][inside] = value
    return mask, int(overlaps.sum())


def _box(points: Float64[np.ndarray, "n 2"], reach: float, size: Size) -> tuple[int, int, int, int]:
    """Returns the rows and columns [top, bottom) and [left, right) of the image in which pixels can be near points."""
    low = np.clip(np.floor(points.min(axis=0) - reach), 0, size[::-1]).astype(int).tolist()
    high = np.clip(np.ceil(points.max(axis=0) + reach), low, size[::-1]).astype(int).tolist()
    return low[1], low[0], high[1], high[0]


def _inside(ring: Float[np.ndarray, "n 2"], size: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Finds the pixels whose centers lie inside a polygon: left of them is an odd number of its edges."""
    height, width = size
    x, y = ring.T
    end_x, end_y = np.roll(x, -1), np.roll(y, -1)
    # an edge counts in the rows whose centers lie between its ends; a corner at a center counts for one of its edges
    first = np.clip(np.ceil(np.minimum(y, end_y) - 0.5), 0, height).astype(np.int64)
    number = np.clip(np.ceil(np.maximum(y, end_y) - 0.5), 0, height).astype(np.int64) - first
    edge = np.repeat(np.arange(len(ring)), number)
    row = np.arange(len(edge)) + np.repeat(first - (np.cumsum(number) - number), number)
    crossing = x[edge] + (row + 0.5 - y[edge]) * ((end_x - x)[edge] / (end_y - y)[edge])
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    odd = np.zeros((height, width + 1), dtype=np.uint8)
    np.bitwise_xor.at(odd.reshape(-1), row * (width + 1) + column, 1)
    return np.bitwise_xor.accumulate(odd[:, :width], axis=1).view(bool)


def _near(start: NDArray[np.float64], end: NDArray[np.float64], reach: float, size: Size) -> Bool[np.ndarray, "h w"]:
    """Finds the pixels whose centers are at most `reach` away from the line between two points."""
    x = np.arange(size[1])[None] + 0.5 - start[0]
    y = np.arange(size[0])[:, None] + 0.5 - start[1]
    along = end - start
    length = float(along @ along)
    share = np.clip((x * along[0] + y * along[1]) / length, 0, 1) if length else 0.0
    return (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2 <= reach**2
