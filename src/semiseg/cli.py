"""The command line. Commands import torch only when they need it, so `--help` is fast."""

import io
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

import semiseg
from semiseg.engine.signals import leaving_at_once
from semiseg.errors import Interrupted, UserError, first_line

app = typer.Typer(
    name="semiseg",
    help="Semantic segmentation from a few labeled images and many unlabeled ones.",
    epilog="New here? Run: semiseg demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. engine.steps=100. Repeatable."),
]
SetData = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. data.root=photos. Repeatable."),
]
Which = Annotated[str, typer.Option("--checkpoint", help="best (by validation mIoU) or last.")]
_PATIENCE_S = 10.0  # how long the other processes wait for the first one to report an error

_WATCH_S = 2.0  # between two looks of runs --watch

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
RunArgument = Annotated[Path, typer.Argument(help="Run directory that train made.", show_default=False)]


def _show_version(wanted: bool) -> bool:
    if wanted:
        _say(semiseg.__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Has the options of `semiseg` itself."""


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder to write into; by default a new semiseg-demo.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes, the initial weights and everything else.")] = 0,
) -> None:
    """See it work: draws small scenes, trains on a few labels with and without unlabeled images, compares.

    Takes a few minutes on two CPU cores and needs no download.
    """
    from semiseg import demo

    with _stoppable():
        demo.main(out, seed, Console())


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="New folder for the recipe and its lists.", show_default=False)],
    images: Annotated[Path | None, typer.Option(help="Folder of all photographs.", show_default=False)] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of the masks of some of them.", show_default=False)] = None,
    coco: Annotated[Path | None, typer.Option(help="A COCO file in place of masks.", show_default=False)] = None,
    labelme: Annotated[
        Path | None, typer.Option(help="A folder of LabelMe files in place of masks.", show_default=False)
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes with commas, or a file of classes.", show_default=False)
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(help="Folder or list of validation images; by default a fifth is held out.", show_default=False),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="How long a training may take; by default 1.", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the default answer to every question.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier init has written.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Add labels to a folder that init made; all that is there stays.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="With --update: take predictions that nobody has changed, too.")
    ] = False,
) -> None:
    """Look at your photographs and masks, and write a recipe that suits them and this machine."""
    console = Console()
    if update:
        chosen = {"--images": images, "--classes": classes, "--val": val, "--hours": hours, "--yes": yes or None}
        for option, value in (chosen | {"--device": None if device == "auto" else device}).items():
            if value is not None:
                raise UserError(f"{option}: has no effect with --update, which keeps the recipe; leave it out")
        from semiseg.init import Update
        from semiseg.init import update as add_labels

        with _stoppable():
            command = add_labels(Update(out, masks, coco, labelme, accept, overwrite), console)
        _say(f"the next command: {command}")
        return
    if accept:
        raise UserError("--accept: has an effect with --update only; leave it out")
    if images is None:
        raise UserError("--images: name the folder of all photographs")
    from semiseg.init import Request, init

    asks = not yes and sys.stdin.isatty()

    def ask(question: str, default: bool) -> bool:
        if asks:
            return typer.confirm(question, default=default)
        _say(f"{question} {'yes' if default else 'no'} (the default answer)")
        return default

    request = Request(out, images, masks, coco, labelme, classes, val, 1.0 if hours is None else hours,
                      _device(device), overwrite)  # fmt: skip
    with _stoppable():
        recipe = init(request, ask, console)
    _say(f"{recipe} written; the next command: semiseg train {shlex.quote(str(out))}")


@app.command()
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Name of a recipe (semiseg recipes lists them), a YAML file, or a folder that init wrote.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Run directory; by default runs/<name of the recipe>.")] = None,
    overrides: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps and say what the run would need; write nothing.")
    ] = False,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Then train supervised, too, and say what unlabeled images were worth."),
    ] = False,
) -> None:
    """Train a recipe, or go on with a run that was interrupted."""
    if baseline and dry_run:
        raise UserError("--baseline: a dry run trains nothing; leave one of the two out")
    from semiseg.recipe import file as recipe_file

    recipe_file.read(recipe)  # reports mistakes in the file before torch is loaded
    from semiseg import api
    from semiseg.engine import advice
    from semiseg.report import table

    console = Console()
    if dry_run:
        if found := api.rehearse(recipe, overrides or [], console):
            console.print(table.rehearsal(vars(found)))
        return
    folder, supervised = out or Path("runs") / recipe_file.run_name(recipe), None
    with _stoppable("; the same command goes on from the last checkpoint"):
        if baseline:
            from semiseg.compare import train_with_baseline

            run, supervised = train_with_baseline(recipe, folder, overrides or [], console)
        else:
            run = api.train(recipe, folder, overrides or [], console)
    if not _is_first_process():
        return
    if supervised is None:
        console.print(table.compare({run.path.name: run}, table.class_names(run)))
    else:
        console.print(table.worth(run, supervised, table.class_names(run)))
    last, names = run.last(), table.class_names(run)
    settings = advice.untried(recipe_file.read(run.config))
    if last is not None and (gone := advice.lost(last["iou"], names, settings, run.val_pixels())):
        _say(f"note: {gone}", "yellow")
    _say(f"run directory: {run.path}" + (f"; the baseline's: {supervised.path}" if supervised else ""))
    _say_next(run if supervised is None else table.better(run, supervised))


@app.command()
def compare(
    recipe: Annotated[
        Path, typer.Argument(help="Name of a recipe (semiseg recipes lists them), or a YAML file.", show_default=False)
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Methods with commas between; the first is what the others are compared with. A method may have "
            "settings, and a name for tables: supervised,imas:loss=standard,mild=imas:strong={pool: jitter}",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the tables.", show_default=False)],
    seeds: Annotated[str, typer.Option(help="Each method is trained once with each seed.")] = "0,1,2",
    overrides: Set = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this time; the same command goes on.", show_default=False)
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Trainings at once, which share the cores.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="Numbers of GPUs, e.g. 0,1: one training on each.", show_default=False)
    ] = None,
) -> None:
    """Train a recipe with several methods and seeds, and compare them. The same command goes on where it stopped.

    Complete runs of other methods and seeds in the folder stay in the tables.
    """
    from semiseg.recipe import file as recipe_file

    recipe_file.read(recipe)
    numbers = [_seed(word) for word in seeds.split(",")]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds {seeds}: names a seed twice")
    if devices is not None and at_once > 1:
        raise UserError("--at-once: one training runs on each of --devices; leave one of the two out")
    from semiseg.compare import compare as compare_methods
    from semiseg.report.comparison_files import text

    console = Console()
    named = [word.strip() for word in devices.split(",")] if devices is not None else []
    with _stoppable("; the same command goes on"):
        found = compare_methods(recipe, methods, numbers, out, overrides or [], console, minutes, at_once, named)
    console.print(text(found))
    _say(f"tables: {out}/comparison.txt, .csv, .tex, .json")
    if any(row.unfinished for row in found.rows):
        _say("the time is over; the same command goes on with the runs that are incomplete")


@app.command()
def tune(
    recipe: Annotated[
        Path, typer.Argument(help="Name of a recipe (semiseg recipes lists them), or a YAML file.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="New file for the recipe.", show_default=False)],
    folds: Annotated[int, typer.Option(help="Parts of the labeled images; each is measured once.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a training; by default 50 to 400.", show_default=False)
    ] = None,
    overrides: Set = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this time; the same command goes on.", show_default=False)
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Trainings at once, which share the cores.")] = 1,
) -> None:
    """Choose pool of operations and class weights on labeled images by measuring, and write a recipe with them.

    Only labeled images are read: supervised training on some, evaluation on others. The same command goes on where it
    stopped.
    """
    from semiseg.recipe import file as recipe_file

    recipe_file.read(recipe)
    from semiseg.tune import tune as tune_recipe

    console = Console()
    with _stoppable("; the same command goes on"):
        found = tune_recipe(recipe, out, overrides or [], console, folds, steps, minutes, at_once)
    if found is None:
        _say("the time is over; the same command goes on")
        return
    _say("\n".join([*found.report, "", *(each.reason for each in (found.choice, found.weights) if each)]))
    _say(f"{out} written; train it: semiseg train {shlex.quote(str(out))}")


def _seed(word: str) -> int:
    if not word.strip().isdecimal():
        raise UserError(f"--seeds {word}: is no whole number from 0 on; write them with commas, e.g. 0,1,2")
    return int(word)


@app.command()
def table(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders of runs that compare made.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.txt, .csv, .tex and .json.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are compared with; by default the first.", show_default=False)
    ] = None,
) -> None:
    """Compare runs that are there: methods over seeds, read from their directories."""
    from semiseg.report import comparison, comparison_files

    rows = comparison.rows_of(runs)
    found = comparison.read(rows if baseline is None else comparison.with_baseline(rows, baseline))
    Console().print(comparison_files.text(found))
    if out is not None:
        comparison_files.write(found, out)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders of runs that compare made.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write one page about runs: curves, classes, hardness, pictures, recipes. It needs no network."""
    from semiseg.report import page

    with _stoppable("; nothing was written"):
        notes = page.write(runs, out, overwrite)
    for note in notes:
        _say(f"note: {note}", "yellow")
    _say(f"{out} written; open it in a browser")


@app.command()
def figures(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders of runs that compare made.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace figures that are there.")] = False,
) -> None:
    """Draw figures for a paper as SVG and PNG: bars, sweeps of a setting, hardness, pictures."""
    from semiseg.report import figures as drawing

    with _stoppable("; the same command draws them anew"):
        names = drawing.write(runs, out, overwrite)
    _say(f"{out}: {', '.join(names)}; each as SVG and PNG")


@app.command()
def check(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe, by name or file, whose data section names the images.", show_default=False)
    ],
    overrides: SetData = None,
    full: Annotated[
        bool, typer.Option("--full", help="Decode every photograph, as train does, in place of their headers.")
    ] = False,
) -> None:
    """Look at the data before training: files, masks, classes, and what may be wrong. Writes nothing beside them."""
    from semiseg.recipe import file as recipe_file

    recipe_file.read(recipe)
    from semiseg import api
    from semiseg.report.data import tables

    console = Console()
    with _stoppable():
        dataset, report = api.check(recipe, overrides or [], full, console)
    for table in tables(report, dataset.classes):
        console.print(table)
    for unused in report.unused:
        _say(str(unused))
    for note in report.notes:
        _say(f"note: {note}", "yellow")
    if not report.notes:
        _say("no problem was found")


