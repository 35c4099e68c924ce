from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semiseg.augment.overlap import at_scale, seen_in_both, to_first
from semiseg.data import weak
from semiseg.data.dataset import DataConfig
from semiseg.rng import fold_in

SEEDS = st.integers(0, 10_000)
SIZES = st.tuples(st.integers(9, 70), st.integers(9, 70))


def crops(seed: int, size: tuple[int, int], crop: tuple[int, int], scale: float, image: Tensor) -> dict[str, Tensor]:
    """Two crops of an image, as the loader makes them."""
    config = DataConfig(layout="folder", root=Path(), crop=crop, scale=(scale, scale))
    first = weak.sample(fold_in(seed, "first"), size, config)
    second = weak.second(fold_in(seed, "second"), first, size, (0.2, 1.0), config)
    return {
        "first": weak.apply_image(image, first)[None],
        "second": weak.apply_image(image, second)[None],
        "valid": weak.valid(first)[None],
        "second_valid": weak.valid(second)[None],
        "align": weak.alignment(first, second)[None],
    }


def slopes(height: int, width: int) -> Tensor:
    """Red tells the column, green the row, 3 a px."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([3 * columns, 3 * rows, torch.zeros_like(rows)]).to(torch.uint8)


def away_from_borders(valid: Tensor, border: int = 4) -> Tensor:
    """Filters find less at the borders of what a crop shows."""
    inner = torch.zeros_like(valid)
    inner[:, border : valid.any(2).sum() - border, border : valid.any(1).sum() - border] = True
    return inner


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, crop=SIZES)
def test_the_second_crop_is_brought_back_exactly(seed, size, crop):
    """Without scale a pixel is a pixel: with and without flips, with padding, at sizes that are not square."""
    image = torch.randint(1, 256, (3, *size), generator=fold_in(seed, "image"), dtype=torch.uint8)
    of = crops(seed, size, crop, 1.0, image)
    back = to_first(of["second"], of["align"])
    both = seen_in_both(of["valid"], of["second_valid"], of["align"])
    assert torch.equal(back.movedim(1, -1)[both], of["first"].movedim(1, -1)[both])
    area = [min(side, wanted) for side, wanted in zip(size, crop, strict=True)]
    assert both.sum() >= 2 * 0.2 / 1.2 * area[0] * area[1] - 1e-3  # of an IoU of at least 0.2
    places = torch.arange(size[0] * size[1]).view(1, *size)  # every pixel has a number
    numbers = crops(seed, size, crop, 1.0, torch.cat([places % 251, places // 251, places * 0]).to(torch.uint8))
    first, second = (
        {tuple(pixel) for pixel in numbers[name].movedim(1, -1)[numbers[valid]].tolist()}
        for name, valid in (("first", "valid"), ("second", "second_valid"))
    )
    assert both.sum() == len(first & second)


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, crop=SIZES, scale=st.floats(0.5, 2.0))
def test_the_second_crop_is_brought_back_to_half_a_pixel(seed, size, crop, scale):
    of = crops(seed, size, crop, scale, slopes(*size))
    both = seen_in_both(of["valid"], of["second_valid"], of["align"])
    off = (to_first(of["second"], of["align"]).int() - of["first"].int()).abs()
    inner = away_from_borders(of["valid"]) & to_first(away_from_borders(of["second_valid"]), of["align"])
    assert (inner <= both).all()
    zoom = max(1 / scale, 1.0) + 0.2
    assert (off.amax(1)[inner] <= 3 * 0.5 * zoom + 1).all()


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_it_is_grid_sample_of_the_nearest_pixel(flip, stride):
    generator = fold_in(0, "maps")
    height, width = 48, 64
    maps = torch.randn(5, 3, height // stride, width // stride, generator=generator)
    shift = torch.rand(5, 2, generator=generator) * 40 - 20
    shift[:, 1] += width if flip < 0 else 0
    factor = torch.tensor([1.0, flip]).expand(5, 2)
    align = torch.stack([factor, shift], -1)
    # a crop shows px from 0 to its size at coordinates from -1 to 1
    size = torch.tensor([height, width])
    matrix = torch.zeros(5, 2, 3)
    (matrix[:, 1, 1], matrix[:, 0, 0]) = factor.unbind(1)
    (matrix[:, 1, 2], matrix[:, 0, 2]) = (factor - 1 + 2 * shift / size).unbind(1)
    grid = F.affine_grid(matrix, list(maps.shape), align_corners=False)
    wanted = F.grid_sample(maps, grid, "nearest", "zeros", align_corners=False)
    found = to_first(maps, align, (height, width))
    assert (found == wanted).all(1).float().mean() > 0.97  # others are halfway between two pixels
    assert (found == 0).any()


def test_maps_of_padded_images_stay_aligned():
    """A network pads 21 x 37 px to 32 x 48, and what it decodes has a value for 4 x 4 px."""
    of = crops(3, (60, 80), (21, 37), 1.0, slopes(60, 80))
    features, others = (F.avg_pool2d(F.pad(of[name].float(), (0, 11, 0, 11)), 4) for name in ("first", "second"))
    extent = (32, 48)
    valid, second_valid = (at_scale(of[name], (8, 12), extent) for name in ("valid", "second_valid"))
    assert valid[0].any(1).sum() == 5  # the center of the sixth row, 22, is beyond the crop
    assert valid[0].any(0).sum() == 9
    both = seen_in_both(valid, second_valid, of["align"], extent)
    both[:, 5:] = both[:, :, 9:] = False
    assert 10 < both.sum() < 45
    off = (to_first(others, of["align"], extent) - features).abs().amax(1)
    assert off[both].max() <= 3 * 2  # half a value
    assert (to_first(others, of["align"]) - features).abs().amax(1)[both].max() > 12  # as if a value were a pixel


@pytest.mark.parametrize(
    ("extent", "width", "values"), [(640, 40, 0.5), (327, 41, 1.5), (339, 85, 3.5), (348, 22, -2.5)]
)
def test_halfway_between_two_pixels_the_whole_map_takes_the_same(extent, width, values):
    maps, shift = torch.arange(1, width + 1).view(1, 1, 1, width), extent / width * values
    for factor, start in ((1.0, 0), (-1.0, extent)):
        align = torch.tensor([[[1.0, 0.0], [factor, start + shift]]])
        found = to_first(maps, align, (16, extent)).flatten()
        assert set(found[found > 0].diff().tolist()) == {factor}


def test_seen_in_both_by_hand():
    valid = torch.tensor([[[True, True, False, True]]])
    align = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])  # the second crop begins one pixel further to the left
    assert seen_in_both(valid, valid, align).tolist() == [[[True, False, False, False]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_it_takes_maps_of_any_type(dtype):
    maps = torch.tensor([[[0, 1, 1, 0]]]).to(dtype)
    align = torch.tensor([[[1.0, 0.0], [1.0, -1.0]]])
    assert torch.equal(to_first(maps, align), torch.tensor([[[0, 0, 1, 1]]]).to(dtype))
    assert torch.equal(to_first(maps[:, None], align), torch.tensor([[[[0, 0, 1, 1]]]]).to(dtype))


def test_gradients_go_to_what_is_shown_in_both():
    maps = torch.full((1, 1, 2, 4), float("inf"), requires_grad=True)
    back = to_first(maps, torch.tensor([[[1.0, 1.0], [-1.0, 3.0]]]))
    assert back.tolist() == [[[[float("inf")] * 3 + [0.0], [0.0] * 4]]]
    back.sum().backward()
    assert maps.grad.tolist() == [[[[0.0] * 4, [1.0] * 3 + [0.0]]]]


def test_the_host_never_waits(no_host_sync):
    maps, align = torch.zeros(2, 5, 6, 8), torch.zeros(2, 2, 2)
    valid = torch.ones(2, 21, 29, dtype=torch.bool)
    assert no_host_sync(to_first, maps, align, (24, 32)).is_meta
    assert no_host_sync(at_scale, valid, (6, 8), (24, 32)).is_meta
    assert no_host_sync(seen_in_both, valid, valid, align).is_meta
