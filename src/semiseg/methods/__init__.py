"""The methods, one file for each paper. A method is found by the name of its module; there is no registry."""

import importlib
import pkgutil

from semiseg.errors import UserError
from semiseg.method import SemiMethod


def names() -> list[str]:
    """Returns the names of the methods in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> type[SemiMethod]:
    """Imports the method called `name`. A dotted name is a module of your own that defines `Method`.

    Raises:
        UserError: there is no such method.
    """
    module = name if "." in name else f"{__name__}.{name}"
    try:
        return importlib.import_module(module).Method
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module and not module.startswith(f"{error.name}."):
            raise  # the module exists, but a module that it imports does not
        raise UserError(f"method.name: there is no {name!r}; choose one of {', '.join(names())}") from error
