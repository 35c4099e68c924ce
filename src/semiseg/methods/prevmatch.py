"""PrevMatch: UniMatch with a second pseudo-label from earlier networks of the same run (Shin et al., 2024).

A few copies of the network from earlier steps are mixed at random. What they predict on the weak view is a second
pseudo-label for each view that UniMatch trains on.

docs/methods/prevmatch.md says where each part is. Deviations from the authors' code: copies are made at steps that are
fixed before the run, not after each best validation; the partner of CutMix is another image of the same batch; one
threshold serves second pseudo-labels on all data.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.features import drop_channels
from semiseg.augment.pairs import StrongPairs, cutmix_pairs
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.losses import cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network, require_encoder
from semiseg.models.earlier import EarlierNetworks
from semiseg.models.norms import batch_norm
from semiseg.models.perturbed import classify_perturbed
from semiseg.models.predict import predict, prediction
from semiseg.types import ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of PrevMatch. The defaults are those of the authors on PASCAL VOC."""

    threshold: float = Field(0.95, ge=0, le=1)  # of the network's own pseudo-labels; 0 on Cityscapes
    earlier_threshold: float = Field(0.9, ge=0, le=1)  # of those of earlier networks; 0 on Cityscapes
    unlabeled_weight: float = Field(1.0, ge=0)
    earlier_weight: float = Field(1.0, gt=0)  # largest lambda: it rises from 0 until half of the run, then falls to 0
    copies: int = Field(8, ge=1)  # earlier networks in memory
    mixed_copies: int = Field(3, ge=1)  # of these, in a step, at most
    stores: int = Field(26, ge=1)  # copies that are made in a run; the time between two of them grows
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of each strong view; 0 for no CutMix
    feature_dropout: float = Field(0.5, gt=0, lt=1)  # share of the channels that are dropped
    strong: Pool = jitter.Config()  # of both strong views


@dataclass(frozen=True)
class Observed(StrongPairs):
    """Strong views with the pseudo-labels of the network, and those of earlier networks."""

    earlier_label: Int[Tensor, "u h w"]
    earlier_confidence: Float[Tensor, "u h w"]

    def by_earlier(self) -> StrongPairs:
        """Returns the strong views with the pseudo-labels of earlier networks."""
        return StrongPairs(self.image, self.earlier_label, self.earlier_confidence, self.valid, self.second)


class Method(SemiMethod, config=Config):
    """One network, with copies of its earlier steps."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong, config.strong), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        require_encoder(self.student, "method.name: prevmatch", "method fixmatch")
        self.earlier = EarlierNetworks(self.student, config.copies, config.stores, config.mixed_copies)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Labels the weak views in eval mode: with the network, for partners in CutMix, and with earlier networks."""
        own = predict(self.student, batch.weak)
        earlier = self.earlier.predict(batch.weak, at) if self._weight(at) else own
        return Observed(
            batch.strong[0],
            own.label,
            own.confidence,
            batch.valid,
            batch.strong[1],
            earlier_label=earlier.label,
            earlier_confidence=earlier.confidence,
        )

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one pass over labeled images and weak views and one over strong views."""
        cfg, num_slots, weight = self.config, len(part.observed.label), self._weight(at)
        drop = drop_channels(at.generator("feature dropout"), num_slots, part.rows, cfg.feature_dropout)
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            features = self.student.encode(torch.cat([batch.image, batch.weak]))
            on_image, on_weak, on_features = classify_perturbed(self.student, features, len(batch.image), drop)
        weak = prediction(on_weak)
        own = StrongPairs(batch.strong[0], weak.label, weak.confidence, batch.valid, batch.strong[1])
        mixed, valid_px = cutmix_pairs(own, part, at.generator("cutmix"), cfg.cutmix_probability)
        with batch_norm(self.student, cfg.batch_norm, labeled=0):
            on_strong = self.student(torch.cat([view.image for view in mixed])).chunk(2)

        def loss(views: list[PseudoLabels], labels: StrongPairs, threshold: float) -> Float[Tensor, ""]:
            """Computes UniMatch's loss with one kind of pseudo-labels."""
            first, second = (
                cross_entropy(on_view, view.kept(threshold), px)
                for on_view, view, px in zip(on_strong, views, valid_px, strict=True)
            )
            return (first + second) / 4 + cross_entropy(on_features, labels.kept(threshold), part.valid_px) / 2

        labeled = cfg.labeled_loss(on_image, batch.label, part)  # L_x
        unlabeled = loss(mixed, own, cfg.threshold)  # L_std
        earlier = torch.zeros_like(unlabeled)
        if weight:
            second, everyone = part.own.by_earlier(), replace(part, observed=part.observed.by_earlier())
            # the same generator draws the same partners and boxes
            mixed, _ = cutmix_pairs(second, everyone, at.generator("cutmix"), cfg.cutmix_probability)
            earlier = loss(mixed, second, cfg.earlier_threshold)  # L_prev
        return Losses(
            total=(labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * (unlabeled + weight * earlier))
            / (2 + weight),
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "earlier": earlier.detach(),
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * part.share,
            },
        )

    def _weight(self, at: Progress) -> float:
        """Returns the weight of the second pseudo-labels (lambda); 0 as long as there are none."""
        return self.config.earlier_weight * ramps.triangle(at, peak=0.5) if self.earlier.held(at) else 0.0

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Copies the network at some steps."""
        self.earlier.store(self.student, at)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the one network that is trained."""
        return {"student": (self.student,)}
