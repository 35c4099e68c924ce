"""Knows the channels and bits of an image file, and makes Pillow decode the lower 8 of 16 bits, and bands of a TIFF.

Pillow keeps the upper 8 bits of 16-bit colors. The functions take an image that it has opened and not decoded yet.
"""

import re
import sys
from typing import IO, Any, cast

from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

_CODESTREAM = b"\xff\x4f\xff\x51"  # how the one of JPEG 2000 starts
_GRAY, _RGB, _EXTRA_SAMPLES = 1, 2, 338  # two values of a tag of TIFF, and another tag
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Bands(TiffImageFile):
    """A TIFF of 3 to 5 bands of which its header says no color: the first three are read as red, green and blue.

    GDAL writes bands of 16 bits so. Pillow refuses them, or reads the first one alone.
    """

    def _setup(self) -> None:
        if has_bands(self):
            self.tag_v2[_EXTRA_SAMPLES] = (0,) * (int(self.tag_v2[Base.SamplesPerPixel]) - 3)
            self.tag_v2[Base.PhotometricInterpretation] = _RGB
        super()._setup()


def has_bands(image: ImageFile) -> bool:
    """Returns whether an image is a TIFF of 3 to 5 bands of which its header says no color."""
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(Base.PhotometricInterpretation) != _GRAY:
        return False
    return 3 <= int(image.tag_v2.get(Base.SamplesPerPixel, 1)) <= 5


def channels(image: ImageFile) -> int:
    """Returns the number of channels in the file. A palette image has one."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(Base.SamplesPerPixel, len(image.getbands())))
    gray_and_alpha = image.format == "PNG" and _raw_mode(image.tile[0]).startswith("LA")  # Pillow makes RGBA of it
    return 2 if gray_and_alpha else len(image.getbands())


def largest_possible(image: ImageFile) -> int:
    """Returns the largest value that a channel of the file can hold, e.g. 255 or 65535."""
    if isinstance(image, TiffImageFile):
        return 2 ** max(map(int, image.tag_v2.get(Base.BitsPerSample, (1,)))) - 1
    if image.format == "PNG" and (bits := re.search(r";(\d+)", _raw_mode(image.tile[0]))):
        return 2 ** int(bits[1]) - 1
    if image.format == "PPM" and image.tile[0].codec_name != "raw" and image.mode != "1":
        return int(cast(tuple[Any, ...], image.tile[0].args)[1])
    if image.format == "PPM" and image.mode == "I":
        return 65535
    if image.format == "JPEG2000":
        return _largest_in_jpeg_2000(cast(IO[bytes], image.fp))
    return 1 if image.mode == "1" else 255


def keep_lower_bytes(image: ImageFile) -> bool:
    """Makes Pillow keep the lower byte of each 16-bit color: it is told the other order of bytes.

    Returns whether it can. It cannot where colors are multiplied by alpha, or stretched to 16 bits.
    """
    if not all(re.fullmatch(r"(RGB[AX]?|[RGBA]);16[BLN]", _raw_mode(tile)) for tile in image.tile):
        return False
    image.tile = [_with(tile, (raw := _raw_mode(tile))[:-1] + _OTHER_ORDER[raw[-1]]) for tile in image.tile]
    return True


def correct_planes(image: ImageFile) -> None:
    """Corrects how Pillow decodes 16-bit colors that a TIFF stores one after the other, without compression.

    Pillow takes them for 8 bits, and fails at channels after the colors. These are left out.
    """
    if (
        isinstance(image, TiffImageFile)
        and image.tag_v2.get(Base.PlanarConfiguration) == 2
        and largest_possible(image) == 65535
    ):
        order = "16B" if image.tag_v2.prefix == b"MM" else "16L"
        tiles = [tile for tile in image.tile if _raw_mode(tile) in ("R", "G", "B", "A")]
        image.tile = [_with(tile, f"{_raw_mode(tile)};{order}") for tile in tiles] or image.tile


def _largest_in_jpeg_2000(file: IO[bytes]) -> int:
    place = file.tell()
    file.seek(0)
    start = file.read(2**20)
    file.seek(place)
    at = start.find(_CODESTREAM) + 42  # where it tells the bits of the first channel
    return 2 ** ((start[at] & 0x7F) + 1) - 1 if 42 <= at < len(start) else 255


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _with(tile: Any, raw_mode: str) -> Any:
    return tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
