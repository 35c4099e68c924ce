"""iMAS with two strong views: its easiness on the views of UniMatch V2 (our own; asked for in iMAS #22).

An unlabeled image is hard if the student and an EMA teacher disagree about it. Both of its strong views are softened,
paired with an easy image, and weighted by its easiness. Each ingredient is a switch; with all off it is FixMatch.

docs/methods/imas_views.md says where each part comes from. Deviations from iMAS: CutMix pastes strong views, not weak
ones, into each view with a fixed probability; the pool of operations is jitter, gray and blur; classes of which the
student is unsure on labeled images may be pasted into the unlabeled ones (AEL).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment import paste as copy_paste
from semiseg.augment.blend import blend
from semiseg.augment.cutmix import hard_easy_partners, random_partners
from semiseg.augment.features import drop_complementary
from semiseg.augment.pairs import StrongPairs, cutmix_pairs
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.hardness import class_to_ignore, confident_ratio, easiness
from semiseg.losses import confident_cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.alignment import DistributionAlignment
from semiseg.models.build import Build, Network, require_encoder
from semiseg.models.confidence import ClassConfidence, class_sums, true_class_probability
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating, predict, prediction
from semiseg.types import ClassTable, Losses, Part, Progress, PseudoLabels, SemiBatch

Adaptive = Literal["adaptive", "standard"]


class Config(SemiConfig):
    """Settings of iMAS with two strong views."""

    threshold: float = Field(0.95, ge=0, le=1)  # tau
    unlabeled_weight: float = Field(1.0, ge=0)  # lambda_u
    ema_decay: float = Field(0.996, ge=0, lt=1)
    strong: Pool = jitter.Config()
    views: Literal[1, 2] = 2  # strong views
    loss: Adaptive = "adaptive"  # weight of an image's loss: its easiness; standard: 1
    intensity: Adaptive = "adaptive"  # strong views of hard images are softened; standard: none is
    # CutMix pairs the hardest with the easiest image (adaptive, if nothing is given), or random ones (standard)
    pairs: Adaptive | None = None
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of each strong view; 0 for no CutMix
    feature_dropout: Literal["complementary", "none"] | None = None  # None: complementary, if there are two views
    paste: copy_paste.Config | None = None  # of classes of labeled images into the strong views; null: none
    alignment: float = Field(0.0, ge=0, le=1)  # of pseudo-labels with the class frequencies of the labeled images
    ignore_class: int | Literal["background", "none"] = "background"  # this class has no weight in wIoU

    @property
    def adapts(self) -> bool:
        """Returns whether anything depends on easiness."""
        return self.pairs_adapt or "adaptive" in (self.loss, self.intensity)

    @property
    def pairs_adapt(self) -> bool:
        """Returns whether CutMix pairs hard images with easy ones."""
        return self.cutmix_probability > 0 and self.pairs != "standard"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if self.views == 1 and self.feature_dropout == "complementary":
            raise ValueError("feature_dropout: complementary needs views: 2; use none")
        if not self.cutmix_probability and self.pairs is not None:
            raise ValueError("pairs needs a cutmix_probability above 0; remove it")
        if not self.adapts and self.ignore_class != "background":
            raise ValueError("ignore_class belongs to loss, intensity or pairs: adaptive; remove it or choose one")
        return self


@dataclass(frozen=True)
class Observed(StrongPairs):
    """Of each slot: two strong views with the teacher's labels, easiness, and what others need of the labeled image."""

    easy: Float[Tensor, " u"]  # 1 - gamma (iMAS, Eq. 7)
    giver: Float[Tensor, "u 3 H W"]  # the labeled image, which may give pixels; without `paste` it has no pixels
    giver_label: Int[Tensor, "u H W"]
    total: Float[Tensor, "u c"]  # sum of the student's probabilities of the true class, over its labeled pixels
    count: Float[Tensor, "u c"]  # number of these pixels
    mass: Float[Tensor, "u c"]  # sum of the teacher's probabilities over the valid pixels of the unlabeled image


