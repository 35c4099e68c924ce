"""Averages maps over cells: squares that divide the image, so that maps of any scale become maps of one scale.

Cells lie on the padded image (`network.padded(size)`), as what a network decodes does.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Grid = tuple[int, int]  # number of rows and of columns of cells


def grid_of(decoded: Float[Tensor, "b d h w"], padded: tuple[int, int], side: int) -> Grid:
    """Returns the number of cells of `side` px in a padded image, but not more than the decoded map has values.

    Args:
        decoded: what the network decoded.
        padded: (height, width) of the padded image, px.
        side: px of the image.
    """
    rows, columns = (min(-(-length // side), number) for length, number in zip(padded, decoded.shape[-2:], strict=True))
    return rows, columns


def to_cells(maps: Float[Tensor, "b d h w"], grid: Grid) -> Float[Tensor, "b d {grid[0]} {grid[1]}"]:
    """Averages maps that show the padded image over the cells of a grid.

    Example:
        >>> import torch
        >>> to_cells(torch.tensor([[[[1.0, 3.0, 5.0, 7.0]]]]), (1, 2))
        tensor([[[[2., 6.]]]])
    """
    return F.adaptive_avg_pool2d(maps, grid)


def represent_cells(
    head: nn.Module, decoded: Float[Tensor, "b e _ _"], grid: Grid
) -> Float[Tensor, "b d {grid[0]} {grid[1]}"]:
    """Computes what a head makes of the mean of each cell, scaled to length 1, in fp32."""
    return F.normalize(head(to_cells(decoded, grid)).float(), dim=1)


def padded_to_cells(
    maps: Float[Tensor, "b d h w"], padded: tuple[int, int], grid: Grid
) -> Float[Tensor, "b d {grid[0]} {grid[1]}"]:
    """Averages maps that show the image without padding, e.g. logits. Beyond the image they are taken as 0."""
    return to_cells(F.pad(maps, (0, padded[1] - maps.shape[-1], 0, padded[0] - maps.shape[-2])), grid)


def whole_cells(
    valid: Bool[Tensor, "b h w"], padded: tuple[int, int], grid: Grid
) -> Bool[Tensor, "b {grid[0]} {grid[1]}"]:
    """Returns which cells are valid: those all of whose pixels are.

    Example:
        The image has five of the eight padded pixels, so the second cell is not a part of it.

        >>> import torch
        >>> whole_cells(torch.ones(1, 1, 5, dtype=torch.bool), padded=(1, 8), grid=(1, 2))
        tensor([[[ True, False]]])
    """
    return padded_to_cells(valid[:, None].float(), padded, grid)[:, 0] == 1


def seen_cells(
    valid: Bool[Tensor, "b h w"], padded: tuple[int, int], grid: Grid
) -> Bool[Tensor, "b {grid[0]} {grid[1]}"]:
    """Returns which cells show any valid pixel."""
    return padded_to_cells(valid[:, None].float(), padded, grid)[:, 0] > 0
