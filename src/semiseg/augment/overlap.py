"""Brings maps of the second crop of an image into the frame of the first one, where the two can be compared.

Maps may have any scale. What a network decodes shows the padded image, so its `extent` is `network.padded(size)`. Maps
are read at the nearest pixel, with integer indices: this works for labels, and in low precision.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

_NUDGE = 0.01  # px of a map; of two pixels that are equally near, the whole map takes the same one


def to_first(
    maps: Shaped[Tensor, "u *d h w"], align: Float[Tensor, "u 2 2"], extent: tuple[int, int] | None = None
) -> Shaped[Tensor, "u *d h w"]:
    """Moves what maps of the second crop show to where the first crop shows it. The rest is zero.

    Args:
        maps: maps of the second crop: features, logits, labels, or a mask.
        align: `Second.align`.
        extent: (height, width) that the maps show, from the top left corner of a crop, px; None: a value is a pixel.

    Example:
        The second crop begins one pixel further to the right, and is flipped.

        >>> align = torch.tensor([[[1.0, 0.0], [-1.0, 4.0]]])  # rows, columns
        >>> to_first(torch.tensor([[[5, 4, 3]]]), align)
        tensor([[[0, 3, 4]]])
    """
    height, width = maps.shape[-2:]
    ones = (1,) * (maps.ndim - 3)
    row, seen_row = _nearest(align[:, 0], height, height if extent is None else extent[0])
    column, seen_column = _nearest(align[:, 1], width, width if extent is None else extent[1])
    moved = maps.gather(-2, row.view(-1, *ones, height, 1).expand_as(maps))
    moved = moved.gather(-1, column.view(-1, *ones, 1, width).expand_as(maps))
    seen = seen_row[:, :, None] & seen_column[:, None, :]
    return moved.masked_fill(~seen.view(-1, *ones, height, width), 0)


def seen_in_both(
    first: Bool[Tensor, "u h w"],
    second: Bool[Tensor, "u h w"],
    align: Float[Tensor, "u 2 2"],
    extent: tuple[int, int] | None = None,
) -> Bool[Tensor, "u h w"]:
    """Returns a mask of the first crop: True where it shows the image, and the second crop shows the same place.

    Args:
        first: the validity map of the first crop. For maps of another scale use `at_scale` of it.
        second: that of the second crop.
        align: `Second.align`.
        extent: as in `to_first`.
    """
    return first & to_first(second, align, extent)


def at_scale(
    valid: Bool[Tensor, "u h w"], size: tuple[int, int], extent: tuple[int, int]
) -> Bool[Tensor, "u {size[0]} {size[1]}"]:
    """Reads a validity map for maps of another scale: at the center of each of their values.

    Args:
        valid: the validity map of a crop.
        size: (height, width) of the maps.
        extent: (height, width) that the maps show, px. What is beyond the crop is not valid.

    Example:
        Two values show eight pixels. The crop has five, so the center of the second value is beyond it.

        >>> at_scale(torch.ones(1, 1, 5, dtype=torch.bool), size=(1, 2), extent=(1, 8))
        tensor([[[ True, False]]])
    """
    for dim, number, shown in ((-2, size[0], extent[0]), (-1, size[1], extent[1])):
        center = (2 * torch.arange(number, device=valid.device) + 1) * shown // (2 * number)
        length = valid.shape[dim]
        inside = center < length
        read = valid.index_select(dim, center.clamp(max=length - 1))
        valid = read & (inside[:, None] if dim == -2 else inside)
    return valid


def _nearest(
    line: Float[Tensor, "u 2"], number: int, extent: int
) -> tuple[Int[Tensor, "u {number}"], Bool[Tensor, "u {number}"]]:
    """Finds the pixel of the second map that shows what each pixel of the first one shows, along an axis.

    Returns:
        Its index, and whether there is one. If not, the index is that of some pixel.
    """
    factor, shift = line[:, :1], line[:, 1:] * (number / extent)
    center = torch.arange(number, device=line.device) + 0.5
    index = (factor * center + shift + _NUDGE).floor().long()
    return index.clamp(0, number - 1), (index >= 0) & (index < number)
