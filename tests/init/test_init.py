"""`semiseg init`: from photographs to a recipe that trains."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from semiseg import data as loading
from semiseg.engine.rehearse import Rehearsal
from semiseg.errors import UserError
from semiseg.init import Request, init, trial
from semiseg.recipe.load import load_recipe


@pytest.fixture
def data(tmp_path: Path, photo, write, square) -> Path:
    """Twelve photographs, eight of them with masks of 0 and 255."""
    for number in range(12):
        photo(f"photos/{number:02}.png", number)
        if number < 8:
            write(f"masks/{number:02}_mask.png", square(5 + number, inside=255))
    return tmp_path


def test_the_folder_has_a_recipe_that_loads(data, tried):
    out = data / "out"
    path = init(Request(out, data / "photos", classes="ground,square"))
    assert path == out / "recipe.yaml"
    assert sorted(each.relative_to(out).as_posix() for each in out.rglob("*")) == [
        "classes.txt", "recipe.yaml", "splits", "splits/val.txt",
    ]  # fmt: skip
    recipe = load_recipe(out)  # the folder in place of the file
    assert recipe.data.values == {255: 1}
    assert recipe.data.mask_suffix == "_mask"
    assert recipe.data.background == "ground"
    assert len((out / "splits/val.txt").read_text().split()) == 2
    assert recipe.engine.steps == 2400  # 6 labels, 400 steps each
    assert (out / "classes.txt").read_text() == "ground #000000\nsquare #e6194b\n"


def test_nothing_is_asked_if_nothing_is_in_doubt(data, tried):
    asked: list[str] = []

    def ask(question: str, default: bool) -> bool:
        asked.append(question)
        return default

    init(Request(data / "out", data / "photos", data / "masks"), ask)
    assert asked == []
    init(Request(data / "other", data / "photos"), ask)
    assert asked == [f"take {data / 'masks'} as the folder of the masks?"]


def test_an_answer_changes_the_meaning(data, tried, write, square):
    write("masks/00_mask.png", square(5, inside=128) + square(4, at=20, inside=255))
    init(Request(data / "yes", data / "photos", data / "masks"))
    assert load_recipe(data / "yes").data.values == {128: 1, 255: 2}
    init(Request(data / "no", data / "photos", data / "masks"), lambda question, default: False)
    assert load_recipe(data / "no").data.values == {128: 1, 255: 255}


def test_names_without_colors_are_not_paired_with_colors_by_themselves(data, tried, square, write):
    for number in range(8):
        colors = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
        write(f"colored/{number:02}.png", colors[square(6 + number)])
    (data / "names.txt").write_text("road\nsky\n")
    held = r"e\.g\. 'road #RRGGBB' \(the masks hold #c80000, #00c800\)"
    for classes, says in (
        ("road,sky", f"--classes: names do not say which color is which; give a file .*{held}"),
        (str(data / "names.txt"), f"--classes .*names.txt: does not say .*; write the color behind each name, {held}"),
    ):
        request = Request(data / "out", data / "photos", data / "colored", classes=classes)
        with pytest.raises(UserError, match=says):
            init(request)
    init(request, lambda question, default: True)
    assert (data / "out/classes.txt").read_text() == "road #c80000\nsky #00c800\n"
    (data / "names.txt").write_text("road #00c800\nsky #c80000\n")
    init(Request(data / "new", data / "photos", data / "colored", classes=str(data / "names.txt")))


def test_what_is_there_is_said(data, tried, capsys):
    with Image.open(data / "photos/11.png") as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(data / "photos/11.jpg", exif=exif)
    (data / "photos/11.png").unlink()
    init(Request(data / "out", data / "photos"), console=Console(width=200))
    said = capsys.readouterr().out
    assert "photographs: 11 PNG of 8 bits, 3 channels; 1 JPEG of 8 bits, 3 channels, 1 of them turned by EXIF" in said
    assert "masks: gray masks with the values 0 (" in said
    assert "0 is background, 255 is object" in said
    kind = (
        "2 classes (4 or fewer are few) in color, a background -> method of recommended/shifted; others: recommended/"
    )
    assert f"data: {kind}" in said
    assert f"# {kind}" in (data / "out/recipe.yaml").read_text()
    assert "fewer than 3" not in said


def test_classes_of_few_images_are_noted(data, tried, square, write, capsys):
    write("masks/00_mask.png", square(5, inside=128) + square(4, at=20, inside=255))
    init(Request(data / "out", data / "photos"), console=Console(width=200))
    assert "note: fewer than 3 labeled images show: class_128" in capsys.readouterr().out


def test_the_lists_that_are_shown_are_those_of_a_training(tmp_path, photo, write, square, tried, capsys):
    """The first look at the data knows no validation images; one mask shows a class of its own."""
    from semiseg.data import load

    for number in range(8):
        photo(f"photos/train/{number}.png", number)
        write(f"masks/train/{number}.png", square(6) + 2 * square(4, at=20) * (number == 6))
    for number in range(5):
        photo(f"photos/val/{number}.png", 20 + number)
    request = Request(tmp_path / "out", tmp_path / "photos", tmp_path / "masks", classes="ground,square,rare")
    init(request, console=Console(width=200))
    said = capsys.readouterr().out
    found = load(load_recipe(tmp_path / "out").data)
    shown = {name: int(number) for name, number in re.findall(r"│ (labeled|unlabeled|validation) +│ +(\d+)", said)}
    lists = {"labeled": found.labeled, "unlabeled": found.unlabeled, "validation": found.val}
    assert shown == {name: len(samples) for name, samples in lists.items()}
    assert shown["unlabeled"] == 5
    assert "5 unlabeled" in (tmp_path / "out/recipe.yaml").read_text()
    assert "rare" in said
    assert "No labeled mask shows" not in said


def test_a_training_that_takes_longer_than_asked_for_is_said(data, tried, capsys):
    init(Request(data / "out", data / "photos", hours=0.01), console=Console(width=200))
    assert "takes about 0.1 hours here, not 0.01: fewer than 496 steps" in capsys.readouterr().out
    init(Request(data / "other", data / "photos", hours=1.0), console=Console(width=200))
    assert "fewer than" not in capsys.readouterr().out


def test_a_busy_machine_is_said(data, monkeypatch, capsys):
    def rehearsed(chosen, request, work, batch, precision):
        return Rehearsal(9.0, 9.0, step_s=0.5, evaluation_s=1.0, hours=0.1, disk_mb=1.0, loss=1.0, waited=waited)

    monkeypatch.setattr(trial, "_rehearsed", rehearsed)
    for waited, says in ((0.06, False), (0.5, True)):
        init(Request(data / f"out-{waited}", data / "photos"), console=Console(width=200))
        note = "note: the machine is busy: during the trial 50 % of the computing time was waiting for processors"
        assert (note in (said := capsys.readouterr().out)) == says
        assert ("engine.steps and the hours may be off: when it is idle, repeat init with --overwrite" in said) == says


def test_joined_masks_are_written_and_the_originals_stay(data, tried, write, square, capsys):
    write("layers/dog/none.png", square(6, inside=255))
    for number in range(6):
        write(f"layers/dog/{number:02}.png", square(6, inside=255))
        write(f"layers/cat/{number:02}.png", square(6, at=15, inside=255))
    init(Request(data / "out", data / "photos", data / "layers"), console=Console(width=200))
    assert "masks that belong to no image: 1, e.g." in capsys.readouterr().out
    assert len(list((data / "out/masks").iterdir())) == 6
    assert (data / "out/classes.txt").read_text().split()[::2] == ["background", "cat", "dog"]
    assert load_recipe(data / "out").data.masks == Path("masks")


@pytest.mark.parametrize("named", ["cvat", "cvat/SegmentationClass"])
def test_an_export_of_cvat_has_its_names_and_colors(data, tried, write, square, named, capsys):
    for number in range(6):
        for folder, color in (("SegmentationClass", (250, 50, 83)), ("SegmentationObject", (128, 0, number))):
            write(f"cvat/{folder}/{number:02}.png", np.array([(0, 0, 0), color], np.uint8)[square(6)])
    lines = ("# label:color_rgb:parts:actions", "background:0,0,0::", "car:250,50,83::", "rare:1,2,3::")
    (data / "cvat/labelmap.txt").write_text("\n".join(lines))
    init(Request(data / "out", data / "photos", data / named), console=Console(width=200))
    table = data / "cvat/labelmap.txt"
    assert f"masks: CVAT's Segmentation mask 1.1; names and colors of {table}" in capsys.readouterr().out
    assert (data / "out/classes.txt").read_text() == "background #000000\ncar #fa3253\nrare #010203\n"
    recipe = load_recipe(data / "out").data
    assert recipe.masks == data / "cvat/SegmentationClass"
    assert recipe.background == "background"


def test_folders_of_masks_that_share_no_image_may_be_no_classes(data, tried, write, square):
    for number in range(8):
        write(f"parts/{'one' if number < 4 else 'two'}/{number:02}.png", square(6, inside=255))
    asked: list[str] = []
    request = Request(data / "out", data / "photos", data / "parts")
    init(request, lambda question, default: asked.append(question) or default)
    assert asked == ["no image has masks in two of the folders one, two; is each a class?"]
    assert (data / "out/classes.txt").read_text().split()[2::2] == ["one", "two"]
    with pytest.raises(UserError, match="put the masks of all images into one folder"):
        init(Request(data / "no", data / "photos", data / "parts"), lambda question, default: False)


def test_numbers_of_masks_are_objects_where_they_count_them(data, tried, write, square):
    for number in range(8):
        for more in range(4):
            write(f"one_hot/{number:02}_{more}.png", square(5 + number, at=3 + 4 * more, inside=255))
            if more <= number % 3:
                write(f"objects/{number:02}_cell{more}.png", square(5 + number, at=3 + 4 * more, inside=255))
    asked: list[tuple[str, bool]] = []

    def ask(question: str, default: bool) -> bool:
        asked.append((question, default))
        return default

    for masks in ("one_hot", "objects"):
        init(Request(data / "out" / masks, data / "photos", data / masks), ask)
    assert asked == [
        ("images have masks called 0, 1, 2, 3; is each a class, not an object?", True),
        ("images have masks called cell0, cell1, cell2; is each a class, not an object?", False),
    ]
    assert (data / "out/one_hot/classes.txt").read_text().split()[::2] == ["background", "0", "1", "2", "3"]
    assert (data / "out/objects/classes.txt").read_text().split()[::2] == ["background", "cell"]


def test_photographs_that_exif_turns(data, tried):
    for number in range(12):
        with Image.open(data / f"photos/{number:02}.png") as image:
            exif = image.getexif()
            exif[0x0112] = 6  # turn by 90 degrees
            image.save(data / f"photos/{number:02}.jpg", exif=exif)
        (data / f"photos/{number:02}.png").unlink()
    init(Request(data / "out", data / "photos"))
    assert load_recipe(data / "out").data.mask_orientation == "stored"


def test_dark_photographs_of_sixteen_bits(data, tried, write):
    for number in range(12):
        values = np.random.default_rng(number).integers(4000, size=(4, 5), dtype=np.uint16).repeat(8, 0).repeat(8, 1)
        write(f"photos/{number:02}.png", values)
    init(Request(data / "out", data / "photos"))
    assert load_recipe(data / "out").data.white == 4095


def test_photographs_that_all_look_alike_can_be_split(data, tried, write, capsys):
    for number in range(12):
        write(f"photos/{number:02}.png", np.full((32, 40, 3), 90, np.uint8))
    init(Request(data / "out", data / "photos"), console=Console(width=200))
    assert len((data / "out/splits/val.txt").read_text().split()) == 2
    assert "all images with masks look alike" in capsys.readouterr().out


def test_folders_of_parts_are_kept(data, tried, photo, write, square):
    for number in range(20, 26):
        part = "train" if number < 24 else "val"
        photo(f"sorted/{part}/imgs/{number}.png", number)
        write(f"sorted/{part}/labels/{number}.png", square(8, inside=255))
    photo("sorted/train/imgs/30.png", 30)
    init(Request(data / "out", data / "sorted"))
    recipe = load_recipe(data / "out")
    assert (recipe.data.images, recipe.data.masks) == (Path("imgs"), Path("labels"))
    found = loading.load(recipe.data)
    assert [[one.name for one in part] for part in (found.labeled, found.unlabeled, found.val)] == [
        ["train/20", "train/21", "train/22", "train/23"], ["train/30"], ["val/24", "val/25"],
    ]  # fmt: skip


def test_a_folder_for_tests_is_trained_on_by_no_means(data, tried, photo, write, square, capsys):
    for number in range(20, 28):
        part = "train" if number < 24 else "test"
        photo(f"sorted/{part}/{number}.png", number)
        write(f"labels/{part}/{number}.png", square(8, inside=255))
    for val in (None, data / "sorted/test"):
        init(
            Request(data / "out", data / "sorted", data / "labels", val=val, overwrite=True), console=Console(width=200)
        )
        found = loading.load(load_recipe(data / "out").data)
        trained = {one.name for one in found.labeled}
        assert trained <= {f"train/{number}" for number in range(20, 24)}
        assert found.unlabeled == ()
        shown = capsys.readouterr().out
        assert ("images in the folder for tests, not used: 4" in shown) == (val is None)
        assert len(found.val) == (1 if val is None else 4)


@pytest.mark.parametrize("form", ["folder", "list"])
def test_given_validation_images(data, tried, photo, write, square, form, capsys):
    for number in (20, 21):
        photo(f"photos/test/{number}.png", number if number > 20 else 0)  # 20 shows the same as 00
        write(f"masks/test/{number}_mask.png", square(9, inside=255))
    place = data / "photos/test"
    if form == "list":
        place = data / "val.txt"
        place.write_text("test/20.png\ntest/21\n")
    init(Request(data / "out", data / "photos", val=place), console=Console(width=200))
    assert (data / "out/splits/val.txt").read_text().split() == ["test/20", "test/21"]
    assert "near-duplicates in training and validation: 1 group, e.g." in capsys.readouterr().out


def test_near_duplicates_of_the_folder_for_validation_are_said(data, tried, photo, write, square, capsys):
    for number in range(20, 28):
        part = "train" if number < 24 else "val"
        photo(f"sorted/{part}/{number}.png", number)
        write(f"labels/{part}/{number}.png", square(8, inside=255))
    pixels = np.asarray(Image.open(photo("sorted/val/24.png", 20))).copy()
    pixels[0, 0] ^= 1
    write("sorted/val/24.png", pixels)
    init(Request(data / "out", data / "sorted", data / "labels"), console=Console(width=200))
    assert "near-duplicates in training and validation: 1 group, e.g." in capsys.readouterr().out


def test_unlabeled_copies_of_validation_images_are_said(data, tried, monkeypatch, capsys):
    (data / "val.txt").write_text("00\n01\n")
    for name in ("00", "02"):  # the first is for validation
        Image.open(data / f"photos/{name}.png").save(data / f"photos/copy{name}.jpg", quality=95)
    (data / "photos/same.png").write_bytes((data / "photos/01.png").read_bytes())
    request = Request(data / "out", data / "photos", val=data / "val.txt")
    init(request, console=Console(width=300))
    said = capsys.readouterr().out
    note = "unlabeled images that are near-duplicates of validation images: 1"
    assert f"{note}, e.g. {data}/photos/copy00.jpg and {data}/photos/00.png; the score may be too good" in said
    assert "byte for byte: 1" in said
    monkeypatch.setattr("semiseg.init.validation._COMPARED", 4)
    init(replace(request, overwrite=True), console=Console(width=300))
    assert f"{note} of 4 that were compared" in capsys.readouterr().out  # every second: 08, 10, copy00, same


def test_a_line_of_the_list_means_one_image(data, tried, photo, write, square):
    for place in ("a", "b"):  # the same name in two folders
        photo(f"photos/{place}/50.png", ord(place))
        write(f"masks/{place}/50_mask.png", square(9, inside=255))
    (data / "val.txt").write_text("b/50\n")
    init(Request(data / "out", data / "photos", val=data / "val.txt"))
    assert (data / "out/splits/val.txt").read_text().split() == ["b/50"]
    (data / "val.txt").write_text("50\n")
    with pytest.raises(UserError, match=r"val\.txt:1: "):
        init(Request(data / "other", data / "photos", val=data / "val.txt"))


def test_the_faster_precision_is_taken(data, monkeypatch):
    def rehearsed(chosen, request, work, batch, precision):
        seconds = 0.5 if precision == "fp32" else 0.9
        return Rehearsal(100.0, 200.0, step_s=seconds, evaluation_s=1.0, hours=0.1, disk_mb=1.0, loss=1.0)

    class Bf16:
        def __init__(self, device, precision):
            self.precision, self.device = "bf16", type("Device", (), {"type": "cpu"})

    monkeypatch.setattr(trial, "_rehearsed", rehearsed)
    monkeypatch.setattr(trial, "Runtime", Bf16)
    init(Request(data / "out", data / "photos"))
    text = (data / "out/recipe.yaml").read_text()
    assert "precision: fp32  # a step took 0.90 s in bf16 here" in text


def test_a_smaller_batch_is_taken_if_memory_is_short(data, monkeypatch):
    """The peak memory of a process never falls again, whatever is tried after it."""
    peak = [0.0]

    def rehearsed(chosen, request, work, batch, precision):
        peak[0] = max(peak[0], 1e9 if batch > 2 else 1.0)
        return Rehearsal(peak[0], peak[0], step_s=0.5, evaluation_s=1.0, hours=0.1, disk_mb=1.0, loss=1.0)

    monkeypatch.setattr(trial, "_rehearsed", rehearsed)
    init(Request(data / "out", data / "photos"))
    made = load_recipe(data / "out")
    assert (made.engine.batch_size, made.optim.lr) == (2, 3.5e-4)


@pytest.mark.parametrize(("text", "fits"), [("max\n", None), ("2000000000\n", 2000.0)])
def test_a_container_has_the_memory_that_it_may_use(tmp_path, monkeypatch, text, fits):
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(trial, "_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "missing")))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    assert trial._memory_mb() == pytest.approx(fits or machine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "nowhere"}, "--images .*nowhere: there is no such folder"),
        ({"images": "photos/00.png"}, "--images .*: is a file; name its folder"),
        ({"masks": "nowhere"}, "--masks .*nowhere: there is no such folder"),
        ({"masks": "masks", "coco": "a.json"}, "--masks and --coco: exclude each other"),
        ({"coco": "a.json"}, r"--coco .*a\.json: there is no such file"),
        ({"val": "nowhere"}, "--val .*nowhere: there is no such folder or list"),
        ({"val": "empty"}, "--val .*empty: holds no image with a mask"),
        ({"out": "photos/new"}, "is inside the folder of the photographs"),
        ({"out": "masks/new", "masks": "masks"}, "is inside the folder of the photographs or masks"),
        ({"out": "full"}, "exists already and is not empty"),
        ({"out": "full/file"}, "is a file; name a folder"),
    ],
)
def test_wrong_turns_are_one_line_and_write_nothing(data, tried, contents, change, message):
    (data / "empty").mkdir()
    (data / "full").mkdir()
    (data / "full/file").write_text("mine")
    before = contents(data)
    paths = {key: data / value for key, value in ({"out": "out", "images": "photos"} | change).items()}
    with pytest.raises(UserError, match=message) as caught:
        init(Request(**paths))
    assert "\n" not in str(caught.value)
    assert contents(data) == before


def test_data_that_cannot_be_trained_writes_nothing(data, tried, contents, write):
    write("masks/00_mask.png", np.zeros((9, 9), np.uint8))  # another size than its photograph
    before = contents(data)
    with pytest.raises(UserError, match="they must be of one size"):
        init(Request(data / "out", data / "photos"))
    assert contents(data) == before


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_swapped_folders_are_said(tmp_path, tried, write, square, suffix):
    for number in range(8):
        noise = np.random.default_rng(number).integers(256, size=(80, 80, 3), dtype=np.uint8)
        write(f"my photos/{number}.{suffix}", noise)
        write(f"masks/{number}.png", square(5 + number))
    photos, masks = tmp_path / "my photos", tmp_path / "masks"
    with pytest.raises(UserError, match=f"swapped\\? --images '{photos}' --masks {masks}$"):
        init(Request(tmp_path / "out", masks, photos))
    for path in masks.iterdir():  # these are no masks either
        write(f"others/{path.name}", noise)
    with pytest.raises(UserError, match="export the masks as PNG") as caught:
        init(Request(tmp_path / "out", tmp_path / "others", photos))
    assert "swapped?" not in str(caught.value)


def test_an_earlier_result_is_replaced_only_if_asked_for(data, tried):
    out = data / "out"
    init(Request(out, data / "photos"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="from an earlier init; train it with semiseg train"):
        init(Request(out, data / "photos"))
    init(Request(out, data / "photos", classes="a,b", overwrite=True))
    assert (out / "classes.txt").read_text().startswith("a ")
    assert (out / "notes.txt").read_text() == "mine"


def test_a_single_labeled_image_is_too_few(data, tried):
    for number in range(1, 8):
        (data / f"masks/{number:02}_mask.png").unlink()
    with pytest.raises(UserError, match="label more images"):
        init(Request(data / "out", data / "photos"))
