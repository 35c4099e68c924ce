"""Draws predictions: masks with a palette, overlays, and a legend of the classes."""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from semiseg.types import IGNORE, ClassTable

_ROWS = 64  # of an overlay that are mixed at once
_SHARE = 0.4  # of the color of a class in an overlay
_LINE, _MARGIN = 26, 10  # px of the legend


def index_image(label: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Makes a palette image: pixel values are class indices, and the palette has the colors of the classes."""
    image = Image.fromarray(label.numpy())
    image.putpalette([value for color in classes.colors for value in color])
    return image


def overlay(image: UInt8[Tensor, "3 h w"], label: UInt8[Tensor, "h w"], classes: ClassTable) -> Image.Image:
    """Mixes each pixel with the color of its class, and draws white lines between classes.

    The color has a share of 0.4. The background class leaves the image as it is; if the class table declares no
    background, a class that is called so is taken for it. Lines are 1 px wide for each 1000 px of the longer side; they
    lie above and to the left of the border.
    """
    photo, index = image.permute(1, 2, 0).numpy(), label.numpy()
    colors = np.array(classes.colors, dtype=np.float32)
    share = np.full(len(classes), _SHARE, dtype=np.float32)
    share[background(classes)] = 0
    line = max(1, round(max(index.shape) / 1000))
    mixed = np.empty(photo.shape, dtype=np.uint8)
    for top in range(0, len(photo), _ROWS):  # the whole image in fp32 would take 16 times the memory of the image
        rows = slice(top, top + _ROWS)
        part, of = photo[rows].astype(np.float32), index[rows]
        mixed[rows] = (part + share[of][..., None] * (colors[of] - part)).round()
        mixed[rows][_borders(index[top : top + _ROWS + line], line)[: len(of)]] = 255
    return Image.fromarray(mixed)


def beside_mask(
    image: UInt8[Tensor, "3 h w"], prediction: UInt8[Tensor, "h w"], mask: UInt8[Tensor, "h w"], classes: ClassTable
) -> UInt8[np.ndarray, "h x 3"]:
    """Draws the overlay of a prediction, and beside it that of the mask, where ignored pixels are black."""
    ignored = mask == IGNORE
    right = np.array(overlay(image, mask.masked_fill(ignored, 0), classes))
    right[ignored.numpy()] = 0
    return np.concatenate([np.array(overlay(image, prediction, classes)), right], axis=1)


def _borders(index: UInt8[np.ndarray, "h w"], line: int) -> Bool[np.ndarray, "h w"]:
    """Finds pixels with another class at most `line` px below them or to the right."""
    found = np.zeros(index.shape, bool)
    for distance in range(1, line + 1):
        found[:-distance] |= index[:-distance] != index[distance:]
        found[:, :-distance] |= index[:, :-distance] != index[:, distance:]
    return found


def legend(classes: ClassTable) -> Image.Image:
    """Draws the name of each class beside its color."""
    font = ImageFont.load_default(15)
    width = round(max(font.getlength(name) for name in classes.names))
    canvas = Image.new("RGB", (3 * _MARGIN + _LINE + width, 2 * _MARGIN + _LINE * len(classes)), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (name, color) in enumerate(zip(classes.names, classes.colors, strict=True)):
        top = _MARGIN + index * _LINE
        pen.rectangle((_MARGIN, top + 3, _MARGIN + _LINE, top + _LINE - 3), fill=color, outline="gray")
        pen.text((2 * _MARGIN + _LINE, top + 3), name, fill="black", font=font)
    return canvas


def background(classes: ClassTable) -> list[int]:
    """Returns the indices of classes that mean "nothing of interest"."""
    if classes.background is not None:
        return [classes.background]
    return [index for index, name in enumerate(classes.names) if name.casefold() == "background"]
