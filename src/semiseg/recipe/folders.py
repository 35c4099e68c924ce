"""Says what a folder is that somebody has named in place of a recipe, and which command suits it.

This module does not import torch, as `semiseg.recipe.file`.
"""

import itertools
import shlex
from pathlib import Path

from semiseg.errors import UserError
from semiseg.runs import Run

OF_EXPORTED = "semiseg.json"  # what a folder has that `semiseg export` made
_PHOTOGRAPHS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".heic"})  # most of them
_LOOKED_AT = 1000  # files and folders in which a photograph is looked for


def no_recipe(folder: Path) -> UserError:
    """Returns the error for a folder that holds no recipe."""
    run, shown = Run(folder), shlex.quote(str(folder))
    if run.exists() and (folder / "metrics.jsonl").is_file():
        return UserError(f"{folder}: is a run directory and no recipe; go on with the run: {run.command}")
    if (folder / OF_EXPORTED).is_file():
        return UserError(
            f"{folder}: is an exported network and no recipe; predict with it: semiseg predict {shown} PHOTOS --out "
            "MASKS"
        )
    if _has_photographs(folder):
        images = folder / "images" if (folder / "images").is_dir() else folder
        masks = shlex.quote(str(folder / "masks")) if (folder / "masks").is_dir() else "FOLDER_OF_MASKS"
        return UserError(
            f"{folder}: is a folder of photographs and no recipe; make a recipe for them: semiseg init NEW_FOLDER "
            f"--images {shlex.quote(str(images))} --masks {masks}"
        )
    return UserError(
        f"{folder}: is a folder without a recipe; name a YAML file, a folder that semiseg init made, or a recipe that "
        "semiseg recipes lists"
    )


def _has_photographs(folder: Path) -> bool:
    some = itertools.islice(folder.rglob("*"), _LOOKED_AT)
    return any(path.suffix.lower() in _PHOTOGRAPHS for path in some)
