"""`semiseg init --update`: new labels come in, and nothing else changes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from semiseg import data
from semiseg.data.check import check
from semiseg.data.masks import read_pair
from semiseg.data.partitions import class_presence
from semiseg.errors import UserError
from semiseg.init import Request, Update, init, update
from semiseg.recipe.load import load_recipe


@pytest.fixture
def made(tmp_path: Path, photo, write, square, tried) -> Path:
    """A folder that init made of twelve photographs, eight of them with masks of 128 and 255."""
    for number in range(12):
        photo(f"photos/{number:02}.png", number)
        if number < 8:
            mask = square(5 + number, inside=255)
            mask[25:, :6] = 128
            write(f"masks/{number:02}.png", mask)
    init(Request(tmp_path / "out", tmp_path / "photos", classes="background,round,square"))
    return tmp_path / "out"


@pytest.fixture
def labelme(tmp_path: Path):
    """labelme("08", 4, 14) -> LabelMe's file: a square of class `square` from 4 to 14 in both directions."""

    def labelme(name: str, low: int, high: int, label: str = "square", **more) -> Path:
        path = tmp_path / "corrected" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        corners = [[low, low], [high, low], [high, high], [low, high]]
        shapes = [{"label": label, "points": corners, "shape_type": "polygon"}]
        content = {"shapes": shapes, "imagePath": f"../photos/{name}.png", "imageHeight": 32, "imageWidth": 40}
        path.write_text(json.dumps(content | more))
        return path

    return labelme


def loaded(made: Path) -> data.Dataset:
    return data.load(load_recipe(made).data)


def names(samples) -> list[str]:
    return sorted(sample.name for sample in samples)


def test_labels_come_in_and_nothing_is_lost(made, labelme, contents):
    before, files, recipe = loaded(made), contents(made), (made / "recipe.yaml").read_text()
    labelme("08", 4, 14)
    labelme("10", 0, 8)
    command = update(Update(made, labelme=made.parent / "corrected"))
    assert command == f"semiseg train {made}"
    after = loaded(made)
    assert names(after.labeled) == sorted([*names(before.labeled), "08", "10"])
    assert names(after.unlabeled) == ["09", "11"]
    assert after.val == before.val
    kept = {sample.name: sample for sample in after.labeled}
    for sample in before.labeled:
        assert kept[sample.name] == sample
        assert np.array_equal(*(read_pair(one, before.coding)[1] for one in (sample, kept[sample.name])))
    label = read_pair(kept["08"], after.coding)[1].numpy()
    expected = np.zeros((32, 40), np.uint8)
    expected[4:14, 4:14] = 2
    assert np.array_equal(label, expected)
    new = contents(made)
    assert {key for key in new if new[key] != files.get(key)} == {
        "recipe.yaml", "added", "added/08.png", "added/10.png",
    }  # fmt: skip
    lines = (made / "recipe.yaml").read_text().splitlines()
    added = [line for line in lines if line.startswith("  added: added")]
    assert [line for line in lines if line not in added] == recipe.splitlines()
    assert check(after, load_recipe(made).data).parts["labeled"].masks[2] == len(after.labeled)
    assert class_presence(after.labeled, after.coding)["08"] == {0, 2}


def test_updates_add_up(made, labelme, contents):
    labelme("08", 4, 14)
    update(Update(made, labelme=made.parent / "corrected"))
    recipe = (made / "recipe.yaml").read_text()
    labelme("09", 4, 14)
    update(Update(made, labelme=made.parent / "corrected"))
    assert names(loaded(made).unlabeled) == ["10", "11"]
    assert (made / "recipe.yaml").read_text() == recipe
    before = contents(made)
    with pytest.raises(UserError, match="holds no new label"):
        update(Update(made, labelme=made.parent / "corrected"))
    labelme("08", 4, 15)
    with pytest.raises(UserError, match=r"08.json: differs from the label of .*08.png that an earlier update took"):
        update(Update(made, labelme=made.parent / "corrected"))
    assert contents(made) == before
    update(Update(made, labelme=made.parent / "corrected", overwrite=True))
    new = contents(made)
    assert {key for key in new if new[key] != before.get(key)} == {"added/08.png"}


