"""Pools of operations that change an image's colors and sharpness, never its geometry.

A recipe gives a pool with its settings, `{pool: jitter, hue: 0.1}`, or by a name of `CANDIDATES`, `mild`.
"""

from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from pydantic import BeforeValidator, Discriminator, Tag
from torch import Tensor

from semiseg.augment import intensity, jitter


@runtime_checkable
class Strong(Protocol):
    """A pool with its settings. Sampling and applying are separate."""

    def sample(self, generator: torch.Generator, num_images: int) -> Any:
        """Draws operations for `num_images` images. The result can be sliced by image."""

    def apply(self, image: UInt8[Tensor, "b 3 h w"], drawn: Any) -> UInt8[Tensor, "b 3 h w"]:
        """Applies what was drawn for these images."""


_MILD = intensity.Config(
    ops=(
        "identity",
        "autocontrast",
        "gaussian_blur",
        "contrast",
        "sharpness",
        "color",
        "brightness",
        "hue",
        "posterize",
    ),
    factor=(0.6, 0.95),
    hue=(0.0, 0.05),
    bits=(6, 8),
)
# What `semiseg tune` tries on labeled images, the mildest first. `mild` is Table 1 without the operations that give
# other gray levels (invert, solarize, equalize) and in narrow ranges; `intensity` is Table 1 in full.
CANDIDATES: dict[str, intensity.Config | jitter.Config | None] = {
    "none": None,
    "mild": _MILD,
    "jitter": jitter.Config(),
    "intensity": intensity.Config(),
}


def _by_name(value: Any) -> Any:
    return CANDIDATES.get(value, value) if isinstance(value, str) else value


def _name(settings: Any) -> str:
    return str(settings.get("pool", "intensity") if isinstance(settings, dict) else getattr(settings, "pool", None))


Pool = Annotated[
    Annotated[
        Annotated[intensity.Config, Tag("intensity")] | Annotated[jitter.Config, Tag("jitter")],
        Discriminator(
            _name,
            custom_error_type="pool",
            custom_error_message="should be mild, jitter, intensity, or a section with one of them as pool",
        ),
    ],
    BeforeValidator(_by_name),
]
