"""Annotation files, from the check to predictions: the same pixels give the same training as masks do."""

import base64
import io
import json
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from semiseg.runs import Run
from semiseg.scenes import CLASSES


def masks(scenes: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((scenes / "masks").rglob("*.png")):
        with Image.open(path) as image:
            found[path.relative_to(scenes / "masks").with_suffix("").as_posix()] = np.asarray(image)
    return found


def runs(inside: np.ndarray) -> list[int]:
    """The lengths of runs down the columns; the first one is outside."""
    flat = inside.T.ravel().tolist()
    return ([0] if flat[0] else []) + [len(list(same)) for _, same in groupby(flat)]


def write_coco(scenes: Path, folder: Path) -> dict[str, Any]:
    """Writes one file for the labeled images and one for validation, whose categories have other ids."""
    settings = {}
    for setting, part, shift in (("annotations", "train", 1), ("val_annotations", "val", 5)):
        images, things = [], []
        for name, mask in masks(scenes).items():
            if name.startswith(part):
                size = list(mask.shape)
                images.append({"id": name, "file_name": f"{name}.png", "height": size[0], "width": size[1]})
                for index in np.unique(mask[mask > 0]).tolist():
                    rle = {"size": size, "counts": runs(mask == index)}
                    things.append({"image_id": name, "category_id": index + shift, "segmentation": rle, "iscrowd": 0})
        categories = [{"id": index + shift, "name": name} for index, name in enumerate(CLASSES)]
        path = folder / f"{part}.json"
        path.write_text(json.dumps({"images": images, "categories": categories, "annotations": things}))
        settings[setting] = str(path) if part == "val" else [str(path)]
    return {"layout": "coco", "val": None, **settings}


def write_labelme(scenes: Path, folder: Path) -> dict[str, Any]:
    for name, mask in masks(scenes).items():
        shapes = []
        for index in np.unique(mask[mask > 0]).tolist():
            rows, columns = np.nonzero(mask == index)
            top, left, bottom, right = (int(edge) for edge in (rows.min(), columns.min(), rows.max(), columns.max()))
            buffer = io.BytesIO()
            Image.fromarray((mask == index)[top : bottom + 1, left : right + 1]).save(buffer, "PNG")
            png = base64.b64encode(buffer.getvalue()).decode()
            corners = [[left, top], [right, bottom]]
            shapes.append({"label": CLASSES[index], "points": corners, "shape_type": "mask", "mask": png})
        path = folder / "labels" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"shapes": shapes, "imagePath": "", "imageHeight": 32, "imageWidth": 32}))
    return {"layout": "labelme", "annotations": str(folder / "labels")}


@pytest.mark.parametrize("write", [write_coco, write_labelme])
def test_training_equals_that_with_masks(semiseg, here, scenes, recipe, write: Callable[..., dict[str, Any]]):
    layout = write(scenes, here) | {"classes": "classes.txt", "empty": "labeled"}
    for name, data in (("masks", {}), ("annotations", layout)):
        (here / f"{name}.yaml").write_text(yaml.safe_dump(recipe(data=data, engine={"steps": 2})))
        done = semiseg(f"train {name}.yaml --out {name}")
        assert (done.code, done.err) == (0, "")
    first, second = Run(Path("masks")), Run(Path("annotations"))
    assert second.metrics("val") == first.metrics("val")
    weights = [sorted(run.checkpoints.rglob("*.safetensors")) for run in (first, second)]
    assert [one.read_bytes() for one in weights[1]] == [one.read_bytes() for one in weights[0]]
    assert weights[0]
    assert second.environment()["labels"] == first.environment()["labels"]  # the partition's hash, too
    checked, trained = semiseg("check annotations.yaml"), semiseg("check masks.yaml")
    assert checked.code == 0
    shares = re.compile(r"│ \d+ +│ +[\d.]+ % │.*")
    assert shares.findall(checked.out) == shares.findall(trained.out)
    assert shares.findall(checked.out)
    assert semiseg("evaluate annotations").out == semiseg("evaluate masks").out.replace("masks", "annotations")
    assert semiseg("predict annotations photo.png --out out").code == 2
    assert semiseg(f"predict annotations {scenes}/images/val --out out").code == 0
    for name in ("masks", "annotations"):
        assert semiseg(f"partitions {name}.yaml --size 4 --out splits-{name}").code == 0
    one, other = (Path(f"splits-{name}/labeled_4.txt").read_text() for name in ("masks", "annotations"))
    assert one == other
    assert semiseg("train annotations.yaml --out annotations").out.count("is complete") == 1


def test_files_are_named_on_the_command_line(semiseg, here, scenes):
    write_coco(scenes, here)
    given = (
        f"check folder --set data.layout=coco --set data.root={scenes} --set data.crop=32 --set data.background=ground"
    )
    done = semiseg(f"{given} --set data.annotations={here}/train.json --set data.val_annotations={here}/val.json")
    assert (done.code, done.err) == (0, "")
    both = semiseg(f"{given} --set data.annotations='[{here}/train.json, {here}/val.json]'")
    assert (both.code, both.err) == (0, "")
    missing = semiseg(given)
    assert (missing.code, missing.out) == (2, "")
    assert "data.annotations: is missing" in missing.err


def test_a_wrong_annotation_stops_a_training_before_it_starts(semiseg, here, scenes, recipe):
    settings = write_labelme(scenes, here)
    path = next((here / "labels").rglob("*.json"))
    path.write_text('{"shapes": [{"label": "disc", "points": [[1, 2]]}]}')
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe(data=settings)))
    done = semiseg("train recipe.yaml --out run")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert f"{path.name}: shape 1 (disc): a polygon has 1 points" in done.err
    assert not Path("run").exists()


@pytest.mark.parametrize("layout", ["coco", "folder"])
def test_the_command_that_partitions_print_trains(semiseg, here, scenes, recipe, layout):
    data = {"labeled": None, "unlabeled": None, "val": None}
    data |= write_coco(scenes, here) | {"empty": "labeled"} if layout == "coco" else {"val_fraction": 0.3}
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe(data=data, engine={"steps": 1})))
    given = "" if layout == "coco" else "--set data.val_fraction=0.4"
    done = semiseg(f"partitions recipe.yaml --size 4 --out splits {given}")
    assert (done.code, done.err) == (0, "")
    command = re.search(r"semiseg (train .*)", done.out)
    assert command
    done = semiseg(command[1])
    assert (done.code, done.err) == (0, "")
    assert "4 labeled" in done.out
