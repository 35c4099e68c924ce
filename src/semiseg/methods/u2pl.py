"""U2PL: unreliable pseudo-labels (Wang et al., CVPR 2022).

A pixel of which the teacher is unsure has no reliable pseudo-label. But the teacher is sure which classes it does not
belong to. So such a pixel is a negative sample for these classes, in a contrastive loss on representations of pixels.

docs/methods/u2pl.md says where each part of the paper is. Deviations: the contrastive loss sees some pixels of a step,
at the same places in all images; the teacher sees images before CutMix; negatives are used from the next step on.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment.cutmix import paste, sample_boxes_of_area, triggered
from semiseg.augment.views import Views
from semiseg.errors import UserError
from semiseg.hardness import quantile
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.bank import Bank, prototypes
from semiseg.models.build import Build, Network
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.heads import has_batch_norm, representation_head, values_at
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of U2PL. The defaults are those of the paper on PASCAL VOC."""

    unreliable: float = Field(0.2, gt=0, lt=1)  # alpha_0: share of unlabeled pixels at the start; it falls to 0
    unlabeled_weight: float = Field(1.0, ge=0)
    contrastive_weight: float = Field(1.0, gt=0)  # lambda_c
    ema_decay: float = Field(0.99, ge=0, lt=1)
    warmup_steps: int = Field(0, ge=0)  # with the labeled loss alone; the authors' first epoch on VOC
    cutmix_probability: float = Field(0.5, ge=0, le=1)
    teacher_statistics: Literal["own", "averaged"] = "own"  # of batch norm: the teacher sees all images, or EMA
    # The contrastive loss. Smaller numbers of anchors, negatives and representations suit a CPU.
    temperature: float = Field(0.5, gt=0)  # tau
    anchors: int = Field(256, ge=1)  # of a class in a step, at most
    negatives: int = Field(50, ge=1)  # of an anchor
    bank_size: int = Field(30_000, ge=1)  # representations of a class
    channels: int = Field(256, ge=1)  # values in a representation
    pixels: int = Field(2048, ge=1)  # of an image that the contrastive loss sees in a step
    anchor_probability: float = Field(0.3, ge=0, lt=1)  # delta_p: the teacher gives an anchor's class more than this
    low_rank: int | None = Field(None, ge=1)  # r_l; None: 3, or fewer if there are fewer than four classes
    high_rank: int = Field(20, ge=2)  # r_h


@dataclass(frozen=True)
class Observed(PseudoLabels):
    """What U2PL knows before the first gradient: pseudo-labels, and representations of sampled pixels of all images."""

    entropy: Float[Tensor, "u h w"]
    label_at: Int[Tensor, "u n"]  # of the sampled pixels of the labeled image
    probability_at: Float[Tensor, "u n"]  # which the teacher gives to this label
    key: Float[Tensor, "u 2 n d"]  # the teacher's representations, of the labeled and the unlabeled image
    negative: Bool[Tensor, "u 2 n c"]  # the classes whose negative the pixel is, if it is unreliable


