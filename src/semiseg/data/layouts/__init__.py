"""Layouts of data on disk: one file each. It has a `Config` (a `DataConfig`) and a `load(config) -> Dataset`."""

import importlib
import pkgutil
from types import ModuleType

from semiseg.errors import UserError


def names() -> tuple[str, ...]:
    """Returns the names of the layouts that ship with semiseg, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def module(name: str) -> ModuleType:
    """Imports the module of the layout `name`: one of `names()`, or the dotted name of your own module.

    Raises:
        UserError: there is no such layout.
    """
    target = name if "." in name else f"{__name__}.{name}"
    try:
        found = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if not f"{target}.".startswith(f"{error.name}."):  # the layout exists, but a module that it imports does not
            raise
        raise UserError(f"data.layout: no layout {name!r}; known are {', '.join(names())}") from error
    if not (hasattr(found, "Config") and hasattr(found, "load")):
        raise UserError(f"data.layout: {name!r} is no layout; known are {', '.join(names())}")
    return found
