"""PASCAL VOC 2012 in its original folders: classic (VOC's masks) and blended (masks of VOC and SBD).

Lists that the config does not name have defaults: validation is ImageSets/Segmentation/val.txt, labeled is train.txt
beside it (if it is missing, every other image with a mask), and unlabeled is every other image with a mask. So with
`masks: SegmentationClassAug` the training images are the 10,582 of train_aug that papers use; no list is needed.
"""

from pathlib import Path
from typing import Literal

from semiseg.data.catalog import Catalog
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample
from semiseg.data.lists import assemble, read_list, read_lists, rest
from semiseg.data.scan import scan
from semiseg.errors import UserError
from semiseg.types import IGNORE, ClassTable, voc_color

CLASSES = ClassTable.of(
    ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
     "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    background=0,
)  # fmt: skip
_COLORS = {color: index for index, color in enumerate(CLASSES.colors)} | {voc_color(IGNORE): IGNORE}


class Config(DataConfig):
    """`root` is the folder that holds JPEGImages, or VOCdevkit, or the folder that holds VOCdevkit."""

    layout: Literal["voc"] = "voc"
    # Folder of the masks, e.g. SegmentationClassAug. None: the masks that a list names beside its images; for other
    # images those in SegmentationClass.
    masks: str | None = None


def load(config: Config) -> Dataset:
    """Loads the dataset that `config` describes. The module's docstring says which lists are the default.

    Raises:
        UserError: a folder, a list or a mask is missing, or the lists overlap.
    """
    root = _find_root(config.root)
    mask_folder = _find_masks(root, config.masks or "SegmentationClass")
    found, found_masks = scan(root / "JPEGImages"), scan(mask_folder)
    masks = found_masks.images
    catalog = Catalog(root, [Sample(name, path, masks.get(name)) for name, path in found.images.items()])
    given = read_lists(config, catalog, listed_masks=config.masks is None)
    official = root / "ImageSets" / "Segmentation"
    val = given.val or _official(official / "val.txt", catalog)
    if val is None:
        raise UserError(f"data.val: there is no {official / 'val.txt'}; give a list of validation images")
    masked = [sample for sample in catalog.samples if sample.mask]
    labeled = given.labeled or rest(_official(official / "train.txt", catalog) or masked, val, given.unlabeled)
    unlabeled = given.unlabeled or rest(masked, val, labeled)
    remedy = f"{mask_folder} must hold it"
    if config.masks is None:
        remedy += "; images outside VOC's own 2,913 need data.masks: SegmentationClassAug"
    coding = MaskCoding(len(CLASSES), None, _COLORS, config.mask_orientation)
    return assemble(labeled, unlabeled, val, CLASSES, coding, remedy, found.unused + found_masks.unused)


def _official(path: Path, catalog: Catalog) -> tuple[Sample, ...] | None:
    return read_list(path, catalog, listed_masks=False, setting=path.name) if path.is_file() else None


def _find_root(root: Path) -> Path:
    for candidate in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    raise UserError(f"data.root: {root} holds no JPEGImages, VOC2012/JPEGImages or VOCdevkit/VOC2012/JPEGImages")


def _find_masks(root: Path, name: str) -> Path:
    folder = root / name
    if folder.is_dir():
        return folder
    message = f"data.masks: {root} holds no folder {name}"
    if name == "SegmentationClassAug":
        message += (
            "; VOC's download does not have it: it holds VOC's masks and those of SBD (Hariharan et al., 2011) as "
            "PNG, 10,582 for train_aug; leave data.masks out to use SegmentationClass"
        )
    raise UserError(message)
