"""Adds new labels to a folder that `init` made. Labels that are there stay, and so do validation images."""

import os
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count as numbers
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from torch import Tensor

from semiseg import data
from semiseg.data.check import check
from semiseg.data.dataset import Dataset, Sample, Unused
from semiseg.data.lists import rest
from semiseg.data.masks import coding_of, read_mask
from semiseg.data.rasterize import mask_colors, palette
from semiseg.engine.pictures import background
from semiseg.engine.progress import counting, say
from semiseg.errors import UserError
from semiseg.files import expanded, save_image
from semiseg.init import recipe
from semiseg.init.corrected import Corrected, read_labels
from semiseg.init.request import ADDED
from semiseg.recipe.file import OF_FOLDER as RECIPE
from semiseg.recipe.file import parse, run_name
from semiseg.recipe.load import load_recipe
from semiseg.recipe.recipe import Recipe
from semiseg.runs import write_atomically

Label = UInt8[Tensor, "h w"]


@dataclass(frozen=True)
class Update:
    """New labels for a folder that `init` made. One of masks, coco and labelme is given.

    Attributes:
        out: the folder.
        masks: folder of masks of class indices, as `semiseg predict` writes them.
        coco: a COCO file.
        labelme: folder of LabelMe files.
        accept: whether predictions that nobody has changed are labels, too.
        overwrite: whether a label that an earlier update took is replaced by another one.
    """

    out: Path
    masks: Path | None = None
    coco: Path | None = None
    labelme: Path | None = None
    accept: bool = False
    overwrite: bool = False


