"""Pixels of shapes, by hand."""

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st

from semiseg.data.shapes import Polygons, Runs, Shape, Stroke, as_points, circle, paint, rectangle
from semiseg.errors import UserError


def polygon(*rings: list[tuple[float, float]]) -> Polygons:
    return Polygons(tuple(as_points(ring) for ring in rings))


def drawn(shape: Shape, height: int, width: int) -> list[str]:
    """Rows of an image in which # is the shape."""
    return ["".join(".#"[value] for value in row) for row in paint([(1, shape)], (height, width), fill=0)]


def test_a_pixel_belongs_to_a_polygon_if_its_center_does():
    assert drawn(polygon([(1, 1), (3, 1), (3, 3), (1, 3)]), 4, 4) == ["....", ".##.", ".##.", "...."]
    assert drawn(polygon([(1.4, 1.4), (2.6, 1.4), (2.6, 2.6), (1.4, 2.6)]), 4, 4) == ["....", ".##.", ".##.", "...."]
    assert drawn(polygon([(1.6, 1.6), (2.4, 1.6), (2.4, 2.4), (1.6, 2.4)]), 4, 4) == ["....", "....", "....", "...."]
    assert drawn(polygon([(0, 0), (4, 0), (0, 4)]), 4, 4) == ["###.", "##..", "#...", "...."]
    assert drawn(polygon([(0, 4), (0, 0), (4, 0)]), 4, 4) == ["###.", "##..", "#...", "...."]  # it has no direction


def test_polygons_that_share_an_edge_leave_no_gap_and_do_not_overlap():
    left, right = polygon([(0, 0), (2.5, 0), (1.5, 4), (0, 4)]), polygon([(2.5, 0), (4, 0), (4, 4), (1.5, 4)])
    both = [paint([(1, shape)], (4, 4), 0) for shape in (left, right)]
    assert (both[0] + both[1] == 1).all()


def test_several_polygons_are_joined_and_a_crossing_one_is_even_and_odd():
    square, other = [(0, 0), (2, 0), (2, 2), (0, 2)], [(1, 1), (3, 1), (3, 3), (1, 3)]
    assert drawn(polygon(square, other), 3, 3) == ["##.", "###", ".##"]
    twice = [(0, 0), (3, 0), (3, 3), (0, 3), (0, 0), (1, 1), (2, 1), (2, 2), (1, 2), (1, 1)]
    assert drawn(polygon(twice), 3, 3) == ["###", "#.#", "###"]


def test_what_lies_outside_the_image_is_cut_off():
    assert drawn(polygon([(-5, 1), (9, 1), (9, 2), (-5, 2)]), 3, 4) == ["....", "####", "...."]
    assert drawn(polygon([(-5, -5), (2, -5), (2, 2), (-5, 2)]), 3, 4) == ["##..", "##..", "...."]
    for outside in ([(9, 9), (12, 9), (12, 12)], [(-9, 1), (-5, 1), (-5, 3)], [(1, -9), (2, -9), (2, -5)]):
        assert drawn(polygon(outside), 3, 4) == ["...."] * 3
    assert drawn(Stroke(as_points([(9, 9), (12, 12)]), 1.0), 3, 4) == ["...."] * 3
    assert drawn(polygon([(1, 1), (2, 1), (3, 1)]), 3, 4) == ["...."] * 3  # it has no area


@given(st.lists(st.tuples(st.floats(-4, 12), st.floats(-4, 12)), min_size=3, max_size=7))
def test_polygons_equal_a_slow_rule(corners):
    """A center is inside if a line from it to the left crosses an odd number of edges."""
    found = paint([(1, polygon(corners))], (8, 8), 0)
    for row in range(8):
        for column in range(8):
            x, y, crossed = column + 0.5, row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    at = x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
                    if abs(at - x) < 1e-9:
                        return  # on the edge: either way
                    crossed += at < x
            assert found[row, column] == crossed % 2


def test_rectangles_and_circles():
    assert drawn(rectangle(as_points([(3, 2), (1, 0)])), 3, 4) == [".##.", ".##.", "...."]
    assert drawn(circle(as_points([(2.5, 2.5), (2.5, 4.5)])), 5, 5) == ["..#..", ".###.", "#####", ".###.", "..#.."]
    assert drawn(circle(as_points([(0, 0), (1.5, 0)])), 2, 3) == ["#..", "..."]


