import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from semiseg.data import layouts, load
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample
from semiseg.data.layouts import cityscapes, folder, voc
from semiseg.data.masks import read_mask
from semiseg.data.parts import held_out
from semiseg.errors import UserError
from semiseg.types import IGNORE

IMAGE = np.zeros((4, 6, 3), np.uint8)
MASK = np.zeros((4, 6), np.uint8)


def names(dataset: Dataset) -> list[list[str]]:
    return [[sample.name for sample in part] for part in (dataset.labeled, dataset.unlabeled, dataset.val)]


def assert_refused(config: DataConfig, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load(config)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_layouts_are_found_by_name():
    assert {"cityscapes", "folder", "voc"} <= set(layouts.names())
    assert not {"scenes", "dataset", "loader"} & set(layouts.names())
    for name in layouts.names():
        module = layouts.module(name)
        assert module.Config.model_fields["layout"].default == name
        assert issubclass(module.Config, DataConfig)


@pytest.mark.parametrize("name", ["cityscape", "loader", "no.such.module"])
def test_an_unknown_layout_is_told_the_known_ones(name):
    with pytest.raises(UserError, match=r"cityscapes, coco, folder, labelme.*, voc") as caught:
        layouts.module(name)
    assert name in str(caught.value)


def test_a_layout_of_ones_own_is_found_by_its_dotted_name(tmp_path, monkeypatch):
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg/__init__.py").touch()
    (tmp_path / "my_pkg/mine.py").write_text("class Config: pass\ndef load(config): return 7\n")
    (tmp_path / "my_pkg/needy.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert layouts.module("my_pkg.mine").load(None) == 7
    with pytest.raises(ModuleNotFoundError, match="not_installed"):  # not reported as a missing layout
        layouts.module("my_pkg.needy")
    sys.modules.pop("my_pkg", None)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": 0},
        {"crop": (16, -1)},
        {"scale": (0.0, 1.0)},
        {"scale": (2.0, 0.5)},
        {"flip": 1.5},
        {"long_side": 8},
        {"workers": -1},
        {"unknown": 1},
        {"layout": "voc"},
        {"val": "val.txt", "val_fraction": 0.5},
        {"val_fraction": 1.0},
        {"values": {-40000: 0}},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValidationError):
        folder.Config(**({"root": "."} | settings))


def test_crop_is_height_and_width():
    assert folder.Config(root=".", crop=7).crop_size == (7, 7)
    assert folder.Config(root=".", crop=(5, 9)).crop_size == (5, 9)


def test_home_is_expanded():
    config = folder.Config(root="~/data", val="~/val.txt")
    assert config.root == Path.home() / "data"
    assert config.val == Path.home() / "val.txt"


# PASCAL VOC


@pytest.fixture
def voc_root(write, tmp_path: Path) -> Path:
    """Images 1 to 6; VOC's own masks for 1 to 4, of which 1 and 2 train; SBD adds one for 5; 6 has none."""
    for number in range(1, 7):
        write(f"VOCdevkit/VOC2012/JPEGImages/2007_{number}.jpg", IMAGE)
    for number in range(1, 5):
        write(f"VOCdevkit/VOC2012/SegmentationClass/2007_{number}.png", MASK)
    for number in range(1, 6):
        write(f"VOCdevkit/VOC2012/Aug/2007_{number}.png", MASK)
    write("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", "2007_1\n2007_2\n")
    write("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "2007_3\n2007_4\n")
    return tmp_path


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_wherever_the_root_points(voc_root, below):
    dataset = load(voc.Config(root=voc_root / below))
    assert names(dataset) == [["2007_1", "2007_2"], [], ["2007_3", "2007_4"]]
    assert dataset.labeled[0].mask == voc_root / "VOCdevkit/VOC2012/SegmentationClass/2007_1.png"
    assert dataset.classes.names[0] == "background"
    assert dataset.classes.names[20] == "tvmonitor"
    assert len(dataset.classes) == 21
    assert dataset.classes.background == 0
    assert dataset.classes.colors[15] == (192, 128, 128)  # person
    assert dataset.coding.values is None


def test_blended_voc_takes_its_pool_from_the_augmented_masks(voc_root, write):
    write("VOCdevkit/labeled.txt", "2007_1\n")
    dataset = load(voc.Config(root=voc_root / "VOCdevkit", labeled="labeled.txt", masks="Aug"))
    assert names(dataset) == [["2007_1"], ["2007_2", "2007_5"], ["2007_3", "2007_4"]]
    assert dataset.labeled[0].mask.parent.name == "Aug"


def test_voc_takes_masks_from_the_list_unless_told_where_they_are(voc_root, write):
    write("labeled.txt", "/JPEGImages/2007_5.jpg /Aug/2007_5.png\n")
    assert load(voc.Config(root=voc_root, labeled="labeled.txt")).labeled[0].mask.parent.name == "Aug"
    assert_refused(voc.Config(root=voc_root, labeled="labeled.txt", masks="SegmentationClass"), "'2007_5'", "no mask")


def test_unlabeled_voc_images_need_no_mask(voc_root, write):
    write("unlabeled.txt", "2007_6\n2007_5\n")
    assert names(load(voc.Config(root=voc_root, unlabeled="unlabeled.txt")))[1] == ["2007_6", "2007_5"]
    write("unlabeled.txt", "2007_6\n2007_2\n")
    dataset = load(voc.Config(root=voc_root, unlabeled="unlabeled.txt"))
    assert names(dataset) == [["2007_1"], ["2007_6", "2007_2"], ["2007_3", "2007_4"]]


def test_voc_without_official_lists(write, tmp_path):
    for number in range(4):
        write(f"JPEGImages/{number}.jpg", IMAGE)
        write(f"SegmentationClass/{number}.png", MASK)
    write("splits/val.txt", "0\n")
    assert names(load(voc.Config(root=tmp_path, val="splits/val.txt"))) == [["1", "2", "3"], [], ["0"]]
    assert_refused(voc.Config(root=tmp_path), "data.val", "ImageSets/Segmentation/val.txt")


def test_voc_errors(voc_root, write, tmp_path):
    assert_refused(voc.Config(root=voc_root / "nowhere"), "data.root", "nowhere", "--set data.root=PATH")
    assert_refused(voc.Config(root=voc_root, masks="SegmentationClassAug"), "data.masks", "SBD", "10,582")
    assert_refused(voc.Config(root=voc_root, masks="Other"), "data.masks", "Other")
    write("labeled.txt", "2007_5\n")
    assert_refused(voc.Config(root=voc_root, labeled="labeled.txt"), "'2007_5'", "data.masks: SegmentationClassAug")
    assert_refused(voc.Config(root=voc_root, labeled="gone.txt"), "data.labeled", str(tmp_path / "gone.txt"))


# Cityscapes


@pytest.fixture
def cityscapes_root(write, tmp_path: Path) -> Path:
    for split, city, count in (("train", "aachen", 3), ("val", "bonn", 2), ("test", "berlin", 1)):
        for number in range(count):
            write(f"leftImg8bit/{split}/{city}/{city}_0_{number}_leftImg8bit.png", IMAGE)
            write(f"gtFine/{split}/{city}/{city}_0_{number}_gtFine_labelIds.png", MASK + 7)
            write(f"gtFine/{split}/{city}/{city}_0_{number}_gtFine_color.png", IMAGE)
    return tmp_path


def test_cityscapes_maps_label_ids(cityscapes_root):
    dataset = load(cityscapes.Config(root=cityscapes_root))
    assert names(dataset) == [[f"aachen_0_{n}" for n in range(3)], [], ["bonn_0_0", "bonn_0_1"]]
    assert dataset.classes.background is None
    assert len(dataset.classes) == 19
    assert (read_mask(dataset.labeled[0].mask, dataset.coding) == 0).all()  # 7 is road


def test_the_table_of_cityscapes_ids(write):
    stored = np.arange(34, dtype=np.uint8)[None]
    mask = read_mask(write("a.png", stored), MaskCoding(19, cityscapes.LABEL_IDS))[0].tolist()
    by_name = {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
               "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
               "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}  # fmt: skip
    assert {cityscapes.CLASSES.names[index]: label for label, index in enumerate(mask) if index != IGNORE} == by_name


def test_cityscapes_prefers_train_ids_where_it_has_them_all(cityscapes_root, write):
    def write_train_ids(split: str, city: str, count: int) -> None:
        for number in range(count):
            write(f"gtFine/{split}/{city}/{city}_0_{number}_gtFine_labelTrainIds.png", MASK + 3)

    write_train_ids("train", "aachen", 3)
    some = load(cityscapes.Config(root=cityscapes_root))
    assert some.coding.values == cityscapes.LABEL_IDS
    assert all(sample.mask.name.endswith("_labelIds.png") for sample in some.labeled + some.val)
    write_train_ids("val", "bonn", 2)
    write_train_ids("test", "berlin", 1)
    every = load(cityscapes.Config(root=cityscapes_root))
    assert every.coding.values is None
    assert (read_mask(every.val[0].mask, every.coding) == 3).all()


@pytest.mark.parametrize(
    "line",
    [
        "leftImg8bit/train/aachen/aachen_0_1_leftImg8bit.png",
        "leftImg8bit/train/aachen/aachen_0_1_leftImg8bit.png gtFine/train/aachen/aachen_0_1_gtFine_labelTrainIds.png",
        "train/aachen/aachen_0_1_leftImg8bit.png",
        "aachen/aachen_0_1",
        "aachen_0_1_leftImg8bit.png",
        "aachen_0_1",
    ],
)
def test_cityscapes_ids_as_published(cityscapes_root, write, line):
    write("labeled.txt", line)
    dataset = load(cityscapes.Config(root=cityscapes_root, labeled="labeled.txt"))
    assert names(dataset) == [["aachen_0_1"], ["aachen_0_0", "aachen_0_2"], ["bonn_0_0", "bonn_0_1"]]
    assert dataset.labeled[0].mask.name == "aachen_0_1_gtFine_labelIds.png"


def test_cityscapes_errors(cityscapes_root, tmp_path, write):
    assert_refused(cityscapes.Config(root=cityscapes_root / "gtFine"), "data.root", "leftImg8bit and gtFine")
    write("labeled.txt", "leftImg8bit/train/aachen/aachen_0_9_leftImg8bit.png\n")
    assert_refused(cityscapes.Config(root=cityscapes_root, labeled="labeled.txt"), "did you mean 'aachen_0_")
    (cityscapes_root / "gtFine/train/aachen/aachen_0_1_gtFine_labelIds.png").unlink()
    assert_refused(cityscapes.Config(root=cityscapes_root), "data.labeled", "'aachen_0_1'", "labelIds")


# Plain folders


def test_plain_folder_by_itself(folder):
    dataset = load(layouts.module("folder").Config(root=folder))
    assert len(dataset.labeled) == 6
    assert len(dataset.val) == 2  # 0.2 of 8, rounded
    assert [sample.name for sample in dataset.unlabeled] == ["08", "09", "10", "11"]
    assert sorted(sample.name for sample in dataset.labeled + dataset.val) == [f"{n:02}" for n in range(8)]
    assert dataset.classes.background is None
    assert dataset == load(layouts.module("folder").Config(root=folder))


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 4), (0.01, 1), (0.8, 6)])
def test_val_fraction(folder, fraction, count):
    dataset = load(layouts.module("folder").Config(root=folder, val_fraction=fraction))
    assert len(dataset.val) == count
    assert len(dataset.labeled) == 8 - count


