"""What to make a training of."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semiseg.errors import UserError
from semiseg.files import expanded
from semiseg.init import recipe
from semiseg.recipe.engine import Device
from semiseg.recipe.file import OF_FOLDER as RECIPE

ADDED = "added"  # folder below `out` with the masks of labels that an update took

Ask = Callable[[str, bool], bool]  # a question with its default answer -> the answer


@dataclass(frozen=True)
class Request:
    """What to make a training of.

    Attributes:
        out: the new folder.
        images: folder of all photographs.
        masks: folder of masks; None: the folder beside the photographs that is called as such folders are.
        coco: a COCO file in place of masks.
        labelme: a folder of LabelMe files in place of masks.
        classes: names of the classes with commas between, or a file of classes; None: found in the masks.
        val: a folder below `images`, or a list of names, of the validation images; None: a fifth is held out.
        hours: how long a training may take.
        device: where to train.
        overwrite: whether an earlier result in `out` is replaced.
    """

    out: Path
    images: Path
    masks: Path | None = None
    coco: Path | None = None
    labelme: Path | None = None
    classes: str | None = None
    val: Path | None = None
    hours: float = 1.0
    device: Device = "auto"
    overwrite: bool = False


def checked(request: Request) -> Request:
    """Returns the request with absolute paths.

    Raises:
        UserError: its parts exclude each other, a path does not exist, or the folder holds something else.
    """
    sources = [key for key in ("masks", "coco", "labelme") if getattr(request, key) is not None]
    if len(sources) > 1:
        raise UserError(f"--{sources[0]} and --{sources[1]}: exclude each other; give one")
    if request.hours <= 0:
        raise UserError(f"--hours {request.hours:g}: is not above 0")
    places: dict[str, Any] = {
        key: Path(os.path.abspath(expanded(path)))  # noqa: PTH100 - keeps links as they are
        for key in ("out", "images", "masks", "coco", "labelme", "val")
        if (path := getattr(request, key)) is not None
    }
    request = replace(request, **places)
    for key in ("images", "masks", "labelme"):
        folder = getattr(request, key)
        if folder is not None and not folder.is_dir():
            what = "is a file; name its folder" if folder.exists() else "there is no such folder"
            raise UserError(f"--{key} {folder}: {what}")
    if request.coco is not None and not request.coco.is_file():
        raise UserError(f"--coco {request.coco}: there is no such file")
    if request.out.is_relative_to(request.images) or (request.masks and request.out.is_relative_to(request.masks)):
        raise UserError(f"{request.out}: is inside the folder of the photographs or masks; name a folder elsewhere")
    if request.out.exists():
        if not request.out.is_dir():
            raise UserError(f"{request.out}: is a file; name a folder")
        ours = (request.out / RECIPE).is_file() and (request.out / RECIPE).read_text(errors="replace").startswith(
            recipe.MADE
        )
        if any(request.out.iterdir()) and not ours:
            raise UserError(f"{request.out}: exists already and is not empty; name a new folder")
        if ours and not request.overwrite:
            raise UserError(
                f"{request.out}: exists already, from an earlier init; train it with semiseg train {request.out}, or "
                "replace it with --overwrite"
            )
        if ours and any((request.out / ADDED).rglob("*.png")):
            raise UserError(
                f"{request.out / ADDED}: holds labels that --update took, which a new recipe would not use; move them "
                "to the other masks, or name a new folder"
            )
    return request


def at_work(value: Any, out: Path, work: Path) -> Any:
    """Returns a value of a recipe, with the folder that is being written in place of the one that it becomes."""
    is_below = isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(out)
    return str(work / Path(value).relative_to(out)) if is_below else value
