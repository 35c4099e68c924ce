"""A model that says of each pixel which of red and blue prevails."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from semiseg.types import ClassTable


class Colors(nn.Module):
    """Class 1 where red prevails, class 2 where blue does, class 0 elsewhere."""

    def forward(self, image: Tensor) -> Tensor:
        red, green, blue = image.unbind(1)
        return torch.stack([torch.full_like(red, 0.3), red - green, blue - green], 1)


class ColorModel:
    """A model that needs no network: what an exported model may be, too."""

    classes = ClassTable(("sky", "red", "blue"), ((10, 20, 30), (250, 0, 0), (0, 0, 251)), background=0)
    device = torch.device("cpu")
    least_window = 8
    white = None

    def __init__(self, long_side: int | None = None, name: bytes = b"colors") -> None:
        self.long_side, self.name = long_side, name
        self.seen: list[tuple[int, ...]] = []

    def probabilities(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        return (4 * Colors()(image.float() / 255)).softmax(1)

    def fingerprint(self) -> bytes:
        return self.name


@pytest.fixture
def model() -> ColorModel:
    return ColorModel()


@pytest.fixture
def color_model() -> type[ColorModel]:
    return ColorModel


@pytest.fixture
def flag(tmp_path: Path) -> Callable[..., Path]:
    """flag("a.png") -> an image of 30x20 px below photos/: red, blue, then black, 10 px each."""

    def flag(name: str, width: int = 30, height: int = 20) -> Path:
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 3, 0] = pixels[:, width // 3 : 2 * (width // 3), 2] = 255
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return flag
