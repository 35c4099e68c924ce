"""Cheaper hardness: the teacher alone in some steps, a smaller view for the student, the easiness of earlier weights.

It needs trained runs, so `make bench` does not run it. It computes easiness with all checkpoints of the first run; from
the other runs it takes only the scores:

    common="--set data.root=PATH/camvid --set engine.keep_checkpoints=8 --set engine.save_every=125"
    semiseg train camvid-cpu $common --out runs/exact
    semiseg train camvid-cpu $common --set method.hardness_scale=0.5 --out runs/half
    semiseg train camvid-cpu $common --set method.hardness_every=8 --out runs/every-8
    python benchmarks/cheaper_hardness.py --run runs/exact --run runs/half --run runs/every-8 [--data-root PATH/camvid]
"""

import argparse
import math
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import common
import torch
from jaxtyping import Float
from torch import Tensor

from semiseg import data
from semiseg.augment.cutmix import hard_easy_partners
from semiseg.augment.views import Views, make_batch
from semiseg.data.loader import train_loader
from semiseg.engine import checkpoint
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import build_method
from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.recipe.load import load_recipe, override
from semiseg.recipe.recipe import Recipe
from semiseg.runs import Run
from semiseg.types import ClassTable, LoadedBatch, Progress, SemiBatch

EXACT, ALONE = "student at full size", "teacher alone"
WAYS = {
    EXACT: {"hardness_scale": 1, "hardness_every": 1},
    "scale 0.5": {"hardness_scale": 0.5, "hardness_every": 1},
    "scale 0.25": {"hardness_scale": 0.25, "hardness_every": 1},
    ALONE: {"hardness_scale": 1, "hardness_every": 2},
}
AT = Progress(1, 2)  # a step in which the student does not predict if hardness_every is 2
SEED = 1000  # of the weak views; no run uses it, so these views differ from those in training
Easiness = Float[Tensor, " n"]


class Observer:
    """Computes the easiness of the same weak views in all ways, with one checkpoint after another.

    Args:
        recipe: the recipe of the run.
        classes: the class table of its data.
        runtime: device and precision.
    """

    def __init__(self, recipe: Recipe, classes: ClassTable, runtime: Runtime) -> None:
        self.runtime = runtime
        self.methods: dict[str, SemiMethod] = {}
        for way, settings in WAYS.items():
            words = [f"method.{name}={value}" for name, value in settings.items()]
            method = build_method(override(recipe, [*words, "model.weights=null"]), classes).to(runtime.device)
            self.methods[way] = method.to(memory_format=torch.channels_last)  # as in training
        self.seconds: dict[str, list[float]] = defaultdict(list)  # one value for each batch

    def look(self, saved: checkpoint.Checkpoint, views: list[LoadedBatch]) -> dict[str, Easiness]:
        """Computes the easiness of every image in each way. For each batch all ways are timed in turn."""
        easy: dict[str, list[Tensor]] = defaultdict(list)
        saved.load_model(self.methods[EXACT])
        for method in self.methods.values():  # strict=False: one way has the buffer `agreement`, which is 1 at first
            method.load_state_dict(self.methods[EXACT].state_dict(), strict=False)
        for loaded in views:
            batch = make_batch(loaded.to(self.runtime.device), Views(), saved.normalization, SEED, saved.step)
            for way, method in self.methods.items():
                observe = partial(self._observe, method, batch, easy[way])
                self.seconds[way].append(common.timed(observe, self.runtime.device))
        return {way: torch.cat(found).cpu() for way, found in easy.items()}

    def _observe(self, method: SemiMethod, batch: SemiBatch, found: list[Tensor]) -> None:
        with torch.no_grad(), self.runtime.autocast():
            found.append(method.observe(batch, AT).easy)


def spearman(first: Easiness, second: Easiness) -> float:
    """Computes the rank correlation; NaN if all values of either are equal."""
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def ranks(values: Easiness) -> Easiness:
    """Computes the rank of each value, from 0. Equal values get the mean of their ranks."""
    smaller, equal = (compared(values, values[:, None]).sum(1).double() for compared in (torch.lt, torch.eq))
    return smaller + (equal - 1) / 2


def pairs_alike(first: Easiness, second: Easiness, batch: int) -> float:
    """Computes the share of the images that have the same partner in hard-easy CutMix with both easinesses."""
    both = zip(first.split(batch), second.split(batch), strict=True)
    return float(torch.cat([hard_easy_partners(one) == hard_easy_partners(two) for one, two in both]).float().mean())


def agreement(first: Easiness, second: Easiness, batch: int) -> dict[str, float]:
    """Compares two easinesses of the same images."""
    return {
        "rank correlation": spearman(first, second),
        "mean absolute difference": float((first - second).abs().mean()),
        "hard-easy pairs that stay": pairs_alike(first, second, batch),
    }


