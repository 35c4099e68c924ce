"""Strong augmentation of intensities: the pool of twelve operations of Table 1. Each image draws two of them.

Sampling and applying are separate. `sample` draws on the CPU, from a generator alone. `apply` changes a batch of uint8
images on any device: it groups the images by the operation that they drew and never makes the host wait.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from semiseg.rng import uniform


class Config(BaseModel):
    """The pool of Table 1. All ranges include both ends.

    Attributes:
        num_ops: number of operations that an image draws. They are applied one after the other.
        with_replacement: whether an image can draw the same operation twice. The paper selects "two kinds"; the
            authors' code draws with replacement (D30).
        factor: range of the factor of contrast, sharpness, color and brightness. Factor 1 changes nothing. Factor 0
            gives flat gray (contrast), the smoothed image (sharpness), gray levels (color) or black (brightness). The
            authors' code starts at 0.1 (D28).
        hue: range of the shift, as a fraction of the color circle. Its direction is random.
        bits: range of the number of bits that posterize keeps of each channel. 8 bits change nothing; the authors'
            code never draws 8 (D29).
        solarize: range of the level. Values from the level on are inverted. Level 256 changes nothing; the authors'
            code never draws 256 (D29).
        sigma: range of the standard deviation of the Gaussian blur, px.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Literal["intensity"] = "intensity"
    num_ops: int = Field(2, ge=1, le=100)
    with_replacement: bool = False
    factor: tuple[float, float] = (0.05, 0.95)
    hue: tuple[float, float] = (0.0, 0.5)
    bits: tuple[int, int] = (4, 8)
    solarize: tuple[int, int] = (1, 256)
    sigma: tuple[float, float] = (0.1, 2.0)

    @field_validator("factor", "hue", "bits", "solarize", "sigma")
    @classmethod
    def _ordered(cls, value: tuple[float | int, float | int]) -> tuple[float | int, float | int]:
        if not value[0] <= value[1]:
            raise ValueError(f"needs [low, high] with low <= high, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        limits = {"factor": (0, math.inf), "hue": (0, 0.5), "bits": (1, 8), "solarize": (0, 256), "sigma": (0.01, 100)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value[0] < low or not math.isfinite(value[1]) or value[1] > high:
                raise ValueError(f"{name} needs to lie within [{low}, {high}], got {list(value)}")
        if self.num_ops > len(OPS) and not self.with_replacement:
            raise ValueError(f"num_ops {self.num_ops} needs with_replacement: the pool has {len(OPS)} operations")
        return self

    def sample(self, generator: torch.Generator, num_images: int) -> "IntensityParams":
        """Draws the operations of `num_images` images."""
        return sample(generator, num_images, self)

    def apply(self, image: UInt8[Tensor, "b 3 h w"], drawn: "IntensityParams") -> UInt8[Tensor, "b 3 h w"]:
        """Applies the operations that the images drew."""
        return apply(image, drawn)


@dataclass(frozen=True)
class IntensityParams:
    """What each of `b` images drew, in the order of application. The tensors are always on the CPU."""

    op: Int[Tensor, "b num_ops"]  # index into OPS
    magnitude: Float[Tensor, "b num_ops"]  # factor, shift, bits, level or sigma; 0 for operations without any

    def __getitem__(self, images: slice) -> "IntensityParams":
        """Returns the draws of some of the images."""
        return IntensityParams(self.op[images], self.magnitude[images])


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


# Magnitudes. Each function takes uniform draws from [0, 1) and the config, and returns magnitudes.


def _none(u: Tensor, _: Config) -> Tensor:
    return torch.zeros_like(u)


def _uniform(u: Tensor, span: tuple[float, float]) -> Tensor:
    return span[0] + u * (span[1] - span[0])


def _integer(u: Tensor, span: tuple[int, int]) -> Tensor:
    return (span[0] + u * (span[1] - span[0] + 1)).floor_().clamp_(max=span[1])  # float32 can round up to high + 1


def _signed(u: Tensor, span: tuple[float, float]) -> Tensor:
    v = 2 * u - 1  # its sign is the direction, its absolute value is again uniform over [0, 1]
    return torch.where(v < 0, -1.0, 1.0) * _uniform(v.abs(), span)


_TABLE: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Config], Tensor]]] = {  # Table 1
    "identity": (_identity, _none),
    "invert": (_invert, _none),
    "autocontrast": (_autocontrast, _none),
    "equalize": (_equalize, _none),
    "gaussian_blur": (_gaussian_blur, lambda u, config: _uniform(u, config.sigma)),
    "contrast": (_contrast, lambda u, config: _uniform(u, config.factor)),
    "sharpness": (_sharpness, lambda u, config: _uniform(u, config.factor)),
    "color": (_color, lambda u, config: _uniform(u, config.factor)),
    "brightness": (_brightness, lambda u, config: _uniform(u, config.factor)),
    "hue": (_hue, lambda u, config: _signed(u, config.hue)),
    "posterize": (_posterize, lambda u, config: _integer(u, config.bits)),
    "solarize": (_solarize, lambda u, config: _integer(u, config.solarize)),
}

OPS: tuple[str, ...] = tuple(_TABLE)
"""Names of the operations, in the order of Table 1; `IntensityParams.op` holds positions in it."""


def sample(generator: torch.Generator, batch_size: int, config: Config) -> IntensityParams:
    """Draws `config.num_ops` operations and their magnitudes for each of `batch_size` images.

    Args:
        generator: a CPU generator, from `semiseg.rng.fold_in`.
        batch_size: number of images.
        config: the pool.

    Returns:
        The draws. They depend on the arguments alone.
    """
    if config.with_replacement:
        op = torch.randint(len(OPS), (batch_size, config.num_ops), generator=generator)
    else:
        op = torch.rand(batch_size, len(OPS), generator=generator).argsort(dim=1)[:, : config.num_ops]
    u = uniform(generator, 0.0, 1.0, batch_size, config.num_ops)
    # each operation's magnitude for each draw, of which the drawn operation's is kept
    every = torch.stack([magnitude(u, config) for _, magnitude in _TABLE.values()], dim=-1)
    return IntensityParams(op, every.gather(-1, op[..., None]).squeeze(-1))


def apply(image: UInt8[Tensor, "b 3 h w"], params: IntensityParams) -> UInt8[Tensor, "b 3 h w"]:
    """Applies to every image the operations that it drew, one after the other.

    Args:
        image: the batch, on any device; it is not modified.
        params: the draws of these images.

    Returns:
        A new batch on the same device. Results of different devices differ by at most one gray level.
    """
    assert len(params.op) == len(image), f"{len(params.op)} draws for {len(image)} images"
    out = image.clone()
    for op, magnitude in zip(params.op.unbind(1), params.magnitude.unbind(1), strict=True):
        for index, (transform, _) in enumerate(_TABLE.values()):
            drew = (op == index).nonzero().squeeze(1).tolist()
            if not drew:
                continue
            changed = transform(torch.stack([out[row] for row in drew]), magnitude[drew])
            for row, new in zip(drew, changed, strict=True):
                out[row] = new
    return out
