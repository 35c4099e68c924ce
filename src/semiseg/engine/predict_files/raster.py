"""Opens images for prediction: as a whole, or as files of which windows are read.

A TIFF is read by windows with rasterio (extra `geo`). Other large files, and TIFFs where rasterio is not installed, are
decoded once by Pillow: 1 to 4 bytes a pixel are in memory, and windows are cut from them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from semiseg.data.read import Header, fit, levels, open_image, read_header, read_image, resize_image, unreadable
from semiseg.errors import UnreadableError, UserError

LARGE = 2**24  # px; larger images are predicted in windows
MOST = 2**30  # px; larger images are refused
_GEO_KEYS, _MODEL_TRANSFORMATION, _MODEL_PIXEL_SCALE = 34735, 34264, 33550  # tags of GeoTIFF
_WORLD_FILES = (".tfw", ".TFW", ".tifw", ".tiffw", ".wld")
_CACHE_MB = 256  # of decoded strips, in GDAL


@runtime_checkable
class Picture(Protocol):
    """An upright RGB image. Its pixels may be in memory, or in the file."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), px."""

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        """Reads a part."""

    def resized(self, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        """Reads all of it at another size."""


class InMemory:
    """A picture that is a tensor."""

    def __init__(self, image: UInt8[Tensor, "3 h w"]) -> None:
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        """Returns (height, width), px."""
        return self.image.shape[1], self.image.shape[2]

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        """Cuts a part out."""
        return self.image[:, top : top + height, left : left + width]

    def resized(self, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        """Resizes it, as training does."""
        return resize_image(self.image, (height, width))


class _Decoded:
    """A picture that Pillow has decoded, in the mode of the file."""

    def __init__(self, image: Image.Image, white: int | None) -> None:
        self.image, self.white = image, white

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        with _any_size():
            return self._shown(self.image.crop((left, top, left + width, top + height)))

    def resized(self, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        image = self.image
        if image.mode in ("1", "P", "PA"):  # their values must not be mixed
            image = image.convert("L" if image.mode == "1" else "RGB")
        if (height, width) != self.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        return self._shown(image)

    def _shown(self, part: Image.Image) -> UInt8[Tensor, "3 h w"]:
        if part.mode.startswith("I"):
            values = np.asarray(part).clip(0, 65535)
            return torch.from_numpy(levels(self.white or 65535)[values]).expand(3, -1, -1)
        return torch.from_numpy(np.array(part.convert("RGB"))).permute(2, 0, 1)


class _Windowed:
    """A picture that rasterio reads by windows."""

    def __init__(self, path: Path, source: Any, white: int | None) -> None:
        self.path, self.source, self.white = path, source, white
        self.bands = [1, 2, 3] if source.count >= 3 else [1, 1, 1]

    @property
    def size(self) -> tuple[int, int]:
        return self.source.height, self.source.width

    def window(self, top: int, left: int, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        from rasterio.windows import Window

        return self._read(window=Window(left, top, width, height))

    def resized(self, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
        from rasterio.enums import Resampling

        return self._read(out_shape=(len(set(self.bands)), height, width), resampling=Resampling.bilinear)

    def _read(self, **how: Any) -> UInt8[Tensor, "3 h w"]:
        from rasterio.errors import RasterioError

        try:
            values = self.source.read(sorted(set(self.bands)), **how)
        except RasterioError as error:
            raise UnreadableError(unreadable(self.path)) from error
        if values.dtype != np.uint8:
            values = levels(self.white or 65535)[values]
        return torch.from_numpy(values).expand(3, -1, -1)


def is_large(path: Path) -> bool:
    """Returns whether an image is read by windows.

    Raises:
        UserError: as `opened`.
    """
    height, width = read_header(path, most=MOST).size
    return height * width > LARGE


@contextmanager
def opened(path: Path, white: int | None) -> Iterator[Picture]:
    """Opens an image, and reads it into memory unless it is large.

    Raises:
        UserError: the file is missing, cannot be decoded, has more than MOST pixels, or is of another kind.
    """
    header = read_header(path, most=MOST)
    if header.size[0] * header.size[1] <= LARGE:
        yield InMemory(read_image(path, white=white))
        return
    plain = header.format == "TIFF" and header.orientation == 1 and header.bits >= 8  # rasterio stretches no 4 bits
    if plain and (source := _rasterio_source(path)):
        import rasterio

        with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB), source:
            yield _Windowed(path, source, white)
        return
    yield _Decoded(_decoded(path, header, white), white)


def fitted(picture: Picture, long_side: int) -> tuple[int, int]:
    """Returns the size (height, width) of a picture; if it is not in memory, at most with this long side (px)."""
    height, width = picture.size
    return (height, width) if height * width <= LARGE else fit(height, width, min(long_side, max(height, width)))


def is_georeferenced(path: Path) -> bool:
    """Returns whether a TIFF, or a world file beside it, says where on Earth it lies.

    A file that cannot be read does not.
    """
    try:
        with open_image(path, MOST) as image:
            tags = getattr(image, "tag_v2", {})
            inside = any(tag in tags for tag in (_GEO_KEYS, _MODEL_TRANSFORMATION, _MODEL_PIXEL_SCALE))
            return inside or _has_world_file(path)
    except UserError:
        return False


def _has_world_file(path: Path) -> bool:
    """Returns whether a file beside an image, where GDAL looks for it, has the six numbers of an affine transform."""
    for suffix in _WORLD_FILES:
        with suppress(OSError, ValueError):
            numbers = [float(line) for line in path.with_suffix(suffix).read_text(encoding="utf-8").split()]
            if len(numbers) == 6:
                return True
    return False


def has_rasterio() -> bool:
    """Returns whether the extra `geo` is installed."""
    try:
        import rasterio
    except ImportError:
        return False
    return bool(rasterio)


def _rasterio_source(path: Path) -> Any:
    """Opens a TIFF of gray levels or colors in 8 or 16 bits; None if rasterio is missing, or for another kind."""
    if not has_rasterio():
        return None
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            source = rasterio.open(path)
    except RasterioError:
        return None
    plain = set(source.dtypes) <= {"uint8", "uint16"} and source.count in (1, 2, 3, 4, 5)
    odd = {ColorInterp.palette, ColorInterp.cyan, ColorInterp.Y, ColorInterp.hue} & set(source.colorinterp)
    inverted = source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if plain and not odd and not inverted:
        return source
    source.close()
    return None


@contextmanager
def _any_size() -> Iterator[None]:
    """Lifts Pillow's limit of pixels: the user has named this file, and MOST is the limit.

    The limit is a variable of the process. Large images are read by one thread at a time; other threads have checked
    the sizes of theirs before.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decoded(path: Path, header: Header, white: int | None) -> Image.Image:
    with open_image(path, MOST) as image:
        if image.mode == "F":
            raise UserError(f"{path}: holds floating-point values; save it as an 8-bit image")
        if white is not None and header.largest > 255 and not image.mode.startswith("I"):
            raise UserError(
                f"{path}: is too large to read colors of {header.bits} bits without rasterio; "
                'pip install "semiseg[geo]", or save it as an 8-bit image'
            )
        try:
            with _any_size():
                image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # for broken files decoders raise errors of many kinds
            raise UnreadableError(unreadable(path)) from error
    return image
