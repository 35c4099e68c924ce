"""CutMix-Seg: consistency of a mixed image with the mixed prediction of a teacher (French et al., BMVC 2020).

Half of another unlabeled image is pasted into an image. The probabilities of the student on the mixed image follow
those of an EMA teacher on the two images, mixed in the same way. The weight of the loss is the share of pixels of which
the teacher is confident.

docs/methods/cutmix_seg.md says where each part is. Deviations from the authors' code: the partner is another image of
the same batch; padded pixels are not counted; the student's batch norm is not frozen; the decay of the average rises at
first.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment.cutmix import paste, random_partners, sample_boxes_of_area
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import counted_share
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import fixed_logits, prediction
from semiseg.types import ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of CutMix-Seg. The defaults are those of the authors' code."""

    threshold: float = Field(0.97, ge=0, le=1)  # a pixel with at least this confidence is confident; 0: all are
    confidence: Literal["scalar", "pixel"] | None = None  # with a threshold; scalar if not given
    unlabeled_weight: float = Field(1.0, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    strong: Pool | None = None  # operations on the images that the student sees; None: weak views

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.threshold == 0 and self.confidence is not None:
            raise ValueError("confidence does nothing with threshold 0; remove it or set a threshold")
        return self


@dataclass(frozen=True)
class Observed(PseudoLabels):
    """The view that the student gets of each image, and what the teacher predicts on the weak view."""

    probability: Float[Tensor, "u c h w"]


class Method(SemiMethod, config=Config):
    """Student and EMA teacher. The student sees mixed images, the teacher does not."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        strong = () if config.strong is None else (config.strong,)
        self.views = Views(strong=strong, labeled=config.labeled, min_unlabeled=2)
        self.student = build()
        self.teacher = make_teacher(self.student)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Predicts the weak views with the teacher, in eval mode."""
        logits = fixed_logits(self.teacher, batch.weak)
        predicted = prediction(logits)
        image = batch.weak if self.config.strong is None else batch.strong[0]
        return Observed(image, predicted.label, predicted.confidence, batch.valid, logits.float().softmax(1))

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled and mixed images."""
        cfg, everyone, own = self.config, part.observed, part.own
        partner, box = self._draw_cutmix(everyone, at)
        patch = everyone[partner[part.rows]]
        mixed = own.pasted(patch, box[part.rows])
        target = paste(own.probability, patch.probability, box[part.rows])
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            on_labeled, on_mixed = self.student(torch.cat([batch.image, mixed.image])).split(len(batch.image))
        labeled = cfg.labeled_loss(on_labeled, batch.label, part)

        # of the whole mixed batch
        valid = paste(everyone.valid, everyone.valid[partner], box)
        confidence = paste(everyone.confidence, everyone.confidence[partner], box)
        confident, valid_px = valid & (confidence >= cfg.threshold), valid.sum()
        if cfg.confidence == "pixel":
            weight = confident[part.rows].float()
        else:
            weight = counted_share(confident.float(), valid, valid_px)
        distance = (on_mixed.float().softmax(1) - target).square().sum(1)
        unlabeled = counted_share(distance * weight, mixed.valid, valid_px)
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "confident": counted_share(confident[part.rows].float(), mixed.valid, valid_px),
            },
        )

    def _draw_cutmix(self, everyone: Observed, at: Progress) -> tuple[Int[Tensor, " u"], Bool[Tensor, "u h w"]]:
        """Draws for the whole batch the partner of each image, and a box that covers half of it."""
        generator, device = at.generator("cutmix"), everyone.valid.device
        partner = random_partners(len(everyone.valid), generator).to(device, non_blocking=True)
        box = sample_boxes_of_area(*everyone.valid.shape, generator=generator, area=(0.5, 0.5), num_boxes=1)
        return partner, box.to(device, non_blocking=True)

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Updates the teacher."""
        ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher, whose mIoU the authors report, and the student."""
        return {"teacher": (self.teacher,), "student": (self.student,)}
