"""LabelMe's JSON: a folder of images, and one JSON file for each annotated image.

    root/images/**/NAME.jpg       all images; those without a JSON file are unlabeled
    root/images/**/NAME.json      beside its image, or at the same place below another folder (`annotations`)

Shapes are polygons, rectangles, circles and masks; lines and points are drawn `line_width` wide. Where shapes overlap,
the one that stands later in the file lies above. A file without a shape means that its image shows no object: nobody
saves a file for an image that was not looked at. `empty: unlabeled` says otherwise. Lists that the config does not name
have defaults as in the layout `folder`; annotated images stand in place of those with masks.
"""

import base64
import binascii
import io
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from semiseg.data.annotated import (
    IGNORED,
    AnnotatedConfig,
    Annotation,
    Thing,
    as_dataset,
    check_label,
    class_table,
    find_images,
    read_json,
    stated_size,
)
from semiseg.data.catalog import Catalog, folded
from semiseg.data.dataset import Dataset, Sample, Unused
from semiseg.data.memory import Memory
from semiseg.data.rasterize import OnImage
from semiseg.data.scan import scan, without_used
from semiseg.data.shapes import Polygons, Region, Shape, Size, Stroke, as_points, circle, rectangle
from semiseg.errors import UserError

_LARGE = 2**16  # bytes of a file; such files hold the photograph, and what was read from them is remembered
_THIN = ("line", "linestrip", "point", "points")
_CORNERS = ("polygon", "oriented_rectangle", "rotation")
_KNOWN = (*_CORNERS, "rectangle", "circle", "mask", *_THIN)


class Config(AnnotatedConfig):
    """Paths are relative to `root` unless they are absolute."""

    layout: Literal["labelme"] = "labelme"
    annotations: Path | None = None  # folder of the JSON files; None: beside the images
    empty: Literal["unlabeled", "labeled"] = "labeled"
    line_width: float = Field(
        10.0, gt=0, le=1000
    )  # px, of lines, and diameter of points; LabelMe's own export draws 10


@dataclass(frozen=True)
class _Pasted:
    """A mask of LabelMe: a PNG whose top left pixel is (top, left) in the image."""

    top: int
    left: int
    box: Size
    png: str  # base64

    def region(self, size: Size) -> Region:
        """Returns the pixels that are not 0. What lies outside the image is cut off."""
        try:
            with Image.open(io.BytesIO(base64.b64decode(self.png)), formats=("PNG",)) as image:
                found = (image.height, image.width)
                inside = np.asarray(image).astype(bool) if found == self.box else None
        except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
            raise UserError("its mask is no PNG in base64; draw it again") from error
        if inside is None or inside.ndim != 2:
            raise UserError(
                f"its mask is {found[1]}x{found[0]} px, and its points say {self.box[1]}x{self.box[0]}; draw it again"
            )
        top, left = (min(max(first, 0), side) for first, side in zip((self.top, self.left), size, strict=True))
        bottom, right = max(size[0] - self.top, 0), max(size[1] - self.left, 0)
        return Region(top, left, inside[top - self.top : bottom, left - self.left : right])

    def identity(self) -> bytes:
        """Returns place and file as bytes."""
        return f"mask {self.top} {self.left} {self.box} {self.png}".encode()


def load(config: Config, on_image: OnImage = lambda done, total: None) -> Dataset:
    """Loads the dataset that `config` describes. The module's docstring says which lists are the default.

    Args:
        config: the settings.
        on_image: called with the number of masks that are drawn and the number of all that have to be drawn.

    Raises:
        UserError: a file or a list is missing or contradicts itself or the images.
    """
    catalog, unused = find_images(config)
    folder = config.root / (config.annotations or config.images)
    paths = json_files(folder, unused if config.annotations is None else None)
    annotations, others, thin = read(paths, folder, catalog, config)
    classes = class_table(_labels(annotations), config, str(folder))
    used = [config.classes, config.labeled, config.unlabeled, config.val]
    unused = without_used(unused, [*paths, *(config.root / path for path in used if path)])
    notes: tuple[str, ...] = ()
    if thin:
        notes = (
            f"Lines and points of LabelMe, drawn {config.line_width:g} px wide (data.line_width): {thin.total()} "
            f"({', '.join(f'{number} {kind}' for kind, number in thin.items())}).",
        )
    return as_dataset(config, catalog, annotations, classes, str(folder), on_image, None, unused + others, notes)


