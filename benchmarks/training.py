"""A real training: supervised and iMAS, the same labels and steps, as many steps as the time allows.

The recipe voc-mini-gpu with EfficientNet-Lite0: python benchmarks/training.py --data VOC-MINI --seconds 300
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
from photographs import photographs

from semiseg import api
from semiseg.errors import UserError
from semiseg.recipe.load import load_recipe
from semiseg.recipe.recipe import Recipe

METHODS = {"supervised": "{name: supervised}", "iMAS": None}  # None: the method of the recipe
RECIPE, EVALUATIONS = "voc-mini-gpu", 5
OVERHEAD_S = 15.0  # time of a run without steps and evaluations
SPARE = 0.9  # share of the time that is planned; the rest is for slow evaluations or loading
TINY = (
    "engine.batch_size=2", "data.crop=32", "data.long_side=32", "data.workers=0",
    "model={architecture: unet, encoder: tu-test_efficientnet, weights: null}",
)  # fmt: skip


@contextmanager
def recipes(run: common.Settings) -> Iterator[dict[str, Recipe]]:
    """Makes the recipe of each method. Without --data it uses drawn scenes."""
    common_to_all = ["model.encoder=tu-tf_efficientnet_lite0", f"engine.device={run.device.type}"]
    common_to_all += [f"data.workers={max(1, min(12, (os.cpu_count() or 1) - 2))}", *(TINY if run.tiny else ())]
    with photographs(None, 24) as drawn:
        if run.data is None:
            lists = [f"data.{name}={name}.txt" for name in ("labeled", "unlabeled", "val")]
            common_to_all += [f"data.root={drawn.root}", "data.masks=SegmentationClassAug", *lists]
        else:
            common_to_all += [f"data.root={run.data}"]
        yield {
            name: load_recipe(Path(RECIPE), [*common_to_all, *([f"method={method}"] if method else [])])
            for name, method in METHODS.items()
        }


def measure(run: common.Settings, results: common.Results) -> None:
    """Measures how long a step takes, then trains each method for the same number of steps.

    Raises:
        UserError: no time was given, or too little time for the evaluations and a few steps.
    """
    if run.seconds is None:
        raise UserError("--seconds: is missing; name the seconds that both trainings may take together")
    with recipes(run) as each, tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        rehearsals = {name: api.rehearse(recipe, steps=4 if run.tiny else 24) for name, recipe in each.items()}
        needed = {name: found for name, found in rehearsals.items() if found is not None}
        for name, found in needed.items():
            results.figure(f"{name}, a step, rehearsed", "s", found.step_s)
            results.figure(f"{name}, an evaluation, rehearsed", "s", found.evaluation_s)
        left = SPARE * (run.seconds - (time.monotonic() - begin))
        left -= sum(EVALUATIONS * found.evaluation_s + (0 if run.tiny else OVERHEAD_S) for found in needed.values())
        steps = int(left / sum(found.step_s for found in needed.values()))
        steps = 4 if run.tiny else steps
        if steps < EVALUATIONS and not run.tiny:
            raise UserError(f"--seconds {run.seconds:g}: leaves no time for {EVALUATIONS} steps of both methods")
        plan = [f"engine.steps={steps}", f"engine.eval_every={max(1, steps // EVALUATIONS)}",
                f"engine.save_every={steps}"]  # fmt: skip
        recipe = each["iMAS"]
        results.settings |= {
            "recipe": RECIPE, "data": run.data.name if run.data else "drawn scenes",
            "labeled": str(recipe.data.labeled),
            "encoder": recipe.model.encoder, "crop, px": recipe.data.crop, "steps": steps,
            "batch": f"{recipe.engine.batch_size}+{recipe.engine.batch_size}", "seed": recipe.engine.seed,
            "precision": recipe.engine.precision,
        }  # fmt: skip
        for name, recipe in each.items():
            begin = time.monotonic()
            finished = api.train(recipe, Path(folder) / name, plan)
            results.figure(f"{name}, whole run", "s", time.monotonic() - begin)
            report(results, name, finished)
        results.ratio("iMAS / supervised, mIoU, last", "iMAS, mIoU, last", "supervised, mIoU, last")
    results.note("One seed: runs that differ in draws and rounding alone may be several points apart.")


def report(results: common.Results, name: str, finished: api.Run) -> None:
    """Adds mIoU over the course of a run, and its speed."""
    scores, records = finished.metrics("val"), finished.metrics("train")
    last, best = finished.last(), finished.best()
    assert last is not None
    assert best is not None
    results.figure(f"{name}, mIoU, last", "1", last["miou"])
    results.figure(f"{name}, mIoU, best", "1", best["miou"])
    later = records[len(records) // 5 :]  # the first ones are slow: kernels and loader processes start
    results.figure(f"{name}, images a second", "images/s", *(record["images_per_second"] for record in later))
    results.figure(f"{name}, share of waiting for images", "1", *(record["waited"] for record in later))
    results.figure(f"{name}, memory", "MB", max(record["peak_memory_mb"] for record in records))
    results.growth_of(
        f"{name}, mIoU", "step", "1", {record["step"]: [record["miou"]] for record in scores}, power_law=False
    )


if __name__ == "__main__":
    common.main("training", __doc__, measure)
