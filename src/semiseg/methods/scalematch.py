"""ScaleMatch: consistency over scales of images and of feature maps (2024).

One network labels the weak view: at first by its prediction, later by the fused predictions at two scales. It learns
these labels on a strong view, on the weak view at another scale, and on rescaled feature maps.

docs/methods/scalematch.md says where each part is. It is written from a description of the method alone, as the
authors' code has no licence. Deviations: a plain attention, pixel by pixel, fuses the two scales, not layers of RWKV;
the labeled loss is the mean of that of the prediction and of the fused one; padding is blank before it is resized.
"""

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.features import drop_channels
from semiseg.augment.pairs import cutmix_view
from semiseg.augment.pools import Pool
from semiseg.augment.scales import rescale, resize, sample_scale, seen_alone
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.losses import cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Features, Network, require_encoder
from semiseg.models.frames import to_image
from semiseg.models.norms import batch_norm
from semiseg.models.predict import predict, prediction
from semiseg.models.scales import ScaleAttention, fuse, rescale_features
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch


class Config(SemiConfig):
    """Settings of ScaleMatch. The defaults are those of the authors on PASCAL VOC, where they are known."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau; 0 on Cityscapes
    unlabeled_weight: float = Field(1.0, ge=0)
    scales: tuple[float, ...] = (0.25, 0.5, 1.5, 2.0)  # of images; a step draws one of them
    feature_scales: tuple[float, ...] = (0.75, 1.25)  # of feature maps; a step draws one of them
    fused_after: float = Field(10 / 80, ge=0, le=1)  # share of the run after which fused predictions are the labels
    attention_channels: int = Field(64, ge=1)  # our own choice
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of the strong view; 0 for no CutMix
    feature_dropout: float = Field(0.5, gt=0, lt=1)  # share of the channels of rescaled maps that are dropped
    strong: Pool = jitter.Config()

    @field_validator("scales", "feature_scales")
    @classmethod
    def _other_scales(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or not all(0.1 <= scale <= 4 and scale != 1 for scale in scales):
            raise ValueError(f"scales are numbers from 0.1 to 4, at least one, and none is 1; got {list(scales)}")
        return scales


class Method(SemiMethod, config=Config):
    """One network, with an attention over two scales."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong,), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        require_encoder(self.student, "method.name: scalematch", "method fixmatch")
        self.attention = ScaleAttention(self.student, config.attention_channels)

    def observe(self, batch: SemiBatch, at: Progress) -> PseudoLabels:
        """Predicts the weak views in eval mode, for partners in CutMix."""
        predicted = predict(self.student, batch.weak)
        return PseudoLabels(batch.strong[0], predicted.label, predicted.confidence, batch.valid)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses: one pass over labeled images and weak views, one at another scale, and a strong one.

        An image's own pseudo-labels are from the first two passes, in train mode.
        """
        cfg, student, num_labeled, known = self.config, self.student, len(batch.image), batch.label != IGNORE
        scale = sample_scale(at.generator("scale"), cfg.scales)
        weak = torch.where(batch.valid[:, None], batch.weak, 0.0)  # so padding has one color when it is resized
        images = torch.cat([batch.image, weak])
        with batch_norm(student, cfg.batch_norm, num_labeled):
            features = student.encode(images)
            logits, score = self._scored(features)
            other, other_score = self._scored(student.encode(rescale(images, scale)))
        other, other_score = (resize(value, features.size) for value in (other, other_score))
        fused = fuse(logits, other, score, other_score)
        with batch_norm(student, cfg.batch_norm, labeled=0):
            on_features = self._rescaled(features[num_labeled:], at, part)

        label = (fused if at.step >= cfg.fused_after * at.num_steps else logits)[num_labeled:]
        found = prediction(label)
        own = PseudoLabels(batch.strong[0], found.label, found.confidence, batch.valid)
        mixed, _, mixed_px = cutmix_view(own, part, at.generator("cutmix"), cfg.cutmix_probability)
        with batch_norm(student, cfg.batch_norm, labeled=0):
            on_strong = student(mixed.image)

        # ignored pixels mix into their neighbors at the other scale: these count in the first prediction alone
        clear = torch.where(seen_alone(known, scale), batch.label, IGNORE)
        plain = cfg.labeled_loss(logits[:num_labeled], batch.label, part)
        both = cfg.labeled_loss(fused[:num_labeled], clear, part)
        labeled = (plain + both) / 2  # L_x
        kept = own.kept(cfg.threshold)
        strong = cross_entropy(on_strong, mixed.kept(cfg.threshold), mixed_px)  # l(s)
        scaled = cross_entropy(other[num_labeled:], kept, part.valid_px)  # l(scale)
        disturbed = cross_entropy(on_features, kept, part.valid_px)  # l(fp)
        unlabeled = strong / 4 + scaled / 4 + disturbed / 2
        terms = {"labeled": labeled, "unlabeled": unlabeled, "strong": strong, "scaled": scaled, "features": disturbed}
        return Losses(
            total=(labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled) / 2,
            scalars={
                **{name: value.detach() for name, value in terms.items()},
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * part.share,
            },
        )

    def _scored(self, features: Features) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 h w"]]:
        """Computes logits and their scores for the attention, in the frame of the images."""
        decoded = self.student.decode(features)
        logits = self.student.classify(decoded, features.size)
        return logits, to_image(self.student, self.attention(decoded), features.size)

    def _rescaled(self, features: Features, at: Progress, part: Part) -> Float[Tensor, "u c h w"]:
        """Computes logits of rescaled feature maps with dropped channels, in the frame of the images."""
        cfg, num_slots = self.config, len(part.observed.label)
        scale = sample_scale(at.generator("feature scale"), cfg.feature_scales)
        drop = drop_channels(at.generator("feature dropout"), num_slots, part.rows, cfg.feature_dropout)
        changed = rescale_features(self.student, features, scale).each(drop)
        logits = self.student.classify(self.student.decode(changed), changed.size)
        return to_image(self.student, logits, features.size)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the one network, at one scale and without the attention."""
        return {"student": (self.student,)}
