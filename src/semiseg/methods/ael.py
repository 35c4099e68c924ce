"""AEL: adaptive equalization learning (Hu et al., NeurIPS 2021).

A bank knows how confident the network is of each class on labeled pixels. Classes with a low confidence are shown more
often: in CutMix, in copy-paste, and in the choice of the unlabeled pixels that count.

docs/methods/ael.md says where each part of the paper is. Deviations: partners in CutMix and in copy-paste are other
images of the same batch; pixels are pasted onto labeled or valid pixels only; the box of CutMix holds all pixels of the
class; the bank takes the student in eval mode, before copy-paste, and starts as a plain mean.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment import paste
from semiseg.augment.cutmix import bounding_boxes, chosen_partners, random_partners, sample_boxes_of_area
from semiseg.augment.views import Views
from semiseg.errors import UserError
from semiseg.hardness import confident_ratio
from semiseg.losses import weighted_cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.confidence import ClassConfidence, class_sums, true_class_probability
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import most_likely, predict
from semiseg.rng import uniform
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Paste(paste.Config):
    """Settings of adaptive copy-paste."""

    onto: Literal["labeled", "unlabeled"] = "labeled"  # the images that receive pixels; labeled ones in the paper


class Config(SemiConfig):
    """Settings of AEL. The defaults are those of the paper on Cityscapes; each ingredient can be switched off."""

    unlabeled_weight: float = Field(1.0, ge=0)  # alpha
    ema_decay: float = Field(0.99, ge=0, lt=1)
    threshold: float = Field(0.0, ge=0, le=1)  # pixels with a lower confidence do not count; 0.7 in the code for VOC
    cutmix: Literal["adaptive", "random", "none"] = "adaptive"
    cutmix_area: float | None = Field(None, gt=0, le=1)  # an image shows a class from this share on; 0.005 if not given
    paste: Paste | None = Paste()  # null: no copy-paste
    sampling_power: float = Field(1.0, ge=0)  # beta, Eq. 10; 0: all pixels count
    weight_power: float = Field(2.0, ge=0)  # gamma, Eq. 13; 0: all pixels have the same weight
    confidence_decay: float | None = Field(None, ge=0, lt=1)  # tau, Eq. 7; 0.999 if not given

    @property
    def adapts(self) -> bool:
        """Returns whether anything depends on the bank."""
        return self.cutmix == "adaptive" or self.paste is not None or self.sampling_power > 0

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.cutmix != "adaptive" and self.cutmix_area is not None:
            raise ValueError("cutmix_area belongs to cutmix: adaptive; remove it or choose that")
        if not self.adapts and self.confidence_decay is not None:
            raise ValueError("confidence_decay does nothing without cutmix: adaptive, paste or sampling_power")
        return self


@dataclass(frozen=True)
class Observed(PseudoLabels):
    """Of each slot: the teacher's labels of the unlabeled image, and what others need of the labeled image."""

    area: Float[Tensor, "u c"]  # share of the unlabeled image that the teacher gives to each class
    giver: Float[Tensor, "u 3 h w"]  # the labeled image, which may give pixels in copy-paste
    giver_label: Int[Tensor, "u h w"]
    total: Float[Tensor, "u c"]  # sum of the student's probabilities of the true class, over its labeled pixels
    count: Float[Tensor, "u c"]  # number of these pixels

    @property
    def unlabeled(self) -> PseudoLabels:
        """Returns the pseudo-labels alone, which is little to copy."""
        return PseudoLabels(self.image, self.label, self.confidence, self.valid)


