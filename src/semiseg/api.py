"""The functions of the command line for Python: train, rehearse, evaluate, load, predict, export, partitions."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from rich.console import Console

from semiseg import data
from semiseg.data.annotated import AnnotatedConfig
from semiseg.data.check import Report, count_classes, digests_of_masks, shares_of_classes
from semiseg.data.check import check as check_files
from semiseg.data.dataset import DataConfig, Dataset, Unused
from semiseg.data.loader import eval_loader
from semiseg.data.partitions import class_presence, nested_partitions, partition_hash, write_partitions
from semiseg.engine import checkpoint, exported, state, trackers
from semiseg.engine import pseudo_label as pseudo_labels
from semiseg.engine.environment import describe, labels
from semiseg.engine.evaluate import evaluate as evaluate_network
from semiseg.engine.export import Images, check_target, lower_precisions
from semiseg.engine.export import export as export_network
from semiseg.engine.lock import Lock
from semiseg.engine.precision import emulation
from semiseg.engine.predict import Predictor, make_predictor
from semiseg.engine.predict_files import Options, predict_files
from semiseg.engine.progress import ProgressBar, counting
from semiseg.engine.rehearse import Rehearsal
from semiseg.engine.rehearse import rehearse as rehearse_recipe
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import check_settings
from semiseg.engine.train import train as train_recipe
from semiseg.errors import UserError
from semiseg.files import expanded
from semiseg.metrics import Scores
from semiseg.recipe.engine import Device
from semiseg.recipe.load import changes_of_result, differences, dump, load_recipe, override, shortened
from semiseg.recipe.recipe import Recipe
from semiseg.report import card
from semiseg.runs import Run
from semiseg.types import IGNORE


def train(
    recipe: Recipe | Path | str,
    out: Path | str,
    overrides: Iterable[str] = (),
    console: Console | None = None,
) -> Run:
    """Trains a recipe into the run directory `out`, or resumes the run in it.

    Args:
        recipe: a recipe, or its path or name.
        out: run directory: a new one, or one that was started with the same recipe. One without any result yet may
            have been started with another recipe.
        overrides: settings that replace those of the recipe, e.g. `["data.root=photos", "engine.steps=100"]`.
        console: shows the progress. None: nothing is shown.

    Raises:
        UserError: recipe, data or run directory are wrong, or another process trains in this directory. Most mistakes
            are found before the first step.
    """
    recipe, run = _recipe(recipe, overrides), Run(folder(Path(out)))
    resumes = run.exists() and not run.is_blank()
    if resumes and recipe.engine.precision == "auto":
        recipe = recipe.computed_in(load_recipe(run.config).engine.precision)
    recipe, runtime, console = _ready(recipe, console, resumes)
    with Lock(run) as lock:  # of the first process, for all processes
        with runtime.main_first():
            dataset = _load(recipe.data, console)
            if runtime.is_main:
                open_run = _start if run.is_blank() or not run.exists() else _resume
                open_run(run, recipe, dataset, runtime, console, lock)
        if recipe.counts_classes:
            dataset = replace(dataset, class_counts=run.class_counts())
        with ProgressBar(run.path.name, recipe.engine.steps, recipe.engine.evaluation_interval, console) as bar:
            train_recipe(recipe, dataset, run, bar, runtime)
    return run


def rehearse(
    recipe: Recipe | Path | str,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    steps: int = 3,
    full: bool = True,
) -> Rehearsal | None:
    """Makes the checks of `train`, takes real steps and evaluates an image. It writes nothing to disk.

    Args:
        recipe: a recipe, or its path or name.
        overrides: settings that replace those of the recipe.
        console: shows the numbers of images and the progress. None: nothing is shown.
        steps: number of real steps to take.
        full: whether to decode every photograph, as `train` does. Otherwise only their headers are read.

    Returns:
        What the run would need; None on all processes but the first.

    Raises:
        UserError: as `train`.
    """
    recipe, runtime, console = _ready(_recipe(recipe, overrides), console)
    with runtime.main_first():
        dataset = _load(recipe.data, console)
        if runtime.is_main:
            check_settings(recipe, dataset, runtime)
            _print_report(recipe, dataset, _check(recipe, dataset, console, full), console)
        if recipe.counts_classes:
            dataset = replace(dataset, class_counts=count_classes(dataset, recipe.data.root))
    with counting("trying", console, "steps") as count:
        found = rehearse_recipe(recipe, dataset, runtime, steps, count)
    if found and found.busy:
        _note(console, f"{found.busy}; times may be wrong: try again when it is idle")
    return found


def check(
    recipe: Recipe | Path | str, overrides: Iterable[str] = (), full: bool = False, console: Console | None = None
) -> tuple[Dataset, Report]:
    """Checks the data of a recipe, as `train` does before the first step, and says what was found.

    Args:
        recipe: a recipe, or its path or name; only its data section counts.
        overrides: settings that replace those of the recipe, e.g. `["data.root=photos"]`.
        full: whether to decode every photograph, as `train` does. Otherwise only their headers are read.
        console: shows the progress. None: nothing is shown.

    Returns:
        The dataset, and what was found.

    Raises:
        UserError: as `train`, for mistakes in the data.
    """
    changes = list(overrides)
    settings = _recipe(recipe, changes).data
    refuse_others(changes, ("data",), "a check of the data")
    dataset = _load(settings, console or Console(quiet=True))
    with counting("checking the data", console or Console(quiet=True)) as count:
        return dataset, check_files(dataset, settings, full, count)


def _recipe(recipe: Recipe | Path | str, overrides: Iterable[str]) -> Recipe:
    changes = list(overrides)
    return override(recipe, changes) if isinstance(recipe, Recipe) else load_recipe(Path(recipe), changes)


def _load(config: DataConfig, console: Console) -> Dataset:
    """Loads the data. Shows how far it is where that may take time: where masks are drawn from annotations."""
    if not isinstance(config, AnnotatedConfig):
        return data.load(config)
    with counting("drawing masks", console, "masks") as count:
        return data.load(config, count)


def _ready(recipe: Recipe, console: Console | None, resumes: bool = False) -> tuple[Recipe, Runtime, Console]:
    """Sets up device and precision and prints them. The returned recipe has the precision in place of `auto`."""
    runtime = Runtime(recipe.engine.device, recipe.engine.precision)
    console = console if console is not None and runtime.is_main else Console(quiet=True)
    _print(console, f"computing on {runtime.where()} in {runtime.precision}: {runtime.reason}")
    if not console.quiet and (slow := emulation(runtime.precision, runtime.device)):
        advice = "the run goes on in it; a new run with another --out and " if resumes else ""
        _note(console, f"{slow}; {advice}engine.precision=fp32 is faster")
    return recipe.computed_in(runtime.precision), runtime, console


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _note(console: Console, text: str) -> None:
    console.print(f"note: {text}", highlight=False, style="yellow", markup=False, emoji=False, soft_wrap=True)


def folder(path: Path) -> Path:
    """Returns `path`, with `~` expanded, after checking that neither it nor a parent is a file."""
    path = expanded(path)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place}: is a file; name a folder with --out")
    return path


def _resume(run: Run, recipe: Recipe, dataset: Dataset, runtime: Runtime, console: Console, lock: Lock) -> None:
    """Checks that the run has this recipe. Settings that do not change the result may differ."""
    _acquire(lock, console)
    recipe.engine.part_size(runtime.world_size)
    trackers.check(recipe.engine.trackers)
    before = load_recipe(run.config)
    changed = differences(before.to_dict(), recipe.to_dict())
    if other := changes_of_result(before, recipe):
        raise UserError(
            f"{run.path}: holds a run of another recipe ({shortened(other)}); name another directory with --out"
        )
    refuse_other_images(run, recipe, dataset)
    refuse_other_masks(run, recipe, masks_of(dataset, recipe, console))
    newest = checkpoint.newest(run.checkpoints)
    record = run.newest("train", "val")
    if newest is None and record and record["step"] > min(recipe.engine.checkpoint_interval, recipe.engine.steps):
        raise UserError(  # it would begin anew, and remove its records and its best checkpoint
            f"{run.path}: has records of {record['step']} steps and no checkpoint to go on from; put {run.checkpoints} "
            "back as it was, or name another directory with --out"
        )
    if changed:
        run.change(dump(recipe))
        run.event("changed", newest.step if newest else 0, settings=changed)
    last = run.last()
    complete = newest is not None and last is not None and newest.step == last["step"] == recipe.engine.steps
    how_far = "is complete, nothing is left to train" if complete else "going on with this run"
    _print(console, f"{run.path}: {how_far}")


def refuse_other_images(run: Run, recipe: Recipe, dataset: Dataset) -> None:
    """Checks that a run was trained on the images and the classes that its recipe finds now.

    Raises:
        UserError: it was not.
    """
    renamed = _other_classes(_class_names(run), dataset.classes.names)
    if renamed or (renamed := _exchanged_colors(run, dataset)):
        raise UserError(
            f"{run.path}: holds a run of other classes than {_class_file(recipe)} has now ({renamed}); put them back "
            "as they were, or name another directory with --out"
        )
    listed, now = run.unlabeled(), _names(dataset)
    before, found = run.environment()["labels"], labels(dataset)
    if "val_partition" not in before:  # an earlier semiseg did not write it
        del found["val_partition"]
    if found != before or listed != now:
        differing = sorted({*listed} ^ {*now})
        of_them = f", e.g. {differing[0]}" if differing else ""
        only_val = before | {"val_partition": found.get("val_partition")} == found and listed == now
        raise UserError(
            f"{run.path}: holds a run on other {'validation ' if only_val else ''}images than {recipe.data.root} has "
            f"now{of_them}; put them back as they were, or name another directory with --out"
        )


def masks_of(dataset: Dataset, recipe: Recipe, console: Console) -> dict[str, dict[str, str]]:
    """Identifies what each mask shows, see `digests_of_masks`, and shows how many are done."""
    with counting("comparing masks", console, "masks") as count:
        return digests_of_masks(dataset, recipe.data.root, count)


def refuse_other_masks(run: Run, recipe: Recipe, masks: Mapping[str, Mapping[str, str]]) -> None:
    """Checks that the masks of a run show what they showed at its start.

    Masks that cannot be read now are left out: data.on_unreadable says what becomes of them.

    Args:
        run: the run.
        recipe: its recipe.
        masks: what `masks_of` says of the masks that are there now.

    Raises:
        UserError: a mask shows something else.
    """
    for kind, place in (("labels", recipe.data.root), ("pseudo", recipe.data.pseudo)):
        before = run.masks(kind)
        if changed := [name for name in before.keys() & masks[kind] if not _alike(before[name], masks[kind][name])]:
            raise UserError(
                f"{run.path}: holds a run on other masks than {place} has now ({len(changed)} changed, e.g. of "
                f"{min(changed)}); put them back as they were, or name another directory with --out"
            )


def _alike(before: str, now: str) -> bool:
    """Returns whether two digests of a mask agree, in the parts that both have: an earlier semiseg wrote the first."""
    return all(one == other for one, other in zip(before.split("-"), now.split("-"), strict=False))


def _class_names(run: Run) -> Sequence[str]:
    """Returns the names of a run's classes. An earlier semiseg wrote them into checkpoints only."""
    if classes := run.environment().get("classes"):
        return classes["names"]
    newest = checkpoint.newest(run.checkpoints)
    return newest.classes.names if newest else ()


