"""iMAS: instance-specific and model-adaptive supervision (Zhao et al., CVPR 2023).

The more an EMA teacher and the student disagree about an unlabeled image, the harder it is; hard images are augmented
less, are paired with easy ones in CutMix, and weigh less in the loss.

Deviations from print, each a setting (docs/methods/imas.md says where each equation stands): Eq. 8 with hardness and
easiness exchanged, as prose and code have it; CutMix fires when a uniform draw exceeds the mean hardness; padding
counts nowhere; one step has the same shape whether or not CutMix fires, see `Method.forward`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from semiseg.augment import intensity
from semiseg.augment.blend import blend
from semiseg.augment.cutmix import BOXES, hard_easy_partners, paste, random_partners, triggered
from semiseg.augment.views import Views
from semiseg.errors import UserError
from semiseg.hardness import class_to_ignore, confident_ratio, easiness, shrink, subsample
from semiseg.losses import LabeledLoss, confident_cross_entropy
from semiseg.method import MethodConfig, SemiMethod
from semiseg.models.build import Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.predict import predict
from semiseg.types import ClassTable, Losses, Prediction, Progress, SemiBatch, Whole

Adaptive = Literal["adaptive", "standard"]


class Config(MethodConfig):
    """Settings of iMAS. Defaults are those of the paper on PASCAL VOC, read as its prose means it."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau, Eq. 4-6, 11; the paper uses 0.7 on Cityscapes
    unlabeled_weight: float = Field(3.0, ge=0)  # lambda_u, Eq. 1
    ema_decay: float = Field(0.996, ge=0, lt=1)  # alpha, Eq. 2
    labeled_loss: LabeledLoss = LabeledLoss()
    strong: intensity.Config = intensity.Config()  # Table 1

    # Cheaper hardness, not the paper's; docs/methods/imas.md says what either is worth.
    hardness_every: int = Field(1, ge=1)  # steps between two looks of the student at weak views (Eq. 5)
    hardness_scale: float = Field(1.0, gt=0, le=1)  # of the weak view that the student looks at

    # The ablations of Table 5 and Figure 2.
    loss: Adaptive = "adaptive"  # weigh each image's loss by its easiness (Eq. 11), or all alike (Eq. 4)
    intensity: Adaptive = "adaptive"  # soften the strong view of hard images (Eq. 8), or not
    cutmix: Adaptive = "adaptive"  # hard-easy pairs, fired by mean easiness (Eq. 9, 10), or random pairs
    cutmix_probability: float | None = Field(None, ge=0, le=1)  # of standard CutMix; 0.5 if not given, 0 for none

    # What the paper leaves open or its code does otherwise (D-numbers: docs/methods/imas.md).
    ignore_class: int | Literal["background", "none"] = "background"  # has no weight in wIoU (D12)
    all_ignored: Literal["count_every_class", "hardest"] = "count_every_class"  # an image with no other class (D13)
    ignore_padding: bool = True  # padded pixels count neither in hardness nor in the loss (D20)
    when_unmixed: Literal["full", "half"] = "full"  # weight of the intensity term if CutMix did not fire (D7)
    boxes: Literal["each", "official"] = "each"  # a box of its own for each image, or the authors' sampling (D10)
    extra_weak_forward: bool = False  # pass the weak view through the student in train mode, for its batch norm (D17)
    copy_steps: int = Field(0, ge=0)  # steps during which the teacher is a copy of the student (D21)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.cutmix == "adaptive" and self.cutmix_probability is not None:
            raise ValueError("cutmix_probability belongs to cutmix: standard; adaptive CutMix fires by mean easiness")
        return self


@dataclass(frozen=True)
class Observed:
    """What is known of unlabeled images before the first gradient: the teacher's view, and how easy they are."""

    weak: Float[Tensor, "u 3 h w"]
    label: Int[Tensor, "u h w"]  # pseudo-label
    confidence: Float[Tensor, "u h w"]  # its probability
    valid: Bool[Tensor, "u h w"]
    easy: Float[Tensor, " u"]  # 1 - gamma, Eq. 7

    def __getitem__(self, images: slice | Int[Tensor, " n"]) -> "Observed":
        """Some of the images."""
        return Observed(*(value[images] for value in vars(self).values()))

    def pasted(self, patch: "Observed", box: Bool[Tensor, "u h w"]) -> "Observed":
        """With the image, the pseudo-labels and the padding of `patch` inside the boxes (Eq. 9)."""
        return replace(
            self,
            weak=paste(self.weak, patch.weak, box),
            label=paste(self.label, patch.label, box),
            confidence=paste(self.confidence, patch.confidence, box),
            valid=paste(self.valid, patch.valid, box),
        )


