"""Makes other people's code callable: imports it from a checkout, and stands in for old versions of its libraries."""

import collections
import collections.abc
import importlib
import logging
import random  # noqa: TID251
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch
import torch.distributed as dist
import torchvision  # noqa: F401  searches for packages at its first import, so it comes before the stand-ins
from PIL import Image
from torch import nn

from semiseg.errors import UserError

# The training scripts import these packages; nothing that is timed uses them.
UNUSED = (
    "pandas",
    "skimage",
    "skimage.measure",
    "tensorboard",
    "torch.utils.tensorboard",
    "scipy",
    "scipy.stats",
    "scipy.ndimage",
    "imas.dataset.hardness",
)  # fmt: skip  (the last was never published)
NEEDED = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}


def modules(option: str, path: Path, names: list[str], home: str) -> list[ModuleType]:
    """Imports modules from a checkout.

    Args:
        option: the user's option, for messages.
        path: the checkout.
        names: the names of the modules.
        home: where the code is published.

    Raises:
        UserError: the path is no checkout of that code, or a package that it needs is not installed.
    """
    for name in names:
        file = path / f"{name.replace('.', '/')}.py"
        if not file.is_file():
            raise UserError(f"{option}: is no checkout of {home} (it holds no {file.relative_to(path)}); clone it")
    absent = [name for name in UNUSED if not _is_installed(name)]
    sys.path.insert(0, str(path))
    sys.modules.update({name: _Hollow(name) for name in absent})
    try:
        with as_written_for(torch.device("cpu")):
            found = [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        package = NEEDED.get(str(error.name), error.name)
        raise UserError(f"{option}: its code needs the package {package}; pip install it here") from error
    finally:
        sys.path.remove(str(path))
        for name in absent:
            del sys.modules[name]
    for module in list(sys.modules.values()):
        if str(getattr(module, "__file__", None)).startswith(str(path)) and hasattr(module, "np"):
            module.np = OLD_NUMPY  # type: ignore[attr-defined]
    for name, module in zip(names, found, strict=True):
        if not str(module.__file__).startswith(str(path)):
            raise UserError(f"{option}: another package is called {name.split('.')[0]}; uninstall it to compare")
    return found


class _OldNumpy(ModuleType):
    """numpy with `np.int`, and with `np.uint8(-1)` being 255."""

    int = int

    class _Wrapping:
        dtype = np.dtype("uint8")

        def __call__(self, value: Any) -> Any:
            return np.asarray(value).astype(int if np.isscalar(value) else np.uint8).astype(np.uint8)

    uint8 = _Wrapping()

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


OLD_NUMPY = _OldNumpy("numpy")


class _Hollow(ModuleType):
    """Stands in for a package that is imported but not used."""

    __spec__ = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@contextmanager
def as_written_for(device: torch.device) -> Iterator[None]:
    """Restores what the code expects of old versions of numpy and Python, and of one GPU process.

    Without a GPU, `.cuda()` does nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(patch.object(collections, "Iterable", collections.abc.Iterable, create=True))
        stack.enter_context(patch.object(Image, "fromarray", _fromarray))
        stack.enter_context(patch.object(random, "seed", lambda number: _REAL_SEED(int(number))))
        for name, value in (("get_rank", 0), ("get_world_size", 1), ("is_initialized", True)):
            stack.enter_context(patch.object(dist, name, lambda *_, value=value, **__: value))
        for name in ("all_reduce", "barrier"):
            stack.enter_context(patch.object(dist, name, lambda *_, **__: None))
        if device.type == "cpu":
            for kind in (torch.Tensor, nn.Module):
                stack.enter_context(patch.object(kind, "cuda", lambda self, *_, **__: self))
        yield


_REAL_FROMARRAY, _REAL_SEED = Image.fromarray, random.seed


def _fromarray(array: Any, mode: str | None = None) -> Image.Image:
    """Drops `mode`, which Pillow 13 no longer has. An array of uint8 with two axes is gray without it."""
    return _REAL_FROMARRAY(array)


def seed(number: int) -> None:
    """Seeds the global generators that such code draws from."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002, TID251
    torch.manual_seed(number)  # noqa: TID251


COMMIT = "COMMIT"  # file in a copy of a checkout that `carry.py` made


def commit(path: Path) -> str | None:
    """Returns the commit of a checkout or of a copy of one, or None if it is not known."""
    if (path / COMMIT).is_file():
        return (path / COMMIT).read_text(encoding="utf-8").strip()
    try:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class Drawer:
    """A loader with one item, as the evaluation loops expect."""

    def __init__(self, *item: Any) -> None:
        self.item = item
        self.sampler = MagicMock()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield self.item


QUIET = logging.getLogger("semiseg.benchmarks.peers")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False
