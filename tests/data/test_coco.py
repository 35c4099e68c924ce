"""COCO JSON as people export it."""

import copy
import errno
import json
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from semiseg.data import load, rasterize
from semiseg.data.check import check
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.layouts.coco import Config
from semiseg.data.masks import read_mask, read_pair
from semiseg.data.partitions import partition_hash
from semiseg.errors import UserError
from semiseg.types import IGNORE, voc_color

HEIGHT, WIDTH = 4, 6
Values = dict[str, Any]


def square(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def thing(image: int | str, category: int, segmentation: Any, **more: Any) -> Values:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0} | more


@pytest.fixture
def values() -> Values:
    """Images 0 to 5 (0.png ...), of which 0 to 3 have a cat on the left and 2 and 3 a dog at the top right, too."""
    things = [thing(number, 3, square(0, 0, 2, 4)) for number in range(4)]
    things += [thing(number, 7, square(4, 0, 6, 1)) for number in (2, 3)]
    return {
        "info": {},
        "images": [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(6)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [one | {"id": number} for number, one in enumerate(things, 1)],
    }


@pytest.fixture
def root(tmp_path: Path, values: Values, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The values in a.json, and images 0 to 7 of 6x4 px, in tmp_path/photos; the cache folder is tmp_path/cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    for number in range(8):
        picture(root / f"images/{number}.png", number)
    write(root, values)
    return root


def picture(path: Path, number: int, **save: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **save)


def write(root: Path, content: Any, name: str = "a.json") -> None:
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


def config(root: Path, **settings: Any) -> Config:
    return Config(**({"root": root, "annotations": "a.json"} | settings))


def ids(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in samples]


def annotated(dataset: Dataset) -> dict[str, Path]:
    return {one.name: one.mask for one in dataset.labeled + dataset.val}


def rows(dataset: Dataset, name: str) -> list[str]:
    """The mask of an image as text: a digit is a class, # is ignored."""
    sample = next(one for one in dataset.labeled + dataset.val + dataset.unlabeled if one.name == name)
    return [
        "".join("#" if v == IGNORE else str(v) for v in row) for row in read_mask(sample.mask, dataset.coding).tolist()
    ]


def refused(given: Config, *says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(given)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def cached(root: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_mtime_ns
        for path in (root.parent / "cache").rglob("*")
        if "masks" in path.parts and path.is_file()
    }


def test_objects_become_masks_and_images_without_objects_are_unlabeled(root):
    dataset = load(config(root))
    assert dataset.classes.names == ("background", "cat", "dog")  # in the order of ids
    assert dataset.classes.background == 0
    assert (ids(dataset.labeled), ids(dataset.val)) == (["1", "2", "3"], ["0"])
    assert ids(dataset.unlabeled) == ["4", "5", "6", "7"]  # 6 and 7 are in no file
    assert rows(dataset, "0") == ["110000"] * 4
    assert rows(dataset, "3") == ["110022", "110000", "110000", "110000"]
    (note,) = dataset.notes
    assert "without any object" in note
    assert "2, e.g." in note
    assert "data.empty=labeled" in note


def test_an_empty_image_may_be_labeled(root):
    dataset = load(config(root, empty="labeled"))
    assert ids(dataset.unlabeled) == ["6", "7"]
    assert rows(dataset, "4") == ["000000"] * 4
    assert dataset.notes == ()


def test_everything_else_reads_these_masks(root):
    settings = config(root, crop=4)
    dataset = load(settings)
    report = check(dataset, settings)
    assert report.kinds == {"drawn from annotations": 4}
    assert report.meaning.pixels == {0: 4 * 16 - 4, 1: 4 * 8, 2: 4}
    assert report.notes[0] == dataset.notes[0]
    # the masks of 0 and 1 are the same, and photographs are noted
    others = [note for note in report.notes[1:] if not note.startswith("Photographs")]
    assert [note.split(";")[0] for note in others] == ["Classes that labeled masks show and no validation mask: dog"]
    image, mask = read_pair(dataset.labeled[0], dataset.coding)
    assert image.shape[1:] == mask.shape


def test_masks_have_the_colors_of_classes(root):
    (root / "classes.txt").write_text("background #ffffff\ncat #808080\ndog #ff0000\n")  # gray, from light to dark
    settings = config(root, classes="classes.txt", crop=4, uncovered="ignored", background="background")
    dataset = load(settings)
    with Image.open(dataset.labeled[0].mask) as image:
        palette = image.getpalette()
    assert palette[:9] == [255, 255, 255, 128, 128, 128, 255, 0, 0]
    assert tuple(palette[3 * IGNORE :]) == voc_color(IGNORE)
    check(load(config(root, classes="classes.txt", crop=4)), config(root, classes="classes.txt", crop=4))
    (root / "classes.txt").write_text("background\ncat #000000\ndog\n")  # class 0 is black by default
    same = load(config(root, classes="classes.txt"))
    assert rows(same, "3") == ["110022", "110000", "110000", "110000"]
    check(same, config(root, classes="classes.txt", crop=4))


def test_gray_classes_of_the_default_palette(root, values):
    """Classes 7 and 56 are gray in VOC's palette, the latter darker."""
    values["categories"] = [{"id": n, "name": f"c{n}"} for n in range(1, 60)]
    values["annotations"] = [
        thing(n, category, square(*box)) for n in range(4) for category, box in ((7, (0, 0, 2, 4)), (56, (3, 0, 5, 4)))
    ]
    write(root, values)
    dataset = load(config(root))
    assert rows(dataset, "0")[0] == "77056560"
    check(dataset, config(root, crop=4))


# what lies above


def test_a_later_object_lies_above_and_a_crowd_below_all(root, values):
    values["annotations"] = [
        thing(0, 7, square(1, 0, 3, 4)),
        thing(0, 3, square(2, 0, 4, 4)),
        thing(0, 7, {"size": [HEIGHT, WIDTH], "counts": [12, 12]}, iscrowd=1),  # the right half, last in the file
        thing(1, 3, square(0, 0, 1, 1)),
    ]
    write(root, values)
    assert rows(load(config(root)), "0") == ["021122"] * 4


def test_objects_of_different_classes_that_overlap_are_noted(root, values):
    assert not [note for note in check(load(config(root)), config(root, crop=4)).notes if "overlap" in note]
    values["annotations"] += [
        thing(0, 7, square(1, 0, 3, 4)),
        thing(1, 7, square(1, 0, 2, 1)),
        thing(2, 3, square(0, 0, 2, 2)),  # of the class of the object below
    ]
    write(root, values)
    for _ in ("drawn", "drawn before"):
        (note,) = [note for note in check(load(config(root)), config(root, crop=4)).notes if "overlap" in note]
        assert note == (
            f"Objects of different classes overlap in 2 of 4 images, e.g. {root / 'images/0.png'} (4 px); the one that "
            "stands later in the file lies above, and crowds below all others."
        )


def test_holes_and_both_kinds_of_runs(root, values):
    values["annotations"] = [
        thing(0, 3, {"size": [HEIGHT, WIDTH], "counts": [0, 5, 2, 17]}),  # a hole at the second column
        thing(1, 3, {"size": [HEIGHT, WIDTH], "counts": "052<"}),
        thing(2, 3, [*square(0, 0, 1, 1), *square(5, 3, 6, 4)]),
        thing(3, 3, square(0, 0, 1, 1)[0]),
    ]
    write(root, values)
    dataset = load(config(root))
    assert rows(dataset, "0") == ["111111", "101111", "101111", "111111"]
    assert rows(dataset, "1") == rows(dataset, "0")
    assert rows(dataset, "2") == ["100000", "000000", "000000", "000001"]
    assert rows(dataset, "3") == ["100000", "000000", "000000", "000000"]


def test_objects_that_do_not_count(root, values):
    values["categories"].append({"id": 9, "name": "__ignore__"})
    values["annotations"].append(thing(0, 9, square(1, 1, 2, 2)))
    write(root, values)
    dataset = load(config(root))
    assert dataset.classes.names == ("background", "cat", "dog")
    assert rows(dataset, "0") == ["110000", "1#0000", "110000", "110000"]


# classes


def test_pixels_in_no_object_may_be_ignored(root):
    dataset = load(config(root, uncovered="ignored"))
    assert dataset.classes.names == ("cat", "dog")
    assert dataset.classes.background is None
    assert rows(dataset, "3") == ["00##11", "00####", "00####", "00####"]


@pytest.mark.parametrize("name", ["Background", "_background_"])
def test_a_background_of_the_categories_is_the_background(root, values, name):
    values["categories"].append({"id": 5, "name": name})
    write(root, values)
    dataset = load(config(root))
    assert dataset.classes.names == ("cat", name, "dog")
    assert dataset.classes.background == 1
    assert rows(dataset, "3")[:2] == ["001122", "001111"]


def test_the_background_may_have_another_name(root, values):
    assert rows(load(config(root, background="dog")), "0")[0] == "001111"
    refused(config(root, background="bird"), "data.background", "'bird'", "cat, dog")
    (root / "classes.txt").write_text("dog\nground\ncat\nhorse\n")
    refused(config(root, classes="classes.txt"), "data.background", "classes.txt", "data.uncovered=ignored")
    dataset = load(config(root, classes="classes.txt", background="ground"))
    assert dataset.classes.names == ("dog", "ground", "cat", "horse")
    assert rows(dataset, "3")[0] == "221100"
    assert rows(load(config(root, classes="classes.txt", uncovered="ignored")), "3")[0] == "22##00"


def test_a_category_that_the_class_file_does_not_have(root, values):
    (root / "classes.txt").write_text("background\ncat\n")
    refused(config(root, classes="classes.txt"), "a.json", "annotation 5", "'dog' (2 objects", "classes.txt")
    (root / "classes.txt").write_text("background\ncat\nDog\n")
    refused(config(root, classes="classes.txt"), "did you mean 'Dog'?")
    values["annotations"] = values["annotations"][:4]  # unused categories may be in no class
    write(root, values)
    (root / "classes.txt").write_text("background\ncat\n")
    assert len(load(config(root, classes="classes.txt")).classes) == 2


def test_several_files_may_number_their_categories_differently(root, values):
    first, second = copy.deepcopy(values), copy.deepcopy(values)
    first["images"], first["annotations"] = first["images"][:2], first["annotations"][:2]
    second["images"], second["annotations"] = second["images"][2:], second["annotations"][2:]
    second["categories"] = [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "bird"}]
    for one in second["annotations"]:
        one["category_id"] = {3: 1, 7: 0}[one["category_id"]]
    write(root, first)
    write(root, second, "b.json")
    dataset = load(config(root, annotations=["a.json", "b.json"]))
    assert dataset.classes.names == ("background", "cat", "dog", "bird")
    assert rows(dataset, "3") == ["110022", "110000", "110000", "110000"]
    assert rows(dataset, "0") == ["110000"] * 4
    second["categories"][1]["name"] = "Cat"
    write(root, second, "b.json")
    refused(config(root, annotations=["a.json", "b.json"]), "b.json", "'Cat'", "a.json", "'cat'")


def test_objects_of_an_image_stand_in_one_file(root, values):
    write(root, values, "b.json")
    refused(config(root, annotations=["a.json", "b.json"]), "b.json", "0.png", "a.json", "one file")
    values["annotations"] = values["annotations"][1:]
    write(root, values, "b.json")
    values["annotations"] = [thing(0, 3, square(0, 0, 1, 1))]
    write(root, values)  # a.json has objects of image 0, b.json of the others, and both list all
    assert len(load(config(root, annotations=["a.json", "b.json"])).labeled) == 3


# validation


def test_validation_images_have_a_file_of_their_own(root, values):
    val = copy.deepcopy(values)
    val["images"] = [{"id": "x", "file_name": "6.png"}, {"id": "y", "file_name": "7.png"}]
    val["annotations"] = [thing("x", 7, square(0, 0, 1, 1))]
    write(root, val, "val.json")
    dataset = load(config(root, val_annotations="val.json"))
    assert (ids(dataset.labeled), ids(dataset.val)) == (["0", "1", "2", "3"], ["6"])
    assert ids(dataset.unlabeled) == ["4", "5"]  # 7 is for validation, and not annotated
    assert [(one.what, [path.name for path in one.files]) for one in dataset.unused if one.matters] == [
        ("images without any object in data.val_annotations, not used", ["7.png"])
    ]
    with pytest.raises(ValidationError, match="val_annotations and val_fraction exclude each other"):
        config(root, val_annotations="val.json", val_fraction=0.5)
    with pytest.raises(ValidationError, match="val and val_fraction exclude each other"):
        config(root, val="val.txt", val_fraction=0.5)


def test_a_folder_for_tests_may_be_annotated_for_validation(root, values):
    for number in range(8):
        path = root / f"images/{'train' if number < 5 else 'test'}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        (root / f"images/{number}.png").rename(path)
    val = copy.deepcopy(values)
    val["images"], val["annotations"] = [{"id": "x", "file_name": "test/6.png"}], [thing("x", 7, square(0, 0, 1, 1))]
    write(root, val, "val.json")
    for image in values["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    write(root, values)
    dataset = load(config(root, val_annotations="val.json"))
    assert (ids(dataset.val), ids(dataset.unlabeled)) == (["test/6"], ["train/4"])
    assert [[path.name for path in one.files] for one in dataset.unused if one.matters] == [["5.png", "7.png"]]


def test_a_list_chooses_among_the_annotations_for_validation(root, values):
    val = copy.deepcopy(values)
    val["images"], val["annotations"] = val["images"][:2], val["annotations"][:2]
    values["images"], values["annotations"] = values["images"][2:], values["annotations"][2:]
    write(root, values)
    write(root, val, "val.json")
    (root / "val.txt").write_text("1\n")
    dataset = load(config(root, val_annotations="val.json", val="val.txt"))
    assert (ids(dataset.labeled), ids(dataset.val)) == (["2", "3"], ["1"])
    assert "0" not in ids(dataset.unlabeled)  # it is kept for validation


def test_a_share_or_folders_or_a_list_choose_validation_images(root, values):
    assert len(load(config(root, val_fraction=0.5)).val) == 2
    (root / "val.txt").write_text("3\n")
    assert ids(load(config(root, val="val.txt")).val) == ["3"]
    (root / "labeled.txt").write_text("1\n")
    dataset = load(config(root, val="val.txt", labeled="labeled.txt"))
    assert ids(dataset.unlabeled) == ["0", "2", "4", "5", "6", "7"]
    (root / "labeled.txt").write_text("4\n")
    refused(config(root, labeled="labeled.txt"), "data.labeled", "'4' has no mask", "a.json", "data.empty=labeled")
    for number in range(8):
        part = "train" if number < 3 else "val"
        (root / f"images/{part}2017").mkdir(exist_ok=True)
        (root / f"images/{number}.png").rename(root / f"images/{part}2017/{number}.png")
    dataset = load(config(root))
    assert (ids(dataset.labeled), ids(dataset.val)) == ([f"train2017/{n}" for n in range(3)], ["val2017/3"])


# names of files


@pytest.mark.parametrize(
    "file_name",
    [
        "0.png",
        "images/0.png",
        "./images/0.png",
        "C:\\export\\images\\0.png",
        "..\\..\\media\\upload\\4\\0.png",
        "/data/upload/4/cb0618f6-0.png",
        "images/cb0618f6-0.png",
        "/data/local-files/?d=photos%2F0.png",
        "https://host.example/bucket/0.png?token=a/b",
        "s3://bucket/0.png",
        "0.jpg",
        "0",
        "0.PNG",
    ],
)
def test_names_that_tools_write(root, values, file_name):
    values["images"][0]["file_name"] = file_name
    write(root, values)
    assert "0" in annotated(load(config(root)))


def test_names_with_spaces_and_accents(root, values):
    (root / "images/0.png").rename(root / "images/Été 1%.png")
    for file_name in ("Été 1%.png", "%C3%89t%C3%A9%201%25.png"):
        values["images"][0]["file_name"] = file_name
        write(root, values)
        assert "Été 1%" in annotated(load(config(root)))


def test_a_path_goes_before_a_base_name(root, values):
    picture(root / "images/other/0.png", 9)
    write(root, values)
    assert "0" in annotated(load(config(root)))
    values["images"][0]["file_name"] = "other/0.png"
    write(root, values)
    assert {"0", "other/0"} & {*annotated(load(config(root)))} == {"other/0"}
    picture(root / "images/third/1.png", 9)
    (root / "images/1.png").rename(root / "images/other/1.png")
    refused(config(root), "a.json", "file_name '1.png'", "other/1.png", "third/1.png")


def test_images_that_are_missing(root, values):
    values["images"][0]["file_name"] = "gone.png"
    write(root, values)
    dataset = load(config(root))
    assert "0" in ids(dataset.unlabeled)
    assert any("1 of 6" in note and "'gone.png'" in note and "data.images" in note for note in dataset.notes)
    for number, one in enumerate(values["images"]):
        one["file_name"] = f"gone{number}.png"
    write(root, values)
    refused(config(root), "a.json", "none of its 6 images", "'gone0.png'", "data.images")


def test_an_image_that_is_missing_is_not_the_one_of_its_name_in_another_folder(root, values):
    for number in range(6):
        picture(root / f"images/cam2/{number}.png", number)
        (root / "images/cam1").mkdir(exist_ok=True)
        (root / f"images/{number}.png").rename(root / f"images/cam1/{number}.png")
        values["images"][number]["file_name"] = f"images/cam1/{number}.png"
    (root / "images/cam1/2.png").unlink()
    write(root, values)
    dataset = load(config(root))
    assert sorted(annotated(dataset)) == ["cam1/0", "cam1/1", "cam1/3"]
    assert any("1 of 6" in note and "cam1/2.png" in note for note in dataset.notes)
    for number in range(6):
        (root / f"images/cam2/{number}.png").rename(root / f"images/cam2/new{number}.png")
    (root / "images/cam1/3.png").rename(root / "images/cam2/3.png")  # it was moved: no name occurs twice
    assert sorted(annotated(load(config(root)))) == ["cam1/0", "cam1/1", "cam2/3"]


def test_images_stand_where_the_config_says(root):
    (root / "images").rename(root / "photos")
    refused(config(root), "data.images", "no folder")
    assert len(load(config(root, images="photos")).labeled) == 3
    assert load(config(root, images=".")).labeled[0].name == "photos/0"
    assert [one for one in load(config(root, images=".")).unused if one.matters] == []
    (root / "empty").mkdir()
    refused(config(root, images="empty"), "data.images", "holds no image")


# sizes


def test_an_image_of_another_size(root, values):
    values["images"][1] |= {"width": 12, "height": 8}
    write(root, values)
    refused(config(root), "a.json", "1.png has 12x8 px, but it has 6x4")
    del values["images"][1]["width"], values["images"][1]["height"]  # then it is that of the image
    write(root, values)
    assert rows(load(config(root)), "1") == ["110000"] * 4
    values["images"][1] |= {"id": 1.0, "width": 6.0, "height": 4.0}  # of a program that knows one kind of number
    write(root, values)
    assert rows(load(config(root)), "1") == ["110000"] * 4


def test_a_turned_photograph(root, values):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "images/0.jpg", 0, exif=exif)
    (root / "images/0.png").unlink()
    refused(config(root), "6x4", "4x6", "EXIF (6)", "data.mask_orientation=stored")
    dataset = load(config(root, mask_orientation="stored"))
    assert rows(dataset, "0") == ["110000"] * 4
    assert read_pair(dataset.val[0], dataset.coding)[1].shape == (
        WIDTH,
        HEIGHT,
    )
    values["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    write(root, values)
    assert rows(load(config(root)), "0") == ["1100"] * 4 + ["0000"] * 2
    refused(config(root, mask_orientation="stored"), "data.mask_orientation=upright")


def test_an_image_that_cannot_be_read_is_left_to_the_check(root, values):
    (root / "images/0.png").write_bytes(b"no image")
    dataset = load(config(root))
    with pytest.raises(UserError, match=r"0\.png: not a readable image"):
        check(dataset, config(root, crop=4))
    del values["images"][0]["width"], values["images"][0]["height"]
    write(root, values)
    refused(config(root), "0.png", "not a readable image")


# the cache


def test_a_changed_annotation_changes_the_files_of_its_images_only(root, values):
    before = load(config(root))
    files = cached(root)
    assert len(files) == 4
    load(config(root))
    assert cached(root) == files
    values["annotations"][0]["segmentation"] = square(0, 0, 3, 4)
    write(root, values)
    after = load(config(root))
    assert len(cached(root)) == 5
    assert cached(root).items() > files.items()
    old, new = annotated(before), annotated(after)
    assert [name for name in old if old[name] != new[name]] == ["0"]
    assert rows(after, "0") == ["111000"] * 4


@pytest.mark.parametrize(
    "settings", [{"uncovered": "ignored"}, {"classes": "classes.txt"}, {"classes": "colors.txt"}, {"background": "dog"}]
)
def test_other_settings_have_other_files(root, settings):
    (root / "classes.txt").write_text("background\ndog\ncat\n")
    (root / "colors.txt").write_text("background\ncat #102030\ndog\n")
    masks = {*annotated(load(config(root))).values()}
    assert not masks & {*annotated(load(config(root, **settings))).values()}


def test_another_version_has_other_files(root, monkeypatch):
    masks = {*annotated(load(config(root))).values()}
    monkeypatch.setattr(rasterize, "_VERSION", -1)
    assert not masks & {*annotated(load(config(root))).values()}


def test_images_of_the_same_objects_have_files_of_their_own(root):
    masks = annotated(load(config(root)))
    assert masks["0"] != masks["1"]
    assert masks["0"].read_bytes() == masks["1"].read_bytes()
    assert masks["0"].name.startswith("0.")


@pytest.mark.parametrize("left", [b"", b"\x89PNG", None])
def test_an_incomplete_file_is_drawn_again(root, left):
    mask = load(config(root)).labeled[0].mask
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-5] if left is None else left)
    load(config(root))
    assert mask.read_bytes() == whole
    mask.unlink()
    load(config(root))
    assert mask.read_bytes() == whole


def test_the_partition_does_not_depend_on_the_cache(root, monkeypatch):
    first = load(config(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "elsewhere"))
    second = load(config(root))
    assert {one.mask for one in first.labeled}.isdisjoint(one.mask for one in second.labeled)
    assert partition_hash(ids(first.labeled)) == partition_hash(ids(second.labeled))


def test_a_cache_folder_that_cannot_be_written_is_one_line(root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "a.json"))
    refused(config(root), "a.json/semiseg/masks", "cannot be written", "XDG_CACHE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        refused(config(root), "cannot be written", "No space left", "make room")
    assert cached(root) == {}  # no part of a file stays
    monkeypatch.setattr(rasterize, "cache_folder", lambda what: None)
    refused(config(root), "no home directory")


def test_a_complete_cache_may_be_read_only(root):
    before = load(config(root))
    folder = before.labeled[0].mask.parent
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert load(config(root)) == before
    finally:
        folder.chmod(stat.S_IRWXU)


def _load_in_process(root: Path) -> list[str]:
    return [str(mask) for mask in annotated(load(config(root))).values()]


def test_several_processes_may_draw_at_once(root):
    with ProcessPoolExecutor(3) as processes:
        found = list(processes.map(_load_in_process, [root] * 6))
    assert found == found[:1] * 6
    assert len(cached(root)) == 4
    assert len(found[0]) == 4
    assert [rows(load(config(root)), name)[0] for name in "0123"] == ["110000", "110000", "110022", "110022"]


def test_progress_is_told_while_masks_are_drawn(root):
    told: list[tuple[int, int]] = []
    load(config(root), lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    load(config(root), lambda done, total: told.append((done, total)))
    assert len(told) == 4


# files that are wrong


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ("ends too early",)),
        ('{"images": [', ("ends too early", "cut off")),
        ('{"images": nothing}', ("no JSON (line 1",)),
        ("[" * 100_000, ("RecursionError",)),
        ("[]", ("is a list", "in CVAT: COCO 1.0", "in Label Studio: COCO, or Brush labels to COCO")),
        ('\n<?xml version="1.0"?><annotations/>', ("is XML, not JSON", "COCO 1.0, or Segmentation mask 1.1")),
        ("3", ("not COCO",)),
        ("{}", ("not COCO",)),
        ('{"shapes": [], "imagePath": "a.jpg"}', ("LabelMe", "data.layout=labelme")),
        ('{"images": [{}], "annotations": [{}]}', ("no 'categories'",)),
        ('{"categories": [{}], "annotations": [{}]}', ("no 'images'",)),
        ('{"images": [{}], "categories": [{}], "annotations": {}}', ("'annotations' is no list",)),
        ('{"images": [3], "categories": [{}], "annotations": [{}]}', ("'images' is no list",)),
        ('{"images": [], "categories": [{}], "annotations": [{}]}', ("'images' is empty",)),
        ('{"images": [{}], "categories": [{}], "annotations": []}', ("'annotations' is empty", "after annotating")),
        ('{"images": [{}], "categories": [{}], "annotations": [{"segments_info": []}]}', ("panoptic",)),
    ],
)
def test_files_that_are_no_coco(root, content, says):
    write(root, content)
    refused(config(root), "a.json", *says)


