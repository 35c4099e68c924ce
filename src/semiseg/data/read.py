"""Reads image files as upright uint8 tensors. What cannot be read raises an error of one line."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from semiseg.errors import UnreadableError, UserError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # Pillow reads more formats, but runs a program for EPS


def read_image(path: Path, enough: int | None = None, white: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """Reads an image file as RGB, turned as its EXIF orientation says.

    Gray and palette images become RGB, transparency is dropped, 16-bit values keep their upper 8 bits. The tensor may
    have the memory layout of the file (channels last).

    Args:
        path: the file.
        enough: the length that the longer side needs, px. A JPEG that is at least twice as large is decoded at a half,
            a quarter or an eighth of its size, which takes a third of the time for 12 megapixels. None: the full size.

    Raises:
        UserError: the file is missing, cannot be decoded, is too large, or holds floating-point values.
    """
    image = _decode(path, enough)
    if image.mode == "F":
        raise UserError(f"{path}: holds floating-point values; save it as an 8-bit image")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        return torch.from_numpy((wide.clip(0, 65535) >> 8).astype(np.uint8)).expand(3, -1, -1)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_size(path: Path, enough: int | None = None) -> tuple[int, int]:
    """Returns height and width (px) of the tensor that `read_image` would make. It reads only the file's header.

    Raises:
        UserError: the file is missing, is no image, or is too large.
    """
    with open_image(path) as image:
        try:
            _shrink(image, enough)
            exif = Image.Image.getexif(image)  # image.getexif() of a PNG would decode the pixels
        except Exception as error:
            raise UnreadableError(unreadable(path)) from error
    turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # these swap the sides; others are ignored
    turned &= image.format != "TIFF"  # Pillow has swapped the sides of a TIFF already
    return (image.width, image.height) if turned else (image.height, image.width)


@dataclass(frozen=True)
class Header:
    """TEMPORARY until merge."""

    size: tuple[int, int]
    orientation: int
    largest: int


def read_header(path: Path, enough: int | None = None) -> Header:
    """TEMPORARY until merge."""
    with open_image(path) as image:
        deep = image.mode.startswith("I")
    return Header(read_size(path, enough), read_orientation(path), 65535 if deep else 255)


def largest_value(path: Path) -> int:
    """TEMPORARY until merge."""
    return int(np.asarray(_decode(path)).max())


def read_orientation(path: Path) -> int:
    """Returns the EXIF orientation of an image file, 1 to 8; 1 if it has none. It reads only the file's header."""
    with open_image(path) as image:
        try:
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        except Exception as error:
            raise UnreadableError(unreadable(path)) from error
    return orientation if orientation in range(1, 9) else 1


def fit(height: int, width: int, long_side: int | None) -> tuple[int, int]:
    """Returns the size with the same aspect ratio whose longer side is `long_side` px. With None it changes nothing."""
    if long_side is None:
        return height, width
    ratio = long_side / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def resize_image(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Resizes `image` to `size` (height, width), bilinear with antialiasing."""
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_mask(mask: UInt8[Tensor, "h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Resizes `mask` to `size` (height, width). A new pixel takes the value at its center, so it fits the image."""
    return F.resize(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def open_image(path: Path) -> Image.Image:
    """Opens an image file. Its pixels are not decoded yet.

    Raises:
        UserError: the file is missing, is no image, or is too large.
    """
    if not path.exists():
        raise UnreadableError(f"{path}: no such file")
    if not path.is_file():  # a pipe would block
        raise UnreadableError(unreadable(path))
    try:
        image = Image.open(path, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(_too_large(path)) from error
    except Exception as error:  # for broken files decoders raise errors of many kinds
        raise UnreadableError(unreadable(path)) from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow only warns up to twice its limit
        image.close()
        raise UserError(_too_large(path))
    return image


def _shrink(image: Image.Image, enough: int | None) -> None:
    """Tells a JPEG's decoder to decode at a fraction of the size if `enough` allows. Other formats ignore it."""
    if enough is not None:
        factor = next((factor for factor in (8, 4, 2) if max(image.size) >= factor * enough), 1)
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))


def _decode(path: Path, enough: int | None = None) -> Image.Image:
    with open_image(path) as image:
        try:
            _shrink(image, enough)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:
            raise UnreadableError(unreadable(path)) from error
    return image


def unreadable(path: Path) -> str:
    """Returns the message for a file that cannot be decoded."""
    return f"{path}: not a readable image (damaged, cut off or no image at all); replace it or take it off the lists"


def _too_large(path: Path) -> str:
    return f"{path}: has more than the {Image.MAX_IMAGE_PIXELS} pixels that are safe to decode; cut it into tiles"