def objects(config: Config) -> tuple[list[str], list[Annotation]]:
    """Reads the files.

    Returns:
        The labels in the order of the classes, and at most one annotation for each image.

    Raises:
        UserError: as `load` where a file is wrong.
    """
    catalog, unused = find_images(config)
    folder = config.root / (config.annotations or config.images)
    paths = json_files(folder, unused if config.annotations is None else None)
    annotations, _, _ = read(paths, folder, catalog, config)
    return _labels(annotations), annotations


def _labels(annotations: Sequence[Annotation]) -> list[str]:
    return sorted({thing.label for one in annotations for thing in one.things} - {IGNORED})


def json_files(folder: Path, files: Sequence[Unused] | None = None) -> list[Path]:
    """Finds the JSON files below a folder; `files` are those that a search has found in it already.

    Raises:
        UserError: there is no such folder, or it holds none.
    """
    if not folder.is_dir():
        raise UserError(f"data.annotations: no folder {folder}; set it to the folder of LabelMe's JSON files")
    found = scan(folder).unused if files is None else files
    paths = sorted(path for one in found for path in one.files if path.suffix.lower() == ".json" and path.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise UserError(f"data.annotations: {folder} holds no JSON file; set it to the folder of LabelMe's JSON files")
    return paths


def read(
    paths: Sequence[Path], folder: Path, catalog: Catalog, config: Config
) -> tuple[list[Annotation], tuple[Unused, ...], Counter[str]]:
    """Reads LabelMe's files.

    Args:
        paths: the files.
        folder: the folder that they are in, or below which they are.
        catalog: finds their images.
        config: its line_width, and for messages its root and images.

    Returns:
        The annotations; the files that annotate no image; and how many lines and points there are.

    Raises:
        UserError: a file is wrong, or none annotates an image.
    """
    memory = Memory(config.root)
    found: dict[str, Annotation] = {}
    foreign: list[Path] = []
    lost: list[Path] = []
    thin: Counter[str] = Counter()
    for path in paths:
        content = _content(path, memory)
        samples = _find(path, folder, content, catalog, config.annotations is not None)
        if content is None:
            if samples:
                raise UserError(f"{path}: has the name of an image, but is no file of LabelMe; {_what(path)}")
            foreign.append(path)
        elif not samples:
            lost.append(path)
        else:
            sample = samples[0]
            if sample.name in found:
                raise UserError(f"{path}: annotates {sample.image}, as {found[sample.name].where} does; remove one")
            things = _things(content["shapes"], path, config)
            thin.update(shape["shape_type"] for shape in content["shapes"] if shape.get("shape_type") in _THIN)
            found[sample.name] = Annotation(
                sample, str(path), stated_size(content["imageHeight"], content["imageWidth"], str(path)), things
            )
    memory.keep()
    if not found:
        bad = (lost or foreign)[0]
        what = (
            _what(bad) if not lost else f"it belongs to no image below {config.root / config.images}; set data.images"
        )
        raise UserError(f"{folder}: none of its {len(paths)} JSON files annotates an image, e.g. {bad}: {what}")
    kinds = (
        ("JSON files that are not LabelMe's, not used", foreign, ""),
        ("annotations that belong to no image", lost, "a JSON file has the name of its image, or its imagePath"),
    )
    return list(found.values()), tuple(Unused(what, tuple(files), do) for what, files, do in kinds if files), thin


def _content(path: Path, memory: Memory) -> dict[str, Any] | None:
    """Reads a file without the photograph in it. Returns None if it is no file of LabelMe."""

    def read() -> dict[str, Any] | None:
        content = read_json(path, "data.annotations")
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            return None
        return {key: content.get(key) for key in ("shapes", "imagePath", "imageHeight", "imageWidth")}

    return memory.recall(path, "labelme", read) if path.stat().st_size > _LARGE else read()


def _what(path: Path) -> str:
    content = read_json(path, "data.annotations")
    if isinstance(content, dict) and content.keys() & {"images", "annotations", "categories"}:
        return "is it COCO? Then set data.layout=coco data.annotations=FILE"
    return "it has no list of shapes; save it with LabelMe again, or remove it"


def _find(path: Path, folder: Path, content: Mapping[str, Any] | None, catalog: Catalog, apart: bool) -> list[Sample]:
    """Finds the image of a file: that of its name, or the one that it names.

    Raises:
        UserError: these are two images, or several images have the name.
    """
    name = path.relative_to(folder).with_suffix("").as_posix()
    own = _at(name, catalog)
    stated = content.get("imagePath") if content else None
    named: list[Sample] = []
    if isinstance(stated, str) and stated:
        stated = stated.replace("\\", "/")
        place = posixpath.normpath(f"{path.parent.relative_to(folder).as_posix()}/{stated}")
        named = _at(place, catalog)
        if apart and not named:  # beside its image, a file means the image at that very place
            parts = [part for part in stated.split("/") if part not in ("", ".", "..")]
            tails = ("/".join(parts[start:]) for start in range(len(parts)))
            named = next((samples for tail in tails if (samples := catalog.find(tail))), [])
            named = [one for one in named if not catalog.is_elsewhere(place, one)]
    if own:
        if named and own[0] not in named:
            raise UserError(
                f"{path}: has the name of {own[0].image}, but its imagePath is {stated!r} ({named[0].image}); correct "
                "one of the two"
            )
        return own
    if len(named) > 1:
        raise UserError(f"{path}: its imagePath {stated!r} can be {named[0].image} or {named[1].image}; rename it")
    return named


def _at(path: str, catalog: Catalog) -> list[Sample]:
    """Returns the image at a path below the folder of images, whose extension may be left out."""
    names = {folded(path), folded(path.rpartition(".")[0])}
    return [sample for sample in catalog.find(path) if folded(sample.name) in names]


def _things(shapes: Sequence[Any], path: Path, config: Config) -> tuple[Thing, ...]:
    things: list[Thing] = []
    for number, shape in enumerate(shapes, 1):
        if not isinstance(shape, dict):
            raise UserError(f"{path}: shape {number} is no shape of LabelMe; save it with LabelMe again")
        label = check_label(shape.get("label"), f"{path}: shape {number}")
        name = f"shape {number} ({label})"
        try:
            drawn = _shapes(shape, config.line_width)
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}") from error
        things += [Thing(label, one, name, shape.get("shape_type") or "polygon") for one in drawn]
    return tuple(things)


