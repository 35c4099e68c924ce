"""Cityscapes in its original folders: leftImg8bit and gtFine, 19 classes.

Masks are the files `*_gtFine_labelTrainIds.png` if there is one for every `*_gtFine_labelIds.png`. Otherwise masks are
the latter, and their 34 ids are mapped to the 19 classes. Lists that the config does not name have defaults: labeled is
every image of train that no other list names, unlabeled every other image of train, and validation every image of val.
"""

from pathlib import Path
from typing import Literal

from semiseg.data.catalog import Catalog
from semiseg.data.dataset import DataConfig, Dataset, MaskCoding, Sample
from semiseg.data.lists import assemble, read_lists, rest
from semiseg.data.scan import scan
from semiseg.errors import UserError
from semiseg.types import IGNORE, ClassTable

# Label id, name, color of the 19 classes of the benchmark, in the order of their train ids (Cordts et al., 2016).
_CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CLASSES = ClassTable(tuple(name for _, name, _ in _CLASSES), tuple(color for _, _, color in _CLASSES))
LABEL_IDS = dict.fromkeys(range(34), IGNORE) | {label_id: index for index, (label_id, _, _) in enumerate(_CLASSES)}


class Config(DataConfig):
    """`root` is the folder that holds leftImg8bit and gtFine."""

    layout: Literal["cityscapes"] = "cityscapes"


def load(config: Config) -> Dataset:
    """Loads the dataset that `config` describes. The module's docstring says which lists are the default.

    A sample has a name like `aachen_000000_000019`. If a list names a mask beside an image, that mask is not used: both
    kinds of mask hold the same annotation.

    Raises:
        UserError: a folder, a list or a mask is missing, or the lists overlap.
    """
    for folder in ("leftImg8bit", "gtFine"):
        if not (config.root / folder).is_dir():
            raise UserError(f"data.root: {config.root} holds no {folder}; it must hold leftImg8bit and gtFine")
    images = _scan(config, "leftImg8bit", "_leftImg8bit")
    masks, values = _scan(config, "gtFine", "_gtFine_labelTrainIds"), None
    if not masks or not masks.keys() >= _scan(config, "gtFine", "_gtFine_labelIds").keys():
        masks, values = _scan(config, "gtFine", "_gtFine_labelIds"), LABEL_IDS
    samples = {key: Sample(key.rpartition("/")[2], path, masks.get(key)) for key, path in images.items()}
    catalog = Catalog(config.root, samples.values(), suffix="_leftImg8bit")
    train, official_val = (
        tuple(sample for key, sample in samples.items() if key.startswith(f"{split}/")) for split in ("train", "val")
    )
    given = read_lists(config, catalog, listed_masks=False)
    val = given.val or official_val
    labeled = given.labeled or rest(train, val, given.unlabeled)
    unlabeled = given.unlabeled or rest(train, val, labeled)
    remedy = f"{config.root / 'gtFine'} must hold its *_gtFine_labelIds.png or *_gtFine_labelTrainIds.png"
    coding = MaskCoding(len(CLASSES), values, None, config.mask_orientation)
    return assemble(labeled, unlabeled, val, CLASSES, coding, remedy)


def _scan(config: Config, folder: str, suffix: str) -> dict[str, Path]:
    """Finds the files of one kind: `split/city/id` -> file."""
    files = scan(config.root / folder).images
    return {key.removesuffix(suffix): path for key, path in files.items() if key.endswith(suffix)}
