"""AugSeg: random numbers of operations, and labeled images injected into CutMix (Zhao et al., CVPR 2023).

An EMA teacher labels the weak view, and the student learns these labels on a strong view with CutMix. The patch comes
from another strong view. If the teacher is unsure of that one, a labeled image is likely to be pasted into it first.

docs/methods/augseg.md says where each part is. As in the authors' code, an image that receives a patch is itself free
of labeled pixels: they are seen only inside the patch. Deviations from that code: each image has boxes of its own,
which lie inside it; ignored and padded pixels are not counted.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment import intensity
from semiseg.augment.cutmix import random_partners, sample_beta_boxes
from semiseg.augment.ops import OPS
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.losses import confident_cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import fixed_logits, prediction
from semiseg.rng import uniform
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch

POOL = intensity.Config(  # one to three of eleven operations
    ops=tuple(name for name in OPS if name != "invert"), num_ops=3, min_ops=1, with_replacement=True
)
INJECTED, PASTED = (8, 2), (4, 4)  # lambda of the boxes; they cover 0.2 and 0.5 of an image in the mean


class Config(SemiConfig):
    """Settings of AugSeg. The defaults are those of the authors' code on PASCAL VOC."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau; 0 in the code for Cityscapes
    unlabeled_weight: float = Field(1.0, ge=0)  # lambda_u
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0.996 in the code for Cityscapes
    copy_steps: int = Field(0, ge=0)  # steps during which the teacher is a copy of the student; their first epoch
    cutmix: Literal["adaptive", "standard", "none"] = "adaptive"  # standard: no labeled image is injected
    strong: Pool = POOL


@dataclass(frozen=True)
class Observed(PseudoLabels):
    """Of each slot: the teacher's labels of the strong view, and the labeled image, which may be injected."""

    sure: Float[Tensor, " u"]  # how sure the teacher is of the image
    giver: Float[Tensor, "u 3 h w"]
    giver_label: Int[Tensor, "u h w"]

    @property
    def unlabeled(self) -> PseudoLabels:
        """Returns the pseudo-labels alone."""
        return PseudoLabels(self.image, self.label, self.confidence, self.valid)

    @property
    def labeled(self) -> PseudoLabels:
        """Returns the labeled images, with confidence 1. IGNORE pixels are not valid."""
        known = self.giver_label != IGNORE
        return PseudoLabels(
            self.giver, torch.where(known, self.giver_label, 0), torch.ones_like(self.confidence), known
        )


class Method(SemiMethod, config=Config):
    """Student and EMA teacher, with adaptive CutMix."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 1 if config.cutmix == "none" else 2
        self.views = Views(strong=(config.strong,), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        self.teacher = make_teacher(self.student)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Labels the strong views with what the teacher predicts on the weak views, in eval mode."""
        logits = fixed_logits(self.teacher, batch.weak)
        predicted = prediction(logits)
        sure = sureness(logits.float().softmax(1), batch.valid)
        pseudo = (batch.strong[0], predicted.label, predicted.confidence, batch.valid)
        return Observed(*pseudo, sure, batch.image, batch.label)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and strong views."""
        cfg, own = self.config, part.own
        mixed, injected = self._mixed(at, part)
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            on_labeled, on_mixed = self.student(torch.cat([batch.image, mixed.image])).split(len(batch.image))
        labeled = cfg.labeled_loss(on_labeled, batch.label, part)
        each = confident_cross_entropy(on_mixed, mixed.label, mixed.confidence, cfg.threshold, mixed.valid)
        unlabeled = each.mean() * part.share
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * part.share,
                "sure": own.sure.mean() * part.share,
                "injected": injected.float().mean() * part.share,
            },
        )

    def _mixed(self, at: Progress, part: Part) -> tuple[PseudoLabels, Bool[Tensor, " n"]]:
        """Pastes a box of the partner, after the injection, into each image. Also returns which partners had one.

        A labeled image is injected into an image with probability 1 - sure. One permutation says who is the partner of
        an image and whose labeled image is injected into it, as in the authors' code.
        """
        cfg, everyone, own = self.config, part.observed, part.own.unlabeled
        device, num_slots = own.label.device, len(everyone.label)
        if cfg.cutmix == "none":
            return own, torch.zeros(len(own.label), dtype=torch.bool, device=device)
        generator = at.generator("cutmix")
        permutation = random_partners(num_slots, generator)
        pasted = sample_beta_boxes(*everyone.valid.shape, generator=generator, beta=PASTED)
        box = sample_beta_boxes(*everyone.valid.shape, generator=generator, beta=INJECTED)
        draw = uniform(generator, 0.0, 1.0, num_slots)

        partner = permutation[part.rows]
        giver, box, draw = permutation[partner], box[partner], draw[partner]
        partner, giver, pasted, box, draw = (
            value.to(device, non_blocking=True) for value in (partner, giver, pasted[part.rows], box, draw)
        )
        injects = (draw > everyone.sure[partner]) & (cfg.cutmix == "adaptive")
        patch = everyone.unlabeled[partner].pasted(everyone.labeled[giver], box & injects[:, None, None])
        return own.pasted(patch, pasted), injects

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Updates the teacher."""
        ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay, self.config.copy_steps))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher and the student; the authors report the better one."""
        return {"teacher": (self.teacher,), "student": (self.student,)}


def sureness(probability: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Computes how sure a network is of each image: the mean over valid pixels of (1 - H / log C) * max p.

    H is the entropy of a pixel's probabilities and log C the largest entropy of C classes.

    Args:
        probability: the network's probabilities.
        valid: False where the image was padded.

    Returns:
        One value in [0, 1] for each image; 0 for an image without valid pixels.

    Example:
        A certain pixel has 1 and an undecided one 0; a padded one is not counted.

        >>> probability = torch.tensor([[1.0, 0.5, 0.9], [0.0, 0.5, 0.1]])[None, :, None]
        >>> sureness(probability, torch.tensor([[[True, True, False]]]))
        tensor([0.5000])
    """
    entropy = torch.special.entr(probability).sum(1) / math.log(max(2, probability.shape[1]))
    value = (1 - entropy) * probability.amax(1)
    return torch.where(valid, value, 0.0).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
