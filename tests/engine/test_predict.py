from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from semiseg.engine.evaluate import Config
from semiseg.engine.predict import Predictor, index_image, overlay, predict_files
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.models.build import Network
from semiseg.types import ClassTable, Normalization

CLASSES = ClassTable(("sky", "red", "blue"), ((10, 20, 30), (250, 0, 0), (0, 0, 251)), background=0)


class Colors(nn.Module):
    """Class 1 where red prevails, class 2 where blue does, class 0 elsewhere."""

    def forward(self, image: Tensor) -> Tensor:
        red, green, blue = image.unbind(1)
        return torch.stack([torch.full_like(red, 0.3), red - green, blue - green], 1)


@pytest.fixture
def predictor() -> Predictor:
    network = Network(Colors(), Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1).eval()
    return Predictor(network, CLASSES, None, Config(), Runtime("cpu"), step=3)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """30x20 px: red, blue, then black, 10 px each."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :10, 0] = pixels[:, 10:20, 2] = 255
    path = tmp_path / "photos" / "flag.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


EXPECTED = np.repeat([[1, 2, 0]], 10, axis=1).repeat(20, axis=0).astype(np.uint8)


def test_class_of_each_pixel(predictor, photo):
    image = torch.from_numpy(np.asarray(Image.open(photo)).copy()).permute(2, 0, 1)
    label = predictor.predict(image)
    assert label.dtype == torch.uint8
    assert np.array_equal(label, EXPECTED)


@pytest.mark.parametrize("long_side", [15, 60])
def test_images_are_resized_as_in_training_and_back(predictor, photo, long_side):
    seen = []
    predictor.network.net.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    label = replace(predictor, long_side=long_side).predict(torch.zeros(3, 20, 30, dtype=torch.uint8))
    assert seen == [(1, 3, long_side * 2 // 3, long_side)]
    assert label.shape == (20, 30)


def test_by_windows(predictor, photo):
    seen = []
    predictor.network.net.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    windows = replace(predictor, evaluate=Config(mode="sliding", window=16, stride=16))
    image = torch.from_numpy(np.asarray(Image.open(photo)).copy()).permute(2, 0, 1)
    assert np.array_equal(windows.predict(image), EXPECTED)
    assert seen == [(1, 3, 16, 16)] * 4


def test_index_image():
    image = index_image(torch.tensor([[0, 1], [2, 1]], dtype=torch.uint8), CLASSES)
    assert image.mode == "P"
    assert np.asarray(image).tolist() == [[0, 1], [2, 1]]
    assert np.asarray(image.convert("RGB")).tolist() == [[[10, 20, 30], [250, 0, 0]], [[0, 0, 251], [250, 0, 0]]]


def test_overlay_is_half_photo_half_class():
    image = torch.tensor([[[100, 100]], [[50, 50]], [[0, 200]]], dtype=torch.uint8)
    label = torch.tensor([[0, 1]], dtype=torch.uint8)
    assert np.asarray(overlay(image, label, CLASSES)).tolist() == [[[100, 50, 0], [175, 25, 100]]]
    without = replace(CLASSES, background=None)
    assert np.asarray(overlay(image, label, without)).tolist() == [[[55, 35, 15], [175, 25, 100]]]


def test_files(predictor, photo, tmp_path):
    done = []
    (photo.parent / "below").mkdir()
    Image.open(photo).resize((7, 5)).save(photo.parent / "below" / "b.v2.jpg")
    out = tmp_path / "out"
    assert predict_files(predictor, photo.parent, out, lambda *count: done.append(count)) == 2
    assert done == [(1, 2), (2, 2)]
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == ["below/b.v2.png", "below/b.v2_overlay.png", "flag.png", "flag_overlay.png"]
    with Image.open(out / "flag.png") as mask, Image.open(out / "below/b.v2.png") as small:
        assert np.array_equal(np.asarray(mask), EXPECTED)
        assert small.size == (7, 5)


def test_sideways_photographs_come_out_upright(predictor, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.open(photo).save(tmp_path / "turned.png", exif=exif)
    predict_files(predictor, tmp_path / "turned.png", tmp_path / "out")
    with Image.open(tmp_path / "out" / "turned.png") as mask:
        assert np.array_equal(np.asarray(mask), np.rot90(EXPECTED, -1))


def test_nothing_is_written_where_something_is_in_the_way(predictor, photo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    Image.open(photo).save(photo.parent / "a.png")
    (out / "flag_overlay.png").write_text("mine")
    with pytest.raises(UserError, match=r"flag_overlay.png: exists already"):
        predict_files(predictor, photo.parent, out)
    assert [path.name for path in out.iterdir()] == ["flag_overlay.png"]
    assert (out / "flag_overlay.png").read_text() == "mine"
