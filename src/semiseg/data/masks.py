"""Reads mask files as class indices: by the values that they store, or by their colors.

What a file stores is not always what Pillow returns: it stretches gray levels of 2 and 4 bits, and programs that write
palettes reorder them. So a mask is first described (`Content`), and then each of its values or colors gets a class.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from semiseg.data.dataset import MaskCoding, Sample
from semiseg.data.depth import largest_possible
from semiseg.data.read import open_image, read_header, read_image, read_size, unreadable
from semiseg.errors import UnreadableError, UserError, listed
from semiseg.types import IGNORE, voc_color

Color = tuple[int, int, int]  # RGB
Key = int | Color  # what a pixel stores

_LOSSY = ("JPEG", "MPO", "AVIF", "HEIF")  # formats that change values when they are saved
_MOST = 4096  # different values or colors that are counted; a mask has fewer
_FEW_EDGES = 400  # pixels at edges; fewer say little: small masks have lines of one pixel by chance
_SHOWN = 12  # of them in a message
NAME_COLORS = "write the colors into the class file (name #RRGGBB), or name them with data.colors of layout 'folder'"


@dataclass(frozen=True)
class Content:
    """What a mask file stores.

    Attributes:
        size: (height, width), px.
        kind: words for format and depth, e.g. "8-bit gray PNG".
        counts: number of pixels of each stored value, or of each color in a file that stores colors.
        palette: the color of each stored value, for a file with a palette, and for a TIFF whose 0 is white.
        reduced: whether the palette has only the colors that occur, as after an optimization of the file.
        blended: the share of the pixels at edges whose value lies between those of their neighbors. A resize or lossy
            compression makes such pixels; drawn masks have few.
    """

    size: tuple[int, int]
    kind: str
    counts: dict[Key, int]
    palette: dict[Key, Color]
    reduced: bool = False
    blended: float = 0.0

    @property
    def colored(self) -> bool:
        """Returns whether the file stores colors."""
        return any(isinstance(key, tuple) for key in self.counts)

    def plain(self) -> list[Any]:
        """Returns the content as values that JSON can hold."""
        return [
            list(self.size),
            self.kind,
            list(self.counts.items()),
            list(self.palette.items()),
            self.reduced,
            self.blended,
        ]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> "Content":
        """Makes a content of what `plain` returned."""
        size, kind, counts, palette, reduced, blended = plain
        return cls(
            (size[0], size[1]),
            kind,
            {tuple(key) if isinstance(key, list) else key: number for key, number in counts},
            {value: tuple(color) for value, color in palette},
            reduced,
            blended,
        )


@dataclass(frozen=True)
class StoredMask:
    """A decoded mask file: `pixels` is (h, w) for values, (h, w, 3) for colors."""

    pixels: np.ndarray
    content: Content

    def classes(self, meaning: Mapping[Key, int]) -> UInt8[Tensor, "h w"]:
        """Replaces each stored value or color by its class."""
        pixels = self.pixels
        if pixels.dtype == np.uint8 and pixels.ndim == 2:
            table = np.zeros(256, dtype=np.uint8)
            for value, index in meaning.items():
                table[value] = index
            return torch.from_numpy(table.take(pixels))
        numbers = {_packed(key): index for key, index in meaning.items()}
        keys = sorted(numbers)
        indices = np.array([numbers[key] for key in keys], dtype=np.uint8)
        if pixels.ndim == 3:
            pixels = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        return torch.from_numpy(indices.take(np.searchsorted(keys, pixels)))


def _packed(key: Key) -> int:
    return key[0] << 16 | key[1] << 8 | key[2] if isinstance(key, tuple) else key


def read_mask(path: Path, coding: MaskCoding) -> UInt8[Tensor, "h w"]:
    """Reads a mask file as class indices, with IGNORE at pixels that have no class.

    Args:
        path: an image without loss: PNG, TIFF, BMP, GIF, WebP, PGM. It stores a value for each pixel, or its color.
        coding: the classes of values and colors.

    Raises:
        UserError: the file is missing, cannot be decoded, is saved with loss, or holds a value or a color without
            meaning.
    """
    stored = read_stored(path)
    try:
        reading = read_as(stored.content, coding)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    known = {key: index for key, index in reading.classes.items() if index is not None}
    if len(known) < len(reading.classes):
        raise UserError(f"{path}: {_without_meaning(stored.content, reading, coding)}")
    return stored.classes(known)


def read_pair(
    sample: Sample, coding: MaskCoding, enough: int | None = None, white: int | None = None
) -> tuple[UInt8[Tensor, "3 H W"], UInt8[Tensor, "h w"]]:
    """Reads image and mask of a labeled sample. With `enough` the image may be smaller, as in `read_image`.

    Raises:
        UserError: as in `read_image` and `read_mask`, or the two differ in size.
    """
    assert sample.mask is not None, f"{sample.name} is not labeled"
    coding = coding_of(sample, coding)
    image, mask = read_image(sample.image, enough, white), read_mask(sample.mask, coding)
    if coding.orientation == "stored":
        mask = turned(mask, read_header(sample.image).orientation)
    size = image.shape[1:] if enough is None else read_size(sample.image)  # `image` may be smaller than the file
    check_sizes(sample, tuple(size), tuple(mask.shape), coding)
    return image, mask


def coding_of(sample: Sample, coding: MaskCoding) -> MaskCoding:
    """Returns the coding of a sample's mask: pseudo-labels and added masks are class indices of upright images."""
    indexed = sample.pseudo or sample.indexed
    return MaskCoding(coding.num_classes, orientation="upright") if indexed else coding