def update(request: Update, console: Console | None = None) -> str:
    """Writes the new labels as masks into `added/`, and names this folder in the recipe.

    Images that have a label already keep it, and validation images stay what they are.

    Args:
        request: what to add.
        console: shows what was found. None: nothing is shown.

    Returns:
        The command that trains with them.

    Raises:
        UserError: the folder is none of `init`, a label is wrong, or none is new. Then nothing is written.
    """
    console = console or Console(quiet=True)
    out, kind, source = _checked(request)
    before = load_recipe(out / RECIPE)
    text = _with_added(out, before)
    dataset = data.load(before.data)
    with counting("drawing masks", console, "masks") as count:
        found, unused = read_labels(dataset, before.data.root, kind, source, request.accept, count)
    new, kept = _new(found, dataset, request.overwrite)
    if kind != "masks" and not background(dataset.classes):
        say(console, "note: no class is the background, so pixels in no shape do not count", "yellow")
    for one in [*unused, *kept]:
        say(console, f"note: {one}", "yellow")
    if not new:
        raise UserError(f"--{kind} {source}: holds no new label of {out}" + (f" ({unused[0]})" if unused else ""))
    with tempfile.TemporaryDirectory(prefix=f".{ADDED}-", dir=out) as folder:
        work = Path(folder)
        samples = [_written(one.sample, label, dataset, work) for one, label in new]
        joined = _joined(dataset, samples)
        with counting("checking the data", console) as count:
            check(joined, before.data, on_image=count)
        for sample in samples:
            assert sample.mask is not None
            target = out / ADDED / sample.mask.relative_to(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            sample.mask.replace(target)
    write_atomically(out / RECIPE, text)
    say(
        console,
        f"{len(new)} labels taken from {source}; now {len(joined.labeled)} labeled, {len(joined.unlabeled)} unlabeled "
        f"and {len(joined.val)} validation images; before {len(dataset.labeled)}, {len(dataset.unlabeled)} and "
        f"{len(dataset.val)}",
    )
    return _next(request.out)


def _checked(request: Update) -> tuple[Path, str, Path]:
    """Returns the folder, the kind of the source and the source, with absolute paths."""
    given = [key for key in ("masks", "coco", "labelme") if getattr(request, key) is not None]
    if len(given) != 1:
        raise UserError("--update: give the corrected labels with one of --labelme, --coco and --masks")
    kind = given[0]
    out, source = (
        Path(os.path.abspath(expanded(path)))  # noqa: PTH100 - keeps links as they are
        for path in (request.out, getattr(request, kind))
    )
    made = out / RECIPE
    if not made.is_file() or not made.read_text(encoding="utf-8", errors="replace").startswith(recipe.MADE):
        raise UserError(f"{out}: is no folder that semiseg init made; make one with semiseg init {out} --images PHOTOS")
    if kind == "coco" and not source.is_file():
        raise UserError(f"--coco {source}: there is no such file")
    if kind != "coco" and not source.is_dir():
        raise UserError(f"--{kind} {source}: there is no such folder")
    return out, kind, source


def _with_added(out: Path, before: Recipe) -> str:
    """Returns the recipe's text with a line that names the folder of added labels.

    Raises:
        UserError: the recipe names lists, with which added labels would not be used, or the line fits nowhere.
    """
    for key in ("labeled", "unlabeled"):
        if getattr(before.data, key) is not None:
            raise UserError(
                f"{out / RECIPE}: data.{key} names a list, so new labels would not be used; remove this setting first"
            )
    text = (out / RECIPE).read_text(encoding="utf-8")
    here = os.path.realpath(before.data.root) == os.path.realpath(out)
    wanted, given = out / ADDED, getattr(before.data, "added", None)
    if given is not None:
        if os.path.realpath(before.data.root / given) != os.path.realpath(wanted):
            raise UserError(f"{out / RECIPE}: data.added names {given}; --update writes into {wanted}; name that there")
        return text
    value = ADDED if here else str(wanted)
    line = f"  added: {recipe.value(value)}  # masks of labels that semiseg init --update took\n"
    place = re.search(r"^  val: .*\n", text, re.MULTILINE) or re.search(r"^data:[ \t]*(#.*)?\n", text, re.MULTILINE)
    if place is not None:
        changed = text[: place.end()] + line + text[place.end() :]
        values = parse(changed, str(out / RECIPE))
        if values.get("data", {}).pop("added", None) == value and values == parse(text, str(out / RECIPE)):
            return changed
    raise UserError(f"{out / RECIPE}: has no section data as init writes it; add `added: {value}` to its data first")


def _new(
    found: Sequence[Corrected], dataset: Dataset, overwrite: bool
) -> tuple[list[tuple[Corrected, Label]], list[Unused]]:
    """Returns the labels that are new, and notes about the others.

    Raises:
        UserError: an earlier update took another label of an image, and it may not be replaced.
    """
    labeled = {sample.name: sample for sample in dataset.labeled if not sample.pseudo}
    val, tests = ({sample.name for sample in samples} for samples in (dataset.val, dataset.tests))
    new: list[tuple[Corrected, Label]] = []
    for_val, for_tests, had, same = [], [], [], []
    for one in found:
        name = one.sample.name
        known = labeled.get(name)
        if name in val:
            for_val.append(one.file)
        elif name in tests:
            for_tests.append(one.file)
        elif known is not None and not known.indexed:
            had.append(one.file)
        else:
            label = one.read()
            if known is not None and known.mask is not None:
                if torch.equal(label, read_mask(known.mask, coding_of(known, dataset.coding))):
                    same.append(one.file)
                    continue
                if not overwrite:
                    raise UserError(
                        f"{one.file}: differs from the label of {one.sample.image} that an earlier update took; "
                        "replace that with --overwrite"
                    )
            new.append((one, label))
    kinds = (
        ("labels of validation images, not taken: these stay validation images with their own labels", for_val),
        ("labels of images in the folder for tests, not taken", for_tests),
        ("labels of images that are labeled already, not taken", had),
        ("labels that an earlier update took, unchanged", same),
    )
    return new, [Unused(what, tuple(files)) for what, files in kinds if files]


def _written(sample: Sample, label: Label, dataset: Dataset, folder: Path) -> Sample:
    path = folder / f"{sample.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label.numpy())
    image.putpalette(palette(mask_colors(dataset.classes)))
    save_image(image, path)
    return replace(sample, mask=path, indexed=True)


def _joined(dataset: Dataset, samples: Sequence[Sample]) -> Dataset:
    return replace(
        dataset,
        labeled=(*rest(dataset.labeled, samples), *samples),
        unlabeled=rest(dataset.unlabeled, samples),
    )


def _next(out: Path) -> str:
    """Returns the command that trains in a new run directory: a run on fewer labels cannot go on with more."""
    name, shown = run_name(out), shlex.quote(str(out))
    if not (Path("runs") / name).exists():
        return f"semiseg train {shown}"
    free = next(f"{name}-{number}" for number in numbers(2) if not (Path("runs") / f"{name}-{number}").exists())
    return f"semiseg train {shown} --out {shlex.quote(f'runs/{free}')}"
