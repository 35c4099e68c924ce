"""Makes the folder of a training from photographs and what is labeled of them."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from semiseg import data
from semiseg.data.check import Report, check, count_classes
from semiseg.data.dataset import Dataset
from semiseg.data.read import read_header
from semiseg.engine.progress import counting, say
from semiseg.engine.runtime import Runtime
from semiseg.files import filling
from semiseg.init import recipe
from semiseg.init.files import data_section
from semiseg.init.request import Ask, Request, at_work, checked
from semiseg.init.settings import Facts, Setting, choose, kind_and_why, kind_of, rare_classes
from semiseg.init.trial import tried
from semiseg.init.validation import validated
from semiseg.init.words import own_words
from semiseg.recipe.file import OF_FOLDER as RECIPE
from semiseg.recipe.load import validate
from semiseg.report.data import tables
from semiseg.types import IGNORE

_SHOWN = {("data", "val"), ("data", "long_side"), ("data", "crop"), ("data", "labeled_order"), ("model", "encoder"),
          ("method", "name"), ("method", "labeled"), ("method", "labeled_loss"), ("engine", "steps"),
          ("engine", "batch_size"), ("engine", "precision")}  # fmt: skip


def init(request: Request, ask: Ask = lambda question, default: default, console: Console | None = None) -> Path:
    """Looks at the data, chooses settings, and writes `recipe.yaml`, `classes.txt` and `splits/` into the folder.

    Photographs and masks stay where they are. If masks have one file for each class, joined ones are written to
    `masks/`.

    Args:
        request: what to make a training of.
        ask: asks the user about what the files do not say.
        console: shows what was found. None: nothing is shown.

    Returns:
        The recipe.

    Raises:
        UserError: the data cannot be used, or the folder holds something else. Then nothing is written.
    """
    console = console or Console(quiet=True)
    request = checked(request)
    with filling(request.out) as work, own_words(request, work):
        section = data_section(request, work, ask, console)
        dataset, _ = _look(section, request, work, console)
        section = validated(request, section, dataset, work, console)
        dataset, report = _look(section, request, work, console)  # with these validation images, as in training
        say(console, f"photographs: {_formats(dataset)}")
        for table in tables(report, dataset.classes):
            console.print(table)
        for note in [*(str(one) for one in report.unused if one.matters), *report.notes]:
            say(console, f"note: {note}".replace(str(work), str(request.out)), "yellow")
        facts = _facts(dataset, request)
        if (rare := rare_classes(facts)) is not None:
            say(console, f"note: {rare}", "yellow")
        say(console, f"data: {kind_and_why(facts)}")
        chosen = [*section, *choose(facts)]
        chosen += tried(request, chosen, work, facts, console)
        head = _head(request, dataset, facts)
        (work / RECIPE).write_text(recipe.text(head, chosen), encoding="utf-8")
        _show(console, [setting for setting in chosen if (setting.section, setting.key) in _SHOWN])
    return request.out / RECIPE


def _look(section: Sequence[Setting], request: Request, work: Path, console: Console) -> tuple[Dataset, Report]:
    """Loads the data and checks every file, as a training does."""
    config = _config(section, request, work)
    dataset = data.load(config)
    with counting("checking the data", console) as count:
        return dataset, check(dataset, config, full=False, on_image=count)


def _formats(dataset: Dataset) -> str:
    """Counts the kinds of photographs, e.g. `12 JPEG of 8 bits, 3 channels, 1 of them turned by EXIF`."""
    kinds: Counter[str] = Counter()
    turned: Counter[str] = Counter()
    for sample in (*dataset.labeled, *dataset.unlabeled, *dataset.val):
        header = read_header(sample.image)
        plural = "s" if header.channels > 1 else ""
        kind = f"{header.format} of {header.bits} bits, {header.channels} channel{plural}"
        kinds[kind] += 1
        turned[kind] += header.orientation != 1
    parts = [
        f"{number} {kind}" + (f", {turned[kind]} of them turned by EXIF" if turned[kind] else "")
        for kind, number in kinds.most_common()
    ]
    return "; ".join(parts)


def _config(section: Sequence[Setting], request: Request, work: Path) -> Any:
    values = {one.key: at_work(one.value, request.out, work) for one in section if one.section == "data"}
    return validate(
        {"data": values | {"crop": 1}, "method": {"name": "supervised"}, "engine": {"steps": 1}}, "init"
    ).data


def _facts(dataset: Dataset, request: Request) -> Facts:
    everyone = (*dataset.labeled, *dataset.unlabeled)
    headers = [read_header(sample.image) for sample in everyone[:: -(-len(everyone) // 1000)]]
    counts = count_classes(dataset, request.images)
    images = dict.fromkeys(range(len(dataset.classes)), 0)
    areas: dict[int, list[float]] = defaultdict(list)
    for each in counts:
        total = sum(each.values())
        for index in each.keys() - {IGNORE}:
            images[index] += 1
            areas[index].append(each[index] / total)
    shown = {index: number for index, number in images.items() if number}
    on_gpu = Runtime(request.device, "fp32").device.type == "cuda"
    return Facts(
        sizes=[header.size for header in headers],
        labeled=len(dataset.labeled),
        unlabeled=len(dataset.unlabeled),
        classes=dataset.classes.names,
        background=dataset.classes.background,
        images_of_class=shown,
        areas=areas,
        gray=all(header.channels < 3 for header in headers),
        on_gpu=on_gpu,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def _head(request: Request, dataset: Dataset, facts: Facts) -> list[str]:
    method, baseline = "supervised, as there are no unlabeled images", []
    if facts.unlabeled:
        method = f"method of recipe recommended/{kind_of(facts)}"
        baseline = [f"  semiseg train {request.out} --baseline      also says what the unlabeled images were worth"]
    return [
        f"{facts.labeled} labeled, {facts.unlabeled} unlabeled and {len(dataset.val)} validation images of "
        f"{request.images}; {len(facts.classes)} classes; {method}.",
        f"{kind_and_why(facts)}.",
        "",
        f"  semiseg train {request.out}",
        *baseline,
        f"  semiseg tune {request.out} --out tuned.yaml  measures whether changes of color and class weights help",
        "",
        "Each setting may be changed here. New masks are used when training starts anew.",
    ]


def _show(console: Console, settings: Sequence[Setting]) -> None:
    table = Table(
        "setting", "value", "why", title="recipe: the choices that matter most; the file has all, with reasons"
    )
    for setting in settings:
        value = "none" if setting.value is None else str(setting.value)
        table.add_row(f"{setting.section}.{setting.key}", value, setting.why)
    console.print(table)
