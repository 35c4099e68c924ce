from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from semiseg.data import weak
from semiseg.data.dataset import DataConfig
from semiseg.data.read import fit, resize_image
from semiseg.rng import fold_in
from semiseg.types import IGNORE


def config(**settings) -> DataConfig:
    return DataConfig(layout="folder", root=Path(), **settings)


def draw(seed: int, size: tuple[int, int], **settings) -> weak.WeakParams:
    return weak.sample(fold_in(seed, "test"), size, config(**settings))


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    long_side=st.none() | st.integers(16, 80),
)
def test_a_part_of_the_image_fills_the_crop_or_the_whole_is_padded(seed, height, width, crop, long_side):
    params = draw(seed, (height, width), crop=crop, long_side=long_side)
    assert params.crop == crop
    fitted = fit(height, width, long_side)
    for side, wanted, (first, stop), shown, length in zip(
        (height, width), fitted, (params.rows, params.columns), params.size, crop, strict=True
    ):
        assert 0 <= first < stop <= side
        if shown < length:
            assert (first, stop) == (0, side)
            assert round(0.5 * wanted) <= shown <= round(2 * wanted) or shown == 1
        else:
            assert shown == length
            assert 0.5 * wanted * (stop - first - 1) - 1 <= length * side  # no less is shown than at half,
            assert length * side <= 2 * wanted * (stop - first + 1) + side  # no more than at twice the size


def test_draws_cover_scales_positions_and_both_directions():
    drawn = [draw(seed, (100, 80), crop=40) for seed in range(400)]
    scales = [40 / (params.rows[1] - params.rows[0]) for params in drawn]
    assert min(scales) < 0.55
    assert max(scales) > 1.95
    assert 1.15 < sum(scales) / len(scales) < 1.35  # uniform in [0.5, 2], mean 1.25
    assert 0.4 < sum(params.flip for params in drawn) / len(drawn) < 0.6
    full = [draw(seed, (8, 8), crop=6, scale=(1, 1)) for seed in range(100)]
    assert {params.rows for params in full} == {params.columns for params in full} == {(0, 6), (1, 7), (2, 8)}


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flip_probability_is_respected_at_its_ends(flip, expected):
    assert {draw(seed, (8, 8), crop=4, flip=flip).flip for seed in range(50)} == expected


def test_scale_changes_height_and_width_alike():
    for seed in range(20):
        height, width = draw(seed, (100, 200), crop=1000).size
        assert abs(width - 2 * height) <= 1
        (top, bottom), (left, right) = (getattr(draw(seed, (100, 200), crop=20), axis) for axis in ("rows", "columns"))
        assert abs((bottom - top) - (right - left)) <= 1


def test_unscaled_crop_and_flip_are_exact(ramp):
    pixels, columns = ramp(6, 8)
    image, mask = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(columns)
    params = weak.WeakParams(rows=(2, 5), columns=(3, 7), size=(3, 4), crop=(3, 4), flip=True, color=(1, 2, 3))
    assert torch.equal(weak.apply_image(image, params), image[:, 2:5, 3:7].flip(-1))
    assert weak.apply_mask(mask, params).tolist() == [[6, 5, 4, 3]] * 3
    assert weak.valid(params).all()


@pytest.mark.parametrize("scale", [0.6, 1.5, 2.0])
def test_a_resized_part_is_that_part_of_the_resized_image(scale):
    coarse = torch.randint(256, (1, 3, 12, 15), generator=fold_in(0, "image")).float()
    image = torch.nn.functional.interpolate(coarse, (120, 150), mode="bilinear")[0].to(torch.uint8)
    params = draw(0, (120, 150), crop=60, scale=(scale, scale), flip=0.0)
    whole = resize_image(image, (round(120 * scale), round(150 * scale)))
    top, left = (round(part[0] * scale) for part in (params.rows, params.columns))
    view = weak.apply_image(image, params)
    wanted = whole[:, top : top + 60, left : left + 60]
    difference = (view.int() - wanted.int()).abs()[:, 3:-3, 3:-3]  # filters find less at the border
    assert difference.float().mean() < 4  # half a pixel of an image that changes by 8 a pixel


@pytest.mark.parametrize("flip", [False, True])
def test_padding_is_right_and_below(ramp, flip):
    pixels, columns = ramp(3, 4)
    image, mask = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(columns)
    params = weak.WeakParams(rows=(0, 3), columns=(0, 4), size=(3, 4), crop=(5, 6), flip=flip, color=(1, 2, 3))
    view, label, valid = weak.apply_image(image, params), weak.apply_mask(mask, params), weak.valid(params)
    assert torch.equal(view[:, :3, :4], image.flip(-1) if flip else image)
    outside = torch.ones(5, 6, dtype=torch.bool)
    outside[:3, :4] = False
    assert torch.equal(valid, ~outside)
    assert (label[outside] == IGNORE).all()
    assert (view[:, outside] == torch.tensor([1, 2, 3])[:, None]).all()


def test_the_color_of_padding_is_that_of_the_recipe():
    assert draw(0, (3, 4)).color == (124, 116, 104)
    assert draw(0, (3, 4), padding_color=(0, 9, 255)).color == (0, 9, 255)