class Method(SemiMethod, config=Config):
    """Student and EMA teacher, with a bank of class confidence."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config, self.num_classes = config, len(classes)
        if len(classes) < 2:
            raise UserError(f"method.name: ael balances classes, so it needs two or more; the data have {len(classes)}")
        self.views = Views(labeled=config.labeled, min_unlabeled=1 if config.cutmix == "none" else 2)
        if config.paste is not None:
            self.pasteable = config.paste.allowed(classes, "method.paste")
        self.student = build()
        self.teacher = make_teacher(self.student)
        self.bank = ClassConfidence(len(classes), 0.999 if config.confidence_decay is None else config.confidence_decay)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Labels weak views with the teacher, and measures the student on labeled images, both in eval mode."""
        label, num_classes = batch.label, self.num_classes
        one = torch.ones(label.shape, device=label.device)
        true = true_class_probability(self.student, batch.image, label) if self.config.adapts else one
        predicted = predict(self.teacher, batch.weak)
        shown = torch.where(batch.valid, predicted.label, IGNORE)
        return Observed(
            batch.weak,
            predicted.label,
            predicted.confidence,
            batch.valid,
            area=class_sums(one, shown, num_classes) / label[0].numel(),
            giver=batch.image,
            giver_label=label,
            total=class_sums(true, label, num_classes),
            count=class_sums(one, label, num_classes),
        )

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled and mixed images."""
        cfg, share = self.config, part.share
        known = PseudoLabels(batch.image, batch.label, torch.ones_like(batch.image[:, 0]), batch.label != IGNORE)
        known = self._paste("labeled", known, at, part)
        mixed = self._paste("unlabeled", self._cutmix(at, part), at, part)
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            on_labeled, on_mixed = self.student(torch.cat([known.image, mixed.image])).split(len(batch.image))

        labeled = cfg.labeled_loss(on_labeled, known.label, part)  # Eq. 1
        sampled = self._sampled(on_mixed.detach(), at, part) & mixed.valid & (mixed.confidence >= cfg.threshold)
        weight = mixed.confidence**cfg.weight_power * sampled  # Eq. 13
        unlabeled = weighted_cross_entropy(on_mixed, mixed.label, weight).mean() * share  # Eq. 12
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,  # Eq. 3
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "sampled": confident_ratio(sampled.float(), 1.0, mixed.valid).mean() * share,
            },
        )

    def _cutmix(self, at: Progress, part: Part) -> PseudoLabels:
        """Pastes a box of another image, with its pseudo-labels, into each of the part's unlabeled images (Eq. 8).

        With cutmix: adaptive a class is drawn for each image. The partner shows this class and the box holds all its
        pixels. If no other image shows it, the image has a partner and a box as in cutmix: random.
        """
        cfg, everyone, own = self.config, part.observed.unlabeled, part.own.unlabeled
        if cfg.cutmix == "none":
            return own
        generator, device, num_slots = at.generator("cutmix"), own.label.device, len(everyone.label)
        partner = random_partners(num_slots, generator)[part.rows].to(device, non_blocking=True)
        box = sample_boxes_of_area(*everyone.valid.shape, generator=generator, area=(0.5, 0.5), num_boxes=1)
        box = box[part.rows].to(device, non_blocking=True)
        if cfg.cutmix == "adaptive":
            drawn = uniform(generator, 0.0, 1.0, num_slots, 1 + num_slots)
            drawn[:, 1:].fill_diagonal_(-1.0)  # an image is not its own partner
            pick, rank = drawn[part.rows].to(device, non_blocking=True).tensor_split([1], dim=1)
            wanted = self.bank.draw(pick[:, 0])
            suitable = (part.observed.area[:, wanted].mT >= (cfg.cutmix_area or 0.005)) & (rank >= 0)
            partner = chosen_partners(suitable, partner, rank)
            member = (everyone.label[partner] == wanted[:, None, None]) & everyone.valid[partner]
            box = torch.where(suitable.any(1)[:, None, None], bounding_boxes(member), box)
        return own.pasted(everyone[partner], box)

    def _paste(self, onto: str, view: PseudoLabels, at: Progress, part: Part) -> PseudoLabels:
        """Pastes classes of another slot's labeled image into the part's images, if it is to be done onto such images.

        Only valid pixels, in labeled images the labeled ones, receive others. So their number does not change.
        """
        settings = self.config.paste
        if settings is None or settings.onto != onto:
            return view
        everyone: Observed = part.observed
        generator, device, num_slots = at.generator("paste"), view.label.device, len(everyone.label)
        giver = random_partners(num_slots, generator)[part.rows].to(device, non_blocking=True)
        drawn = settings.sample(generator, num_slots, self.num_classes)[part.rows].to(device)
        classes = self.bank.draw(drawn.pick, self.pasteable.to(device, non_blocking=True))
        return paste.paste_classes(view, everyone.giver[giver], everyone.giver_label[giver], drawn, classes)

    def _sampled(self, logits: Float[Tensor, "u c h w"], at: Progress, part: Part) -> Bool[Tensor, "u h w"]:
        """Draws which pixels count, at the rate of the class that the student predicts (Eq. 10, 11).

        The uniform values of an image are those of a common map, shifted by a value of its own, modulo 1.
        """
        generator, (height, width) = at.generator("sampling"), logits.shape[-2:]
        shift = uniform(generator, 0.0, 1.0, len(part.observed.label), 1, 1)[part.rows]
        common = uniform(generator, 0.0, 1.0, height, width).to(logits.device, non_blocking=True)
        value = (common + shift.to(logits.device, non_blocking=True)) % 1
        return value < self.bank.sampling_rate(self.config.sampling_power)[most_likely(logits)]

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Updates the bank and the teacher."""
        if self.config.adapts:
            self.bank.update(observed.total, observed.count)  # Eq. 7
        ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher, whose mIoU the authors report, and the student."""
        return {"teacher": (self.teacher,), "student": (self.student,)}
