"""Running a network on whole images, on windows, or on a training batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semiseg.models.build import Network
from semiseg.types import Prediction


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode, and each of its modules back into the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@torch.no_grad()
def predict(network: Network, image: Float[Tensor, "b 3 h w"]) -> Prediction:
    """Hard prediction in eval mode (D16), its confidence in fp32."""
    with evaluating(network):
        logits = network(image).float()
    top, label = logits.max(1)
    confidence = (top - logits.logsumexp(1)).exp()
    return Prediction(label, confidence, logits.shape[1])


@torch.no_grad()
def whole(network: Network, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
    """Class probabilities from one pass over the whole image."""
    with evaluating(network):
        return network(image).float().softmax(1)


@torch.no_grad()
def sliding(
    network: Network, image: Float[Tensor, "b 3 h w"], window: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Class probabilities averaged over windows that cover the image.

    Windows are `window` pixels (height, width), `stride` apart; the last ones are shifted back to end at the border,
    never shrunk (D40). An image smaller than the window is one window.
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = torch.zeros(height, width, device=image.device)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            tile = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            probability = whole(network, image[tile])
            if total is None:
                total = torch.zeros(*probability.shape[:2], height, width, device=image.device)
            total[tile] += probability
            count[tile] += 1
    assert total is not None
    return total / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side: every `stride` pixels, the last shifted back to the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def resize_probability(
    probability: Float[Tensor, "b c h w"], height: int, width: int
) -> Float[Tensor, "b c {height} {width}"]:
    """Probabilities at another size (bilinear), e.g. that of the mask on disk."""
    if probability.shape[-2:] == (height, width):
        return probability
    return F.interpolate(probability, (height, width), mode="bilinear", align_corners=False)