def measure(run: common.Settings, results: common.Results, paths: list[Path], root: Path | None = None) -> None:
    """Follows the first run over its checkpoints, and adds the scores of every run.

    Args:
        run: the settings that all benchmarks share.
        results: receives the figures.
        paths: run directories of iMAS.
        root: the root of the first run's data, if it has moved.
    """
    runs = {path.resolve().name: Run(path).open() for path in paths}
    if len(runs) < len(paths):
        raise UserError("--run: two runs have the same name; rename one of the directories")
    for number, (name, each) in enumerate(runs.items()):
        moved = [f"data.root={root}"] if root and not number else []
        recipe = load_recipe(each.config, moved)
        if recipe.method_name != "imas":
            raise UserError(f"--run {each.path}: is a run of {recipe.method_name}; only imas has a hardness")
        if not number and recipe.method.model_dump()["hardness_every"] != 1:
            raise UserError(f"--run {each.path}: looks in some steps only; name a run with hardness_every 1 first")
        if not number:
            follow(run, results, each, recipe)
        score(results, name, each, recipe)
    results.note("Of the runs, scores alone: they were not taken in turns. What a step costs is in the suite of steps.")


def follow(run: common.Settings, results: common.Results, first: Run, recipe: Recipe) -> None:
    """Compares easiness at each checkpoint with that of the student at full size and of the checkpoint before."""
    saved = [checkpoint.read(path) for path in sorted(first.checkpoints.glob("step-*"))]
    if not saved:
        raise UserError(f"--run {first.path}: has no checkpoint yet; train it first")
    dataset, batch = data.load(recipe.data), recipe.engine.batch_size
    number = max(1, min(run.size(128, 128, 8), len(dataset.unlabeled)) // batch)
    views = list(train_loader(dataset, recipe.data, Views(), batch_size=batch, seed=SEED, start=0, num_steps=number))
    runtime = Runtime("cuda" if run.device.type == "cuda" else "cpu", recipe.engine.precision)
    height, width = recipe.data.crop_size
    results.settings |= {"encoder": recipe.model.encoder, "view, px": f"{height} x {width}", "images": number * batch,
                         "batch": batch, "precision": recipe.engine.precision}  # fmt: skip

    observer = Observer(recipe, dataset.classes, runtime)
    observer.look(saved[0], views[:1])
    observer.seconds.clear()  # a warm-up
    series: dict[str, dict[float, list[float]]] = defaultdict(dict)
    before: Easiness | None = None
    for each in saved:
        easy = observer.look(each, views)
        for way, values in easy.items():
            series[f"mean easiness, {way}"][each.step] = [float(values.mean())]
        level = easy[EXACT][:batch].mean() / easy[ALONE][:batch].mean()  # `agreement`, from the first batch
        easy[ALONE] = easy[ALONE] * level.nan_to_num(1.0).clamp(max=1)
        others = {way: values for way, values in easy.items() if way != EXACT}
        if before is not None:
            others["checkpoint before"] = before
        for other, values in others.items():
            for what, value in agreement(values, easy[EXACT], batch).items():
                if not math.isnan(value):
                    series[f"{what}, {other}"][each.step] = [value]
        before = easy[EXACT]

    for name in sorted(series):
        results.growth_of(name, "step", "1", series[name], power_law=False)
    for way, seconds in observer.seconds.items():
        results.figure(f"observe, {way}", "s", *seconds)
        if way != EXACT:
            results.ratio(f"observe, {way} / {EXACT}", f"observe, {way}", f"observe, {EXACT}")
    results.figure("hard-easy pairs that stay, by chance", "1", by_chance(batch))
    results.note(
        "Each checkpoint looks at the same weak views. A way is compared with the student at full size at the same "
        "checkpoint, the checkpoint before with the student at full size at this one. Of the teacher alone the mean "
        "easiness is as it is; the comparisons are at the level that a look at the first batch gives. Where all images "
        "are equally easy there is no rank correlation, and pairs follow the order of the batch."
    )


def by_chance(batch: int) -> float:
    """Computes the share of the images whose partners are the same in two random pairings."""
    return 1 / (batch - 1 + batch % 2)  # in an odd batch one image is its own partner


def score(results: common.Results, name: str, each: Run, recipe: Recipe) -> None:
    """Adds the scores of a run."""
    train = each.metrics("train")
    if not train:
        raise UserError(f"--run {each.path}: has no training record yet; train it first")
    steps = f"{train[-1]['step']} of {recipe.engine.steps} steps"
    settings = recipe.method.model_dump()
    cheaper = ", ".join(f"{key} {settings[key]:g}" for key in ("hardness_scale", "hardness_every"))
    results.settings[name] = f"{cheaper}, {steps}, seed {recipe.engine.seed}"
    for which, record in (("last", each.last()), ("best", each.best())):
        if record:
            results.figure(f"{name}, mIoU, {which}", "1", record["miou"])


def arguments(words: list[str] | None = None) -> tuple[common.Settings, list[Path], Path | None]:
    """Reads the command line: settings, run directories, and the root of the data.

    Raises:
        UserError: an option of other benchmarks has no effect here.
    """
    parser = argparse.ArgumentParser(description=common.title(str(__doc__)))
    common.add_arguments(parser)
    parser.add_argument(
        "--run", type=Path, action="append", required=True, help="run directory of iMAS; may be repeated"
    )
    parser.add_argument("--data-root", type=Path, help="of the first run's data, if they have moved")
    found = parser.parse_args(words)
    if found.data or found.peer or found.repeats:
        raise UserError("--data, --peer, --repeats: have no effect here; images and checkpoints are those of --run")
    return common.settings(found), found.run, found.data_root


def main() -> None:
    """Runs the benchmark from the command line."""
    try:
        settings, runs, root = arguments()
        common.run_suite(
            "cheaper_hardness", str(__doc__), lambda run, results: measure(run, results, runs, root), settings
        )
    except UserError as error:
        print(f"cheaper_hardness: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