class Method(SemiMethod, config=Config):
    """Student and EMA teacher. The student sees one or two strong views."""

    compiles = False  # it calls the parts of its student

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config, self.num_classes = config, len(classes)
        partners = 2 if config.cutmix_probability else 1
        self.views = Views(strong=(config.strong,) * config.views, labeled=config.labeled, min_unlabeled=partners)
        self.student = build()
        self.teacher = make_teacher(self.student)
        self.ignore_class = class_to_ignore(config.ignore_class, classes)
        self.drops = config.views == 2 and config.feature_dropout != "none"
        if self.drops:
            require_encoder(self.student, "method.feature_dropout: complementary", "method.feature_dropout: none")
        if config.paste is not None:
            self.pasteable = config.paste.allowed(classes, "method.paste")
            self.bank = ClassConfidence(len(classes))
        if config.alignment:
            self.align = DistributionAlignment(len(classes), config.alignment)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Computes pseudo-labels, easiness and strong views of each unlabeled image; all predictions in eval mode."""
        cfg, classes, one = self.config, self.num_classes, torch.ones_like(batch.image[:, 0])
        count = total = mass = class_sums(one, batch.label, classes)
        with evaluating(self.teacher):
            logits = self.teacher(batch.weak)
        if cfg.alignment:
            mass = (logits.softmax(1, torch.float32) * batch.valid[:, None]).sum((2, 3))
            logits = self.align(logits)
        teacher, strong, easy = prediction(logits), batch.strong, torch.ones_like(mass[:, 0])
        if cfg.adapts:
            student = predict(self.student, batch.weak)
            easy = easiness(student, teacher, cfg.threshold, batch.valid, self.ignore_class)
        if cfg.intensity == "adaptive":
            strong = tuple(blend(batch.weak, view, easy) for view in strong)
        given = 0  # rows of labeled images that others need
        if cfg.paste is not None:
            true, given = true_class_probability(self.student, batch.image, batch.label), batch.label.shape[1]
            total = class_sums(true, batch.label, classes)
        labels = (teacher.label, teacher.confidence, batch.valid)
        giver = (batch.image[:, :, :given], batch.label[:, :given])
        return Observed(strong[0], *labels, strong[-1], easy, *giver, total, count, mass)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and strong views."""
        cfg, student, share = self.config, self.student, part.share
        own: Observed = part.own
        mixed = [self._paste(view, at, part) for view in self._cutmix(at, part)]
        views = [batch.image, *(view.image for view in mixed)]
        with batch_norm(student, cfg.batch_norm, len(batch.image)):
            features = student.encode(torch.cat(views))
            if self.drops:
                widest, num_slots = max(value.shape[1] for value in features.maps), len(part.observed.label)
                drop = drop_complementary(at.generator("feature dropout"), num_slots, widest, part.rows)
                features = features.each(drop)
            logits = student.classify(student.decode(features), features.size)
        on_image, *on_views = torch.split(logits, [len(view) for view in views])

        labeled = cfg.labeled_loss(on_image, batch.label, part)
        each = [
            confident_cross_entropy(on_view, view.label, view.confidence, cfg.threshold, view.valid)
            for on_view, view in zip(on_views, mixed, strict=True)
        ]
        weight = own.easy if cfg.loss == "adaptive" else torch.ones_like(own.easy)
        unlabeled = (weight * torch.stack(each).mean(0)).mean() * share  # iMAS, Eq. 11
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "easiness": own.easy.mean() * share,
                "confident": confident_ratio(own.confidence, cfg.threshold, own.valid).mean() * share,
            },
            hardness=1 - own.easy if cfg.adapts else None,
        )

    def _cutmix(self, at: Progress, part: Part) -> list[PseudoLabels]:
        """Pastes a box of the partner's strong views into some of the part's strong views, with its pseudo-labels."""
        cfg, generator = self.config, at.generator("cutmix")
        partner = hard_easy_partners(part.observed.easy) if cfg.pairs_adapt else None  # iMAS, Sec. 3.4
        return cutmix_pairs(part.own, part, generator, cfg.cutmix_probability, partner, cfg.views)[0]

    def _paste(self, view: PseudoLabels, at: Progress, part: Part) -> PseudoLabels:
        """Pastes classes of another slot's labeled image, the same into both views; unsure classes more often."""
        settings, everyone = self.config.paste, part.observed
        if settings is None:
            return view
        generator, device, num_slots = at.generator("paste"), view.label.device, len(everyone.label)
        giver = random_partners(num_slots, generator)[part.rows].to(device, non_blocking=True)
        drawn = settings.sample(generator, num_slots, self.num_classes)[part.rows].to(device)
        classes = self.bank.draw(drawn.pick, self.pasteable.to(device, non_blocking=True))
        return copy_paste.paste_classes(view, everyone.giver[giver], everyone.giver_label[giver], drawn, classes)

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Updates the teacher, class confidence and class frequencies."""
        if self.config.paste is not None:
            self.bank.update(observed.total, observed.count)
        if self.config.alignment:
            self.align.update(observed.count, observed.mass)
        ema_(self.teacher, self.student, ema_decay(at.step, self.config.ema_decay))

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the teacher and the student."""
        return {"teacher": (self.teacher,), "student": (self.student,)}
