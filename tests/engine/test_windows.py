"""Windows with blended seams."""

import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semiseg.data.read import read_image
from semiseg.engine.predict_files import loop, predict_files, raster, segment
from semiseg.engine.predict_files.options import Options
from semiseg.engine.predict_files.raster import InMemory, opened
from semiseg.engine.predict_files.windows import blended, weights
from semiseg.errors import UserError
from semiseg.models.predict import most_likely_at, whole, window_starts


def assembled(predict, height: int, width: int, window: int) -> Tensor:
    total = torch.full((2, height, width), torch.nan)
    for rows, columns, block in blended(predict, height, width, window):
        assert total[:, rows, columns].isnan().all()  # each pixel once
        total[:, rows, columns] = block
    return total


def test_weights_by_hand():
    """Windows of 4 px at 0 and 2: (0.5, 1.5, 1.5, 0.5) each, so 1.5 : 0.5 and 0.5 : 1.5 where they overlap."""
    assert [one.tolist() for one in weights([0, 2], 4, 6)] == [[1, 1, 0.75, 0.25], [0.25, 0.75, 1, 1]]
    assert weights([0], 5, 5)[0].tolist() == [1] * 5


@pytest.mark.parametrize(
    ("height", "width", "window"), [(9, 9, 16), (16, 40, 16), (61, 47, 16), (33, 17, 8), (70, 90, 20)]
)
def test_blending_equals_the_weighted_sum(height, width, window):
    """Against a plain sum over the whole image. Each window knows something else of a pixel."""
    stride = window - window // 4
    rows, columns = min(height, window), min(width, window)
    tops, lefts = window_starts(height, window, stride), window_starts(width, window, stride)
    values = torch.rand(len(tops), len(lefts), 2, rows, columns)
    expected, total = torch.zeros(2, height, width), torch.zeros(height, width)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            down, right = torch.arange(rows) + 0.5, torch.arange(columns) + 0.5
            weight = torch.minimum(down, rows - down)[:, None] * torch.minimum(right, columns - right)
            expected[:, top : top + rows, left : left + columns] += weight * values[row, column]
            total[top : top + rows, left : left + columns] += weight
    found = assembled(
        lambda top, left, *size: values[tops.index(top), lefts.index(left)].clone(), height, width, window
    )
    torch.testing.assert_close(found, expected / total)


def test_a_step_at_a_window_becomes_a_slope():
    """The left window says 0 and the right one 1: over the pixels that both show, the mean rises without a jump."""
    row = assembled(lambda top, left, h, w: torch.full((2, h, w), float(left > 0)), 16, 28, 16)[0, 8]
    assert row[:12].tolist() == [0] * 12
    assert row[16:].tolist() == [1] * 12
    steps = row[11:17].diff()
    assert (steps > 0).all()
    assert steps.max() < 0.3


