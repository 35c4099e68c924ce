"""Errors name options and the user's files: no setting of a recipe, and no folder that is gone."""

import json
import re
from pathlib import Path

import pytest

import semiseg
from semiseg.errors import UserError
from semiseg.init import Request, init, words
from semiseg.init.words import said


@pytest.fixture
def photos(tmp_path: Path, photo) -> Path:
    for number in range(4):
        photo(f"photos/{number}.png", number)
    return tmp_path / "photos"


def refused(request: Request) -> str:
    with pytest.raises(UserError) as caught:
        init(request)
    text = str(caught.value)
    assert re.search(r"\bdata\.[a-z]|/\.out-", text) is None
    assert "\n" not in text
    return text


def test_annotations_that_fit_no_image(tmp_path, photos):
    (tmp_path / "none").mkdir()
    out, none = tmp_path / "out", tmp_path / "none"
    says = refused(Request(out, photos, labelme=none))
    assert says == f"--labelme {none}: holds no JSON file; name the folder of LabelMe's files"
    file = tmp_path / "a.json"
    shape = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    images, categories = [{"id": 1, "file_name": "z.png"}], [{"id": 1, "name": "cat"}]
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": [shape]}))
    assert refused(Request(out, none, coco=file)) == f"--images {none}: holds no image"
    says = refused(Request(out, photos, coco=file))
    assert says.endswith(f"is below {photos}; name the folder of these images with --images")
    says = refused(Request(out, photos, labelme=tmp_path))
    assert says.endswith("is it COCO? Then give it with --coco FILE in place of --labelme")


def test_joined_masks_have_the_names_of_the_users_folder(tmp_path, photos, write, square):
    for number in range(4):
        for of_class in ("cat", "dog"):
            write(f"masks/{of_class}/{number}.png", square(6)[: 20 if number == 2 else 32])
    says = refused(Request(tmp_path / "out", photos, tmp_path / "masks"))
    assert says.startswith(f"--masks {tmp_path}/masks: the masks of 2: 40x20 px, but {photos}/2.png has 40x32")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "data.background: WORK/classes.txt has no class 'background' for pixels in no object; set data.background "
            "to one of its names, add a line to it, or set data.uncovered=ignored",
            "--classes: has no class 'background', which pixels in no object are; add it",
        ),
        (
            "a.json: WORK/classes.txt has no class 'car'; add it there, or leave data.classes out",
            "a.json: --classes has no class 'car'; add it there, or leave --classes out",
        ),
        ("WORK/classes.txt: has 1 class, 'a'", "--classes: has 1 class, 'a'"),
        ("data.labeled: every labeled mask shows a", "--masks: every labeled mask shows a"),
        ("data.val: every validation mask is 255", "--val: every validation mask is 255"),
        (
            "data.values: 1 of 9 masks, e.g. a.png, hold 7, neither a class (0 to 1) nor 255 (ignored); the masks "
            "hold 0, 7; say which class each is: data.values='{7: CLASS}'",
            "--masks: 1 of 9 masks, e.g. a.png, hold 7, neither a class (0 to 1) nor 255 (ignored); correct these "
            "masks, or name the classes of all values with --classes",
        ),
        (
            "data.values: the masks hold only a (0) and 255; if 255 is a class, e.g. b, set data.values='{255: 1}'",
            "--masks: the masks hold only a (0) and 255; if 255 is a class, e.g. b, store it as 1, or name as many "
            "classes as the masks show with --classes",
        ),
    ],
)
def test_words(tmp_path, message, expected):
    work = tmp_path / ".out-123"
    request = Request(tmp_path / "out", tmp_path / "photos", tmp_path / "masks", classes="a,b")
    assert said(message.replace("WORK", str(work)), request, work) == expected


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in words._REMEDIES])
def test_an_error_of_semiseg_says_what_a_remedy_replaces(pattern):
    """Otherwise an error whose text was changed would name a setting again."""
    sources = [path.read_text() for path in Path(semiseg.__file__).parent.rglob("*.py") if path.name != "words.py"]
    texts = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))  # texts go on in the next line
    parts = re.split(
        r"^\^data\\\.\w+: |\(.*?\)(?!\\)|\.[*+]|[$^]|\\[{}]|'\w*'", pattern
    )  # at what differs from case to case
    literal = max(parts, key=len).replace("\\", "").strip(" )")
    assert len(literal) > 8
    assert literal in texts


def test_the_class_file_of_the_user_is_named(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    request = Request(tmp_path / "out", tmp_path / "photos", coco=tmp_path, classes=str(tmp_path / "names.txt"))
    work = tmp_path / ".out-123"
    assert said(f"{work}/classes.txt has no class 'c'", request, work) == f"{tmp_path}/names.txt has no class 'c'"
