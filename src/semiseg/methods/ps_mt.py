"""PS-MT: a student and two teachers, with perturbed inputs and features (Liu et al., CVPR 2022).

Two EMA teachers follow the student in turns. The mean of their predictions labels the weak view. The student learns
these labels on a strong view with CutMix, and on features with the noise that changes the teachers' predictions most.

docs/methods/ps_mt.md says where each part of the paper is. Deviations: the teachers start as copies of the student and
are not trained themselves; noise is added to the last map of the encoder, of unlabeled images only.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.adversarial import adversarial_noise, sample_direction
from semiseg.augment.cutmix import paste, random_partners, sample_boxes_of_area
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Features, Network, require_encoder
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating
from semiseg.rng import uniform
from semiseg.types import ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of PS-MT. The defaults are those of the paper on PASCAL VOC, blended labels."""

    threshold: float = Field(0.6, ge=0, le=1)
    unlabeled_weight: float = Field(1.5, ge=0)
    ramp: float = Field(0.15, ge=0, le=1)  # along a cosine
    warmup: float = Field(0.01, ge=0, lt=1)  # share of the run with labels alone; both teachers follow in each step
    turn: float = Field(1 / 80, gt=0, le=1)  # share of the run in which one teacher follows, then the other one
    ema_decay: float = Field(0.996, ge=0, lt=1)
    vat_radius: float = Field(2.0, ge=0)  # epsilon: length of the noise on features; 0: none
    cutmix_probability: float = Field(1.0, ge=0, le=1)  # of each image
    strong: Pool = jitter.Config()


class Method(SemiMethod, config=Config):
    """A student and two EMA teachers."""

    compiles = False  # it calls the parts of its networks

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong,), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        self.first, self.second = make_teacher(self.student), make_teacher(self.student)
        if config.vat_radius:
            require_encoder(self.student, "method.vat_radius: above 0", "method.vat_radius: 0")

    def observe(self, batch: SemiBatch, at: Progress) -> PseudoLabels:
        """Labels the strong view with the mean of what the teachers predict on the weak view, in eval mode."""
        with evaluating(self.first), evaluating(self.second):
            each = [teacher(batch.weak).float().softmax(1) for teacher in (self.first, self.second)]
        confidence, label = ((each[0] + each[1]) / 2).max(1)
        return PseudoLabels(batch.strong[0], label, confidence, batch.valid)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled and mixed images."""
        cfg, student, b = self.config, self.student, len(batch.image)
        own, kept, kept_px = self._mixed(part, at)
        with batch_norm(student, cfg.batch_norm, b):
            features = student.encode(torch.cat([batch.image, own.image]))
            if cfg.vat_radius:
                last = features.maps[-1]
                noise = self._noise(features[b:].detached(), own.valid, at)
                features = _with_last(features, torch.cat([last[:b], last[b:] + noise]))
            logits = student.classify(student.decode(features), features.size)

        labeled = cfg.labeled_loss(logits[:b], batch.label, part)
        loss = own.confidence * F.cross_entropy(logits[b:].float(), own.label, reduction="none")
        unlabeled = torch.where(kept, loss, 0.0).sum() / kept_px
        trusted = at.step >= self._in_steps(at)[0]
        weight = cfg.unlabeled_weight * ramps.cosine(at, cfg.ramp) if trusted else 0.0
        confident = confident_ratio(part.own.confidence, cfg.threshold, part.own.valid).mean()
        return Losses(
            total=labeled + weight * unlabeled,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "confident": confident * part.share,
            },
        )

    def _mixed(self, part: Part, at: Progress) -> tuple[PseudoLabels, Bool[Tensor, "u h w"], Int[Tensor, ""]]:
        """Pastes boxes of another image into each image of the part.

        Returns:
            The mixed images with their pseudo-labels, which of their pixels count, and how many do in the whole batch.
        """
        everyone: PseudoLabels = part.observed
        generator, (num_slots, height, width) = at.generator("cutmix"), everyone.valid.shape
        device = everyone.valid.device
        partner = random_partners(num_slots, generator).to(device, non_blocking=True)
        box = sample_boxes_of_area(num_slots, height, width, generator, area=(0.25, 0.75), num_boxes=1)
        box &= (uniform(generator, 0.0, 1.0, num_slots) < self.config.cutmix_probability)[:, None, None]
        box = box.to(device, non_blocking=True)
        counts = (everyone.confidence >= self.config.threshold) & everyone.valid
        kept = paste(counts, counts[partner], box)
        own = everyone[part.rows].pasted(everyone[partner[part.rows]], box[part.rows])
        return own, kept[part.rows], kept.sum().clamp(min=1)

    def _noise(self, features: Features, valid: Bool[Tensor, "u h w"], at: Progress) -> Float[Tensor, "u d _ _"]:
        """Computes the noise on the last map that changes the teachers' mean logits most (T-VAT)."""
        last = features.maps[-1]
        direction = sample_direction(at.generator("vat"), (last.shape[1], last.shape[2], last.shape[3]))

        def decode(value: Tensor) -> Tensor:
            seen = _with_last(features, value)
            first, second = (one.classify(one.decode(seen), seen.size) for one in (self.first, self.second))
            return (first + second) / 2

        with evaluating(self.first), evaluating(self.second):
            return adversarial_noise(decode, last, direction, self.config.vat_radius, valid)

    def after_step(self, at: Progress, observed: PseudoLabels) -> None:
        """Updates the teacher whose turn it is; in the warm-up both."""
        for number, teacher in enumerate((self.first, self.second)):
            done = updates(at.step, number, *self._in_steps(at))
            if done is not None:
                ema_(teacher, self.student, ema_decay(done, self.config.ema_decay))

    def _in_steps(self, at: Progress) -> tuple[int, int]:
        """Returns the lengths of the warm-up and of a turn in steps."""
        return round(self.config.warmup * at.num_steps), max(1, round(self.config.turn * at.num_steps))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teachers, whose mean the authors evaluate, and the student."""
        return {"teachers": (self.first, self.second), "student": (self.student,)}


def updates(step: int, number: int, warmup: int, turn: int) -> int | None:
    """Returns how often a teacher was updated before this step; None if it is not updated after this step.

    Args:
        step: the step, from 0.
        number: 0 for the first teacher, 1 for the second one.
        warmup: number of first steps that update both teachers.
        turn: number of steps that update one teacher, before the other one has its turn.

    Example:
        After two steps of warm-up the teachers have turns of three steps.

        >>> [updates(step, 0, warmup=2, turn=3) for step in range(10)]
        [0, 1, 2, 3, 4, None, None, None, 5, 6]
        >>> [updates(step, 1, warmup=2, turn=3) for step in range(10)]
        [0, 1, None, None, None, 2, 3, 4, None, None]
    """
    if step < warmup:
        return step
    turns, since = divmod(step - warmup, turn)
    return warmup + turns // 2 * turn + since if turns % 2 == number else None


def _with_last(features: Features, value: Tensor) -> Features:
    return replace(features, maps=(*features.maps[:-1], value))
