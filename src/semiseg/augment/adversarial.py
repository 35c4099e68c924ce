"""Adversarial noise on feature maps: what changes a prediction most (virtual adversarial training, Miyato et al.)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import grad

from semiseg.rng import uniform


def sample_direction(generator: torch.Generator, shape: tuple[int, int, int]) -> Float[Tensor, "d h w"]:
    """Draws where the search for the noise starts, from U(-0.5, 0.5). All images of a batch start there."""
    return uniform(generator, -0.5, 0.5, *shape)


def adversarial_noise(
    decode: Callable[[Float[Tensor, "b d h w"]], Float[Tensor, "b c H W"]],
    value: Float[Tensor, "b d h w"],
    direction: Float[Tensor, "d h w"],
    radius: float,
    counted: Bool[Tensor, "b H W"],
) -> Float[Tensor, "b d h w"]:
    """Computes noise of a given length that changes the prediction of a decoder most (VAT of CCT, T-VAT of PS-MT).

    Near `value` the KL divergence of the prediction is a quadratic form of the noise. Its matrix is J^T F J: J is the
    derivative of the logits, F = diag(p) - p p^T. One product of this matrix with a random direction is one iteration
    of the power method, as in the papers. The authors take the gradient at a distance of 1e-6 instead, which is lost
    in the rounding of fp32. The product has no such distance, so it works in low precision, too. It costs a forward
    pass and three passes like a backward pass that gives no gradient of weights. For depthwise convolutions the second
    one takes three times as long: torch computes gradients of their weights, too, in a loop over the groups.

    No gradient reaches the decoder or `value`. The decoder must not use batch statistics.

    Args:
        decode: computes logits of feature maps, each image on its own.
        value: the feature maps.
        direction: where the search starts.
        radius: length of the noise, over all values of an image (epsilon).
        counted: False where the prediction does not matter.

    Example:
        Logits are (x, -x, 0 y). Only a change of x changes the prediction.

        >>> decode = lambda value: torch.cat([value[:, :1], -value[:, :1], 0 * value[:, 1:]], 1)
        >>> start, counted = torch.ones(2, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
        >>> adversarial_noise(decode, torch.zeros(1, 2, 1, 1), start, radius=2.0, counted=counted).flatten()
        tensor([2., 0.])
    """
    with torch.enable_grad():
        point = value.detach().requires_grad_()
        logits = decode(point)
        cotangent = torch.zeros_like(logits, requires_grad=True)
        (pulled,) = grad(logits, point, cotangent, create_graph=True)  # J^T c, whose derivative by c gives J d
        start = direction.to(pulled.device, pulled.dtype, non_blocking=True).expand_as(pulled)
        (change,) = grad(pulled, cotangent, start, retain_graph=True)  # J d
        probability, change = logits.detach().float().softmax(1), change.float()
        pushed = probability * (change - (probability * change).sum(1, keepdim=True))  # F J d
        pushed = torch.where(counted[:, None], pushed, 0.0).to(logits.dtype)
        (found,) = grad(logits, point, pushed)  # J^T F J d
    length = torch.linalg.vector_norm(found.float(), dim=(1, 2, 3), keepdim=True)
    return (radius * found / length.clamp(min=1e-12)).to(value.dtype)
