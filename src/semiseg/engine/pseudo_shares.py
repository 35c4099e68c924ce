"""Counts how much of the unlabeled images has a confident pseudo-label of each class."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from semiseg.types import IGNORE, PseudoLabels

_EVERY = 4  # rows and columns that are counted


def shares(observed: Any, threshold: float | None) -> Float[Tensor, "255"] | None:
    """Computes the share of the valid pixels with a confident pseudo-label of each class.

    Only every fourth row and column is counted. It does not make the host wait for the device.

    Args:
        observed: what a method's `observe` returned for the whole batch.
        threshold: the confidence from which a pseudo-label counts.

    Returns:
        The shares, for as many classes as there can be; None for a method without such pseudo-labels.
    """
    if threshold is None or not isinstance(observed, PseudoLabels) or not len(observed.label):
        return None
    label, confidence, valid = (
        each[:, ::_EVERY, ::_EVERY].flatten() for each in (observed.label, observed.confidence, observed.valid)
    )
    kept = ((confidence >= threshold) & valid).float()
    pixels = torch.zeros(IGNORE, device=label.device)
    return pixels.scatter_add_(0, label.long(), kept) / valid.sum().clamp(min=1)
