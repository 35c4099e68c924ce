"""Brings what a network computes into the frame of the image, and maps of the image into the frame of a feature map.

A feature map shows the padded image. So its frame is larger than that of the image, at the bottom and on the right.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from semiseg.models.build import Network


def to_image(
    network: Network, value: Float[Tensor, "b d _ _"], size: tuple[int, int]
) -> Float[Tensor, "b d {size[0]} {size[1]}"]:
    """Resizes a map that shows the padded image (bilinear), and cuts the padding off. In fp32.

    Args:
        network: the network that computed the map.
        value: the map, of whatever scale.
        size: (height, width) of the image, px.
    """
    resized = F.interpolate(value.float(), network.padded(size), mode="bilinear", align_corners=False)
    return resized[..., : size[0], : size[1]]


def to_map(
    network: Network, value: Float[Tensor, "b d h w"], shape: tuple[int, int]
) -> Float[Tensor, "b d {shape[0]} {shape[1]}"]:
    """Resizes a map of the image to the frame and the shape of a feature map (bilinear). The padding is 0.

    Args:
        network: the network that computed the feature map.
        value: a map of the image.
        shape: (rows, columns) of the feature map.
    """
    return F.interpolate(_padded(network, value.float()), shape, mode="bilinear", align_corners=False)


def cells(
    network: Network, member: Bool[Tensor, "b h w"], shape: tuple[int, int]
) -> Bool[Tensor, "b {shape[0]} {shape[1]}"]:
    """Returns which cells of a feature map show at least one member.

    Args:
        network: the network that computed the feature map.
        member: pixels of the image.
        shape: (rows, columns) of the feature map.
    """
    return F.adaptive_max_pool2d(_padded(network, member[:, None].float()), shape)[:, 0] > 0


def _padded(network: Network, value: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d _ _"]:
    height, width = network.padded((value.shape[-2], value.shape[-1]))
    return F.pad(value, (0, width - value.shape[-1], 0, height - value.shape[-2]))
