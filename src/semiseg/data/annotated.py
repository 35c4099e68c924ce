"""What layouts of annotation files share: settings, classes, sizes of images, and the way from objects to a dataset."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from semiseg.data.added import of_layout, with_added
from semiseg.data.catalog import CONTROL, Catalog, folded
from semiseg.data.classes import read_classes
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample, Unused
from semiseg.data.lists import Lists, assemble, read_lists, rest
from semiseg.data.memory import Memory
from semiseg.data.parts import Parts, by_folder, held_out
from semiseg.data.rasterize import Drawing, OnImage, mask_colors, mask_files
from semiseg.data.read import read_header
from semiseg.data.scan import scan
from semiseg.data.shapes import Shape, Size
from semiseg.errors import UnreadableError, UserError, listed
from semiseg.files import read_text
from semiseg.types import IGNORE, ClassTable

_MOST_BYTES = 2**32
_SHOWN = 12  # names in a message
_BACKGROUND = ("background", "_background_")  # the latter is LabelMe's
IGNORED = "__ignore__"  # LabelMe's label of what does not count
EXPORTS = (
    "export it as COCO (in CVAT: COCO 1.0, or Segmentation mask 1.1, which is a folder of masks; in Label Studio: "
    "COCO, or Brush labels to COCO)"
)


class AnnotatedConfig(DataConfig):
    """Settings of layouts of annotation files. Paths are relative to `root` unless they are absolute."""

    images: Path = Path("images")
    classes: Path | None = None  # class file; None: the classes are those of the annotation files
    background: str | None = None  # class of pixels in no object; None: `background`, which is added if it is missing
    uncovered: Literal["background", "ignored"] = "background"  # what pixels in no object are
    empty: Literal["unlabeled", "labeled"] = "unlabeled"  # what an image without any object is
    val_fraction: float | None = Field(None, gt=0, lt=1)  # share of the annotated images; 0.2 where nothing says other
    added: Path | None = None  # folder of masks of class indices, for other images (semiseg init --update)

    @model_validator(mode="after")
    def _one_validation_set(self) -> "AnnotatedConfig":
        given = [key for key in ("val", "val_annotations") if getattr(self, key, None) is not None]
        if given and self.val_fraction is not None:
            raise ValueError(f"{given[0]} and val_fraction exclude each other; give one")
        return self


@dataclass(frozen=True)
class Thing:
    """An annotated object: its label, its pixels, what it is called in messages, and how it is stored."""

    label: str
    shape: Shape
    id: str
    kind: str  # polygon, RLE, crowd, or a shape_type of LabelMe


@dataclass(frozen=True)
class Annotation:
    """What an annotation file says about an image.

    Attributes:
        sample: the image.
        where: the file, for messages.
        size: (height, width) of the image as the file states it, px; None if it does not.
        things: the objects; a later one lies above an earlier one.
    """

    sample: Sample
    where: str
    size: Size | None
    things: tuple[Thing, ...]


def find_images(config: AnnotatedConfig) -> tuple[Catalog, tuple[Unused, ...]]:
    """Finds the images, and the files beside them that are none.

    Raises:
        UserError: the folder of images is missing or holds none.
    """
    folder = config.root / config.images
    if not folder.is_dir():
        raise UserError(
            f"data.images: no folder {folder}; set data.images to the folder of images below data.root ('.': the root)"
        )
    found = scan(folder)
    if not found.images:
        others = f" ({found.unused[0]})" if found.unused else ""
        raise UserError(f"data.images: {folder} holds no image{others}")
    return Catalog(config.root, [Sample(name, path) for name, path in found.images.items()]), found.unused


def read_json(path: Path, setting: str) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it is missing or no JSON.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file ({setting}; relative paths start at data.root)")
    text = read_text(path, setting, _MOST_BYTES)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip("\ufeff \t\r\n").startswith("<"):
            raise UserError(f"{path}: is XML, not JSON; {EXPORTS}") from error
        ends = not text[error.pos :].strip()
        what = "ends too early (cut off?)" if ends else f"is no JSON (line {error.lineno}: {error.msg})"
        raise UserError(f"{path}: {what}; export it again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON of annotations ({type(error).__name__}); export it again") from error


def class_table(labels: Iterable[str], config: AnnotatedConfig, where: str) -> ClassTable:
    """Makes the classes: those of the class file, or `labels` with a background where one is needed.

    Args:
        labels: the names in the annotation files, in the order of the classes.
        config: its root, classes, background and uncovered.
        where: the annotation files, for messages.

    Raises:
        UserError: the class file is wrong, there is no class for pixels in no object, or there are too many classes.
    """
    path = None if config.classes is None else config.root / config.classes
    table = None if path is None else read_classes(path, config.background)[0]
    names = list(table.names) if table else [label for label in labels if label != IGNORED]
    background = table.background if table else None
    if config.background is None:
        background = next((index for index, name in enumerate(names) if folded(name) in _BACKGROUND), None)
    elif not table:
        if config.background not in names:
            raise UserError(
                f"data.background: no class {config.background!r} in {where}; known are {listed(names, _SHOWN)}; leave "
                "it out to add a class 'background', or name the classes in a file (data.classes)"
            )
        background = names.index(config.background)
    if background is None and config.uncovered == "background":
        if table:
            raise UserError(
                f"data.background: {path} has no class 'background' for pixels in no object; set data.background to "
                "one of its names, add a line to it, or set data.uncovered=ignored"
            )
        names, background = ["background", *names], 0
    if len(names) < 2:
        adds = config.uncovered == "ignored" and names
        raise UserError(
            f"{where}: has objects of {listed(names, _SHOWN)} alone, and between 2 and 254 classes are needed; "
            + ("data.uncovered=background adds one" if adds else "annotate objects of other classes")
        )
    if len(names) > 254:
        raise UserError(
            f"{where}: has {len(names)} classes ({listed(names, _SHOWN)}), and at most 254 are possible; name those "
            "that count in a class file (data.classes)"
        )
    return replace(table, background=background) if table else ClassTable.of(tuple(names), background)


def stated_size(height: object, width: object, where: str) -> Size | None:
    """Returns the size of an image that a file states; None if it states none.

    Raises:
        UserError: it is no size.
    """
    if not height or not width:
        return None
    sides = [int(side) for side in (height, width) if isinstance(side, (int, float)) and side >= 1 and side % 1 == 0]
    if len(sides) < 2:
        raise UserError(f"{where}: width and height are {width!r} and {height!r}, which is no size; export it again")
    return sides[0], sides[1]


def check_label(label: object, where: str) -> str:
    """Returns a label after checking that it can be the name of a class.

    Raises:
        UserError: it is no text, empty, or has control characters.
    """
    if not isinstance(label, str) or not label.strip() or CONTROL.search(label):
        raise UserError(f"{where}: has the label {label!r}, which is no name of a class; give it one")
    return label


def as_dataset(
    config: AnnotatedConfig,
    catalog: Catalog,
    annotations: Sequence[Annotation],
    classes: ClassTable,
    source: str,
    on_image: OnImage,
    val: frozenset[str] | None = None,
    unused: tuple[Unused, ...] = (),
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Draws the masks of annotated images, and makes the lists.

    Args:
        config: the settings.
        catalog: all images.
        annotations: at most one for each image.
        classes: the class table.
        source: the annotation files, for messages.
        on_image: called with the numbers of masks that are drawn and that have to be drawn.
        val: names of images whose annotations are for validation; None if nothing says so.
        unused: files that are not used.
        notes: what is worth knowing.

    Raises:
        UserError: no image is annotated, an annotation does not fit its image or the classes, or as `assemble`.
    """
    empty = [one for one in annotations if not one.things]
    labeled_ones = [one for one in annotations if one.things or config.empty == "labeled"]
    if not labeled_ones:
        raise UserError(
            f"{source}: no image has an annotated object ({len(empty)} have none); annotate some, or set "
            "data.empty=labeled if they show nothing but background"
        )
    if empty and config.empty == "unlabeled":
        notes += (
            f"Images without any object in the annotation files: {len(empty)}, e.g. {empty[0].sample.image}; they "
            "count as unlabeled; data.empty=labeled makes them images that show no object.",
        )
    fill = IGNORE if config.uncovered == "ignored" or classes.background is None else classes.background
    masks, colors = draw(labeled_ones, classes, fill, config, on_image), mask_colors(classes)
    samples = tuple(replace(sample, mask=masks.get(sample.name)) for sample in catalog.samples)
    if config.added is not None:
        samples, not_added = with_added(samples, config.root / config.added)
        unused += not_added
    catalog = Catalog(config.root, samples)
    given = read_lists(config, catalog, listed_masks=False)
    parts = _parts(catalog.samples, config, given, val)
    masked = tuple(sample for sample in parts.train if sample.mask)
    chosen = given.val or parts.val
    chosen = chosen or held_out(of_layout(masked), config.val_fraction or 0.2, given.labeled, given.unlabeled)
    labeled = given.labeled or rest(masked, chosen, given.unlabeled)
    unlabeled = given.unlabeled or rest(parts.train, chosen, labeled)
    coding = MaskCoding(len(classes), None, colors, config.mask_orientation)
    remedy = f"annotate it in {source}"
    if config.empty == "unlabeled":
        remedy += ", or set data.empty=labeled if an image without any object shows nothing but background"
    dataset = assemble(labeled, unlabeled, chosen, classes, coding, remedy, (*unused, *parts.unused), notes)
    return replace(dataset, tests=parts.tests)


