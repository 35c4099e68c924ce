"""Perturbations of feature maps. Sampling and applying are separate, as for images."""

from collections.abc import Callable

import torch
from jaxtyping import Float
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
