"""Perturbations of feature maps. Sampling and applying are separate, as for images."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from semiseg.rng import uniform


def sample_channel_dropout(
    generator: torch.Generator, num_images: int, num_channels: int, probability: float = 0.5
) -> Float[Tensor, "b c"]:
    """Draws which channels of each image are dropped: factors of 0, or of 1/(1 - probability) for channels that stay.

    With `scale_channels` it does what `torch.nn.functional.dropout2d` does, but it depends on the generator alone. So a
    part of a batch drops what the same images drop in the whole batch.
    """
    return (uniform(generator, 0.0, 1.0, num_images, num_channels) >= probability) / (1 - probability)


def drop_channels(
    generator: torch.Generator, num_slots: int, rows: slice, probability: float = 0.5
) -> Callable[[Tensor], Tensor]:
    """Returns what drops channels of the maps of a part's images, other channels in each image and in each map.

    It does to a part what `torch.nn.functional.dropout2d` does, e.g. `features.each(drop_channels(...))`.

    Args:
        generator: a CPU generator; it draws for the whole batch, map by map.
        num_slots: number of slots of the whole batch.
        rows: the slots of the part of the batch.
        probability: share of the channels that are dropped.
    """

    def drop(value: Tensor) -> Tensor:
        factor = sample_channel_dropout(generator, num_slots, value.shape[1], probability)
        return scale_channels(value, factor[rows])

    return drop


def sample_complementary_dropout(
    generator: torch.Generator, num_images: int, num_channels: int, whole: float = 0.5
) -> Float[Tensor, "2 b c"]:
    """Draws which channels two views of each image lose: each channel is dropped in one view and doubled in the other.

    A share `whole` of the images, rounded down and drawn anew each time, loses nothing in both views (UniMatch V2).

    Args:
        generator: a CPU generator.
        num_images: number of images.
        num_channels: number of channels.
        whole: share of the images that keep all channels.

    Returns:
        The factors of the first and of the second view, for `scale_channels`. Their sum is 2.
    """
    dropped = 2.0 * (uniform(generator, 0.0, 1.0, num_images, num_channels) < 0.5)
    keeps = torch.randperm(num_images, generator=generator) < int(whole * num_images)
    first = torch.where(keeps[:, None], 1.0, dropped)
    return torch.stack([first, 2 - first])


def drop_complementary(
    generator: torch.Generator, num_slots: int, num_channels: int, rows: slice, whole: float = 0.5
) -> Callable[[Tensor], Tensor]:
    """Returns what drops channels of the maps of [labeled images, first views, second views], one of each a slot.

    Labeled images keep all channels. One mask serves all maps of an image, as in the authors' code of UniMatch V2: a
    map with fewer channels takes its first ones.

    Args:
        generator: a CPU generator; it draws for the whole batch.
        num_slots: number of slots of the whole batch.
        num_channels: number of channels of the widest map.
        rows: the slots of the part of the batch.
        whole: share of the slots that keep all channels.
    """
    first, second = sample_complementary_dropout(generator, num_slots, num_channels, whole)[:, rows]
    factor = torch.cat([torch.ones_like(first), first, second])
    return lambda value: scale_channels(value, factor[:, : value.shape[1]])


def scale_channels(value: Float[Tensor, "b c h w"], factor: Float[Tensor, "b c"]) -> Float[Tensor, "b c h w"]:
    """Multiplies each channel of each image by its factor.

    Example:
        >>> scale_channels(torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 2.0]])).flatten()
        tensor([0., 2.])
    """
    return value * factor.to(value.device, value.dtype, non_blocking=True)[:, :, None, None]


def sample_noise(
    generator: torch.Generator, shape: tuple[int, int, int], amplitude: float = 0.3
) -> Float[Tensor, "d h w"]:
    """Draws a factor for each value of a feature map (d, h, w), from U(1 - amplitude, 1 + amplitude) (CCT).

    All images of a batch are multiplied by the same factors, as in the authors' code. So they do not depend on the
    number of images.
    """
    return uniform(generator, 1 - amplitude, 1 + amplitude, *shape)


def drop_most_active(
    value: Float[Tensor, "b d h w"], counted: Bool[Tensor, "b h w"], share: Float[Tensor, " b"]
) -> Float[Tensor, "b d h w"]:
    """Sets the places of a feature map to 0 that are the most active ones (feature dropout of CCT).

    The activity of a place is the mean over its channels. A place stays if its activity is below `share` times the
    largest activity of the image.

    Args:
        value: the feature maps.
        counted: places that may be the most active one.
        share: of each image.

    Example:
        The activities are 1, 2 and 4. With a share of 0.6 the threshold is 2.4.

        >>> value = torch.tensor([[[[0.0, 2.0, 3.0]], [[2.0, 2.0, 5.0]]]])
        >>> drop_most_active(value, torch.ones(1, 1, 3, dtype=torch.bool), torch.tensor([0.6]))[0, :, 0]
        tensor([[0., 2., 0.],
                [2., 2., 0.]])
    """
    activity = value.float().mean(1)
    largest = torch.where(counted, activity, -torch.inf).amax((1, 2))
    stays = activity < (share.to(value.device, non_blocking=True) * largest)[:, None, None]
    return value * stays[:, None]


def sample_positions(generator: torch.Generator, num_images: int, num_classes: int) -> Float[Tensor, "b c 2"]:
    """Draws where the cut in the box of each class lies, for `cuts`: 0 is the first position, 1 the last one."""
    return uniform(generator, 0.0, 1.0, num_images, num_classes, 2)


def cuts(member: Bool[Tensor, "b c h w"], position: Float[Tensor, "b c 2"], side: float = 0.4) -> Bool[Tensor, "b h w"]:
    """Marks a random part of the bounding box of each class (guided cut-out of CCT): True inside.

    The part has `side` times the height and `side` times the width of the box. A place belongs to it if its center
    does. The authors' code has a box for each connected region; finding regions would make the host wait.

    Args:
        member: the places that belong to each class.
        position: of the part in the box: rows, columns. From `sample_positions`.
        side: of the part over that of the box.

    Example:
        The box has rows 0 to 3 and columns 1 to 4. Half of its height and width is cut, in the lower left corner.

        >>> member = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
        >>> member[0, 0, 0, 2] = member[0, 0, 3, 1] = member[0, 0, 2, 4] = True
        >>> cuts(member, torch.tensor([[[1.0, 0.0]]]), side=0.5)[0].long()
        tensor([[0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0],
                [0, 1, 1, 0, 0, 0],
                [0, 1, 1, 0, 0, 0]])
    """
    position = position.to(member.device, non_blocking=True)
    rows, columns = (_cut(member.any(dim), position[..., n], side) for n, dim in enumerate((3, 2)))
    return (rows[..., None] & columns[..., None, :]).any(1)


def _cut(member: Bool[Tensor, "b c n"], position: Float[Tensor, "b c"], side: float) -> Bool[Tensor, "b c n"]:
    """Marks a part of what lies between the first and the last member, along one axis."""
    index = torch.arange(member.shape[-1], device=member.device)
    first = torch.where(member, index, member.shape[-1]).amin(-1)
    extent = torch.where(member, index + 1, 0).amax(-1) - first  # below 0 without a member; then nothing is marked
    start = first + position * (1 - side) * extent
    center = index + 0.5
    return (center >= start[..., None]) & (center < (start + side * extent)[..., None])
