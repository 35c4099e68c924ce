"""Predicts a large image in windows that overlap, in memory that does not grow with its height.

Near its border a network sees less of the surroundings. So the weight of a window falls from its middle to its border.
The weights of all windows at a pixel add up to 1: what one window knows passes into what the next one knows, and no
seam is left.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from semiseg.models.predict import window_starts

Predict = Callable[[int, int, int, int], Tensor]  # (top, left, height, width) -> probabilities [c, height, width]


def overlap_of(window: int) -> int:
    """Returns by how many pixels windows overlap at least: a quarter of their side."""
    return window // 4


def blended(
    predict: Predict, height: int, width: int, window: int
) -> Iterator[tuple[slice, slice, Float[Tensor, "c _ _"]]]:
    """Yields class probabilities (fp32, on the CPU) block by block. The blocks cover each pixel once.

    All windows are squares of `window` px, or as long as the image where that is shorter. They are spread evenly from
    border to border. Memory: the probabilities of a window, and of the rows that it shares with the next ones over the
    whole width, which is a quarter of `window` where there are many.

    Args:
        predict: computes the probabilities of one window, in memory that may be overwritten.
        height: px of the image.
        width: px of the image.
        window: side of the windows, px.
    """
    stride = window - overlap_of(window)
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    rows, columns = min(window, height), min(window, width)
    row_weights, column_weights = weights(tops, rows, height), weights(lefts, columns, width)
    most = max([top + rows - following for top, following in pairwise(tops)], default=0)
    shared: Tensor | None = None  # what windows further up know about the rows from here on
    known = 0  # number of these rows
    for row, top in enumerate(tops):
        done = (tops[row + 1] if row + 1 < len(tops) else height) - top  # rows that no window further down shows
        open_: Tensor | None = None  # what windows of this row know about the columns from here on
        for column, left in enumerate(lefts):
            weight = row_weights[row][:, None] * column_weights[column]
            found = predict(top, left, rows, columns)
            found = found.float().mul_(weight.to(found.device)).cpu()
            if open_ is not None:
                found[:, :, : open_.shape[2]] += open_
            ready = (lefts[column + 1] if column + 1 < len(lefts) else width) - left
            block, open_ = found[:, :, :ready], found[:, :, ready:].clone()
            across = slice(left, left + ready)
            if shared is not None:
                block[:, :known] += shared[:, :known, across]
            elif done < rows:
                shared = torch.empty(len(block), most, width)
            if shared is not None:
                shared[:, : rows - done, across] = block[:, done:]
            yield slice(top, top + done), across, block[:, :done]
            del found, block  # their memory is needed for the next window
        known = rows - done


def weights(starts: Sequence[int], window: int, length: int) -> list[Float[Tensor, " {window}"]]:
    """Returns the weight of each window at each of its pixels, along one side of the image.

    Before they are normalized, they fall in a straight line from the middle of the window to its border.

    Example:
        >>> [weight.tolist() for weight in weights([0, 2], 4, 6)]
        [[1.0, 1.0, 0.75, 0.25], [0.25, 0.75, 1.0, 1.0]]
    """
    position = torch.arange(window, dtype=torch.float64) + 0.5
    tent = torch.minimum(position, window - position)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += tent
    return [(tent / total[start : start + window]).float() for start in starts]
