"""CAC: directional context-aware consistency (Lai et al., CVPR 2021).

Two crops of an unlabeled image overlap. What both show must look alike to the network, whatever is around it: where one
crop makes it more confident than the other one, the representation of the other one is pulled to that of the first.

docs/methods/cac.md says where each part of the paper is. Deviations from the authors' code: classes and confidences are
from a pass in eval mode before the step; anchors and negatives are some of the places, not all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from semiseg import ramps
from semiseg.augment import jitter
from semiseg.augment.overlap import seen_in_both, to_first
from semiseg.augment.pools import Pool
from semiseg.augment.views import Views
from semiseg.losses import contrastive_between_classes
from semiseg.method import SemiConfig, SemiMethod
from semiseg.models.bank import choose
from semiseg.models.build import Build, Network
from semiseg.models.cells import grid_of, padded_to_cells, represent_cells, whole_cells
from semiseg.models.heads import projector
from semiseg.models.memory import Memory
from semiseg.models.norms import batch_norm
from semiseg.models.predict import evaluating, prediction
from semiseg.types import IGNORE, ClassTable, Losses, Part, Progress, SemiBatch


class Config(SemiConfig):
    """Settings of CAC. The defaults are those of the authors' code on PASCAL VOC, but for three limits."""

    threshold: float = Field(0.75, ge=0, le=1)  # a place is learned from if its confidence is higher
    contrastive_weight: float = Field(0.1, gt=0)
    warmup: float = Field(5 / 80, ge=0, le=1)  # share of the run with the labeled loss alone; theirs: 5 epochs
    overlap: tuple[float, float] = (0.1, 1.0)  # IoU of the two crops
    strong: Pool = jitter.Config(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, sigma=(1.1, 1.1))
    temperature: float = Field(0.1, gt=0)
    channels: int = Field(128, ge=1)  # values in a representation
    cell: int = Field(8, ge=1)  # px: features are averaged over squares with this side
    anchors: int = Field(400, ge=1)  # cells of an image that learn in a step, at most; theirs: all
    negatives: int = Field(100, ge=1)  # cells of a crop that are negatives, at most; theirs: all
    memory: int = Field(2048, ge=1)  # negatives of earlier steps; theirs: all of the step before

    @field_validator("overlap")
    @classmethod
    def _possible(cls, overlap: tuple[float, float]) -> tuple[float, float]:
        Views(overlap=overlap)
        return overlap


@dataclass(frozen=True)
class Observed:
    """What CAC knows of the cells of both crops before the first gradient, in the frame of the first crop."""

    label: Int[Tensor, "u 2 k"]
    confidence: Float[Tensor, "u 2 k"]
    seen: Bool[Tensor, "u k"]  # both crops show the cell
    key: Float[Tensor, "u 2 n d"]  # representations of sampled cells, each crop in its own frame
    key_label: Int[Tensor, "u 2 n"]  # their classes; IGNORE for padding

    def learning(self, threshold: float) -> Bool[Tensor, "2 u k"]:
        """Returns where the first crop learns from the second one, and where the second learns from the first."""
        first, second = self.confidence.unbind(1)
        return torch.stack(learners(first, second, threshold)) & self.seen


