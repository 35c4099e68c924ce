"""What the prediction of files needs from a trained model."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semiseg.types import ClassTable


@runtime_checkable
class Model(Protocol):
    """A trained model that gives the probabilities of classes."""

    @property
    def classes(self) -> ClassTable:
        """The meaning of its outputs."""

    @property
    def long_side(self) -> int | None:
        """Images are first resized to this long side (px), as in training; None: they are not resized."""

    @property
    def white(self) -> int | None:
        """The value that is shown as white in images of more than 8 bits, as in training; None: 65535."""

    @property
    def least_window(self) -> int:
        """The smallest side of a window that it can make sense of, px."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def probabilities(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Computes the class probabilities of a batch of images, on its device."""

    def fingerprint(self) -> bytes:
        """Returns a digest of all that a prediction depends on."""
