"""What the tests of several methods share."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from semiseg.models.build import Network
from semiseg.rng import fold_in


@pytest.fixture
def differ() -> Callable[..., None]:
    """differ(teacher) -> noise is added to its parameters, so that it differs from its student."""

    def differ(*networks: nn.Module, by: float = 0.15) -> None:
        generator = fold_in(0, "teacher")
        with torch.no_grad():
            for parameter in nn.ModuleList(networks).parameters():
                parameter += by * torch.randn(parameter.shape, generator=generator)

    return differ


class Same(nn.Sequential):
    """An encoder that returns the image."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image]


@pytest.fixture
def identity_network(tiny) -> Callable[[], Network]:
    """identity_network() -> a network that returns the image as logits."""

    def build() -> Network:
        network = tiny(0)
        network.net["encoder"], network.net["segmentation_head"] = Same(), nn.Identity()
        return network

    return build
