"""Pools of operations that change an image's colors and sharpness, never its geometry. A pool is chosen by its name."""

from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from pydantic import Discriminator, Tag
from torch import Tensor

from semiseg.augment import intensity, jitter


@runtime_checkable
class Strong(Protocol):
    """A pool with its settings. Sampling and applying are separate."""

    def sample(self, generator: torch.Generator, num_images: int) -> Any:
        """Draws operations for `num_images` images. The result can be sliced by image."""

    def apply(self, image: UInt8[Tensor, "b 3 h w"], drawn: Any) -> UInt8[Tensor, "b 3 h w"]:
        """Applies what was drawn for these images."""


def _name(settings: Any) -> str:
    return str(settings.get("pool", "intensity") if isinstance(settings, dict) else getattr(settings, "pool", None))


Pool = Annotated[
    Annotated[intensity.Config, Tag("intensity")] | Annotated[jitter.Config, Tag("jitter")],
    Discriminator(
        _name,
        custom_error_type="pool",
        custom_error_message="should be a section whose key pool is one of intensity, jitter",
    ),
]
