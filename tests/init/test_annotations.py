"""`semiseg init` of COCO and LabelMe files."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from semiseg.data import load
from semiseg.errors import UserError
from semiseg.init import Request, init
from semiseg.recipe.load import load_recipe


def box(left: int, top: int, side: int) -> list[list[int]]:
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


@pytest.fixture
def data(tmp_path: Path, photo) -> Path:
    """Ten photographs; in six a road, with a car where the number is even: in coco.json and in LabelMe files."""
    things: list[dict[str, Any]] = []
    for number in range(10):
        photo(f"photos/{number}.png", number)
        if number < 6:
            shapes = [("road", box(2, 2, 12 + number))] + [("car", box(20, 20, 8))] * (number % 2 == 0)
            labelme(tmp_path, number, *shapes)
            things += [
                {
                    "image_id": number,
                    "category_id": ("car", "road").index(name) + 1,
                    "segmentation": [[value for point in corners for value in point]],
                }
                for name, corners in shapes
            ]
    coco(tmp_path, things)
    return tmp_path


def labelme(root: Path, number: int, *shapes: tuple[str, list[list[int]]]) -> None:
    """Roads are rectangles, others polygons."""
    (root / "labelme").mkdir(exist_ok=True)
    made = [
        {"label": name, "points": corners[::2], "shape_type": "rectangle"}
        if name == "road"
        else {"label": name, "points": corners, "shape_type": "polygon"}
        for name, corners in shapes
    ]
    content = {"shapes": made, "imagePath": f"{number}.png", "imageHeight": 32, "imageWidth": 40}
    (root / f"labelme/{number}.json").write_text(json.dumps(content))


def coco(root: Path, things: list[dict[str, Any]], *more: str) -> None:
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 32} for n in range(6)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("car", "road", *more), 1)],
        "annotations": [one | {"id": n} for n, one in enumerate(things, 1)],
    }
    (root / "coco.json").write_text(json.dumps(content))


def made(data: Path, capsys, **values: Any) -> str:
    """Makes the folder `out`, and returns what was said."""
    init(Request(data / "out", data / "photos", overwrite=True, **values), console=Console(width=200))
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_the_classes_are_written_and_shown_with_their_colors(data, tried, kind, capsys):
    said = made(data, capsys, **{kind: data / ("coco.json" if kind == "coco" else "labelme")})
    program = {"coco": "COCO; objects in 6 images: 9 polygons, 0 RLE, 0 crowds",
               "labelme": "LabelMe; objects in 6 images: 6 rectangles, 3 polygons"}[kind]  # fmt: skip
    assert f"annotations: {program}; pixels in no object are background" in said
    assert "│ 1 car        │ #e6194b │" in said
    assert (data / "out/classes.txt").read_text() == "background #000000\ncar #e6194b\nroad #3cc84b\n"
    recipe = load_recipe(data / "out").data
    assert recipe.classes == Path("classes.txt")
    assert load(recipe).classes.names == ("background", "car", "road")


def test_runs_and_crowds_are_counted(data, tried, capsys):
    runs = {"size": [32, 40], "counts": [600, 680]}
    things = [{"image_id": n, "category_id": 2, "segmentation": [[1, 1, 9, 1, 9, 9]]} for n in range(3)]
    things += [{"image_id": 3 + n, "category_id": 1, "segmentation": runs, "iscrowd": int(n > 0)} for n in range(3)]
    coco(data, things)
    said = made(data, capsys, coco=data / "coco.json")
    assert "annotations: COCO; objects in 6 images: 3 polygons, 1 RLE, 2 crowds; pixels" in said


def test_a_label_that_appears_later_does_not_renumber_the_others(data, tried, capsys):
    made(data, capsys, labelme=data / "labelme")
    before = load(load_recipe(data / "out").data).classes
    labelme(data, 7, ("bus", box(2, 2, 9)))
    with pytest.raises(UserError, match=r"out/classes\.txt has no class 'bus'"):
        load(load_recipe(data / "out").data)
    with (data / "out/classes.txt").open("a") as file:
        file.write("bus\n")
    after = load(load_recipe(data / "out").data).classes
    assert after.names == (*before.names, "bus")
    assert after.colors[:3] == before.colors


def test_given_classes(data, tried, capsys):
    source = {"labelme": data / "labelme"}
    made(data, capsys, **source, classes="road,car")
    assert (data / "out/classes.txt").read_text().split()[::2] == ["background", "road", "car"]
    table = data / "table.csv"
    table.write_text("car,0,0,255\nroad,9,9,9\nbackground,0,0,0\n")
    made(data, capsys, **source, classes=str(table))
    assert (data / "out/classes.txt").read_text() == "car #0000ff\nroad #090909\nbackground #000000\n"
    with pytest.raises(UserError, match=r"--classes: .*labelme has objects called car, and the classes are backgr"):
        made(data, capsys, **source, classes="road,bus")
    with pytest.raises(UserError, match=r"--classes: write two or more names, each once"):
        made(data, capsys, **source, classes="road,car,car")


def test_names_that_no_list_can_hold_are_left_in_the_annotations(data, tried, capsys):
    labelme(data, 5, ("# other", box(2, 2, 9)))
    said = made(data, capsys, labelme=data / "labelme")
    assert "note: a list of classes cannot hold these names; the classes are those of the annotations" in said
    assert not (data / "out/classes.txt").exists()
    assert load(load_recipe(data / "out").data).classes.names == ("background", "# other", "car", "road")
