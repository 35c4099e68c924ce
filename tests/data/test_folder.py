"""Folders as people have them."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from semiseg.data import load
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.layouts.folder import Config
from semiseg.errors import UserError


def refused(config: Config, *says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(config)
    for part in says:
        assert part in str(caught.value)


def moved(root: Path, into: dict[str, range]) -> None:
    """Moves images and masks into folders below theirs, by their numbers."""
    for kind in ("images", "masks"):
        for name, numbers in into.items():
            for number in numbers:
                path = root / kind / f"{number:02}.png"
                if path.exists():
                    (root / kind / name).mkdir(parents=True, exist_ok=True)
                    path.rename(root / kind / name / path.name)


def moved_below_parts(root: Path, into: dict[str, Iterable[int]]) -> None:
    """Moves images and masks into part/images and part/masks, by their numbers."""
    for kind in ("images", "masks"):
        for part, numbers in into.items():
            for number in numbers:
                path = root / kind / f"{number:02}.png"
                if path.exists():
                    (root / part / kind).mkdir(parents=True, exist_ok=True)
                    path.rename(root / part / kind / path.name)
        (root / kind).rmdir()


def ids(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in samples]


def reasons(dataset: Dataset) -> dict[str, list[str]]:
    return {f"{one.what}; {one.remedy}": [path.name for path in one.files] for one in dataset.unused if one.matters}


def test_folders_for_training_and_validation_are_understood(folder):
    moved(folder, {"Train": range(5), "valid": (*range(5, 8), 10)})
    dataset = load(Config(root=folder))
    assert ids(dataset.labeled) == [f"Train/{number:02}" for number in range(5)]
    assert ids(dataset.val) == ["valid/05", "valid/06", "valid/07"]
    assert ids(dataset.unlabeled) == ["08", "09", "11"]
    ((reason, files),) = reasons(dataset).items()
    assert reason.startswith("images without a mask in the folder for validation")
    assert files == ["10.png"]


def test_a_test_folder_is_kept_apart(folder):
    moved(folder, {"train": range(6), "test": range(6, 12)})
    dataset = load(Config(root=folder))
    assert sorted(ids(dataset.labeled + dataset.val)) == [f"train/{number:02}" for number in range(6)]
    assert dataset.unlabeled == ()
    assert len(next(iter(reasons(dataset).values()))) == 6


def test_a_test_folder_is_trained_on_if_a_list_names_its_images_only(folder):
    moved(folder, {"train": range(4), "val": (4, 5), "test": range(6, 12)})
    train = {f"train/{number:02}" for number in range(4)} | {"val/04", "val/05"}
    (folder / "val.txt").write_text("train/01\n")
    for chosen in ({"val": "val.txt"}, {"val_fraction": 0.5}):
        dataset = load(Config(root=folder, **chosen))
        assert {*ids(dataset.labeled + dataset.val)} == train
        assert dataset.unlabeled == ()
        assert [len(files) for files in reasons(dataset).values()] == [6]
    (folder / "unlabeled.txt").write_text("test/08\ntest/09\n")
    (folder / "val.txt").write_text("test/06\n")
    dataset = load(Config(root=folder, val="val.txt", unlabeled="unlabeled.txt"))
    assert (ids(dataset.val), ids(dataset.unlabeled)) == (["test/06"], ["test/08", "test/09"])
    assert {*ids(dataset.labeled)} == train
    (files,) = reasons(dataset).values()
    assert files == ["07.png", "10.png", "11.png"]


def test_other_folder_names_mean_nothing(folder):
    moved(folder, {"val": range(4), "camera": range(4, 8)})
    dataset = load(Config(root=folder))
    assert (len(dataset.labeled), len(dataset.val), len(dataset.unlabeled)) == (6, 2, 4)


@pytest.mark.parametrize("train", ["train2017", "01_Training", "train_images", "ds/TrainVal", "TrainDataset"])
@pytest.mark.parametrize("val", ["val2017", "02_valid", "val_images", "ds/dev", "valset"])
def test_folders_of_parts_may_have_other_words_in_their_names(folder, train, val):
    moved(folder, {train: range(6), val: (6, 7)})
    assert ids(load(Config(root=folder)).val) == [f"{val}/06", f"{val}/07"]


@pytest.mark.parametrize("test", ["TestDataset", "testset", "test2017", "TEST", "testA"])
def test_folders_for_tests_may_have_other_words_in_their_names(folder, test):
    moved(folder, {"TrainDataset": range(6), test: range(6, 12)})
    assert ids(load(Config(root=folder)).tests) == [f"{test}/{number:02}" for number in range(6, 12)]


def test_folders_of_labeled_and_unlabeled_images_are_for_training(folder):
    british = "Unlabel" + "led"
    moved(folder, {"labeled": range(4), "val": (4, 5), "test": (6, 7), british: range(8, 12)})
    dataset = load(Config(root=folder))
    assert ids(dataset.labeled) == [f"labeled/{number:02}" for number in range(4)]
    assert ids(dataset.val) == ["val/04", "val/05"]
    assert ids(dataset.unlabeled) == [f"{british}/{number:02}" for number in range(8, 12)]
    assert ids(dataset.tests) == ["test/06", "test/07"]


def test_the_part_of_a_folder_goes_before_whether_it_is_labeled(folder):
    moved(folder, {"labeled/train": range(4), "labeled/val": (4, 5), "test_labeled": (6, 7)})
    dataset = load(Config(root=folder))
    assert ids(dataset.val) == ["labeled/val/04", "labeled/val/05"]
    assert ids(dataset.tests) == ["test_labeled/06", "test_labeled/07"]


def test_a_folder_of_two_parts_is_none(folder):
    moved(folder, {"train": range(4), "val_test": range(4, 8)})
    assert len(load(Config(root=folder)).labeled) == 6


def test_parts_may_stand_above_images_and_masks(folder):
    moved_below_parts(folder, {"train": (*range(6), *range(8, 12)), "val": (6, 7)})
    dataset = load(Config(root=folder))
    assert ids(dataset.val) == ["val/06", "val/07"]
    assert (len(dataset.labeled), len(dataset.unlabeled)) == (6, 4)
    assert all(sample.mask.parent == folder / "train/masks" for sample in dataset.labeled)


@pytest.mark.parametrize("name", ["unlabeled", "more"])
def test_folders_beside_those_of_parts_are_used(folder, name):
    moved_below_parts(folder, {"train": range(6), "val": (6, 7), name: range(8, 12)})
    (folder / ".trash/images").mkdir(parents=True)
    (folder / ".trash/images/08.png").write_bytes((folder / f"{name}/images/08.png").read_bytes())
    dataset = load(Config(root=folder))
    assert ids(dataset.unlabeled) == [f"{name}/{number:02}" for number in range(8, 12)]
    assert (len(dataset.labeled), ids(dataset.val)) == (6, ["val/06", "val/07"])


def test_masks_below_the_images_are_no_photographs(folder):
    for path in sorted((folder / "images").iterdir()):
        path.rename(folder / path.name)
    dataset = load(Config(root=folder, images="."))
    assert (len(dataset.labeled), len(dataset.val), len(dataset.unlabeled)) == (6, 2, 4)
    assert reasons(dataset) == {}


def test_images_and_masks_in_one_folder(folder):
    for path in sorted((folder / "masks").iterdir()):
        path.rename(folder / "images" / f"{path.stem}_{'Label' if path.stem == '00' else 'label'}.png")
    same = {"root": folder, "masks": "images"}
    refused(Config(**same), "data.mask_suffix")
    dataset = load(Config(**same, mask_suffix="_label"))
    assert (len(dataset.labeled), len(dataset.val), len(dataset.unlabeled)) == (6, 2, 4)


def test_a_second_mask_of_an_image_in_one_folder_is_no_photograph(folder):
    for path in sorted((folder / "masks").iterdir()):
        path.rename(folder / f"images/{path.stem}_mask.png")
    (folder / "images/00_mask_1.png").write_bytes((folder / "images/00_mask.png").read_bytes())
    dataset = load(Config(root=folder, masks="images", mask_suffix="_mask"))
    assert (len(dataset.labeled), len(dataset.val), len(dataset.unlabeled)) == (6, 2, 4)
    ((reason, files),) = reasons(dataset).items()
    assert "they are several for one image" in reason
    assert files == ["00_mask_1.png"]


def test_masks_of_another_suffix_or_case(folder):
    for number in range(4):
        path = folder / f"masks/{number:02}.png"
        path.rename(path.with_name(f"{path.stem}_label.png"))
    dataset = load(Config(root=folder))
    ((reason, files),) = reasons(dataset).items()
    assert reason.startswith("masks that belong to no image (of 8)")
    assert "data.mask_suffix=_label" in reason
    assert len(files) == 4
    assert len(load(Config(root=folder, mask_suffix="_label")).unlabeled) == 4
    assert len(load(Config(root=folder, mask_suffix="_Label")).unlabeled) == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{}_mask.png", ("no mask has the name of an image", "00_mask.png beside", "data.mask_suffix=_mask")),
        ("{}.jpg.png", ("data.mask_suffix=.jpg",)),
        ("{}.npy", ("holds no image file", ".npy files, not used: 8", "fromarray")),
    ],
)
def test_masks_of_no_image(folder, name, says):
    for path in sorted((folder / "masks").iterdir()):
        path.rename(path.with_name(name.format(path.stem)))
    refused(Config(root=folder), "data.masks", *says)


def test_colors_of_the_class_file_and_of_the_settings(folder, write):
    write("classes.txt", "ground #000000\nroad\nwater #0000ff\n")
    assert load(Config(root=folder)).coding.colors == {(0, 0, 0): 0, (0, 0, 255): 2}
    colors = load(Config(root=folder, colors={"#FF00aa": 1, "#ffffff": 255})).coding.colors
    assert colors == {(0, 0, 0): 0, (0, 0, 255): 2, (255, 0, 170): 1, (255, 255, 255): 255}
    assert load(Config(root=folder, colors={"#000000": 1})).coding.colors == {(0, 0, 0): 1, (0, 0, 255): 2}
    refused(Config(root=folder, colors={"#ffffff": 3}), "data.colors", "0 to 2")