@given(seed=st.integers(0, 10_000), crop=st.sampled_from([(22, 26), (9, 11)]))
def test_image_mask_and_valid_go_the_same_way(seed, crop):
    columns = torch.arange(24, dtype=torch.uint8).expand(20, 24)
    rows = torch.arange(20, dtype=torch.uint8)[:, None].expand(20, 24)
    image = torch.stack([8 * columns, 8 * rows, torch.zeros_like(rows)])
    params = draw(seed, (20, 24), crop=crop)
    view, valid = weak.apply_image(image, params), weak.valid(params)
    column, row = weak.apply_mask(columns, params), weak.apply_mask(rows, params)
    assert view.dtype == column.dtype == torch.uint8
    assert torch.equal(valid, column != IGNORE)
    # Colors tell the place to half a pixel of the original, away from its border, where filters find less than all.
    inner = valid & (column > 1) & (column < 22) & (row > 1) & (row < 18)
    assert ((view[0].int() - 8 * column.int()).abs()[inner] <= 6).all()
    assert ((view[1].int() - 8 * row.int()).abs()[inner] <= 6).all()


def test_the_same_place_draws_the_same():
    assert draw(3, (100, 80), crop=40) == draw(3, (100, 80), crop=40) != draw(4, (100, 80), crop=40)


# a second crop that overlaps the first one


def draw_both(
    seed: int, size: tuple[int, int], overlap: tuple[float, float], **settings
) -> tuple[weak.WeakParams, weak.WeakParams]:
    first = draw(seed, size, **settings)
    return first, weak.second(fold_in(seed, "second"), first, size, overlap, config(**settings))


def iou(one: weak.WeakParams, other: weak.WeakParams) -> float:
    def pixels(params: weak.WeakParams) -> set[tuple[int, int]]:
        return {(row, column) for row in range(*params.rows) for column in range(*params.columns)}

    return len(pixels(one) & pixels(other)) / len(pixels(one) | pixels(other))


@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    overlap=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
)
@example(seed=0, size=(40, 40), crop=(8, 8), overlap=(0.01, 0.02))  # no overlap would be nearer than all of it
def test_the_iou_of_both_crops_is_in_the_range_or_the_nearest_possible(seed, size, crop, overlap):
    first, second = draw_both(seed, size, overlap, crop=crop)
    assert replace(second, rows=first.rows, columns=first.columns, flip=first.flip) == first  # scale and padding
    possible = {}
    for down in range(-48, 49, 8):
        for right in range(-48, 49, 8):
            (top, bottom), (left, end) = first.rows, first.columns
            y, x = round(down * (bottom - top) / first.size[0]), round(right * (end - left) / first.size[1])
            rows, columns = (top + y, bottom + y), (left + x, end + x)
            if min(rows[0], columns[0]) >= 0 and rows[1] <= size[0] and columns[1] <= size[1]:
                possible[rows, columns] = iou(first, replace(first, rows=rows, columns=columns))
    off = {place: max(overlap[0] - found, found - overlap[1], 0) for place, found in possible.items() if found}
    assert off[second.rows, second.columns] == min(off.values())


def test_every_position_in_the_range_is_as_probable_as_any_other():
    first = weak.WeakParams((32, 64), (40, 72), (32, 32), (32, 32), False, (1, 2, 3))
    drawn = [weak.second(fold_in(seed), first, (96, 96), (0.3, 0.7), config()) for seed in range(1200)]
    counts = Counter((params.rows[0] - 32, params.columns[0] - 40) for params in drawn)
    # by hand: common / union of squares with 4 x 4 cells of 8 px, 12/20 and 8/24, 9/23
    assert counts.keys() == {(0, 8), (0, -8), (8, 0), (-8, 0), (0, 16), (0, -16), (16, 0), (-16, 0)} | {
        (down, right) for down in (8, -8) for right in (8, -8)
    }
    assert all(70 < count < 130 for count in counts.values())  # 100 of each expected


def test_both_crops_are_flipped_independently():
    drawn = [draw_both(seed, (64, 64), (0.1, 1.0), crop=32) for seed in range(400)]
    counts = Counter((first.flip, second.flip) for first, second in drawn)
    assert len(counts) == 4
    assert min(counts.values()) > 70  # 100 of each expected
    always = [draw_both(seed, (64, 64), (0.1, 1.0), crop=32, flip=1.0)[1].flip for seed in range(20)]
    assert all(always)


@pytest.mark.parametrize(
    ("flips", "columns"),
    [
        ((False, False), [1.0, -8.0]),  # the second crop begins 16 px of the image, i.e. 8 px, further to the right
        ((True, True), [1.0, 8.0]),
        ((False, True), [-1.0, 40.0]),  # its right end, at 32 px, is at 40 px of the first
        ((True, False), [-1.0, 24.0]),
    ],
)
def test_the_alignment_by_hand(flips, columns):
    first = weak.WeakParams((0, 20), (10, 74), (10, 32), (48, 32), flips[0], (1, 2, 3))
    second = replace(first, rows=(6, 26), columns=(26, 90), flip=flips[1])
    assert weak.alignment(first, second).tolist() == [[1.0, -3.0], columns]
