"""What is measured on an image: how unsure a network is, which classes it likely shows, and what it is like."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

_SEEN = 0.005  # share of an image's pixels that must look like a class for it to be seen there


def entropy(probability: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Computes the mean entropy of each image's pixels, divided by its largest value: between 0 and 1.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5, 1.0, 0.0]).view(2, 2, 1, 1))
        tensor([1., 0.])
    """
    return torch.special.entr(probability).sum(1).mean((1, 2)) / math.log(probability.shape[1])


def closeness(probability: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Computes 1 - margin of each image. The margin is the difference of the two largest probabilities of a pixel.

    Example:
        >>> closeness(torch.tensor([0.50, 0.25, 0.25]).view(1, 3, 1, 1))
        tensor([0.7500])
    """
    first, second = probability.topk(2, dim=1).values.unbind(1)
    return 1 - (first - second).mean((1, 2))


def presence(probability: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Computes how likely each image shows each class: the mean probability of the class where it is most likely.

    The mean is over the 0.5 % of the pixels with the largest probabilities of the class, at least one pixel. So a small
    object counts as much as a large one, and a single pixel does not count in a large image.
    """
    pixels = probability.flatten(2)
    most = max(1, round(_SEEN * pixels.shape[2]))
    return pixels.topk(most, dim=2).values.mean(2)


def alike(features: Float[Tensor, "n d"], number: int, least: float) -> Bool[Tensor, " n"]:
    """Finds the images whose features have about the same direction as those of image `number`.

    Args:
        features: of each image, centered: the mean of all images is subtracted, which they have in common.
        number: an image; it is like itself.
        least: the smallest cosine.
    """
    return F.cosine_similarity(features, features[number, None], dim=1) >= least


def centered(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Subtracts the mean over the images."""
    return features - features.mean(0)
