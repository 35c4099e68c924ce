"""One file per paper. A method is found by its module's name: no registry, no edits elsewhere."""

import importlib
import pkgutil

from semiseg.errors import UserError
from semiseg.method import SemiMethod


def names() -> list[str]:
    """Names of the methods in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> type[SemiMethod]:
    """The method called `name`; a dotted name is a module of your own that defines `Method`.

    Raises:
        UserError: there is no such method.
    """
    module = name if "." in name else f"{__name__}.{name}"
    try:
        return importlib.import_module(module).Method
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module and not module.startswith(f"{error.name}."):
            raise  # the module is there, but something that it imports is not
        raise UserError(f"method.name: there is no {name!r}; choose one of {', '.join(names())}") from error