def draw(
    annotations: Sequence[Annotation], classes: ClassTable, fill: int, config: AnnotatedConfig, on_image: OnImage
) -> dict[str, Path]:
    """Draws the masks of annotated images: files that store class indices, in the user's cache folder.

    Args:
        annotations: at most one for each image.
        classes: the class table.
        fill: the class index, or IGNORE, of pixels in no object.
        config: its root, its classes for messages, and its mask_orientation.
        on_image: called with the numbers of masks that are drawn and that have to be drawn.

    Returns:
        The name of each image -> its mask file.

    Raises:
        UserError: an annotation does not fit its image or the classes, or a mask cannot be written.
    """
    drawings = _drawings(annotations, classes, config)
    return mask_files(drawings, fill, mask_colors(classes), config.root, on_image)


def _parts(samples: tuple[Sample, ...], config: AnnotatedConfig, given: Lists, val: frozenset[str] | None) -> Parts:
    """Sorts images by their folders, or by the annotations for validation if `val` has the names of their images."""
    if val is None:
        return by_folder(samples, given, chosen=bool(config.val or config.val_fraction))
    named = tuple(sample for sample in samples if sample.name in val)
    parts = by_folder(samples, replace(given, val=named), chosen=True)
    left = tuple(sample.image for sample in named if not sample.mask)
    what = "images without any object in data.val_annotations, not used"
    unused = (Unused(what, left),) if left else ()
    chosen = tuple(sample for sample in named if sample.mask)
    return replace(parts, train=rest(parts.train, named), val=chosen, unused=(*unused, *parts.unused))


