"""Chooses validation images, and writes their list."""

from collections.abc import Sequence
from dataclasses import replace
from filecmp import cmp
from pathlib import Path

from rich.console import Console

from semiseg.data import twins
from semiseg.data.catalog import Catalog
from semiseg.data.check import count_classes
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.lists import read_list
from semiseg.data.partitions import lines_of
from semiseg.data.parts import part_named
from semiseg.engine.progress import counting, say
from semiseg.errors import UserError
from semiseg.init.request import Request
from semiseg.init.settings import Setting
from semiseg.init.split import hold_out
from semiseg.types import IGNORE

_COMPARED = 3000  # unlabeled images that are decoded to find copies; each needs some milliseconds


def validated(
    request: Request, section: list[Setting], dataset: Dataset, work: Path, console: Console
) -> list[Setting]:
    """Chooses validation images, writes their list, and adds the setting that names it."""
    tests = () if request.val is None else tuple(sample for sample in dataset.tests if sample.mask)
    masked = tuple(sorted((*dataset.labeled, *dataset.val, *tests), key=lambda sample: sample.name))
    with counting("looking for near-duplicates", console) as count:
        alike = twins.groups(masked, count)
    val, why = _validation(request, masked, alike, dataset, work, console)
    if not val or len(val) == len(masked):
        raise UserError(
            f"{len(masked)} images have masks, of which {len(val)} are for validation; both training and validation "
            "need at least one: label more"
        )
    _note_copies(val, dataset, console)
    (work / "splits").mkdir()
    (work / "splits" / "val.txt").write_text(lines_of(val), encoding="utf-8")
    here = any(setting.key == "root" and setting.value == str(request.out) for setting in section)
    path = "splits/val.txt" if here else str(request.out / "splits" / "val.txt")
    return [*section, Setting("data", "val", path, why)]


def _note_copies(val: Sequence[Sample], dataset: Dataset, console: Console) -> None:
    """Notes unlabeled near-duplicates of validation images. The check notes those that are the same byte for byte."""
    some = dataset.unlabeled[:: -(-len(dataset.unlabeled) // _COMPARED) or 1]
    with counting("comparing unlabeled images with those for validation", console) as count:
        pairs = twins.across(val, some, count)
    copies = {other.name: (one, other) for one, other in pairs if not cmp(one.image, other.image, shallow=False)}
    if copies:
        one, other = next(iter(copies.values()))
        among = f" of {len(some)} that were compared" if len(some) < len(dataset.unlabeled) else ""
        say(
            console,
            f"note: unlabeled images that are near-duplicates of validation images: {len(copies)}{among}, e.g. "
            f"{other.image} and {one.image}; the score may be too good: remove them",
            "yellow",
        )


def _validation(
    request: Request,
    masked: Sequence[Sample],
    alike: Sequence[Sequence[Sample]],
    dataset: Dataset,
    work: Path,
    console: Console,
) -> tuple[tuple[Sample, ...], str]:
    folders = {
        folder for sample in dataset.val for folder in sample.name.split("/")[:-1] if part_named(folder) == "val"
    }
    if request.val is None and folders and all({*sample.name.split("/")} & folders for sample in dataset.val):
        val, why = dataset.val, f"the folder {', '.join(sorted(folders))}"
    elif request.val is None:
        counts = count_classes(replace(dataset, labeled=tuple(masked)), work)
        sets = {sample.name: frozenset(each) - {IGNORE} for sample, each in zip(masked, counts, strict=True)}
        usable = [tuple(one for one in group if sets[one.name]) for group in alike]
        val = hold_out([group for group in usable if group], sets)
        if not val:  # all look alike
            val = hold_out([(one,) for group in usable for one in group], sets)
            say(console, "note: all images with masks look alike; validation on such images says little", "yellow")
        why = f"{len(val)} of {len(masked)} images with masks, held out; all classes where they can be in both parts"
        if several := [group for group in alike if group[1:]]:
            why += f"; {sum(map(len, several))} near-duplicates stay together"
        return val, why
    elif request.val.is_dir():
        val = tuple(sample for sample in masked if sample.image.is_relative_to(request.val))
        why = f"those in {request.val}"
        if not val:
            raise UserError(
                f"--val {request.val}: holds no image with a mask; name a folder below {request.images}, or a list"
            )
    else:
        val, why = _listed(request.val, masked, request.images), f"those of {request.val.name}"
    names = {sample.name for sample in val}
    mixed = [group for group in alike if {sample.name in names for sample in group} == {True, False}]
    if mixed:
        one, other = mixed[0][:2]
        say(
            console,
            f"note: near-duplicates in training and validation: {len(mixed)} group{'s' * (len(mixed) != 1)}, e.g. "
            f"{one.image} and {other.image}; the score will be too good",
            "yellow",
        )
    return val, why


def _listed(path: Path, masked: Sequence[Sample], images: Path) -> tuple[Sample, ...]:
    if not path.is_file():
        raise UserError(f"--val {path}: there is no such folder or list")
    return read_list(path, Catalog(images, masked), listed_masks=False, setting="--val, images with masks")