def test_validation_and_labeled_images_stay_as_they_are(made, labelme, capsys):
    before = loaded(made)
    labelme(before.val[0].name, 1, 9)
    labelme(before.labeled[0].name, 1, 9)
    with pytest.raises(UserError, match="holds no new label"):
        update(Update(made, labelme=made.parent / "corrected"))
    labelme("11", 1, 9)
    update(Update(made, labelme=made.parent / "corrected"), Console(width=400))
    after = loaded(made)
    assert after.val == before.val
    assert names(after.labeled) == sorted([*names(before.labeled), "11"])
    says = capsys.readouterr().out
    assert "labels of validation images, not taken" in says
    assert "labels of images that are labeled already, not taken: 1" in says
    assert sorted(path.name for path in (made / "added").iterdir()) == ["11.png"]


def test_labels_of_test_images_are_not_those_of_training_images(tmp_path, photo, write, square, tried, capsys):
    for number in range(8):
        photo(f"photos/train/{number}.png", number)
        photo(f"photos/test/{number}.png", 20 + number)
        if number < 6:
            write(f"masks/train/{number}.png", square(5 + number))
    made = tmp_path / "out"
    init(Request(made, tmp_path / "photos"))
    write("new/6.png", square(9))
    with pytest.raises(UserError, match=r"6\.png: can be the mask of .*train/6\.png or .*test/6\.png; rename it"):
        update(Update(made, masks=tmp_path / "new"))
    content = {
        "images": [{"id": 1, "file_name": "test/7.png"}, {"id": 2, "file_name": "train/6.png"}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{"image_id": n, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]} for n in (1, 2)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    update(Update(made, coco=tmp_path / "coco.json"), Console(width=400))
    assert names(loaded(made).unlabeled) == ["train/7"]
    assert "labels of images in the folder for tests, not taken: 1" in capsys.readouterr().out


def test_masks_of_class_indices(made, write):
    label = np.full((32, 40), 255, np.uint8)
    label[:10], label[10:20], label[20:22] = 0, 1, 2
    write("new/08.png", label[:, ::-1].copy())
    write("new/09.png", np.where(label == 255, 0, label))
    with pytest.raises(UserError, match=r"08.png: its values may be class indices, as semiseg writes them, or those"):
        update(Update(made, masks=made.parent / "new"))  # 255 is ignored, or square
    (made.parent / "new/08.png").unlink()
    write("new/09_overlay.png", np.zeros((32, 40, 3), np.uint8))
    update(Update(made, masks=made.parent / "new"))
    after = {sample.name: sample for sample in loaded(made).labeled}
    assert np.array_equal(read_pair(after["09"], loaded(made).coding)[1], np.where(label == 255, 0, label))


def test_black_and_white_masks_are_no_class_indices(tmp_path, photo, write, square, tried):
    for number in range(8):
        photo(f"photos/{number}.png", number)
        if number < 6:
            write(f"masks/{number}.png", square(5 + number))
    made = tmp_path / "out"
    init(Request(made, tmp_path / "photos"))
    label = square(9, inside=255)
    for pixels in (label, np.stack([label] * 3, -1)):
        write("new/6.png", pixels)
        with pytest.raises(UserError, match=r"6\.png: holds 0 and 255 alone, .* e\.g\. 1 \(object\)"):
            update(Update(made, masks=tmp_path / "new"))
    image = Image.fromarray(label)
    image.putpalette([0, 0, 0] * 255 + [224, 224, 192])  # as semiseg writes pixels that do not count
    image.save(tmp_path / "new/6.png")
    update(Update(made, masks=tmp_path / "new"))
    assert "6" in names(loaded(made).labeled)


def test_ignored_pixels_stay_ignored(made, labelme):
    """255 is class 2 in the masks of this folder, and not counted in added ones."""
    path = labelme("08", 4, 14)
    content = json.loads(path.read_text())
    content["shapes"].append(content["shapes"][0] | {"label": "__ignore__", "points": [[0, 0], [9, 0], [9, 3], [0, 3]]})
    path.write_text(json.dumps(content))
    update(Update(made, labelme=path.parent))
    sample = next(sample for sample in loaded(made).labeled if sample.name == "08")
    label = read_pair(sample, loaded(made).coding)[1]
    assert label[0, :10].tolist() == [255] * 9 + [0]
    assert label[5, 5] == 2


def test_coco(made):
    images = [{"id": 1, "file_name": "08.png", "width": 40, "height": 32},
              {"id": 2, "file_name": "09.png", "width": 40, "height": 32}]  # fmt: skip
    objects = [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}]
    content = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "round"}]}
    file = made.parent / "coco.json"
    file.write_text(json.dumps(content))
    update(Update(made, coco=file))
    after = loaded(made)
    assert names(after.unlabeled) == ["09", "10", "11"]  # an image without objects is not labeled
    label = read_pair(next(one for one in after.labeled if one.name == "08"), after.coding)[1]
    assert (label == 1).sum() == 81


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_folders_of_annotations_take_labels_too(tmp_path, photo, labelme, tried, kind):
    """Such folders have no masks of their own; the order of their classes comes from the files."""
    for number in range(10):
        photo(f"photos/{number:02}.png", number)
    for number in range(6):
        labelme(f"{number:02}", 2 + number, 20 + number)
    source = tmp_path / "corrected"
    if kind == "coco":
        images = [{"id": n, "file_name": f"{n:02}.png", "width": 40, "height": 32} for n in range(6)]
        objects = [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": [[n, n, n + 9, n, n + 9, n + 9, n, n + 9]]}
            for n in range(6)
        ]
        source = tmp_path / "first.json"
        categories = [{"id": 1, "name": "square"}]
        source.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    init(Request(tmp_path / "out", tmp_path / "photos", **{kind: source}))
    before = loaded(tmp_path / "out")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/07.json").write_text(labelme("07", 1, 9).read_text())
    (tmp_path / "corrected/07.json").unlink()
    update(Update(tmp_path / "out", labelme=tmp_path / "more"))
    after = loaded(tmp_path / "out")
    assert after.val == before.val
    assert names(after.labeled) == sorted([*names(before.labeled), "07"])
    assert after.classes == before.classes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "give the corrected labels with one of"),
        ({"labelme": "corrected", "masks": "corrected"}, "give the corrected labels with one of"),
        ({"labelme": "nowhere"}, "--labelme .*nowhere: there is no such folder"),
        ({"coco": "nowhere"}, "--coco .*nowhere: there is no such file"),
        ({"labelme": "corrected", "out": "photos"}, "is no folder that semiseg init made"),
        ({"labelme": "photos"}, "holds no JSON file"),
        ({"masks": "corrected"}, "no mask has the name of an image"),
    ],
)
def test_wrong_updates_write_nothing(made, labelme, contents, change, says):
    labelme("08", 4, 14)
    before = contents(made.parent)
    with pytest.raises(UserError, match=says) as caught:
        update(Update(**{"out": made} | {key: made.parent / value for key, value in change.items()}))
    assert "\n" not in str(caught.value)
    assert contents(made.parent) == before


