"""The outputs of one image: where each lies, how it is written, and how its mark is read.

A mark says that a prediction wrote the file, and of what: it is a digest of the model, the options and the image.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor

from semiseg.data.read import resize_mask
from semiseg.engine.pictures import background, index_image, overlay
from semiseg.engine.predict_files import geo
from semiseg.engine.predict_files.inputs import Item
from semiseg.engine.predict_files.polygons import Region, regions
from semiseg.engine.predict_files.raster import Picture, fitted
from semiseg.files import is_unchanged, mark_of, replacing, save_bytes, save_image
from semiseg.types import ClassTable

PARTS = ".parts"  # folder below the output folder with what summaries need of each image
OVERLAY_SIDE = 4096  # px; overlays of images in windows are at most as large
_MARK = "semiseg"


@dataclass(frozen=True)
class Predicted:
    """The prediction of one image.

    Attributes:
        item: what was predicted.
        photo: the image for its overlay, maybe smaller; None: no overlay is written.
        label: the class index of each pixel.
        probability: the probability of each class at each pixel; None: it is not written.
        classes: the meaning of the class indices.
        tracing: smallest region (pixels) and tolerance (px) of polygons.
        digests: what tells this predictor from others, by the kind of a part.
    """

    item: Item
    photo: UInt8[Tensor, "3 H W"] | None
    label: UInt8[np.ndarray, "h w"]
    probability: Float16[np.ndarray, "c h w"] | None
    classes: ClassTable
    tracing: tuple[int, float]
    digests: dict[str, str]


@dataclass(frozen=True)
class Output:
    """A kind of output.

    Attributes:
        path: returns the file of an item, given the output folder.
        write: writes a prediction into that file, with a mark.
        mark: reads the mark of a file; None: a prediction did not write it.
        is_unchanged: returns whether a file with a mark is as the prediction wrote it.
    """

    path: Callable[[Item, Path], Path]
    write: Callable[[Predicted, Path, str], None]
    mark: Callable[[Path], str | None]
    is_unchanged: Callable[[Path], bool] = lambda path: True


def photo_of(picture: Picture) -> UInt8[Tensor, "3 h w"]:
    """Reads an image for its overlay; one that is not in memory at most with the long side OVERLAY_SIDE."""
    size = fitted(picture, OVERLAY_SIDE)
    return picture.window(0, 0, *size) if size == picture.size else picture.resized(*size)


def _ending(end: str) -> Callable[[Item, Path], Path]:
    return lambda item, out: (target := out / item.below).with_name(target.name + end)


def _part(kind: str) -> Callable[[Item, Path], Path]:
    return lambda item, out: (target := out / PARTS / item.below).with_name(f"{target.name}.{kind}.json")


def overlay_path(item: Item, out: Path) -> Path:
    """Returns the file of an item's overlay, given the output folder."""
    return OUTPUTS["overlays"].path(item, out)


def _mask_path(item: Item, out: Path) -> Path:
    return _ending(".tif" if item.frame is None and geo.keeps(item.file) else ".png")(item, out)


def _write_mask(found: Predicted, path: Path, mark: str) -> None:
    if path.suffix == ".tif":
        geo.save_mask(found.label, found.classes, found.item.file, path, mark)
    else:
        save_image(index_image(torch.from_numpy(found.label), found.classes), path, mark)


def _mask_mark(path: Path) -> str | None:
    return geo.mark_of(path) if path.suffix == ".tif" else mark_of(path)


def _mask_is_unchanged(path: Path) -> bool:
    return geo.is_unchanged(path) if path.suffix == ".tif" else is_unchanged(path)


def _write_overlay(found: Predicted, path: Path, mark: str) -> None:
    """Draws the overlay; that of an image that is not in memory is reduced."""
    assert found.photo is not None
    label = torch.from_numpy(found.label)
    size = found.photo.shape[1], found.photo.shape[2]
    small = label if size == label.shape else resize_mask(label, size)
    save_image(overlay(found.photo, small, found.classes), path, mark, fast=True)


def _write_probabilities(found: Predicted, path: Path, mark: str) -> None:
    assert found.probability is not None
    with replacing(path) as aside, aside.open("wb") as file:
        names = np.array(found.classes.names)
        np.savez_compressed(file, probabilities=found.probability, classes=names, semiseg=np.array(mark))


