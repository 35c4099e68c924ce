"""Feature maps at another scale, and predictions at two scales that are fused (ScaleMatch)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semiseg.models.build import Features, Network
from semiseg.models.heads import decoded_channels


def rescale_features(network: Network, features: Features, scale: float) -> Features:
    """Resizes the feature maps of images, as if the padded images had another size.

    The network takes that size: maps fit together in the decoder. `features.size` becomes that size, so nothing is cut
    off when they are classified, and the logits show the padded images.

    Args:
        network: the network that encoded the images.
        features: what it encoded.
        scale: the new size over the old one.
    """
    height, width = network.padded(features.size)
    rows, columns = size = network.padded((max(1, round(height * scale)), max(1, round(width * scale))))

    def resized(value: Float[Tensor, "b d y x"]) -> Float[Tensor, "b d _ _"]:
        scaled = (max(1, value.shape[-2] * rows // height), max(1, value.shape[-1] * columns // width))
        return F.interpolate(value, scaled, mode="bilinear", align_corners=False)

    return Features(features.each(resized).maps, features.rest, size)


class ScaleAttention(nn.Module):
    """Scores how much a prediction counts, pixel by pixel, from what the network decodes at one scale.

    It has a 1x1 convolution, ReLU, and another 1x1 convolution with one output. It is the same for all scales.

    Args:
        network: the network.
        channels: number of channels between the convolutions.
    """

    def __init__(self, network: Network, channels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Conv2d(decoded_channels(network), channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1)
        )

    def forward(self, decoded: Float[Tensor, "b d y x"]) -> Float[Tensor, "b 1 y x"]:
        """Computes the scores."""
        return self.score(decoded)


def fuse(
    logits: Float[Tensor, "b c h w"],
    other: Float[Tensor, "b c h w"],
    score: Float[Tensor, "b 1 h w"],
    other_score: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, "b c h w"]:
    """Returns the mean of the logits of two scales, in fp32. The weights of a pixel are the softmax of its two scores.

    Example:
        A score of log 3 counts three times as much as one of 0.

        >>> logits, other, score = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 8.0), torch.zeros(1, 1, 1, 1)
        >>> round(fuse(logits, other, score, score + torch.log(torch.tensor(3.0))).item(), 4)
        6.0
    """
    weight = torch.sigmoid(other_score.float() - score.float())  # softmax of two values: that of the second one
    return torch.lerp(logits.float(), other.float(), weight.expand_as(logits))
