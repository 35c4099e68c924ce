"""PseudoSeg: pseudo-labels from two sources (Zou et al., ICLR 2021).

The soft pseudo-label of a weak view is fused from the network's own prediction and from the maps of an image-level
classifier, which self-attention refines. The strong view learns it.

docs/methods/pseudo_seg.md says where each part of the paper is. Deviations from the authors' code: pseudo-labels are
from a pass in eval mode; both sources are scaled image by image; the classifier is a linear layer on the last map.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.cutmix import sample_cutouts
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.errors import UserError
from semiseg.losses import cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.attended_cams import AttendedCams
from semiseg.models.build import Build, Features, Network, require_encoder
from semiseg.models.confidence import class_sums
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of PseudoSeg. The defaults are those of the authors' code on PASCAL VOC."""

    unlabeled_weight: float = Field(1.0, ge=0)
    attention_weight: float = Field(1.0, gt=0)  # of the loss that trains the self-attention
    classifier_weight: float = Field(1.0, gt=0)  # of the loss that trains the image-level classifier
    temperature: float = Field(0.5, gt=0)  # T: below 1 it sharpens the pseudo-label
    presence: float = Field(0.5, ge=0, le=1)  # an unlabeled image has the classes with at least this probability
    attention_channels: int = Field(128, ge=1)  # of keys and queries
    cutout: float = Field(100 / 513, ge=0, le=1)  # side of the square, over that of the crop; 0 for no cut-out
    strong: Pool = jitter.Config(jitter_probability=1, grayscale_probability=0, blur_probability=0)


@dataclass(frozen=True)
class Observed:
    """What PseudoSeg must know of all images: what the losses are divided by."""

    valid: Bool[Tensor, "u h w"]
    labeled: Bool[Tensor, " u"]  # the labeled image has any labeled pixel


class Method(SemiMethod, config=Config):
    """One network, with an image-level classifier and its refined class activation maps."""

    compiles = False  # it calls the parts of its network
    present: Int[Tensor, " f"]  # classes that an image may lack

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(strong=(config.strong,), labeled=config.labeled)
        present = [index for index in range(len(classes)) if index != classes.background]
        if not present:
            raise UserError("method.name: pseudo_seg needs a class that is not the background, and the data have none")
        self.register_buffer("present", torch.tensor(present), persistent=False)
        self.student = build()
        require_encoder(self.student, "method.name: pseudo_seg", "method fixmatch")
        self.cams = AttendedCams(self.student, len(present), len(classes), config.attention_channels)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Returns masks alone: no network is needed."""
        return Observed(batch.valid, (batch.label != IGNORE).flatten(1).any(1))

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and strong views."""
        cfg, num_labeled, size = self.config, len(batch.image), (batch.image.shape[-2], batch.image.shape[-1])
        target = self._pseudo_label(batch)
        box = self._cutouts(at, part)
        strong = torch.where(box[part.rows][:, None], 0.0, batch.strong[0])  # 0 is the mean color
        with batch_norm(self.student, cfg.batch_norm, num_labeled):
            features = self.student.encode(torch.cat([batch.image, strong]))
            logits = self.student.classify(self.student.decode(features), features.size)

        counted = batch.label != IGNORE
        seen = self.cams.see(features[:num_labeled], counted, self.student.padded(size))
        present = class_sums(counted.float(), batch.label, logits.shape[1]).index_select(1, self.present) > 0
        presence = F.binary_cross_entropy_with_logits(seen.presence, present.float(), reduction="none").mean(1)
        classifier = torch.where(part.own.labeled, presence, 0.0).sum() / part.observed.labeled.sum().clamp(min=1)
        labeled = cfg.labeled_loss(logits[:num_labeled], batch.label, part)
        attention = cross_entropy(self._resized(self.cams(seen, present), size), batch.label, part.labeled_px)

        counted_px = (part.observed.valid & ~box).sum().clamp(min=1)
        loss = F.cross_entropy(logits[num_labeled:].float(), target, reduction="none")
        unlabeled = torch.where(batch.valid & ~box[part.rows], loss, 0.0).sum() / counted_px
        terms = {"labeled": labeled, "unlabeled": unlabeled, "attention": attention, "classifier": classifier}
        return Losses(
            total=labeled
            + cfg.attention_weight * attention
            + cfg.classifier_weight * classifier
            + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={name: term.detach() for name, term in terms.items()},
        )

    @torch.no_grad()
    def _pseudo_label(self, batch: SemiBatch) -> Float[Tensor, "u c h w"]:
        """Predicts and fuses what both sources say about the weak views, in eval mode."""
        with evaluating(self.student), evaluating(self.cams):
            features: Features = self.student.encode(batch.weak)
            decoded = self.student.classify(self.student.decode(features), features.size).float()
            seen = self.cams.see(features, batch.valid, self.student.padded(features.size))
            refined = self.cams(seen, seen.presence.sigmoid() >= self.config.presence)
        return fuse(decoded, self._resized(refined, features.size), batch.valid, self.config.temperature)

    def _resized(self, logits: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Resizes logits of the padded image and cuts the padding off."""
        whole = F.interpolate(logits, self.student.padded(size), mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]]

    def _cutouts(self, at: Progress, part: Part) -> Bool[Tensor, "n h w"]:
        """Draws the square of each unlabeled image of the whole batch."""
        valid = part.observed.valid
        boxes = sample_cutouts(*valid.shape, generator=at.generator("cutout"), side=self.config.cutout)
        return boxes.to(valid.device, non_blocking=True)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the student."""
        return {"student": (self.student,)}


def fuse(
    logits: Float[Tensor, "b c h w"],
    others: Float[Tensor, "b c h w"],
    valid: Bool[Tensor, "b h w"],
    temperature: float,
) -> Float[Tensor, "b c h w"]:
    """Fuses two predictions into one soft pseudo-label (the calibrated fusion, as in the authors' code).

    The logits of both are divided by one number for each image, their root mean square (RMS) over both predictions, all
    classes and all valid pixels. So large logits do not make a prediction too sure. Then the mean of both probabilities
    is sharpened: it is raised to the power of 1 / temperature, and scaled to the sum 1.

    Example:
        The logits 2, 0 and 0, 0 have an RMS of 1. Softmax makes 0.88 and 0.5 of them for the first class, and their
        mean 0.69 is sharpened to 0.69^2 / (0.69^2 + 0.31^2) = 0.83.

        >>> one, other = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
        >>> fuse(one, other, torch.ones(1, 1, 1, dtype=torch.bool), temperature=0.5).flatten()
        tensor([0.8326, 0.1674])
    """
    both = torch.stack([logits, others]).float()
    values = (2 * both.shape[2] * valid.sum((1, 2))).clamp(min=1)
    square = torch.where(valid[:, None], both.square(), 0.0).sum((0, 2, 3, 4)) / values
    mean = (both * (square + 1e-8).rsqrt()[:, None, None, None]).softmax(2).mean(0)
    return (mean.log() / temperature).softmax(1)  # mean^(1 / temperature), scaled
