"""GCT: guided collaborative training (Ke et al., ECCV 2020).

Two networks learn together. A flaw detector, trained on labeled images, says where a prediction is wrong: there a
network learns from the other one, and where both are wrong, to make fewer flaws.

docs/methods/gct.md says more. Deviations from the authors' code: ignored and padded pixels are not
counted and the detector does not see them; one pass of each network, and one backward pass for all terms, which gives
the gradients of the authors' separate steps.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from semiseg import optim, ramps
from semiseg.augment.views import Views
from semiseg.losses import counted_share
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.build import Build, Network
from semiseg.models.flaws import FlawDetector, clear_flaws, true_flaws
from semiseg.models.norms import batch_norm
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of GCT. The defaults are those of the authors' code on PASCAL VOC, but for a smaller detector."""

    correction_weight: float = Field(1.0, ge=0)  # lambda_fc, of the flaws where both networks are wrong
    consistency_weight: float = Field(100.0, ge=0)  # lambda_dc, of the distance to the better prediction
    ramp: float = Field(5 / 45, ge=0, le=1)  # of lambda_dc alone; theirs: 5 epochs
    threshold: float = Field(0.6, ge=0, le=1)  # xi: a pixel with a larger flaw is wrong
    dilations: int = Field(1, ge=0)  # nu, of the flaws that the detector should find
    detector_channels: int = Field(16, ge=2)  # of its first layer; the last one has 8 times as many. Paper: 64
    detector_weight: float = Field(10.0, gt=0)  # of the detector's own loss
    detector_lr: float = Field(1e-4, gt=0)  # of Adam


class Method(SemiMethod, config=Config):
    """Two networks and their flaw detector."""

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(labeled=config.labeled)
        self.first, self.second = build(), build()
        self.detector = FlawDetector(len(classes), config.detector_channels)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses of the networks and of the detector.

        A loss of the networks reaches the weights of the networks only, and the detector's loss those of the detector
        only. So one backward pass serves both steps of the authors. The detector runs twice on each prediction: with
        fixed weights, for the networks, and on a fixed prediction, for itself.
        """
        cfg, num_labeled, labeled_px = self.config, len(batch.image), part.labeled_px
        images = torch.cat([batch.image, batch.weak])
        counted = torch.cat([batch.label != IGNORE, batch.valid])
        counted_px = part.labeled_px + part.valid_px
        with batch_norm(self, cfg.batch_norm, num_labeled):
            logits = [network(images) for network in (self.first, self.second)]
        labeled = _sum(cfg.labeled_loss(one[:num_labeled], batch.label, part) for one in logits)

        probability = [one.float().softmax(1) for one in logits]
        seen = torch.where(counted[:, None], images, 0.0)
        judged = [torch.where(counted[:, None], one, 0.0) for one in probability]
        fixed = {name: parameter.detach() for name, parameter in self.detector.named_parameters()}
        flaws = [functional_call(self.detector, fixed, (seen, one)) for one in judged]
        better, both_wrong = better_predictions(
            probability, [clear_flaws(one, counted) for one in flaws], cfg.threshold
        )
        correction = _sum(counted_share(one**2, counted & both_wrong, counted_px) for one in flaws)  # L_fc
        distance = [(one - target).pow(2).mean(1) for one, target in zip(probability, better, strict=True)]
        consistency = _sum(counted_share(one, counted, counted_px) for one in distance)  # L_dc
        ramp = ramps.sigmoid(at, cfg.ramp)
        unlabeled = cfg.correction_weight * correction + cfg.consistency_weight * ramp * consistency

        found = [self.detector(seen, one.detach())[:num_labeled] for one in judged]
        true = [true_flaws(one[:num_labeled], batch.label, cfg.dilations) for one in probability]
        error = [(one - other) ** 2 for one, other in zip(found, true, strict=True)]
        detector = _sum(counted_share(one, batch.label != IGNORE, labeled_px) for one in error) / 2
        return Losses(
            total=labeled + unlabeled + cfg.detector_weight * detector,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "correction": correction.detach(),
                "consistency": consistency.detach(),
                "detector": detector.detach(),
                "both_wrong": counted_share(both_wrong.float(), counted, counted_px),
            },
        )

    def groups(self, settings: optim.Config) -> list[optim.Group]:
        """Returns the parameters of the networks, and those of the detector with an optimizer of their own.

        AdamW without weight decay is Adam.
        """
        networks = nn.ModuleList([self.first, self.second])
        adam = optim.Config(kind="adamw", lr=self.config.detector_lr, betas=(0.9, 0.99), weight_decay=0, power=0.9)
        return [*optim.encoder_and_rest(networks, settings), optim.Group([*self.detector.parameters()], adam)]

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns both networks."""
        return {"first": (self.first,), "second": (self.second,)}


@torch.no_grad()
def better_predictions(
    probability: list[Float[Tensor, "b c h w"]], flaws: list[Float[Tensor, "b h w"]], threshold: float
) -> tuple[list[Float[Tensor, "b c h w"]], Bool[Tensor, "b h w"]]:
    """Takes at each pixel the prediction with the smaller flaw: the target of L_dc.

    If both flaws are larger than `threshold`, or equal, each network keeps its own prediction.

    Returns:
        The target of each network, and where both flaws are larger than `threshold`.

    Example:
        The second network is wrong at the first pixel, both are at the second, and none is at the third.

        >>> predictions = [torch.full((1, 1, 1, 3), value) for value in (0.25, 0.75)]
        >>> flaws = [torch.tensor([[[0.2, 0.7, 0.0]]]), torch.tensor([[[0.9, 0.8, 0.0]]])]
        >>> better, both_wrong = better_predictions(predictions, flaws, threshold=0.6)
        >>> [target.flatten().tolist() for target in better]
        [[0.25, 0.25, 0.25], [0.25, 0.75, 0.75]]
        >>> both_wrong
        tensor([[[False,  True, False]]])
    """
    wrong = [one > threshold for one in flaws]
    first, second = (torch.where(bad, 1.0, one) for bad, one in zip(wrong, flaws, strict=True))
    better = [
        torch.where((first <= second)[:, None], probability[0], probability[1]),
        torch.where((second <= first)[:, None], probability[1], probability[0]),
    ]
    return better, wrong[0] & wrong[1]


def _sum(both: Iterable[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    return torch.stack(list(both)).sum()
