"""Runs a network on whole images, on windows, or on a training batch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg.models.build import Network
from semiseg.models.folded import folded
from semiseg.types import Prediction

_CACHED = 2**18  # fp32 values that fit into a CPU's cache
_RESIZED = 2**25  # fp32 values of probabilities that are resized at once, 128 MB; above, one class at a time


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode. Afterwards each of its modules is in its old mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@torch.no_grad()
def predict(network: Network, image: Float[Tensor, "b 3 h w"], batch_statistics: bool = False) -> Prediction:
    """Predicts a class for each pixel, in eval mode (D16), with its confidence in fp32.

    Args:
        network: the network.
        image: the images, normalized.
        batch_statistics: as for `fixed_logits`.
    """
    return prediction(fixed_logits(network, image, batch_statistics))


@torch.no_grad()
def fixed_logits(
    network: Network, image: Float[Tensor, "b 3 h w"], batch_statistics: bool = False
) -> Float[Tensor, "b c h w"]:
    """Computes logits without gradient, in eval mode: what a teacher predicts.

    Args:
        network: the network.
        image: the images, normalized.
        batch_statistics: batch norm is in train mode: it uses the statistics of these images and adds them to its
            running ones (but see `semiseg.models.norms`). All other modules are in eval mode, so no random numbers are
            drawn.
    """
    with evaluating(network):
        for module in network.modules():
            if batch_statistics and isinstance(module, _BatchNorm):
                module.train()
        return network(image)


@torch.no_grad()
def prediction(logits: Float[Tensor, "b c h w"]) -> Prediction:
    """Returns the class with the largest logit for each pixel, with its confidence in fp32."""
    confidence = torch.empty(logits.shape[0], *logits.shape[2:], device=logits.device)
    label = torch.empty_like(confidence, dtype=torch.int64)
    for band in _bands(logits):
        below = _below_largest(logits, band)
        # the largest probability of a softmax: 1 / sum(exp(logits - largest logit))
        confidence[band] = torch.exp2(below * math.log2(math.e)).sum(0).reciprocal_()
        label[band] = _first_zero_(below)
    return Prediction(label, confidence, logits.shape[1])


def most_likely(value: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
    """Returns the class with the largest logit or probability; of equal ones, the first."""
    label = torch.empty(value.shape[0], *value.shape[2:], dtype=torch.int64, device=value.device)
    for band in _bands(value):
        label[band] = _first_zero_(_below_largest(value, band))
    return label


def most_likely_at(probability: Float[Tensor, "b c h w"], height: int, width: int) -> Int[Tensor, "b {height} {width}"]:
    """Returns the class with the largest probability, after resizing, in little memory.

    It equals most_likely(resize_probability(probability, height, width)), as int16. That holds all classes at the new
    size: 21 classes of 36 megapixels are 3 GB. Here a large image is resized class by class.
    """
    batch, num_classes = probability.shape[:2]
    if batch * num_classes * height * width <= _RESIZED:
        return most_likely(resize_probability(probability, height, width)).to(torch.int16)
    largest = resize_probability(probability[:, :1], height, width).clone()
    label = torch.zeros(batch, height, width, dtype=torch.int16, device=probability.device)
    for index in range(1, num_classes):
        own = resize_probability(probability[:, index : index + 1], height, width)
        label.masked_fill_((own > largest)[:, 0], index)  # of equal ones, the first
        torch.maximum(largest, own, out=largest)
    return label


# On a CPU the functions above work on bands that fit into its caches. They avoid what torch does not vectorize there
# (argmax, max with indices, exp, comparisons that return booleans). So `predict` takes a fourth of the time of
# logsumexp and max, and `most_likely` a fifteenth of the time of argmax.


def _bands(value: Float[Tensor, "b c h w"]) -> list[tuple[slice, slice]]:
    """Splits maps into bands (images, rows): on a CPU bands that fit into its caches, elsewhere one band for all."""
    batch, num_classes, height, width = value.shape
    if value.device.type != "cpu":
        return [(slice(None), slice(None))]
    rows = max(1, _CACHED // (num_classes * width))
    return [
        (slice(image, image + 1), slice(top, top + rows)) for image in range(batch) for top in range(0, height, rows)
    ]


def _below_largest(value: Float[Tensor, "b c h w"], band: tuple[slice, slice]) -> Float[Tensor, "c B H w"]:
    """Subtracts each pixel's largest value from its values, in fp32, for one band. The largest becomes 0."""
    part = value.movedim(1, 0)[(slice(None), *band)]
    exact = torch.empty(part.shape, device=part.device).copy_(part)
    return exact.sub_(exact.amax(0))


def _first_zero_(below: Float[Tensor, "c b h w"]) -> Float[Tensor, "b h w"]:
    """Returns the first class at 0. If no class is (NaN or infinite logits), it returns the last class."""
    # (below == 0).argmax(0), without argmax: the first class at 0 has the largest number in `backwards`
    backwards = torch.arange(len(below), 0, -1, device=below.device)[:, None, None, None]
    return len(below) - below.eq_(0).mul_(backwards).amax(0).clamp_(min=1)


@torch.no_grad()
def whole(network: Network, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
    """Computes class probabilities in one pass over the whole image.

    It calls `network.forward` because `network(...)` would compile a network that training compiles, for each new size.
    """
    with evaluating(network), folded(network):
        return network.forward(image).float().softmax(1)


@torch.no_grad()
def sliding(
    network: Network, image: Float[Tensor, "b 3 h w"], window: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Computes class probabilities in windows that cover the image, and averages them where windows overlap.

    All windows have `window` pixels (height, width); none shrinks at the border (D40). Their distance is at most
    `stride`: the smallest number of windows with that distance is spread evenly from border to border. An image smaller
    than the window is one window.
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = torch.zeros(height, width, device=image.device)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            tile = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            probability = whole(network, image[tile])
            if total is None:
                total = torch.zeros(*probability.shape[:2], height, width, device=image.device)
            total[tile] += probability
            count[tile] += 1
    assert total is not None
    return total / count


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns the positions at which windows start along one side."""
    last = max(length - window, 0)
    gaps = math.ceil(last / stride)
    return [last * number // max(gaps, 1) for number in range(gaps + 1)]


def resize_probability(
    probability: Float[Tensor, "b c h w"], height: int, width: int
) -> Float[Tensor, "b c {height} {width}"]:
    """Resizes probabilities (bilinear), e.g. to the size of the mask on disk."""
    if probability.shape[-2:] == (height, width):
        return probability
    return F.interpolate(probability, (height, width), mode="bilinear", align_corners=False)
