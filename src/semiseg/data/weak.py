"""Weak augmentation (Table 1): random scale, horizontal flip, random crop.

Sampling and applying are separate, so that an image, its mask and its validity map go the same way. Padding is on the
right and below only, where the authors' code has it too (D33).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from semiseg.data.dataset import DataConfig
from semiseg.data.read import resize_image, resize_mask
from semiseg.rng import uniform
from semiseg.types import IGNORE

PAD_COLOR = (124, 116, 104)  # ImageNet's mean colour


@dataclass(frozen=True)
class WeakParams:
    """What happens to one image: it is resized to `size`, `crop` is cut at (`top`, `left`), flipped, and padded."""

    size: tuple[int, int]  # px, (height, width)
    crop: tuple[int, int]  # px, (height, width)
    top: int  # px
    left: int  # px
    flip: bool


def sample(generator: torch.Generator, size: tuple[int, int], config: DataConfig) -> WeakParams:
    """Draws the weak augmentation of an image of `size` (height, width) px."""
    scale = uniform(generator, *config.scale).item()
    flip = uniform(generator, 0.0, 1.0).item() < config.flip
    scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    top, left = (
        int(torch.randint(max(0, side - crop) + 1, (), generator=generator))
        for side, crop in zip(scaled, config.crop_size, strict=True)
    )
    return WeakParams(scaled, config.crop_size, top, left, flip)


def apply_image(image: UInt8[Tensor, "3 h w"], params: WeakParams) -> UInt8[Tensor, "3 H W"]:
    """The weak view of an image; PAD_COLOR where it does not fill the crop."""
    canvas = torch.tensor(PAD_COLOR, dtype=torch.uint8)[:, None, None].repeat(1, *params.crop)
    return _crop(resize_image(image, params.size), params, canvas)


def apply_mask(mask: UInt8[Tensor, "h w"], params: WeakParams) -> UInt8[Tensor, "H W"]:
    """The mask of the weak view; IGNORE where the image does not fill the crop."""
    return _crop(resize_mask(mask, params.size), params, torch.full(params.crop, IGNORE, dtype=torch.uint8))


def valid(params: WeakParams) -> Bool[Tensor, "H W"]:
    """True where the weak view shows the image, False where it is padded."""
    return _crop(torch.ones(params.size, dtype=torch.bool), params, torch.zeros(params.crop, dtype=torch.bool))


def _crop(scaled: Tensor, params: WeakParams, canvas: Tensor) -> Tensor:
    """Paints the flipped cut of `scaled` on the top left of `canvas`."""
    height, width = params.crop
    cut = scaled[..., params.top : params.top + height, params.left : params.left + width]
    canvas[..., : cut.shape[-2], : cut.shape[-1]] = cut.flip(-1) if params.flip else cut
    return canvas