def check_sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...], coding: MaskCoding) -> None:
    """Checks that an image and its mask have one size.

    Args:
        sample: their files.
        image: (height, width) of the upright image, px.
        mask: (height, width) of the mask, px, turned if the coding says so.
        coding: its orientation.

    Raises:
        UserError: they differ. If they would agree with another orientation of masks, the message says so.
    """
    if image == mask:
        return
    message = f"{sample.mask}: {_size(mask)} px, but {sample.image} has {_size(image)}"
    orientation = read_header(sample.image).orientation
    if image != mask[::-1] or orientation not in (5, 6, 7, 8):
        raise UserError(f"{message}; they must be of one size: {_remedy_of_sizes(image, mask)}")
    if coding.orientation == "stored":
        raise UserError(
            f"{message} when both are turned as EXIF says ({orientation}); the mask is drawn on the turned "
            "photograph: set data.mask_orientation=upright"
        )
    raise UserError(
        f"{message} when it is turned as its EXIF orientation ({orientation}) says; the mask is drawn on the pixels "
        "as they are stored: set data.mask_orientation=stored, or remove the orientation from the photographs "
        "(exiftool -Orientation= FILE)"
    )


def _remedy_of_sizes(image: tuple[int, ...], mask: tuple[int, ...]) -> str:
    is_scaled = abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*image, *mask)  # but for a pixel
    if image == mask[::-1]:
        return "turn the mask as the photograph is, or export it again"
    if is_scaled:
        return "export the mask again at the size of the photograph, or resize it with nearest neighbor"
    return "is it the mask of this photograph, as it is now? export it again at the size of the photograph"


def turned(mask: UInt8[Tensor, "h w"], orientation: int) -> UInt8[Tensor, "H W"]:
    """Turns a mask as EXIF orientation 1 to 8 says how to turn its image."""
    if orientation in (5, 6, 7, 8):
        mask = mask.T
    rows = (-2,) if orientation in (3, 4, 7, 8) else ()
    columns = (-1,) if orientation in (2, 3, 6, 7) else ()
    return mask.flip(rows + columns).contiguous()


