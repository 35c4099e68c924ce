"""Weak augmentation (Table 1): random scale, horizontal flip, random crop.

Sampling and applying are separate, so that an image, its mask and its validity map get the same augmentation. Only the
part of an image that the crop shows is resized, because at twice the size this part is small. Padding is on the right
and at the bottom only, as in the authors' code (D33).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from semiseg.data.dataset import DataConfig
from semiseg.data.read import fit, resize_image, resize_mask
from semiseg.rng import uniform
from semiseg.types import IGNORE


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
