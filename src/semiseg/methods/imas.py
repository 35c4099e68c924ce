"""iMAS: instance-specific and model-adaptive supervision (Zhao et al., CVPR 2023).

An unlabeled image is hard if the student and an EMA teacher disagree about it. Hard images are augmented less, are
paired with easy ones in CutMix, and weigh less in the loss.

docs/methods/imas.md says where each equation is. Deviations from the printed paper: Eq. 8 has hardness and easiness
exchanged, as the text and the authors' code have it; CutMix fires if a uniform draw exceeds the mean hardness; padded
pixels are not counted; a step has the same shape whether or not CutMix fires (`Method.forward`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment import intensity
from semiseg.augment.blend import blend
from semiseg.augment.cutmix import BOXES, hard_easy_partners, random_partners, triggered
from semiseg.augment.pools import Pool
from semiseg.augment.scales import rescale
from semiseg.augment.views import Views
from semiseg.errors import UserError
from semiseg.hardness import class_to_ignore, confident_ratio, easiness, subsample
from semiseg.losses import confident_cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import predict
from semiseg.types import ClassTable, Losses, Part, Prediction, Progress, PseudoLabels, SemiBatch

Adaptive = Literal["adaptive", "standard"]


class Config(SemiConfig):
    """Settings of iMAS. The defaults are those of the paper on PASCAL VOC, as its text means them."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau, Eq. 4-6, 11; the paper uses 0.7 on Cityscapes
    unlabeled_weight: float = Field(3.0, ge=0)  # lambda_u, Eq. 1
    ema_decay: float = Field(0.996, ge=0, lt=1)  # alpha, Eq. 2
    strong: Pool = intensity.Config()  # Table 1

    # Cheaper hardness, not in the paper; docs/methods/imas.md compares them.
    hardness_every: int = Field(1, ge=1)  # the student predicts weak views (Eq. 5) in every n-th step
    hardness_scale: float = Field(1.0, gt=0, le=1)  # size of the weak view that the student predicts

    # The ablations of Table 5 and Figure 2.
    loss: Adaptive = "adaptive"  # weight of an image's loss: its easiness (Eq. 11); standard: 1 (Eq. 4)
    intensity: Adaptive = "adaptive"  # strong views of hard images are softened (Eq. 8); standard: none is
    cutmix: Adaptive = "adaptive"  # hard-easy pairs, fired by mean easiness (Eq. 9, 10); standard: random pairs
    cutmix_probability: float | None = Field(None, ge=0, le=1)  # of standard CutMix; 0.5 if not given, 0 for none

    # What the paper leaves open, or the authors' code does differently (D-numbers: docs/methods/imas.md).
    ignore_class: int | Literal["background", "none"] = "background"  # this class has no weight in wIoU (D12)
    all_ignored: Literal["count_every_class", "hardest"] = "count_every_class"  # for images with no other class (D13)
    ignore_padding: bool = True  # padded pixels are not counted, neither in hardness nor in the loss (D20)
    when_unmixed: Literal["full", "half"] = "full"  # weight of the intensity term if CutMix did not fire (D7)
    boxes: Literal["each", "official"] = "each"  # each image has its own box; official: the authors' sampling (D10)
    extra_weak_forward: bool = False  # pass the weak view through the student in train mode, for its batch norm (D17)
    copy_steps: int = Field(0, ge=0)  # steps during which the teacher is a copy of the student (D21)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.cutmix == "adaptive" and self.cutmix_probability is not None:
            raise ValueError("cutmix_probability belongs to cutmix: standard; adaptive CutMix fires by mean easiness")
        if self.extra_weak_forward and self.batch_norm == "apart":
            raise ValueError("extra_weak_forward belongs to batch_norm: joint; apart needs no other view")
        return self


@dataclass(frozen=True)
class Observed(PseudoLabels):
    """What iMAS knows about weak views before the first gradient: pseudo-labels and easiness."""

    easy: Float[Tensor, " u"]  # 1 - gamma, Eq. 7


