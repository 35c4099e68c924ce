"""Keeps the georeference of TIFFs: their masks are GeoTIFFs, too (extra `geo`)."""

import hashlib
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from semiseg.engine.predict_files.raster import has_rasterio, is_georeferenced
from semiseg.files import replacing
from semiseg.types import ClassTable

_MARK, _PIXELS = "semiseg", "semiseg_pixels"
SUFFIXES = frozenset({".tif", ".tiff"})


@lru_cache(maxsize=4096)
def keeps(file: Path) -> bool:
    """Returns whether the mask of an image file is written as GeoTIFF."""
    return file.suffix.lower() in SUFFIXES and has_rasterio() and is_georeferenced(file)


def save_mask(label: UInt8[np.ndarray, "h w"], classes: ClassTable, source: Path, path: Path, mark: str) -> None:
    """Writes an index mask as GeoTIFF with palette, with the CRS of its image and its transform or control points.

    Raises:
        UserError: there is no space or no permission.
    """
    import rasterio
    from rasterio.errors import RasterioError

    with rasterio.open(source) as image:
        points, points_crs = image.gcps  # satellites note ground control points in place of a transform
        place = {"crs": points_crs, "gcps": points} if points else {"crs": image.crs, "transform": image.transform}
    height, width = label.shape
    layout = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(height, width) >= 256 else {}
    with replacing(path) as aside:
        try:
            with rasterio.open(aside, "w", **layout, **tiled, **place, compress="deflate") as mask:
                mask.write(label, 1)
                mask.write_colormap(1, {index: (*color, 255) for index, color in enumerate(classes.colors)})
                mask.update_tags(**{_MARK: mark, _PIXELS: _digest(label)})
        except RasterioError as error:
            raise OSError(str(error)) from error


def mark_of(path: Path) -> str | None:
    """Returns the mark with which `save_mask` wrote a file; None if it wrote no such file."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with suppress(RasterioError), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as mask:
            return mask.tags().get(_MARK)
    return None


def is_unchanged(path: Path) -> bool:
    """Returns whether a mask is as `save_mask` wrote it: programs that change it may keep the mark."""
    import rasterio
    from rasterio.errors import RasterioError

    with suppress(RasterioError), rasterio.open(path) as mask:
        return mask.tags().get(_PIXELS) == _digest(mask.read(1))
    return False


def _digest(label: UInt8[np.ndarray, "h w"]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(label).data, digest_size=16).hexdigest()
