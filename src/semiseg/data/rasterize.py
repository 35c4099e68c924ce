"""Draws annotations as mask files, once each, so that everything else reads masks as it reads those of other layouts.

The files are in the user's cache folder. The name of a file has a digest of all that its pixels depend on, so a changed
annotation makes another file and changes no other one. What is in the folder never changes a result: a file is taken as
it is if it is complete, and drawn again if it is missing.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semiseg.data.memory import cache_folder, digest_of
from semiseg.data.shapes import Shape, Size, paint_and_count
from semiseg.errors import UserError
from semiseg.types import IGNORE, ClassTable, voc_color

Color = tuple[int, int, int]
OnImage = Callable[[int, int], None]

_VERSION = 2  # of what the files hold; a change of shapes.py that changes pixels needs another one
_OVERLAP = "semiseg_overlap"  # the text of a file that says in how many pixels shapes of different classes overlap
_END = b"\0\0\0\0IEND\xaeB`\x82"  # of every complete PNG
_LONGEST = 40  # characters of an image's name in that of its mask; in UTF-8 a character has up to 4 bytes


@dataclass(frozen=True)
class Drawing:
    """The annotation of an image.

    Attributes:
        name: the name of the sample.
        where: the file with the annotation, for messages.
        size: (height, width) of the image, px.
        shapes: (class index or IGNORE, shape); a later one lies above an earlier one.
        ids: what each shape is called in messages.
    """

    name: str
    where: str
    size: Size
    shapes: tuple[tuple[int, Shape], ...]
    ids: tuple[str, ...]


def mask_colors(classes: ClassTable) -> dict[Color, int]:
    """Returns the colors of classes and ignored pixels in mask files; VOC's if two classes have the same color."""
    for colors in (classes.colors, [voc_color(index) for index in range(len(classes))]):
        found = {color: index for index, color in enumerate(colors)} | {voc_color(IGNORE): IGNORE}
        if len(found) == len(classes) + 1:
            return found
    raise AssertionError("the colors of VOC's palette differ")


def mask_files(
    drawings: Sequence[Drawing], fill: int, colors: dict[Color, int], root: Path, on_image: OnImage
) -> dict[str, Path]:
    """Draws the masks that are not in the cache folder yet.

    Args:
        drawings: one for each annotated image.
        fill: the class index, or IGNORE, of pixels in no shape.
        colors: color -> class index or IGNORE, for the palette of the files.
        root: the dataset's root folder.
        on_image: called with the number of masks that are drawn and the number of all that have to be drawn.

    Returns:
        The name of each sample -> its mask file: a PNG with a palette that stores class indices.

    Raises:
        UserError: a shape does not fit its image, or a mask cannot be written.
    """
    folder = cache_folder("masks")
    if folder is None:
        raise UserError("masks drawn from annotations have no place: there is no home directory; set HOME to a folder")
    folder /= digest_of(root)
    entries = palette(colors)
    shared = hashlib.blake2b(repr((_VERSION, fill, entries)).encode(), digest_size=16)
    files = {one.name: folder / _file_name(one, shared.copy()) for one in drawings}
    missing = [one for one in drawings if not _is_complete(files[one.name])]
    if not missing:
        return files
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error

    def draw(drawing: Drawing) -> None:
        pixels, overlap = _pixels(drawing, fill)
        image = Image.fromarray(pixels)
        image.putpalette(entries)  # makes it a palette image
        _write(image, overlap, files[drawing.name])

    with (
        ThreadPoolExecutor() as threads
    ):  # most of the time is spent in numpy and zlib, which other threads need not await
        try:
            for done, _ in enumerate(threads.map(draw, missing), 1):
                on_image(done, len(missing))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return files


def overlap_of(path: Path) -> int:
    """Returns in how many pixels of a mask file shapes of different classes overlap; 0 if it was not drawn here."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return int(image.info.get(_OVERLAP, 0))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # the check says what cannot be read
        return 0


def palette(colors: dict[Color, int]) -> list[int]:
    """Returns a palette of 256 entries for masks that store class indices: these colors, and those of VOC."""
    entries = [voc_color(index) for index in range(256)]
    for color, index in colors.items():
        entries[index] = color
    return [channel for color in entries for channel in color]


def _file_name(drawing: Drawing, digest: hashlib.blake2b) -> str:
    """Adds all that makes this drawing differ from others to `digest`, and makes a name of it."""
    digest.update(os.fsencode(repr((drawing.name, drawing.size, [value for value, _ in drawing.shapes]))))
    for _, shape in drawing.shapes:
        content = shape.identity()
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"{drawing.name.rpartition('/')[2][:_LONGEST]}.{digest.hexdigest()}.png"


def _is_complete(path: Path) -> bool:
    """Returns whether a file is there and ends as a PNG does. A machine that lost power may leave a part of it."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:  # it is missing, or shorter
        return False


def _pixels(drawing: Drawing, fill: int) -> tuple[UInt8[np.ndarray, "h w"], int]:
    try:
        return paint_and_count(drawing.shapes, drawing.size, fill)
    except UserError:
        for name, (_, shape) in zip(drawing.ids, drawing.shapes, strict=True):
            try:
                shape.region(drawing.size)
            except UserError as error:
                raise UserError(f"{drawing.where}: {name}: {error}") from error
        raise


def _write(image: Image.Image, overlap: int, path: Path) -> None:
    """Writes under a name that no other process has, and renames: others may write the same file at the same time."""
    aside, texts = None, PngInfo()
    texts.add_text(_OVERLAP, str(overlap))
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            aside = Path(file.name)
            image.save(file, "PNG", pnginfo=texts, compress_level=1)
        aside.replace(path)
    except OSError as error:
        if aside is not None:
            with suppress(OSError):
                aside.unlink()
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: masks drawn from annotations cannot be written there ({error.strerror or error}); make room or "
        "make it writable, or name another cache folder (on Linux XDG_CACHE_HOME=FOLDER)"
    )
