"""Your own photographs: a folder of images, a folder of masks for some of them, and a list of classes.

    root/images/**/NAME.jpg       jpg, png, bmp, webp, tif ...
    root/masks/**/NAME.png        same path below its folder; one channel that holds class indices, 255 = ignored
    root/classes.txt              class 0 on the first line, class 1 on the second ...; `name` or `name #RRGGBB`

Lists that the config does not name have defaults: labeled is every image with a mask that no other list names,
unlabeled is every other image, and validation is a share (`val_fraction`) of the images with masks. The choice of
validation images depends on their names alone, so every run of every method is evaluated on the same images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from semiseg.data.catalog import Catalog, scan
from semiseg.data.classes import read_classes
from semiseg.data.dataset import DataConfig, Dataset, Sample
from semiseg.data.lists import assemble, read_lists, rest
from semiseg.errors import UserError
from semiseg.rng import folded_seed
from semiseg.types import IGNORE


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
    classes, _ = read_classes(config.root / config.classes, config.background)
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
    masked, fraction = [sample for sample in catalog.samples if sample.mask], config.val_fraction or 0.2
    val = given.val or held_out(masked, fraction, given.labeled, given.unlabeled)
    labeled = given.labeled or rest(masked, val, given.unlabeled)
    unlabeled = given.unlabeled or rest(catalog.samples, val, labeled)
    remedy = f"put one of the same name into {folders['masks']}"
    return assemble(labeled, unlabeled, val, classes, config.values, remedy)


def held_out(samples: Sequence[Sample], fraction: float, *taken: Sequence[Sample] | None) -> tuple[Sample, ...]:
    """Chooses a share of `samples`, at least one, by their names alone: the first ones in an order that names give.

    So a new image changes the choice little, and lists of other images change nothing.

    Args:
        samples: all images with masks.
        fraction: the share of `samples`.
        taken: lists of images that cannot be chosen. The next ones in the order take their places.
    """
    ranked = sorted(samples, key=lambda sample: folded_seed(0, "held out", sample.name))
    chosen = rest(ranked, *taken)[: max(1, round(fraction * len(ranked)))]
    return tuple(sorted(chosen, key=lambda sample: sample.name))
