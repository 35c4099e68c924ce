"""CorrMatch: labels spread over regions that correlate (Sun et al., CVPR 2024).

A head learns which cells of an image belong together. Where a region of such cells is mostly confident of one class,
all its pixels get this label. One threshold for all classes follows the confidence of the network.

docs/methods/corrmatch.md says where each part of the paper is. Deviations from the authors' code: all regions vote with
the labels before propagation; the threshold changes after a step, by predictions in eval mode; pasted boxes do not
count in the soft loss; ignored and padded pixels take no part in correlations; the head has no dropout.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.features import drop_channels
from semiseg.augment.pairs import cutmix_view
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.losses import cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Features, Network, require_encoder
from semiseg.models.correlation import CorrelationHead, propagate, regions, spread
from semiseg.models.frames import cells, to_image, to_map
from semiseg.models.norms import batch_norm
from semiseg.models.perturbed import classify_perturbed
from semiseg.models.predict import predict, prediction
from semiseg.models.threshold import GlobalThreshold
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of CorrMatch. The defaults are those of the authors on PASCAL VOC."""

    threshold: float = Field(0.85, ge=0, le=1)  # before the first step; then it follows the network's confidence
    threshold_decay: float = Field(0.999, ge=0, le=1)  # of the running mean; 1: the threshold stays as it is
    unlabeled_weight: float = Field(1.0, ge=0)
    regions: int = Field(128, ge=1)  # cells of an image whose regions may get a label, drawn in each step
    channels: int = Field(256, ge=1)  # of the correlation head
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # 0 for no CutMix
    feature_dropout: float = Field(0.5, gt=0, lt=1)  # share of the channels that are dropped
    strong: Pool = jitter.Config()


class Method(SemiMethod, config=Config):
    """One network with a correlation head, and a threshold."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config, self.num_classes = config, len(classes)
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong,), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        require_encoder(self.student, "method.name: corrmatch", "method fixmatch")
        self.head = CorrelationHead(self.student, len(classes), config.channels)
        self.threshold = GlobalThreshold(config.threshold, config.threshold_decay)

    def observe(self, batch: SemiBatch, at: Progress) -> PseudoLabels:
        """Predicts the weak views in eval mode, for partners in CutMix and for the threshold."""
        predicted = predict(self.student, batch.weak)
        return PseudoLabels(batch.strong[0], predicted.label, predicted.confidence, batch.valid)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one pass over labeled images and weak views and one over strong views."""
        cfg, student, tau = self.config, self.student, self.threshold.value
        drop = drop_channels(at.generator("feature dropout"), len(part.observed.label), part.rows, cfg.feature_dropout)
        counted = torch.cat([batch.label != IGNORE, batch.valid])
        with batch_norm(self, cfg.batch_norm, len(batch.image)):
            features = student.encode(torch.cat([batch.image, batch.weak]))
            on_image, on_weak, on_features = classify_perturbed(student, features, len(batch.image), drop)
            correlation, correlated = self._correlate(features, torch.cat([on_image, on_weak]), counted)
        image_correlated, weak_correlated = torch.split(correlated, [len(batch.image), len(batch.weak)])

        weak = prediction(on_weak)
        own = PseudoLabels(batch.strong[0], weak.label, weak.confidence, batch.valid)
        mixed, box, mixed_px = cutmix_view(own, part, at.generator("cutmix"), cfg.cutmix_probability)
        with batch_norm(self, cfg.batch_norm, labeled=0):
            features = student.encode(mixed.image)
            on_strong = student.classify(student.decode(features), features.size)
            _, strong_correlated = self._correlate(features, on_strong, mixed.valid)

        confident = (mixed.confidence >= tau) & mixed.valid
        label, spreads = self._propagate(correlation[len(batch.image) :], features, mixed, own.valid & ~box, at)
        target = torch.where(spreads, label, IGNORE)
        divergence = F.kl_div(on_strong.float().log_softmax(1), on_weak.detach().float().softmax(1), reduction="none")
        shared = confident & ~box  # the weak view shows other things in the box

        labeled = cfg.labeled_loss(on_image, batch.label, part)  # L_s, hard
        labeled_correlated = cfg.labeled_loss(image_correlated, batch.label, part)
        terms = {
            "strong": cross_entropy(on_strong, target, mixed_px),  # L_u, hard
            "soft": torch.where(shared, divergence.sum(1), 0.0).sum() / mixed_px.clamp(min=1),  # L_u, soft
            "features": cross_entropy(on_features, own.kept(tau), part.valid_px),
            "correlation": cross_entropy(strong_correlated, target, mixed_px) / 2
            + cross_entropy(weak_correlated, own.kept(tau), part.valid_px) / 2,  # L_u, corr
        }
        unlabeled = torch.stack(list(terms.values())).mean()
        scalars = {"labeled": labeled, "labeled_correlation": labeled_correlated, "unlabeled": unlabeled, **terms}
        return Losses(
            total=((labeled + labeled_correlated) / 2 + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled)
            / 2,
            scalars={
                **{name: value.detach() for name, value in scalars.items()},
                "confident": confident_ratio(own.confidence, tau, own.valid).mean() * part.share,
                "propagated": (spreads & ~confident).sum() / mixed_px.clamp(min=1),
                "threshold": tau * part.share,
            },
        )

    def _correlate(
        self, features: Features, logits: Float[Tensor, "b c h w"], counted: Bool[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b c h w"]]:
        """Computes the correlation of the cells of each image, and logits that it spread. They train the head alone.

        The gradient reaches the encoder, too, but not the logits that are spread.
        """
        value = features.maps[-1]
        shape = (value.shape[-2], value.shape[-1])
        cell = cells(self.student, counted, shape)
        correlation = self.head(value, cell)
        spreading = to_map(self.student, logits.detach(), shape)
        return correlation, to_image(self.student, spread(correlation, spreading, cell), features.size)

    @torch.no_grad()
    def _propagate(
        self,
        correlation: Float[Tensor, "u n n"],
        features: Features,
        mixed: PseudoLabels,
        inside: Bool[Tensor, "u h w"],
        at: Progress,
    ) -> tuple[Int[Tensor, "u h w"], Bool[Tensor, "u h w"]]:
        """Spreads the pseudo-labels of each image over regions around some cells, image by image, to save memory."""
        rows, columns = features.maps[-1].shape[-2:]
        drawn = torch.randint(rows * columns, (self.config.regions,), generator=at.generator("regions"))
        drawn = drawn.to(inside.device, non_blocking=True)
        confident = (mixed.confidence >= self.threshold.value) & mixed.valid
        exists = cells(self.student, inside, (rows, columns)).flatten(1)[:, drawn]
        found = []
        for image, own in enumerate(correlation[:, drawn].view(-1, len(drawn), rows, columns)):
            region = regions(to_image(self.student, own[None], features.size)[0], inside[image], exists[image])
            found.append(
                propagate(region, mixed.label[image], confident[image], self.threshold.value, self.num_classes)
            )
        labels, spreads = zip(*found, strict=True)
        return torch.stack(labels), torch.stack(spreads)

    def after_step(self, at: Progress, observed: PseudoLabels) -> None:
        """Updates the threshold."""
        self.threshold.update(observed.label, observed.confidence, observed.valid, self.num_classes)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the one network, without the head."""
        return {"student": (self.student,)}
