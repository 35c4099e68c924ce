import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semiseg import api
from semiseg.data.dataset import Dataset, MaskCoding, Sample
from semiseg.data.loader import EvalItem
from semiseg.engine.gallery import SIDE, Gallery
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.metrics import Scores, add_confusion
from semiseg.recipe.load import validate
from semiseg.runs import Run
from semiseg.types import IGNORE, ClassTable

CLASSES = ClassTable.of(["ground", "disc", "box"], background=0)


@pytest.fixture(scope="module")
def cpu() -> Runtime:
    return Runtime("cpu")


def dataset(images: int, *unlabeled: Path) -> Dataset:
    val = tuple(Sample(f"val/{index}", Path(f"{index}.png")) for index in range(images))
    pool = tuple(Sample(path.stem, path) for path in unlabeled)
    return Dataset((), pool, val, CLASSES, MaskCoding(3))


def item(index: int, height: int = 4, width: int = 10) -> EvalItem:
    """A gray image; its mask is class 1."""
    image = torch.full((3, height, width), 10 * index, dtype=torch.uint8)
    return EvalItem(index, image, torch.ones(height, width, dtype=torch.uint8))


def add(gallery: Gallery, one: EvalItem, **right: int) -> None:
    """Adds an image of which each network has so many columns right."""
    predictions, matrices = {}, {}
    for name, columns in right.items():
        predictions[name] = torch.zeros(one.mask.shape, dtype=torch.int64)
        predictions[name][:, :columns] = 1
        matrices[name] = add_confusion(torch.zeros(3, 3, dtype=torch.int64), predictions[name], one.mask.long())
    gallery.add(one, predictions, matrices)


def started(path: Path, unlabeled: list[str] | None = None) -> Run:
    run = Run(path)
    run.start("", {}, unlabeled or [])
    return run


SCORES = {"teacher": Scores(0.5, (0.5,), 0.5, ((1, 2), (3, 4))), "student": Scores(0.4, (0.4,), 0.4, ((4, 3), (2, 1)))}


def test_the_same_images_and_the_worst_are_kept(tmp_path, cpu):
    gallery, run = Gallery(dataset(8), 2, cpu), started(tmp_path / "run")
    right = [10, 1, 9, 2, 3, 0, 8, 7]  # of the teacher; the student's would give another order
    for index, columns in enumerate(right):
        add(gallery, item(index), teacher=columns, student=10 - columns)
    gallery.write(run, 7, SCORES, last=False)
    index = run.pictures_index()
    assert index["step"] == 7
    assert {name: each["confusion"] for name, each in index["networks"].items()} == {
        "teacher": [[1, 2], [3, 4]],
        "student": [[4, 3], [2, 1]],
    }
    # 0 and 4 are spread over the list of 8; 5 and 1 have the lowest mIoU of the teacher
    assert [(one["name"], one["worst"]) for one in index["images"]] == [
        ("val/0", False), ("val/1", True), ("val/4", False), ("val/5", True),
    ]  # fmt: skip
    # one column right of ten, and nine taken for class 0: IoU 0.1 and 0
    assert index["images"][1]["miou"] == {"teacher": 0.05, "student": 0.45}
    assert index["unlabeled"] == []
    files = {path.name for path in run.pictures.iterdir()}
    named = [name for one in index["images"] for name in (one["image"], one["truth"], *one["predictions"].values())]
    assert files == {"index.json", *named}


def test_an_image_that_is_always_shown_may_be_one_of_the_worst(tmp_path, cpu):
    gallery, run = Gallery(dataset(4), 2, cpu), started(tmp_path / "run")
    for index, columns in enumerate([0, 5, 9, 8]):
        add(gallery, item(index), it=columns)
    gallery.write(run, 1, {}, last=False)
    assert [(one["name"], one["worst"]) for one in run.pictures_index()["images"]] == [
        ("val/0", True), ("val/1", True), ("val/2", False),
    ]  # fmt: skip


def test_pictures_show_classes_and_are_small(tmp_path, cpu):
    gallery, run = Gallery(dataset(1), 1, cpu), started(tmp_path / "run")
    large = item(0, 300, 1000)
    large.mask[:, :500] = IGNORE
    add(gallery, large, it=250)
    gallery.write(run, 1, {}, last=False)
    (one,) = run.pictures_index()["images"]
    with Image.open(run.pictures / one["truth"]) as truth:
        assert truth.size == (SIDE, 96)
        values = np.asarray(truth)
        assert truth.convert("RGB").getpixel((0, 0)) == (224, 224, 192)
        assert truth.convert("RGB").getpixel((319, 95)) == CLASSES.colors[1]
    assert np.unique(values).tolist() == [1, IGNORE]
    with Image.open(run.pictures / one["predictions"]["it"]) as predicted:
        assert np.asarray(predicted)[0].tolist() == [1] * 80 + [0] * 240
        assert predicted.info["transparency"] == 0  # background
    with Image.open(run.pictures / one["image"]) as photo:
        assert (photo.format, photo.size) == ("JPEG", (SIDE, 96))