@app.command()
def evaluate(
    run: RunArgument,
    checkpoint: Which = "last",
    device: DeviceOption = "auto",
    overrides: SetData = None,
) -> None:
    """Score a run on its validation images, per class."""
    from semiseg import api
    from semiseg.report import table
    from semiseg.runs import Run

    with _stoppable(), _counting("evaluating") as count:
        scores = api.evaluate(run, checkpoint, _device(device), overrides or [], count)
    if not _is_first_process():
        return
    Console().print(table.scores_table(scores.miou, scores.accuracy, scores.iou, table.class_names(Run(run))))


@app.command()
def predict(
    run: Annotated[
        Path, typer.Argument(help="Run directory, checkpoint, exported folder or .onnx file.", show_default=False)
    ],
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, folders, videos, or patterns in quotes ('photos/**/*.jpg').", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.", show_default=False)],
    write: Annotated[
        str, typer.Option(help="masks, overlays, probabilities, coco, labelme, areas, with commas between.")
    ] = "masks,overlays",
    flip: Annotated[bool, typer.Option("--flip", help="Predict each image mirrored, too, and take the mean.")] = False,
    scales: Annotated[
        str, typer.Option(help="Sizes at which to predict each image, e.g. 0.75,1,1.25; the mean counts.")
    ] = "1",
    window: Annotated[
        int | None,
        typer.Option(help="Predict larger images in overlapping windows of this size, px.", show_default=False),
    ] = None,
    least_region: Annotated[
        int | None, typer.Option(help="Smaller regions become no polygon, pixels; by default 16.", show_default=False)
    ] = None,
    simplify: Annotated[
        float | None,
        typer.Option(help="How far polygons may leave the border of a region, px; by default 1.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that an earlier prediction wrote.")
    ] = False,
    checkpoint: Which = "best",
    device: DeviceOption = "auto",
) -> None:
    """Segment your own images: for each an index mask with palette, and an overlay; or polygons and other outputs.

    The same command goes on where it stopped.
    """
    kinds, factors = [word.strip() for word in write.split(",")], [_scale(word) for word in scales.split(",")]
    from semiseg import api

    with _stoppable("; the same command goes on"), _counting("predicting") as count:
        num_images = api.predict(
            run,
            images,
            out,
            checkpoint,
            _device(device),
            count,
            _say_unused if _is_first_process() else lambda unused: None,
            write=kinds,
            flip=flip,
            scales=factors,
            window=window,
            least_region=least_region,
            simplify=simplify,
            overwrite=overwrite,
        )
    if not _is_first_process():
        return
    named = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if kinds[1:] else kinds[0]
    _say(
        f"{num_images} {named} written to {out}"
        if kinds == ["masks", "overlays"]
        else f"{named} of {num_images} images written to {out}"
    )