def _shapes(shape: Mapping[str, Any], width: float) -> list[Shape]:
    """Makes shapes of one of LabelMe's.

    Raises:
        UserError: its points do not fit its kind. The message does not name the file.
    """
    kind = shape.get("shape_type") or "polygon"  # early versions wrote none
    if kind not in _KNOWN:
        raise UserError(f"shape_type {kind!r} is not known; known are {', '.join(_KNOWN)}; draw a polygon")
    points = as_points(shape.get("points"))
    if kind == "rectangle" and len(points) == 4:
        kind = "oriented_rectangle"
    number = len(points)
    wanted = {"circle": number == 2, "rectangle": number == 2, "mask": number == 2, "line": number == 2,
              "linestrip": number >= 2, "point": number == 1, "points": number >= 1}  # fmt: skip
    if not wanted.get(kind, number >= 3):
        raise UserError(f"a {kind} has {number} points; correct or remove it")
    if kind == "mask":
        return [_pasted(shape, points)]
    if kind == "rectangle":
        return [rectangle(points)]
    if kind == "circle":
        return [circle(points)]
    if kind == "points":
        return [Stroke(point[None], width) for point in points]
    return [Stroke(points, width) if kind in _THIN else Polygons((points,))]


def _pasted(shape: Mapping[str, Any], points: np.ndarray) -> _Pasted:
    png = shape.get("mask")
    if not isinstance(png, str):
        raise UserError("a mask has no PNG; draw it again")
    (left, top), (right, bottom) = points.astype(int).tolist()
    return _Pasted(top, left, (bottom - top + 1, right - left + 1), png)
