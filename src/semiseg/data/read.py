"""Image and mask files as uint8 tensors, the right way up, or one line that says why not."""

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

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # Pillow has more, and runs a program for EPS
_BAD = 254  # marks mask values without meaning in the lookup table; a class table therefore ends at 253


def read_image(path: Path, enough: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """An image file as RGB, turned as its EXIF orientation says.

    Gray and palette images become RGB, transparency is dropped, 16-bit values keep their upper 8 bits. The tensor may
    be strided as the file is (channels last).

    Args:
        path: of the file.
        enough: px that suffice for the longer side: a JPEG that is at least twice as large is decoded at a half, a
            quarter or an eighth of its size, a photograph of 12 megapixels in a third of the time. None: all of it.

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
    """A mask file as class indices, IGNORE where a pixel has none.

    Args:
        path: a single-channel or palette image; of a palette image the indices count, not the colors.
        num_classes: size of the class table, at most 254.
        values: class index (or IGNORE) of each mask value that is not one already; None where there is none.

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
    """Image and mask of a labeled sample; the image is smaller if less is `enough`, see `read_image`.

    Raises:
        UserError: as `read_image` and `read_mask`, or the two differ in size.
    """
    assert sample.mask is not None, f"{sample.name} is not labeled"
    image, mask = read_image(sample.image, enough), read_mask(sample.mask, num_classes, values)
    size = image.shape[1:] if enough is None else read_size(sample.image)  # it may have been decoded smaller
    if tuple(size) != mask.shape:
        raise UserError(
            f"{sample.mask}: {_size(mask.shape)} px, but {sample.image} has {_size(size)}; they must be of one size"
        )
    return image, mask


def read_size(path: Path, enough: int | None = None) -> tuple[int, int]:
    """Height and width in px of the tensor that `read_image` makes, from the head of the file alone.

    Raises:
        UserError: the file is missing, is no image, or is too large.
    """
    with _open(path) as image:
        try:
            _shrink(image, enough)
            exif = Image.Image.getexif(image)  # PNG's own would decode the pixels in search of one
        except Exception as error:
            raise UnreadableError(_unreadable(path)) from error
    turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # which swap the sides; it may be anything
    turned &= image.format != "TIFF"  # its sides are swapped already
    return (image.width, image.height) if turned else (image.height, image.width)


def fit(height: int, width: int, long_side: int | None) -> tuple[int, int]:
    """The size whose longer side is `long_side` px, the aspect kept; the size itself for None."""
    if long_side is None:
        return height, width
    ratio = long_side / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def resize_image(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """`image` at `size` (height, width), bilinear with antialiasing."""
    return F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_mask(mask: UInt8[Tensor, "h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """`mask` at `size` (height, width): the value at each new pixel's center, so that it fits the resized image."""
    return F.resize(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def _size(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _open(path: Path) -> Image.Image:
    if not path.exists():
        raise UnreadableError(f"{path}: no such file")
    if not path.is_file():  # a pipe would be waited for
        raise UnreadableError(_unreadable(path))
    try:
        image = Image.open(path, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(_too_large(path)) from error
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise UnreadableError(_unreadable(path)) from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow only warns up to twice its limit
        image.close()
        raise UserError(_too_large(path))
    return image


def _shrink(image: Image.Image, enough: int | None) -> None:
    """Has a JPEG's decoder leave out what is more than `enough` px on the longer side; others decode all."""
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