def test_a_new_evaluation_replaces_the_pictures(tmp_path, cpu):
    run = started(tmp_path / "run")
    for step, worst in ((1, 2), (2, 3)):
        gallery = Gallery(dataset(4), 1, cpu)
        for index in range(4):
            add(gallery, item(index), it=1 if index == worst else 9)
        gallery.write(run, step, {}, last=False)
    assert run.pictures_index()["step"] == 2
    assert {path.name[:5] for path in run.pictures.glob("0*")} == {"00000", "00003"}
    assert not [path for path in run.path.iterdir() if path.name.endswith(".tmp")]


def test_without_pictures_the_confusion_matrices_are_kept(tmp_path, cpu):
    gallery, run = Gallery(dataset(4), 0, cpu), started(tmp_path / "run")
    add(gallery, item(0), it=1)
    gallery.write(run, 3, SCORES, last=True)
    assert [path.name for path in run.pictures.iterdir()] == ["index.json"]
    assert run.pictures_index()["networks"]["teacher"]["confusion"] == [[1, 2], [3, 4]]


def test_an_image_without_labels_is_not_the_worst(tmp_path, cpu):
    gallery, run = Gallery(dataset(3), 1, cpu), started(tmp_path / "run")
    add(gallery, item(0), it=9)
    blank = item(1)
    blank.mask[:] = IGNORE
    add(gallery, blank, it=5)
    add(gallery, item(2), it=3)
    gallery.write(run, 1, {}, last=False)
    assert [one["name"] for one in run.pictures_index()["images"] if one["worst"]] == ["val/2"]


def test_the_hardest_and_the_easiest_unlabeled_images_end_a_run(tmp_path, cpu):
    names = ["a", "b", "c", "d", "e"]
    for index, name in enumerate(names):
        Image.new("RGB", (8, 6), (40 * index, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "e.png").write_bytes(b"no image")
    run = started(tmp_path / "run", names)
    run.log_hardness([(1, 0, 0.0), (3, 0, 0.9), (3, 1, 0.2), (4, 2, 0.5), (4, 3, 0.1), (4, 4, 0.95), (4, 0, 0.7)])
    pool = [tmp_path / f"{name}.png" for name in names]
    for last in (False, True):
        gallery = Gallery(dataset(1, *pool), 2, cpu)
        add(gallery, item(0), it=9)
        gallery.write(run, 4, {}, last=last)
        shown = run.pictures_index()["unlabeled"]
        assert bool(shown) == last
    # the first half does not count: a has 0.8; e is the hardest and cannot be read
    assert {one["name"]: one["hardness"] for one in shown} == {"d": 0.1, "b": 0.2, "a": 0.8}
    with Image.open(run.pictures / next(one["image"] for one in shown if one["name"] == "d")) as photo:
        assert photo.size == (8, 6)
        assert abs(photo.getpixel((3, 3))[0] - 120) < 8


def test_a_full_disk_is_one_line(tmp_path, cpu, monkeypatch):
    gallery, run = Gallery(dataset(1), 1, cpu), started(tmp_path / "run")
    add(gallery, item(0), it=1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"00000-0\.png: cannot be written \(No space left on device\)$"):
        gallery.write(run, 1, {}, last=False)


def test_a_training_keeps_pictures_of_its_newest_evaluation(trained):
    run = Run(trained)
    index = run.pictures_index()
    assert index["step"] == 4
    assert list(index["networks"]) == ["teacher", "student"]
    matrix = torch.tensor(index["networks"]["teacher"]["confusion"])
    assert (matrix.trace() / matrix.sum()).item() == pytest.approx(run.last()["accuracy"])
    assert len(index["images"]) == 4  # all that there are
    assert len(index["unlabeled"]) == len({one["name"] for one in index["unlabeled"]}) > 0
    hardness = {one["name"]: one["hardness"] for one in index["unlabeled"]}
    late = [value for step, name, value in run.hardness() if step > 2 and name == next(iter(hardness))]
    assert next(iter(hardness.values())) == pytest.approx(sum(late) / len(late), abs=1e-3)


def test_pictures_change_nothing_in_a_training(trained, recipe, tmp_path):
    without = api.train(validate(recipe(engine={"pictures": 0}), "recipe"), tmp_path / "run")
    assert without.metrics("val") == Run(trained).metrics("val")
    assert json.loads((without.pictures / "index.json").read_text())["images"] == []
