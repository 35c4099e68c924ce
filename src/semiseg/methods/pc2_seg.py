"""PC2Seg: pixel contrastive-consistent learning (Zhong et al., ICCV 2021), as we read its abstract.

The authors published no code. So this is our reading, not a reproduction: the probabilities of the strong view are
pulled to those of the weak view (label space); the representation of a place in the strong view is pulled to that of
the same place in the weak view, and away from those of places with another pseudo-label (feature space).

docs/methods/pc2_seg.md says what is the paper's and what is ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import contrastive_between_classes
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.bank import choose
from semiseg.models.build import Build, Network
from semiseg.models.cells import grid_of, padded_to_cells, represent_cells, whole_cells
from semiseg.models.heads import projector
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of our reading of PC2Seg. All defaults are ours."""

    consistency_weight: float = Field(1.0, ge=0)  # of the distance of probabilities
    contrastive_weight: float = Field(0.1, gt=0)
    temperature: float = Field(0.1, gt=0)
    channels: int = Field(128, ge=1)  # values in a representation
    cell: int = Field(8, ge=1)  # px: features are averaged over squares with this side
    anchors: int = Field(400, ge=1)  # cells of a strong view that learn in a step, at most
    negatives: int = Field(200, ge=1)  # cells of a weak view that are negatives, at most
    strong: Pool = jitter.Config()


@dataclass(frozen=True)
class Observed:
    """What the network makes of the weak views before the first gradient."""

    probability: Float[Tensor, "u c h w"]  # half precision: it is sent between processes
    valid: Bool[Tensor, "u h w"]
    label: Int[Tensor, "u k"]  # pseudo-label of each cell; IGNORE for padding
    key: Float[Tensor, "u k d"]  # its representation


class Method(SemiMethod, config=Config):
    """One network, with a projector."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(strong=(config.strong,), labeled=config.labeled)
        self.student = build()
        self.projector = projector(self.student, config.channels)

    @torch.no_grad()
    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Predicts the weak views and represents their cells, in eval mode."""
        with evaluating(self.student), evaluating(self.projector):
            features = self.student.encode(batch.weak)
            decoded = self.student.decode(features)
            probability = self.student.classify(decoded, features.size).float().softmax(1)
            padded = self.student.padded(features.size)
            grid = grid_of(decoded, padded, self.config.cell)
            key = represent_cells(self.projector, decoded, grid)
        label = padded_to_cells(probability, padded, grid).argmax(1)
        label = torch.where(whole_cells(batch.valid, padded, grid), label, IGNORE)
        return Observed(probability.half(), batch.valid, label.flatten(1), key.flatten(2).mT)

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the three losses, in one student pass over labeled images and strong views."""
        cfg, num_labeled, own = self.config, len(batch.image), part.own
        with batch_norm(self.student, cfg.batch_norm, num_labeled):
            features = self.student.encode(torch.cat([batch.image, batch.strong[0]]))
            decoded = self.student.decode(features)
            logits = self.student.classify(decoded, features.size)
        labeled = cfg.labeled_loss(logits[:num_labeled], batch.label, part)

        distance = (logits[num_labeled:].float().softmax(1) - own.probability.float()).square().sum(1)
        consistency = torch.where(batch.valid, distance, 0.0).sum() / part.valid_px.clamp(min=1)
        grid = grid_of(decoded, self.student.padded(features.size), cfg.cell)
        strong = represent_cells(self.projector, decoded[num_labeled:], grid).flatten(2).mT
        contrastive = self._contrast(strong, at, part)
        unlabeled = cfg.consistency_weight * consistency + cfg.contrastive_weight * contrastive
        terms = {"labeled": labeled, "unlabeled": unlabeled, "consistency": consistency, "contrastive": contrastive}
        return Losses(
            total=labeled + ramps.sigmoid(at, cfg.ramp) * unlabeled,
            scalars={name: term.detach() for name, term in terms.items()},
        )

    def _contrast(self, strong: Float[Tensor, "u k d"], at: Progress, part: Part) -> Float[Tensor, ""]:
        """Computes the part's share of the mean InfoNCE of cells of the strong views.

        A positive is the same cell of the weak view. Negatives are cells of all weak views with another pseudo-label.
        """
        cfg, everyone = self.config, part.observed
        index, drawn = choose(everyone.label != IGNORE, at.generator("anchors"), cfg.anchors)
        count = drawn.sum().clamp(min=1)  # in the whole batch
        index, drawn = index[part.rows], drawn[part.rows]
        anchor, positive = (
            value.gather(1, index[..., None].expand(-1, -1, cfg.channels)).flatten(0, 1)
            for value in (strong, part.own.key)
        )
        label = part.own.label.gather(1, index).flatten()
        cell = torch.randperm(everyone.label.shape[1], generator=at.generator("negatives"))[: cfg.negatives]
        cell = cell.to(index.device, non_blocking=True)
        negative = everyone.key.index_select(1, cell).flatten(0, 1)
        its = everyone.label.index_select(1, cell).flatten()
        loss = contrastive_between_classes(anchor, positive, label, negative, its, cfg.temperature)
        return torch.where(drawn.flatten(), loss, 0.0).sum() / count

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the student."""
        return {"student": (self.student,)}
