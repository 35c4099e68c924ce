"""Losses on logits. All are computed in fp32, whatever the precision of the network, and none waits for the device."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from semiseg.errors import UserError
from semiseg.types import IGNORE, Part


def cross_entropy(
    logits: Float[Tensor, "b c h w"],
    label: Int[Tensor, "b h w"],
    labeled_px: Int[Tensor, ""] | None = None,
    class_weights: tuple[float, ...] | None = None,
) -> Float[Tensor, ""]:
    """Computes the mean cross-entropy over the labeled pixels of the batch (Eq. 3; IGNORE pixels do not count, D19).

    Args:
        logits: the network's output.
        label: class indices, or IGNORE.
        labeled_px: number of labeled pixels of the whole batch, if these images are a part of it. The result is then
            the part's share: the shares of all parts add up to the mean over the whole batch. None: they are all of it.
        class_weights: a factor for the pixels of each class. The sum is divided by the number of pixels, not by the
            sum of their weights. None: 1.

    Returns:
        The loss; 0 if no pixel is labeled.
    """
    weights = None if class_weights is None else _on_device(class_weights, logits.device)
    total = F.cross_entropy(logits.float(), label.long(), weights, ignore_index=IGNORE, reduction="sum")
    return total / ((label != IGNORE).sum() if labeled_px is None else labeled_px).clamp(min=1)


def counted_share(
    value: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"], counted_px: Int[Tensor, ""]
) -> Float[Tensor, ""]:
    """Computes the share that a part of a batch has in the mean over the counted pixels of the whole batch.

    Args:
        value: what is averaged, e.g. the squared distance of two predictions at each pixel.
        counted: False where a pixel is ignored or padded.
        counted_px: number of counted pixels of the whole batch.

    Returns:
        The share; the shares of all parts add up to the mean. 0 if no pixel is counted.

    Example:
        >>> counted_share(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[True, True, False]]]), torch.tensor(4))
        tensor(0.7500)
    """
    return torch.where(counted, value, 0.0).sum() / counted_px.clamp(min=1)


def ohem_cross_entropy(
    logits: Float[Tensor, "b c h w"],
    label: Int[Tensor, "b h w"],
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Float[Tensor, ""]:
    """Computes the mean cross-entropy over the hard pixels of the batch (OHEM; iMAS on Cityscapes, D27).

    OHEM is online hard example mining. A labeled pixel is hard if the network gives its class a probability of at most
    `threshold`. If fewer than `min_kept` pixels are hard, the `min_kept` pixels with the lowest probabilities count
    instead.
    """
    loss = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction="none").flatten()
    labeled = (label != IGNORE).flatten()
    probability = torch.where(labeled, torch.exp(-loss.detach()), 2.0)  # 2.0 sorts after every labeled pixel
    min_kept = min(min_kept, loss.numel())
    kth_smallest = probability.kthvalue(min_kept).values if min_kept else probability.new_zeros(())
    kept = labeled & (probability <= kth_smallest.clamp(min=threshold))
    return torch.where(kept, loss, 0.0).sum() / kept.sum().clamp(min=1)


def confident_cross_entropy(
    logits: Float[Tensor, "b c h w"],
    target: Int[Tensor, "b h w"],
    confidence: Float[Tensor, "b h w"],
    threshold: float,
    valid: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Computes each image's cross-entropy to its confident pseudo-labels (the inner sum of Eq. 4 and Eq. 11).

    The sum is divided by the number of all valid pixels, not of the confident ones. So an image counts less if the
    teacher is unsure about it.

    Args:
        logits: the student's output on a strong view.
        target: hard pseudo-labels of the teacher (D18).
        confidence: the teacher's probability of `target`.
        threshold: tau; pixels with a lower confidence contribute 0.
        valid: False where the view was padded. None: every pixel is valid.
    """
    loss = F.cross_entropy(logits.float(), target.long(), reduction="none")
    counted = confidence >= threshold
    if valid is None:
        return torch.where(counted, loss, 0.0).mean((1, 2))
    return torch.where(counted & valid, loss, 0.0).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def weighted_cross_entropy(
    logits: Float[Tensor, "b c h w"], target: Int[Tensor, "b h w"], weight: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Computes each image's cross-entropy to hard labels, as a mean with weights (AEL, Eq. 12).

    The weights of an image are divided by their sum. So an image with a few pixels of small weight counts as much as
    any other; an image without weight has a loss of 0.

    Args:
        logits: the student's output.
        target: a class for each pixel, also for those with weight 0.
        weight: not negative.
    """
    loss = F.cross_entropy(logits.float(), target.long(), reduction="none")
    total = weight.sum((1, 2))
    return (loss * weight).sum((1, 2)) / torch.where(total > 0, total, 1.0)


def contrastive(
    anchor: Float[Tensor, "c a d"],
    positive: Float[Tensor, "c d"],
    negative: Float[Tensor, "c a m d"],
    temperature: float,
) -> Float[Tensor, "c a"]:
    """Computes InfoNCE of each anchor: -log softmax of its similarity to the positive, among those to the negatives.

    All vectors have length 1, so their products are cosines. The products are sums of fp32 values: a matrix product
    would be in low precision inside autocast.

    Args:
        anchor: anchors of each class.
        positive: the positive of each class.
        negative: negatives of each anchor.
        temperature: the similarities are divided by it.
    """
    own = (anchor.float() * positive[:, None].float()).sum(-1, keepdim=True)
    others = (anchor[:, :, None].float() * negative.float()).sum(-1)
    similarity = torch.cat([own, others], dim=-1) / temperature
    return similarity.logsumexp(-1) - similarity[..., 0]


def contrastive_between_classes(
    anchor: Float[Tensor, "a d"],
    positive: Float[Tensor, "a d"],
    label: Int[Tensor, " a"],
    negative: Float[Tensor, "n d"],
    negative_label: Int[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, " a"]:
    """Computes InfoNCE of anchors that share their negatives: those of another class count (CAC, PC2Seg).

    All vectors have length 1, so their products are cosines, in fp32 also inside autocast.

    Args:
        anchor: the anchors.
        positive: the positive of each anchor.
        label: the class of each anchor.
        negative: what may be a negative of any anchor.
        negative_label: the class of each of these; IGNORE if it is no negative of any.
        temperature: the similarities are divided by it.

    Returns:
        The loss of each anchor; 0 for an anchor without negatives.

    Example:
        The anchor equals its positive. Both negatives are orthogonal to it; one has another class: log(1 + 1/e).

        >>> east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> label, its = torch.tensor([3]), torch.tensor([3, 4])
        >>> contrastive_between_classes(east, east, label, torch.cat([north, north]), its, temperature=1.0)
        tensor([0.3133])
    """
    with full_precision(anchor.device):
        others = anchor.float() @ negative.float().mT
    counted = (negative_label != IGNORE) & (negative_label != label[:, None])
    others = torch.where(counted, others, -torch.inf)
    own = (anchor.float() * positive.float()).sum(-1, keepdim=True)
    similarity = torch.cat([own, others], dim=1) / temperature
    return similarity.logsumexp(1) - similarity[:, 0]


def class_contrast(
    anchor: Float[Tensor, "p d"],
    label: Int[Tensor, " p"],
    key: Float[Tensor, "q d"],
    key_label: Int[Tensor, " q"],
    temperature: float,
) -> Float[Tensor, " p"]:
    """Computes each anchor's share of similarity to keys of its own class: -log(own class / all classes) (ELN).

    Similarities are exp(cosine / temperature), summed over keys. Keys with the label IGNORE do not count.

    Args:
        anchor: representations, of any length.
        label: the class of each, or IGNORE.
        key: representations that they are compared with.
        key_label: the class of each, or IGNORE.
        temperature: the cosines are divided by it.

    Returns:
        The loss of each anchor; 0 if its label is IGNORE or no key has its class.

    Example:
        Two keys are equal to the anchor, and one is opposite. One of the equal keys has the anchor's class: the share
        is e / (e + e + 1/e).

        >>> key = torch.tensor([[2.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])
        >>> loss = class_contrast(key[:1], torch.tensor([1]), key, torch.tensor([1, 0, 0]), temperature=1.0)
        >>> torch.exp(-loss)
        tensor([0.4683])
    """
    with full_precision(anchor.device):
        similarity = F.normalize(anchor.float(), dim=1) @ F.normalize(key.float(), dim=1).mT / temperature
    counted = key_label != IGNORE
    own = counted & (label[:, None] == key_label)
    least = torch.finfo(similarity.dtype).min  # not infinity, whose gradients are NaN
    to_own, to_all = (similarity.masked_fill(~mask, least).logsumexp(1) for mask in (own, counted))
    return torch.where(own.any(1), to_all - to_own, 0.0)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context in which autocast does not lower the precision on a device of this kind."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@lru_cache(maxsize=8)
def _on_device(values: tuple[float, ...], device: torch.device) -> Float[Tensor, " c"]:
    """Keeps the values on the device: a copy in each step would wait for it."""
    return torch.tensor(values, device=device)


def inverse_sqrt(counts: Sequence[Mapping[int, int]], num_classes: int) -> tuple[float, ...]:
    """Computes class weights that are inverse to the square root of the share of labeled pixels.

    The weight of class c is 1 / (sqrt(f_c) sum_k sqrt(f_k)), where f_c is its share: the mean of the weights over all
    labeled pixels is 1. So the learning rate still fits. A class without labeled pixels has the weight 1.

    Args:
        counts: number of pixels of each class in each labeled image; IGNORE does not count.
        num_classes: number of classes.

    Example:
        Class 1 covers a hundredth of the labeled pixels: its pixels weigh ten times those of a class that covers all.

        >>> [round(weight, 2) for weight in inverse_sqrt([{0: 99}, {1: 1, 255: 50}], num_classes=3)]
        [0.92, 9.13, 1.0]
    """
    pixels = [sum(shown.get(index, 0) for shown in counts) for index in range(num_classes)]
    roots = [math.sqrt(number / max(1, sum(pixels))) for number in pixels]
    return tuple(1 / (root * sum(roots)) if root else 1.0 for root in roots)


class LabeledLoss(BaseModel):
    """The loss on labeled pixels, with its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["cross_entropy", "ohem"] = "cross_entropy"
    # Only with kind: cross_entropy; a number for each class, or from the labeled pixels of each. None: all count alike
    class_weights: Literal["inverse_sqrt"] | tuple[Annotated[float, Field(ge=0)], ...] | None = None
    ohem_threshold: float | None = Field(None, gt=0, le=1)  # only with kind: ohem; 0.7 if not given
    min_kept: int | None = Field(None, ge=1)  # only with kind: ohem; px in a batch, 100,000 if not given

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "LabeledLoss":
        if self.kind != "ohem" and (self.ohem_threshold is not None or self.min_kept is not None):
            raise ValueError("ohem_threshold and min_kept belong to kind: ohem; remove them or choose it")
        if self.kind == "ohem" and self.class_weights is not None:
            raise ValueError("class_weights belong to kind: cross_entropy; remove them or choose it")
        return self

    def fitted(self, classes: Sequence[str], counts: Sequence[Mapping[int, int]] | None) -> "LabeledLoss":
        """Returns the loss with a number for each class, if its classes have weights.

        Args:
            classes: the names of the classes.
            counts: number of pixels of each class in each labeled image. None, where nothing is trained: all alike.

        Raises:
            UserError: the number of weights is not that of the classes, or all are 0.
        """
        weights = self.class_weights
        if weights == "inverse_sqrt":
            weights = inverse_sqrt(counts or (), len(classes))
            return self.model_copy(update={"class_weights": weights})
        if weights is not None and (len(weights) != len(classes) or not any(weights)):
            raise UserError(
                f"method.labeled_loss.class_weights: {list(weights)} does not fit {len(classes)} classes "
                f"({', '.join(classes)}); give one number for each, not all of them 0, or inverse_sqrt"
            )
        return self

    def __call__(self, logits: Float[Tensor, "b c h w"], label: Int[Tensor, "b h w"], part: Part) -> Float[Tensor, ""]:
        """Computes the share that a part of a batch has in the loss of the whole batch.

        OHEM selects the hard pixels of each part separately, with the part's share of `min_kept`. The authors' code
        does so on each GPU.
        """
        if self.kind == "cross_entropy":
            assert self.class_weights != "inverse_sqrt", "the caller fits the loss to the classes"
            return cross_entropy(logits, label, part.labeled_px, self.class_weights)
        min_kept = math.ceil((self.min_kept or 100_000) * part.share)
        return ohem_cross_entropy(logits, label, self.ohem_threshold or 0.7, min_kept) * part.share
