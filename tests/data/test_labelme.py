"""LabelMe's JSON as people have it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from semiseg.data import load
from semiseg.data.check import check
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.layouts import labelme
from semiseg.data.layouts.labelme import Config
from semiseg.data.masks import read_mask
from semiseg.errors import UserError
from semiseg.types import IGNORE

HEIGHT, WIDTH = 4, 6
Values = dict[str, Any]


def shape(label: Any, points: Any, kind: str | None = "polygon", **more: Any) -> Values:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}} | more


LEFT = [[0, 0], [2, 0], [2, 4], [0, 4]]
TOP_RIGHT = [[4, 0], [6, 0], [6, 1], [4, 1]]


def content(name: str, *shapes: Any, **more: Any) -> Values:
    return {
        "version": "6.3.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{name}.png",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    } | more


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images 0 to 5 of 6x4 px in tmp_path/photos: 0 to 2 have a cat, 2 a dog, too; 3 has no shape."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    for number in range(6):
        picture(root / f"images/{number}.png", number)
    cat, dog = shape("cat", LEFT), shape("dog", TOP_RIGHT)
    for number, shapes in enumerate(([cat], [cat], [cat, dog], [])):
        write(root / f"images/{number}.json", content(str(number), *shapes))
    return root


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


def annotated(dataset: Dataset) -> dict[str, Path]:
    return {one.name: one.mask for one in dataset.labeled + dataset.val}


def ids(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in samples]


def rows(dataset: Dataset, name: str) -> list[str]:
    """The mask of an image as text: a digit is a class, # is ignored."""
    mask = read_mask(annotated(dataset)[name], dataset.coding)
    return ["".join("#" if value == IGNORE else str(value) for value in row) for row in mask.tolist()]


def refused(config: Config, *says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(config)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def png(*lines: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[char == "#" for char in line] for line in lines])).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_files_beside_the_images(root):
    dataset = load(Config(root=root))
    assert dataset.classes.names == ("background", "cat", "dog")  # sorted
    assert (ids(dataset.labeled), ids(dataset.val)) == (["1", "2", "3"], ["0"])
    assert ids(dataset.unlabeled) == ["4", "5"]
    assert rows(dataset, "0") == ["110000"] * 4
    assert rows(dataset, "2") == ["110022", "110000", "110000", "110000"]
    assert rows(dataset, "3") == ["000000"] * 4  # a file without shapes says that there is no object
    assert dataset.notes == ()
    assert [one for one in dataset.unused if one.matters] == []


def test_a_file_without_shapes_may_mean_nothing(root):
    dataset = load(Config(root=root, empty="unlabeled"))
    assert ids(dataset.unlabeled) == ["3", "4", "5"]
    assert "1, e.g." in dataset.notes[0]


def test_files_in_a_folder_of_their_own(root):
    for number in range(4):
        (root / "labels/day").mkdir(parents=True, exist_ok=True)
        (root / "images/day").mkdir(exist_ok=True)
        (root / f"images/{number}.json").rename(root / f"labels/day/{number}.json")
        (root / f"images/{number}.png").rename(root / f"images/day/{number}.png")
    refused(Config(root=root), "data.annotations", "holds no JSON file")
    dataset = load(Config(root=root, annotations="labels"))
    assert sorted(annotated(dataset)) == ["day/0", "day/1", "day/2", "day/3"]
    refused(Config(root=root, annotations="gone"), "data.annotations", "no folder")
    refused(Config(root=root, images="gone"), "data.images", "no folder")


@pytest.mark.parametrize("path", ["..\\images\\0.png", "../images/0.png", "D:\\photos\\0.png", "0.jpg"])
def test_a_file_of_another_name_belongs_to_the_image_that_it_names(root, path):
    (root / "images/0.json").unlink()
    write(root / "labels/first.json", content("", shape("cat", LEFT), imagePath=path))
    write(root / "labels/5.json", content("5", shape("cat", LEFT)))
    assert sorted(annotated(load(Config(root=root, annotations="labels")))) == ["0", "5"]