def _scale(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UserError(f"--scales {word}: is no number; use e.g. 0.75,1,1.25") from None


@app.command("pseudo-label")
def pseudo_label(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder for the masks and reliability.csv.", show_default=False)],
    flip: Annotated[bool, typer.Option("--flip", help="Predict each image mirrored, too, and take the mean.")] = False,
    scales: Annotated[
        str, typer.Option(help="Sizes at which to predict each image, e.g. 0.75,1,1.25; the mean counts.")
    ] = "1",
    checkpoint: Which = "best",
    device: DeviceOption = "auto",
    overrides: SetData = None,
) -> None:
    """Write masks that a run predicts for its unlabeled images, for data.pseudo, and how reliable each is.

    The same command goes on where it stopped. Reliability needs a run with engine.keep_every: it is how near the
    predictions of its kept checkpoints are to its last one.
    """
    factors = [_scale(word) for word in scales.split(",")]
    from semiseg import api

    with _stoppable("; the same command goes on"), _counting("predicting") as count:
        number, measured = api.pseudo_label(
            run, out, checkpoint, _device(device), overrides or [], count, flip=flip, scales=factors
        )
    if not _is_first_process():
        return
    listed = ", the most reliable first in reliability.csv" if measured else ""
    _say(f"{number} masks written to {out}{listed}")
    _say(f"train with them: semiseg train RECIPE --set data.pseudo={shlex.quote(str(out.absolute()))}")


@app.command("self-train")
def self_train(
    recipe: Annotated[Path, typer.Argument(help="Recipe with method st_pp, by name or file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the stages and of their masks.", show_default=False)],
    overrides: Set = None,
    share: Annotated[float, typer.Option(help="Share of the unlabeled images that stage 2 learns.")] = 0.5,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Predict masks also on mirrored images.")] = True,
    scales: Annotated[str, typer.Option(help="Sizes at which masks are predicted; the mean counts.")] = (
        "0.5,0.75,1,1.5,2"
    ),
) -> None:
    """Train in stages (ST++): on labels, then also on reliable pseudo-labels, then on all pseudo-labels.

    The same command goes on where it stopped.
    """
    from semiseg.recipe import file as recipe_file

    recipe_file.read(recipe)
    factors = [_scale(word) for word in scales.split(",")]
    from semiseg.report import table
    from semiseg.self_train import self_train as train_stages

    console = Console()
    with _stoppable("; the same command goes on"):
        runs = train_stages(recipe, out, overrides or [], console, share, flip, factors)
    if not _is_first_process():
        return
    last = runs["stage-3"]
    console.print(table.compare(runs, table.class_names(last)))
    _say_next(last)


@app.command()
def rank(
    run: RunArgument,
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, folders, or patterns in quotes ('photos/**/*.jpg').", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the ranking.", show_default=False)],
    count: Annotated[int, typer.Option(help="How many images to choose.")] = 20,
    by: Annotated[
        str | None,
        typer.Option(help="hardness (two networks disagree), entropy, margin or random.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of --by random; by default 0.", show_default=False)] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier ranking in the folder.")] = False,
    overrides: SetData = None,
) -> None:
    """Say which images to label next, and write their present predictions for correction."""
    from semiseg.rank import Request
    from semiseg.rank import rank as rank_images

    request = Request(run, images, out, count, by, seed, _device(device), overwrite, overrides or [])
    with _stoppable("; nothing was written"):
        found = rank_images(request, Console())
    for number, row in enumerate(found.rows[:10], 1):
        _say(f"{number:3}. {row.item.name}: {found.by} {row.value:.2f}; {row.why}")
    shown = shlex.quote(str(out))
    _say(f"{len(found.rows)} images ranked in {out}/ranking.csv; look at {out}/ranking.html")
    _say(f"correct {shown}/annotations (LabelMe, or coco.json) or {shown}/masks; then: {found.next_command(out)}")


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="New folder for the exported network.", show_default=False)],
    checkpoint: Which = "best",
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write ONNX beside the PyTorch weights.")] = True,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", help="fp16 or int8: one more ONNX file, and the mIoU it costs. Repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")] = False,
    overrides: SetData = None,
) -> None:
    """Export a trained network for others: PyTorch weights, ONNX, a model card."""
    from semiseg import api
    from semiseg.report import card

    lower = [one for one in precisions or [] if one != "fp32"]  # fp32 is always written
    with _stoppable("; nothing was written"):
        about = api.export(run, out, checkpoint, onnx, lower, overwrite, overrides or [], Console())
    for line in card.measured(about.model_dump(mode="json")):
        _say(line)
    _say(f"{out} written; use it: semiseg predict {shlex.quote(str(out))} PHOTOS --out MASKS")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Show the table again and again, until Ctrl-C.")] = False,
) -> None:
    """List the runs in a folder and below it: how far they are, and their mIoU."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from semiseg.engine import state
    from semiseg.files import expanded
    from semiseg.report import listing

    console, below = Console(), expanded(folder)
    if not below.is_dir():
        raise UserError(f"{below}: there is no such folder; name the folder of your runs")
    if watch and not console.is_terminal:
        raise UserError("--watch: needs a terminal; leave it out")

    if not console.is_terminal:
        console.width = 1000  # one line for each run, for other programs to read

    def look() -> Group:
        found = sorted(map(state.read, state.find(below)), key=lambda each: each.kind != "running")
        if not found:
            return Group(Text(f"there is no run in {below} or below it"))
        lines = [Text(line, overflow="fold") for line in listing.faults(found, below)]
        return Group(listing.table(found, below), *lines)

    if not watch:
        console.print(look())
        return
    with suppress(KeyboardInterrupt), Live(look(), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(look(), refresh=True)


@app.command()
def stop(run: RunArgument) -> None:
    """Ask a training on this machine to stop after its step, with a checkpoint. Waits until it has."""
    from semiseg.engine import state
    from semiseg.engine.stop import stop
    from semiseg.runs import Run

    opened = state.opened(Run(run))
    try:
        trained = stop(opened, lambda holder: _say(f"{opened.path}: asked {holder} to stop after its step"))
    except KeyboardInterrupt:
        _say(f"{opened.path}: was asked to stop and will; only this command does not wait any longer")
        raise typer.Exit(130) from None
    found, goes_on = state.read(opened), f"go on: {opened.command}"
    steps = f"step {found.done} of {found.steps}"
    if found.kind == "broken":
        raise UserError(found.why)
    if found.kind == "finished":
        _say(f"{opened.path}: is finished{'' if trained else ' already'} ({steps})")
    elif not trained:
        _say(f"{opened.path}: is not running (at {steps}); {goes_on}")
    else:
        _say(f"{opened.path}: {found.kind} at {steps}{f' ({found.why})' if found.why else ', saved'}; {goes_on}")


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print. Without a name, all are listed.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file for the recipe, which you can edit.")] = None,
) -> None:
    """List the recipes that come with semiseg, print one, or write one to a file."""
    from semiseg.recipe import file as recipe_file

    if name is None:
        if out is not None:
            raise UserError("--out: name the recipe to write, e.g. semiseg recipes folder --out FILE")
        from rich.table import Table

        table = Table("recipe", "what it is", box=None, header_style="bold")
        for known, path in recipe_file.shipped().items():
            table.add_row(known, recipe_file.summary(path))
        Console().print(table)
        says = "\ntrain one: semiseg train folder --set data.root=PATH"
        says += "\nedit one: semiseg recipes folder --out FILE"
    elif out is None:
        says = recipe_file.text(name).rstrip("\n")
    else:
        recipe_file.write(name, out)
        says = f"{out} written; edit it, then: semiseg train {shlex.quote(str(out))}"
    _say(says)


@app.command("paper-recipes")
def paper_recipes(
    out: Annotated[Path, typer.Option(help="Folder to write into.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist already.")] = False,
) -> None:
    """Write a recipe for each figure of the iMAS paper: Tables 2 to 5, Figures 2 and 3.

    Each says the command, the hours of the authors' run, and the published figure.
    """
    from semiseg.recipe import paper

    written = paper.write(out, overwrite)
    _say(f"{len(written)} recipes written to {out}; the head of each says how to train it")


@app.command()
def methods() -> None:
    """List the methods, one line each."""
    from rich.table import Table

    from semiseg import methods

    table = Table("method.name", "what it is", box=None, header_style="bold")
    for name in methods.names():
        table.add_row(name, methods.summary(name))
    Console().print(table)


@app.command()
def partitions(
    recipe: Annotated[
        Path, typer.Argument(help="Recipe, by name or file, whose data section names the images.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="New folder for labeled_N.txt, unlabeled_N.txt and val.txt.", show_default=False)
    ],
    sizes: Annotated[
        list[float], typer.Option("--size", help="Labeled images: a count, or a fraction below 1. Repeatable.")
    ],
    seed: Annotated[int, typer.Option(help="Another seed gives other partitions.")] = 0,
    overrides: SetData = None,
) -> None:
    """Draw nested label partitions that cover every class, for your own comparison."""
    from semiseg.recipe import file as recipe_file

    recipe_file.read(recipe)
    from semiseg import api

    api.partitions(recipe, out, sizes, seed, overrides or [], Console())


def _say(text: str, style: str | None = None) -> None:
    """Prints a text as it is: Rich would read markup in a folder's name, and break long lines."""
    Console().print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _say_next(run: Any) -> None:
    """Prints the command that predicts with a run: the photographs of its recipe, if they are in one folder."""
    from semiseg.recipe import file as recipe_file

    out, data = Path("predictions"), recipe_file.read(run.config)["data"]
    images, shown = Path(data["root"]) / str(data.get("images")), "IMAGES"
    if "images" in data and images.is_dir() and not out.resolve().is_relative_to(images.resolve()):
        shown = shlex.quote(str(images))
    _say(f"next: semiseg predict {shlex.quote(str(run.path))} {shown} --out {out}")


