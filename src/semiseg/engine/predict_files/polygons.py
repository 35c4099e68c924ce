"""Traces the regions of a mask as polygons.

Vertices lie on corners of pixels: pixel (row 0, column 0) is the square from (0, 0) to (1, 1). So a polygon that is
filled by the centers of pixels gives exactly its region, as long as it is not simplified.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8

_BAND_PX = 2**24  # of a mask that are searched for corners at once
_CHANGED = 0.25  # of the area inside a line by which simplification may change it


@dataclass(frozen=True)
class Region:
    """Connected pixels of one class: neighbors share a side.

    Attributes:
        outer: (x, y) of the vertices around it, without a repeated first one.
        holes: those around each hole in it.
        pixels: number of its pixels.
    """

    outer: Float64[np.ndarray, "n 2"]
    holes: tuple[Float64[np.ndarray, "_ 2"], ...]
    pixels: int

    def outline(self) -> Float64[np.ndarray, "m 2"]:
        """Returns one polygon with its holes cut out, for formats without holes.

        For each hole it leaves the outer vertex that is nearest, goes to the hole between rows and columns of pixels,
        around it, and back on the same way. The way there and back encloses nothing and meets no center of a pixel, so
        filling leaves exactly the hole open.
        """
        detours = []
        for hole in self.holes:
            near = int(((self.outer - hole[0]) ** 2).sum(1).argmin())
            corner = np.array([[hole[0, 0], self.outer[near, 1]]])
            detours.append((near, np.concatenate([corner, hole, hole[:1], corner, self.outer[near : near + 1]])))
        line, done = [], 0
        for near, detour in sorted(detours, key=lambda one: one[0]):
            line += [self.outer[done : near + 1], detour]
            done = near + 1
        return np.concatenate([*line, self.outer[done:]])

    def without_small_holes(self, least: int) -> "Region":
        """Fills holes of fewer than `least` pixels; their pixels are not counted."""
        return replace(self, holes=tuple(hole for hole in self.holes if abs(_signed_area(hole)) >= least))

    def simplified(self, tolerance: float) -> "Region":
        """Leaves vertices out as long as no one of them is farther than `tolerance` px from the new line.

        The tolerance is halved as long as the area inside changes by more than a quarter: a region of 1 px width would
        become a line that encloses nothing.
        """
        if not tolerance:
            return self
        holes = tuple(_simplified(hole, tolerance) for hole in self.holes)
        return Region(_simplified(self.outer, tolerance), holes, self.pixels)


def regions(label: UInt8[np.ndarray, "h w"], index: int) -> list[Region]:
    """Returns the connected regions of a class, from top to bottom.

    Args:
        label: the class index of each pixel.
        index: the class.

    Example:
        >>> [region] = regions(np.array([[0, 5], [0, 5]], dtype=np.uint8), 5)
        >>> region.outer.tolist(), region.pixels
        ([[1.0, 0.0], [2.0, 0.0], [2.0, 2.0], [1.0, 2.0]], 2)
    """
    x, y, kind = _corners(label, index)
    if not len(x):
        return []
    along, across = _linked(x, y, kind)
    loops = _loops(along, across)
    points = np.stack([x, y], 1).astype(np.float64)
    return _nested([points[loop] for loop in loops])


def _corners(
    label: UInt8[np.ndarray, "h w"], index: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Finds the corners of the outlines, row by row.

    The third array tells how a vertex is linked: bit 0 is set if its horizontal edge goes to the right, bit 1 if its
    vertical edge goes down. Where two pixels touch at a corner only, there are two vertices, one for each pixel.
    """
    height, width = label.shape
    rows = max(1, _BAND_PX // max(width, 1))
    found: list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]] = []
    for top in range(0, height + 1, rows):
        bottom = min(top + rows, height + 1)  # of the rows of corners; they need one row of pixels above
        part = np.zeros((bottom - top + 1, width + 2), np.uint8)
        first, last = max(top - 1, 0), min(bottom, height)
        part[first - top + 1 : last - top + 1, 1:-1] = label[first:last] == index
        # bits: above left 1, above right 2, below left 4, below right 8
        code = part[:-1, :-1] | part[:-1, 1:] << 1 | part[1:, :-1] << 2 | part[1:, 1:] << 3
        y, x = np.nonzero(_IS_CORNER[code])
        code = code[y, x]
        twice = (code == 0b1001) | (code == 0b0110)
        repeat = 1 + twice.astype(np.int64)
        second = np.zeros(int(repeat.sum()), bool)
        second[(repeat.cumsum() - 1)[twice]] = True
        code = np.repeat(code, repeat)
        found.append((np.repeat(x, repeat), np.repeat(y, repeat) + top, _LINKS[second.astype(int), code]))
    x, y, kind = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return x.astype(np.int64), y.astype(np.int64), kind.astype(np.int64)


def _links() -> tuple[Bool[np.ndarray, "16"], Int64[np.ndarray, "2 16"]]:
    """Returns for each of the 16 surroundings of a corner whether it is one, and how its vertices are linked."""
    is_corner, links = np.zeros(16, bool), np.zeros((2, 16), np.int64)
    for code in range(16):
        above_left, above_right, below_left, below_right = (bool(code >> bit & 1) for bit in range(4))
        left, right = above_left != below_left, above_right != below_right  # horizontal edges at this corner
        up, down = above_left != above_right, below_left != below_right
        if left and right and up and down:
            # the vertex with the edge to the left comes first; the edges around one pixel stay together
            links[:, code] = (0, 3) if above_left else (2, 1)
            is_corner[code] = True
        elif (left != right) and (up != down):
            links[0, code] = right | down << 1
            is_corner[code] = True
    return is_corner, links


