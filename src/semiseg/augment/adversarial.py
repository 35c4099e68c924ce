"""Adversarial noise on feature maps: what changes a prediction most (virtual adversarial training, Miyato et al.)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import grad
from torch.overrides import TorchFunctionMode

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
    pass and three passes like a backward pass that gives no gradient of weights.

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
        with _FixedGroupedConvolutions():
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


class _FixedGroupedConvolutions(TorchFunctionMode):
    """Within it, grouped convolutions give no gradient of weights.

    torch's second derivative of a convolution computes that of the weights even if nobody asks for it: for depthwise
    convolutions in a loop over their groups, which takes longer than all the rest.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # as nn.Conv2d calls it: image, weight, bias, stride, padding, dilation, groups
        if func is F.conv2d and not kwargs and len(args) == 7 and args[6] > 1 and not isinstance(args[4], str):
            return _FixedConvolution.apply(*args)
        return func(*args, **(kwargs or {}))


class _FixedConvolution(torch.autograd.Function):
    """A convolution whose weights get no gradient. Its derivative is a transposed convolution, as usual."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.how = value.shape[-2:], how
        return F.conv2d(value, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        stride, padding, dilation, groups = ctx.how
        rest = [  # of the size that a stride leaves over
            size - ((given - 1) * step - 2 * pad + apart * (side - 1) + 1)
            for size, given, step, pad, apart, side in zip(
                ctx.size, gradient.shape[-2:], stride, padding, dilation, weight.shape[-2:], strict=True
            )
        ]
        fixed = weight.detach().to(gradient.dtype)
        found = F.conv_transpose2d(gradient, fixed, None, stride, padding, rest, groups, dilation)
        return found, *[None] * 6
