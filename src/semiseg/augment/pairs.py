"""Strong views of each unlabeled image with CutMix: one, or two with boxes of their own (UniMatch and others)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semiseg.augment.cutmix import paste, random_partners, sample_some_boxes
from semiseg.types import Part, PseudoLabels


@dataclass(frozen=True)
class StrongPairs(PseudoLabels):
    """Two strong views of each image, with the pseudo-labels of its weak view. `image` is the first strong view."""

    second: Float[Tensor, "u 3 h w"]

    def views(self) -> tuple[PseudoLabels, PseudoLabels]:
        """Returns each strong view with the pseudo-labels."""
        labels = (self.label, self.confidence, self.valid)
        return PseudoLabels(self.image, *labels), PseudoLabels(self.second, *labels)


def cutmix_pairs(
    own: StrongPairs,
    part: Part,
    generator: torch.Generator,
    probability: float,
    partner: Int[Tensor, " n"] | None = None,
    views: int = 2,
) -> tuple[list[PseudoLabels], list[Int[Tensor, ""]]]:
    """Pastes boxes of another image's strong views into the strong views, with its pseudo-labels.

    Both views of an image have the same partner, and boxes of their own (`sample_some_boxes`).

    Args:
        own: the views of a part of the batch. Their labels may be others than those that partners get.
        part: the part; `StrongPairs` were observed, for the partners.
        generator: a CPU generator; it draws for the whole batch.
        probability: that a view gets a box.
        partner: the partner of each image of the whole batch. None: a random other image.
        views: number of views that are needed; with 1 the first one.

    Returns:
        The views of the part, and for each its number of valid pixels in the whole batch.
    """
    everyone: StrongPairs = part.observed
    device = own.label.device
    if partner is None:
        partner = random_partners(len(everyone.label), generator).to(device, non_blocking=True)
    mixed, valid_px = [], []
    patches = everyone[partner[part.rows]].views()
    for view, patch in zip(own.views()[:views], patches[:views], strict=True):
        box = sample_some_boxes(*everyone.valid.shape, generator=generator, probability=probability)
        box = box.to(device, non_blocking=True)
        mixed.append(view.pasted(patch, box[part.rows]))
        valid_px.append(paste(everyone.valid, everyone.valid[partner], box).sum())
    return mixed, valid_px


def cutmix_view(
    own: PseudoLabels, part: Part, generator: torch.Generator, probability: float
) -> tuple[PseudoLabels, Bool[Tensor, "u h w"], Int[Tensor, ""]]:
    """Pastes a box of another image's view into some of the views, with its pseudo-labels.

    Args:
        own: the views of a part of the batch. Their labels may be others than those that partners get.
        part: the part; `PseudoLabels` were observed, for the partners.
        generator: a CPU generator; it draws for the whole batch.
        probability: that a view gets a box.

    Returns:
        The views of the part, its boxes, and the number of valid pixels of all views of the whole batch.
    """
    everyone: PseudoLabels = part.observed
    partner = random_partners(len(everyone.label), generator).to(own.label.device, non_blocking=True)
    box = sample_some_boxes(*everyone.valid.shape, generator=generator, probability=probability)
    box = box.to(own.label.device, non_blocking=True)
    valid_px = paste(everyone.valid, everyone.valid[partner], box).sum()
    return own.pasted(everyone[partner[part.rows]], box[part.rows]), box[part.rows], valid_px
