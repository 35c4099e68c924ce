"""UniMatch: two strong views and a view of perturbed features (Yang et al., CVPR 2023).

One network labels the weak view. It learns these labels on two strong views of the image, each with CutMix, and on the
weak view's features with half of their channels dropped.

docs/methods/unimatch.md says where each equation is. Deviations from the paper and the authors' code: the partner of
CutMix is another image of the same batch, while the code may paste another crop of the same image; the pool of strong
operations is a setting; labeled images get no perturbed features, which the code computes and does not use.
"""

import torch
from pydantic import Field

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
from semiseg.models.norms import batch_norm
from semiseg.models.perturbed import classify_perturbed
from semiseg.models.predict import predict, prediction
from semiseg.types import ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of UniMatch. The defaults are those of the paper on PASCAL VOC."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau; the paper uses 0 on Cityscapes
    unlabeled_weight: float = Field(1.0, ge=0)
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of each strong view; 0 for no CutMix
    feature_dropout: float = Field(0.5, gt=0, lt=1)  # share of the channels that are dropped
    strong: Pool = jitter.Config()  # of both strong views


class Method(SemiMethod, config=Config):
    """UniMatch with its three unlabeled views (UniPerb and DusPerb)."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong, config.strong), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        require_encoder(self.student, "method.name: unimatch", "method fixmatch")

    def observe(self, batch: SemiBatch, at: Progress) -> StrongPairs:
        """Predicts the weak views in eval mode, for the partners in CutMix."""
        predicted = predict(self.student, batch.weak)
        return StrongPairs(batch.strong[0], predicted.label, predicted.confidence, batch.valid, batch.strong[1])

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one pass over labeled images and weak views and one over strong views.

        An image's own pseudo-labels are from the first pass, in train mode, as in the authors' code.
        """
        cfg, num_slots = self.config, len(part.observed.label)
        drop = drop_channels(at.generator("feature dropout"), num_slots, part.rows, cfg.feature_dropout)
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            features = self.student.encode(torch.cat([batch.image, batch.weak]))
            on_image, on_weak, on_features = classify_perturbed(self.student, features, len(batch.image), drop)
        weak = prediction(on_weak)
        own = StrongPairs(batch.strong[0], weak.label, weak.confidence, batch.valid, batch.strong[1])
        mixed, valid_px = cutmix_pairs(own, part, at.generator("cutmix"), cfg.cutmix_probability)
        with batch_norm(self.student, cfg.batch_norm, labeled=0):
            on_first, on_second = self.student(torch.cat([view.image for view in mixed])).chunk(2)

        labeled = cfg.labeled_loss(on_image, batch.label, part)  # L_s
        perturbed = cross_entropy(on_features, own.kept(cfg.threshold), part.valid_px)  # H(p^w, p^fp)
        first = cross_entropy(on_first, mixed[0].kept(cfg.threshold), valid_px[0])  # H(p^w, p^s1)
        second = cross_entropy(on_second, mixed[1].kept(cfg.threshold), valid_px[1])  # H(p^w, p^s2)
        strong = (first + second) / 2
        unlabeled = 0.5 * strong + 0.5 * perturbed  # L_u
        return Losses(
            total=(labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled) / 2,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "strong": strong.detach(),
                "features": perturbed.detach(),
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * part.share,
            },
        )

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the one network."""
        return {"student": (self.student,)}
