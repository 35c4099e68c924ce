"""CCT: cross-consistency training (Ouali et al., CVPR 2020).

Auxiliary decoders see perturbed features of the encoder. They learn to predict what the main decoder predicts from the
features as they are. Only the encoder and the auxiliary decoders learn from unlabeled images.

docs/methods/cct.md says where each part of the paper is. Deviations: the feature map is the last one of the encoder, so
a context module of the decoder is not shared; boxes of objects are those of classes; padded pixels do not count.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from semiseg import ramps
from semiseg.augment import features as perturb
from semiseg.augment.adversarial import adversarial_noise, sample_direction
from semiseg.augment.overlap import at_scale
from semiseg.augment.views import Views
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.auxiliary import AuxiliaryDecoder, last_map
from semiseg.models.build import Build, Network, require_encoder
from semiseg.models.norms import batch_norm
from semiseg.models.predict import most_likely
from semiseg.rng import uniform
from semiseg.types import ClassTable, Losses, Part, Progress, SemiBatch


class Decoders(BaseModel):
    """The number of auxiliary decoders for each kind of perturbation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vat: int = Field(2, ge=0)  # noise that changes the prediction of the decoder most
    dropout: int = Field(6, ge=0)  # of channels
    cutout: int = Field(6, ge=0)  # a part of the box of each class
    context_mask: int = Field(2, ge=0)  # hides what is no object
    object_mask: int = Field(2, ge=0)  # hides objects
    feature_drop: int = Field(6, ge=0)  # of the most active places
    feature_noise: int = Field(6, ge=0)

    def kinds(self) -> list[str]:
        """Returns the kind of each decoder."""
        return [kind for kind, number in self for _ in range(number)]


# The settings of a kind of perturbation.
_OF_KIND = {
    "vat": "vat_radius",
    "dropout": "dropout_probability",
    "cutout": "cutout_side",
    "feature_drop": "kept_below",
    "feature_noise": "noise_amplitude",
}


class Config(SemiConfig):
    """Settings of CCT. The defaults are those of the authors' code on PASCAL VOC."""

    decoders: Decoders = Decoders()
    unlabeled_weight: float = Field(30.0, ge=0)
    ramp: float = Field(0.1, ge=0, le=1)
    vat_radius: float = Field(2.0, gt=0)  # epsilon: length of the noise
    dropout_probability: float = Field(0.5, gt=0, lt=1)
    cutout_side: float = Field(0.4, gt=0, le=1)  # height and width of a cut over those of the box
    kept_below: tuple[float, float] = (
        0.7,
        0.9,
    )  # range of gamma: active places have this share of the largest activity
    noise_amplitude: float = Field(0.3, gt=0)

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Config":
        if not self.decoders.kinds():
            raise ValueError("decoders: there are none; use at least one, or method supervised")
        for kind, name in _OF_KIND.items():
            if not getattr(self.decoders, kind) and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing without decoders of kind {kind}; remove one of them")
        if not 0 < self.kept_below[0] <= self.kept_below[1]:
            raise ValueError(f"kept_below needs [low, high] with 0 < low <= high, got {list(self.kept_below)}")
        return self


@dataclass(frozen=True)
class Guide:
    """What perturbations need to know about the unlabeled images, besides their features."""

    valid: Bool[Tensor, "u H W"]  # at the size of the image
    counted: Bool[Tensor, "u h w"]  # at the scale of the features, as the next one
    member: Bool[Tensor, "u c h w"]  # the places of each class but the context, as the main decoder predicts them


class Method(SemiMethod, config=Config):
    """One network and its auxiliary decoders."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(labeled=config.labeled)
        self.student = build()
        require_encoder(self.student, "method.name: cct", "method cps")
        context = classes.background or 0  # class 0 if the data name no background, as in the authors' code
        self.objects = [index for index in range(len(classes)) if index != context]
        self.kinds = config.decoders.kinds()
        channels, scale = last_map(self.student)
        self.auxiliary = nn.ModuleList(AuxiliaryDecoder(channels, len(classes), scale) for _ in self.kinds)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one pass of the encoder and the main decoder over all images."""
        cfg, student, b = self.config, self.student, len(batch.image)
        with batch_norm(student, cfg.batch_norm, b):
            features = student.encode(torch.cat([batch.image, batch.weak]))
            logits = student.classify(student.decode(features), features.size)
        value, target = features.maps[-1][b:], logits[b:].detach().float().softmax(1)
        guide = self._guide(target, batch.valid, value)
        distances = []
        for number, (kind, decoder) in enumerate(zip(self.kinds, self.auxiliary, strict=True)):
            perturbed = self._perturbed(kind, value, guide, decoder, at.generator("auxiliary", number), part)
            probability = self._decoded(decoder, perturbed, features.size).float().softmax(1)
            distance = F.mse_loss(probability, target, reduction="none").mean(1)
            distances.append(torch.where(batch.valid, distance, 0.0).sum())
        labeled = cfg.labeled_loss(logits[:b], batch.label, part)  # L_s
        unlabeled = torch.stack(distances).mean() / part.valid_px.clamp(min=1)  # L_u
        return Losses(
            total=labeled + cfg.unlabeled_weight * ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={"labeled": labeled.detach(), "unlabeled": unlabeled.detach()},
        )

    def _decoded(self, decoder: nn.Module, value: Tensor, size: tuple[int, int]) -> Tensor:
        return decoder(value, size, self.student.padded(size))

    def _guide(self, target: Float[Tensor, "u c H W"], valid: Bool[Tensor, "u H W"], value: Tensor) -> Guide:
        label, (height, width) = most_likely(target), value.shape[-2:]
        padded = self.student.padded((valid.shape[1], valid.shape[2]))
        shown = torch.stack([valid, *((label == index) & valid for index in self.objects)], 1)
        shown = at_scale(shown.flatten(0, 1), (height, width), padded).view(*shown.shape[:2], height, width)
        return Guide(valid, shown[:, 0], shown[:, 1:])

    def _perturbed(
        self,
        kind: str,
        value: Float[Tensor, "u d h w"],
        guide: Guide,
        decoder: nn.Module,
        generator: torch.Generator,
        part: Part,
    ) -> Float[Tensor, "u d h w"]:
        """Perturbs the features for one decoder (Sec. 3.3). Values that differ between images are drawn for all."""
        cfg, slots, rows = self.config, part.num_slots, part.rows
        shape = (value.shape[1], value.shape[2], value.shape[3])
        match kind:
            case "vat":
                size = (guide.valid.shape[1], guide.valid.shape[2])
                direction = sample_direction(generator, shape)
                return value + adversarial_noise(
                    lambda point: self._decoded(decoder, point, size), value, direction, cfg.vat_radius, guide.valid
                )
            case "dropout":
                factor = perturb.sample_channel_dropout(generator, slots, shape[0], cfg.dropout_probability)
                return perturb.scale_channels(value, factor[rows])
            case "cutout":
                position = perturb.sample_positions(generator, slots, len(self.objects))[rows]
                return value * ~perturb.cuts(guide.member, position, cfg.cutout_side)[:, None]
            case "context_mask":
                return value * guide.member.any(1, keepdim=True)
            case "object_mask":
                return value * ~guide.member.any(1, keepdim=True)
            case "feature_drop":
                share = uniform(generator, *cfg.kept_below, slots)[rows]
                return perturb.drop_most_active(value, guide.counted, share)
        factor = perturb.sample_noise(generator, shape, cfg.noise_amplitude)
        return value * factor.to(value.device, value.dtype, non_blocking=True)

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the one network, with its main decoder."""
        return {"student": (self.student,)}
