"""Intersection over union (IoU) and accuracy, from a confusion matrix over a whole data set."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from semiseg.types import IGNORE


def add_confusion(
    matrix: Int[Tensor, "c c"], prediction: Int[Tensor, "*shape"], label: Int[Tensor, "*shape"]
) -> Int[Tensor, "c c"]:
    """Returns `matrix` plus the counts of these pixels: entry [j, k] counts the pixels with label j and prediction k.

    Pixels with label IGNORE are not counted.
    """
    num_classes = matrix.shape[0]
    labeled = label != IGNORE
    # counts = bincount(label * num_classes + prediction); ignored pixels go to one more cell, which is left out
    cell = torch.where(labeled, label.long() * num_classes + prediction.long(), num_classes**2).flatten()
    counts = torch.zeros(num_classes**2 + 1, dtype=matrix.dtype, device=matrix.device)
    counts.scatter_add_(0, cell, torch.ones((), dtype=matrix.dtype, device=matrix.device).expand_as(cell))
    return matrix + counts[:-1].view_as(matrix)


@dataclass(frozen=True)
class Scores:
    """Quality of a segmentation over a data set. All values lie in [0, 1].

    Attributes:
        miou: mean IoU over the classes that occur in labels or predictions. A class that occurs in neither has no IoU;
            it is left out of the mean and does not count as 0 (D52). If a single class occurs, this is its IoU.
        iou: IoU of each class, NaN for a class that occurs in neither.
        accuracy: share of the labeled pixels whose prediction is right.
        confusion: the confusion matrix: numbers of pixels, labels in rows, predictions in columns.
    """

    miou: float
    iou: tuple[float, ...]
    accuracy: float
    confusion: tuple[tuple[int, ...], ...] = ()


def mean_iou(matrix: Int[Tensor, "c c"]) -> Float[Tensor, ""]:
    """Computes the mIoU from a confusion matrix, on its device; NaN if no pixel has a label."""
    return _iou(matrix.double()).nanmean()


def scores(matrix: Int[Tensor, "c c"]) -> Scores:
    """Computes the scores from a confusion matrix (labels in rows, predictions in columns)."""
    counts: Float[Tensor, "c c"] = matrix.double()
    iou = _iou(counts)
    return Scores(
        miou=float(iou.nanmean()),
        iou=tuple(iou.tolist()),
        accuracy=float(counts.trace() / counts.sum()),
        confusion=tuple(map(tuple, matrix.tolist())),
    )


def _iou(counts: Float[Tensor, "c c"]) -> Float[Tensor, " c"]:
    intersection = counts.diagonal()
    return intersection / (counts.sum(0) + counts.sum(1) - intersection)  # 0/0 is NaN: the class occurs nowhere