def test_validation_is_not_taken_from_listed_images(folder, write):
    write("labeled.txt", "00\n01\n02\n")
    write("unlabeled.txt", "03\n10\n")
    config = layouts.module("folder").Config(root=folder, labeled="labeled.txt", val_fraction=0.9)
    dataset = load(config)
    assert names(dataset)[0] == ["00", "01", "02"]
    assert len(dataset.val) == 5  # 0.9 of all 8 would be 7; no list names these 5
    assert len(dataset.unlabeled) == 4
    lists = {"unlabeled": Path("unlabeled.txt"), "labeled": None}
    dataset = load(config.model_copy(update={**lists, "val_fraction": 0.7}))
    assert names(dataset)[1] == ["03", "10"]
    assert not {"03"} & {sample.name for sample in dataset.labeled + dataset.val}


def test_held_out_images_stay_when_others_are_added():
    samples = [Sample(f"{n}", Path()) for n in range(103)]
    for more in range(1, 104):
        before, after = (set(held_out(tuple(samples[:n]), 0.3)) for n in (more - 1 or 1, more))
        assert len(before - after) <= 1
    assert set(held_out(tuple(reversed(samples)), 0.3)) == after


@pytest.mark.parametrize("fraction", [None, 0.4])
def test_lists_of_training_images_change_nothing_in_validation(folder, write, fraction):
    config = layouts.module("folder").Config(root=folder, val_fraction=fraction)
    whole = load(config)
    labeled, *others = (f"{sample.name}\n" for sample in whole.labeled + whole.unlabeled)
    lists = {"labeled": write("labeled.txt", labeled), "unlabeled": write("unlabeled.txt", "".join(others))}
    for given in (["labeled"], ["unlabeled"], ["labeled", "unlabeled"]):
        dataset = load(config.model_copy(update={key: lists[key] for key in given}))
        assert dataset.val == whole.val
        assert {*dataset.labeled, *dataset.unlabeled} == {*whole.labeled, *whole.unlabeled}


