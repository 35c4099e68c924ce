"""CPS: cross pseudo supervision (Chen et al., CVPR 2021).

Two networks with initializations of their own learn from the labels and from each other: the hard prediction of one is
the target of the other, on labeled and on unlabeled images, without threshold.

docs/methods/cps.md says more. Deviations: ignored and padded pixels are not counted; the crossed
loss is one mean over labeled and unlabeled pixels, as in the authors' code, where the paper adds two means; CutMix
pastes from another image of the same batch, where the authors load a second unlabeled batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment.cutmix import paste, random_partners, sample_boxes_of_area
from semiseg.augment.views import Views
from semiseg.losses import cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.norms import batch_norm
from semiseg.models.predict import most_likely, predict
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of CPS. The defaults are those of the paper on PASCAL VOC."""

    unlabeled_weight: float = Field(1.5, ge=0)  # lambda; 6 on Cityscapes. The authors' code with CutMix: 1 and 5
    cutmix: bool = False  # the networks learn from each other on mixed unlabeled images, and not on labeled ones


@dataclass(frozen=True)
class Crossed:
    """Images with the hard predictions of both networks."""

    image: Float[Tensor, "u 3 h w"]
    first: Int[Tensor, "u h w"]  # class that the first network predicts: the target of the second
    second: Int[Tensor, "u h w"]
    counted: Bool[Tensor, "u h w"]  # False where the image was padded or is not labeled


class Method(SemiMethod, config=Config):
    """Two networks that teach each other."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(labeled=config.labeled, min_unlabeled=2 if config.cutmix else 1)
        self.first, self.second = build(), build()

    def observe(self, batch: SemiBatch, at: Progress) -> Crossed | None:
        """Predicts the unlabeled images, if CutMix is to mix them. Batch norm is in train mode, as in the authors'."""
        if not self.config.cutmix:
            return None
        with batch_norm(self, self.config.batch_norm, labeled=0):
            first, second = (predict(one, batch.weak, batch_statistics=True).label for one in (self.first, self.second))
        return Crossed(batch.weak, first, second, batch.valid)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses of both networks, in one pass of each over all images.

        Without CutMix this pass also makes the targets.
        """
        cfg, num_labeled = self.config, len(batch.image)
        if cfg.cutmix:
            crossed, px = self._mix(part, at)
            with batch_norm(self, cfg.batch_norm, num_labeled):
                images = torch.cat([batch.image, crossed.image])
                first, second = self.first(images), self.second(images)
            unlabeled = crossed_loss(first[num_labeled:], second[num_labeled:], crossed, px)
        else:
            images = torch.cat([batch.image, batch.weak])
            with batch_norm(self, cfg.batch_norm, num_labeled):
                first, second = self.first(images), self.second(images)
            counted = torch.cat([batch.label != IGNORE, batch.valid])
            crossed = Crossed(images, most_likely(first.detach()), most_likely(second.detach()), counted)
            unlabeled = crossed_loss(first, second, crossed, part.labeled_px + part.valid_px)
        labeled = cfg.labeled_loss(first[:num_labeled], batch.label, part)
        labeled = labeled + cfg.labeled_loss(second[:num_labeled], batch.label, part)
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={"labeled": labeled.detach(), "unlabeled": unlabeled.detach()},
        )

    def _mix(self, part: Part, at: Progress) -> tuple[Crossed, Int[Tensor, ""]]:
        """Pastes partners into the part's images. Also counts the valid pixels of the whole mixed batch."""
        everyone: Crossed = part.observed
        device, generator = everyone.image.device, at.generator("cutmix")
        partner = random_partners(len(everyone.image), generator).to(device, non_blocking=True)
        boxes = sample_boxes_of_area(*everyone.counted.shape, generator=generator).to(device, non_blocking=True)
        mixed = {
            name: paste(value[part.rows], value[partner[part.rows]], boxes[part.rows])
            for name, value in vars(everyone).items()
        }
        return Crossed(**mixed), paste(everyone.counted, everyone.counted[partner], boxes).sum()

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns both networks. The authors evaluate the first one."""
        return {"first": (self.first,), "second": (self.second,)}


def crossed_loss(
    first: Float[Tensor, "b c h w"], second: Float[Tensor, "b c h w"], crossed: Crossed, counted_px: Int[Tensor, ""]
) -> Float[Tensor, ""]:
    """Computes the cross-entropy of each network's logits to the predictions of the other one (L_cps).

    Args:
        first: logits of the first network.
        second: logits of the second network.
        crossed: the predictions of both.
        counted_px: number of counted pixels of the whole batch.
    """
    to_first, to_second = (torch.where(crossed.counted, label, IGNORE) for label in (crossed.second, crossed.first))
    return cross_entropy(first, to_first, counted_px) + cross_entropy(second, to_second, counted_px)