_IS_CORNER, _LINKS = _links()


def _linked(
    x: Int64[np.ndarray, " n"], y: Int64[np.ndarray, " n"], kind: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Returns for each vertex the other end of its horizontal edge and that of its vertical edge.

    In each row and in each column, sorted vertices are alternately the start and the end of an edge.
    """

    def partner(order: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        other = np.empty_like(order)
        other[order[0::2]], other[order[1::2]] = order[1::2], order[0::2]
        return other

    return partner(np.lexsort((kind & 1, x, y))), partner(np.lexsort((kind >> 1, y, x)))


def _loops(along: Int64[np.ndarray, " n"], across: Int64[np.ndarray, " n"]) -> Iterator[list[int]]:
    """Follows horizontal and vertical edges in turn. Each loop starts at the leftmost of its topmost vertices."""
    horizontal, vertical = along.tolist(), across.tolist()
    seen = bytearray(len(horizontal))
    for start in range(len(horizontal)):  # in order of rows, then of columns
        if seen[start]:
            continue
        loop: list[int] = []
        at = start
        while True:
            end = horizontal[at]
            seen[at] = seen[end] = 1
            loop += (at, end)
            at = vertical[end]
            if at == start:
                break
        yield loop


def _nested(loops: list[Float64[np.ndarray, "_ 2"]]) -> list[Region]:
    """Sorts loops into regions and their holes.

    A loop that starts at its top left vertex and goes to the right surrounds pixels or a hole. It is a hole if the
    pixel above its first edge belongs to a region: then an odd number of vertical edges is to the left of it. The
    nearest one of them is an edge of that region.
    """
    row, column, owner = _vertical_edges(loops)
    width = int(column.max()) + 1
    order = np.lexsort((column, row))
    key, owner = (row * width + column)[order], owner[order]
    first = np.searchsorted(row[order], np.arange(int(row.max()) + 2))  # first edge of each row of pixels
    start = np.array([loop[0] for loop in loops]).astype(np.int64)
    above = start[:, 1] - 1
    before = np.searchsorted(key, above * width + start[:, 0], side="right")  # edges up to the start of the loop
    is_hole = (above >= 0) & ((before - first[np.maximum(above, 0)]) % 2 == 1)
    parent = np.arange(len(loops))
    holes: dict[int, list[int]] = {index: [] for index in np.flatnonzero(~is_hole).tolist()}
    for index in np.flatnonzero(is_hole).tolist():  # from top to bottom: what is to the left above is known already
        parent[index] = parent[owner[before[index] - 1]]
        holes[int(parent[index])].append(index)
    pixels = np.array([abs(_signed_area(loop)) for loop in loops])
    return [
        Region(loops[outer], tuple(loops[hole] for hole in inside), int(pixels[outer] - pixels[inside].sum()))
        for outer, inside in holes.items()
    ]


def _vertical_edges(
    loops: list[Float64[np.ndarray, "_ 2"]],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Returns row, column and loop of each vertical edge of one pixel."""
    start = np.concatenate([loop[1::2] for loop in loops]).astype(np.int64)
    end = np.concatenate([np.roll(loop[0::2], -1, axis=0) for loop in loops]).astype(np.int64)
    owner = np.repeat(np.arange(len(loops)), [len(loop) // 2 for loop in loops])
    top, bottom = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    length = bottom - top
    offset = np.arange(int(length.sum())) - np.repeat(length.cumsum() - length, length)
    return np.repeat(top, length) + offset, np.repeat(start[:, 0], length), np.repeat(owner, length)


def _signed_area(loop: Float64[np.ndarray, "n 2"]) -> float:
    x, y = loop.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _simplified(loop: Float64[np.ndarray, "n 2"], tolerance: float) -> Float64[np.ndarray, "m 2"]:
    """Simplifies a closed line, with a smaller tolerance if the given one changes much of the area inside."""
    area = _signed_area(loop)
    while abs(_signed_area(line := _with_fewer_vertices(loop, tolerance)) - area) > _CHANGED * abs(area):
        tolerance /= 2
    return line


def _with_fewer_vertices(loop: Float64[np.ndarray, "n 2"], tolerance: float) -> Float64[np.ndarray, "m 2"]:
    """Simplifies a closed line by the algorithm of Douglas and Peucker, from two vertices that are far apart."""
    far = int(((loop - loop[0]) ** 2).sum(1).argmax())
    line = np.concatenate([loop, loop[:1]])
    keep = np.zeros(len(line), bool)
    keep[[0, far, -1]] = True
    waiting = [(0, far), (far, len(loop))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2:
            continue
        distance = _distance(line[start + 1 : end], line[start], line[end])
        if distance.max() > tolerance:
            middle = start + 1 + int(distance.argmax())
            keep[middle] = True
            waiting += [(start, middle), (middle, end)]
    return line[:-1][keep[:-1]]


def _distance(
    points: Float64[np.ndarray, "n 2"], start: Shaped[np.ndarray, "2"], end: Shaped[np.ndarray, "2"]
) -> Float64[np.ndarray, " n"]:
    """Returns the distance of points from a segment."""
    direction, offset = end - start, points - start
    length = float(direction @ direction)
    share = np.clip(offset @ direction / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(offset - share[:, None] * direction, axis=1)