def test_windows_agree_with_the_whole_image(model):
    """The class of a pixel depends on the pixel alone, so the windows must not matter at all."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 50, 70), dtype=np.uint8))
    expected, none = segment.segment(model, InMemory(image), Options())
    assert none is None
    label, probability = segment.segment(model, InMemory(image), Options(window=16), keep=True)
    assert np.array_equal(label, expected)
    assert {shape[-2:] for shape in model.seen} == {(50, 70), (16, 16)}
    assert np.array_equal(probability.argmax(0), expected)
    assert np.abs(probability.astype(float).sum(0) - 1).max() < 0.01


def test_an_image_within_the_window_is_predicted_whole(model, tiny):
    """To the last bit: one window has the weight 1."""
    net = tiny().eval()
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8))
    expected = whole(net, net.normalization(image[None]))[0]
    found = assembled_classes(lambda top, left, h, w: whole(net, net.normalization(image[None]))[0], 40, 50, 64)
    assert torch.equal(found, expected)


def assembled_classes(predict, height: int, width: int, window: int) -> Tensor:
    [(rows, columns, block)] = blended(predict, height, width, window)
    assert (rows, columns) == (slice(0, height), slice(0, width))
    return block


def test_a_window_is_gone_before_the_next_one_is_predicted(model, monkeypatch):
    """On 21 classes of 1024 x 1024 px it takes 88 MB."""
    earlier = []

    def predicted(*_) -> Tensor:
        assert not any(reference() is not None for reference in earlier)
        found = torch.rand(1, 3, 16, 16)
        earlier.append(weakref.ref(found))
        return found

    monkeypatch.setattr(segment, "mean_of_views", predicted)
    segment.segment(model, InMemory(torch.zeros(3, 40, 40, dtype=torch.uint8)), Options(window=16))
    assert len(earlier) == 9


def test_each_window_is_resized_as_an_image_of_its_own(color_model):
    model = color_model(long_side=24)
    image = torch.zeros(3, 64, 128, dtype=torch.uint8)
    segment.segment(model, InMemory(image), Options())
    assert model.seen == [(1, 3, 12, 24)]
    model.seen.clear()
    label, _ = segment.segment(model, InMemory(image), Options(window=48))
    assert {shape[-2:] for shape in model.seen} == {(24, 24)}
    assert label.shape == (64, 128)


@pytest.fixture
def small_limit(monkeypatch):
    """Images of more than 1000 pixels are large."""
    for module in (raster, segment):
        monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    monkeypatch.setattr(segment, "WINDOW", 16)


def unlimited(path: Path, white: int | None = None) -> Tensor:
    with raster._any_size():
        return read_image(path, white=white)


@pytest.mark.parametrize("kind", ["tiff", "gray.tiff", "png", "jpg", "palette.png"])
@pytest.mark.parametrize("rasterio", [True, False])
def test_large_files_are_read_by_windows(small_limit, model, flag, kind, monkeypatch, rasterio):
    if rasterio:
        pytest.importorskip("rasterio", reason="needs the extra geo")
    else:
        monkeypatch.setattr(raster, "has_rasterio", lambda: False)
    path = flag(f"a.{kind}", 90, 40)
    if kind.startswith(("gray", "palette")):
        with raster._any_size():
            Image.open(path).convert("L" if kind.startswith("gray") else "P").save(path)
    with pytest.raises(UserError, match="pixels that are safe to decode"):
        read_image(path)
    with opened(path, None) as picture:
        assert not isinstance(picture, InMemory)
        assert picture.size == (40, 90)
        assert torch.equal(picture.window(3, 20, 30, 50), unlimited(path)[:, 3:33, 20:70])
        label, _ = segment.segment(model, picture, Options())
        assert picture.resized(20, 45).shape == (3, 20, 45)
    assert {shape[-2:] for shape in model.seen} == {(16, 16)}
    if "gray" not in kind:
        assert label[5, ::15].tolist() == [1, 1, 2, 2, 0, 0]


def test_large_sideways_photographs_are_upright(small_limit, flag, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with raster._any_size():
        Image.open(flag("a.png", 90, 40)).save(tmp_path / "turned.jpg", exif=exif)
    with opened(tmp_path / "turned.jpg", None) as picture:
        assert picture.size == (90, 40)
        assert torch.equal(picture.window(0, 0, 90, 40), unlimited(tmp_path / "turned.jpg"))


def test_a_large_image_is_gone_before_its_files_are_written(small_limit, model, flag, tmp_path, monkeypatch):
    pictures, alive = [], []

    class Watched(raster._Decoded):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            pictures.append(weakref.ref(self))

    monkeypatch.setattr(raster, "_Decoded", Watched)
    monkeypatch.setattr(loop, "return_freed_memory", lambda: alive.append(pictures[-1]()))
    predict_files(model, flag("a.png", 90, 40), tmp_path / "out")
    assert len(pictures) == 1
    assert alive == [None]


@pytest.mark.parametrize(("long_side", "window", "noted"), [(24, None, 1), (24, 48, 0), (None, None, 0)])
def test_large_images_that_are_shrunk_are_noted(small_limit, color_model, flag, tmp_path, long_side, window, noted):
    for name, size in {"large": (90, 40), "small": (30, 20)}.items():
        flag(f"photos/{name}.png", *size)
    notes = []
    options = Options(window=window)
    predict_files(
        color_model(long_side=long_side), tmp_path / "photos", tmp_path / "out", on_unused=notes.append, options=options
    )
    shrunk = [note for note in notes if "shrunk" in note.what]
    assert [path.name for note in shrunk for path in note.files] == ["large.png"] * noted
    assert all("long side of 24 px" in str(note) for note in shrunk)


def test_large_gray_levels_of_16_bits(small_limit, tmp_path):
    values = np.arange(2000, dtype=np.uint16).reshape(40, 50) * 30
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    for white in (None, 40000):
        with opened(tmp_path / "deep.tiff", white) as picture:
            assert torch.equal(picture.window(0, 0, 40, 50), unlimited(tmp_path / "deep.tiff", white))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_large_gray_levels_of_few_bits(small_limit, tmp_path, bits):
    """Scans may have them. As rasterio reads them, 15 of 4 bits would be nearly black."""
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    values = np.arange(2000, dtype=np.uint8).reshape(1, 40, 50) % 2**bits
    layout = {"driver": "GTiff", "height": 40, "width": 50, "count": 1, "dtype": "uint8", "nbits": bits}
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "few.tiff", "w", **layout) as scan:
        scan.write(values)
    with opened(tmp_path / "few.tiff", None) as picture:
        found = picture.window(0, 0, 40, 50)
        assert torch.equal(found, unlimited(tmp_path / "few.tiff"))
        assert found.max() == 255


@pytest.mark.parametrize("size", [(100, 37), (7, 9), (33, 130)])
def test_classes_by_bands_equal_those_of_the_whole_image(size, monkeypatch):
    monkeypatch.setattr(segment, "_BAND", 500)
    probability = torch.rand(1, 4, 11, 13).softmax(1)
    expected = most_likely_at(probability, *size)[0].to(torch.uint8).numpy()
    found = segment._label_by_bands(probability[0], *size)
    assert (found == expected).mean() > 0.999  # rounding decides where two classes are equal
