"""Mean Teacher: the student's probabilities follow those of an EMA teacher (Tarvainen and Valpola, NeurIPS 2017).

Student and teacher get the same images, labeled and unlabeled. The unlabeled loss is the squared difference of their
probabilities at each pixel: no pseudo-labels, no threshold.

docs/methods/mean_teacher.md says where each part is. The paper classifies images; the defaults are those of the
authors of CPS, whose run is the row MT of iMAS's tables. Deviations from their code: ignored and padded pixels are not
counted; labeled and unlabeled images are one pass; the decay of the average rises at first.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import counted_share
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.heads import has_batch_norm
from semiseg.models.norms import batch_norm
from semiseg.models.predict import fixed_logits
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of Mean Teacher. The defaults are those of the authors of CPS on PASCAL VOC."""

    unlabeled_weight: float = Field(100 / 21, ge=0)  # theirs is 100, times the mean over VOC's 21 classes
    ema_decay: float = Field(0.99, ge=0, lt=1)
    consistency_on: Literal["all", "unlabeled"] = "all"  # images whose predictions are compared
    compared: Literal["probabilities", "logits"] = "probabilities"
    strong: Pool | None = None  # operations on the unlabeled images that the student sees; None: weak views
    teacher_view: Literal["weak", "strong"] | None = None  # only with strong; weak if not given
    teacher_statistics: Literal["own", "averaged"] = "own"  # of batch norm: the teacher's own images, or EMA

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.strong is None and self.teacher_view is not None:
            raise ValueError("teacher_view does nothing without strong operations; remove it or set strong to a pool")
        if self.batch_norm == "apart" and self.teacher_statistics == "own" and self.consistency_on == "unlabeled":
            raise ValueError(
                "batch_norm: apart needs labeled images for the teacher's own statistics; use consistency_on: all, or "
                "teacher_statistics: averaged"
            )
        return self


class Method(SemiMethod, config=Config):
    """Student and EMA teacher, compared pixel by pixel."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        views = 2 if config.teacher_view == "strong" else 1  # each with draws of its own
        self.views = Views(strong=() if config.strong is None else (config.strong,) * views, labeled=config.labeled)
        self.student = build()
        self.teacher = make_teacher(self.student)
        self.own_statistics = config.teacher_statistics == "own" and has_batch_norm(self.teacher)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one pass of student and teacher each."""
        cfg, num_labeled = self.config, len(batch.image)
        views = (batch.weak, *batch.strong)
        seen = views[0 if cfg.strong is None else 1]
        by_teacher = views[2 if cfg.teacher_view == "strong" else 0]
        with batch_norm(self.student, cfg.batch_norm, num_labeled):
            logits = self.student(torch.cat([batch.image, seen]))
        labeled = cfg.labeled_loss(logits[:num_labeled], batch.label, part)

        counted, counted_px = batch.valid, part.valid_px
        if cfg.consistency_on == "all":
            by_teacher = torch.cat([batch.image, by_teacher])
            counted = torch.cat([batch.label != IGNORE, counted])
            counted_px = counted_px + part.labeled_px
        with batch_norm(self.teacher, cfg.batch_norm, num_labeled if cfg.consistency_on == "all" else 0):
            target = self._compared(fixed_logits(self.teacher, by_teacher, self.own_statistics))
        distance = (self._compared(logits[-len(target) :]) - target).square().sum(1)
        unlabeled = counted_share(distance, counted, counted_px)
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={"labeled": labeled.detach(), "unlabeled": unlabeled.detach()},
        )

    def _compared(self, logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return logits.float() if self.config.compared == "logits" else logits.float().softmax(1)

    def after_step(self, at: Progress, observed: None) -> None:
        """Updates the teacher. Batch norm with statistics of its own keeps them."""
        ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay), buffers=not self.own_statistics)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the student, which the authors of CPS evaluate, and the teacher, which those of the paper do."""
        return {"student": (self.student,), "teacher": (self.teacher,)}
