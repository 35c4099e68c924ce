"""How hard is an unlabeled image? The disagreement of student and teacher about it (iMAS, Sec. 3.2).

All functions are batched, differentiate nothing, and never wait for the device.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semiseg.errors import UserError
from semiseg.types import ClassTable, Prediction


def confusion(
    first: Int[Tensor, "b h w"],
    second: Int[Tensor, "b h w"],
    num_classes: int,
    valid: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, "b c c"]:
    """Per-image confusion matrix: entry [i, j, k] counts the pixels of image i that are j in `first`, k in `second`.

    Labels must lie in [0, num_classes). Pixels that are not `valid` are not counted. Counts are exact below 2**24
    pixels an image.
    """
    batch = first.shape[0]
    cell = torch.add(second.long(), first.long(), alpha=num_classes).flatten(1)  # one pass, one allocation
    weight = torch.ones((), device=cell.device) if valid is None else valid.flatten(1).float()
    # scatter_add_ and not bincount: bincount looks for the largest value first, which makes a GPU wait.
    counts = torch.zeros(batch, num_classes**2, device=cell.device)
    return counts.scatter_add_(1, cell, weight.expand_as(cell)).view(batch, num_classes, num_classes)


def weighted_iou(
    matrix: Float[Tensor, "b c c"],
    ignore_class: int | None = None,
    all_ignored: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " b"]:
    """Class-weighted IoU of two label maps, weighted by the class frequencies of the first (wIoU in Eq. 7).

    The paper leaves the weights undefined; they are the pixel frequencies of the reference map, the rows of `matrix`,
    as in the authors' code (D12). It is not symmetric: `weighted_iou(m) != weighted_iou(m.mT)` in general.

    Args:
        matrix: per-image confusion, reference map in the rows.
        ignore_class: class whose weight is 0 before normalization, usually the background.
        all_ignored: the value of an image whose reference map is all `ignore_class`, where the weighted mean is 0/0;
            by default such an image falls back to counting every class (D13).

    Returns:
        one value in [0, 1] an image; 0 for an image without a single counted pixel.
    """
    intersection = matrix.diagonal(dim1=1, dim2=2)
    rows, columns = matrix.sum(2), matrix.sum(1)
    iou = intersection / (rows + columns - intersection).clamp(min=1)
    weighted = _weighted_mean(iou, rows)
    if ignore_class is None:
        return weighted
    kept = rows.clone()
    kept[:, ignore_class] = 0
    fallback = weighted if all_ignored is None else all_ignored
    return torch.where(kept.sum(1) > 0, _weighted_mean(iou, kept), fallback)


def _weighted_mean(value: Float[Tensor, "b c"], weight: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    return (value * weight).sum(1) / weight.sum(1).clamp(min=1)


def class_to_ignore(setting: int | Literal["background", "none"], classes: ClassTable) -> int | None:
    """The class without weight in wIoU, None for none (D12).

    Raises:
        UserError: there is no such class.
    """
    if setting == "background":
        return classes.background
    if setting == "none":
        return None
    if not 0 <= setting < len(classes):
        raise UserError(
            f"method.ignore_class: there is no class {setting}; the data have {len(classes)} classes, counted from 0; "
            "name one, background, or none"
        )
    return setting


def confident_ratio(
    confidence: Float[Tensor, "b h w"], threshold: float, valid: Bool[Tensor, "b h w"] | None = None
) -> Float[Tensor, " b"]:
    """Share of an image's valid pixels that are predicted with at least `threshold` (rho in Eq. 5, 6)."""
    confident = confidence >= threshold
    if valid is None:
        return confident.float().mean((1, 2))
    # Counts as fp32 sums: exact below 2**24 pixels, and several times as fast on a CPU as summing booleans.
    return (confident & valid).float().sum((1, 2)) / valid.float().sum((1, 2)).clamp(min=1)


def shrink(image: Float[Tensor, "b 3 h w"], scale: float) -> Float[Tensor, "b 3 H W"]:
    """`image` at a fraction of its size, for a cheaper look at it; itself for 1."""
    if scale == 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def subsample(
    prediction: Prediction, valid: Bool[Tensor, "b h w"], size: tuple[int, ...]
) -> tuple[Prediction, Bool[Tensor, "b H W"]]:
    """A prediction, and where it is valid, at the pixels that are the centers of `size` (height, width) larger ones."""
    if prediction.label.shape[-2:] == size:
        return prediction, valid
    rows, columns = (
        ((torch.arange(new, device=valid.device) + 0.5) * (old / new)).long()
        for old, new in zip(valid.shape[-2:], size, strict=True)
    )
    label, confidence, inside = (
        value.index_select(1, rows).index_select(2, columns)
        for value in (prediction.label, prediction.confidence, valid)
    )
    return Prediction(label, confidence, prediction.num_classes), inside


def easiness(
    student: Prediction,
    teacher: Prediction,
    threshold: float,  # tau
    valid: Bool[Tensor, "b h w"] | None = None,
    ignore_class: int | None = None,
    all_ignored_is_hard: bool = False,
) -> Float[Tensor, " b"]:
    """1 - hardness of each image: the symmetric, class-weighted agreement of student and teacher (1 - Eq. 7).

    Each wIoU is weighted by the class frequencies of the network whose confident ratio multiplies it (D14).

    Args:
        student: prediction on the weak view, eval mode (Eq. 5).
        teacher: prediction on the same view, eval mode (Eq. 6).
        threshold: tau, the probability from which a pixel counts as confident.
        valid: False where the view was padded; such pixels count nowhere. None counts every pixel.
        ignore_class: class left out of the class weights, None counts all.
        all_ignored_is_hard: an image that is all `ignore_class` in one network's eyes gets agreement 0 from that side,
            as in the authors' code (D13), instead of being compared over every class.

    Returns:
        easiness in [0, 1] for each image, fp32; the same when student and teacher are exchanged.
    """
    matrix = confusion(student.label, teacher.label, student.num_classes, valid)
    all_ignored = torch.zeros((), device=matrix.device) if all_ignored_is_hard else None
    by_student = weighted_iou(matrix, ignore_class, all_ignored) * confident_ratio(student.confidence, threshold, valid)
    by_teacher = weighted_iou(matrix.mT, ignore_class, all_ignored) * confident_ratio(
        teacher.confidence, threshold, valid
    )
    return (by_student + by_teacher) / 2
