"""A memory of the latest representations of pixels, with the class that each had (CAC)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from semiseg.types import IGNORE


class Memory(nn.Module):
    """The latest representations, newest first. It is a module with buffers, so that checkpoints contain it.

    `Bank` keeps as many representations of each class. Here a class has as many as it has pixels.

    Args:
        size: number of representations.
        channels: number of values in a representation.
    """

    key: Float[Tensor, "k d"]
    label: Int[Tensor, " k"]  # its class; IGNORE where there is none

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros(size, channels))
        self.register_buffer("label", torch.full((size,), IGNORE))

    def add(self, key: Float[Tensor, "p d"], label: Int[Tensor, " p"]) -> None:
        """Adds representations; the oldest go. If there are more than the size of the memory, the first ones are kept.

        Args:
            key: the representations.
            label: the class of each; IGNORE for those that are of none.
        """
        size = len(self.label)
        self.key.copy_(torch.cat([key.to(self.key), self.key])[:size])
        self.label.copy_(torch.cat([label, self.label])[:size])
