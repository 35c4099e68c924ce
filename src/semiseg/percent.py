"""Writes shares in percent. It does not import torch, so commands that only read runs start fast."""

from collections.abc import Sequence
from typing import Any


def percent(value: Any) -> str:
    """Writes a share in percent with two decimals, or a dash if there is no value (the class does not occur)."""
    return "-" if value is None or value != value else f"{100 * value:.2f}"


def miou_percent(miou: float, iou: Sequence[float | None]) -> str:
    """Writes an mIoU in percent. If it is the IoU of a single class, it says so.

    Args:
        miou: the mIoU over the classes that occur.
        iou: IoU of each class, NaN or None for a class that does not occur.

    Example:
        >>> miou_percent(0.5, [0.25, 0.75, None])
        '50.00'
        >>> miou_percent(1.0, [1.0, None, None])
        '100.00 (1 class of 3)'
    """
    counted = [value for value in iou if value is not None and value == value]
    return percent(miou) + (f" (1 class of {len(iou)})" if len(counted) == 1 else "")
