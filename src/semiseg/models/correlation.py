"""Correlation of the cells of a feature map, and labels that spread over correlated regions (CorrMatch)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from semiseg.models.build import Network
from semiseg.models.confidence import class_sums
from semiseg.models.heads import encoded_channels, has_batch_norm


class CorrelationHead(nn.Module):
    """Computes how much each cell of the encoder's last map has to do with each other cell of the image.

    It has a block of 3x3 convolution, batch norm and ReLU, and two 1x1 convolutions, for queries and keys. It has no
    batch norm if the network has none.

    Args:
        network: the network.
        num_classes: number of values of a query and of a key.
        channels: number of channels after the block.
    """

    def __init__(self, network: Network, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(encoded_channels(network), channels, 3, padding=1)]
        layers += [nn.BatchNorm2d(channels)] if has_batch_norm(network) else []
        self.project = nn.Sequential(*layers, nn.ReLU())
        self.query, self.key = nn.Conv2d(channels, num_classes, 1), nn.Conv2d(channels, num_classes, 1)

    def forward(self, value: Float[Tensor, "b e y x"], counted: Bool[Tensor, "b y x"]) -> Float[Tensor, "b n n"]:
        """Computes the correlation of cell i (rows) with cell j (columns), in fp32. Each row has the sum 1.

        Args:
            value: the encoder's last map.
            counted: cells that take part; what others show changes nothing, and nothing correlates with them.
        """
        projected = self.project(value * counted[:, None])
        query, key = self.query(projected).flatten(2), self.key(projected).flatten(2)
        similarity = (query.mT @ key).float() / math.sqrt(query.shape[1])
        lowest = torch.finfo(similarity.dtype).min
        return similarity.masked_fill(~counted.flatten(1)[:, None], lowest).softmax(-1)


def spread(
    correlation: Float[Tensor, "b n n"], logits: Float[Tensor, "b c y x"], counted: Bool[Tensor, "b y x"]
) -> Float[Tensor, "b c y x"]:
    """Distributes the logits of each counted cell over all cells, by its row of the correlation.

    Example:
        The first of two cells gives a quarter of its logit to the second one, which keeps its own.

        >>> correlation = torch.tensor([[[0.75, 0.25], [0.0, 1.0]]])
        >>> spread(correlation, torch.tensor([[[[8.0, 1.0]]]]), torch.tensor([[[True, True]]]))
        tensor([[[[6., 3.]]]])
    """
    return ((logits * counted[:, None]).flatten(2) @ correlation).view_as(logits)


def regions(
    correlation: Float[Tensor, "k h w"], inside: Bool[Tensor, "h w"], exists: Bool[Tensor, " k"]
) -> Bool[Tensor, "k h w"]:
    """Returns the pixels that correlate with each of k cells: more than halfway from the smallest to the largest value.

    Args:
        correlation: of each cell with the pixels of its image.
        inside: pixels of the image that count; all others belong to no region.
        exists: cells that count; the regions of others are empty.

    Example:
        Of the values inside, 0.1 to 0.5, only the last one is above 0.3.

        >>> inside, exists = torch.tensor([[True, True, True, False]]), torch.tensor([True])
        >>> regions(torch.tensor([[[0.1, 0.25, 0.5, 0.9]]]), inside, exists)
        tensor([[[False, False,  True, False]]])
    """
    lowest = torch.where(inside, correlation, torch.inf).amin((1, 2), keepdim=True)
    highest = torch.where(inside, correlation, -torch.inf).amax((1, 2), keepdim=True)
    return (correlation - lowest > (highest - lowest) / 2) & inside & exists[:, None, None]


def propagate(
    region: Bool[Tensor, "k h w"],
    label: Int[Tensor, "h w"],
    confident: Bool[Tensor, "h w"],
    threshold: Float[Tensor, ""],
    num_classes: int,
) -> tuple[Int[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Gives all pixels of a region the label of its confident pixels, if they are many and agree.

    The share of confident pixels of the region must be at least `threshold`, and the share of the most frequent label
    among these must be larger than `threshold`. Where several such regions overlap, the last one counts.

    Args:
        region: pixels of each region of an image.
        label: pseudo-labels.
        confident: pixels whose pseudo-label is confident.
        threshold: for both shares.
        num_classes: number of classes.

    Returns:
        The labels, and the pixels that have one: confident pixels, and those of such regions.
    """
    member = (region & confident).float()
    votes = class_sums(member, label.expand(region.shape), num_classes)
    voters, most = votes.sum(1), votes.max(1)
    sure = voters >= threshold * region.float().sum((1, 2))
    spreads = (voters > 0) & sure & (most.values > threshold * voters)
    number = (torch.arange(len(region), device=region.device, dtype=torch.int32) + 1) * spreads  # 0: it does not spread
    last = (region * number[:, None, None]).amax(0)
    return torch.where(last > 0, most.indices[(last - 1).clamp(min=0)], label), confident | (last > 0)
