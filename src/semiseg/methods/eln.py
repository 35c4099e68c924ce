"""ELN: error localization network (Kwon and Kwak, CVPR 2022).

A third network learns on labeled images where a prediction is wrong. The student learns only those pseudo-labels of the
teacher that it takes for right. Auxiliary decoders, which are kept imperfect, show it errors of many kinds.

docs/methods/eln.md says where each part of the paper is. Deviations: all terms are computed in all phases, with weight
0 before their phase; conditions and balances are those of an image; the student is never set back to the teacher.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import class_contrast, cross_entropy, weighted_cross_entropy
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models import build as networks
from semiseg.models.build import Build, Features, Network, require_encoder
from semiseg.models.ema import ema_, ema_decay, make_teacher
from semiseg.models.heads import decoded_channels, values_at
from semiseg.models.localization import is_right, localization_loss, seen_by_localizer
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch

_REPRESENTATION = 128  # values


class Config(SemiConfig):
    """Settings of ELN. The defaults are those of the authors' code on PASCAL VOC."""

    supervised: float = Field(0.14, ge=0, lt=1)  # share of the run with labels alone
    localizing: float = Field(0.1, ge=0, lt=1)  # share of the run after it, with auxiliary decoders and localizer
    auxiliary_factors: tuple[float, ...] = (
        20.0,
        50.0,
    )  # of each auxiliary decoder: its loss over the main one, at least
    unlabeled_weight: float = Field(1.0, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)
    temperature: float = Field(0.5, gt=0)
    pixels: int = Field(256, ge=1)  # of an image that the contrastive loss sees in a step
    ema_decay: float = Field(0.995, ge=0, lt=1)
    localizer: networks.Config = networks.Config(encoder="resnet34", weights=None)
    strong: Pool = jitter.Config(
        jitter_probability=1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_probability=0
    )

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        if self.supervised + self.localizing >= 1:
            raise ValueError("supervised and localizing leave no part of the run for unlabeled images; their sum is 1")
        if not all(factor >= 0 for factor in self.auxiliary_factors):
            raise ValueError(f"auxiliary_factors must be 0 or more, got {list(self.auxiliary_factors)}")
        return self


@dataclass(frozen=True)
class Observed:
    """What ELN knows before the first gradient. Sampled pixels are at the same places in all images."""

    label: Int[Tensor, "u h w"]  # of the teacher; IGNORE where the localizer takes it for wrong, and where padded
    key: Float[Tensor, "u n d"]  # the teacher's representations of the sampled pixels
    key_label: Int[Tensor, "u n"]


