"""Reads files from the disk and makes uint8 batches: layouts, partitions, weak augmentation, loader."""

from pathlib import Path

from semiseg.data import layouts
from semiseg.data.dataset import DataConfig, Dataset
from semiseg.data.pseudo import with_pseudo_labels
from semiseg.errors import UserError


def load(config: DataConfig) -> Dataset:
    """Loads the dataset that `config` describes. It reads lists and finds files, but opens no image.

    Raises:
        UserError: a folder, a list or a mask is missing, or the lists overlap.
    """
    if not config.root.exists():
        below = "" if config.root.is_absolute() else f" below {Path.cwd()}"
        raise UserError(f"data.root: there is no {config.root}{below}; set it, e.g. with --set data.root=PATH")
    dataset = layouts.module(config.layout).load(config)
    return dataset if config.pseudo is None else with_pseudo_labels(dataset, config.root / config.pseudo)
