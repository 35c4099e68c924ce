"""Chooses the pool of operations on labeled images by measuring: cross-validation on the labeled images alone.

On some images the pool is worth tens of points. On others gray level or color is what tells classes apart, and a pool
that changes it does harm. Nobody can know this from the paper, so it is measured; and then, with the chosen pool,
whether class weights help.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from semiseg import api, data, queue
from semiseg.augment.pools import CANDIDATES
from semiseg.data import appearance
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.partitions import class_folds, class_presence, lines_of
from semiseg.engine.lock import Lock
from semiseg.engine.progress import counting
from semiseg.errors import UserError
from semiseg.files import writing
from semiseg.recipe import file as recipe_file
from semiseg.recipe.load import dump, load_recipe, override, validate
from semiseg.recipe.recipe import Recipe
from semiseg.report.choice import Candidate, Choice, choose, table
from semiseg.runs import Run

_BASELINE = "supervised"
_WEIGHTS = {"no class weights": None, "class weights": "inverse_sqrt"}  # of method.labeled_loss
_FEW = 4  # with fewer labeled images each is a fold
_LEAST_STEPS, _MOST_STEPS = 50, 400


@dataclass(frozen=True)
class Tuned:
    """A recipe whose pool and class weights were chosen.

    Attributes:
        recipe: the recipe with what was chosen.
        choice: the name of the pool in `semiseg.augment.pools.CANDIDATES`, and why.
        weights: `class weights` or `no class weights`, and why; None for a recipe with another labeled loss (OHEM, or a
            number for each class), which stays.
        report: what was measured, in lines.
    """

    recipe: Recipe
    choice: Choice
    weights: Choice | None
    report: tuple[str, ...]


@dataclass(frozen=True)
class _Fold:
    """A part of the labeled images that is measured, and the others, which are trained.

    Attributes:
        trained: the images that are trained.
        measured: the held-out images.
        classes: the classes that both show. Only these are measured: no training learns what it never sees.
    """

    trained: tuple[Sample, ...]
    measured: tuple[Sample, ...]
    classes: tuple[int, ...]


def tune(
    recipe: Recipe | Path | str,
    out: Path | str,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    folds: int = 3,
    steps: int | None = None,
    minutes: float | None = None,
    at_once: int = 1,
) -> Tuned | None:
    """Chooses `method.labeled`, and `method.strong` where the method has it, and writes the recipe to a new file.

    The labeled images are split into folds. For each fold and each candidate supervised training on the other folds is
    evaluated on it, from the same weights and with the same batches. No validation image is read. With the chosen pool
    `method.labeled_loss.class_weights` is chosen likewise. The trainings are in the folder `<out>-tune`. The same call
    goes on after an interruption.

    Args:
        recipe: a recipe, or its path or name.
        out: the new file.
        overrides: settings that replace those of the recipe.
        console: shows the progress. None: nothing is shown.
        folds: number of folds. With fewer than 4 labeled images each image is a fold.
        steps: steps of a training. None: a third of those of the recipe, at least 50 and at most 400.
        minutes: when to stop; the running trainings save their completed steps. None: when all are complete.
        at_once: number of trainings at once, which share the cores.

    Returns:
        The recipe and the reasons; None if the time was over before all trainings were complete.

    Raises:
        UserError: a setting is wrong, the file exists, there are too few labeled images, another process works in the
            folder, or a training failed.
        Interrupted: the process received Ctrl-C, SIGTERM or SIGHUP. The completed steps are saved.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    console, out, changes = console or Console(quiet=True), recipe_file.new(Path(out)), list(overrides)
    if folds < 2:
        raise UserError(f"--folds {folds}: needs at least 2: one to measure, the others to train")
    base = override(recipe, changes) if isinstance(recipe, Recipe) else load_recipe(Path(recipe), changes)
    steps = steps or min(_MOST_STEPS, max(_LEAST_STEPS, base.engine.steps // 3))
    dataset = data.load(base.data.model_copy(update={"pseudo": None, "pseudo_share": None}))
    split = _folds(dataset, folds, base.engine.seed, console)
    work = api.folder(out.with_name(f"{out.stem}-tune"))

    lists = [_write_lists(work / f"fold-{number}", fold, dataset) for number, fold in enumerate(split, 1)]
    masks = api.masks_of(dataset, base, console)

    def measured(names: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> list[Candidate] | None:
        """Trains what is missing, fold by fold. None if the time was over."""
        planned: dict[queue.Job, Recipe] = {}
        jobs: dict[str, list[queue.Job]] = {name: [] for name in names}
        for number, of_fold in enumerate(lists, 1):
            for name in jobs:
                path = work / name.replace(" ", "-") / f"fold-{number}"
                job = queue.Job(f"{name}, fold {number}", path.with_suffix(".yaml"), Run(path), steps)
                planned[job] = _trial(base, settings[name], of_fold, steps)
                jobs[name].append(job)
        with Lock(Run(work)) as lock:
            lock.acquire()
            for job in planned:
                if job.run.exists() and not job.run.is_blank():
                    api.refuse_other_masks(job.run, base, masks)
            queue.prepare(planned)
            failed = queue.work(list(planned), console, at_once, until=until)
        if failed:
            name, why = next(iter(failed.items()))
            raise UserError(f"{len(failed)} of {len(planned)} trainings failed; {name}: {why}")
        if not all(job.complete for job in planned):
            return None
        classes = dataset.classes.names
        return [_candidate(name, [job.run for job in each], split, classes) for name, each in jobs.items()]

    pools = measured(CANDIDATES, {name: {"labeled": _plain(pool)} for name, pool in CANDIDATES.items()})
    if pools is None:
        return None
    chosen, tables = choose(pools), [table(pools)]
    weights: Choice | None = None
    loss = base.method.labeled_loss
    if loss.kind == "cross_entropy" and loss.class_weights in _WEIGHTS.values():
        (other,) = (name for name, value in _WEIGHTS.items() if value != loss.class_weights)
        trial = f"{chosen.name} with {other}"
        changed = {"labeled": _plain(CANDIDATES[chosen.name]), "labeled_loss": {"class_weights": _WEIGHTS[other]}}
        found = measured([trial], {trial: changed})
        if found is None:
            return None
        (as_it_is,) = (each for each in pools if each.name == chosen.name)
        pair = [replace(found[0] if name == other else as_it_is, name=name) for name in _WEIGHTS]
        weights = choose(pair)
        tables.append(table(pair))
    recipe = _chosen(base, chosen.name, weights.name if weights else None)
    report = _report(tables, split, steps, dataset, base, console)
    tuned = Tuned(recipe, chosen, weights, tuple(report))
    reasons = [chosen.reason, *([weights.reason] if weights else [])]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in (_title(tuned), "", *reasons, *tuned.report))
    with writing(out), out.open("x", encoding="utf-8") as file:
        file.write(comment + dump(tuned.recipe))
    return tuned


def _folds(dataset: Dataset, count: int, seed: int, console: Console) -> list[_Fold]:
    """Splits the labeled images whose masks show a class. Folds that measure no class are left out."""
    with counting("reading masks", console) as count_images:
        shown = class_presence(dataset.labeled, dataset.coding, count_images)
    labeled = [sample for sample in dataset.labeled if shown[sample.name]]
    if len(labeled) < 2:
        raise UserError(
            f"data.labeled: {len(labeled)} image whose mask shows a class; tune trains on some images and measures "
            "others, so label at least 2"
        )
    parts = class_folds(labeled, shown, len(labeled) if len(labeled) < _FEW else min(count, len(labeled)), seed)

    def classes(samples: Iterable[Sample]) -> frozenset[int]:
        return frozenset[int]().union(*(shown[sample.name] for sample in samples))

    found = []
    for part in parts:
        rest = tuple(sample for other in parts if other is not part for sample in other)
        found.append(_Fold(rest, part, tuple(sorted(classes(part) & classes(rest)))))
    found = [fold for fold in found if fold.classes]
    if len(found) < 2:
        raise UserError(
            "data.labeled: no class is in two labeled images, so nothing can be measured; label more images"
        )
    return found


def _write_lists(folder: Path, fold: _Fold, dataset: Dataset) -> dict[str, Path | None]:
    """Writes the lists of a fold. Supervised training reads no unlabeled image, so their list names a single one."""
    texts = {"labeled": lines_of(fold.trained), "val": lines_of(fold.measured)}
    if dataset.unlabeled:
        texts["unlabeled"] = f"{dataset.unlabeled[0].name}\n"
    paths: dict[str, Path | None] = {"unlabeled": None}
    for key, text in texts.items():
        path = paths[key] = (folder / f"{key}.txt").absolute()
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: is of other labeled images or folds; remove {folder.parent}, or change --out")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return paths


def _trial(recipe: Recipe, settings: Mapping[str, Any], lists: Mapping[str, Path | None], steps: int) -> Recipe:
    """Makes the recipe of a short supervised training. A recipe that is supervised keeps its other settings."""
    values = recipe.to_dict()
    values["data"] |= {key: None if path is None else str(path) for key, path in lists.items()} | {
        "pseudo": None,
        "pseudo_share": None,
    }
    if "val_fraction" in values["data"]:
        values["data"]["val_fraction"] = None  # it and a list of validation images exclude each other
    kept = {"name": _BASELINE, **recipe.of_labels}
    values["method"] = (values["method"] if recipe.method_name == _BASELINE else kept) | dict(settings)
    values["optim"]["warmup_steps"] = round(recipe.optim.warmup_steps * min(1, steps / recipe.engine.steps))
    values["engine"] |= {"steps": steps, "eval_every": steps, "save_every": None, "pseudo_label_images": 0}
    return validate(values, "recipe")


def _candidate(name: str, runs: Sequence[Run], split: Sequence[_Fold], names: Sequence[str]) -> Candidate:
    """Reads the scores of a candidate."""
    found: dict[int, list[float]] = {}
    scores = []
    for run, fold in zip(runs, split, strict=True):
        last = run.last()
        assert last is not None, "the run is complete"
        for index in fold.classes:
            found.setdefault(index, []).append(last["iou"][index])
        scores.append(fmean(last["iou"][index] for index in fold.classes))
    return Candidate(name, tuple(scores), {names[index]: fmean(found[index]) for index in sorted(found)})


def _chosen(recipe: Recipe, name: str, weights: str | None) -> Recipe:
    """Puts the choice into the recipe. Consistency needs some change, so strong views get `mild` in place of `none`."""
    values = recipe.to_dict()
    if weights:
        values["method"]["labeled_loss"]["class_weights"] = _WEIGHTS[weights]
    values["method"]["labeled"] = _plain(CANDIDATES[name])
    if "strong" in values["method"]:
        values["method"]["strong"] = _plain(CANDIDATES[name] or CANDIDATES["mild"])
    return validate(values, "recipe")


def _plain(pool: Any) -> dict[str, Any] | None:
    return None if pool is None else pool.model_dump(mode="json")


def _title(tuned: Tuned) -> str:
    name = tuned.choice.name
    pool = "no pool" if CANDIDATES[name] is None else f"the pool {name}"
    weights = f" and {tuned.weights.name}" if tuned.weights else ""
    return f"{tuned.recipe.method_name} with {pool} on labeled images{weights}, chosen by semiseg tune."


def _report(
    tables: Sequence[Sequence[str]],
    split: Sequence[_Fold],
    steps: int,
    dataset: Dataset,
    recipe: Recipe,
    console: Console,
) -> list[str]:
    """Says what was measured, and how far unlabeled images lie from labeled ones."""
    images = sum(len(fold.measured) for fold in split)
    lines = [line for each in tables for line in ("", *each)] + [""]
    lines.append(
        f"mIoU, %: mean and standard deviation over {len(split)} folds of {images} labeled images, {steps} steps of "
        f"supervised training, seed {recipe.engine.seed}."
    )
    lines.append("gain: paired difference and half its 95 % interval.")
    if dataset.unlabeled:
        with counting("looking at images", console) as count:
            labeled, unlabeled = appearance.look(dataset, recipe.data, recipe.engine.seed, count)
        if len(labeled) and len(unlabeled):
            lines += appearance.shift(labeled, unlabeled)
    return lines