class Method(SemiMethod, config=Config):
    """Student, EMA teacher, auxiliary decoders, and the localizer of errors."""

    compiles = False  # it calls the parts of its networks
    auxiliary: Any  # networks; nn.ModuleList would hide their parts

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(strong=(config.strong,), labeled=config.labeled)
        self.student = build()
        require_encoder(self.student, "method.name: eln", "method gct")
        width = decoded_channels(self.student)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, _REPRESENTATION))
        self.teacher, self.teacher_projector = make_teacher(self.student), make_teacher(self.projector)
        self.auxiliary = nn.ModuleList(_without_encoder(build()) for _ in config.auxiliary_factors)
        self.localizer = build(1, 4 + len(classes), config.localizer)

    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Labels the weak views, where the localizer trusts the teacher, both in eval mode."""
        with evaluating(self.teacher), evaluating(self.localizer):
            features = self.teacher.encode(batch.weak)
            decoded = self.teacher.decode(features)
            logits = self.teacher.classify(decoded, features.size)
            trusted = self.localizer(seen_by_localizer(batch.weak, logits))[:, 0] > 0
        label = torch.where(trusted & batch.valid, logits.argmax(1), IGNORE)
        pixel = self._pixels(batch, at)
        key = self.teacher_projector(values_at(self.teacher, decoded, pixel, features.size)).float()
        return Observed(label, key, label.flatten(1).index_select(1, pixel))

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and both views of unlabeled ones."""
        cfg, student, (b, u) = self.config, self.student, (len(batch.image), len(batch.weak))
        everyone, own = part.observed, part.own
        with batch_norm(student, cfg.batch_norm, b):
            features = student.encode(torch.cat([batch.image, batch.weak, *batch.strong]))
            decoded = student.decode(features)
            on_image, on_weak, on_strong = torch.split(student.classify(decoded, features.size), [b, u, u])
        labeled = cfg.labeled_loss(on_image, batch.label, part)  # L_sup
        auxiliary, localization = self._errors(batch, features[:b].detached(), on_image.detach(), part)

        trusted_px = (everyone.label != IGNORE).sum()
        unlabeled = cross_entropy(on_weak, own.label, trusted_px) + cross_entropy(on_strong, own.label, trusted_px)
        value = values_at(student, decoded[b:], self._pixels(batch, at), features.size)
        anchor = self.projector(value).view(2, *own.key.shape)
        contrast = contrastive_share(anchor[0], own, everyone, cfg.temperature)
        contrast = contrast + contrastive_share(anchor[1], own, everyone, cfg.temperature)

        first, second = self._starts(at)
        total = labeled + float(at.step >= first) * (auxiliary + localization)
        semi = cfg.unlabeled_weight * unlabeled + cfg.contrastive_weight * contrast
        terms = {"labeled": labeled, "auxiliary": auxiliary, "localization": localization, "unlabeled": unlabeled}
        valid_px = part.valid_px.clamp(min=1)
        return Losses(
            total=total + float(at.step >= second) * ramps.sigmoid(at, cfg.ramp) * semi,
            scalars={
                **{name: term.detach() for name, term in terms.items()},
                "contrastive": contrast.detach(),
                "trusted": (own.label != IGNORE).sum() / valid_px,
            },
        )

    def _errors(
        self, batch: SemiBatch, features: Features, on_image: Float[Tensor, "b c h w"], part: Part
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Computes the losses of the auxiliary decoders and of the localizer on labeled images.

        An auxiliary decoder learns from an image only while its loss there is at least a multiple of the main one.
        """
        weight = (batch.label != IGNORE).float()
        label, labeled_px = torch.where(batch.label != IGNORE, batch.label, 0), part.labeled_px.clamp(min=1)
        main, logits, total = (
            weighted_cross_entropy(on_image, label, weight),
            [on_image],
            on_image.new_zeros(()).float(),
        )
        for decoder, factor in zip(self.auxiliary, self.config.auxiliary_factors, strict=True):
            logits.append(decoder.classify(decoder.decode(features), features.size))
            loss = weighted_cross_entropy(logits[-1], label, weight)
            bad_enough = loss.detach() >= factor * main
            total = total + torch.where(bad_enough, loss * weight.sum((1, 2)), 0.0).sum() / labeled_px
        images, labels = torch.cat([batch.image] * len(logits)), torch.cat([batch.label] * len(logits))
        shown = torch.cat([one.detach() for one in logits])
        found = self.localizer(seen_by_localizer(images, shown))[:, 0]
        return total, localization_loss(found, is_right(shown, labels), labels).sum() / labeled_px

    def _pixels(self, batch: SemiBatch, at: Progress) -> Int[Tensor, " n"]:
        """Draws the pixels that the contrastive loss sees, at the same places in all images."""
        order = torch.randperm(batch.valid[0].numel(), generator=at.generator("pixels"))[: self.config.pixels]
        return order.to(batch.valid.device, non_blocking=True)

    def _starts(self, at: Progress) -> tuple[int, int]:
        """Returns the first step of the second and of the third phase."""
        cfg = self.config
        return round(cfg.supervised * at.num_steps), round((cfg.supervised + cfg.localizing) * at.num_steps)

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Updates the teacher, which is a copy of the student until the third phase."""
        decay = ema_decay(at.step, self.config.ema_decay, copy_steps=self._starts(at)[1])
        ema_(self.teacher, self.student, decay)
        ema_(self.teacher_projector, self.projector, decay)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the student, which is the authors' final network, and the teacher."""
        return {"student": (self.student,), "teacher": (self.teacher,)}


def contrastive_share(
    anchor: Float[Tensor, "u n d"], own: Observed, everyone: Observed, temperature: float
) -> Float[Tensor, ""]:
    """Computes a part's share in the contrastive loss: mean over the anchors of a class, then over classes."""
    label, keys = own.key_label.flatten(), everyone.key_label.flatten()
    count = torch.zeros(IGNORE + 1, device=keys.device).scatter_add_(
        0, keys, torch.ones_like(keys, dtype=torch.float32)
    )
    num_classes = (count[:IGNORE] > 0).sum().clamp(min=1)
    loss = class_contrast(anchor.flatten(0, 1), label, everyone.key.flatten(0, 1), keys, temperature)
    return (loss / count[label].clamp(min=1)).sum() / num_classes


def _without_encoder(network: Network) -> Network:
    network.net.encoder = nn.Identity()
    return network
