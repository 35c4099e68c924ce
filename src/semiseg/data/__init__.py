"""Reads files from the disk and makes uint8 batches: layouts, partitions, weak augmentation, loader.

A layout is a module with a `Config` (a `DataConfig`) and a `load(config) -> Dataset`. It is found by its name.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from semiseg.data.dataset import DataConfig, Dataset
from semiseg.data.pseudo import with_pseudo_labels
from semiseg.errors import UserError


def layouts() -> tuple[str, ...]:
    """Returns the names of the layouts that ship with semiseg, sorted."""
    modules = {
        module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)
    }
    return tuple(
        sorted(name for name, module in modules.items() if hasattr(module, "Config") and hasattr(module, "load"))
    )


def layout_module(name: str) -> ModuleType:
    """Imports the module of the layout `name`: one of `layouts()`, or the dotted name of your own module.

    Raises:
        UserError: there is no such layout.
    """
    target = name if "." in name else f"{__name__}.{name}"
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if not f"{target}.".startswith(f"{error.name}."):  # the layout exists, but a module that it imports does not
            raise
        raise UserError(f"data.layout: no layout {name!r}; known are {', '.join(layouts())}") from error
    if not (hasattr(module, "Config") and hasattr(module, "load")):
        raise UserError(f"data.layout: {name!r} is no layout; known are {', '.join(layouts())}")
    return module


def load(config: DataConfig) -> Dataset:
    """Loads the dataset that `config` describes. It reads lists and finds files, but opens no image.

    Raises:
        UserError: a folder, a list or a mask is missing, or the lists overlap.
    """
    if not config.root.exists():
        below = "" if config.root.is_absolute() else f" below {Path.cwd()}"
        raise UserError(f"data.root: there is no {config.root}{below}; set it, e.g. with --set data.root=PATH")
    dataset = layout_module(config.layout).load(config)
    return dataset if config.pseudo is None else with_pseudo_labels(dataset, config.root / config.pseudo)
