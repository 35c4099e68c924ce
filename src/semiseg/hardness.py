"""Hardness of unlabeled images: how much student and teacher disagree about each of them (iMAS, Sec. 3.2).

All functions take whole batches and never wait for the device. No gradient flows through their results.
"""

from typing import Literal

import torch
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
    """Counts pairs of labels: entry [i, j, k] is the number of pixels of image i that are j in `first`, k in `second`.

    Labels must lie in [0, num_classes). Pixels that are not `valid` are not counted. Counts are exact for images of
    less than 2**24 pixels.
    """
    batch = first.shape[0]
    # first * num_classes + second, in one pass and one allocation
    cell = torch.add(second.long(), first.long(), alpha=num_classes).flatten(1)
    weight = torch.ones((), device=cell.device) if valid is None else valid.flatten(1).float()
    # This is a bincount for each image. torch.bincount would first find the largest value, and the host would wait.
    counts = torch.zeros(batch, num_classes**2, device=cell.device)
    return counts.scatter_add_(1, cell, weight.expand_as(cell)).view(batch, num_classes, num_classes)


def weighted_iou(
    matrix: Float[Tensor, "b c c"],
    ignore_class: int | None = None,
    all_ignored: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " b"]:
    """Computes the IoU of two label maps, averaged over classes with weights (wIoU in Eq. 7).

    The paper does not define the weights. Here the weight of a class is its number of pixels in the reference map, the
    rows of `matrix`, as in the authors' code (D12). So in general `weighted_iou(m)` and `weighted_iou(m.mT)` differ.

    Args:
        matrix: confusion matrix of each image, with the reference map in the rows.
        ignore_class: this class gets weight 0, usually the background. None: no class does.
        all_ignored: the value for an image whose reference map shows only `ignore_class` (the weighted mean would be
            0/0). None: such an image is compared over every class (D13).

    Returns:
        One value in [0, 1] for each image; 0 for an image without counted pixels.

    Example:
        The first map has 90 pixels of class 0 and 10 of class 1. The second map misses class 1: it shows class 0
        everywhere. The IoU of the classes are 0.9 and 0, and their plain mean is 0.45.

        >>> matrix = torch.tensor([[[90.0, 0.0], [10.0, 0.0]]])
        >>> weighted_iou(matrix), weighted_iou(matrix.mT), weighted_iou(matrix, ignore_class=0)
        (tensor([0.8100]), tensor([0.9000]), tensor([0.]))
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
    """Returns the class that has no weight in wIoU, or None if every class has one (D12).

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
    confidence: Float[Tensor, "b h w"],
    threshold: float | Float[Tensor, ""],
    valid: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, " b"]:
    """Computes the share of each image's valid pixels whose confidence is at least `threshold` (rho in Eq. 5, 6)."""
    confident = confidence >= threshold
    if valid is None:
        return confident.float().mean((1, 2))
    # Sums of fp32 ones are exact below 2**24 pixels. On a CPU they are several times as fast as sums of booleans.
    return (confident & valid).float().sum((1, 2)) / valid.float().sum((1, 2)).clamp(min=1)


def quantile(value: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"], share: float) -> Float[Tensor, ""]:
    """Returns a value of the batch that about `share` of the counted values do not exceed; infinity without any.

    It equals torch.quantile(value[counted], share, interpolation="lower"), which would make the host wait.
    """
    ordered = torch.where(counted, value, torch.inf).flatten().sort().values
    last = (counted.sum() - 1).clamp(min=0)
    return ordered.index_select(0, (last.double() * share).long()[None])[0]


def subsample(
    prediction: Prediction, valid: Bool[Tensor, "b h w"], size: tuple[int, ...]
) -> tuple[Prediction, Bool[Tensor, "b H W"]]:
    """Reduces a prediction and its valid map to `size` (height, width): a new pixel takes the value at its center."""
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
    """Computes the easiness of each image, 1 - hardness: the agreement of student and teacher (1 - Eq. 7).

    Easiness is the mean of two products, one for each network: its wIoU, weighted by the frequencies of the classes in
    its own prediction (D14), times its confident ratio.

    Args:
        student: the student's prediction on the weak view, in eval mode (Eq. 5).
        teacher: the teacher's prediction on the same view, in eval mode (Eq. 6).
        threshold: tau; a pixel with at least this confidence is confident.
        valid: False where the view was padded; these pixels are not counted. None: every pixel is counted.
        ignore_class: this class gets weight 0 in wIoU. None: no class does.
        all_ignored_is_hard: decides about a network that predicts only `ignore_class` in an image. True: its wIoU is 0,
            as in the authors' code (D13). False: its wIoU counts every class.

    Returns:
        Easiness in [0, 1] for each image, fp32. Exchanging student and teacher does not change it.

    Example:
        Three images of two pixels. On the first both networks agree and are confident; on the second they disagree;
        on the third they agree, but neither is confident: it is as hard as the second.

        >>> confidence = torch.tensor([0.99, 0.99, 0.60]).view(3, 1, 1).expand(3, 1, 2)
        >>> student = Prediction(torch.tensor([[[0, 1]], [[0, 1]], [[0, 1]]]), confidence, num_classes=2)
        >>> teacher = Prediction(torch.tensor([[[0, 1]], [[1, 0]], [[0, 1]]]), confidence, num_classes=2)
        >>> easiness(student, teacher, threshold=0.95)
        tensor([1., 0., 0.])
    """
    matrix = confusion(student.label, teacher.label, student.num_classes, valid)
    all_ignored = torch.zeros((), device=matrix.device) if all_ignored_is_hard else None
    by_student = weighted_iou(matrix, ignore_class, all_ignored) * confident_ratio(student.confidence, threshold, valid)
    by_teacher = weighted_iou(matrix.mT, ignore_class, all_ignored) * confident_ratio(
        teacher.confidence, threshold, valid
    )
    return (by_student + by_teacher) / 2
