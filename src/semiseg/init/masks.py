"""Finds the masks of images, whatever their names have more, and says how they are stored."""

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from semiseg.data.catalog import folded
from semiseg.data.masks import read_stored
from semiseg.data.match import match, numbered, remedy, rests
from semiseg.data.parts import part_named
from semiseg.data.read import read_image
from semiseg.data.scan import scan
from semiseg.errors import UserError

_OF_VOC = "SegmentationClass"  # VOC's folder of masks; CVAT's export has it, too

# Names of folders in which people keep masks, beside or below the images.
FOLDERS = ("masks", "mask", "labels", "label", "annotations", "ann", "gt", "groundtruth", "ground_truth",
           "segmentation", "segmentations", _OF_VOC, "targets")  # fmt: skip

# Label Studio's files of one class each; they are named by task, not by image
_BRUSH = re.compile(r"task-\d+-annotation-\d+-by-.*-tag-.+-\d+")

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "JPEGImages")

_LOOKED_AT = 8  # files of a folder that are decoded to tell masks from photographs
_PIXELS = 4096  # of a photograph in which its colors are counted
_COLORS, _BLENDED = 64, 0.05  # values or colors that a mask has at most; its share of pixels between their neighbors
_FOLDERS = 64  # folders that are compared with the other one


@dataclass(frozen=True)
class Masks:
    """The masks of a folder.

    Attributes:
        images: name -> image file, without files that turned out to be masks.
        folder: the folder of the masks.
        files: image name -> its mask; empty if there are `layers`.
        suffix: what names of masks have more than those of images at their end; None if nothing.
        layers: image name -> class name -> files that show this class alone, e.g. one for each object; empty if a
            mask shows all classes.
        left: masks that belong to no image.
    """

    images: dict[str, Path]
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    suffix: str | None = None
    layers: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    left: tuple[Path, ...] = ()


def find(images: Path, masks: Path) -> Masks:
    """Finds the images below a folder and their masks below another one, or the same one.

    Raises:
        UserError: a folder does not exist or holds no image, or no mask belongs to an image.
    """
    for option, folder in (("--images", images), ("--masks", masks)):
        if not folder.is_dir():
            raise UserError(f"{option} {folder}: there is no such folder")
    same = images.samefile(masks)
    looked = scan(images, without=None if same else masks)
    found = looked.images
    if not found:
        why = next((f"; {one}" for one in looked.unused if one.matters), "")  # e.g. HEIC needs an extra
        raise UserError(f"--images {images}: holds no photograph{why}")
    others = found if same else scan(masks, without=images).images
    if not others:
        raise UserError(f"--masks {masks}: holds no image file; for COCO or LabelMe files use --coco or --labelme")
    if not same and all(_BRUSH.fullmatch(path.stem) for path in others.values()):
        raise UserError(
            f"--masks {masks}: holds Label Studio's PNG files, whose names say the task and not the image, e.g. "
            f"{next(iter(others.values())).name}; export Brush labels to COCO there, and give the file with --coco"
        )
    if same:
        return _in_one_folder(found, masks)
    return _layers_by_folder(found, others, masks) or _by_name(found, others, images, masks)


@contextmanager
def unless_swapped(images: Path, masks: Path) -> Iterator[None]:
    """Says that two folders are swapped, in place of an error, if the first holds masks and the second photographs.

    Raises:
        UserError: the code within raised one.
    """
    try:
        yield
    except UserError as error:
        if not _are_swapped(images, masks):
            raise
        raise UserError(
            f"--images {images}: holds masks, and --masks {masks} holds photographs: swapped? "
            f"--images {shlex.quote(str(masks))} --masks {shlex.quote(str(images))}"
        ) from error


