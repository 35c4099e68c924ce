"""Which mask belongs to which image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.errors import UserError
from semiseg.init.layers import merge
from semiseg.init.masks import find, guess_folder, of_export

IMAGE = np.zeros((4, 6, 3), np.uint8)
MASK = np.zeros((4, 6), np.uint8)


def names(found: dict[str, Path], root: Path) -> dict[str, str]:
    return {name: path.relative_to(root).as_posix() for name, path in found.items()}


@pytest.mark.parametrize(
    ("masks", "suffix", "expected"),
    [
        (["a", "b"], None, {"a": "a", "b": "b"}),
        (["a_mask", "b_mask"], "_mask", {"a": "a_mask", "b": "b_mask"}),
        (["a.jpg", "b.jpg"], ".jpg", {"a": "a.jpg", "b": "b.jpg"}),  # a double extension, a.jpg.png
        (["A_label", "b_label"], "_label", {"a": "A_label", "b": "b_label"}),
        (["a", "z"], None, {"a": "a"}),
    ],
)
def test_a_mask_has_the_name_of_its_image_and_maybe_an_end(tmp_path, write, masks, suffix, expected):
    for name in ("a", "b", "c"):
        write(f"photos/{name}.jpg", IMAGE)
    for name in masks:
        write(f"masks/{name}.png", MASK)
    found = find(tmp_path / "photos", tmp_path / "masks")
    assert found.suffix == suffix
    assert names(found.files, tmp_path / "masks") == {name: f"{mask}.png" for name, mask in expected.items()}
    assert sorted(found.images) == ["a", "b", "c"]
    assert not found.layers
    assert [path.stem for path in found.left] == (["z"] if "z" in masks else [])


def test_masks_among_the_images_are_told_apart_by_their_end(tmp_path, write):
    for name in ("a", "b", "c"):
        write(f"photos/{name}.jpg", IMAGE)
    for name in ("a", "b"):
        write(f"photos/{name}_seg.png", MASK)
    found = find(tmp_path / "photos", tmp_path / "photos")
    assert sorted(found.images) == ["a", "b", "c"]
    assert names(found.files, tmp_path / "photos") == {"a": "a_seg.png", "b": "b_seg.png"}
    assert found.suffix == "_seg"


@pytest.mark.parametrize("form", ["{of}/{name}.png", "{name}_{of}.png"])
def test_one_file_for_each_class(tmp_path, write, form):
    for name in ("a", "b", "c"):
        write(f"photos/{name}.jpg", IMAGE)
    for name, of in (("a", "dog"), ("a", "cat"), ("b", "dog"), ("c", "cat")):
        write("masks/" + form.format(name=name, of=of), MASK)
    found = find(tmp_path / "photos", tmp_path / "masks")
    assert {name: sorted(files) for name, files in found.layers.items()} == {
        "a": ["cat", "dog"], "b": ["dog"], "c": ["cat"],
    }  # fmt: skip
    assert not found.files


def test_label_studios_files_are_not_named_by_images(tmp_path, write):
    for name in ("1", "2"):
        write(f"photos/{name}.jpg", IMAGE)
        for of in ("Car", "Road"):
            write(f"masks/task-{name}-annotation-{name}-by-3-tag-{of}-0.png", MASK)
    with pytest.raises(UserError, match=r"e.g. task-1-annotation-1-by-3-tag-Car-0.png; export Brush labels to COCO"):
        find(tmp_path / "photos", tmp_path / "masks")


def test_masks_of_vocs_folders_are_in_one_of_them(tmp_path, write):
    for folder in ("SegmentationClass", "SegmentationObject"):
        write(f"voc/{folder}/a.png", MASK)
    assert of_export(tmp_path / "voc") == (tmp_path / "voc/SegmentationClass", None)
    (tmp_path / "voc/labelmap.txt").write_text("a:0,0,0::")
    assert of_export(tmp_path / "voc")[1] == tmp_path / "voc/labelmap.txt"
    assert of_export(tmp_path / "voc/SegmentationObject") == (tmp_path / "voc/SegmentationObject", None)


def test_numbered_masks_of_an_image_show_objects_of_one_class(tmp_path, write):
    for name in ("a (1)", "a (2)", "a (3)", "a (4)"):
        for place in ("photos", "one/folder"):
            write(f"{place}/{name}.png", IMAGE)
        for place in ("masks", "one/folder"):
            write(f"{place}/{name}_mask.png", MASK)
    for more in ("a (2)_mask_1", "a (2)_mask_2", "a (4)_mask_1"):
        write(f"masks/{more}.png", MASK)
        write(f"one/folder/{more}.png", MASK)
    found = find(tmp_path / "photos", tmp_path / "masks")
    assert {name: {of: len(files) for of, files in each.items()} for name, each in found.layers.items()} == {
        "a (1)": {"mask": 1}, "a (2)": {"mask": 3}, "a (3)": {"mask": 1}, "a (4)": {"mask": 2},
    }  # fmt: skip
    for number in (1, 2, 3, 4):
        write(f"other/a ({number}).png", MASK)
        for more in range(1, number + 1):
            write(f"other/a ({number})_{more}.png", MASK)
    found = find(tmp_path / "photos", tmp_path / "other")
    assert {name: {of: len(files) for of, files in each.items()} for name, each in found.layers.items()} == {
        f"a ({number})": {"object": number + 1} for number in (1, 2, 3, 4)
    }
    assert not found.left
    with pytest.raises(UserError, match=r"several masks of one image \(3 more\), e.g. .*a \(2\)_mask_1.png; move"):
        find(tmp_path / "one/folder", tmp_path / "one/folder")


def test_folders_of_parts_are_no_classes(tmp_path, write):
    for name in ("train/a", "val/b"):
        write(f"photos/{name}.jpg", IMAGE)
        write(f"masks/{name}.png", MASK)
    assert sorted(find(tmp_path / "photos", tmp_path / "masks").files) == ["train/a", "val/b"]
    for name in ("a", "b"):
        write(f"flat/{name}.jpg", IMAGE)
    with pytest.raises(UserError, match=r"in another folder: move train/a\.png to a\.png"):
        find(tmp_path / "flat", tmp_path / "masks")


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("nowhere", "masks", "--images .*nowhere: there is no such folder"),
        ("photos", "nowhere", "--masks .*nowhere: there is no such folder"),
        ("empty", "masks", "--images .*empty: holds no photograph$"),
        ("drawn", "masks", r"drawn: holds no photograph; \.psd files, not used: 1, .*a\.psd; if they are photographs"),
        ("photos", "empty", "--masks .*empty: holds no image file"),
        ("photos", "others", "no mask has the name of an image"),
        ("photos", "photos", "is the folder of the images"),
    ],
)
def test_what_is_no_folder_of_masks(tmp_path, write, images, masks, message):
    write("photos/a.jpg", IMAGE)
    write("masks/a.png", MASK)
    write("others/q.png", MASK)
    for name in ("empty", "drawn"):
        (tmp_path / name).mkdir()
    (tmp_path / "drawn/a.psd").touch()
    with pytest.raises(UserError, match=message):
        find(tmp_path / images, tmp_path / masks)


@pytest.mark.parametrize("end", ["", "_mask"])
def test_the_folder_above_is_named_with_the_one_that_fits(tmp_path, write, end):
    for name in ("a", "b", "c"):
        write(f"base/images/{name}.jpg", IMAGE)
        write(f"base/masks/{name}{end}.png", MASK)
    base = tmp_path / "base"
    with pytest.raises(UserError, match=rf"are in {base}/images: give --images {base}/images$"):
        find(base, base / "masks")
    with pytest.raises(UserError, match=rf"are in {base}/masks: give --masks {base}/masks$"):
        find(base / "images", base)


def test_the_folder_beside_or_below_is_guessed_if_it_is_the_only_one(tmp_path, write):
    write("photos/a.jpg", IMAGE)
    assert guess_folder(tmp_path / "photos") is None
    write("Labels/a.png", MASK)
    assert guess_folder(tmp_path / "photos") == tmp_path / "Labels"
    write("photos/masks/a.png", MASK)
    assert guess_folder(tmp_path / "photos") is None


def test_joined_masks_by_hand(tmp_path, write):
    big, small = MASK.copy(), MASK.copy()
    big[:, :4] = 255
    small[0, 3:5] = 255
    files = {"wide": [write("m/1.png", big)], "dot": [write("m/2.png", small)]}
    assert merge({"x/a": files}, tmp_path / "out") == (["dot", "wide"], 1)
    with Image.open(tmp_path / "out/x/a.png") as image:
        assert image.mode == "P"
        index = np.asarray(image)
    expected = np.zeros((4, 6), int)
    expected[:, :4] = 2
    expected[0, 3:5] = 1  # dot has fewer pixels, so it is above
    assert index.tolist() == expected.tolist()
    objects = {"thing": [write("m/1.png", big), write("m/2.png", small)]}  # two objects of one class
    assert merge({"b": objects}, tmp_path / "out") == (["thing"], 0)
    with Image.open(tmp_path / "out/b.png") as image:
        assert np.array_equal(np.asarray(image), expected > 0)


def test_masks_that_may_be_inverted_are_not_joined(tmp_path, write):
    shown = MASK.copy()
    shown[0, :3] = 1
    for name, colors in (("plain", [0, 0, 0, 255, 255, 255]), ("inverted", [255, 255, 255, 0, 0, 0])):
        image = Image.fromarray(shown)
        image.putpalette(colors)
        image.save(tmp_path / f"{name}.png")
    image = Image.fromarray(MASK + 1)
    image.putpalette(colors)
    image.save(tmp_path / "none.png")  # nothing is shown
    assert merge({"a": {"dog": [tmp_path / "plain.png"]}}, tmp_path / "out") == (["dog"], 0)
    for path in (tmp_path / "inverted.png", tmp_path / "none.png", write("fax.tif", shown * 255, tiffinfo={262: 0})):
        with pytest.raises(UserError, match=f"{path.name}: stores black as another value than 0"):
            merge({"a": {"dog": [path]}}, tmp_path / "out")


def test_masks_that_cannot_be_joined(tmp_path, write):
    soft = MASK.copy()
    soft[0, :3] = (10, 100, 255)
    with pytest.raises(UserError, match=r"soft\.png: holds 4 values; a mask of one class has two"):
        merge({"a": {"dog": [write("soft.png", soft)]}}, tmp_path / "out")
    files = {"dog": [write("1.png", MASK)], "cat": [write("2.png", np.zeros((5, 6), np.uint8))]}
    with pytest.raises(UserError, match="has another size"):
        merge({"a": files}, tmp_path / "out")
