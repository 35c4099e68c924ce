"""Reads image files as upright uint8 tensors. What cannot be read raises an error of one line."""

import ctypes
import logging
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, _imaging
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from semiseg.data import depth
from semiseg.data.formats import READABLE, missing_for
from semiseg.errors import UnreadableError, UserError

# Our errors name the file and the reason. So Pillow's own errors, and those of its libtiff, are not printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(OSError, AttributeError):  # on some systems it is not found there
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_SAMPLE_FORMAT = 339  # a tag of TIFF; its value 3 means floating point
_MOST_CHANNELS = 5  # red, green, blue and two more, which are dropped
_SUBFILE_TYPE, _COPY_OR_MASK = 254, 0b101  # a tag of TIFF, and its bits for smaller copies and masks of transparency
_SWAP = (5, 6, 7, 8)  # EXIF orientations that swap the sides
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_STRETCHED = ("PPM", "JPEG2000")  # formats that state their largest value; Pillow stretches it to 8 or 16 bits


@dataclass(frozen=True)
class Header:
    """What the header of an image file tells.

    Attributes:
        size: (height, width) of the image as `read_image` returns it: upright, px.
        stored: (height, width) of the pixels in the file, px.
        orientation: the EXIF orientation, 1 to 8; 1 (upright) if there is none.
        format: Pillow's name of the format, e.g. JPEG.
        channels: number of channels; 1 for a palette.
        largest: the largest value that a channel can hold, e.g. 255, or 65535 for 16 bits.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int
    format: str
    channels: int
    largest: int

    @property
    def bits(self) -> int:
        """Returns the number of bits of a channel."""
        return self.largest.bit_length()

    @property
    def may_have_pages(self) -> bool:
        """Returns whether files of this format may hold several photographs: then `has_more_pages` tells."""
        return self.format in ("TIFF", *_ANIMATED)


def read_image(path: Path, enough: int | None = None, white: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """Reads an image file as RGB, turned as its EXIF orientation says.

    Gray and palette images become RGB, transparency and further channels are dropped. The tensor may have the memory
    layout of the file (channels last).

    Args:
        path: the file.
        enough: the length that the longer side needs, px. A JPEG that is at least twice as large is decoded at a half,
            a quarter or an eighth of its size, which takes a third of the time for 12 megapixels. None: the full size.
        white: the stored value that becomes 255 in an image of more than 8 bits a channel; larger values become 255,
            too. None: 65535, so the upper 8 of 16 bits are kept.

    Raises:
        UserError: the file is missing, cannot be decoded, is too large, has too many channels, or holds floating-point
            values.
    """
    if white is not None and (values := _stored_values(path)) is not None:
        shown = torch.from_numpy(levels(white)[values])
        return shown.permute(2, 0, 1) if shown.ndim == 3 else shown.expand(3, -1, -1)
    image = _decode(path, enough)
    if image.mode == "F":
        raise UserError(_floating_point(path))
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        return torch.from_numpy((wide.clip(0, 65535) >> 8).astype(np.uint8)).expand(3, -1, -1)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def largest_value(path: Path) -> int:
    """Returns the largest value that an image of more than 8 bits a channel stores; 255 for other images.

    Raises:
        UserError: the file is missing, cannot be decoded, is too large, or has too many channels.
    """
    values = _stored_values(path)
    return 255 if values is None else int(values.max())


def _stored_values(path: Path) -> Int64[np.ndarray, "h w *c"] | None:
    """Reads gray or RGB values as they are stored. Returns None for a file of 8 bits, or neither gray nor RGB."""
    header = read_header(path)
    if header.largest <= 255:
        return None
    image = _decode(path)
    if image.mode in ("F", "CMYK"):
        return None
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535).astype(np.int64)
    else:
        upper, lower = np.asarray(image.convert("RGB")).astype(np.int64), _lower_bytes(path)
        values = 256 * upper + (upper if lower is None else lower)
    return values * (header.largest + 1) >> 16 if header.format in _STRETCHED else values


def _lower_bytes(path: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    with open_image(path) as image:
        return np.asarray(_load(path, image))[..., :3] if depth.keep_lower_bytes(image) else None


@lru_cache(maxsize=1)
def levels(white: int) -> UInt8[np.ndarray, "65536"]:
    """Returns a table from stored values to 8 bits. With 65535 it keeps the upper 8 of 16 bits."""
    return (np.arange(65536) * 256 // white).clip(max=255).astype(np.uint8)


def read_size(path: Path, enough: int | None = None) -> tuple[int, int]:
    """Returns height and width (px) of the tensor that `read_image` would make. It reads only the file's header.

    Raises:
        UserError: the file is missing, is no image, is too large, has too many channels, or holds floating-point
            values.
    """
    return read_header(path, enough).size


def read_header(path: Path, enough: int | None = None, most: int | None = None) -> Header:
    """Reads what the header of an image file tells. `enough` is that of `read_image`: it makes `size` smaller.

    Args:
        path: the file.
        enough: as in `read_image`.
        most: as in `open_image`.

    Raises:
        UserError: as in `read_size`.
    """
    with open_image(path, most) as image:
        if image.mode == "F":
            raise UserError(_floating_point(path))
        try:
            exif = Image.Image.getexif(image)  # image.getexif() of a PNG would decode the pixels
            number = exif.get(ExifTags.Base.Orientation)
            orientation = number if isinstance(number, int) and 1 <= number <= 8 else 1
            channels, largest = depth.channels(image), depth.largest_possible(image)
            stored = image.size
            _shrink(image, enough)
        except Exception as error:
            raise UnreadableError(unreadable(path)) from error
    size = image.size
    tag = image.tag_v2.get(ExifTags.Base.Orientation) if isinstance(image, TiffImageFile) else 1
    if tag in _SWAP:  # Pillow has swapped the sides of a TIFF already
        stored = stored[::-1]
    elif orientation in _SWAP:
        size = size[::-1]
    return Header(size[::-1], stored[::-1], orientation, str(image.format), channels, largest)


def has_more_pages(path: Path, most: int | None = None) -> bool:
    """Returns whether a file holds further photographs or channels: pages of a TIFF, or frames of an animation.

    Pages count if they have the size of the first one. Smaller copies and masks are none.

    Args:
        path: the file.
        most: as in `open_image`.

    Raises:
        UserError: as in `open_image`.
    """
    with open_image(path, most) as image:
        if image.format in _ANIMATED:
            with suppress(Exception):  # what cannot be read behind the first frame is none that somebody means
                return int(getattr(image, "n_frames", 1)) > 1
        if not isinstance(image, TiffImageFile):
            return False
        size = image.size
        with suppress(Exception):  # a page that cannot be read is none that somebody means
            for page in range(1, image.n_frames):
                image.seek(page)
                if image.size == size and not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & _COPY_OR_MASK:
                    return True
    return False


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


def open_image(path: Path, most: int | None = None) -> ImageFile:
    """Opens an image file. Its pixels are not decoded yet.

    Args:
        path: the file.
        most: the largest number of pixels that the image may have. None: what Pillow takes for safe (89 megapixels).

    Raises:
        UserError: the file is missing, is no image, is too large, or has too many channels.
    """
    if not path.exists():
        raise UnreadableError(f"{path}: no such file")
    if not path.is_file():  # a pipe would block
        raise UnreadableError(unreadable(path))
    try:
        image = _open_of_known_kind(path, most)
        count = depth.channels(image)
        depth.correct_planes(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(_too_large(path, Image.MAX_IMAGE_PIXELS)) from error
    except Exception as error:  # for broken files decoders raise errors of many kinds
        raise _reason(path) from error
    limit = Image.MAX_IMAGE_PIXELS if most is None else most
    if limit is not None and image.width * image.height > limit:  # Pillow only warns up to twice its limit
        image.close()
        raise UnreadableError(_too_large(path, limit))
    if count > _MOST_CHANNELS:
        image.close()
        raise UserError(_too_many_channels(path, count))
    return image


def _open_of_known_kind(path: Path, most: int | None) -> ImageFile:
    """Opens what Pillow opens, and TIFFs whose bands have no colors. Raises Pillow's errors."""
    try:
        image = Image.open(path, formats=READABLE) if most is None else _open_of_any_size(path)
        if not depth.has_bands(image):
            return image
        image.close()  # Pillow would read the first band alone
    except UnidentifiedImageError:
        with suppress(Exception):  # then the first error counts
            return depth.Bands(path, str(path))
        raise
    return depth.Bands(path, str(path))


