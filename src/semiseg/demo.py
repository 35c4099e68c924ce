"""Runs `semiseg demo`: from image files to a comparison, in a few minutes on a CPU and without a download.

The demo draws scenes and writes them to disk as image files, a few of them with mask files. Supervised training and
iMAS then start from the same initial weights and take the same number of optimizer steps on the same labels.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from semiseg import api
from semiseg.engine.progress import counting
from semiseg.errors import UserError
from semiseg.recipe.load import validate
from semiseg.recipe.recipe import Recipe
from semiseg.report import sheet, table
from semiseg.runs import Run
from semiseg.scenes import write_scenes

NUM_TRAIN, NUM_LABELED, NUM_VAL, SIZE_PX, CROP_PX = 600, 40, 100, 96, 80
STEPS = 300
REHEARSED = 5  # number of steps to estimate the time of a training from
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"name": "supervised"},
    "iMAS": {"name": "imas", "threshold": 0.9, "ema_decay": 0.98},
}


def recipe(scenes: Path, method: dict[str, Any], seed: int) -> dict[str, Any]:
    """Returns the demo's recipe as plain values. The demo writes it to each run's config.yaml."""
    return {
        "data": {
            "layout": "folder",
            "root": str(scenes),
            "background": "ground",
            "labeled": "splits/labeled.txt",
            "unlabeled": "splits/unlabeled.txt",
            "val": "splits/val.txt",
            "crop": CROP_PX,
            "scale": [0.75, 1.5],
            "workers": 0,
        },
        "model": {
            "encoder": "tu-tf_efficientnet_lite0",
            "weights": "lite",
            # for small images
            "options": {"encoder_depth": 4, "decoder_channels": 64, "decoder_atrous_rates": [2, 4, 6]},
        },
        "method": method,
        "optim": {"lr": 0.02, "head_lr_factor": 5.0},
        "engine": {"steps": STEPS, "batch_size": 8, "seed": seed, "precision": "auto", "eval_every": STEPS // 4},
    }


def main(out: Path | None, seed: int, console: Console) -> dict[str, Run]:
    """Draws scenes, trains twice, prints a table and writes a picture. Returns the runs.

    Args:
        out: folder to write into. None: the first of semiseg-demo, semiseg-demo-2, ... that does not exist.
        seed: seed of scenes, initial weights, order and augmentation.
        console: where to print.

    Raises:
        UserError: the folder is not empty.
    """
    out = api.folder(out or _free(Path("semiseg-demo")))
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists already and is not empty; name another folder with --out")
    scenes = out / "scenes"
    numbers = {"num_train": NUM_TRAIN, "num_val": NUM_VAL, "labeled": NUM_LABELED}
    with counting("drawing scenes", console) as count:
        write_scenes(scenes, **numbers, size=SIZE_PX, seed=seed, on_image=count)
    console.print(
        f"{NUM_TRAIN} scenes drawn into {scenes}: {NUM_LABELED} with masks, {NUM_TRAIN - NUM_LABELED} without; "
        f"{NUM_VAL} more for validation",
        highlight=False,
        soft_wrap=True,
        markup=False,
        emoji=False,
    )
    recipes = {name: validate(recipe(scenes, method, seed), "demo") for name, method in METHODS.items()}
    console.print(f"two trainings of {STEPS} steps: about {minutes(recipes.values())} here", highlight=False)
    runs = {name: api.train(each, out / name.lower(), console=console) for name, each in recipes.items()}
    console.print(table.compare(runs, table.class_names(runs["iMAS"])))
    picture = draw(out, runs)
    says = f"pictures: {picture}\nyour own photographs: semiseg init mine --images PATH"
    console.print(says, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return runs


def minutes(recipes: Iterable[Recipe]) -> str:
    """Estimates the time of the trainings from a few real steps of each, e.g. `3 minutes`."""
    rehearsals = (api.rehearse(each, steps=REHEARSED) for each in recipes)
    number = math.ceil(60 * sum(found.hours for found in rehearsals if found))
    return f"{number} minute{'s' if number > 1 else ''}"


def draw(out: Path, runs: dict[str, Run]) -> Path:
    """Writes demo.png: validation images with predictions, and the easiest and the hardest unlabeled images."""
    scenes = out / "scenes"
    names = [f"{index:04d}" for index in range(6)]
    for run in runs.values():
        predictor = api.load(run.path, "last")
        for name in names:
            predictor.write(scenes / "images/val" / f"{name}.png", run.path / "predictions" / f"{name}.png")
    rows = [
        [
            scenes / "images/val" / f"{name}.png",
            scenes / "masks/val" / f"{name}.png",
            *(run.path / "predictions" / f"{name}.png" for run in runs.values()),
        ]
        for name in names
    ]
    hardness = mean_hardness(runs["iMAS"])
    ranked = [scenes / "images" / f"{name}.png" for name in sorted(hardness, key=lambda name: hardness[name])]
    return sheet.write(
        out / "demo.png",
        [
            sheet.Block(("image", "truth", *runs), rows),
            sheet.Block(("easiest unlabeled images, as iMAS saw them", "", "", ""), sheet.in_rows(ranked[:8], 4)),
            sheet.Block(("hardest", "", "", ""), sheet.in_rows(ranked[-8:], 4)),
        ],
    )


def mean_hardness(run: Run) -> dict[str, float]:
    """Computes the mean hardness of each unlabeled image over the second half of a run, by name."""
    last = max(step for step, _, _ in run.hardness())
    seen: dict[str, list[float]] = defaultdict(list)
    for step, name, hardness in run.hardness():
        if step > last // 2:
            seen[name].append(hardness)
    return {name: sum(values) / len(values) for name, values in seen.items()}


def _free(path: Path) -> Path:
    """Returns `path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
