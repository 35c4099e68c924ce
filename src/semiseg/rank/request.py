"""What to rank, and where to write."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.api import folder, refuse_others
from semiseg.engine.predict_files import is_unchanged
from semiseg.errors import UserError
from semiseg.recipe.engine import Device

BY = ("hardness", "entropy", "margin", "random")
TABLE, PAGE = "ranking.csv", "ranking.html"
ANNOTATIONS, MASKS = "annotations", "masks"  # folders of predictions


@dataclass(frozen=True)
class Request:
    """What to rank.

    Attributes:
        run: directory of the run whose networks look at the images.
        images: image files, folders or patterns.
        out: the new folder.
        count: how many images to choose.
        by: what makes an image valuable, of BY; None: hardness, or entropy if the run has one network only.
        seed: of `random`; None: 0.
        device: where to compute.
        overwrite: whether an earlier ranking in `out` is replaced.
        overrides: settings of data that replace those of the run's recipe.
    """

    run: Path
    images: Sequence[Path | str]
    out: Path
    count: int = 20
    by: str | None = None
    seed: int | None = None
    device: Device = "auto"
    overwrite: bool = False
    overrides: Sequence[str] = ()


def check(request: Request) -> Path:
    """Checks all that can be checked without a look at run and images.

    Returns:
        The output folder, with an absolute path.

    Raises:
        UserError: an option is wrong or would be ignored, or the output folder holds something.
    """
    if request.count < 1:
        raise UserError(f"--count {request.count}: is no number of images; use 1 or more")
    if request.by is not None and request.by not in BY:
        raise UserError(f"--by {request.by}: there is no such measure; choose of {', '.join(BY)}")
    if request.seed is not None and request.by != "random":
        raise UserError(f"--seed {request.seed}: has an effect with --by random only; leave it out")
    refuse_others([*request.overrides], ("data",), "a ranking")
    out = Path(os.path.abspath(folder(request.out)))  # noqa: PTH100 - keeps links as they are
    if out.exists() and any(out.iterdir()):
        _check_replaced(out, request.overwrite)
    return out


def _check_replaced(out: Path, overwrite: bool) -> None:
    """Checks that the folder holds a ranking, that it may be replaced, and that nobody has worked on it."""
    if not all((out / name).is_file() for name in (TABLE, PAGE)):
        raise UserError(f"--out {out}: exists already and is not empty; name a new folder")
    if not overwrite:
        raise UserError(f"--out {out}: holds a ranking already; name a new folder, or replace it with --overwrite")
    for place in (out / ANNOTATIONS, out / MASKS):
        for path in sorted(place.rglob("*")):
            if path.is_file() and ".parts" not in path.parts and not is_unchanged(path):
                raise UserError(
                    f"{path}: was changed or added after the ranking was written; take it with semiseg init --update, "
                    "move it, or name a new folder with --out"
                )
