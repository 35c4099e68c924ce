"""UniMatch V2: two strong views with complementary channel dropout (Yang et al., TPAMI 2025).

An EMA teacher labels the weak view. The student learns these labels on two strong views of the image, each with CutMix.
Each channel of the encoder's feature maps is dropped in one of the two views and doubled in the other.

docs/methods/unimatch_v2.md says where each part of the paper is. Deviations from the authors' code: the partner of
CutMix is random and never the image itself; labeled images and strong views go through the student in one pass, so with
batch norm they share its statistics, unless they are apart; the pool of strong operations is a setting.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.features import drop_complementary
from semiseg.augment.pairs import StrongPairs, cutmix_pairs
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import confident_ratio
from semiseg.losses import cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Features, Network, require_encoder
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import predict
from semiseg.types import ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of UniMatch V2. The defaults are those of the paper, for all its data."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau
    unlabeled_weight: float = Field(1.0, ge=0)  # lambda
    ema_decay: float = Field(0.996, ge=0, lt=1)
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of each strong view; 0 for no CutMix
    feature_dropout: Literal["complementary", "none"] = "complementary"
    whole_pairs: float | None = Field(None, ge=0, lt=1)  # share of the pairs that keep all channels; 0.5 if not given
    strong: Pool = jitter.Config()  # of both strong views

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.feature_dropout == "none" and self.whole_pairs is not None:
            raise ValueError("whole_pairs belongs to feature_dropout: complementary; remove it or choose that")
        return self


class Method(SemiMethod, config=Config):
    """Student and EMA teacher. The student sees two strong views."""

    compiles = False  # it calls the parts of its student

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong, config.strong), labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        self.teacher = make_teacher(self.student)
        if config.feature_dropout == "complementary":
            require_encoder(self.student, "method.feature_dropout: complementary", "method.feature_dropout: none")

    def observe(self, batch: SemiBatch, at: Progress) -> StrongPairs:
        """Labels both strong views with what the teacher predicts on the weak view, in eval mode."""
        predicted = predict(self.teacher, batch.weak)
        return StrongPairs(batch.strong[0], predicted.label, predicted.confidence, batch.valid, batch.strong[1])

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and strong views."""
        cfg, student = self.config, self.student
        own: StrongPairs = part.own
        mixed, valid_px = cutmix_pairs(own, part, at.generator("cutmix"), cfg.cutmix_probability)
        views = [batch.image, *(view.image for view in mixed)]
        with batch_norm(student, cfg.batch_norm, len(batch.image)):
            features = student.encode(torch.cat(views))
            if cfg.feature_dropout == "complementary":
                features = self._dropped(features, at, part)
            logits = student.classify(student.decode(features), features.size)
        on_image, on_first, on_second = torch.split(logits, [len(view) for view in views])

        labeled = cfg.labeled_loss(on_image, batch.label, part)  # L_x
        first = cross_entropy(on_first, mixed[0].kept(cfg.threshold), valid_px[0])  # H(p^w, p^s1)
        second = cross_entropy(on_second, mixed[1].kept(cfg.threshold), valid_px[1])  # H(p^w, p^s2)
        unlabeled = (first + second) / 2
        return Losses(
            total=(labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled) / 2,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * part.share,
            },
        )

    def _dropped(self, features: Features, at: Progress, part: Part) -> Features:
        """Drops channels of the two strong views, which follow the labeled images."""
        share = 0.5 if self.config.whole_pairs is None else self.config.whole_pairs
        widest = max(value.shape[1] for value in features.maps)
        generator, num_slots = at.generator("feature dropout"), len(part.observed.label)
        return features.each(drop_complementary(generator, num_slots, widest, part.rows, share))

    def after_step(self, at: Progress, observed: StrongPairs) -> None:
        """Updates the teacher."""
        ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher, whose mIoU the authors report, and the student."""
        return {"teacher": (self.teacher,), "student": (self.student,)}
