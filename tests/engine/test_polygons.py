"""Polygons that are filled by the centers of pixels give the mask back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from semiseg.engine.predict_files import polygons
from semiseg.engine.predict_files.polygons import regions


def filled(line: np.ndarray, height: int, width: int) -> np.ndarray:
    """A pixel is inside if its center has an odd number of edges to the left: written for the test alone."""
    inside = np.zeros((height, width), bool)
    (x0, y0), (x1, y1) = line.T, np.roll(line, -1, axis=0).T
    for row in range(height):
        middle = row + 0.5
        crossing = (y0 <= middle) != (y1 <= middle)
        at = x0[crossing] + (middle - y0[crossing]) * (x1 - x0)[crossing] / (y1 - y0)[crossing]
        inside[row] = (at[:, None] < np.arange(width) + 0.5).sum(0) % 2 == 1
    return inside


def test_a_square_with_a_hole_and_a_pixel_in_it():
    label = np.zeros((7, 7), np.uint8)
    label[1:6, 1:6], label[2:5, 2:5], label[3, 3] = 4, 0, 4
    ring, pixel = regions(label, 4)
    assert ring.outer.tolist() == [[1, 1], [6, 1], [6, 6], [1, 6]]
    assert [hole.tolist() for hole in ring.holes] == [[[2, 2], [5, 2], [5, 5], [2, 5]]]
    assert (ring.pixels, pixel.pixels) == (16, 1)
    assert pixel.outer.tolist() == [[3, 3], [4, 3], [4, 4], [3, 4]]
    assert ring.without_small_holes(9).holes[0] is ring.holes[0]
    assert ring.without_small_holes(10).holes == ()
    assert regions(label, 9) == []


def test_pixels_that_touch_at_a_corner_are_two_regions():
    for label in (np.eye(2, dtype=np.uint8), 1 - np.eye(2, dtype=np.uint8)):
        assert [region.pixels for region in regions(label, 1)] == [1, 1]


@pytest.mark.parametrize("band", [1, 20, 2**24])
@given(label=arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 1)))
def test_filling_gives_the_mask_back(label, band):
    """For every band in which corners are sought, and with all holes cut."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(polygons, "_BAND_PX", band)
        found = regions(label, 1)
    total = np.zeros(label.shape, int)
    for region in found:
        own = filled(region.outline(), *label.shape)
        assert own.sum() == region.pixels
        total += own
    assert np.array_equal(total, label)  # each pixel in one region


def test_simplified_polygons_stay_near():
    """A disc of 40 px radius: far fewer vertices, and at most a line of 1 px around it changes."""
    y, x = np.mgrid[:100, :100]
    label = ((x - 50) ** 2 + (y - 50) ** 2 < 1600).astype(np.uint8)
    [disc] = regions(label, 1)
    assert disc.simplified(0.0) is disc
    simple = disc.simplified(1.0)
    assert len(simple.outer) < len(disc.outer) / 4
    mask, other = label == 1, filled(simple.outline(), 100, 100)
    assert (mask & other).sum() / (mask | other).sum() > 0.96
    distance = np.abs(np.hypot(x - 50, y - 50) - 40)
    assert distance[mask != other].max() < 2.5


def test_a_region_of_a_single_pixel_keeps_its_vertices():
    [pixel] = regions(np.ones((1, 1), np.uint8), 1)
    assert len(pixel.simplified(0.5).outer) == 4


@pytest.mark.parametrize("tolerance", [1.0, 5.0, 1e300])
def test_what_is_thin_is_not_simplified_to_a_line(tolerance):
    """A row of 1 px had 2 vertices: LabelMe refuses such a polygon, and COCO tools take its 4 numbers for a box."""
    row, angle, diagonal, slit = (np.zeros((60, 60), np.uint8) for _ in range(4))
    row[5, 5:40] = 1
    angle[5, 5:40] = angle[5:40, 5] = 1
    diagonal[range(30), range(30)] = diagonal[range(30), range(1, 31)] = 1
    slit[5:50, 5:50], slit[20, 10:40] = 1, 0
    for label in (row, angle, diagonal, slit):
        [region] = regions(label, 1)
        simple = region.simplified(tolerance)
        assert all(len(line) > 2 for line in (simple.outer, *simple.holes))
        mask, other = label == 1, filled(simple.outline(), 60, 60)
        assert (mask & other).sum() / (mask | other).sum() > 0.7
        assert len(simple.holes) == len(region.holes)
