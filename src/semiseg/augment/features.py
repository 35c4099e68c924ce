"""Perturbations of feature maps. Sampling and applying are separate, as for images."""

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


def scale_channels(value: Float[Tensor, "b c h w"], factor: Float[Tensor, "b c"]) -> Float[Tensor, "b c h w"]:
    """Multiplies each channel of each image by its factor.

    Example:
        >>> scale_channels(torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 2.0]])).flatten()
        tensor([0., 2.])
    """
    return value * factor.to(value.device, value.dtype, non_blocking=True)[:, :, None, None]