def _probabilities_mark(path: Path) -> str | None:
    try:
        with np.load(path, allow_pickle=False) as content:
            return str(content[_MARK])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _write_areas(found: Predicted, path: Path, mark: str) -> None:
    pixels = pixels_of_classes(found.label, len(found.classes)).tolist()
    save_json({"predictor": found.digests["areas"], "image": found.item.name, "pixels": pixels}, path, mark)


def _write_coco(found: Predicted, path: Path, mark: str) -> None:
    ids = category_ids(found.classes)
    annotations = []
    for index, region in traced(found):
        line = region.outline()
        (left, top), (right, bottom) = line.min(0).tolist(), line.max(0).tolist()
        annotations.append(
            {
                "category_id": ids[index],
                "segmentation": [[_short(value) for value in line.ravel().tolist()]],
                "bbox": [_short(value) for value in (left, top, right - left, bottom - top)],
                "area": region.pixels,
                "iscrowd": 0,
            }
        )
    height, width = found.label.shape
    image = {"file_name": found.item.name, "width": width, "height": height}
    save_json({"predictor": found.digests["coco"], "image": image, "annotations": annotations}, path, mark)


def _write_labelme(found: Predicted, path: Path, mark: str) -> None:
    shapes = [
        {
            "label": found.classes.names[index],
            "points": region.outline().tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for index, region in traced(found)
    ]
    height, width = found.label.shape
    file = found.item.file.absolute()
    try:
        image = os.path.relpath(file, path.parent.absolute())
    except ValueError:  # on another drive
        image = str(file)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": Path(image).as_posix()}
    save_json(content | {"imageData": None, "imageHeight": height, "imageWidth": width}, path, mark)


def save_json(content: dict[str, Any], path: Path, mark: str) -> None:
    """Writes JSON with a mark and a digest of the content: a tool that changes the file may keep the mark."""
    marked = content | {_MARK: f"{mark} {_digest(content)}"}
    save_bytes(json.dumps(marked, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogateescape"), path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads what `save_json` wrote; None if the file was not written by it, or was changed since."""
    try:
        content = json.loads(path.read_bytes().decode(errors="surrogateescape"))
        mark, digest = content.pop(_MARK).split()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content | {_MARK: mark} if digest == _digest(content) else None


def _json_mark(path: Path) -> str | None:
    content = read_json(path)
    return None if content is None else str(content[_MARK])


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _short(value: float) -> float | int:
    return int(value) if value == int(value) else value


def traced(found: Predicted) -> list[tuple[int, Region]]:
    """Returns the regions of all classes but the background, with their classes, without small regions and holes."""
    least, tolerance = found.tracing
    kept = []
    for index in np.flatnonzero(pixels_of_classes(found.label, len(found.classes)) >= least).tolist():
        if index not in background(found.classes):
            large = (region for region in regions(found.label, index) if region.pixels >= least)
            kept += [(index, region.without_small_holes(least).simplified(tolerance)) for region in large]
    return kept


def pixels_of_classes(label: UInt8[np.ndarray, "h w"], num_classes: int) -> Int64[np.ndarray, " c"]:
    """Counts the pixels of each class, in bands: bincount takes 8 bytes a pixel."""
    rows = max(1, 2**24 // max(1, label.shape[1]))
    total = np.zeros(num_classes, np.int64)
    for top in range(0, len(label), rows):
        total += np.bincount(label[top : top + rows].ravel(), minlength=num_classes)
    return total


def category_ids(classes: ClassTable) -> dict[int, int]:
    """Returns the ids of COCO's categories: all classes but the background in order, from 1 on."""
    shown = [index for index in range(len(classes)) if index not in background(classes)]
    return {index: number for number, index in enumerate(shown, 1)}


OUTPUTS = {
    "masks": Output(_mask_path, _write_mask, _mask_mark, _mask_is_unchanged),
    "overlays": Output(_ending("_overlay.png"), _write_overlay, mark_of, is_unchanged),
    "probabilities": Output(_ending("_probabilities.npz"), _write_probabilities, _probabilities_mark),
    "coco": Output(_part("coco"), _write_coco, _json_mark),
    "labelme": Output(_ending(".json"), _write_labelme, _json_mark),
    "areas": Output(_part("areas"), _write_areas, _json_mark),
}
