"""Measures how good pseudo-labels are, on unlabeled images that have masks nevertheless. Training never reads these."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from semiseg.data.dataset import Dataset, Sample
from semiseg.data.loader import EvalItem
from semiseg.engine.evaluate import mean_probabilities
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.metrics import add_confusion
from semiseg.models.build import Network
from semiseg.models.predict import resize_probability
from semiseg.recipe.engine import EvaluateConfig
from semiseg.types import IGNORE

THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)  # confidence from which a pixel has a pseudo-label


def samples(dataset: Dataset, number: int) -> tuple[Sample, ...]:
    """Returns that many unlabeled images that have masks, spread evenly over the list; all, if there are fewer.

    Raises:
        UserError: none has a mask.
    """
    masked = [sample for sample in dataset.unlabeled if sample.mask]
    if number and not masked:
        raise UserError(
            "engine.pseudo_label_images: no unlabeled image has a mask to compare pseudo-labels with; use 0"
        )
    number = min(number, len(masked))
    return tuple(masked[index * len(masked) // number] for index in range(number))


def measure(
    networks: Sequence[Network],
    items: Iterable[EvalItem],
    num_classes: int,
    config: EvaluateConfig,
    runtime: Runtime,
    on_image: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Compares the networks' predictions on whole images, without augmentation, with the masks.

    Returns:
        `thresholds`, and for each threshold: `kept`, the share of the labeled pixels with a pseudo-label; `accuracy`,
        the share of these whose pseudo-label is right; and for each class `precision`, the share of its pseudo-labels
        that are right, and `recall`, the share of its pixels that have the right pseudo-label. None where there is
        nothing to divide by.
    """
    shape = (len(THRESHOLDS), num_classes, num_classes)
    matrices = torch.zeros(shape, dtype=torch.int64, device=runtime.device)
    for done, item in enumerate(items, 1):
        image, mask = item.image[None].to(runtime.device), item.mask.to(runtime.device).long()
        with runtime.autocast():
            probability = mean_probabilities(networks, image, config)
        confidence, label = resize_probability(probability, *mask.shape)[0].max(0)
        for matrix, threshold in zip(matrices, THRESHOLDS, strict=True):
            matrix.copy_(add_confusion(matrix, label, mask.where(confidence >= threshold, IGNORE)))
        on_image(done)
    return qualities(runtime.sum(matrices).cpu())


def qualities(matrices: Int[Tensor, "t c c"]) -> dict[str, Any]:
    """Computes what `measure` returns from one confusion matrix for each threshold, the first of which keeps all.

    Example:
        Half of the pixels of class 0 are taken for class 1; with the threshold one of the two errors remains.

        >>> found = qualities(torch.tensor([[[2, 2], [0, 4]], [[2, 1], [0, 3]]]))
        >>> found["kept"][1], found["precision"][1], found["recall"][1]
        (0.75, [1.0, 0.75], [0.5, 0.75])
    """
    right, pixels = matrices.diagonal(dim1=1, dim2=2).double(), matrices[0].sum(1)
    return {
        "thresholds": list(THRESHOLDS[: len(matrices)]),
        "kept": _shares(matrices.sum((1, 2)) / pixels.sum()),
        "accuracy": _shares(right.sum(1) / matrices.sum((1, 2))),
        "precision": [_shares(row) for row in right / matrices.sum(1)],
        "recall": [_shares(row) for row in right / pixels],
    }


def _shares(values: Tensor) -> list[float | None]:
    return [None if value != value else round(value, 4) for value in values.tolist()]