class Method(SemiMethod, config=Config):
    """Student and EMA teacher, each with a head for representations, and a memory bank."""

    compiles = False  # it calls the parts of its networks

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config, self.num_classes = config, len(classes)
        self.views = Views(labeled=config.labeled, min_unlabeled=2 if config.cutmix_probability else 1)
        self.ranks = _ranks(config, len(classes))
        self.student = build()
        self.head = representation_head(self.student, config.channels)
        self.teacher, self.teacher_head = make_teacher(self.student), make_teacher(self.head)
        self.own_statistics = config.teacher_statistics == "own" and has_batch_norm(self.teacher)
        self.bank = Bank(len(classes), config.bank_size, config.channels)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Computes pseudo-labels with their entropy, and what the contrastive loss needs of the sampled pixels."""
        with evaluating(self.teacher), evaluating(self.teacher_head):
            features = self.teacher.encode(torch.cat([batch.image, batch.weak]))
            decoded = self.teacher.decode(features)
            probability = self.teacher.classify(decoded, features.size).float().softmax(1)
            representation = self.teacher_head(decoded)
        confidence, label = probability[len(batch.image) :].max(1)
        pixel = self._pixels(batch.valid, at)
        at_pixel = torch.stack(probability.flatten(2).index_select(2, pixel).mT.chunk(2), dim=1)
        label_at = batch.label.flatten(1).index_select(1, pixel)
        known, (low, high) = (label_at != IGNORE)[..., None], self.ranks
        other = known & (label_at[..., None] != torch.arange(self.num_classes, device=pixel.device))
        rank = at_pixel.argsort(dim=-1, descending=True).argsort(dim=-1)  # 0 is the most likely class
        return Observed(
            batch.weak,
            label,
            confidence,
            batch.valid,
            entropy=torch.special.entr(probability[len(batch.image) :]).sum(1),
            label_at=label_at,
            probability_at=at_pixel[:, 0].gather(-1, torch.where(known, label_at[..., None], 0)).squeeze(-1),
            key=torch.stack(values_at(self.teacher, representation, pixel, features.size).chunk(2), dim=1),
            negative=torch.stack([other & (rank[:, 0] < low), (low <= rank[:, 1]) & (rank[:, 1] < high)], 1),
        )

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the three losses, in one student pass over labeled and mixed images."""
        cfg, everyone = self.config, part.observed
        threshold, pixel = self._threshold(everyone, at), self._pixels(batch.valid, at)
        mixed, fires = self._mixed(everyone, at)
        own = mixed[part.rows]

        views = torch.cat([batch.image, own.image])
        with batch_norm(self, cfg.batch_norm, len(batch.image)):
            features = self.student.encode(views)
            decoded = self.student.decode(features)
            on_labeled, on_mixed = self.student.classify(decoded, features.size).chunk(2)
            of_image, of_mixed = values_at(self.student, self.head(decoded), pixel, features.size).chunk(2)
            if self.own_statistics:
                with torch.no_grad():
                    self.teacher_head(self.teacher.decode(self.teacher.encode(views)))

        labeled = cfg.labeled_loss(on_labeled, batch.label, part)
        reliable = mixed.valid & (mixed.entropy <= threshold)
        valid_px, reliable_px = mixed.valid.sum().clamp(min=1), reliable.sum().clamp(min=1)
        loss = F.cross_entropy(on_mixed.float(), own.label, reduction="none")
        unlabeled = torch.where(reliable[part.rows], loss, 0.0).sum() / reliable_px * (valid_px / reliable_px)

        own_pixels = torch.stack([of_image, of_mixed], dim=1).flatten(0, 2)
        anchor, member = (self._classes(seen, threshold, pixel) for seen in (mixed, everyone))
        positive = prototypes(everyone.key.flatten(0, 2), member, self.num_classes)
        settings = (cfg.anchors, cfg.negatives, cfg.temperature, at.generator("contrast"))
        contrast = self.bank.contrast(own_pixels, part.rows.start * 2 * len(pixel), anchor, positive, *settings)
        weight = float(at.step >= cfg.warmup_steps) * ramps.sigmoid(at, cfg.ramp)
        terms = {"labeled": labeled, "unlabeled": unlabeled, "contrastive": contrast}
        shares = {"reliable": reliable[part.rows].sum() / valid_px, "mixed": fires * part.share}
        return Losses(
            total=labeled + weight * (cfg.unlabeled_weight * unlabeled + cfg.contrastive_weight * contrast),
            scalars={name: term.detach() for name, term in terms.items()} | shares,
        )

    def _mixed(self, everyone: Observed, at: Progress) -> tuple[Observed, Bool[Tensor, ""]]:
        """Pastes a half of the next image into each unlabeled image, or into none. Also returns whether it did."""
        generator = at.generator("cutmix")
        box = sample_boxes_of_area(*everyone.valid.shape, generator=generator, area=(0.5, 0.5), num_boxes=1)
        fires = triggered(self.config.cutmix_probability, generator).to(everyone.valid.device, non_blocking=True)
        box = box.to(everyone.valid.device, non_blocking=True) & fires
        following = everyone[torch.arange(len(box), device=box.device).roll(-1)]
        mixed = everyone.pasted(following, box)
        return replace(mixed, entropy=paste(everyone.entropy, following.entropy, box)), fires

    def _threshold(self, everyone: Observed, at: Progress) -> Float[Tensor, ""]:
        """Returns the entropy above which a pseudo-label is unreliable (gamma_t)."""
        share = self.config.unreliable * (1 - at.step / at.num_steps)  # alpha_t
        return quantile(everyone.entropy, everyone.valid, 1 - share)

    def _classes(self, seen: Observed, threshold: Float[Tensor, ""], pixel: Int[Tensor, " n"]) -> Int[Tensor, " p"]:
        """Returns the class that each sampled pixel represents; the number of classes for pixels without any."""

        def both(labeled: Tensor, unlabeled: Tensor) -> Tensor:
            return torch.stack([labeled, unlabeled.flatten(1).index_select(1, pixel)], dim=1).flatten()

        reliable = both(seen.label_at != IGNORE, seen.valid & (seen.entropy <= threshold))
        sure = both(seen.probability_at, seen.confidence) > self.config.anchor_probability
        return torch.where(reliable & sure, both(seen.label_at, seen.label), self.num_classes)

    def _pixels(self, valid: Bool[Tensor, "b h w"], at: Progress) -> Int[Tensor, " n"]:
        """Draws the pixels that the contrastive loss sees in this step, the same ones in every image."""
        order = torch.randperm(valid[0].numel(), generator=at.generator("pixels"))
        return order[: self.config.pixels].to(valid.device, non_blocking=True)

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Adds negatives of each class to the bank and updates the teacher."""
        if at.step >= self.config.warmup_steps:
            unsure = observed.valid & (observed.entropy > self._threshold(observed, at))
            unsure_at = unsure.flatten(1).index_select(1, self._pixels(observed.valid, at))
            negative = observed.negative & torch.stack([torch.ones_like(unsure_at), unsure_at], 1)[..., None]
            self.bank.add(observed.key.flatten(0, 2), negative.flatten(0, 2).mT, at.generator("bank"))
        decay = ema_decay(max(0, at.step - self.config.warmup_steps), self.config.ema_decay)
        ema_(self.teacher, self.student, decay, buffers=not self.own_statistics)
        ema_(self.teacher_head, self.head, decay, buffers=not self.own_statistics)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher, whose mIoU the authors report, and the student."""
        return {"teacher": (self.teacher,), "student": (self.student,)}


def _ranks(config: Config, num_classes: int) -> tuple[int, int]:
    """Returns the ranks [r_l, r_h) of the classes that an unreliable unlabeled pixel is a negative of."""
    if num_classes < 2:
        raise UserError(f"method.name: u2pl contrasts classes, so it needs two or more; the data have {num_classes}")
    low = min(3, num_classes - 1) if config.low_rank is None else config.low_rank
    if low >= num_classes:
        raise UserError(f"method.low_rank: {low} needs more than {num_classes} classes; use 1 to {num_classes - 1}")
    if low >= config.high_rank:
        raise UserError(f"method.high_rank: {config.high_rank} must be larger than low_rank, which is {low}")
    return low, config.high_rank
