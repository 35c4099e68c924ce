"""The pool of twelve operations of Table 1 of iMAS. Each image draws two of them, or as many as the settings say.

Sampling and applying are separate. `Config.sample` draws on the CPU, from a generator alone. `Config.apply` changes a
batch of uint8 images on any device.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from semiseg.augment import ops
from semiseg.augment.ops import OPS, Drawn
from semiseg.rng import uniform

_USERS = {  # setting -> the operations that use it
    "factor": ("contrast", "sharpness", "color", "brightness"),
    "hue": ("hue",),
    "bits": ("posterize",),
    "solarize": ("solarize",),
    "sigma": ("gaussian_blur",),
}


class Config(BaseModel):
    """The pool of Table 1. All ranges include both ends.

    Attributes:
        ops: names of the operations that an image can draw; None: all twelve.
        num_ops: number of operations that an image draws. They are applied one after the other.
        min_ops: if given, each image draws min_ops to num_ops operations, each number equally often (AugSeg). None:
            each image draws num_ops.
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
    ops: tuple[str, ...] | None = None
    num_ops: int = Field(2, ge=1, le=100)
    min_ops: int | None = Field(None, ge=0)
    with_replacement: bool = False
    factor: tuple[float, float] = (0.05, 0.95)
    hue: tuple[float, float] = (0.0, 0.5)
    bits: tuple[int, int] = (4, 8)
    solarize: tuple[int, int] = (1, 256)
    sigma: tuple[float, float] = (0.1, 2.0)

    @field_validator("ops")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in OPS:
                raise ValueError(f"there is no operation {name!r}; known are {', '.join(OPS)}")
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"needs at least one operation, and each once, got {list(names)}")
        return names

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
        return self

    @model_validator(mode="after")
    def _enough_operations(self) -> "Config":
        if self.num_ops > len(self.names) and not self.with_replacement:
            raise ValueError(
                f"num_ops {self.num_ops} needs with_replacement: the pool has {len(self.names)} operations; "
                "lower num_ops or set with_replacement"
            )
        if self.min_ops is not None and self.min_ops > self.num_ops:
            raise ValueError(f"min_ops {self.min_ops} is more than num_ops {self.num_ops}; lower it or raise num_ops")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        for name, users in _USERS.items():
            if getattr(self, name) != type(self).model_fields[name].default and not set(users) & set(self.names):
                raise ValueError(f"{name} belongs to {' and '.join(users)}, which ops leaves out; remove {name}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the operations that an image can draw."""
        return OPS if self.ops is None else self.ops

    def sample(self, generator: torch.Generator, num_images: int) -> Drawn:
        """Draws `num_ops` operations and their magnitudes for each of `num_images` images.

        An image that draws fewer operations gets the identity in place of the last ones.

        Args:
            generator: a CPU generator, from `semiseg.rng.fold_in`.
            num_images: number of images.

        Returns:
            The draws. They depend on the settings and the arguments alone.
        """
        if self.with_replacement:
            drawn = torch.randint(len(self.names), (num_images, self.num_ops), generator=generator)
        else:
            keys = torch.rand(num_images, len(self.names), generator=generator)
            drawn = keys.argsort(dim=1)[:, : self.num_ops]
        op = torch.tensor([OPS.index(name) for name in self.names])[drawn]
        u = uniform(generator, 0.0, 1.0, num_images, self.num_ops)
        # each operation's magnitude for each draw, of which the drawn operation's is kept
        every = torch.stack([_MAGNITUDES[name](u, self) for name in OPS], dim=-1)
        if self.min_ops is not None:
            number = torch.randint(self.min_ops, self.num_ops + 1, (num_images, 1), generator=generator)
            op = torch.where(torch.arange(self.num_ops) < number, op, OPS.index("identity"))
        return Drawn(op, every.gather(-1, op[..., None]).squeeze(-1))

    def apply(self, image: UInt8[Tensor, "b 3 h w"], drawn: Drawn) -> UInt8[Tensor, "b 3 h w"]:
        """Applies the operations that the images drew."""
        return ops.apply(image, drawn)


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


_MAGNITUDES: dict[str, Callable[[Tensor, Config], Tensor]] = {  # Table 1
    "identity": _none,
    "invert": _none,
    "autocontrast": _none,
    "equalize": _none,
    "gaussian_blur": lambda u, config: _uniform(u, config.sigma),
    "contrast": lambda u, config: _uniform(u, config.factor),
    "sharpness": lambda u, config: _uniform(u, config.factor),
    "color": lambda u, config: _uniform(u, config.factor),
    "brightness": lambda u, config: _uniform(u, config.factor),
    "hue": lambda u, config: _signed(u, config.hue),
    "posterize": lambda u, config: _integer(u, config.bits),
    "solarize": lambda u, config: _integer(u, config.solarize),
}