def read_stored(path: Path) -> StoredMask:
    """Decodes a mask file.

    Raises:
        UserError: it is missing, cannot be decoded, is saved with loss, has several pages, transparency or a mode that
            is no mask's.
    """
    image: Image.Image
    with open_image(path) as image:
        try:
            kind, pages, stretch = image.format or "", getattr(image, "n_frames", 1), _stretch(image)
            is_white_zero, largest = _is_white_zero(image), largest_possible(image)
            lossy = kind in _LOSSY or (kind == "WEBP" and _is_lossy_webp(path))
            if not lossy:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:
            raise UnreadableError(unreadable(path)) from error
    if lossy:
        raise UserError(
            f"{path}: the mask is a {kind} that blurs: other values than the drawn ones stand at each edge; "
            "export the masks as PNG from the tool that made them"
        )
    if pages > 1:
        raise UserError(f"{path}: holds {pages} pages; a mask has one, with the class index of each pixel")
    if largest > 255 and not image.mode.startswith(("I", "F")):  # Pillow drops the lower bytes
        raise UserError(f"{path}: the mask holds several channels of 16 bits; save it with one channel, or with 8 bits")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        if image.getchannel("A" if "A" in image.mode else "a").getextrema() != (255, 255):
            raise UserError(
                f"{path}: the mask has transparency (mode {image.mode}); save it with one channel (gray or palette "
                "PNG) that holds the class index of each pixel"
            )
        image = image.convert({"LA": "L", "PA": "P"}.get(image.mode, "RGB"))
    if image.mode == "RGB":
        return _colors(image, kind, path)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        what = "floating-point values" if image.mode == "F" else f"a color image (mode {image.mode})"
        raise UserError(
            f"{path}: the mask holds {what}; save it with one channel (gray or palette PNG) that holds the class index "
            "of each pixel"
        )
    return _values(image, kind, stretch, is_white_zero)


def _is_lossy_webp(path: Path) -> bool:
    """Reads the kinds of the chunks in a WebP file: VP8 is lossy, VP8L is not."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8 ", b"VP8L"):
                return head[:4] == b"VP8 "
            length = int.from_bytes(head[4:], "little")
            file.seek(length + length % 2, 1)
    return False


def _values(image: Image.Image, kind: str, stretch: tuple[int, int] | None, is_white_zero: bool) -> StoredMask:
    pixels = np.asarray(image)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
        counts = np.bincount(pixels.ravel(), minlength=2)
    elif pixels.dtype == np.uint8:
        counts = np.array(image.histogram())
    else:
        counts = np.empty(0, dtype=np.int64)
    if stretch:  # back to what the file stores
        pixels = ((pixels.astype(np.int64) * stretch[0] + stretch[1] // 2) // stretch[1]).astype(pixels.dtype)
        counts = np.bincount(pixels.ravel(), minlength=2) if pixels.dtype == np.uint8 else counts
    values: dict[Key, int]
    if pixels.dtype == np.uint8:
        values = {int(value): int(counts[value]) for value in counts.nonzero()[0]}
    else:
        pixels = pixels.astype(np.int64)
        found, numbers = np.unique(pixels, return_counts=True)
        values = dict(zip(found[:_MOST].tolist(), numbers[:_MOST].tolist(), strict=True))
    palette, reduced = _palette(image, values) if image.mode == "P" else ({}, False)
    bits = "1-bit" if image.mode == "1" else "8-bit" if pixels.dtype == np.uint8 else "16-bit"
    words = f"palette {kind}" if palette else f"{bits} gray {kind}"
    if is_white_zero:  # back to what the file stores
        largest = 1 if image.mode == "1" else stretch[0] if stretch else 255
        words, pixels = f"{words} whose 0 is white", largest - pixels
        palette = {largest - _packed(value): (_packed(value) * 255 // largest,) * 3 for value in values}
        values = {largest - _packed(value): number for value, number in values.items()}
    blended = 0.0 if palette else _blended(pixels)
    return StoredMask(pixels, Content((image.height, image.width), words, values, palette, reduced, blended))


def _blended(pixels: Integer[np.ndarray, "h w"]) -> float:
    """Returns the share of the pixels at vertical or horizontal edges whose value lies between their neighbors'."""
    edges = between = 0
    for values in (pixels, pixels.T):
        left, middle, right = values[:, :-2], values[:, 1:-1], values[:, 2:]
        edges += int(np.count_nonzero(left != right))
        between += int(np.count_nonzero(((left < middle) & (middle < right)) | ((left > middle) & (middle > right))))
    return between / max(_FEW_EDGES, edges)


