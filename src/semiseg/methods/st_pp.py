"""ST++: self-training in stages, reliable pseudo-labels first (Yang et al., CVPR 2022).

A network that was trained on the labels predicts the unlabeled images. A new one learns the labels and these
pseudo-labels, on strongly augmented images; then it predicts those that the first one was unsure about, and a third one
learns them all. This method is the training of a later stage; `semiseg self-train` runs the stages.

docs/methods/st_pp.md says where each part is. Deviation from the authors' code: cut-out shows the mean color, not
noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from semiseg.augment import jitter
from semiseg.augment.cutmix import sample_some_boxes
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import cross_entropy
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(MethodConfig):
    """Settings of ST++. The defaults are the authors'."""

    strong: Pool = jitter.Config()  # of images with pseudo-labels
    cutout: float = Field(0.5, ge=0, le=1)  # probability that such an image loses a box


@dataclass(frozen=True)
class Observed:
    """What a pass must know about the whole batch: to count its pixels."""

    target: Int[Tensor, "u h w"]  # stored pseudo-labels, IGNORE where padded


class Method(SemiMethod, config=Config):
    """Supervised training in which half of the images have pseudo-labels and are augmented strongly."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(strong=(config.strong,), labeled=config.labeled, pseudo=True)
        self.student = build()

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Returns the pseudo-labels."""
        assert batch.pseudo is not None, "the views ask for pseudo-labels"
        return Observed(torch.where(batch.valid, batch.pseudo, IGNORE))

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the mean cross-entropy over all labeled and pseudo-labeled pixels, outside of cut-outs.

        It is one mean over both kinds of images, so a pixel of either counts alike.
        """
        everyone: Tensor = part.observed.target
        cutout = self.config.cutout
        box = sample_some_boxes(*everyone.shape, generator=at.generator("cut-out"), probability=cutout)
        box = box.to(everyone.device, non_blocking=True)
        target = torch.where(box, IGNORE, everyone)
        labeled_px, pseudo_px = part.labeled_px, (target != IGNORE).sum()

        image = torch.where(box[part.rows, None], 0.0, batch.strong[0])  # 0: the mean color
        logits = self.student(torch.cat([batch.image, image])).split([len(batch.image), len(image)])
        labeled = self.config.labeled_loss(logits[0], batch.label, part)
        pseudo = cross_entropy(logits[1], target[part.rows], pseudo_px)
        share = labeled_px / (labeled_px + pseudo_px).clamp(min=1)
        return Losses(
            total=share * labeled + (1 - share) * pseudo,
            scalars={"labeled": labeled.detach(), "unlabeled": pseudo.detach()},
        )

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the network."""
        return {"student": (self.student,)}
