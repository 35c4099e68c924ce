"""Your own photographs: a folder of images, a folder of masks for some of them, and a list of classes.

    root/images/**/NAME.jpg       jpg, png, bmp, webp, tif ...
    root/masks/**/NAME.png        same path below its folder; one channel that holds class indices, 255 = ignored
    root/classes.txt              class 0 on the first line, class 1 on the second ...; `name` or `name #RRGGBB`

Lists that the config does not name have defaults: labeled is every image with a mask that no other list names,
unlabeled is every other image, and validation is a share (`val_fraction`) of the images with masks. The choice of
validation images depends on their names alone, so every run of every method is evaluated on the same images.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from semiseg.data.added import of_layout, with_added
from semiseg.data.catalog import Catalog
from semiseg.data.classes import read_classes
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample, Unused
from semiseg.data.lists import assemble, read_lists, rest
from semiseg.data.masks import parse_color
from semiseg.data.match import match, numbered, remedy, without_suffix
from semiseg.data.parts import by_folder, held_out, part_named
from semiseg.data.scan import scan, without_used
from semiseg.errors import UserError
from semiseg.types import IGNORE


class Config(DataConfig):
    """Paths are relative to `root` unless they are absolute."""

    layout: Literal["folder"] = "folder"
    images: Path = Path("images")
    masks: Path = Path("masks")
    classes: Path = Path("classes.txt")
    mask_suffix: str | None = None  # what names of masks have more than those of images at their end, e.g. _mask
    # maps mask values (up to 16 bits) to class indices, or to 255; other values are class indices already
    values: dict[Annotated[int, Field(ge=-32768, le=65535)], int] | None = None
    # maps colors of masks (#RRGGBB) to class indices, or to 255; the class file may state colors, too
    colors: dict[Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")], int] | None = None
    background: str | int | None = None  # name or index of the class that means "nothing of interest"
    val_fraction: float | None = Field(None, gt=0, lt=1)  # share of the images with masks; 0.2 where `val` is not given
    added: Path | None = None  # folder of masks of class indices, for images without a mask (semiseg init --update)

    @model_validator(mode="after")
    def _one_validation_set(self) -> "Config":
        if self.val is not None and self.val_fraction is not None:
            raise ValueError("val and val_fraction exclude each other; give one")
        return self


def load(config: Config) -> Dataset:
    """Loads the dataset that `config` describes. The module's docstring says which lists are the default.

    Raises:
        UserError: a folder, a list or a mask is missing, the lists overlap, or the class table is wrong.
    """
    classes, stated = read_classes(config.root / config.classes, config.background)
    coding = _coding(config, len(classes), stated)
    images, masks, unused = _files(config)
    found, unmatched = match(images, masks, config.mask_suffix)
    samples = tuple(Sample(name, path, found.get(name)) for name, path in images.items())
    if config.added is not None:
        samples, not_added = with_added(samples, config.root / config.added)
        unmatched += not_added
    catalog = Catalog(config.root, samples)
    given = read_lists(config, catalog, listed_masks=True)
    if not (found or given.labeled):
        raise UserError(_no_match(images, masks, unused, config))
    chosen = bool(config.val or config.val_fraction)
    parts = by_folder(catalog.samples, given, chosen)
    masked = tuple(sample for sample in parts.train if sample.mask)
    val = given.val or parts.val
    val = val or held_out(of_layout(masked), config.val_fraction or 0.2, given.labeled, given.unlabeled)
    labeled = given.labeled or rest(masked, val, given.unlabeled)
    unlabeled = given.unlabeled or rest(parts.train, val, labeled)
    where = f"put one of the same name into {config.root / config.masks}"
    dataset = assemble(labeled, unlabeled, val, classes, coding, where, (*unused, *unmatched, *parts.unused))
    return replace(dataset, tests=parts.tests)


def _coding(config: Config, num_classes: int, stated: dict[tuple[int, int, int], int]) -> MaskCoding:
    """Puts the meaning of values and colors together, from the settings and from the class file."""
    for key in ("values", "colors"):
        given = getattr(config, key) or {}
        if bad := {value: index for value, index in given.items() if index not in (*range(num_classes), IGNORE)}:
            raise UserError(
                f"data.{key}: {bad} maps to no class; classes are 0 to {num_classes - 1}, {IGNORE} means ignored"
            )
    named = {parse_color(text): index for text, index in (config.colors or {}).items()}
    return MaskCoding(num_classes, config.values, stated | named or None, config.mask_orientation)


def _files(config: Config) -> tuple[dict[str, Path], dict[str, Path], tuple[Unused, ...]]:
    """Finds all images and masks by their names, and the files that are neither.

    The folders of parts may stand above those of images and masks: train/images, train/masks, val/images ... Then
    images in folders beside them, e.g. unlabeled/images, are used, too.
    """
    images, masks = config.root / config.images, config.root / config.masks
    if not images.is_dir():
        parts = [folder for folder in _folders(config.root) if (folder / config.images).is_dir()]
        if {part_named(folder.name) for folder in parts} >= {"train"}:
            return _files_of_parts(parts, config)
    for key, folder in (("images", images), ("masks", masks)):
        if not folder.is_dir():
            raise UserError(f"data.{key}: no folder {folder}; set data.{key} to the folder of {key} below data.root")
    if images.samefile(masks):
        return _files_of_one_folder(images, config)
    found, found_masks = scan(images, without=masks), scan(masks, without=images)
    if not found.images:
        others = f" ({found.unused[0]})" if found.unused else ""
        raise UserError(f"data.images: {images} holds no image{others}")
    return found.images, found_masks.images, _not_ours(found.unused + found_masks.unused, config)


def _files_of_parts(folders: list[Path], config: Config) -> tuple[dict[str, Path], dict[str, Path], tuple[Unused, ...]]:
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    unused: tuple[Unused, ...] = ()
    for folder in folders:
        for names, below in ((images, config.images), (masks, config.masks)):
            if (folder / below).is_dir():
                found = scan(folder / below)
                names |= {f"{folder.name}/{name}": path for name, path in found.images.items()}
                unused += found.unused
    return images, masks, _not_ours(unused, config)


def _files_of_one_folder(folder: Path, config: Config) -> tuple[dict[str, Path], dict[str, Path], tuple[Unused, ...]]:
    """Tells images and masks in the same folder apart by the suffix of the masks' names."""
    if not config.mask_suffix:
        raise UserError(
            f"data.masks: {folder} is the folder of the images, too; move the masks into a folder of their own, or set "
            "data.mask_suffix to what their names have more at the end, e.g. _mask"
        )
    found = scan(folder)
    masks = {name: path for name, path in found.images.items() if without_suffix(name, config.mask_suffix) != name}
    masks |= {name: found.images[name] for name in numbered(masks, found.images)}  # of no image, so they are noted
    images = {name: path for name, path in found.images.items() if name not in masks}
    return images, masks, _not_ours(found.unused, config)


def _not_ours(unused: tuple[Unused, ...], config: Config) -> tuple[Unused, ...]:
    """Removes files from `unused` that have a purpose: the class file and the lists."""
    used = (config.classes, config.labeled, config.unlabeled, config.val)
    return without_used(unused, [config.root / path for path in used if path])


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _no_match(images: dict[str, Path], masks: dict[str, Path], others: tuple[Unused, ...], config: Config) -> str:
    """Says why no image has a mask."""
    if masks:
        pair = f"{next(iter(masks.values()))} beside {next(iter(images.values()))}"
        return f"data.masks: no mask has the name of an image ({pair}): {remedy(images, masks)}"
    message = f"data.masks: {config.root / config.masks} holds no image file"
    found = [str(one) for one in others if one.matters and (config.root / config.masks) in one.files[0].parents]
    if any(".npy" in one for one in found):
        found.append("arrays become PNG with PIL.Image.fromarray(array.astype('uint8')).save(...)")
    return message + (f": {'; '.join(found)}" if found else "")