def _exchanged_colors(run: Run, dataset: Dataset) -> str:
    """Says which colors of masks mean another class now, e.g. `#ff0000: disc -> square`; empty if none does.

    New colors are allowed: where masks hold class indices, colors are only shown.
    """
    before, now = run.environment().get("classes", {}), dataset.coding.colors or {}
    pairs = zip(before.get("names", ()), map(tuple, before.get("colors", ())), strict=False)
    names = dict(enumerate(dataset.classes.names)) | {IGNORE: "ignored"}
    found = [(color, old, names[now[color]]) for old, color in pairs if color in now]
    return "; ".join(f"#{bytes(color).hex()}: {old} -> {new}" for color, old, new in found if old != new)


def _other_classes(before: Sequence[str], now: Sequence[str]) -> str:
    """Says where class names differ, e.g. `1: disc -> square; 2: square -> disc`; empty if they are the same.

    Without names from before (a run of an earlier semiseg that has no checkpoint) nothing can differ.
    """
    pairs = enumerate(zip_longest(before, now, fillvalue="none")) if before else ()
    found = [f"{index}: {old} -> {new}" for index, (old, new) in pairs if old != new]
    return "; ".join([*found[:4], *([f"{len(found) - 4} more"] if len(found) > 4 else [])])


def _class_file(recipe: Recipe) -> str:
    """Names the file of the classes; a layout without one has its classes in its code."""
    classes = getattr(recipe.data, "classes", None)
    return f"{recipe.data.root / classes} (data.classes)" if classes else f"data.layout {recipe.data.layout}"