def test_wrong_annotations_write_nothing(made, labelme, contents):
    labelme("08", 4, 14)
    labelme("09", 4, 14, label="circle")
    before = contents(made)
    with pytest.raises(UserError, match="no class 'circle'"):
        update(Update(made, labelme=made.parent / "corrected"))
    labelme("09", 4, 14, imageHeight=33)
    with pytest.raises(UserError, match=r"says that .*09.png has 40x33 px"):
        update(Update(made, labelme=made.parent / "corrected"))
    assert contents(made) == before


def test_recipes_with_lists_are_refused(made, labelme):
    labelme("08", 4, 14)
    recipe = made / "recipe.yaml"
    (made / "mine.txt").write_text("\n".join(names(loaded(made).labeled)))
    recipe.write_text(recipe.read_text().replace("  val: ", "  labeled: mine.txt\n  val: "))
    with pytest.raises(UserError, match=r"data.labeled names a list, so new labels would not be used"):
        update(Update(made, labelme=made.parent / "corrected"))


def test_a_new_recipe_does_not_forget_labels(made, labelme):
    labelme("08", 4, 14)
    update(Update(made, labelme=made.parent / "corrected"))
    with pytest.raises(UserError, match="holds labels that --update took"):
        init(Request(made, made.parent / "photos", classes="background,round,square", overwrite=True))


def test_the_next_command_takes_a_new_run_directory(made, labelme, monkeypatch):
    monkeypatch.chdir(made.parent)
    for name in ("out", "out-2"):
        Path("runs", name).mkdir(parents=True)
    labelme("08", 4, 14)
    assert update(Update(Path("out"), labelme=Path("corrected"))) == "semiseg train out --out runs/out-3"


def test_a_mask_of_the_users_own_comes_first(made, labelme, square):
    """Somebody puts a mask of an added image into the folder of the masks: that one counts, and it is said."""
    labelme("08", 4, 14)
    update(Update(made, labelme=made.parent / "corrected"))
    Image.fromarray(square(3, inside=255)).save(made.parent / "masks/08.png")
    dataset = loaded(made)
    sample = next(sample for sample in dataset.labeled if sample.name == "08")
    assert not sample.indexed
    assert (read_pair(sample, dataset.coding)[1] == 2).sum() == 9
    assert any("added masks of images that have another mask" in str(one) for one in dataset.unused)
