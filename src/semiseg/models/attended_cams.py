"""Self-attention Grad-CAM: where an image-level classifier sees its classes, spread over similar places (PseudoSeg)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semiseg.losses import full_precision
from semiseg.models.build import Features, Network
from semiseg.models.cells import seen_cells
from semiseg.models.heads import has_batch_norm
from semiseg.models.predict import evaluating


@dataclass(frozen=True)
class Seen:
    """What the classifier sees in images.

    Attributes:
        presence: a logit for each of its classes: is it in the image?
        maps: the class activation maps, not negative, before they are scaled.
        similar: what the similarity of places is computed from. It gets no gradient.
        valid: which places show anything of the image.
    """

    presence: Float[Tensor, "b f"]
    maps: Float[Tensor, "b f h w"]
    similar: Float[Tensor, "b e h w"]
    valid: Bool[Tensor, "b h w"]


class AttendedCams(nn.Module):
    """An image-level classifier on the last feature map of a network, and self-attention that refines its maps.

    The classifier is a linear layer on the mean of the map. For it the gradient of Grad-CAM is the layer's weight, so
    the maps need no backward pass: they are what the layer makes of each place, without bias and not below 0.

    Args:
        network: the network whose encoder gives the feature maps.
        num_present: number of the classifier's classes: those that an image may lack, without the background.
        num_classes: number of classes of the logits.
        channels: of keys and queries.
    """

    def __init__(self, network: Network, num_present: int, num_classes: int, channels: int) -> None:
        super().__init__()
        with torch.no_grad(), evaluating(network):
            widths = [value.shape[1] for value in network.encode(torch.zeros(1, 3, 1, 1)).maps[-2:]]
        self.classifier = nn.Linear(widths[-1], num_present)
        self.key = nn.Conv2d(sum(widths), channels, 1, bias=False)
        self.query = nn.Conv2d(sum(widths), channels, 1, bias=False)
        norm = has_batch_norm(network)
        score = nn.Conv2d(num_present + 1, num_classes, 1, bias=not norm)
        self.score = nn.Sequential(score, *([nn.BatchNorm2d(num_classes)] if norm else []))

    def see(self, features: Features, valid: Bool[Tensor, "b h w"], padded: tuple[int, int]) -> Seen:
        """Classifies images and computes their class activation maps.

        Args:
            features: of the images.
            valid: which pixels of the images count. The classifier's mean is over places that show any of them.
            padded: (height, width) of the images that the feature maps show, px.
        """
        last = features.maps[-1].float()
        height, width = last.shape[-2:]
        counted = seen_cells(valid, padded, (height, width))
        weight = self.classifier.weight.float()
        places = torch.where(counted[:, None], last, 0.0)
        mean = places.sum((2, 3)) / counted.sum((1, 2)).clamp(min=1)[:, None]
        columns = [value.detach() for value in features.maps[-2:]]
        resized = [F.interpolate(one, (height, width), mode="bilinear", align_corners=False) for one in columns]
        with full_precision(last.device):
            presence = mean @ weight.mT + self.classifier.bias.float()
            maps = torch.einsum("fd,bdhw->bfhw", weight, places).relu()
        return Seen(presence, maps, torch.cat(resized, 1), counted)

    def forward(self, seen: Seen, present: Bool[Tensor, "b f"]) -> Float[Tensor, "b c h w"]:
        """Computes logits at the scale of the feature map. They train the attention alone.

        Args:
            seen: what the classifier sees.
            present: which of its classes are in the image; the maps of the others are 0.
        """
        maps = torch.where(present[:, :, None, None], seen.maps, 0.0).detach()
        maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        key, query = self.key(seen.similar).float(), self.query(seen.similar).float()
        with full_precision(maps.device):
            alike = query.flatten(2).mT @ key.flatten(2) / math.sqrt(key.shape[1])
            alike = alike.masked_fill(~seen.valid.flatten(1)[:, None], torch.finfo(alike.dtype).min)
            spread = maps.flatten(2) @ alike.softmax(2).mT
        score = spread.view_as(maps) + maps
        background = 2 - score.amax(1, keepdim=True)  # a score is in [0, 2]
        kind = next(self.score.parameters()).dtype  # fp32, but for a module in double precision
        return self.score(torch.cat([background, score], 1).to(kind)).float()