def _start(run: Run, recipe: Recipe, dataset: Dataset, runtime: Runtime, console: Console, lock: Lock) -> None:
    """Checks recipe and data, then makes the run directory."""
    parameters = check_settings(recipe, dataset, runtime)
    report = _check(recipe, dataset, console)
    _acquire(lock, console)
    counts = count_classes(dataset, recipe.data.root) if recipe.counts_classes else None
    environment = describe(dataset, runtime) | {"trained_parameters": parameters}
    run.start(dump(recipe), environment, _names(dataset), counts, masks_of(dataset, recipe, console))
    _print_report(recipe, dataset, report, console)


def _acquire(lock: Lock, console: Console) -> None:
    if gone := lock.acquire():
        _print(console, f"{lock.run.path}: {gone} has ended without a word; this command takes over")


def _check(recipe: Recipe, dataset: Dataset, console: Console, full: bool = True) -> Report:
    with counting("checking the data", console) as count:
        return check_files(dataset, recipe.data, full, count)


def _print_report(recipe: Recipe, dataset: Dataset, report: Report, console: Console) -> None:
    images = labels(dataset)
    pseudo = f"{images['pseudo_labeled']} pseudo-labeled, " if "pseudo_labeled" in images else ""
    protocol = f", the published partition {images['published']}" if images["published"] else ""
    _print(
        console,
        f"{images['labeled']} labeled, {pseudo}{images['unlabeled']} unlabeled, {images['val']} validation images; "
        f"partition {images['partition']}{protocol}",
    )
    _print(console, f"labeled pixels: {shares_of_classes(report, dataset.classes.names)}")
    for note in [*(f"{unused}." for unused in report.unused if unused.matters), *report.notes, *_long(recipe)]:
        _note(console, note)


