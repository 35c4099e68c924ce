"""Trains the stages of ST++: labels; labels and reliable pseudo-labels; labels and all pseudo-labels (CVPR 2022)."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from semiseg import api, data
from semiseg.engine.progress import counting
from semiseg.errors import UserError
from semiseg.recipe.load import load_recipe, override
from semiseg.recipe.recipe import Recipe
from semiseg.runs import RESULT_STAGE, Run

METHOD = "st_pp"
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of the authors


def first_stage(recipe: Recipe) -> Recipe:
    """Makes the recipe of the first stage: supervised, and the checkpoints at each third of the steps are kept."""
    settings = {"name": "supervised", **recipe.of_labels}
    return override(
        recipe, [f"method={json.dumps(settings)}", f"engine.keep_every={math.ceil(recipe.engine.steps / 3)}"]
    )


def later_stage(recipe: Recipe, masks: Path, share: float | None = None) -> Recipe:
    """Makes the recipe of a later stage: it learns the most reliable share of the pseudo-labels in `masks`, or all."""
    return override(recipe, [f"data.pseudo={json.dumps(str(masks))}", f"data.pseudo_share={json.dumps(share)}"])


def result(recipe: Recipe, out: Path) -> tuple[Path, Recipe]:
    """Returns the run directory in `out` whose result counts, and its recipe.

    Example:
        >>> result(load_recipe(Path("methods/st_pp"), ["data.root=photos"]), Path("out"))[0].as_posix()
        'out/stage-3'
    """
    return out / RESULT_STAGE, later_stage(recipe, out.absolute() / "pseudo-2")


def self_train(
    recipe: Recipe | Path | str,
    out: Path | str,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    share: float = 0.5,
    flip: bool = True,
    scales: Sequence[float] = SCALES,
) -> dict[str, Run]:
    """Trains the three stages into `out`. The same call goes on where it was interrupted.

    The folders are stage-1 (supervised), pseudo-1 (masks of all unlabeled images, with their reliability), stage-2
    (labels and the reliable masks), pseudo-2 (the reliable masks, and the rest predicted by stage 2), stage-3 (labels
    and all masks). Each stage is a run like any other, starts from the recipe's weights, and takes the recipe's steps.

    Args:
        recipe: a recipe with method st_pp, or its path or name.
        out: the folder.
        overrides: settings that replace those of the recipe.
        console: shows the progress. None: nothing is shown.
        share: of the unlabeled images, the most reliable ones: those that stage 2 learns.
        flip: whether pseudo-labels are the mean over the image and its mirror image.
        scales: factors of the image's size over which pseudo-labels are the mean.

    Returns:
        The runs by their names.

    Raises:
        UserError: the recipe is of another method, or as `semiseg.train`.
        Interrupted: the process received Ctrl-C, SIGTERM or SIGHUP. The completed steps are saved.
    """
    changes = list(overrides)
    whole = override(recipe, changes) if isinstance(recipe, Recipe) else load_recipe(Path(recipe), changes)
    console, out = console or Console(quiet=True), api.folder(Path(out)).absolute()
    check(whole, share)
    masks = [out / "pseudo-1", out / "pseudo-2"]
    stages = {
        "stage-1": first_stage(whole),
        "stage-2": later_stage(whole, masks[0], share),
        RESULT_STAGE: result(whole, out)[1],
    }
    runs: dict[str, Run] = {}
    for number, (name, planned) in enumerate(stages.items()):
        if number:  # a second time nothing is predicted, but other flips or scales are an error
            with counting(f"{masks[number - 1].name}: predicting", console) as count:
                api.pseudo_label(
                    out / f"stage-{number}", masks[number - 1], device=whole.engine.device, on_image=count, flip=flip,
                    scales=scales,
                )  # fmt: skip
        runs[name] = api.train(planned, out / name, console=console)
    return runs


def check(recipe: Recipe, share: float = 0.5) -> None:
    """Checks that a recipe can be trained in stages on its data.

    Raises:
        UserError: it cannot.
    """
    if recipe.method_name != METHOD:
        raise UserError(f"method.name: {recipe.method_name} has no stages; self-train is for {METHOD}")
    if recipe.data.pseudo is not None:
        raise UserError("data.pseudo: self-train makes the pseudo-labels itself; remove this setting")
    if recipe.engine.steps < 3:
        raise UserError(f"engine.steps: {recipe.engine.steps} cannot be divided into thirds; use more")
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: is no share of the images; use e.g. 0.5")
    unlabeled = len(data.load(recipe.data).unlabeled)
    if int(share * unlabeled) < 1:
        raise UserError(
            f"--share {share:g}: is less than one of {unlabeled} unlabeled images; use more images or a larger share"
        )
    if int(share * unlabeled) == unlabeled:
        raise UserError(f"--share {share:g}: leaves no image for stage 3; use a smaller one, e.g. 0.5")
