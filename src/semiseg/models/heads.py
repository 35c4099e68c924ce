"""Heads that methods put on the output of a network's decoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg.models.build import Network
from semiseg.models.predict import evaluating


def representation_head(network: Network, channels: int) -> nn.Sequential:
    """Makes a head for `network.decode` that computes a representation of each pixel (U2PL).

    It has two blocks of 3x3 convolution, batch norm and ReLU, and a 1x1 convolution. It has no batch norm if the
    network has none. Its weights come from torch's global generator.

    Args:
        network: the network.
        channels: number of values in a representation, also between the layers.
    """
    layers: list[nn.Module] = []
    width = decoded_channels(network)
    for _ in range(2):
        layers += [nn.Conv2d(width, channels, 3, padding=1)]
        layers += [nn.BatchNorm2d(channels)] if has_batch_norm(network) else []
        layers += [nn.ReLU()]
        width = channels
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 1))


def projector(network: Network, channels: int) -> nn.Sequential:
    """Makes a head for `network.decode` that sees one place at a time (CAC): 1x1 convolution, ReLU, 1x1 convolution.

    Its weights come from torch's global generator.

    Args:
        network: the network.
        channels: number of values of its result.
    """
    width = decoded_channels(network)
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1))


@torch.no_grad()
def decoded_channels(network: Network) -> int:
    """Returns the number of channels of what `network.decode` computes from images with three channels."""
    with evaluating(network):
        return network.decode(network.encode(torch.zeros(1, 3, 1, 1))).shape[1]


@torch.no_grad()
def encoded_channels(network: Network) -> int:
    """Returns the number of channels of the last map that `network.encode` computes from images with three channels."""
    with evaluating(network):
        return network.encode(torch.zeros(1, 3, 1, 1)).maps[-1].shape[1]


def has_batch_norm(module: nn.Module) -> bool:
    """Returns whether a module uses statistics of its batches."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def values_at(
    network: Network, decoded: Float[Tensor, "b d _ _"], pixel: Int[Tensor, " n"], size: tuple[int, int]
) -> Float[Tensor, "b n d"]:
    """Reads a decoded map, of whatever scale, at pixels of the image, in fp32.

    Args:
        network: the network that decoded the map.
        decoded: what `network.decode` or a head on it computed; it shows the padded image.
        pixel: positions in the image, row by row.
        size: (height, width) of the image, px.
    """
    (rows, columns), (height, width) = decoded.shape[-2:], network.padded(size)
    row, column = pixel // size[1] * rows // height, pixel % size[1] * columns // width
    return decoded.flatten(2).index_select(2, row * columns + column).mT.float()