def _long(recipe: Recipe) -> list[str]:
    """Notes warm-ups and the like that are as long as the whole run, e.g. because only engine.steps was changed."""
    steps = {"optim.warmup_steps": recipe.optim.warmup_steps}
    steps |= {f"method.{key}": getattr(recipe.method, key, 0) for key in ("warmup_steps", "copy_steps")}
    return [
        f"{key} {value} lasts the whole run of {recipe.engine.steps} steps; lower it, or use more engine.steps."
        for key, value in steps.items()
        if value >= recipe.engine.steps
    ]


def _names(dataset: Dataset) -> list[str]:
    return [sample.name for sample in dataset.unlabeled]


def load(run: Path | str, which: str = "best", device: Device = "auto") -> Predictor:
    """Loads the trained network of a run.

    Args:
        run: run directory, the folder of one checkpoint, a folder that `export` made, or one of its ONNX files. A
            checkpoint and an ONNX file need no other file.
        which: `best` or `last` checkpoint of a run.
        device: where to compute.
    """
    opened = Run(Path(run))
    if exported.is_exported(opened.path):
        if which != "best":
            raise UserError(f"--checkpoint {which}: {opened.path} is exported, it has no checkpoints; leave it out")
        return exported.load(opened.path, device)
    if (opened.path / "state.json").is_file():
        return make_predictor(checkpoint.read(opened.path), device)
    return make_predictor(_checkpoint(state.opened(opened), which), device)