def _open_of_any_size(path: Path) -> ImageFile:
    """Does what Image.open does, but for its limit of pixels, which is a variable of the whole process."""
    Image.init()
    with path.open("rb") as file:
        start = file.read(16)
    for kind in READABLE:
        make, accepts = Image.OPEN[kind]
        if accepts is None or accepts(start) is True:
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is of another kind
                return make(path, str(path))  # type: ignore[arg-type]
    return Image.open(path, formats=READABLE)  # raises the error that says why


def _shrink(image: Image.Image, enough: int | None) -> None:
    """Tells a JPEG's decoder to decode at a fraction of the size if `enough` allows."""
    if enough is not None and isinstance(image, JpegImageFile):  # a HEIC would give its thumbnail
        factor = next((factor for factor in (8, 4, 2) if max(image.size) >= factor * enough), 1)
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))


def _decode(path: Path, enough: int | None = None) -> Image.Image:
    with open_image(path) as image:
        return _load(path, image, enough)


def _load(path: Path, image: Image.Image, enough: int | None = None) -> Image.Image:
    try:
        _shrink(image, enough)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise UnreadableError(unreadable(path)) from error
    return image


def _reason(path: Path) -> UserError:
    """Finds out why Pillow cannot open a file."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
            if missing := missing_for(start):
                return UnreadableError(f"{path}: is a {missing[0]} image, which cannot be read here; {missing[1]}")
            if start[:4] in (b"II*\0", b"MM\0*"):
                tags = ImageFileDirectory_v2(start[:8])
                file.seek(tags.next)
                tags.load(file)
                count, bits = int(tags.get(ExifTags.Base.SamplesPerPixel, 1)), max(tags[ExifTags.Base.BitsPerSample])
                if 3 in tags.get(_SAMPLE_FORMAT, ()):
                    return UserError(_floating_point(path))
                if bits > 16:
                    return UserError(f"{path}: holds values of {bits} bits; save it as an 8-bit image")
                if count > 3 or (count == 3 and tags[ExifTags.Base.PhotometricInterpretation] < 2):  # shades of gray
                    return UserError(_too_many_channels(path, count))
    except Exception:  # the file is broken, or cannot be opened at all
        pass
    return UnreadableError(unreadable(path))


def _floating_point(path: Path) -> str:
    return f"{path}: holds floating-point values; save it as an 8-bit image"


def unreadable(path: Path) -> str:
    """Returns the message for a file that cannot be decoded."""
    return f"{path}: not a readable image (damaged, cut off or no image at all); replace or remove it"


def _too_large(path: Path, limit: int | None) -> str:
    return (
        f"{path}: has more than the {limit} pixels that are safe to decode; cut it into tiles or "
        "remove it (in training data.on_unreadable=skip leaves it out)"
    )


def _too_many_channels(path: Path, count: int) -> str:
    return f"{path}: has {count} channels; save the three that show red, green and blue as an RGB image"