def test_a_path_to_an_image_may_lead_through_other_folders(root):
    (root / "images/0.json").unlink()
    write(root / "labels/first.json", content("", shape("dog", LEFT), imagePath="../images/0.png"))
    dataset = load(Config(root=root, images="."))
    assert "images/0" in annotated(dataset)
    assert rows(dataset, "images/0") == ["220000"] * 4


def test_every_kind_of_shape(root):
    empty = "." * WIDTH
    kinds = {
        "rectangle": (shape("a", [[3, 2], [1, 0]], "rectangle"), [".##...", ".##...", empty, empty]),
        "corners": (shape("a", [[1, 0], [3, 0], [3, 2], [1, 2]], "rectangle"), [".##...", ".##...", empty, empty]),
        "turned": (shape("a", [[0, 0], [4, 0], [4, 1], [0, 1]], "oriented_rectangle"), ["####..", empty, empty, empty]),
        "circle": (shape("a", [[2.5, 1.5], [2.5, 2.5]], "circle"), ["..#...", ".###..", "..#...", empty]),
        "line": (shape("a", [[0, 1.5], [6, 1.5]], "line"), [empty, "######", empty, empty]),
        "strip": (shape("a", [[0.5, 0.5], [2.5, 0.5], [2.5, 2.5]], "linestrip"), ["###...", "..#...", "..#...", empty]),
        "point": (shape("a", [[5.5, 3.5]], "point"), [empty, empty, empty, ".....#"]),
        "points": (shape("a", [[0.5, 0.5], [5.5, 3.5]], "points"), ["#.....", empty, empty, ".....#"]),
        "mask": (shape("a", [[1.2, 1.9], [3, 2]], "mask", mask=png("#.#", "###")), [empty, ".#.#..", ".###..", empty]),
        "old": (shape("a", LEFT, None), ["##...."] * 4),
    }
    for number in range(4):
        (root / f"images/{number}.json").unlink()
    for name, (one, _) in kinds.items():
        picture(root / f"images/{name}.png", 0)
        write(root / f"images/{name}.json", content(name, one))
    dataset = load(Config(root=root, line_width=0.9))
    for name, (_, wanted) in kinds.items():
        assert rows(dataset, name) == [row.replace(".", "0").replace("#", "1") for row in wanted], name
    (note,) = dataset.notes
    assert "0.9 px wide (data.line_width): 4 (" in note
    assert "1 linestrip" in note


def test_lines_are_ten_px_wide_unless_told(root):
    write(root / "images/0.json", content("0", shape("a", [[0.5, -3], [0.5, 9]], "line")))
    assert rows(load(Config(root=root)), "0") == ["111111"] * 4
    write(root / "images/0.json", content("0", shape("a", [[0.5, -5], [0.5, -4]], "line")))
    assert rows(load(Config(root=root)), "0")[0] == "111000"
    with pytest.raises(ValidationError):
        Config(root=root, line_width=0)


@pytest.mark.parametrize(
    ("corners", "wanted"),
    [
        ([[-1, -1], [1, 0]], ["11....", "......", "......", "......"]),
        ([[4, 3], [6, 4]], ["......", "......", "......", "....1."]),
        ([[9, 9], [11, 10]], ["......"] * 4),
        ([[-9, -9], [-7, -8]], ["......"] * 4),
    ],
)
def test_a_mask_at_the_edge_is_cut_off(root, corners, wanted):
    write(root / "images/0.json", content("0", shape("cat", corners, "mask", mask=png("#.#", "###"))))
    assert rows(load(Config(root=root)), "0") == [row.replace(".", "0") for row in wanted]


def test_a_later_shape_lies_above_and_ignored_ones_do_not_count(root):
    shapes = (
        shape("dog", [[0, 0], [3, 4]], "rectangle"),
        shape("cat", LEFT),
        shape("__ignore__", [[0, 0], [1, 1]], "rectangle"),
    )
    write(root / "images/0.json", content("0", *shapes))
    dataset = load(Config(root=root, uncovered="ignored"))
    assert dataset.classes.names == ("cat", "dog")
    assert rows(dataset, "0") == ["#01###", "001###", "001###", "001###"]
    (note,) = [
        note for note in check(dataset, Config(root=root, uncovered="ignored", crop=4)).notes if "overlap" in note
    ]
    assert note.endswith("images/0.png (8 px); the one that stands later in the file lies above.")