def _palette(image: Image.Image, values: Mapping[Key, int]) -> tuple[dict[Key, Color], bool]:
    """Returns the colors of the values that occur, and whether the palette has no others."""
    flat = image.getpalette("RGB") or []
    entries = [(flat[start], flat[start + 1], flat[start + 2]) for start in range(0, len(flat) - 2, 3)]
    used = max(map(_packed, values)) + 1
    entries += [(0, 0, 0)] * (used - len(entries))
    while len(entries) > used and entries[-1] == (0, 0, 0):  # GIF fills up to a power of two
        entries.pop()
    return {value: entries[_packed(value)] for value in values}, len(entries) == len(values)


def _colors(image: Image.Image, kind: str, path: Path) -> StoredMask:
    found = image.getcolors(_MOST)
    if found is None:
        raise UserError(
            f"{path}: has more than {_MOST} colors, so it is no mask: a photograph, an overlay, or a mask with soft "
            "edges; name the folder of the masks, or export the masks as PNG without antialiasing"
        )
    colors: dict[Key, int] = {}
    for number, color in sorted(found, reverse=True):
        assert isinstance(color, tuple)
        colors[color[0], color[1], color[2]] = number
    pixels = np.asarray(image)
    blended = _blended(pixels[..., 0]) if _is_gray({color: color for color in colors}) else 0.0
    return StoredMask(pixels, Content((image.height, image.width), f"color {kind}", colors, {}, blended=blended))


