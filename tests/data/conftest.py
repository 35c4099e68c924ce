"""Tiny datasets on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """write("images/a.png", array) -> the file, below tmp_path; text and bytes are written as they are."""

    def write(name: str, content: np.ndarray | str | bytes, **save) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(path, **save)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def ramp() -> Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]:
    """ramp(height, width, blue) -> an image whose red tells the column (8 a px), and a mask that holds the column."""

    def ramp(height: int, width: int, blue: int = 0) -> tuple[np.ndarray, np.ndarray]:
        column = np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width))
        row = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None], (height, width))
        image = np.stack([8 * column, 8 * row, np.full((height, width), blue, np.uint8)], axis=-1)
        return image, np.ascontiguousarray(column)

    return ramp


@pytest.fixture
def folder(tmp_path: Path, write: Writer, ramp) -> Path:
    """The plain layout: 12 images of 20x24 px, blue = their number; the first 8 with masks; 24 classes."""
    for number in range(12):
        image, mask = ramp(20, 24, number)
        write(f"images/{number:02}.png", image)
        if number < 8:
            write(f"masks/{number:02}.png", mask)
    write("classes.txt", "".join(f"c{number}\n" for number in range(24)))
    return tmp_path
