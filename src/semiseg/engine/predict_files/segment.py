"""Predicts one picture: whole, or in windows."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from semiseg.data.read import fit
from semiseg.engine.predict_files.model import Model
from semiseg.engine.predict_files.options import Options
from semiseg.engine.predict_files.raster import LARGE, InMemory, Picture
from semiseg.engine.predict_files.views import mean_of_views
from semiseg.engine.predict_files.windows import blended
from semiseg.models.predict import most_likely, most_likely_at, resize_probability

WINDOW = 1024  # px, of images larger than LARGE
_BAND = 2**25  # fp32 values of probabilities that are resized at once, 128 MB


def segment(
    model: Model, picture: Picture, options: Options, keep: bool = False
) -> tuple[UInt8[np.ndarray, "h w"], Float16[np.ndarray, "c h w"] | None]:
    """Predicts the class index of each pixel, at the size of the picture.

    A picture is predicted in windows if it is longer than `options.window`; without this option, if it has more than
    LARGE pixels and the model resizes no image. A window is predicted as an image of its own would be: if the model has
    a long side, each window is resized to it.

    Args:
        model: the model.
        picture: the picture.
        options: flips, scales and windows.
        keep: whether to return the probabilities, too.

    Returns:
        Class indices, and class probabilities or None.
    """
    height, width = picture.size
    window = options.window
    if window is None and model.long_side is None and height * width > LARGE:
        window = WINDOW
    if window is not None and max(height, width) > window:
        return _in_windows(model, picture, options, window, keep)
    image = picture.resized(*fit(height, width, model.long_side))
    probability = mean_of_views(model, image, options.flip, options.scales)
    if keep:
        full = resize_probability(probability, height, width)
        return _as_label(most_likely(full)), full[0].to(torch.float16).cpu().numpy()
    if height * width <= LARGE:
        return _as_label(most_likely_at(probability, height, width)), None
    return _label_by_bands(probability[0].float().cpu(), height, width), None


def _in_windows(
    model: Model, picture: Picture, options: Options, window: int, keep: bool
) -> tuple[UInt8[np.ndarray, "h w"], Float16[np.ndarray, "c h w"] | None]:
    height, width = picture.size
    label = np.empty((height, width), np.uint8)
    kept = np.empty((len(model.classes), height, width), np.float16) if keep else None

    def predict(top: int, left: int, rows: int, columns: int) -> Float[Tensor, "c {rows} {columns}"]:
        image = InMemory(picture.window(top, left, rows, columns)).resized(*fit(rows, columns, model.long_side))
        probability = mean_of_views(model, image, options.flip, options.scales)
        return resize_probability(probability, rows, columns)[0]

    for rows, columns, block in blended(predict, height, width, window):
        label[rows, columns] = _as_label(most_likely(block[None]))
        if kept is not None:
            kept[:, rows, columns] = block.numpy()
        del block  # its memory is needed for the next window
    return label, kept


def _as_label(label: Tensor) -> UInt8[np.ndarray, "h w"]:
    return label[0].to(torch.uint8).cpu().numpy()


def _label_by_bands(probability: Float[Tensor, "c h w"], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Does what `most_likely_at` does in less memory: bilinear resizing is linear resizing of rows, then of columns."""
    label = np.empty((height, width), np.uint8)
    rows = max(1, _BAND // (len(probability) * width))
    last = probability.shape[1] - 1
    center = ((torch.arange(height) + 0.5) * (probability.shape[1] / height) - 0.5).clamp(min=0)
    upper = center.floor().long().clamp(max=last)
    share = (center - upper)[:, None]
    for top in range(0, height, rows):
        of, part = upper[top : top + rows], share[top : top + rows]
        between = torch.lerp(probability[:, of], probability[:, (of + 1).clamp(max=last)], part)
        wide = F.interpolate(between, (width,), mode="linear", align_corners=False)
        label[top : top + rows] = _as_label(most_likely(wide[None]))
    return label