def test_a_larger_share_contains_the_smaller(folder):
    config = layouts.module("folder").Config
    shares = [{*load(config(root=folder, val_fraction=n / 10)).val} for n in range(1, 9)]
    assert [len(share) for share in shares] == [1, 2, 2, 3, 4, 5, 6, 6]
    assert all(one <= other for one, other in itertools.pairwise(shares))


def test_folder_settings(write, tmp_path):
    write("photos/a/1.webp", IMAGE)
    write("photos/a/2.jpeg", IMAGE)
    write("photos/b/1.png", IMAGE)
    write("truth/a/1.png", MASK)
    write("truth/b/1.tif", MASK)
    write("names.txt", "# comment\n\nsky blue #0000ff\r\nroad\n")
    write("val.txt", "b/1\n")
    settings = {"images": "photos", "masks": "truth", "classes": "names.txt", "values": {128: 1}, "val": "val.txt"}
    dataset = load(layouts.module("folder").Config(root=tmp_path, background="road", **settings))
    assert names(dataset) == [["a/1"], ["a/2"], ["b/1"]]
    assert dataset.classes.names == ("sky blue", "road")
    assert dataset.classes.colors == ((0, 0, 255), (128, 0, 0))
    assert dataset.classes.background == 1
    assert dataset.coding.values == {128: 1}
    assert load(layouts.module("folder").Config(root=tmp_path, background=0, **settings)).classes.background == 0