def changed(*path: str | int, to: Any = None, gone: bool = False) -> Any:
    def change(values: Values) -> None:
        node: Any = values
        for part in path[:-1]:
            node = node[part]
        if gone:
            del node[path[-1]]
        else:
            node[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed("images", 1, "id", to=0), ("images has two entries with the id 0",)),
        (changed("images", 1, "id", gone=True), ("images has an entry without an id",)),
        (changed("images", 1, "file_name", to="0.png"), ("'0.png' and '0.png' both mean", "0.png; remove one")),
        (changed("images", 1, "file_name", to=None), ("image 1 has no file_name",)),
        (changed("images", 1, "width", to="6"), ("image 1: width and height are '6' and 4",)),
        (changed("images", 1, "width", to=-6), ("image 1: width and height are -6 and 4",)),
        (changed("categories", 1, "id", to=7), ("categories has two entries with the id 7",)),
        (changed("categories", 1, "name", to="dog"), ("categories 7, 3 are all called 'dog'",)),
        (changed("categories", 1, "name", to=""), ("category 3", "''")),
        (changed("categories", 1, "name", to=5), ("category 3", "5")),
        (changed("categories", 1, "name", to="a\tb"), ("category 3",)),
        (changed("annotations", 4, "image_id", to=99), ("annotation 5", "image_id 99", "1 of 6 annotations")),
        (changed("annotations", 4, "image_id", gone=True), ("annotation 5", "image_id None")),
        (changed("annotations", 4, "category_id", to=1), ("annotation 5", "category_id 1", "categories do not have")),
        (changed("annotations", 4, "category_id", to=[3]), ("annotation 5", "category_id [3]")),
        (changed("annotations", 4, "segmentation", to=[]), ("annotation 5 has nothing and no segmentation (1 of 6",)),
        (changed("annotations", 4, to=thing(0, 3, [], bbox=[0, 0, 1, 1])), ("has a box and no segmentation",)),
        (changed("annotations", 4, to=thing(0, 3, None, keypoints=[0])), ("has keypoints and no segmentation",)),
        (changed("annotations", 4, "segmentation", to=[[0, 0, 1, 1]]), ("annotation 5", "2 points, and 3 are needed")),
        (changed("annotations", 4, "segmentation", to=[[0, 0, 1, 1, 2]]), ("annotation 5", "pairs of numbers")),
        (changed("annotations", 4, "segmentation", to=[[]]), ("annotation 5", "0 points")),
        (changed("annotations", 4, "segmentation", to=["a"]), ("annotation 5", "pairs of numbers")),
        (changed("annotations", 4, "segmentation", to="abc"), ("annotation 5", "neither a list of polygons nor RLE")),
        (changed("annotations", 4, "segmentation", to={"counts": [24]}), ("annotation 5", "no size")),
        (changed("annotations", 4, "segmentation", to={"size": [4, 6]}), ("annotation 5", "counts")),
        (changed("annotations", 4, "segmentation", to={"size": [4, 6], "counts": [-1, 25]}), ("counts",)),
        (changed("annotations", 4, "segmentation", to={"size": [6, 4], "counts": [24]}), ("annotation 5", "4x6 px")),
        (changed("annotations", 4, "segmentation", to={"size": [4, 6], "counts": [23]}), ("annotation 5", "sum 23")),
        (changed("annotations", 4, "segmentation", to={"size": [4, 6], "counts": "0"}), ("annotation 5", "RLE")),
        (changed("categories", to=[{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
                 + [{"id": n, "name": f"c{n}"} for n in range(10, 262)]), ("255 classes", "data.classes")),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves(root, values, change, says):
    change(values)
    write(root, values)
    refused(config(root), "a.json", *says)


def test_other_files_that_are_wrong(root, values):
    refused(config(root, annotations="b.json"), "b.json", "no such file (data.annotations")
    refused(config(root, val_annotations="b.json"), "b.json", "no such file (data.val_annotations")
    refused(config(root, annotations=[]), "data.annotations")
    refused(config(root, annotations="images"), "images", "data.annotations")
    values["categories"] = values["categories"][1:]
    values["annotations"] = values["annotations"][:4]
    write(root, values)
    refused(config(root, uncovered="ignored"), "objects of cat alone", "data.uncovered=background")


def test_no_annotated_image(root, values):
    values["images"] = values["images"][:5]
    values["annotations"] = [thing(4, 3, square(0, 0, 1, 1))]
    write(root, values)
    (root / "images/4.png").unlink()
    refused(config(root), "a.json", "no image has an annotated object (4 have none)", "data.empty=labeled")
    refused(config(root, empty="labeled", val_fraction=0.9, unlabeled="a.json"), "a.json")


def test_a_home_directory_in_a_list_of_files(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = Config(root="~", annotations=["~/a.json", "b.json"])
    assert given.annotations == (tmp_path / "a.json", Path("b.json"))
