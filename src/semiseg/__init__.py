"""semiseg: semantic segmentation from a few labeled images and many unlabeled ones.

import semiseg

run = semiseg.train("recipe.yaml", out="runs/first")
scores = semiseg.evaluate("runs/first")
semiseg.predict("runs/first", "photos", out="masks")
predictor = semiseg.load("runs/first")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semiseg.api import evaluate, export, load, predict, train
    from semiseg.errors import UserError
    from semiseg.runs import Run

    __version__: str

__all__ = ["Run", "UserError", "evaluate", "export", "load", "predict", "train"]

_HOME = {
    "Run": "runs",
    "UserError": "errors",
    "evaluate": "api",
    "export": "api",
    "load": "api",
    "predict": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import semiseg` alone does not import torch."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("semiseg")
    if name in _HOME:
        return getattr(importlib.import_module(f"semiseg.{_HOME[name]}"), name)
    raise AttributeError(f"module 'semiseg' has no attribute {name!r}")
