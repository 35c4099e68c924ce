from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from semiseg.engine.pictures import index_image, overlay
from semiseg.engine.predict import Predictor
from semiseg.engine.predict_files import predict_files
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.models.build import Network, Undivided
from semiseg.recipe.engine import EvaluateConfig
from semiseg.types import ClassTable, Normalization

CLASSES = ClassTable(("sky", "red", "blue"), ((10, 20, 30), (250, 0, 0), (0, 0, 251)), background=0)


class Colors(nn.Module):
    """Class 1 where red prevails, class 2 where blue does, class 0 elsewhere."""

    def forward(self, image: Tensor) -> Tensor:
        red, green, blue = image.unbind(1)
        return torch.stack([torch.full_like(red, 0.3), red - green, blue - green], 1)


@pytest.fixture
def predictor() -> Predictor:
    network = Network(Undivided(Colors()), Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1).eval()
    return Predictor((network,), CLASSES, None, EvaluateConfig(), Runtime("cpu"), step=3)


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


def test_white_is_that_of_training(predictor, photo):
    """Values of 16 bits that are nearly black: all is class 0 unless 9 is white."""
    bright = nn.Conv2d(3, 3, 1)  # class 0 below a half, class 1 above it
    bright.weight.data.zero_()[1] = 1 / 3
    bright.bias.data = torch.tensor([0.5, 0.0, -9.0])
    network = Network(Undivided(bright), Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1).eval()
    path = photo.with_name("deep.png")
    Image.fromarray(np.array([[0, 3, 7, 9, 65535]], np.uint16)).save(path)
    for white, label in ((None, [0, 0, 0, 0, 1]), (9, [0, 0, 1, 1, 1])):
        made = replace(predictor, networks=(network,), white=white)
        made.write(path, path.with_name(f"{white}.png"))
        with Image.open(path.with_name(f"{white}.png")) as mask:
            assert np.asarray(mask).tolist() == [label]
        assert made.fingerprint() != replace(made, white=10).fingerprint()


@pytest.mark.parametrize("long_side", [15, 60])
def test_images_are_resized_as_in_training_and_back(predictor, photo, long_side):
    seen = []
    predictor.networks[0].net.encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(inputs[0].shape))
    )
    label = replace(predictor, long_side=long_side).predict(torch.zeros(3, 20, 30, dtype=torch.uint8))
    assert seen == [(1, 3, long_side * 2 // 3, long_side)]
    assert label.shape == (20, 30)


def test_by_windows(predictor, photo):
    seen = []
    predictor.networks[0].net.encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(inputs[0].shape))
    )
    windows = replace(predictor, evaluate=EvaluateConfig(mode="sliding", window=16, stride=16))
    image = torch.from_numpy(np.asarray(Image.open(photo)).copy()).permute(2, 0, 1)
    assert np.array_equal(windows.predict(image), EXPECTED)
    assert seen == [(1, 3, 16, 16)] * 4


def test_of_several_networks_the_mean_of_their_probabilities_counts(predictor):
    """Logits would have another mean: the first network is very sure of class 1, the other two are rather for 2."""

    class Sure(nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits))

        def forward(self, image: Tensor) -> Tensor:
            return self.logits[:, None, None].expand(len(image), 3, *image.shape[-2:])

    def network(*logits: float) -> Network:
        net = Undivided(Sure(*logits)).requires_grad_(False)
        return Network(net, Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1).eval()

    each = network(0.0, 9.0, 0.0), network(0.0, 0.0, 1.5), network(0.0, 0.0, 1.5)
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert [replace(predictor, networks=(one,)).predict(image).unique().item() for one in each] == [1, 2, 2]
    # The probabilities are (0, 1, 0) and twice (0.15, 0.15, 0.69): their mean is (0.1, 0.44, 0.46).
    several = replace(predictor, networks=each)
    assert several.predict(image).unique().item() == 2
    assert torch.stack([one.net.encoder.net.logits for one in each]).mean(0).argmax() == 1
    for other in (each[:2], (*each[:2], network(0.0, 0.0, 1.6))):
        assert replace(several, networks=other).fingerprint() != several.fingerprint()


def test_index_image():
    image = index_image(torch.tensor([[0, 1], [2, 1]], dtype=torch.uint8), CLASSES)
    assert image.mode == "P"
    assert np.asarray(image).tolist() == [[0, 1], [2, 1]]
    assert np.asarray(image.convert("RGB")).tolist() == [[[10, 20, 30], [250, 0, 0]], [[0, 0, 251], [250, 0, 0]]]


