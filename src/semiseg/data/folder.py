"""Your own photographs: a folder of images, a folder of masks for some of them, and a list of classes.

    root/images/**/NAME.jpg       jpg, png, bmp, webp, tif ...
    root/masks/**/NAME.png        same path below its folder; one channel that holds class indices, 255 = ignored
    root/classes.txt              class 0 on the first line, class 1 on the second ...; `name` or `name #RRGGBB`

Lists that the config does not name have defaults: labeled is every image with a mask that no other list names,
unlabeled is every other image, and validation is a share (`val_fraction`) of the images with masks. The choice of
validation images depends on their names alone, so every run of every method is evaluated on the same images.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from semiseg.data.catalog import CONTROL, Catalog, scan
from semiseg.data.dataset import DataConfig, Dataset, Sample
from semiseg.data.lists import assemble, read_lines, read_lists, rest
from semiseg.errors import UserError
from semiseg.rng import folded_seed
from semiseg.types import IGNORE, ClassTable, voc_color


class Config(DataConfig):
    """Paths are relative to `root` unless they are absolute."""

    layout: Literal["folder"] = "folder"
    images: Path = Path("images")
    masks: Path = Path("masks")
    classes: Path = Path("classes.txt")
    # maps mask values (up to 16 bits) to class indices, or to 255; other values are class indices already
    values: dict[Annotated[int, Field(ge=0, le=65535)], int] | None = None
    background: str | int | None = None  # name or index of the class that means "nothing of interest"
    val_fraction: float | None = Field(None, gt=0, lt=1)  # share of the images with masks; 0.2 where `val` is not given

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
    folders = {key: config.root / getattr(config, key) for key in ("images", "masks")}
    for key, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"data.{key}: no folder {folder}; set data.{key} to the folder of {key} below data.root")
    classes = read_classes(config.root / config.classes, config.background)
    bad = {
        value: index for value, index in (config.values or {}).items() if index not in (*range(len(classes)), IGNORE)
    }
    if bad:
        raise UserError(
            f"data.values: {bad} maps to no class; classes are 0 to {len(classes) - 1}, {IGNORE} means ignored"
        )
    images, masks = (scan(folder) for folder in folders.values())
    if not images:
        raise UserError(f"data.images: {folders['images']} holds no image")
    catalog = Catalog(config.root, [Sample(name, path, masks.get(name)) for name, path in images.items()])
    given = read_lists(config, catalog, listed_masks=True)
    if not (masks.keys() & images.keys() or given.labeled):
        raise UserError(f"data.masks: no file in {folders['masks']} has the name of an image in {folders['images']}")
    masked = rest([sample for sample in catalog.samples if sample.mask], given.labeled, given.unlabeled)
    val = given.val or held_out(masked, 0.2 if config.val_fraction is None else config.val_fraction)
    labeled = given.labeled or rest(masked, val)
    unlabeled = given.unlabeled or rest(catalog.samples, val, labeled)
    remedy = f"put one of the same name into {folders['masks']}"
    return assemble(labeled, unlabeled, val, classes, config.values, remedy)


def held_out(samples: tuple[Sample, ...], fraction: float) -> tuple[Sample, ...]:
    """Chooses a share of `samples`, at least one, by their names alone. So a new image changes the choice little."""
    ranked = sorted(samples, key=lambda sample: folded_seed(0, "held out", sample.name))
    chosen = ranked[: max(1, round(fraction * len(ranked)))]
    return tuple(sorted(chosen, key=lambda sample: sample.name))


def read_classes(path: Path, background: str | int | None) -> ClassTable:
    """Reads a class table from a text file.

    Each line is a class: its name, and maybe its color (#RRGGBB). Without a color it gets that of VOC's palette. A line
    that starts with `#` is a comment.

    Raises:
        UserError: the file is missing, it has fewer than 2 or more than 254 classes, a name occurs twice, or
            `background` is none of the classes.
    """
    lines = [line for _, line in read_lines(path, "data.classes", most=100_000) if not line.startswith("#")]
    entries = [re.fullmatch(r"(.+?)(?:\s+#([0-9a-fA-F]{6}))?", line) for line in lines]
    names = tuple(entry[1] for entry in entries if entry)
    if not 2 <= len(names) <= 254:
        raise UserError(f"{path}: has {len(names)} classes; between 2 and 254 are needed, one name a line")
    if garbled := [name for name in names if CONTROL.search(name)]:
        raise UserError(f"{path}: class {garbled[0]!r} has a tab or another control character in its name; remove it")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: class {twice[0]!r} occurs twice; names must differ")
    colors = tuple(
        (int(entry[2][:2], 16), int(entry[2][2:4], 16), int(entry[2][4:], 16)) if entry[2] else voc_color(index)
        for index, entry in enumerate(entry for entry in entries if entry)
    )
    if isinstance(background, str):
        if background not in names:
            raise UserError(f"data.background: no class {background!r} in {path}; known are {', '.join(names)}")
        background = names.index(background)
    if background is not None and not 0 <= background < len(names):
        raise UserError(f"data.background: no class {background} in {path}; it has 0 to {len(names) - 1}")
    return ClassTable(names, colors, background)
