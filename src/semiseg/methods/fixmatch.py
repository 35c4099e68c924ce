"""FixMatch: hard pseudo-labels above a threshold (Sohn et al., NeurIPS 2020), as segmentation uses it.

The class that a network predicts on the weak view is the label of the strong view, where the network is confident. This
is the standard unlabeled loss of iMAS (Eq. 4) and the baseline of UniMatch.

docs/methods/fixmatch.md says where each equation is. Deviations from the paper, which classifies images: labels are
pixels; strong views get CutMix, as in segmentation; the teacher may be a moving average (EMA) of the student; the
unlabeled weight may rise, as in Mean Teacher.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator

from semiseg import ramps
from semiseg.augment import intensity
from semiseg.augment.pairs import cutmix_view
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.losses import confident_cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import predict
from semiseg.types import ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of FixMatch. The defaults are those of its papers."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau
    unlabeled_weight: float = Field(1.0, ge=0)  # lambda_u
    teacher: Literal["student", "ema"] = "student"  # the network that makes pseudo-labels
    ema_decay: float | None = Field(None, ge=0, lt=1)  # of teacher: ema; 0.996 if not given
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of each strong view; 0 for no CutMix
    strong: Pool = intensity.Config()

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.teacher != "ema" and self.ema_decay is not None:
            raise ValueError("ema_decay belongs to teacher: ema; remove it or choose that")
        return self


class Method(SemiMethod, config=Config):
    """Consistency with hard pseudo-labels."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong,), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        self.teacher = make_teacher(self.student) if config.teacher == "ema" else None

    def observe(self, batch: SemiBatch, at: Progress) -> PseudoLabels:
        """Labels the strong views with what the teacher predicts on the weak views, in eval mode."""
        predicted = predict(self.teacher or self.student, batch.weak)
        return PseudoLabels(batch.strong[0], predicted.label, predicted.confidence, batch.valid)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and strong views."""
        cfg, share = self.config, part.share
        own: PseudoLabels = part.own
        mixed, _, _ = cutmix_view(own, part, at.generator("cutmix"), cfg.cutmix_probability)
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            logits = self.student(torch.cat([batch.image, mixed.image])).split([len(batch.image), len(mixed.image)])

        labeled = cfg.labeled_loss(logits[0], batch.label, part)
        each = confident_cross_entropy(logits[1], mixed.label, mixed.confidence, cfg.threshold, mixed.valid)
        unlabeled = each.mean() * share  # iMAS, Eq. 4
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * share,
            },
        )

    def after_step(self, at: Progress, observed: PseudoLabels) -> None:
        """Updates the teacher, if it is not the student."""
        if self.teacher is not None:
            decay = 0.996 if self.config.ema_decay is None else self.config.ema_decay
            ema_(self.teacher, self.student, ema_decay(at.step, decay))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher, if there is one, and the student."""
        student: dict[str, tuple[Network, ...]] = {"student": (self.student,)}
        return student if self.teacher is None else {"teacher": (self.teacher,)} | student
