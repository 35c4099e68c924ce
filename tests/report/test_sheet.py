from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.errors import UserError
from semiseg.report import sheet

TILE, GAP, HEADING, MARGIN = 160, 6, 26, 12  # px, as a sheet is laid out


def plain(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (40, 40)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def tile(picture: np.ndarray, row: int, column: int, top: int = MARGIN + HEADING) -> np.ndarray:
    """The pixels of one tile of the block whose first row of tiles starts at `top`."""
    y, x = top + row * (TILE + GAP), MARGIN + column * (TILE + GAP)
    assert y + TILE <= picture.shape[0] - MARGIN
    assert x + TILE <= picture.shape[1] - MARGIN
    return picture[y : y + TILE, x : x + TILE]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_every_tile_is_where_it_belongs(tmp_path):
    colors = [[(200, 10 * row, 10 * column) for column in range(3)] for row in range(2)]
    rows = [[plain(tmp_path / f"{row}{column}.png", colors[row][column]) for column in range(3)] for row in range(2)]
    below = plain(tmp_path / "below.png", (0, 99, 0))
    path = sheet.write(tmp_path / "sheet.png", [sheet.Block(("a", "b", "c"), rows), sheet.Block(("below",), [[below]])])
    assert path == tmp_path / "sheet.png"
    picture = read(path)
    first, second = 2 * (TILE + GAP), TILE + GAP  # heights of the two blocks' rows
    assert picture.shape == (2 * MARGIN + 2 * (HEADING + GAP) + first + second, 2 * MARGIN + 3 * TILE + 2 * GAP, 3)
    for row in range(2):
        for column in range(3):
            assert (tile(picture, row, column) == colors[row][column]).all()
    assert (tile(picture, 0, 0, MARGIN + HEADING + first + GAP + HEADING) == (0, 99, 0)).all()
    assert (picture[MARGIN + HEADING : MARGIN + HEADING + TILE, MARGIN + TILE : MARGIN + TILE + GAP] == 255).all()
    assert (picture[:, :MARGIN] == 255).all()


def test_headings_stand_above_their_columns(tmp_path):
    image = plain(tmp_path / "image.png", (255, 255, 255))
    picture = read(sheet.write(tmp_path / "sheet.png", [sheet.Block(("left", "", "right"), [[image] * 3])]))
    heading = picture[MARGIN : MARGIN + HEADING]
    dark = [(heading[:, MARGIN + c * (TILE + GAP) :][:, :TILE] < 128).any() for c in range(3)]
    assert dark == [True, False, True]
    assert (picture[MARGIN + HEADING :] == 255).all()


@pytest.mark.parametrize(("size", "shown"), [((40, 20), (160, 80)), ((10, 40), (40, 160)), ((320, 320), (160, 160))])
def test_as_large_as_a_tile_allows(tmp_path, size, shown):
    image = plain(tmp_path / "image.png", (0, 0, 255), size)
    part = tile(read(sheet.write(tmp_path / "sheet.png", [sheet.Block(("",), [[image]])])), 0, 0)
    width, height = shown
    assert (part[:height, :width] == (0, 0, 255)).all()
    assert (part[height:] == 255).all()
    assert (part[:, width:] == 255).all()


def test_masks_in_the_colors_of_their_palette_without_blur(tmp_path):
    mask = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    mask.save(tmp_path / "mask.png")
    part = tile(read(sheet.write(tmp_path / "sheet.png", [sheet.Block(("",), [[tmp_path / "mask.png"]])])), 0, 0)
    assert {tuple(color) for color in part.reshape(-1, 3).tolist()} == {(9, 9, 9), (200, 0, 0), (0, 0, 200)}
    assert (part[:80, 80:] == (200, 0, 0)).all()
    assert (part[80:, :80] == (0, 0, 200)).all()


def test_rows_of_unequal_length(tmp_path):
    image = plain(tmp_path / "image.png", (1, 2, 3))
    picture = read(sheet.write(tmp_path / "sheet.png", [sheet.Block(("",), [[image] * 2, [image]])]))
    assert (tile(picture, 1, 0) == (1, 2, 3)).all()
    assert (tile(picture, 1, 1) == 255).all()


def test_in_rows():
    files = [Path(name) for name in "abcde"]
    assert sheet.in_rows(files, 2) == [files[:2], files[2:4], files[4:]]
    assert sheet.in_rows([], 3) == []


def test_a_sheet_is_written_whole_or_not_at_all(tmp_path):
    image = plain(tmp_path / "image.png", (1, 2, 3))
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(UserError, match=r"sheet.png: cannot be written \(Is a directory\)"):
        sheet.write(tmp_path / "sheet.png", [sheet.Block(("",), [[image]])])
    assert {path.name for path in tmp_path.iterdir()} == {"image.png", "sheet.png"}
