"""Flaw maps: where a prediction is wrong, and a network that finds out (GCT, Ke et al., ECCV 2020)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from semiseg.losses import full_precision
from semiseg.types import IGNORE

_SMALLEST = 32  # px, so that the last feature map has 2 cells a side, which instance norm needs


class FlawDetector(nn.Module):
    """Looks at an image and a prediction, and says where the prediction is wrong.

    The authors' convolutions of stride 1 lose a row and a column each. Here they lose none, so images of 32 px suffice.
    Smaller ones are padded.

    Args:
        num_classes: number of channels of the prediction.
        channels: number of channels of the first layer; the last one has 8 times as many.
    """

    def __init__(self, num_classes: int, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3 + num_classes
        for factor, stride in ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
            border = nn.ZeroPad2d(1 if stride == 2 else (1, 2, 1, 2))
            conv = nn.Conv2d(last, factor * channels, 4, stride, bias=False)  # the norm would remove a bias
            last = factor * channels
            layers += [border, conv, IBNorm(last), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, 1, 4, stride=2, padding=1))

    def forward(self, image: Float[Tensor, "b 3 h w"], probability: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        """Computes a map that should be 0 where the prediction is right and 1 where it is wrong. It is not bounded."""
        height, width = image.shape[-2:]
        seen = torch.cat([image, probability], 1)
        seen = F.pad(seen, (0, max(0, _SMALLEST - width), 0, max(0, _SMALLEST - height)))
        flaws = F.interpolate(self.layers(seen).float(), seen.shape[-2:], mode="bilinear", align_corners=False)
        return flaws[:, 0, :height, :width]


class IBNorm(nn.Module):
    """Batch norm on the first half of the channels, instance norm without weights on the second.

    Batch norm keeps no running statistics: a detector only works in training.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batch = nn.BatchNorm2d((channels + 1) // 2, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(channels // 2)

    def forward(self, value: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalizes a feature map."""
        first = self.batch.num_features
        return torch.cat([self.batch(value[:, :first]), self.instance(value[:, first:])], 1)


@torch.no_grad()
def true_flaws(
    probability: Float[Tensor, "b c h w"], label: Int[Tensor, "b h w"], dilations: int = 1
) -> Float[Tensor, "b h w"]:
    """Computes where a prediction is wrong, as a smooth map in [0, 1]: what a detector should say.

    The difference of the prediction from the label is blurred, then `dilations` times (nu) dilated and blurred more,
    then stretched to [0, 1] in each image. Ignored pixels change nothing.

    The paper sums |one-hot - probability| over the classes and multiplies it by mu. Here the difference is 1 minus the
    probability of the label. That is half the sum, and stretching makes all factors equal.
    """
    counted = label != IGNORE
    side = min(label.shape[-2:])
    right = probability.gather(1, torch.where(counted, label, 0)[:, None])[:, 0]
    flaws = _blurred(1 - right, counted, side // 8)
    for _ in range(dilations):
        flaws = _blurred(F.max_pool2d(flaws, 3, stride=1, padding=1), counted, side // 4)
    low, high = _range(flaws, counted)
    return _stretched(flaws, low, high)


@torch.no_grad()
def clear_flaws(
    flaws: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"], smallest: float = 0.1
) -> Float[Tensor, "b h w"]:
    """Makes a detector's maps comparable: values below 0 become 0, a blur, stretched to [0, 1] in each image.

    A map whose values are all at most `smallest`, or all the same, becomes 0: it shows no flaw in the image.
    """
    flaws = _blurred(flaws.clamp(min=0), counted, min(flaws.shape[-2:]) // 16)
    low, high = _range(flaws, counted)
    shown = (high > smallest) & (high - low > 1e-4)  # a blurred constant is constant up to rounding
    return torch.where(shown, _stretched(flaws, low, high), 0.0)


def _range(
    flaws: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"]
) -> tuple[Float[Tensor, "b 1 1"], Float[Tensor, "b 1 1"]]:
    """Returns the smallest and the largest value of each image, over its counted pixels; 0 and 0 if it has none."""
    high = torch.where(counted, flaws, 0.0).amax((1, 2), keepdim=True)
    low = torch.where(counted, flaws, torch.inf).amin((1, 2), keepdim=True)
    return torch.minimum(low, high), high


def _stretched(
    flaws: Float[Tensor, "b h w"], low: Float[Tensor, "b 1 1"], high: Float[Tensor, "b 1 1"]
) -> Float[Tensor, "b h w"]:
    return (flaws - low) / (high - low + 1e-9)


def _blurred(maps: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"], size: int) -> Float[Tensor, "b h w"]:
    """Blurs maps with a Gaussian of `size` px (one more if it is even), reflected at the border, in fp32.

    It is a weighted mean over the counted pixels around each pixel; 0 if there are none.
    """
    size += 1 - size % 2
    radius, sigma = size // 2, 0.3 * ((size - 1) / 2 - 1) + 0.8
    distance = torch.arange(-radius, radius + 1, device=maps.device)
    weight = torch.softmax(-(distance**2) / (2 * sigma**2), 0)  # exp(...) / its sum
    both = torch.stack([torch.where(counted, maps, 0.0), counted.float()], 1).flatten(0, 1)[:, None]
    both = F.pad(both, (radius, radius, radius, radius), mode="reflect")
    with full_precision(maps.device):
        # A Gaussian of two dimensions is one in each dimension, at a small part of the cost.
        both = F.conv2d(F.conv2d(both, weight[None, None, None]), weight[None, None, :, None])
    total, weights = both.reshape(len(maps), 2, *maps.shape[1:]).unbind(1)
    return total / weights.clamp(min=1e-9)