@pytest.mark.parametrize(
    ("files", "settings", "says"),
    [
        ({}, {"images": "photos"}, ("data.images", "photos")),
        ({}, {"masks": "truth"}, ("data.masks", "truth")),
        ({}, {"classes": "names.txt"}, ("data.classes", "names.txt", "no such file")),
        ({"classes.txt": "one\n"}, {}, ("classes.txt", "1 class, 'one'", "between 2 and 254")),
        ({"classes.txt": "one\ntwo\none\n"}, {}, ("classes.txt", "'one' occurs twice")),
        ({"classes.txt": "".join(f"{n}\n" for n in range(255))}, {}, ("classes.txt", "255 classes")),
        ({}, {"background": "sea"}, ("data.background", "'sea'", "c0, c1")),
        ({}, {"background": 24}, ("data.background", "24", "0 to 23")),
        ({}, {"values": {200: 24}}, ("data.values", "{200: 24}", "0 to 23")),
        ({"val.txt": "00\n"}, {"val": "val.txt", "labeled": "val.txt"}, ("data.labeled", "data.val", "'00'")),
        ({"l.txt": "09\n"}, {"labeled": "l.txt"}, ("data.labeled", "'09' has no mask", "masks")),
        ({"l.txt": "0x\n"}, {"labeled": "l.txt"}, ("l.txt:1", "'0x'")),
        ({"empty/a.txt": ""}, {"images": "empty"}, ("data.images", "empty", "no image")),
        ({"empty/a.txt": ""}, {"masks": "empty"}, ("data.masks", "empty")),
    ],
)
def test_folder_errors(folder, write, files, settings, says):
    for name, text in files.items():
        write(name, text)
    assert_refused(layouts.module("folder").Config(root=folder, **settings), *says)