class Method(SemiMethod, config=Config):
    """One network, with a projector and a memory of negatives."""

    compiles = False  # it calls the parts of its network

    def __init__(self, config: Config, build: Build, classes: ClassTable) -> None:
        super().__init__(config, build, classes)
        self.config = config
        self.views = Views(strong=(config.strong,), labeled=config.labeled, overlap=config.overlap)
        self.student = build()
        self.projector = projector(self.student, config.channels)
        self.memory = Memory(config.memory, config.channels)

    @torch.no_grad()
    def observe(self, batch: SemiBatch, at: Progress) -> Observed:
        """Computes class, confidence and representation of the cells of both crops, in eval mode."""
        assert batch.second is not None
        with evaluating(self.student), evaluating(self.projector):
            features = self.student.encode(torch.cat([batch.strong[0], batch.second.strong[0]]))
            decoded = self.student.decode(features)
            logits = self.student.classify(decoded, features.size).float()
            padded = self.student.padded(features.size)
            grid = grid_of(decoded, padded, self.config.cell)
            representation = represent_cells(self.projector, decoded, grid)
        predicted = prediction(padded_to_cells(logits, padded, grid))
        (label, its), (confidence, sure) = predicted.label.chunk(2), predicted.confidence.chunk(2)
        valid, its_valid = (whole_cells(crop.valid, padded, grid) for crop in (batch, batch.second))
        align, cell = batch.second.align, self._cells(grid, at).to(label.device, non_blocking=True)
        known = [torch.where(valid, label, IGNORE), torch.where(its_valid, its, IGNORE)]
        return Observed(
            label=torch.stack([label, to_first(its, align, padded)], 1).flatten(2),
            confidence=torch.stack([confidence, to_first(sure, align, padded)], 1).flatten(2),
            seen=seen_in_both(valid, its_valid, align, padded).flatten(1),
            key=torch.stack(representation.flatten(2).index_select(2, cell).mT.chunk(2), 1),
            key_label=torch.stack(known, 1).flatten(2).index_select(2, cell),
        )

    def forward(self, batch: SemiBatch, at: Progress, part: Part) -> Losses:
        """Computes the losses, in one student pass over labeled images and both crops."""
        assert batch.second is not None
        cfg, everyone, own = self.config, part.observed, part.own
        with batch_norm(self.student, cfg.batch_norm, len(batch.image)):
            features = self.student.encode(torch.cat([batch.image, batch.strong[0], batch.second.strong[0]]))
            decoded = self.student.decode(features)
        labeled = cfg.labeled_loss(self.student.classify(decoded[: len(batch.image)], features.size), batch.label, part)
        padded = self.student.padded(features.size)
        grid = grid_of(decoded, padded, cfg.cell)
        first, second = represent_cells(self.projector, decoded[len(batch.image) :], grid).chunk(2)
        second = to_first(second, batch.second.align, padded)

        learning = everyone.learning(cfg.threshold)
        index, drawn = choose(learning.any(0), at.generator("anchors"), cfg.anchors)
        learning = learning.gather(2, index.expand(2, -1, -1)) & drawn
        count = learning.sum((1, 2), keepdim=True).clamp(min=1)  # of each direction, in the whole batch
        learning, index = learning[:, part.rows], index[part.rows]
        one, other = (value.flatten(2).mT.gather(1, _each(index, value.shape[1])) for value in (first, second))
        label, its = (each.gather(1, index) for each in own.label.unbind(1))
        is_first = learning[0]  # a cell learns in one direction at most
        anchor = torch.where(is_first[..., None], one, other)
        positive = torch.where(is_first[..., None], other, one).detach()
        loss = self._contrast(anchor, positive, torch.where(is_first, label, its), everyone)
        unlabeled = torch.where(learning, loss / count, 0.0).sum()
        weight = cfg.contrastive_weight * float(at.step >= cfg.warmup * at.num_steps) * ramps.sigmoid(at, cfg.ramp)
        seen = everyone.seen.sum().clamp(min=1)
        return Losses(
            total=labeled + weight * unlabeled,
            scalars={
                "labeled": labeled.detach(),
                "unlabeled": unlabeled.detach(),
                "learning": own.learning(cfg.threshold).sum() / seen,
            },
        )

    def _contrast(
        self,
        anchor: Float[Tensor, "u a d"],
        positive: Float[Tensor, "u a d"],
        label: Int[Tensor, "u a"],
        everyone: Observed,
    ) -> Float[Tensor, "u a"]:
        """Computes the loss of each anchor. Its negatives are of another class, from this step or from the memory."""
        negative = torch.cat([everyone.key.flatten(0, 2), self.memory.key])
        its = torch.cat([everyone.key_label.flatten(), self.memory.label])
        each = contrastive_between_classes(
            anchor.flatten(0, 1), positive.flatten(0, 1), label.flatten(), negative, its, self.config.temperature
        )
        return each.view(label.shape)

    def _cells(self, grid: tuple[int, int], at: Progress) -> Int[Tensor, " n"]:
        """Draws the cells that are negatives in this step, the same ones in every crop."""
        return torch.randperm(grid[0] * grid[1], generator=at.generator("negatives"))[: self.config.negatives]

    def after_step(self, at: Progress, observed: Observed) -> None:
        """Adds the negatives of the step to the memory, cell by cell, so that all images have a part in it."""
        self.memory.add(observed.key.movedim(2, 0).flatten(0, 2), observed.key_label.movedim(2, 0).flatten())

    def evaluated(self) -> dict[str, tuple[Network, ...]]:
        """Returns the student."""
        return {"student": (self.student,)}


def learners(
    first: Float[Tensor, "*n"], second: Float[Tensor, "*n"], threshold: float
) -> tuple[Bool[Tensor, "*n"], Bool[Tensor, "*n"]]:
    """Returns where the first crop learns from the second one, and where the second learns from the first.

    The less confident one learns, and only from a confidence above the threshold.

    Example:
        >>> learners(torch.tensor([0.5, 0.9, 0.8, 0.6]), torch.tensor([0.8, 0.8, 0.8, 0.7]), threshold=0.75)
        (tensor([ True, False, False, False]), tensor([False,  True, False, False]))
    """
    return (first < second) & (second > threshold), (second < first) & (first > threshold)


def _each(index: Int[Tensor, "u a"], channels: int) -> Int[Tensor, "u a d"]:
    return index[..., None].expand(-1, -1, channels)