def _stretch(image: Image.Image) -> tuple[int, int] | None:
    """Returns (m, n) if Pillow will return each stored value times n / m. It must be called before pixels are decoded.

    Gray levels of 2 or 4 bits become 0 to 255; those of a PGM become 0 to 255 or 0 to 65535, whatever its maximum is.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:
        return None
    codec, arguments = tiles[0][0], tiles[0][3]
    if codec in ("ppm", "ppm_plain") and isinstance(arguments, tuple) and image.mode in ("L", "I"):
        most = 255 if image.mode == "L" else 65535
        return (int(arguments[-1]), most) if arguments[-1] != most else None
    raw = str(arguments[0] if isinstance(arguments, tuple) else arguments).removesuffix("I")
    return {"L;2": (3, 255), "L;4": (15, 255)}.get(raw) if image.mode == "L" else None


def _is_white_zero(image: Image.Image) -> bool:
    """Returns whether an image is a TIFF whose value 0 is white, so that Pillow will return its negative."""
    if not isinstance(image, TiffImageFile) or image.mode not in ("1", "L"):
        return False
    return image.tag_v2.get(Base.PhotometricInterpretation) == 0


def class_of(value: Key, coding: MaskCoding) -> int | None:
    """Returns the class of a stored value or of a color, or IGNORE; None if it has no meaning."""
    if isinstance(value, tuple):
        return (coding.colors or {}).get(value)
    named = (coding.values or {}).get(value)
    if named is not None:
        return named
    return value if 0 <= value < coding.num_classes or value == IGNORE else None


@dataclass(frozen=True)
class Reading:
    """How a mask is read: by its values, by its colors, or by the gray levels of its palette.

    `classes` has the class of each value or color that the file stores, or IGNORE; None for those without meaning.
    """

    by: Literal["value", "color", "gray"]
    classes: dict[Key, int | None]


def read_as(content: Content, coding: MaskCoding) -> Reading:
    """Decides how a mask is read, and finds the class of each value or color that it stores.

    A color file is read by its colors if all of them are colors of classes; otherwise its gray levels are values. A
    palette file is read by its values, unless the palette says otherwise: colors of classes that stand at other values
    than their class, or gray levels that a program has numbered anew.

    Raises:
        UserError: value and color of a palette file contradict each other. The message does not name the file.
    """
    known, palette = coding.colors or {}, content.palette
    own = {key: class_of(key, coding) for key in content.counts}
    if content.colored:
        levels: dict[Key, int | None] = {
            key: class_of(key[0], coding) for key in own if isinstance(key, tuple) and len({*key}) == 1
        }
        by_level = None in own.values() and len(levels) == len(own)
        return Reading("gray", levels) if by_level else Reading("color", own)
    by_value = Reading("value", own)
    stated: dict[Key, int | None] = {value: known[color] for value, color in palette.items() if color in known}
    agrees = all(own[value] == index for value, index in stated.items())
    if agrees and (len(stated) == len(palette) or not _is_gray(palette)):
        return by_value
    if says_nothing(palette) or (agrees and follows_palette_of_voc(content)):  # some of VOC's colors are gray
        return by_value
    if stated and len(stated) == len(palette):
        return Reading("color", stated)
    if stated and not _is_gray(palette):
        value = next(value for value, index in stated.items() if by_value.classes[value] != index)
        color = next(color for color in palette.values() if color not in known)
        raise UserError(
            f"its palette contradicts its values: value {value} has the color {hex_color(palette[value])} of class "
            f"{stated[value]}, and {hex_color(color)} is no class's color; name all colors of the masks with "
            "data.colors"
        )
    grays = {value: palette[value][0] for value in sorted(palette, key=_packed)}
    if all(value == gray for value, gray in grays.items()):
        return by_value
    if content.reduced and all(gray < coding.num_classes or gray in (coding.values or {}) for gray in grays.values()):
        return Reading("gray", {value: class_of(gray, coding) for value, gray in grays.items()})
    in_order = list(grays.values())
    if in_order == sorted({*in_order}) and grays.get(0, 0) < 128:
        return by_value
    pairs = ", ".join(f"{value} is {hex_color(palette[value])}" for value in sorted(palette, key=_packed))
    what = "palette" if content.kind.startswith("palette") else "TIFF's order of gray levels"
    raise UserError(
        f"its {what} contradicts its values ({pairs}: not from dark to light); say which class each color is with "
        "data.colors, or save it as gray PNG without a palette"
    )


def class_pixels(content: Content, coding: MaskCoding) -> dict[int, int]:
    """Returns the number of pixels of each class, or IGNORE, in a mask whose values and colors all have a meaning."""
    found: Counter[int] = Counter()
    for key, index in read_as(content, coding).classes.items():
        assert index is not None, "masks without meaning are refused earlier"
        found[index] += content.counts[key]
    return dict(found)


def says_nothing(palette: Mapping[Key, Color]) -> bool:
    """Returns whether a palette gives one color to several values, so that it cannot be the one that people see."""
    return len({*palette.values()}) < len(palette)


def _is_gray(palette: Mapping[Key, Color]) -> bool:
    return bool(palette) and all(len({*color}) == 1 for color in palette.values())


def follows_palette_of_voc(content: Content) -> bool:
    """Returns whether the palette is the one of VOC, in which each value has a color of its own."""
    return all(color == voc_color(_packed(value)) for value, color in content.palette.items())


def _without_meaning(content: Content, reading: Reading, coding: MaskCoding) -> str:
    """Says which values or colors of one mask have no meaning."""
    counts = content.counts
    unknown = [key for key, index in reading.classes.items() if index is None]
    held = shares({key: counts[key] for key in unknown}, sum(counts.values()))
    if reading.by == "color":
        return f"the mask is a color image and holds {held}, which no class has; {NAME_COLORS}"
    return (
        f"holds {held}, neither a class (0 to {coding.num_classes - 1}) nor {IGNORE} (ignored); say what they mean "
        "with data.values of layout 'folder' (semiseg check shows the values of all masks)"
    )


def shares(counts: Mapping[Any, int], total: int) -> str:
    """Writes values or colors with their share of all pixels, e.g. `0 (81.2 %), 127 (18.8 %)`."""
    keys: Iterable[Key] = counts if any(isinstance(key, tuple) for key in counts) else sorted(counts, key=_packed)
    parts = [f"{hex_color(key) if isinstance(key, tuple) else key} ({percent(counts[key], total)})" for key in keys]
    return listed(parts, _SHOWN)


def percent(part: int, total: int) -> str:
    """Writes a share of pixels with one decimal, e.g. `81.2 %`; a share below 0.05 % that is not 0 is `< 0.1 %`."""
    share = 100 * part / max(1, total)
    return "< 0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def parse_color(text: str) -> Color:
    """Reads a color written as `#RRGGBB`."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def hex_color(color: Color) -> str:
    """Writes a color as `#RRGGBB`."""
    return f"#{color[0]:02x}{color[1]:02x}{color[2]:02x}"


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
