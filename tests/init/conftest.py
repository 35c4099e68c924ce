"""Small photographs and masks on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.engine.rehearse import Rehearsal
from semiseg.init import trial


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write("images/a.png", array) -> the file, below tmp_path."""

    def write(name: str, pixels: np.ndarray, **save) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **save)
        return path

    return write


@pytest.fixture
def photo(write: Callable[..., Path]) -> Callable[..., Path]:
    """photo("images/a.jpg", seed) -> a photograph of 40 x 32 px, of random colors of its own."""

    def photo(name: str, seed: int, size: tuple[int, int] = (32, 40)) -> Path:
        coarse = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
        return write(name, coarse.repeat(size[0] // 4, 0).repeat(size[1] // 5, 1))

    return photo


@pytest.fixture
def square() -> Callable[..., np.ndarray]:
    """square(5, at=3, inside=255) -> a mask of 32 x 40 px with a square of that side, 0 elsewhere."""

    def square(side: int, at: int = 3, inside: int = 1) -> np.ndarray:
        mask = np.zeros((32, 40), dtype=np.uint8)
        mask[at : at + side, at : at + side] = inside
        return mask

    return square


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """No real steps: the precisions that were tried, each as fast as its name is long."""
    asked: list[str] = []

    def rehearsed(chosen, request, work, batch, precision):
        asked.append(f"{precision} {batch}")
        return Rehearsal(100.0, 200.0, step_s=0.5, evaluation_s=1.0, hours=0.1, disk_mb=1.0, loss=1.0)

    monkeypatch.setattr(trial, "_rehearsed", rehearsed)
    return asked
