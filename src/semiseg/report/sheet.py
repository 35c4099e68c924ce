"""Makes contact sheets: image files side by side, with headings above each block."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from semiseg.files import save_image

_TILE, _GAP, _HEADING, _MARGIN = 160, 6, 26, 12  # px


@dataclass(frozen=True)
class Block:
    """Rows of image files with a heading above each column. A single heading may be as wide as the whole block."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Path]]


def write(path: Path, blocks: Sequence[Block]) -> Path:
    """Writes all blocks into one PNG, each below the one before, and returns its path.

    Each image is as large as a square tile allows. Palette masks get the colors of their palette.

    Raises:
        UserError: the file cannot be written.
    """
    columns = max(len(row) for block in blocks for row in block.rows)
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    height = 2 * _MARGIN + sum(_HEADING + len(block.rows) * (_TILE + _GAP) + _GAP for block in blocks)
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    top = _MARGIN
    for block in blocks:
        for column, heading in enumerate(block.headings):
            pen.text((_MARGIN + column * (_TILE + _GAP), top + 4), heading, fill="black", font=font)
        top += _HEADING
        for row in block.rows:
            for column, file in enumerate(row):
                canvas.paste(_tile(file), (_MARGIN + column * (_TILE + _GAP), top))
            top += _TILE + _GAP
        top += _GAP
    save_image(canvas, path)
    return path


def in_rows(files: Sequence[Path], columns: int) -> list[Sequence[Path]]:
    """Splits the files into rows of `columns`."""
    return [files[start : start + columns] for start in range(0, len(files), columns)]


def _tile(file: Path) -> Image.Image:
    """Resizes the image to fit a tile, on a white background."""
    with Image.open(file) as stored:
        smooth = stored.mode != "P"
        image = stored.convert("RGB")
    ratio = _TILE / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    tile.paste(image.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST))
    return tile