def _drawings(annotations: Sequence[Annotation], classes: ClassTable, config: AnnotatedConfig) -> list[Drawing]:
    indices = {name: index for index, name in enumerate(classes.names)} | {IGNORED: IGNORE}
    _check_labels(annotations, indices, config)
    memory = Memory(config.root)
    with ThreadPoolExecutor() as threads:
        sizes = list(threads.map(lambda one: _size(one, config, memory), annotations))
    memory.keep()
    return [
        Drawing(
            one.sample.name,
            one.where,
            size,
            tuple((indices[thing.label], thing.shape) for thing in one.things),
            tuple(thing.id for thing in one.things),
        )
        for one, size in zip(annotations, sizes, strict=True)
    ]


def _check_labels(annotations: Sequence[Annotation], indices: Mapping[str, int], config: AnnotatedConfig) -> None:
    unknown = [(one, thing) for one in annotations for thing in one.things if thing.label not in indices]
    if not unknown:
        return
    one, thing = unknown[0]
    same = sum(other.label == thing.label for _, other in unknown)
    close = next((name for name in indices if folded(name.strip()) == folded(thing.label.strip())), None)
    remedy = f"did you mean {close!r}?" if close else "add it there, or leave data.classes out"
    raise UserError(
        f"{one.where}: {thing.id}: {config.root / (config.classes or '')} has no class {thing.label!r} ({same} objects "
        f"have this label); {remedy} (objects called {IGNORED} do not count)"
    )


def _size(one: Annotation, config: AnnotatedConfig, memory: Memory) -> Size:
    """Returns the size that a mask must have, after comparing the stated one with the image's."""
    image = one.sample.image

    def find() -> list[int]:
        header = read_header(image)
        return [*header.size, *header.stored, header.orientation]

    try:
        height, width, stored_height, stored_width, orientation = memory.recall(image, "size", find)
    except UnreadableError:
        if one.size is None:
            raise
        return one.size  # the check of the data reports the image, or it is skipped
    upright, stored = (height, width), (stored_height, stored_width)
    expected, other = (stored, upright) if config.mask_orientation == "stored" else (upright, stored)
    if one.size in (None, expected):
        return expected
    message = (
        f"{one.where}: says that {image} has {one.size[1]}x{one.size[0]} px, but it has {expected[1]}x{expected[0]}"
    )
    if one.size == other and upright == stored[::-1]:
        remedy = "upright" if config.mask_orientation == "stored" else "stored"
        raise UserError(
            f"{message}; it is turned by EXIF ({orientation}): set data.mask_orientation={remedy} if the objects fit "
            "the pixels so"
        )
    raise UserError(f"{message}; put back the image that was annotated, or annotate this one")