def evaluate(
    run: Path | str,
    which: str = "last",
    device: Device = "auto",
    overrides: Iterable[str] = (),
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Computes the scores of a run's checkpoint on its validation images, or on those that `overrides` name.

    It computes in the precision of the run, so the scores of the last checkpoint equal the last ones in metrics.jsonl.

    Args:
        run: run directory.
        which: `best` or `last` checkpoint.
        device: where to compute.
        overrides: settings that replace those of the run's recipe, e.g. `["data.val=splits/test.txt"]`. Only settings
            of data, engine.evaluate and engine.precision are allowed.
        on_image: called with the number of images that are done and the number of all images.
    """
    opened, changes = state.opened(Run(Path(run))), list(overrides)
    recipe = load_recipe(opened.config, changes)
    refuse_others(changes, ("data", "engine.evaluate", "engine.precision"), "an evaluation")
    predictor = make_predictor(_checkpoint(opened, which), device, recipe.engine.precision)
    dataset = data.load(recipe.data)
    if dataset.classes.names != predictor.classes.names:
        raise UserError(
            f"data: has the classes {', '.join(dataset.classes.names)}; the run was trained for "
            f"{', '.join(predictor.classes.names)}"
        )
    runtime = predictor.runtime
    with runtime.together():
        found = evaluate_network(
            {"predictor": predictor.networks},
            eval_loader(dataset.val, dataset, recipe.data, rank=runtime.rank, world_size=runtime.world_size),
            len(predictor.classes),
            recipe.engine.evaluate,
            runtime,
            lambda done: on_image(min(done * runtime.world_size, len(dataset.val)), len(dataset.val)),
        )
        return found["predictor"]


def predict(
    run: Path | str,
    images: Path | str | Sequence[Path | str],
    out: Path | str,
    which: str = "best",
    device: Device = "auto",
    on_image: Callable[[int, int], None] = lambda done, total: None,
    on_unused: Callable[[Unused], None] = lambda unused: None,
    *,
    write: Sequence[str] = ("masks", "overlays"),
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    window: int | None = None,
    least_region: int | None = None,
    simplify: float | None = None,
    overwrite: bool = False,
) -> int:
    """Writes an index mask and an overlay for each image, or other outputs. Returns the number of images.

    Args:
        run: run directory, the folder of one checkpoint, a folder that `export` made, or one of its ONNX files.
        images: image files, folders of images, patterns (`photos/**/*.jpg`) or videos; one or several.
        out: folder to write into.
        which: `best` or `last` checkpoint of a run.
        device: where to compute.
        on_image: called with the number of images that are done and the number of all images.
        on_unused: called with files below `images` that are no images.
        write: what to write: masks, overlays, probabilities, coco, labelme, areas.
        flip: whether to predict each image mirrored, too; the mean of the probabilities counts.
        scales: factors of the image's size; of several the mean of the probabilities counts.
        window: side of the windows in which larger images are predicted, px; None: only very large images are predicted
            in windows.
        least_region: regions of fewer pixels become no polygon; None: 16.
        simplify: how far polygons may be from the border of their region, px; None: 1.
        overwrite: whether files that an earlier prediction wrote are replaced.
    """
    options = Options(tuple(write), flip, tuple(scales), window, least_region, simplify, overwrite)
    place = folder(Path(out))
    predictor = load(run, which, device)
    return predict_files(predictor, images, place, on_image, on_unused, options, predictor.runtime)


def pseudo_label(
    run: Path | str,
    out: Path | str,
    which: str = "best",
    device: Device = "auto",
    overrides: Iterable[str] = (),
    on_image: Callable[[int, int], None] = lambda done, total: None,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> tuple[int, bool]:
    """Writes masks that a run predicts for its unlabeled images, and reliability.csv: for `data.pseudo`.

    Images that the run had pseudo-labels for keep them. No mask of an unlabeled image is read. Reliability is measured
    if the run has kept earlier checkpoints (`engine.keep_every`).

    Args:
        run: run directory.
        out: folder to write into. The same call goes on after an interruption.
        which: `best` or `last` checkpoint predicts the masks.
        device: where to compute.
        overrides: settings that replace those of the run's recipe; only of data, e.g. `["data.root=photos"]`.
        on_image: called with the number of images that are done and the number of all images.
        flip: whether to predict each image mirrored, too; the mean of the probabilities counts.
        scales: factors of the image's size; of several the mean of the probabilities counts.

    Returns:
        The number of images that were predicted, and whether reliability was measured.

    Raises:
        UserError: there is no such run or checkpoint, there are no unlabeled images, or a file in `out` is another's.
    """
    opened, place, changes = state.opened(Run(Path(run))), folder(Path(out)), list(overrides)
    options = Options(("masks",), flip, tuple(scales))
    recipe = load_recipe(opened.config, changes)
    refuse_others(changes, ("data",), "pseudo-labels")
    dataset = data.load(recipe.data)
    predictor = make_predictor(_checkpoint(opened, which), device)
    if dataset.classes.names != predictor.classes.names:
        raise UserError(f"{opened.path}: was trained for other classes ({', '.join(predictor.classes.names)})")
    if not dataset.unlabeled:
        raise UserError(f"{opened.path}: every image of its data has a label or a pseudo-label already")
    course = checkpoint.resumable(opened.checkpoints)
    networks = [make_predictor(each, device) for each in course] if course[1:] else []
    place.mkdir(parents=True, exist_ok=True)
    if predictor.runtime.is_main:
        pseudo_labels.keep([sample for sample in dataset.labeled if sample.pseudo], place)
    pseudo_labels.write(predictor, networks, dataset.unlabeled, place, options, on_image)
    return len(dataset.unlabeled), bool(networks)


def export(
    run: Path | str,
    out: Path | str,
    which: str = "best",
    onnx: bool = True,
    lower: Iterable[str] = (),
    overwrite: bool = False,
    overrides: Iterable[str] = (),
    console: Console | None = None,
) -> exported.Description:
    """Writes a trained network for others to use: PyTorch weights, ONNX, a description and a model card.

    `segmentation_models_pytorch.from_pretrained` loads the folder; docs/export.md says what is in it.

    Args:
        run: run directory.
        out: new folder. An interrupted export leaves nothing.
        which: `best` or `last` checkpoint.
        onnx: whether to write `model.onnx`. It is compared with PyTorch on validation images of the run, or on drawn
            images if those cannot be read.
        lower: further ONNX files in these precisions, `fp16` and `int8`. The mIoU of each file is measured on
            validation images.
        overwrite: whether to replace an earlier export in `out`.
        overrides: settings that replace those of the run's recipe; only of data, e.g. `["data.root=photos"]`.
        console: shows what is measured. None: nothing is shown.

    Returns:
        What was written into semiseg.json.

    Raises:
        UserError: there is no such checkpoint, `out` exists, the network cannot be written as ONNX, ONNX and PyTorch
            differ by more than 1e-4 in probability, or the extra `export` is not installed.
    """
    opened, target = state.opened(Run(Path(run))), folder(Path(out))
    precisions = lower_precisions([*lower])
    if precisions and not onnx:
        raise UserError(f"--precision {precisions[0]}: is of ONNX files; leave it or --no-onnx out")
    changes = list(overrides)
    if changes and not onnx:
        raise UserError(f"--set {changes[0]}: without ONNX no image is read; leave it or --no-onnx out")
    refuse_others(changes, ("data",), "an export")
    source = _checkpoint(opened, which)
    check_target(target, overwrite)
    images = _images(opened, changes) if onnx else Images(None, None)
    with counting("measuring", console or Console(quiet=True)) as count:
        return export_network(
            opened, source, target, images, lambda about, sizes: card.text(about.model_dump(mode="json"), sizes),
            onnx, precisions, count,
        )  # fmt: skip


def _images(run: Run, changes: list[str]) -> Images:
    """Finds the images of a run. If they are gone, it says so; if settings name them, that is an error."""
    try:
        recipe = load_recipe(run.config, changes)
        return Images(data.load(recipe.data), recipe)
    except UserError as error:
        if changes:
            raise
        return Images(None, None, str(error))


def partitions(
    recipe: Path | str,
    out: Path | str,
    sizes: Iterable[int | float],
    seed: int = 0,
    overrides: Iterable[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Draws nested, class-covering label partitions of a recipe's labeled images and writes them as lists.

    Every other training image, with a mask or without, is in the list of unlabeled images. Validation images are in no
    list, so a training with these lists has the same ones.

    Args:
        recipe: path or name of a recipe; only its data section counts. With `data.labeled=null` the images are drawn
            from all that have a mask.
        out: folder for `labeled_N.txt`, `unlabeled_N.txt` and `val.txt`; existing lists are never overwritten.
        sizes: numbers of images (whole numbers), or fractions below 1.
        seed: another seed gives other partitions.
        overrides: settings that replace those of the recipe.
        console: shows the progress and the hash of each partition. None: nothing is shown.

    Returns:
        The files that were written.
    """
    changes = list(overrides)
    section = load_recipe(Path(recipe), changes).data
    dataset = _load(section.model_copy(update={"pseudo": None, "pseudo_share": None}), console or Console(quiet=True))
    refuse_others(changes, ("data",), "partitions")
    out, sizes = folder(Path(out)), list(sizes)
    for size in sizes:
        if not 0 < size < float("inf") or (size >= 1 and size != int(size)):
            raise UserError(f"--size {size:g}: is neither a number of images nor a fraction below 1")
    counts = [size if size < 1 else int(size) for size in sizes]
    console = console or Console(quiet=True)
    with counting("reading masks", console) as count:
        shown = class_presence(dataset.labeled, dataset.coding, count)
    drawn = nested_partitions(dataset.labeled, shown, counts, seed)
    written = write_partitions(out, dataset.labeled + dataset.unlabeled, dataset.val, drawn)
    for size, samples in drawn.items():
        classes = len(frozenset().union(*(shown[sample.name] for sample in samples)) - {IGNORE})
        console.print(
            f"{size} of {len(dataset.labeled)} images, {classes} of {len(dataset.classes)} classes, "
            f"partition {partition_hash([sample.name for sample in samples])}",
            highlight=False,
            soft_wrap=True,
        )
    lists = {
        path.stem.partition("_")[0]: path.absolute()
        for path in written
        if path.stem.endswith(("val", f"_{min(drawn)}"))
    }
    settings = [
        f"--set {shlex.quote(change)}"
        for change in changes
        if change.split("=")[0] not in (f"data.{key}" for key in (*lists, "val_fraction"))
    ]
    if getattr(section, "val_fraction", None) is not None:  # the list of validation images takes its place
        settings.append("--set data.val_fraction=null")
    settings += [f"--set data.{key}={shlex.quote(str(path))}" for key, path in lists.items()]
    _print(console, f"train with the smallest: semiseg train {shlex.quote(str(recipe))} {' '.join(settings)}")
    return written


def refuse_others(overrides: list[str], used: tuple[str, ...], what: str) -> None:
    """Refuses settings that a command does not use.

    Args:
        overrides: settings, as `key=value`.
        used: sections, or keys, that the command uses.
        what: the command, for the message.

    Raises:
        UserError: a setting is of another section.
    """
    for change in overrides:
        key = change.partition("=")[0].strip()
        if not any(f"{key}.".startswith(f"{section}.") for section in used):
            raise UserError(f"--set {change}: has no effect on {what}; only settings of {', '.join(used)} have")


def _checkpoint(run: Run, which: str) -> checkpoint.Checkpoint:
    if which not in ("best", "last"):
        raise UserError(f"checkpoint: there is no {which!r}; use best or last")
    kinds = {"best": "best", "last": "step"}
    found = checkpoint.newest(run.checkpoints, kinds.pop(which))
    if found is not None:
        return found
    ((other, kind),) = kinds.items()
    instead = f"use --checkpoint {other}, or " if checkpoint.newest(run.checkpoints, kind) else ""
    missing = f"no {which} checkpoint" if instead else "no checkpoint"
    raise UserError(f"{run.path}: has {missing} yet; {instead}go on with the training: {run.command}")
