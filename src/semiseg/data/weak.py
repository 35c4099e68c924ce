"""Weak augmentation (Table 1): random scale, horizontal flip, random crop.

Sampling and applying are separate, so that an image, its mask and its validity map get the same augmentation. Only the
part of an image that the crop shows is resized, because at twice the size this part is small. Padding is on the right
and at the bottom only, as in the authors' code (D33).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from semiseg.data.dataset import DataConfig
from semiseg.data.read import fit, resize_image, resize_mask
from semiseg.rng import uniform
from semiseg.types import IGNORE

_GRID = 8  # px of a crop: a common stride of feature maps, which so stay aligned


@dataclass(frozen=True)
class WeakParams:
    """One image's augmentation: its part `rows` x `columns` is resized to `size`, flipped, and padded to `crop`."""

    rows: tuple[int, int]  # px of the image, [first, one after the last)
    columns: tuple[int, int]
    size: tuple[int, int]  # px, (height, width), at most `crop`
    crop: tuple[int, int]  # px, (height, width)
    flip: bool
    color: tuple[int, int, int]  # of the padding, RGB


def sample(generator: torch.Generator, size: tuple[int, int], config: DataConfig) -> WeakParams:
    """Draws the weak augmentation of a decoded image of `size` (height, width) px."""
    scale = uniform(generator, *config.scale).item()
    flip = uniform(generator, 0.0, 1.0).item() < config.flip
    parts, shown = [], []
    for side, fitted, crop in zip(size, fit(*size, config.long_side), config.crop_size, strict=True):
        scaled = max(1, round(fitted * scale))
        part = side if scaled <= crop else max(1, round(side * crop / scaled))
        start = int(torch.randint(side - part + 1, (), generator=generator))
        parts.append((start, start + part))
        shown.append(min(scaled, crop))
    return WeakParams(parts[0], parts[1], (shown[0], shown[1]), config.crop_size, flip, config.padding_color)


def second(
    generator: torch.Generator,
    first: WeakParams,
    size: tuple[int, int],
    overlap: tuple[float, float],
    config: DataConfig,
) -> WeakParams:
    """Draws the weak augmentation of a second crop that overlaps the first one (CAC).

    Both have the same scale, so they are padded alike. The second one has a flip of its own. In both directions it is a
    multiple of 8 px of the crop away from the first one, rounded to whole pixels of the image. All such positions in
    the image whose IoU is in the range are equally probable. If there is none, one of those with the nearest IoU is
    drawn. The crops always overlap.

    Args:
        generator: the generator of the second crop.
        first: the augmentation of the first crop.
        size: (height, width) of the decoded image, px.
        overlap: range of the IoU of the two parts of the image that the crops show.
        config: its probability of a flip.
    """
    flip = uniform(generator, 0.0, 1.0).item() < config.flip
    rows = _shifts(first.rows, size[0], first.size[0])
    columns = _shifts(first.columns, size[1], first.size[1])
    height, width = (stop - start for start, stop in (first.rows, first.columns))
    common = (height - rows.abs())[:, None] * (width - columns.abs()).double()
    iou = common / (2 * height * width - common)
    off = (overlap[0] - iou).clamp(min=0) + (iou - overlap[1]).clamp(min=0)
    nearest = (off == off.min()).nonzero()  # all that are inside the range, if any are
    row, column = nearest[torch.randint(len(nearest), (), generator=generator)].tolist()
    down, right = int(rows[row]), int(columns[column])
    return replace(
        first,
        rows=(first.rows[0] + down, first.rows[1] + down),
        columns=(first.columns[0] + right, first.columns[1] + right),
        flip=flip,
    )


def _shifts(part: tuple[int, int], side: int, shown: int) -> Int[Tensor, " n"]:
    """Returns by how many px a part of an image may be moved: it stays inside the image, and overlaps itself.

    Args:
        part: px of the image, [first, one after the last).
        side: of the image, px.
        shown: number of px of the crop that the part is resized to.
    """
    (start, stop), steps = part, shown // _GRID
    length = stop - start
    shifts = {round(step * _GRID * length / shown) for step in range(-steps, steps + 1)}
    return torch.tensor(sorted(by for by in shifts if abs(by) < length and 0 <= start + by <= side - length))


def alignment(first: WeakParams, second: WeakParams) -> Float[Tensor, "2 2"]:
    """Returns where the second crop shows what the first one shows: `Second.align` of an image."""
    lines = zip(_lines(first), _lines(second), strict=True)
    return torch.tensor([(zoom / other, (start - begin) / other) for (start, zoom), (begin, other) in lines])


def _lines(params: WeakParams) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns (start, zoom) of rows and of columns: a crop shows at `y` what the image shows at `start + zoom * y`."""
    (top, bottom), (left, right) = params.rows, params.columns
    down, across = (bottom - top) / params.size[0], (right - left) / params.size[1]
    return (float(top), down), (float(right), -across) if params.flip else (float(left), across)


def apply_image(image: UInt8[Tensor, "3 h w"], params: WeakParams) -> UInt8[Tensor, "3 H W"]:
    """Makes the weak view of an image, padded with `params.color` where the image does not fill the crop."""
    return _padded(resize_image(_part(image, params), params.size), params, torch.tensor(params.color)[:, None, None])


def apply_mask(mask: UInt8[Tensor, "h w"], params: WeakParams) -> UInt8[Tensor, "H W"]:
    """Makes the mask of the weak view, padded with IGNORE where the image does not fill the crop."""
    return _padded(resize_mask(_part(mask, params), params.size), params, torch.tensor(IGNORE))


def valid(params: WeakParams) -> Bool[Tensor, "H W"]:
    """Makes the validity map of the weak view: True where it shows the image, False where it is padded."""
    return _padded(torch.ones(params.size, dtype=torch.bool), params, torch.tensor(False))


def _part(image: Tensor, params: WeakParams) -> Tensor:
    return image[..., slice(*params.rows), slice(*params.columns)]


def _padded(shown: Tensor, params: WeakParams, color: Tensor) -> Tensor:
    """Puts `shown`, flipped if that was drawn, into the top left corner of a crop. The rest gets `color`."""
    height, width = params.size
    crop = shown.new_empty(*shown.shape[:-2], *params.crop)
    crop[..., :height, :width] = shown.flip(-1) if params.flip else shown
    crop[..., height:, :] = color
    crop[..., :height, width:] = color
    return crop