def _say_unused(unused: object) -> None:
    _say(f"note: {unused}", "yellow")


def _counting(doing: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Shows how many images are done. Only the first process shows it."""
    from semiseg.engine.progress import counting

    return counting(doing, Console(quiet=not _is_first_process()))


@contextmanager
def _stoppable(advice: str = "") -> Iterator[None]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into one line on stderr and an exit code."""
    try:
        yield
    except Interrupted as error:
        if _is_first_process():
            _complain(str(error))
        raise typer.Exit(128 + error.signum) from error
    except KeyboardInterrupt as error:
        if _is_first_process():
            _complain(f"interrupted{advice}")
        raise typer.Exit(130) from error


def _device(name: str) -> Any:
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--device: there is no {name!r}; use auto, cpu, cuda or mps")
    return name


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun and accelerate launch


def _complain(message: str) -> None:
    """Prints an error as one line on stderr.

    Control characters are escaped, and a long message is shortened.

    If all processes have the same error, only the first process should print it. The launcher ends all processes when
    one of them fails. So the other processes wait here: the first one prints the error and ends, and the launcher then
    ends the waiting ones. If a process has waited the whole time, the first process had no error, and the waiting
    process prints its own.
    """
    if not _is_first_process() and not message.startswith("process "):
        time.sleep(_PATIENCE_S)
        message = f"process {os.environ['RANK']} of {os.environ.get('WORLD_SIZE')}: {message}"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    cut = line if len(line) < 2000 else f"{line[:1000]} ... {line[-500:]}"
    try:
        sys.stderr.write(f"semiseg: {cut}\n")  # one call of write, because other processes write to stderr, too
        sys.stderr.flush()
    except OSError:  # the terminal is gone; Python would end with another exit code if it failed again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


_NO_MEMORY = ("out of memory", "out of shared memory", "allocate memory")  # in torch's messages, on each device
_UsageError: Any = typer.BadParameter.__base__  # from click, or from the copy of click inside newer typer


def main() -> None:
    """Runs the command line. A user's mistake gives one line on stderr and exit code 2, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may have bytes that are no text
    warnings.filterwarnings("ignore", module="PIL")  # our own messages report files that cannot be read
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        # Threads that wait for each other spin less before they sleep: no slower on idle cores, and twice as fast when
        # other programs need them (docs/log.md, 2026-11-27). OpenMP reads it when torch is imported.
        os.environ["GOMP_SPINCOUNT"] = "100000"
    training = sys.argv[1:2] in (["train"], ["self-train"])  # the loop saves before it stops; around it nothing is lost
    with leaving_at_once("; the same command goes on", _is_first_process()) if training else nullcontext():
        _run()


def _run() -> NoReturn:
    try:
        sys.exit(app(prog_name="semiseg", standalone_mode=False))
    except UserError as error:
        _complain(str(error))
    except _UsageError as error:
        says = " ".join(error.format_message().split())
        if says:  # empty if no command was given; the help has been printed then
            _complain(f"{says.removesuffix('.')}; see {error.ctx.command_path if error.ctx else 'semiseg'} --help")
    except typer.Abort:
        _complain("aborted: the input ended")
    except OSError as error:  # no permission, disk full, a file where a folder is needed
        if error.errno is None:
            raise
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        remedy = "lower engine.batch_size, data.crop or data.long_side"
        if sys.argv[1:2] == ["predict"]:
            remedy = "predict in smaller windows, e.g. --window 512"
        _complain(f"not enough memory; {remedy} ({first_line(error)})")
    sys.exit(2)
