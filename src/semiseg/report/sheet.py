"""Contact sheets: image files side by side, with a heading over each block."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from semiseg.files import save_image

_TILE, _GAP, _HEADING, _MARGIN = 160, 6, 26, 12  # px


@dataclass(frozen=True)
class Block:
    """Rows of image files under one heading a column. A single heading may run over the whole block."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Path]]


def write(path: Path, blocks: Sequence[Block]) -> Path:
    """Writes the blocks one below the other into one PNG and returns its path.

    Images are shown as large as a square tile allows; masks with a palette in its colors.

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
    """The files in rows of `columns`."""
    return [files[start : start + columns] for start in range(0, len(files), columns)]


def _tile(file: Path) -> Image.Image:
    """The image, enlarged or reduced to fit a tile, on white."""
    with Image.open(file) as stored:
        smooth = stored.mode != "P"
        image = stored.convert("RGB")
    ratio = _TILE / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    tile.paste(image.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST))
    return tile