class Method(SemiMethod, config=Config):
    """Algorithm 1."""

    agreement: Tensor  # how much of the teacher's own easiness was left when the student last looked

    def __init__(self, config: Config, build_model: Callable[[], Network], classes: ClassTable) -> None:
        super().__init__(config, build_model, classes)
        self.config = config
        self.views = Views(strong=(config.strong,))
        self.student = build_model()
        self.teacher = make_teacher(self.student)
        self.ignore_class = class_to_ignore(config.ignore_class, classes)
        if config.hardness_every > 1:
            self.register_buffer("agreement", torch.ones(()))
        if self.ignore_class is None and config.all_ignored == "hardest":
            raise UserError("method.all_ignored: hardest needs a class to ignore; name one in method.ignore_class")

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Lines 3 to 5 of Algorithm 1: pseudo-labels and hardness of each unlabeled image.

        With `hardness_every` the student looks in some steps only. In the others the teacher stands in for it, and the
        easiness, which is then the teacher's confident ratio (0 where all_ignored says so), is lowered to the level of
        the last look.
        """
        cfg = self.config
        valid = batch.valid if cfg.ignore_padding else torch.ones_like(batch.valid)
        teacher = predict(self.teacher, batch.weak)  # Eq. 6
        if at.step % cfg.hardness_every == 0:
            student = predict(self.student, shrink(batch.weak, cfg.hardness_scale))  # Eq. 5
            easy = self._easiness(student, *subsample(teacher, valid, student.label.shape[-2:]))  # 1 - Eq. 7
        else:
            easy = self._easiness(teacher, teacher, valid) * self.agreement
        return Observed(batch.weak, teacher.label, teacher.confidence, valid, easy)

    def _easiness(self, student: Prediction, teacher: Prediction, valid: Bool[Tensor, "u h w"]) -> Float[Tensor, " u"]:
        cfg = self.config
        return easiness(student, teacher, cfg.threshold, valid, self.ignore_class, cfg.all_ignored == "hardest")

    def forward(self, batch: SemiBatch, at: Progress, whole: Whole | None = None) -> Losses:
        """Algorithm 1, one student pass for everything that has a gradient.

        When CutMix does not fire, the second unlabeled view repeats the first. Half of twice the intensity term is
        the intensity term alone with weight 1, as in the authors' code (D7), and the shapes of a step never change, so
        nothing has to wait for the device to know whether it fired.
        """
        cfg = self.config
        whole = whole or self.alone(batch, at)
        everyone: Observed = whole.observed
        own = everyone[whole.rows]
        share = len(own.easy) / len(everyone.easy)

        first = blend(own.weak, batch.strong[0], own.easy) if cfg.intensity == "adaptive" else batch.strong[0]  # Eq. 8
        fires, partner, box = self._draw_cutmix(everyone, at)  # Eq. 10
        box = box[whole.rows].to(own.weak.device, non_blocking=True) & fires
        mixed = own.pasted(everyone[partner[whole.rows]], box)  # Eq. 9
        second = torch.where(fires, mixed.weak, first)

        views = [batch.image, first, second] + ([own.weak] if cfg.extra_weak_forward else [])
        logits = self.student(torch.cat(views)).split([len(view) for view in views])

        if cfg.hardness_every > 1 and at.step % cfg.hardness_every == 0:
            teacher = Prediction(everyone.label, everyone.confidence, logits[0].shape[1])
            alone = self._easiness(teacher, teacher, everyone.valid)
            self.agreement.copy_(everyone.easy.mean() / alone.mean()).nan_to_num_(1.0).clamp_(max=1)

        labeled = cfg.labeled_loss(logits[0], batch.label, whole)  # Eq. 3
        on_first = confident_cross_entropy(logits[1], own.label, own.confidence, cfg.threshold, own.valid)
        on_second = confident_cross_entropy(logits[2], mixed.label, mixed.confidence, cfg.threshold, mixed.valid)
        if cfg.when_unmixed == "half":
            on_second = on_second * fires
        weight = own.easy if cfg.loss == "adaptive" else torch.ones_like(own.easy)
        unlabeled = (weight * (on_first + on_second) / 2).mean() * share  # Eq. 11
        return Losses(
            total=labeled + cfg.unlabeled_weight * unlabeled,  # Eq. 1
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
        """Of the whole batch: whether CutMix fires, each image's partner, and its box (on the CPU)."""
        cfg, device = self.config, everyone.easy.device
        generator = at.generator("cutmix")
        box = BOXES[cfg.boxes](*everyone.valid.shape, generator=generator)
        if cfg.cutmix == "adaptive":
            return triggered(everyone.easy.mean(), generator), hard_easy_partners(everyone.easy), box
        probability = 0.5 if cfg.cutmix_probability is None else cfg.cutmix_probability
        partner = random_partners(len(box), generator).to(device, non_blocking=True)
        return triggered(probability, generator).to(device, non_blocking=True), partner, box

    def after_step(self, step: int) -> None:
        """Eq. 2."""
        ema_(self.teacher, self.student, ema_decay(step, self.config.ema_decay, self.config.copy_steps))

    def predictor(self) -> Network:
        """The teacher, which the authors report."""
        return self.teacher
