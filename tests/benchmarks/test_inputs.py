"""Checks of the comparison of image libraries."""

from pathlib import Path
from types import SimpleNamespace

import common
import inputs
import pytest
import torch
from PIL import Image


@pytest.fixture
def results(tmp_path: Path) -> common.Results:
    return common.Results(common.arguments("Title.", ["--tiny", "--repeats", "1", "--out", str(tmp_path)]))


def test_a_crop_is_the_same_but_at_its_border_whichever_way_it_is_made(results: common.Results):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 40, 50), dtype=torch.uint8, generator=generator) for _ in range(20)]
    inputs.cut(results, images, 64)
    off = [figure.median for name, figure in results.figures.items() if name.endswith("mean difference")]
    assert len(off) == 2
    assert max(off) < 2  # noise that is off by a pixel differs by 60


def test_libraries_that_give_other_values_of_a_mask_are_told_apart(results: common.Results, tmp_path: Path):
    paths = [tmp_path / f"{colors}.png" for colors in (256, 2)]
    for path in paths:
        mask = Image.new("P", (5, 4), 1)
        mask.putpalette([0, 128, 0] * int(path.stem))
        mask.save(path)
    colors = SimpleNamespace(decode_image=lambda path, mode: torch.zeros(3, 4, 5, dtype=torch.uint8))
    with pytest.warns(DeprecationWarning, match="TorchVision"):
        inputs.decode_masks(results, paths[:1], paths[1:], {"torchcodec": colors})
    assert set(results.figures) == {f"palette mask, {name}" for name in ("semiseg", "Pillow alone", "torchvision")}
    garbled, colored = results.notes
    assert garbled.startswith("torchvision garbles")
    assert colored.startswith("torchcodec gives the colors")


def test_half_the_size_is_a_quarter_of_the_pixels(tmp_path: Path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "image.jpg")
    assert inputs.half(tmp_path / "image.jpg").shape == (3, 24, 32)
