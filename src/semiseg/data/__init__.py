"""Reads files from the disk and makes uint8 batches: layouts, partitions, weak augmentation, loader."""

from collections.abc import Callable
from pathlib import Path

from semiseg.data import layouts
from semiseg.data.annotated import AnnotatedConfig
from semiseg.data.dataset import DataConfig, Dataset
from semiseg.data.pseudo import with_pseudo_labels
from semiseg.errors import UserError


def load(config: DataConfig, on_image: Callable[[int, int], None] = lambda done, total: None) -> Dataset:
    """Loads the dataset that `config` describes. It reads lists and finds files, but opens no image.

    Layouts of annotation files read these, compare them with the headers of images, and draw masks.

    Args:
        config: the settings.
        on_image: called with the number of masks that are drawn and the number of all that have to be drawn.

    Raises:
        UserError: a folder, a list or a mask is missing, the lists overlap, or an annotation is wrong.
    """
    if not config.root.exists():
        below = "" if config.root.is_absolute() else f" below {Path.cwd()}"
        raise UserError(f"data.root: there is no {config.root}{below}; set it, e.g. with --set data.root=PATH")
    layout = layouts.module(config.layout)
    dataset = layout.load(config, on_image) if isinstance(config, AnnotatedConfig) else layout.load(config)
    if config.pseudo is None:
        return dataset
    return with_pseudo_labels(dataset, config.root / config.pseudo, config.pseudo_share)