def test_labels_of_the_class_file(root):
    (root / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    dataset = load(Config(root=root, classes="labels.txt"))
    assert dataset.classes.names == ("_background_", "dog", "cat")
    assert rows(dataset, "2")[0] == "220011"
    (root / "labels.txt").write_text("background\ncat\n")
    refused(Config(root=root, classes="labels.txt"), "2.json", "shape 2 (dog)", "labels.txt", "'dog' (1 objects")
    (root / "labels.txt").write_text("background\ncat\nDog\n")
    refused(Config(root=root, classes="labels.txt"), "did you mean 'Dog'?")


def test_sizes(root):
    write(root / "images/0.json", content("0", shape("cat", LEFT), imageHeight=8, imageWidth=12))
    refused(Config(root=root), "0.json", "12x8 px, but it has 6x4")
    write(root / "images/0.json", content("0", shape("cat", LEFT), imageHeight=None, imageWidth=None))
    assert rows(load(Config(root=root)), "0") == ["110000"] * 4
    write(root / "images/0.json", content("0", shape("cat", LEFT), imageHeight="4"))
    refused(Config(root=root), "0.json", "width and height are 6 and '4'")


def test_a_changed_file_changes_its_mask_only_also_if_it_holds_the_photograph(root):
    large = {"imageData": "x" * 100_000}
    write(root / "images/0.json", content("0", shape("cat", LEFT), **large))
    before = load(Config(root=root))
    assert rows(before, "0")[0] == "110000"
    write(root / "images/0.json", content("0", shape("cat", [[0, 0], [3, 4]], "rectangle"), **large))
    after = load(Config(root=root))
    assert rows(after, "0")[0] == "111000"
    old, new = annotated(before), annotated(after)
    assert [name for name in old if old[name] != new[name]] == ["0"]


def test_photographs_in_files_are_not_parsed_twice(root, monkeypatch):
    for number in range(4):
        write(root / f"images/{number}.json", content(str(number), shape("cat", LEFT), imageData="x" * 100_000))
    before = load(Config(root=root))
    monkeypatch.setattr(labelme, "read_json", lambda *_: pytest.fail("it was remembered"))
    assert load(Config(root=root)) == before


# files that are wrong


def test_files_that_belong_to_no_image(root):
    write(root / "images/gone.json", content("gone", shape("bird", LEFT)))
    write(root / "images/settings.json", {"a": 1})
    dataset = load(Config(root=root))
    assert "bird" not in dataset.classes.names
    assert {one.what: [path.name for path in one.files] for one in dataset.unused if one.matters} == {
        "JSON files that are not LabelMe's, not used": ["settings.json"],
        "annotations that belong to no image": ["gone.json"],
    }
    for number in range(4):
        (root / f"images/{number}.json").unlink()
    refused(Config(root=root), "none of its 2 JSON files", "gone.json", "belongs to no image", "data.images")
    (root / "images/gone.json").unlink()
    refused(Config(root=root), "settings.json", "no list of shapes")
    write(root / "images/settings.json", {"images": [], "annotations": [], "categories": []})
    refused(Config(root=root), "settings.json", "data.layout=coco")


def test_a_file_beside_its_image_means_no_image_of_another_folder(root):
    picture(root / "images/day/9.png", 9)
    write(root / "images/9.json", content("9", shape("cat", LEFT)))
    dataset = load(Config(root=root))
    assert "day/9" in ids(dataset.unlabeled)
    assert dataset.unused[0].files[0].name == "9.json"


@pytest.mark.parametrize("path", ["9.png", "../../images/day/9.png"])
def test_an_image_that_is_missing_is_not_the_one_of_its_name_in_another_folder(root, path):
    for name in ("day/8", "night/8", "night/9"):
        picture(root / f"images/{name}.png", 9)
    (root / "labels").mkdir()
    for number in range(4):
        (root / f"images/{number}.json").rename(root / f"labels/{number}.json")
    write(root / "labels/day/9.json", content("9", shape("cat", LEFT), imagePath=path))
    dataset = load(Config(root=root, annotations="labels"))
    assert {"night/8", "night/9"} <= {*ids(dataset.unlabeled)}
    assert [path.name for one in dataset.unused if one.matters for path in one.files] == ["9.json"]


def test_files_that_contradict_each_other(root):
    write(root / "images/0.json", content("1", shape("cat", LEFT)))
    refused(Config(root=root), "0.json", "0.png", "imagePath is '1.png'", "correct one")
    write(root / "images/0.json", content("0", shape("cat", LEFT)))
    write(root / "images/more.json", content("0", shape("cat", LEFT)))
    refused(Config(root=root), "more.json", "0.png", "0.json does", "remove one")
    (root / "images/more.json").unlink()
    write(root / "images/4.json", {"images": []})
    refused(Config(root=root), "4.json", "has the name of an image", "data.layout=coco")
    write(root / "images/4.json", [])
    refused(Config(root=root), "4.json", "no list of shapes")
    write(root / "images/4.json", '{"shapes": [')
    refused(Config(root=root), "4.json", "cut off")


def test_an_image_that_can_be_two(root):
    for name in ("day", "night"):
        picture(root / f"images/{name}/x.png", 9)
    write(root / "labels/1.json", content("1", shape("cat", LEFT)))
    write(root / "labels/other.json", content("x", shape("cat", LEFT)))
    refused(Config(root=root, annotations="labels"), "other.json", "day/x.png", "night/x.png")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"label": "cat"}, ("no pairs of numbers",)),
        (shape(None, LEFT), ("shape 2", "label None")),
        (shape("", LEFT), ("shape 2", "label ''")),
        (shape("a\nb", LEFT), ("shape 2",)),
        (shape(["a"], LEFT), ("shape 2",)),
        ("cat", ("shape 2 is no shape",)),
        (shape("cat", LEFT[:2]), ("shape 2 (cat)", "a polygon has 2 points")),
        (shape("cat", []), ("shape 2 (cat)",)),
        (shape("cat", [[1, "a"], [2, 2], [3, 3]]), ("shape 2 (cat)", "no pairs")),
        (shape("cat", [[1, 1e9], [2, 2], [3, 3]]), ("shape 2 (cat)", "no pixels")),
        (shape("cat", LEFT[:1], "circle"), ("a circle has 1 points",)),
        (shape("cat", LEFT[:3], "rectangle"), ("a rectangle has 3 points",)),
        (shape("cat", LEFT[:1], "linestrip"), ("a linestrip has 1 points",)),
        (shape("cat", LEFT, "point"), ("a point has 4 points",)),
        (shape("cat", LEFT, "cuboid"), ("'cuboid' is not known", "polygon")),
        (shape("cat", [[0, 0], [2, 1]], "mask"), ("a mask has no PNG",)),
        (shape("cat", [[0, 0], [2, 1]], "mask", mask="abc"), ("no PNG in base64",)),
        (shape("cat", [[0, 0], [2, 1]], "mask", mask=png("#.#", "###")[:60]), ("no PNG in base64",)),
        (shape("cat", [[0, 0], [2, 2]], "mask", mask=png("#.#", "###")), ("3x2 px", "3x3")),
        (shape("cat", [[2, 1], [0, 0]], "mask", mask=png("#.#", "###")), ("3x2 px",)),
    ],
)
def test_shapes_that_are_wrong(root, bad, says):
    write(root / "images/2.json", content("2", shape("cat", LEFT), bad))
    refused(Config(root=root), "2.json", *says)


def test_classes_that_are_too_few_or_too_many(root):
    for number in range(4):
        write(root / f"images/{number}.json", content(str(number)))
    refused(Config(root=root), "objects of background alone", "annotate objects")
    refused(Config(root=root, empty="unlabeled"), "objects of background alone")
    shapes = [shape(f"c{number}", LEFT) for number in range(254)]
    write(root / "images/0.json", content("0", *shapes))
    refused(Config(root=root), "255 classes", "data.classes")