class Method(SemiMethod, config=Config):
    """Algorithm 1 of the paper."""

    agreement: Tensor  # exact easiness over that of the teacher alone, in the last step with a student's prediction

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config, self.num_classes = config, len(classes)
        self.views = Views(strong=(config.strong,), labeled=config.labeled)
        self.student = build()
        self.teacher = make_teacher(self.student)
        self.ignore_class = class_to_ignore(config.ignore_class, classes)
        if config.hardness_every > 1:
            self.register_buffer("agreement", torch.ones(()))
        if self.ignore_class is None and config.all_ignored == "hardest":
            raise UserError("method.all_ignored: hardest needs a class to ignore; name one in method.ignore_class")

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Computes pseudo-labels and easiness of each unlabeled image (lines 3 to 5 of Algorithm 1).

        With `hardness_every` the student predicts in some steps only. In the others the teacher's prediction replaces
        the student's. The easiness is then the teacher's confident ratio (0 where all_ignored says so), and it is
        multiplied by `agreement`.
        """
        cfg = self.config
        valid = batch.valid if cfg.ignore_padding else torch.ones_like(batch.valid)
        teacher = predict(self.teacher, batch.weak)  # Eq. 6
        if at.step % cfg.hardness_every == 0:
            student = predict(self.student, rescale(batch.weak, cfg.hardness_scale))  # Eq. 5
            easy = self._easiness(student, *subsample(teacher, valid, student.label.shape[-2:]))  # 1 - Eq. 7
        else:
            easy = self._easiness(teacher, teacher, valid) * self.agreement
        return Observed(batch.weak, teacher.label, teacher.confidence, valid, easy)

    def _easiness(self, student: Prediction, teacher: Prediction, valid: Bool[Tensor, "u h w"]) -> Float[Tensor, " u"]:
        cfg = self.config
        return easiness(student, teacher, cfg.threshold, valid, self.ignore_class, cfg.all_ignored == "hardest")

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses of Algorithm 1, in one student pass over all views that need a gradient.

        If CutMix does not fire, the second unlabeled view repeats the first: the mean of the two equal terms is the
        intensity term with weight 1, as in the authors' code (D7). So the shapes of a step never change, and the host
        need not wait for the device to know whether CutMix fired.
        """
        cfg, share = self.config, part.share
        everyone: Observed = part.observed
        own: Observed = part.own

        first = blend(own.image, batch.strong[0], own.easy) if cfg.intensity == "adaptive" else batch.strong[0]  # Eq. 8
        fires, partner, box = self._draw_cutmix(everyone, at)  # Eq. 10
        box = box[part.rows].to(own.image.device, non_blocking=True) & fires
        mixed = own.pasted(everyone[partner[part.rows]], box)  # Eq. 9
        second = torch.where(fires, mixed.image, first)

        views = [batch.image, first, second] + ([own.image] if cfg.extra_weak_forward else [])
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            logits = self.student(torch.cat(views)).split([len(view) for view in views])

        labeled = cfg.labeled_loss(logits[0], batch.label, part)  # Eq. 3
        on_first = confident_cross_entropy(logits[1], own.label, own.confidence, cfg.threshold, own.valid)
        on_second = confident_cross_entropy(logits[2], mixed.label, mixed.confidence, cfg.threshold, mixed.valid)
        if cfg.when_unmixed == "half":
            on_second = on_second * fires
        weight = own.easy if cfg.loss == "adaptive" else torch.ones_like(own.easy)
        unlabeled = (weight * (on_first + on_second) / 2).mean() * share  # Eq. 11
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,  # Eq. 1
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "easiness": own.easy.mean() * share,
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * share,
                "mixed": fires * share,
            },
            hardness=1 - own.easy,
        )

    def _draw_cutmix(
        self, everyone: Observed, at: Progress
    ) -> tuple[Bool[Tensor, ""], Int[Tensor, " u"], Bool[Tensor, "u h w"]]:
        """Draws for the whole batch: whether CutMix fires, the partner of each image, and its box (on the CPU)."""
        cfg, device = self.config, everyone.easy.device
        generator = at.generator("cutmix")
        box = BOXES[cfg.boxes](*everyone.valid.shape, generator=generator)
        if cfg.cutmix == "adaptive":
            return triggered(everyone.easy.mean(), generator), hard_easy_partners(everyone.easy), box
        probability = 0.5 if cfg.cutmix_probability is None else cfg.cutmix_probability
        partner = random_partners(len(box), generator).to(device, non_blocking=True)
        return triggered(probability, generator).to(device, non_blocking=True), partner, box

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Updates the teacher (Eq. 2), and with `hardness_every` the agreement."""
        cfg = self.config
        if cfg.hardness_every > 1 and at.step % cfg.hardness_every == 0:
            teacher = Prediction(observed.label, observed.confidence, self.num_classes)
            alone = self._easiness(teacher, teacher, observed.valid)
            self.agreement.copy_(observed.easy.mean() / alone.mean()).nan_to_num_(1.0).clamp_(max=1)
        ema_(self.teacher, self.student, ema_decay(at.step, cfg.ema_decay, cfg.copy_steps))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher, whose mIoU is what the authors report, and the student."""
        return {"teacher": (self.teacher,), "student": (self.student,)}
