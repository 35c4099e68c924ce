"""The pool "color jitter, grayscale, blur" of ST++, UniMatch and others: an image gets each with a probability.

Sampling and applying are separate, as in `semiseg.augment.intensity`.
"""

from typing import Literal

import torch
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from semiseg.augment import ops
from semiseg.augment.ops import OPS, Drawn
from semiseg.rng import uniform

_JITTER = ("brightness", "contrast", "color", "hue")  # the four operations of torchvision's ColorJitter


class Config(BaseModel):
    """Color jitter, then grayscale, then Gaussian blur. The defaults are those of ST++ and UniMatch.

    Attributes:
        jitter_probability: probability that an image gets the four operations of color jitter, in random order.
        brightness: its factor is drawn from [1 - brightness, 1 + brightness], but it is never below 0.
        contrast: likewise.
        saturation: likewise.
        hue: the shift is drawn from [-hue, hue], as a fraction of the color circle.
        grayscale_probability: probability that an image becomes gray.
        blur_probability: probability that an image is blurred.
        sigma: range of the standard deviation of the Gaussian blur, px.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pool: Literal["jitter"] = "jitter"
    jitter_probability: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.5, ge=0)
    contrast: float = Field(0.5, ge=0)
    saturation: float = Field(0.5, ge=0)
    hue: float = Field(0.25, ge=0, le=0.5)
    grayscale_probability: float = Field(0.2, ge=0, le=1)
    blur_probability: float = Field(0.5, ge=0, le=1)
    sigma: tuple[float, float] = (0.1, 2.0)

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        low, high = self.sigma
        if not 0.01 <= low <= high <= 100:
            raise ValueError(f"sigma needs [low, high] with 0.01 <= low <= high <= 100, got {list(self.sigma)}")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        jitter = ("brightness", "contrast", "saturation", "hue")
        for probability, names in (("jitter_probability", jitter), ("blur_probability", ("sigma",))):
            for name in names:
                if not getattr(self, probability) and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} does nothing with {probability} 0; remove one of them")
        return self

    def sample(self, generator: torch.Generator, num_images: int) -> Drawn:
        """Draws the operations of `num_images` images: four of color jitter, grayscale, blur.

        An operation that an image does not get is the identity.

        Args:
            generator: a CPU generator, from `semiseg.rng.fold_in`.
            num_images: number of images.

        Returns:
            The draws. They depend on the settings and the arguments alone.
        """
        gets = uniform(generator, 0.0, 1.0, 3, num_images)
        order = torch.rand(num_images, 4, generator=generator).argsort(dim=1)
        spans = [(max(0.0, 1 - by), 1 + by) for by in (self.brightness, self.contrast, self.saturation)]
        values = [uniform(generator, *span, num_images) for span in [*spans, (-self.hue, self.hue), self.sigma]]
        *jitter, sigma = values

        op = torch.empty(num_images, 6, dtype=torch.int64)
        op[:, :4] = torch.tensor([OPS.index(name) for name in _JITTER])[order]
        op[:, 4], op[:, 5] = OPS.index("color"), OPS.index("gaussian_blur")
        gray = torch.zeros(num_images)  # gray levels are the operation color with factor 0
        magnitude = torch.cat([torch.stack(jitter, 1).gather(1, order), torch.stack([gray, sigma], 1)], 1)

        probability = torch.tensor([self.jitter_probability, self.grayscale_probability, self.blur_probability])
        drew = (probability > gets.T)[:, [0, 0, 0, 0, 1, 2]]
        return Drawn(torch.where(drew, op, OPS.index("identity")), torch.where(drew, magnitude, 0.0))

    def apply(self, image: UInt8[Tensor, "b 3 h w"], drawn: Drawn) -> UInt8[Tensor, "b 3 h w"]:
        """Applies the operations that the images drew."""
        return ops.apply(image, drawn)
