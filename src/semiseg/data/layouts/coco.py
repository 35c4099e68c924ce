"""COCO JSON, as CVAT, Label Studio and others export it: a folder of images, and files that list objects.

    root/images/**/NAME.jpg       all images; those that no annotation names are unlabeled
    root/annotations.json         {"images": [...], "categories": [...], "annotations": [...]}

An object is a list of polygons or a mask in RLE, compressed or not. Where objects overlap, the one that stands later in
the file lies above; crowds (iscrowd) lie below all others. Pixels in no object are the class `background`, or ignored
(`uncovered`). Lists that the config does not name have defaults as in the layout `folder`; annotated images stand in
place of those with masks.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from semiseg.data.annotated import (
    EXPORTS,
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
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.rasterize import OnImage
from semiseg.data.scan import without_used
from semiseg.data.shapes import Polygons, Runs, Shape, as_points
from semiseg.errors import UserError, listed

Id = int | float | str

_KEYS = ("images", "categories", "annotations")
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # before the name of a file that was uploaded to Label Studio


class Config(AnnotatedConfig):
    """Paths are relative to `root` unless they are absolute."""

    layout: Literal["coco"] = "coco"
    annotations: Path | tuple[Path, ...]  # one file or several
    # those of images that are for validation, or of those among them that a list `val` names
    val_annotations: Path | tuple[Path, ...] | None = None


@dataclass(frozen=True)
class _File:
    """A COCO file: its categories in the order of their ids, and its annotations of images that were found."""

    path: Path
    categories: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    missing: tuple[str, ...]  # file_name of images that were not found


def load(config: Config, on_image: OnImage = lambda done, total: None) -> Dataset:
    """Loads the dataset that `config` describes. The module's docstring says which lists are the default.

    Args:
        config: the settings.
        on_image: called with the number of masks that are drawn and the number of all that have to be drawn.

    Raises:
        UserError: a file or a list is missing or contradicts itself or the images.
    """
    catalog, unused = find_images(config)
    paths, val_paths = _paths(config.annotations), _paths(config.val_annotations)
    if not paths:
        raise UserError("data.annotations: names no file; name one COCO JSON or several")
    files = [_read(config.root / path, "data.annotations", catalog) for path in paths]
    val_files = [_read(config.root / path, "data.val_annotations", catalog) for path in val_paths]
    every = files + val_files
    source = listed([str(one.path) for one in every], 2)
    annotations = _merged(every)
    notes = _missing(every, config)
    classes = class_table(_labels(every), config, source)
    used = [config.classes, config.labeled, config.unlabeled, config.val, *paths, *val_paths]
    unused = without_used(unused, [config.root / path for path in used if path])
    val = frozenset(one.sample.name for file in val_files for one in file.annotations) if val_files else None
    return as_dataset(config, catalog, annotations, classes, source, on_image, val, unused, notes)


def read(path: Path, catalog: Catalog) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """Reads a COCO file.

    Returns:
        The annotations of images that were found, and the file_name of each other image.

    Raises:
        UserError: the file is missing or contradicts itself.
    """
    file = _read(path, "data.annotations", catalog)
    return file.annotations, file.missing


def objects(config: Config) -> tuple[list[str], list[Annotation]]:
    """Reads the files `annotations` alone.

    Returns:
        The labels in the order of the classes, and at most one annotation for each image.

    Raises:
        UserError: as `load` where a file is wrong.
    """
    catalog, _ = find_images(config)
    files = [_read(config.root / path, "data.annotations", catalog) for path in _paths(config.annotations)]
    _missing(files, config)
    return _labels(files), _merged(files)


def _paths(given: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
    return () if given is None else (given,) if isinstance(given, Path) else given


def _labels(files: Sequence[_File]) -> list[str]:
    """Returns the names of all categories: those of the first file in the order of their ids, then new ones of others.

    Raises:
        UserError: files write one name differently.
    """
    first: dict[str, tuple[str, Path]] = {}
    for file in files:
        for name in file.categories:
            known, path = first.setdefault(folded(name.strip()), (name, file.path))
            if known != name and path != file.path:
                raise UserError(f"{file.path}: calls a category {name!r}, but {path} calls it {known!r}; use one name")
    return list(dict.fromkeys(name for file in files for name in file.categories))


def _merged(files: Sequence[_File]) -> list[Annotation]:
    """Returns one annotation for each image. Several files may list an image, but only one its objects."""
    found: dict[str, Annotation] = {}
    for one in (one for file in files for one in file.annotations):
        known = found.get(one.sample.name)
        if known and known.things and one.things:
            raise UserError(
                f"{one.where}: {one.sample.image} has objects in {known.where}, too; put all objects of an image "
                "into one file"
            )
        if not known or one.things:
            found[one.sample.name] = one
    return list(found.values())


def _missing(files: Sequence[_File], config: Config) -> tuple[str, ...]:
    """Notes images that were not found.

    Raises:
        UserError: none was found.
    """
    missing = [(file, name) for file in files for name in file.missing]
    if not missing:
        return ()
    file, name = missing[0]
    total, folder = sum(len(file.annotations) for file in files) + len(missing), config.root / config.images
    if not any(file.annotations for file in files):
        raise UserError(
            f"{file.path}: none of its {len(missing)} images, e.g. file_name {name!r}, is below {folder}; set "
            "data.images to the folder of these images"
        )
    return (
        f"Images of the annotation files that are not below {folder}: {len(missing)} of {total}, e.g. file_name "
        f"{name!r} of {file.path}; they are left out; data.images is the folder that is searched.",
    )


def _read(path: Path, setting: str, catalog: Catalog) -> _File:
    content = _content(path, setting)
    categories = _categories(path, content["categories"])
    entries = _by_id(path, content["images"], "images")
    samples, missing = _samples(path, entries, catalog)
    things: dict[Id, list[Thing]] = {}
    _check_objects(path, content["annotations"], entries, categories)
    for one in content["annotations"]:
        name = f"annotation {one.get('id', '')}".rstrip()
        if one["image_id"] in samples:
            shape = _shape(one["segmentation"], f"{path}: {name}")
            kind = "crowd" if one.get("iscrowd") else "RLE" if isinstance(shape, Runs) else "polygon"
            things.setdefault(one["image_id"], []).append(Thing(categories[one["category_id"]], shape, name, kind))
    annotations = [
        Annotation(
            sample,
            str(path),
            stated_size(entries[key].get("height"), entries[key].get("width"), f"{path}: image {key}"),
            tuple(sorted(things.get(key, []), key=lambda thing: thing.kind != "crowd")),  # crowds first
        )
        for key, sample in samples.items()
    ]
    labels = tuple(name for _, name in sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))
    return _File(path, labels, tuple(annotations), tuple(missing))


def _content(path: Path, setting: str) -> dict[str, list[dict[str, Any]]]:
    """Reads a file and checks that it has the parts of COCO."""
    content = read_json(path, setting)
    if isinstance(content, dict) and "shapes" in content:
        raise UserError(f"{path}: is a file of LabelMe, not COCO; set data.layout=labelme")
    if not isinstance(content, dict) or not content.keys() & {*_KEYS}:
        kind = "a list" if isinstance(content, list) else "no object with images, categories and annotations"
        raise UserError(f"{path}: is {kind}, not COCO; {EXPORTS}")
    for key in _KEYS:
        if key not in content:
            raise UserError(f"{path}: has no {key!r}; COCO has images, categories and annotations")
        if not isinstance(content[key], list) or not all(isinstance(one, dict) for one in content[key]):
            raise UserError(f"{path}: {key!r} is no list of objects; export it as COCO again")
        if not content[key]:
            raise UserError(f"{path}: {key!r} is empty; export the file again, after annotating images")
    if any("segments_info" in one for one in content["annotations"]):
        raise UserError(f"{path}: holds panoptic segments, which stand in PNG files; export polygons or RLE of objects")
    return {key: content[key] for key in _KEYS}


def _by_id(path: Path, entries: Sequence[dict[str, Any]], what: str) -> dict[Id, dict[str, Any]]:
    found: dict[Id, dict[str, Any]] = {}
    for entry in entries:
        key = entry.get("id")
        if not isinstance(key, (int, float, str)):
            raise UserError(f"{path}: {what} has an entry without an id: {str(entry)[:80]}")
        if key in found:
            raise UserError(f"{path}: {what} has two entries with the id {key!r}; merge or export the file again")
        found[key] = entry
    return found


def _categories(path: Path, entries: Sequence[dict[str, Any]]) -> dict[Id, str]:
    names = {
        key: check_label(entry.get("name"), f"{path}: category {key}")
        for key, entry in _by_id(path, entries, "categories").items()
    }
    twice = [name for name, number in Counter(names.values()).items() if number > 1]
    if twice:
        ids = ", ".join(str(key) for key, name in names.items() if name == twice[0])
        raise UserError(f"{path}: categories {ids} are all called {twice[0]!r}; rename or merge them")
    return names


def _samples(path: Path, entries: Mapping[Id, dict[str, Any]], catalog: Catalog) -> tuple[dict[Id, Sample], list[str]]:
    """Finds the image of each entry; returns those that were found, and the names of others."""
    found: dict[Id, Sample] = {}
    missing: list[str] = []
    names: dict[str, str] = {}  # of a sample -> file_name
    for key, entry in entries.items():
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name.strip():
            raise UserError(f"{path}: image {key} has no file_name; export the file again")
        samples = _find(file_name, catalog)
        if len(samples) > 1:
            raise UserError(
                f"{path}: file_name {file_name!r} can be {samples[0].image} or {samples[1].image}; write a longer path"
            )
        if not samples:
            missing.append(file_name)
            continue
        sample = samples[0]
        if sample.name in names:
            raise UserError(
                f"{path}: file_name {names[sample.name]!r} and {file_name!r} both mean {sample.image}; remove one"
            )
        names[sample.name], found[key] = file_name, sample
    return found, missing


def _find(file_name: str, catalog: Catalog) -> list[Sample]:
    """Finds the images that a file_name can mean: by its path, then by shorter and shorter ends of it.

    An image in another folder is not meant if the folders have names in common: cam2/1.jpg is not cam1/1.jpg.
    Label Studio writes URLs (percent signs, `?d=`), and 8 characters before the names of files that were uploaded.
    """
    for text in _spellings(file_name.replace("\\", "/")):
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if found := catalog.find("/".join(parts[start:])):
                return [one for one in found if not catalog.is_elsewhere("/".join(parts), one)]
    return []


def _spellings(file_name: str) -> Iterator[str]:
    path, _, query = unquote(file_name).partition("?")
    plain = dict.fromkeys((file_name, unquote(file_name), query.removeprefix("d="), path))
    yield from plain
    for text in plain:
        folder, slash, name = text.rpartition("/")
        if start := _UPLOAD.match(name):
            yield f"{folder}{slash}{name[start.end() :]}"


def _check_objects(
    path: Path, objects: Sequence[dict[str, Any]], images: Mapping[Id, Any], categories: Mapping[Id, str]
) -> None:
    """Checks that each object has an image, a category and pixels.

    Raises:
        UserError: one has not.
    """
    for key, known, what in (("image_id", images, "images"), ("category_id", categories, "categories")):
        bad = [one for one in objects if not isinstance(one.get(key), (int, float, str)) or one[key] not in known]
        if bad:
            raise UserError(
                f"{path}: annotation {bad[0].get('id', '')} has the {key} {bad[0].get(key)!r}, which {what} do not "
                f"have ({len(bad)} of {len(objects)} annotations); export the file again"
            )
    bare = [one for one in objects if not one.get("segmentation")]
    if bare:
        has = "keypoints" if "keypoints" in bare[0] else "a box" if "bbox" in bare[0] else "nothing"
        raise UserError(
            f"{path}: annotation {bare[0].get('id', '')} has {has} and no segmentation ({len(bare)} of {len(objects)} "
            "annotations); draw polygons or masks, and export these, or remove it"
        )


def _shape(segmentation: Any, where: str) -> Shape:
    """Makes a shape of a segmentation: polygons, or RLE."""
    if isinstance(segmentation, dict):
        return _runs(segmentation, where)
    if not isinstance(segmentation, list):
        raise UserError(f"{where}: its segmentation is neither a list of polygons nor RLE; export it again")
    rows = [segmentation] if isinstance(segmentation[0], (int, float)) else segmentation
    rings = []
    for row in rows:
        try:
            ring = as_points(row)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if len(ring) < 3:
            raise UserError(f"{where}: a polygon has {len(ring)} points, and 3 are needed; correct or remove it")
        rings.append(ring)
    return Polygons(tuple(rings))


def _runs(rle: Mapping[str, Any], where: str) -> Runs:
    size, counts = rle.get("size"), rle.get("counts")
    sized = isinstance(size, list) and [type(side) for side in size] == [int, int] and min(size) > 0
    if isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts):
        counts = tuple(counts)
    if not isinstance(size, list) or not sized or not isinstance(counts, (str, tuple)):
        raise UserError(f"{where}: its RLE has no size [height, width] and counts (numbers or text); export it again")
    return Runs((size[0], size[1]), counts)
