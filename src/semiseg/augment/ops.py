"""Operations on the intensities of uint8 images, on any device. Every pool draws from them.

`Drawn` holds what the images of a batch drew. `apply` groups the images by operation and never makes the host wait.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as tv


@dataclass(frozen=True)
class Drawn:
    """What each of `b` images drew, in the order of application. The tensors are always on the CPU."""

    op: Int[Tensor, "b num_ops"]  # index into OPS
    magnitude: Float[Tensor, "b num_ops"]  # factor, shift, bits, level or sigma; 0 for operations without any

    def __getitem__(self, images: slice) -> "Drawn":
        """Returns the draws of some of the images."""
        return Drawn(self.op[images], self.magnitude[images])


# Operations. Each takes the images that drew it and their magnitudes (on the CPU), and returns the changed images. It
# may return its argument.


def _identity(image: Tensor, _: Tensor) -> Tensor:
    return image


def _invert(image: Tensor, _: Tensor) -> Tensor:
    return tv.invert(image)


def _autocontrast(image: Tensor, _: Tensor) -> Tensor:
    return tv.autocontrast(image)


def _equalize(image: Tensor, _: Tensor) -> Tensor:
    return tv.equalize(image)


def _gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    return torch.stack([_blurred(row, by) for row, by in zip(image, sigma.tolist(), strict=True)])


def _blurred(image: Tensor, sigma_px: float) -> Tensor:
    # Equals a convolution with a normalized Gaussian along each axis, the image being reflected at its border. On a CPU
    # a depthwise convolution takes ten times as long as these sums of shifted images.
    blurred = image.float()
    for axis in (1, 2):
        side = image.shape[axis]
        radius = min(math.ceil(3 * sigma_px), side - 1)  # reflection needs radius < side
        heights = [math.exp(-((offset / sigma_px) ** 2) / 2) for offset in range(radius + 1)]
        center, *flanks = (height / (2 * sum(heights) - heights[0]) for height in heights)
        padded = F.pad(blurred, (0, 0, radius, radius) if axis == 1 else (radius, radius), mode="reflect")
        blurred = padded.narrow(axis, radius, side) * center
        for offset, weight in enumerate(flanks, 1):
            for start in (radius - offset, radius + offset):
                blurred.add_(padded.narrow(axis, start, side), alpha=weight)
    return blurred.round_().to(torch.uint8)


def _contrast(image: Tensor, factor: Tensor) -> Tensor:
    return _between(tv.rgb_to_grayscale(image).float().mean((1, 2, 3), keepdim=True).floor_(), image, factor)


def _sharpness(image: Tensor, factor: Tensor) -> Tensor:
    # `smooth` is torchvision's adjust_sharpness(image, 0.0), which makes the host wait: its kernel comes from a list.
    if min(image.shape[-2:]) <= 2:
        return image
    smooth = image.clone()  # the outermost pixels do not change, as in PIL
    wide = image.short()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    # 1 1 1      This kernel over 13 is the sum of the neighborhood
    # 1 5 1      plus four times the pixel itself.
    # 1 1 1
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth[..., 1:-1, 1:-1] = ((around + wide[..., 1:-1, 1:-1] * 4) / 13).round_()
    return _between(smooth, image, factor)


def _color(image: Tensor, factor: Tensor) -> Tensor:
    return _between(tv.rgb_to_grayscale(image), image, factor)


def _brightness(image: Tensor, factor: Tensor) -> Tensor:
    return _between(torch.zeros((), device=image.device), image, factor)


def _hue(image: Tensor, shift: Tensor) -> Tensor:
    # Equals: convert to HSV, shift the hue, convert back. On the color circle, six units long, red lies at 0, green at
    # 2, blue at 4. A channel has the largest value of the pixel if the hue is at most one unit away from the channel's
    # place, the smallest value from two units on, and falls linearly in between.
    red, green, blue = image.float().unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    per = chroma.clamp(min=1).reciprocal_()  # gray has chroma 0: every hue gives gray again
    # where(red == top, (green - blue) * per, where(green == top, (blue - red) * per + 2, (red - green) * per + 4)).
    # lerp with weights of 0 and 1 makes the same choice; on a CPU it is ten times as fast as torch.where.
    hue = torch.lerp(
        torch.lerp((red - green).mul_(per).add_(4), (blue - red).mul_(per).add_(2), green.clone().eq_(top)),
        (green - blue).mul_(per),
        red.clone().eq_(top),
    )
    hue += 6 * _per_image(shift, image.device)[:, 0]
    shifted = torch.empty_like(image)
    for channel in range(3):
        distance = hue - 2 * channel
        distance.sub_((distance / 6).round_(), alpha=6).abs_()  # along the circle, at most 3
        shifted[:, channel] = (top - chroma * distance.sub_(1).clamp_(0, 1)).round_()
    return shifted


def _posterize(image: Tensor, bits: Tensor) -> Tensor:
    top = (256 - 2.0 ** (8 - bits)).to(torch.uint8)
    return image & _per_image(top, image.device)


def _solarize(image: Tensor, level: Tensor) -> Tensor:
    # Equals where(image >= level, 255 - image, image). Level 256 does not fit into uint8, so the comparison is with the
    # level below, and level 0 is a case of its own. 255 - image is image XOR 255.
    above = image > _per_image((level - 1).clamp(min=0).to(torch.uint8), image.device)
    everything = _per_image((level < 1).to(torch.uint8), image.device)
    return image ^ (above.view(torch.uint8) | everything).mul_(255)


def _between(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Mixes `degenerate` (factor 0) and `image` (factor 1) as PIL's ImageEnhance does, but rounds to the nearest."""
    mixed = torch.lerp(degenerate.float(), image.float(), _per_image(factor, image.device))
    return mixed.round_().clamp_(0, 255).to(torch.uint8)


def _per_image(value: Tensor, device: torch.device) -> Tensor:
    return value[:, None, None, None].to(device, non_blocking=True)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # the order is that of Table 1 of iMAS
    "identity": _identity,
    "invert": _invert,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "gaussian_blur": _gaussian_blur,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "color": _color,
    "brightness": _brightness,
    "hue": _hue,
    "posterize": _posterize,
    "solarize": _solarize,
}

OPS: tuple[str, ...] = tuple(OPERATIONS)
"""Names of the operations; `Drawn.op` holds positions in it."""


def apply(image: UInt8[Tensor, "b 3 h w"], drawn: Drawn) -> UInt8[Tensor, "b 3 h w"]:
    """Applies to every image the operations that it drew, one after the other.

    Args:
        image: the batch, on any device; it is not modified.
        drawn: the draws of these images.

    Returns:
        A new batch on the same device. Results of different devices differ by at most one gray level.
    """
    assert len(drawn.op) == len(image), f"{len(drawn.op)} draws for {len(image)} images"
    out = image.clone()
    for op, magnitude in zip(drawn.op.unbind(1), drawn.magnitude.unbind(1), strict=True):
        for index, transform in enumerate(OPERATIONS.values()):
            drew = (op == index).nonzero().squeeze(1).tolist()
            if not drew or transform is _identity:
                continue
            changed = transform(torch.stack([out[row] for row in drew]), magnitude[drew])
            for row, new in zip(drew, changed, strict=True):
                out[row] = new
    return out