def test_overlay_is_photo_and_class_with_lines_between_classes():
    """40 % of 250 - 100 are 60, of 0 - 50 are -20, of 0 - 200 are -80."""
    image = torch.tensor([[[100, 100, 100]], [[50, 50, 50]], [[0, 9, 200]]], dtype=torch.uint8)
    label = torch.tensor([[0, 0, 1]], dtype=torch.uint8)
    line, red = [255, 255, 255], [160, 30, 120]
    assert np.asarray(overlay(image, label, CLASSES)).tolist() == [[[100, 50, 0], line, red]]
    for name in ("background", "Background", "BACKGROUND"):  # not declared, but called so
        called = ClassTable(("red", name), ((250, 0, 0), (10, 20, 30)))
        assert np.asarray(overlay(image, 1 - label, called)).tolist() == [[[100, 50, 0], line, red]]
    declared = ClassTable(("background", "red", "nothing"), CLASSES.colors, background=2)
    assert np.asarray(overlay(image, label, declared)).tolist() == [[[64, 38, 12], line, red]]
    without = replace(CLASSES, background=None)
    assert np.asarray(overlay(image, label, without)).tolist() == [[[64, 38, 12], line, red]]
    white = overlay(
        torch.zeros(3, 1, 3000, dtype=torch.uint8), (torch.arange(3000)[None] > 99).to(torch.uint8), CLASSES
    )
    assert np.flatnonzero(np.asarray(white)[0, :, 2] == 255).tolist() == [97, 98, 99]  # a line for a large image


def test_files(predictor, photo, tmp_path):
    done = []
    (photo.parent / "below").mkdir()
    Image.open(photo).resize((7, 5)).save(photo.parent / "below" / "b.v2.jpg")
    out = tmp_path / "out"
    assert predict_files(predictor, photo.parent, out, lambda *count: done.append(count)) == 2
    assert done == [(1, 2), (2, 2)]
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == ["below/b.v2.png", "below/b.v2_overlay.png", "classes.png", "flag.png", "flag_overlay.png"]
    with Image.open(out / "flag.png") as mask, Image.open(out / "below/b.v2.png") as small:
        assert np.array_equal(np.asarray(mask), EXPECTED)
        assert small.size == (7, 5)


def test_overlay_of_many_rows():
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.integers(0, 256, (3, 200, 5), dtype=np.uint8))
    label = torch.from_numpy(generator.integers(0, 3, (200, 5), dtype=np.uint8))
    photo, color = image.permute(1, 2, 0).numpy(), np.array(CLASSES.colors, np.float32)[label.numpy()]
    expected = np.where((label == 0)[..., None], photo, (0.6 * photo + 0.4 * color).round())
    index = label.numpy()
    expected[:, :-1][index[:, :-1] != index[:, 1:]] = 255
    expected[:-1][index[:-1] != index[1:]] = 255
    assert np.array_equal(overlay(image, label, CLASSES), expected)


@pytest.fixture
def photos(photo) -> Path:
    """A folder: a.jpg is good, b.jpg is cut off, c.jpg is no image, below/d.png and flag.png are good."""
    folder = photo.parent
    (folder / "below").mkdir()
    Image.open(photo).save(folder / "below" / "d.png")
    Image.open(photo).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "c.jpg").write_text("hello")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_broken_images_are_named_when_the_others_are_written(predictor, photos, tmp_path):
    counted = []
    says = (
        rf"^2 of 5 images cannot be read; the other 3 were written to {tmp_path}/out; the same command goes on with "
        rf"the missing ones: {photos}/b.jpg: not a readable image .*; {photos}/c.jpg: not a readable image"
    )
    with pytest.raises(UserError, match=says):
        predict_files(predictor, photos, tmp_path / "out", lambda *count: counted.append(count))
    assert counted == [(n, 5) for n in range(1, 6)]
    stems = ("a", "below/d", "flag")
    outputs = {f"{stem}{end}" for stem in stems for end in (".png", "_overlay.png")}
    assert {*contents(tmp_path / "out")} == outputs | {"classes.png"}


def test_the_same_command_goes_on(predictor, photos, tmp_path, monkeypatch):
    predicted = []
    original = Predictor.probabilities
    monkeypatch.setattr(Predictor, "probabilities", lambda self, image: predicted.append(1) or original(self, image))
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(UserError, match="2 of 5 images"):
            predict_files(predictor, photos, out)
        assert len(predicted) == 3
    (photos / "c.jpg").unlink()
    (photos / "b.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (out / "a_overlay.png").unlink()  # interrupted between its two files
    before = contents(out)
    assert predict_files(predictor, photos, out) == 4
    assert len(predicted) == 5
    after = contents(out)
    assert before.items() <= after.items()
    assert {*after} - {*before} == {"a_overlay.png", "b.png", "b_overlay.png"}
    predict_files(predictor, photos, tmp_path / "again")
    assert contents(tmp_path / "again") == after  # no file says when and where it was made


OTHERS = {
    "weights": lambda predictor, photos: predictor.networks[0].net.last.data.fill_(1),
    "size": lambda predictor, photos: object.__setattr__(predictor, "long_side", 15),
    "classes": lambda predictor, photos: object.__setattr__(predictor, "classes", replace(CLASSES, background=None)),
    "image": lambda predictor, photos: Image.new("RGB", (30, 20)).save(photos / "flag.png"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_files_of_another_network_or_image_are_not_overwritten(predictor, photo, tmp_path, other):
    predictor.networks[0].net.last = nn.Parameter(torch.zeros(()))
    out = tmp_path / "out"
    predict_files(predictor, photo, out)
    assert predict_files(predictor, photo, out) == 1
    before = contents(out)
    other(predictor, photo.parent)
    with pytest.raises(
        UserError,
        match=r"flag.png: exists already, from another checkpoint or another flag.png, or with other options; .*--out",
    ):
        predict_files(predictor, photo, out)
    assert contents(out) == before


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
