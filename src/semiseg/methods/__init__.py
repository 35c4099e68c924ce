"""The methods, one file for each paper. A method is found by the name of its module; there is no registry."""

import importlib
import pkgutil

from semiseg.errors import UserError
from semiseg.method import SemiMethod


def names() -> list[str]:
    """Returns the names of the methods in this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def summary(name: str) -> str:
    """Returns the first line of a method's module: what the method is."""
    return (importlib.import_module(f"{__name__}.{name}").__doc__ or "").splitlines()[0]


def load(name: str) -> type[SemiMethod]:
    """Imports the method called `name`. A dotted name is a module of your own that defines `Method`.

    Raises:
        UserError: there is no such method.
    """
    module = name if "." in name else f"{__name__}.{name}"
    unknown = f"method.name: there is no {name!r}; choose one of {', '.join(names())}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # the method exists, but a module that it imports does not
            raise
        raise UserError(unknown) from error
    if not hasattr(found, "Method"):
        raise UserError(unknown)
    return found.Method
