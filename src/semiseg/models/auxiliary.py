"""Light decoders beside a network's own: they predict from the last feature map of its encoder (CCT)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semiseg.models.build import Network
from semiseg.models.predict import evaluating


class AuxiliaryDecoder(nn.Module):
    """A 1x1 convolution to classes, then blocks that double the scale (Ouali et al., CVPR 2020).

    A block is a 1x1 convolution to four times the channels, ReLU, and a shuffle of these channels into 2x2 pixels. At
    first the four pixels have the same weights (ICNR) against a checkerboard, and biases of their own. All of them come
    from torch's global generator.

    Args:
        channels: number of channels of the feature map.
        num_classes: number of classes.
        scale: side of the image over that of the feature map. What is left of it after doublings is interpolated.
    """

    def __init__(self, channels: int, num_classes: int, scale: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, num_classes, 1, bias=False)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        layers: list[nn.Module] = [first]
        for _ in range(int(math.log2(scale))):
            layers += [_equal_pixels(num_classes), nn.ReLU(), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, value: Float[Tensor, "b d _ _"], size: tuple[int, int], padded: tuple[int, int]
    ) -> Float[Tensor, "b c {size[0]} {size[1]}"]:
        """Computes logits at the size of the image.

        Args:
            value: the feature map.
            size: (height, width) of the image, px.
            padded: (height, width) that the feature map shows, px.
        """
        logits = self.layers(value)
        if logits.shape[-2:] != padded:
            logits = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
        return logits[..., : size[0], : size[1]]


def _equal_pixels(channels: int) -> nn.Conv2d:
    """Makes a 1x1 convolution to four times the channels. Each four that become 2x2 pixels have the same weights.

    Their biases differ. With equal ones, or 0, a ReLU that is 0 at all places is so for all four: with three classes
    most decoders would begin with a class that they never predict, and whose weights get no gradient.
    """
    conv = nn.Conv2d(channels, 4 * channels, 1)
    one = nn.init.kaiming_normal_(torch.empty(channels, channels, 1, 1))
    conv.load_state_dict({"weight": one.repeat_interleave(4, 0), "bias": conv.bias})
    return conv


@torch.no_grad()
def last_map(network: Network) -> tuple[int, int]:
    """Returns the number of channels of the encoder's last map, and the side of an image over that of the map."""
    with evaluating(network):
        found = network.encode(torch.zeros(1, 3, 1, 1)).maps[-1]
    return found.shape[1], network.padded((1, 1))[0] // found.shape[2]
