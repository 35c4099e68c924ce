"""Reads image and mask files as upright uint8 tensors. What cannot be read raises an error of one line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from semiseg.data.dataset import Sample
from semiseg.errors import UnreadableError, UserError
from semiseg.types import IGNORE

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # Pillow reads more formats, but runs a program for EPS
_BAD = 254  # marks mask values without meaning in the lookup table, so 253 is the highest class index


def read_image(path: Path, enough: int | None = None) -> UInt8[Tensor, "3 h w"]:
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


def read_mask(path: Path, num_classes: int, values: dict[int, int] | None) -> UInt8[Tensor, "h w"]:
    """Reads a mask file as class indices, with IGNORE at pixels that have no class.

    Args:
        path: a single-channel or palette image. The indices of a palette image are read, not its colors.
        num_classes: size of the class table, at most 254.
        values: maps mask values to class indices or to IGNORE. Values that it does not contain are class indices
            already. None: all values are.

    Raises:
        UserError: the file is missing, cannot be decoded, has colors instead of indices, or holds a value that is
            neither a class nor IGNORE.
    """
    image = _decode(path)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        kinds = {"F": "holds floating-point values", "LA": "has transparency", "PA": "has transparency"}
        raise UserError(
            f"{path}: the mask {kinds.get(image.mode, 'is a color image')} (mode {image.mode}); save it with one "
            "channel (gray or palette PNG) that holds the class index of each pixel"
        )
    table = np.full(65536, _BAD, dtype=np.uint8)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE] = IGNORE
    for value, index in (values or {}).items():
        table[value] = index
    stored = np.asarray(image)
    if stored.dtype == np.uint8:
        mask = table.take(stored)
    else:
        entries = stored.astype(np.uint16)
        mask = table[entries]
        mask[entries != stored] = _BAD  # negative, or above 16 bits
    if (mask == _BAD).any():
        bad = np.unique(stored[mask == _BAD]).tolist()
        shown = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        remedy = (
            "JPEG blurs masks: save it as PNG"
            if image.format == "JPEG"
            else f"map them with data.values of layout 'folder', e.g. {{{bad[0]}: {num_classes - 1}}}"
        )
        raise UserError(
            f"{path}: holds {shown}, neither a class (0 to {num_classes - 1}) nor {IGNORE} (ignored); {remedy}"
        )
    return torch.from_numpy(mask)


def read_pair(
    sample: Sample, num_classes: int, values: dict[int, int] | None, enough: int | None = None
) -> tuple[UInt8[Tensor, "3 H W"], UInt8[Tensor, "h w"]]:
    """Reads image and mask of a labeled sample. With `enough` the image may be smaller, as in `read_image`.

    Raises:
        UserError: as in `read_image` and `read_mask`, or the two differ in size.
    """
    assert sample.mask is not None, f"{sample.name} is not labeled"
    image, mask = read_image(sample.image, enough), read_mask(sample.mask, num_classes, values)
    size = image.shape[1:] if enough is None else read_size(sample.image)  # `image` may be smaller than the file
    if tuple(size) != mask.shape:
        raise UserError(
            f"{sample.mask}: {_size(mask.shape)} px, but {sample.image} has {_size(size)}; they must be of one size"
        )
    return image, mask


def read_size(path: Path, enough: int | None = None) -> tuple[int, int]:
    """Returns height and width (px) of the tensor that `read_image` would make. It reads only the file's header.

    Raises:
        UserError: the file is missing, is no image, or is too large.
    """
    with _open(path) as image:
        try:
            _shrink(image, enough)
            exif = Image.Image.getexif(image)  # image.getexif() of a PNG would decode the pixels
        except Exception as error:
            raise UnreadableError(_unreadable(path)) from error
    turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # these swap the sides; others are ignored
    turned &= image.format != "TIFF"  # Pillow has swapped the sides of a TIFF already
    return (image.width, image.height) if turned else (image.height, image.width)


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


def _size(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _open(path: Path) -> Image.Image:
    if not path.exists():
        raise UnreadableError(f"{path}: no such file")
    if not path.is_file():  # a pipe would block
        raise UnreadableError(_unreadable(path))
    try:
        image = Image.open(path, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(_too_large(path)) from error
    except Exception as error:  # for broken files decoders raise errors of many kinds
        raise UnreadableError(_unreadable(path)) from error
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
    with _open(path) as image:
        try:
            _shrink(image, enough)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:
            raise UnreadableError(_unreadable(path)) from error
    return image


def _unreadable(path: Path) -> str:
    return f"{path}: not a readable image (damaged, cut off or no image at all); replace it or take it off the lists"


def _too_large(path: Path) -> str:
    return f"{path}: has more than the {Image.MAX_IMAGE_PIXELS} pixels that are safe to decode; cut it into tiles"