def _are_swapped(images: Path, masks: Path) -> bool:
    if not images.is_dir() or not masks.is_dir() or images.samefile(masks):
        return False
    first, second = (
        list(scan(folder, without=other).images.values()) for folder, other in ((images, masks), (masks, images))
    )
    some, others = (files[:: -(-len(files) // _LOOKED_AT) or 1] for files in (first, second))
    return bool(some and others) and all(map(_is_mask, some)) and all(map(_is_photograph, others))


def _is_mask(path: Path) -> bool:
    try:
        content = read_stored(path).content
    except UserError:
        return False
    return len(content.counts) <= _COLORS and content.blended <= _BLENDED


def _is_photograph(path: Path) -> bool:
    if _is_mask(path):
        return False
    try:
        pixels = read_image(path).flatten(1)
    except UserError:
        return False
    return torch.unique(pixels[:, :: -(-pixels.shape[1] // _PIXELS)], dim=1).shape[1] > _COLORS


def parts(root: Path) -> tuple[str, str] | None:
    """Finds images and masks that are sorted into parts: train/images, train/masks, val/images ...

    Returns:
        The names of the folders of images and masks, which must be the same in all parts; None if there are no parts.
    """
    known = [{name.casefold() for name in names} for names in (IMAGE_FOLDERS, FOLDERS)]
    found = set()
    for part in sorted(path for path in root.iterdir() if path.is_dir()):
        names = sorted(path.name for path in part.iterdir() if path.is_dir())
        images, masks = ([name for name in names if name.casefold() in each] for each in known)
        if len(images) == len(masks) == 1:
            found.add((images[0], masks[0]))
    return found.pop() if len(found) == 1 else None


def guess_folder(images: Path) -> Path | None:
    """Returns the one folder beside or below `images` that is called as folders of masks are; None if there is none."""
    known = {name.casefold() for name in FOLDERS}
    beside = [path for place in (images, images.parent) for path in sorted(place.iterdir()) if path.is_dir()]
    found = [path for path in beside if path.name.casefold() in known and not path.samefile(images)]
    return found[0] if len(found) == 1 else None


def of_export(folder: Path) -> tuple[Path, Path | None]:
    """Finds the masks in an export of CVAT, "Segmentation mask 1.1", or in a folder like VOC's.

    Returns:
        The folder SegmentationClass if it is in `folder`, otherwise `folder` itself; and CVAT's labelmap.txt beside
        SegmentationClass, which has the names and colors of the classes; None if there is none.
    """
    inside = folder / _OF_VOC
    masks = inside if inside.is_dir() else folder
    table = masks.parent / "labelmap.txt"
    return masks, table if masks.name == _OF_VOC and table.is_file() else None


def _in_one_folder(names: dict[str, Path], folder: Path) -> Masks:
    """Tells masks and images apart by what the names of masks have more at their end."""
    ends = Counter(rest for _, rest in rests(names, names).values())
    if not ends:
        raise UserError(
            f"--masks {folder}: is the folder of the images, and no name is that of another with an end such as _mask; "
            "move the masks into a folder of their own"
        )
    suffix = ends.most_common(1)[0][0]
    masks = {name: path for name, path in names.items() if folded(name).endswith(folded(suffix))}
    if more := numbered(masks, names):
        raise UserError(
            f"--masks {folder}: has several masks of one image ({len(more)} more), e.g. {names[min(more)]}; move all "
            "masks into a folder of their own, and they are joined"
        )
    images = {name: path for name, path in names.items() if name not in masks}
    found, left = match(images, masks, suffix)
    return Masks(images, folder, found, suffix, left=tuple(path for one in left for path in one.files))


def _layers_by_folder(images: dict[str, Path], masks: dict[str, Path], folder: Path) -> Masks | None:
    """Finds masks `<class>/<name of the image>`; None if they are not stored in this way."""
    layers: dict[str, dict[str, list[Path]]] = defaultdict(dict)
    left = []
    for name, path in masks.items():
        of_class, _, rest = name.partition("/")
        if name not in images and rest in images:
            layers[rest][of_class] = [path]
        else:
            left.append(path)
    classes = {of_class for files in layers.values() for of_class in files}
    if 2 * len(left) > len(masks) or len(classes) < 2 or all(map(part_named, classes)):
        return None
    return Masks(images, folder, layers=dict(sorted(layers.items())), left=tuple(left))


def _by_name(images: dict[str, Path], masks: dict[str, Path], root: Path, folder: Path) -> Masks:
    found, left = match(images, masks, None)
    suffix, ends = None, rests(images, masks)
    if len(found) < len(masks) / 2 and ends:
        every = ends | {name: (name, "") for name in masks if name in images}
        if _several_for_one(every):
            return _layers_by_end(images, masks, every, folder)
        suffix = Counter(rest for _, rest in ends.values()).most_common(1)[0][0]
        found, left = match(images, masks, suffix)
    if not found:
        pair = f"{next(iter(masks.values()))} beside {next(iter(images.values()))}"
        if below := _folder_that_fits(images, masks):
            where = shlex.quote(str(root / below))
            what = f"the images of these names are in {root / below}: give --images {where}"
        elif below := _folder_that_fits(masks, images):
            where = shlex.quote(str(folder / below))
            what = f"the masks of these names are in {folder / below}: give --masks {where}"
        else:
            what = remedy(images, masks)
        raise UserError(f"--masks {folder}: no mask has the name of an image ({pair}): {what}")
    return Masks(images, folder, found, suffix, left=tuple(path for one in left for path in one.files))


def _folder_that_fits(names: Mapping[str, Path], others: Mapping[str, Path]) -> str | None:
    """Returns the folder below which most of `names` are found among `others`; None if there is none."""
    folders = Counter(str(folder) for name in names for folder in Path(name).parents if folder.name)
    for folder, _ in folders.most_common(_FOLDERS):
        below = {name.removeprefix(f"{folder}/"): path for name, path in names.items() if name.startswith(f"{folder}/")}
        same = len({*map(folded, below)} & {*map(folded, others)})
        fitting = max(same, len(rests(below, others)), len(rests(others, below)))
        if 2 * fitting > min(len(names), len(others)):
            return folder
    return None


def _several_for_one(ends: Mapping[str, tuple[str, str]]) -> bool:
    """Returns whether images have several masks, and their ends are few: the names of classes, not numbers."""
    per_image = Counter(image for image, _ in ends.values())
    names = {*_kinds(ends).values()}
    return max(per_image.values()) > 1 and len(names) <= max(2, len(ends) // 2)


def _kinds(ends: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Returns the end that each mask has without a number, if there is such an end: `_mask_1` is one more `_mask`."""
    known = dict.fromkeys(rest for _, rest in ends.values())
    more = numbered(known, known)
    return {mask: more.get(rest, rest) for mask, (_, rest) in ends.items()}


def _layers_by_end(
    images: dict[str, Path], masks: dict[str, Path], ends: Mapping[str, tuple[str, str]], folder: Path
) -> Masks:
    layers: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for mask, kind in _kinds(ends).items():
        layers[ends[mask][0]][kind.strip(" _-.") or "object"].append(masks[mask])
    left = tuple(path for mask, path in masks.items() if mask not in ends)
    return Masks(images, folder, layers=dict(sorted(layers.items())), left=left)