def test_strokes_are_as_wide_as_asked():
    assert drawn(Stroke(as_points([(1, 1.5), (5, 1.5)]), 0.9), 3, 6) == ["......", ".####.", "......"]
    assert drawn(Stroke(as_points([(1.5, 1.5), (4.5, 1.5), (4.5, 4)]), 2.0), 4, 6) == [
        ".####.",
        "######",
        ".#####",
        "...###",
    ]
    assert drawn(Stroke(as_points([(2.5, 1.5)]), 2.0), 3, 5) == ["..#..", ".###.", "..#.."]  # a point is a disk


def test_a_later_shape_lies_above():
    low, high = (1, rectangle(as_points([(0, 0), (2, 1)]))), (7, rectangle(as_points([(1, 0), (3, 1)])))
    assert paint([low, high], (1, 4), 9).tolist() == [[1, 7, 7, 9]]
    assert paint([high, low], (1, 4), 9).tolist() == [[1, 1, 7, 9]]
    assert paint([], (1, 2), 255).tolist() == [[255, 255]]


RING = ["####", "#..#", "####"]  # a hole


@pytest.mark.parametrize("counts", [(0, 4, 1, 2, 1, 4), "041N02"])
def test_runs_go_down_the_columns_and_may_have_holes(counts):
    assert drawn(Runs((3, 4), counts), 3, 4) == RING


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_compressed_runs_are_those_of_the_tools_of_coco(pixels):
    mask = np.array(pixels, np.uint8).reshape(3, 4)
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert (paint([(1, Runs((3, 4), packed))], (3, 4), 0) == mask).all()


@pytest.mark.parametrize(
    ("size", "counts", "says"),
    [
        ((3, 3), (9,), "the RLE is 3x3 px, the image 4x3"),
        ((3, 4), (5, 6), "sum 11, the image 12 pixels"),
        ((3, 4), (5, 8), "sum 13, the image 12 pixels"),
        ((3, 4), (12, 2**40), "sum 1099511627788"),
        ((3, 4), "0", "does not describe 4x3"),
        ((3, 4), "", "does not describe 4x3"),
        ((3, 4), "é\n", "does not describe 4x3"),
        ((3, 4), "oooooooooooooooo", "does not describe 4x3"),
    ],
)
def test_broken_runs(size, counts, says):
    with pytest.raises(UserError, match=says):
        paint([(1, Runs(size, counts))], (3, 4), 0)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2, 3], "no pairs"),
        ([[1, 2], [3]], "no pairs"),
        ([[1, 2, 3]], "no pairs"),
        (["1", "2"], "no pairs"),
        ([None, 2], "no pairs"),
        ([True, False], "no pairs"),
        ({"x": 1}, "no pairs"),
        (None, "no pairs"),
        ([1, float("nan")], "no pixels: nan"),
        ([1, float("inf")], "no pixels: inf"),
        ([[1, 1e9], [2, 3]], r"no pixels: 1e\+09"),
        ([10**30, 1], "no pairs|no pixels"),
    ],
)
def test_points_that_are_none(values, says):
    with pytest.raises(UserError, match=says):
        as_points(values)


def test_shapes_with_other_pixels_have_other_identities():
    shapes: list[Shape] = [
        polygon([(0, 0), (1, 0), (1, 1)]),
        polygon([(0, 0), (1, 0), (1, 2)]),
        polygon([(0, 0), (1, 0), (1, 1)], [(0, 0), (1, 0), (1, 1)]),
        polygon([(0, 0), (1, 0), (1, 1), (0, 0), (1, 0), (1, 1)]),
        Stroke(as_points([(0, 0), (1, 0), (1, 1)]), 1.0),
        Stroke(as_points([(0, 0), (1, 0), (1, 1)]), 2.0),
        Runs((2, 2), (4,)),
        Runs((1, 4), (4,)),
        Runs((2, 2), (0, 4)),
        Runs((2, 2), "04"),
    ]
    assert len({shape.identity() for shape in shapes}) == len(shapes)
    assert polygon([(0, 0), (1, 0), (1, 1)]).identity() == shapes[0].identity()
