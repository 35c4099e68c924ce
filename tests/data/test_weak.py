from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semiseg.data import weak
from semiseg.data.dataset import DataConfig
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
)
def test_the_crop_lies_in_the_image_wherever_the_image_is_large_enough(seed, height, width, crop):
    params = draw(seed, (height, width), crop=crop)
    assert params.crop == crop
    for scaled, side, start, length in zip(params.size, (height, width), (params.top, params.left), crop, strict=True):
        assert round(0.5 * side) <= scaled <= round(2 * side) or scaled == 1
        assert 0 <= start <= max(0, scaled - length)


def test_draws_cover_scales_positions_and_both_directions():
    drawn = [draw(seed, (100, 80), crop=40) for seed in range(400)]
    scales = [params.size[0] / 100 for params in drawn]
    assert min(scales) < 0.55
    assert max(scales) > 1.95
    assert 1.15 < sum(scales) / len(scales) < 1.35  # uniform in [0.5, 2], mean 1.25
    assert 0.4 < sum(params.flip for params in drawn) / len(drawn) < 0.6
    full = [draw(seed, (8, 8), crop=6, scale=(1, 1)) for seed in range(100)]
    assert {params.top for params in full} == {params.left for params in full} == {0, 1, 2}


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flip_probability_is_respected_at_its_ends(flip, expected):
    assert {draw(seed, (8, 8), crop=4, flip=flip).flip for seed in range(50)} == expected


def test_scale_changes_height_and_width_alike():
    for seed in range(20):
        height, width = draw(seed, (100, 200), crop=10).size
        assert abs(width - 2 * height) <= 1


def test_unscaled_crop_and_flip_are_exact(ramp):
    pixels, columns = ramp(6, 8)
    image, mask = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(columns)
    params = weak.WeakParams(size=(6, 8), crop=(3, 4), top=2, left=3, flip=True)
    assert torch.equal(weak.apply_image(image, params), image[:, 2:5, 3:7].flip(-1))
    assert weak.apply_mask(mask, params).tolist() == [[6, 5, 4, 3]] * 3
    assert weak.valid(params).all()


@pytest.mark.parametrize("flip", [False, True])
def test_padding_is_right_and_below(ramp, flip):
    pixels, columns = ramp(3, 4)
    image, mask = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(columns)
    params = weak.WeakParams(size=(3, 4), crop=(5, 6), top=0, left=0, flip=flip)
    view, label, valid = weak.apply_image(image, params), weak.apply_mask(mask, params), weak.valid(params)
    assert torch.equal(view[:, :3, :4], image.flip(-1) if flip else image)
    outside = torch.ones(5, 6, dtype=torch.bool)
    outside[:3, :4] = False
    assert torch.equal(valid, ~outside)
    assert (label[outside] == IGNORE).all()
    assert (view[:, outside] == torch.tensor(weak.PAD_COLOR)[:, None]).all()


@given(seed=st.integers(0, 10_000))
def test_image_mask_and_valid_go_the_same_way(seed):
    columns = torch.arange(24, dtype=torch.uint8).expand(20, 24)
    rows = torch.arange(20, dtype=torch.uint8)[:, None].expand(20, 24)
    image = torch.stack([8 * columns, 8 * rows, torch.zeros_like(rows)])
    params = draw(seed, (20, 24), crop=(22, 26))
    view, valid = weak.apply_image(image, params), weak.valid(params)
    column, row = weak.apply_mask(columns, params), weak.apply_mask(rows, params)
    assert view.dtype == column.dtype == torch.uint8
    assert torch.equal(valid, column != IGNORE)
    # Colours tell the place to half a pixel of the original, away from its border, where filters find less than all.
    inner = valid & (column > 1) & (column < 22) & (row > 1) & (row < 18)
    assert ((view[0].int() - 8 * column.int()).abs()[inner] <= 6).all()
    assert ((view[1].int() - 8 * row.int()).abs()[inner] <= 6).all()


def test_the_same_place_draws_the_same():
    assert draw(3, (100, 80), crop=40) == draw(3, (100, 80), crop=40) != draw(4, (100, 80), crop=40)
