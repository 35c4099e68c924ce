"""Makes the folder of a training from photographs and what is labeled of them."""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from semiseg import api, data
from semiseg.data import twins
from semiseg.data.check import Report, check, count_classes, proposed_white
from semiseg.data.classes import read_classes
from semiseg.data.dataset import Dataset, Sample
from semiseg.data.masks import Content, hex_color, read_stored
from semiseg.data.partitions import lines_of
from semiseg.data.read import read_header, read_size
from semiseg.engine.progress import counting
from semiseg.engine.rehearse import Rehearsal
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.files import expanded
from semiseg.init import layers, recipe
from semiseg.init.masks import Masks, find, guess_folder
from semiseg.init.settings import Facts, Setting, choose, kind_of, most_steps, steps
from semiseg.init.split import hold_out
from semiseg.init.values import Reading, propose
from semiseg.recipe.engine import Device, PrecisionSetting
from semiseg.recipe.file import OF_FOLDER as RECIPE
from semiseg.recipe.load import validate
from semiseg.report.data import tables
from semiseg.types import IGNORE, voc_color

Ask = Callable[[str, bool], bool]  # a question with its default answer -> the answer

_EVALUATIONS, _TRIED = 8, 6  # evaluations of a run; steps that are tried
_SHOWN = {("data", "val"), ("data", "long_side"), ("data", "crop"), ("data", "labeled_order"), ("model", "encoder"),
          ("method", "name"), ("method", "labeled"), ("engine", "steps"), ("engine", "batch_size"),
          ("engine", "precision")}  # fmt: skip
_CPU_BATCHES, _GPU_BATCHES = (4, 2), (16, 8, 4, 2)
_MEMORY = 0.6  # share of a machine's memory that a training may take
_READ = 400  # masks that are read to find out what they mean; `check` reads all of them


@dataclass(frozen=True)
class Request:
    """What to make a training of.

    Attributes:
        out: the new folder.
        images: folder of all photographs.
        masks: folder of masks; None: the folder beside the photographs that is called as such folders are.
        coco: a COCO file in place of masks.
        labelme: a folder of LabelMe files in place of masks.
        classes: names of the classes with commas between, or a file of classes; None: found in the masks.
        val: a folder below `images`, or a list of names, of the validation images; None: a fifth is held out.
        hours: how long a training may take.
        device: where to train.
        overwrite: whether an earlier result in `out` is replaced.
    """

    out: Path
    images: Path
    masks: Path | None = None
    coco: Path | None = None
    labelme: Path | None = None
    classes: str | None = None
    val: Path | None = None
    hours: float = 1.0
    device: Device = "auto"
    overwrite: bool = False


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
    request = _checked(request)
    with _aside(request) as work:
        section = _data_section(request, work, ask, console)
        dataset, report = _look(section, work, console)
        for table in tables(report, dataset.classes.names):
            console.print(table)
        for note in [*(str(one) for one in report.unused if one.matters), *report.notes]:
            _say(console, f"note: {note}", "yellow")
        section, dataset = _split(request, section, dataset, work, console)
        chosen = [*section, *choose(facts := _facts(dataset, request))]
        chosen += _tried(request, chosen, work, facts, console)
        head = _head(request, dataset, facts)
        (work / RECIPE).write_text(recipe.text(head, chosen), encoding="utf-8")
        _show(console, [setting for setting in chosen if (setting.section, setting.key) in _SHOWN])
    return request.out / RECIPE


def _checked(request: Request) -> Request:
    sources = [key for key in ("masks", "coco", "labelme") if getattr(request, key) is not None]
    if len(sources) > 1:
        raise UserError(f"--{sources[0]} and --{sources[1]}: exclude each other; give one")
    if request.hours <= 0:
        raise UserError(f"--hours {request.hours:g}: is not above 0")
    places: dict[str, Any] = {
        key: Path(os.path.abspath(expanded(path)))  # noqa: PTH100 - keeps links as they are
        for key in ("out", "images", "masks", "coco", "labelme", "val")
        if (path := getattr(request, key)) is not None
    }
    request = replace(request, **places)
    for key in ("images", "masks", "labelme"):
        folder = getattr(request, key)
        if folder is not None and not folder.is_dir():
            what = "is a file; name its folder" if folder.exists() else "there is no such folder"
            raise UserError(f"--{key} {folder}: {what}")
    if request.coco is not None and not request.coco.is_file():
        raise UserError(f"--coco {request.coco}: there is no such file")
    if request.out.is_relative_to(request.images) or (request.masks and request.out.is_relative_to(request.masks)):
        raise UserError(f"{request.out}: is inside the folder of the photographs or masks; name a folder elsewhere")
    if request.out.exists():
        if not request.out.is_dir():
            raise UserError(f"{request.out}: is a file; name a folder")
        ours = (request.out / RECIPE).is_file() and (request.out / RECIPE).read_text(errors="replace").startswith(
            recipe.MADE
        )
        if any(request.out.iterdir()) and not ours:
            raise UserError(f"{request.out}: exists already and is not empty; name a new folder")
        if ours and not request.overwrite:
            raise UserError(
                f"{request.out}: exists already, from an earlier init; train it with semiseg train {request.out}, or "
                "replace it with --overwrite"
            )
    return request


@contextmanager
def _aside(request: Request) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `out` if all goes well and is removed otherwise."""
    try:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{request.out.name}-", dir=request.out.parent))
    except OSError as error:
        raise UserError(f"{request.out}: cannot be written ({error.strerror})") from error
    try:
        yield work
        work.chmod(0o755)
        request.out.mkdir(exist_ok=True)
        for path in sorted(work.iterdir()):
            target = request.out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _data_section(request: Request, work: Path, ask: Ask, console: Console) -> list[Setting]:
    """Returns the settings that name the files and say what masks mean; writes classes.txt and joined masks."""
    here = [Setting("data", "root", str(request.out), "moved? set it to the new place")]
    if request.coco is not None or request.labelme is not None:
        layout, place = ("coco", request.coco) if request.coco is not None else ("labelme", request.labelme)
        named = [Setting("data", "classes", "classes.txt", "")] if request.classes is not None else []
        if request.classes is not None:
            (work / "classes.txt").write_text(_class_lines(request.classes), encoding="utf-8")
        return [
            Setting("data", "layout", layout, "the annotations are read directly: change them, and train again"),
            *here,
            Setting("data", "images", str(request.images), ""),
            Setting("data", "annotations", str(place), ""),
            *named,
        ]
    folder = request.masks or _guessed(request, ask)
    found = find(request.images, folder)
    settings = [
        Setting("data", "layout", "folder", f"masks are files: {_how(found)}"),
        *here,
        Setting("data", "images", str(request.images), ""),
    ]
    if found.layers:
        reading = _joined(found, request, work, console)
        settings.append(Setting("data", "masks", "masks", "joined from files of one class each; the originals stay"))
    else:
        reading = _read(found, request, ask, console)
        settings.append(Setting("data", "masks", str(folder), ""))
        if found.suffix:
            settings.append(Setting("data", "mask_suffix", found.suffix, "what names of masks have more at the end"))
    lines = [f"{name} {hex_color(color)}\n" for name, color in zip(reading.names, reading.colors, strict=True)]
    (work / "classes.txt").write_text("".join(lines), encoding="utf-8")
    settings.append(Setting("data", "classes", "classes.txt", "change names and colors there; the order must stay"))
    if reading.values is not None:
        settings.append(Setting("data", "values", reading.values, reading.why))
    settings += _reading_of_photographs(found)
    if reading.ignored:
        ignored = {hex_color(color): IGNORE for color in reading.ignored}
        settings.append(Setting("data", "colors", ignored, "these colors are not labeled"))
    if reading.background is not None:
        background = reading.names[reading.background]
        settings.append(Setting("data", "background", background, "the class that means nothing of interest"))
    return settings


def _reading_of_photographs(found: Masks) -> list[Setting]:
    """Returns settings for photographs that EXIF turns, and for those of more than 8 bits, where files show them."""
    settings, headers = [], {}
    for path in list(found.images.values())[:: -(-len(found.images) // _READ)]:
        with suppress(UserError):  # the check says what cannot be read
            headers[path] = read_header(path)
    for name, mask in found.files.items():
        header = headers.get(found.images[name])
        if header is not None and header.size != header.stored and read_size(mask) == header.stored:
            why = f"the mask of {name} fits its stored pixels, which EXIF turns"
            settings.append(Setting("data", "mask_orientation", "stored", why))
            break
    deep = {path: header for path, header in headers.items() if header.largest > 255}
    if deep and (proposed := proposed_white(deep)) is not None:
        why = f"the largest value of {proposed[2]} photographs is {proposed[1]}; otherwise they are dark"
        settings.append(Setting("data", "white", proposed[0], why))
    return settings


def _guessed(request: Request, ask: Ask) -> Path:
    folder = guess_folder(request.images)
    if folder is None:
        raise UserError(
            f"--masks: no folder beside or below {request.images} is called masks or labels; name the folder of the "
            "masks with --masks, a COCO file with --coco, or a folder of LabelMe files with --labelme"
        )
    if not ask(f"take {folder} as the folder of the masks?", True):
        raise UserError("--masks: name the folder of the masks")
    return folder


def _how(found: Masks) -> str:
    if found.layers:
        return "one for each class"
    return f"named as the images, with {found.suffix!r} at the end" if found.suffix else "named as the images"


def _joined(found: Masks, request: Request, work: Path, console: Console) -> Reading:
    with counting("joining masks", console) as count:
        names, overlaps = layers.merge(found.layers, work / "masks", count)
    if overlaps:
        _say(
            console,
            f"note: {overlaps} pixels are shown by masks of several classes; the class with fewer pixels counts",
            "yellow",
        )
    table = _given_names(request)
    if table is not None and sorted(table) not in (sorted(names), sorted(["background", *names])):
        raise UserError(f"--classes: names {', '.join(table)}, but the masks are called {', '.join(names)}")
    colors = tuple(map(voc_color, range(len(names) + 1)))
    _say(console, f"masks: one file for each class ({', '.join(names)}), joined; the rest is background")
    return Reading(("background", *names), colors, "", None, 0)


def _read(found: Masks, request: Request, ask: Ask, console: Console) -> Reading:
    """Reads some masks and finds out what their values mean. Asks where that is in doubt."""
    if request.classes is not None and Path(request.classes).is_file():
        table, stated = read_classes(Path(request.classes), None)
        if stated:
            return Reading(table.names, table.colors, "colors as the class file says", None, _background(table.names))
    some = list(found.files.values())[:: -(-len(found.files) // _READ)]
    contents: dict[Path, Content] = {}
    with counting("reading masks", console) as count:
        for number, path in enumerate(some, 1):
            contents[path] = read_stored(path).content
            count(number, len(some))
    reading = propose(contents, _given_names(request))
    if reading.doubt is not None and not ask(reading.doubt, True):
        if reading.other is None:
            raise UserError("--classes: give a file with one line for each class, its name and its color: road #804080")
        reading = reading.other
    _say(console, f"masks: {reading.why}")
    return reading


def _given_names(request: Request) -> tuple[str, ...] | None:
    if request.classes is None:
        return None
    if Path(request.classes).is_file():
        return read_classes(Path(request.classes), None)[0].names
    return tuple(name.strip() for name in request.classes.split(",") if name.strip())


def _class_lines(classes: str) -> str:
    if Path(classes).is_file():
        return Path(classes).read_text(encoding="utf-8")
    return "".join(f"{name.strip()}\n" for name in classes.split(",") if name.strip())


def _background(names: Sequence[str]) -> int | None:
    return names.index("background") if "background" in names else None


def _look(section: Sequence[Setting], work: Path, console: Console) -> tuple[Dataset, Report]:
    """Loads the data and checks every file, as a training does."""
    config = _config(section, work)
    dataset = data.load(config)
    with counting("checking the data", console) as count:
        return dataset, check(dataset, config, full=False, on_image=count)


def _config(section: Sequence[Setting], work: Path) -> Any:
    values = {setting.key: setting.value for setting in section if setting.section == "data"}
    values |= {"root": str(work), "crop": 1}
    return validate({"data": values, "method": {"name": "supervised"}, "engine": {"steps": 1}}, "init").data


def _split(
    request: Request, section: list[Setting], dataset: Dataset, work: Path, console: Console
) -> tuple[list[Setting], Dataset]:
    """Chooses validation images, and writes their list."""
    masked = tuple(sorted((*dataset.labeled, *dataset.val), key=lambda sample: sample.name))
    with counting("looking for near-duplicates", console) as count:
        alike = twins.groups(masked, count)
    val, why = _validation(request, masked, alike, dataset, work, console)
    if not val or len(val) == len(masked):
        raise UserError(
            f"{len(masked)} images have masks, of which {len(val)} are for validation; both training and validation "
            "need at least one: label more"
        )
    names = {sample.name for sample in val}
    labeled = tuple(sample for sample in masked if sample.name not in names)
    (work / "splits").mkdir()
    (work / "splits" / "val.txt").write_text(lines_of(val), encoding="utf-8")
    section = [*section, Setting("data", "val", "splits/val.txt", why)]
    return section, replace(dataset, labeled=labeled, val=val)


def _validation(
    request: Request,
    masked: Sequence[Sample],
    alike: Sequence[Sequence[Sample]],
    dataset: Dataset,
    work: Path,
    console: Console,
) -> tuple[tuple[Sample, ...], str]:
    if request.val is None:
        counts = count_classes(replace(dataset, labeled=tuple(masked)), work)
        sets = {sample.name: frozenset(each) - {IGNORE} for sample, each in zip(masked, counts, strict=True)}
        usable = [tuple(one for one in group if sets[one.name]) for group in alike]
        val = hold_out([group for group in usable if group], sets)
        if not val:  # all look alike
            val = hold_out([(one,) for group in usable for one in group], sets)
            _say(console, "note: all images with masks look alike; validation on such images says little", "yellow")
        why = f"{len(val)} of {len(masked)} images with masks, held out; all classes where they can be in both parts"
        if several := [group for group in alike if group[1:]]:
            why += f"; {sum(map(len, several))} near-duplicates stay together"
        return val, why
    if request.val.is_dir():
        val = tuple(sample for sample in masked if sample.image.is_relative_to(request.val))
        why = f"those in {request.val}"
        if not val:
            raise UserError(
                f"--val {request.val}: holds no image with a mask; name a folder below {request.images}, or a list"
            )
    else:
        val, why = _listed(request.val, masked), f"those of {request.val.name}"
    names = {sample.name for sample in val}
    mixed = [group for group in alike if {sample.name in names for sample in group} == {True, False}]
    if mixed:
        one, other = mixed[0][:2]
        _say(
            console,
            f"note: near-duplicates in training and validation: {len(mixed)} groups, e.g. {one.image} and "
            f"{other.image}; the score will be too good",
            "yellow",
        )
    return val, why


def _listed(path: Path, masked: Sequence[Sample]) -> tuple[Sample, ...]:
    if not path.is_file():
        raise UserError(f"--val {path}: there is no such folder or list")
    wanted = {Path(line).with_suffix("").name: line for line in path.read_text(encoding="utf-8").split("\n") if line}
    found = tuple(sample for sample in masked if sample.name in wanted.values() or sample.image.stem in wanted)
    if missing := [line for stem, line in wanted.items() if stem not in {sample.image.stem for sample in found}]:
        raise UserError(f"--val {path}: {missing[0]} is no image with a mask ({len(missing)} such lines)")
    return found


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


def _tried(request: Request, chosen: Sequence[Setting], work: Path, facts: Facts, console: Console) -> list[Setting]:
    """Takes real steps to find a batch that fits, and the number of steps that fit into the time."""
    for batch in _GPU_BATCHES if facts.on_gpu else _CPU_BATCHES:
        found = _rehearsed(chosen, work, request.device, batch, "auto")
        if found is not None and (facts.on_gpu or found.evaluate_mb <= _MEMORY * _memory_mb()):
            break
    else:
        raise UserError("a step of 2 images does not fit into the memory; use a machine with more")
    precision, reason = "auto", "bf16 where the machine has it, otherwise fp32"
    if not facts.on_gpu and Runtime(request.device, "auto").precision == "bf16":
        in_fp32 = _rehearsed(chosen, work, request.device, batch, "fp32")
        if in_fp32 is not None and in_fp32.step_s < found.step_s:
            precision, reason = "fp32", f"a step took {found.step_s:.2f} s in bf16 here"
            found = in_fp32
    length = steps(request.hours, found.step_s, found.evaluation_s, facts.labeled, _EVALUATIONS)
    hours = (length * found.step_s + _EVALUATIONS * found.evaluation_s) / 3600
    why = f"{hours:.1f} hours here: a step took {found.step_s:.2f} s, an evaluation {found.evaluation_s:.0f} s"
    if length >= most_steps(facts.labeled) // _EVALUATIONS * _EVALUATIONS:
        why += f"; {facts.labeled} labels need no more"
    elif hours > 1.1 * request.hours:
        why += "; fewer would teach nothing"
    tried = f"labeled images a step; tried: {found.train_mb:.0f} MB"
    return [
        Setting("engine", "steps", length, why),
        Setting("engine", "batch_size", batch, tried),
        Setting("engine", "precision", precision, reason),
        Setting("engine", "eval_every", length // _EVALUATIONS, f"{_EVALUATIONS} evaluations"),
        Setting("engine", "save_every", length // _EVALUATIONS, ""),
        *([] if request.device == "auto" else [Setting("engine", "device", request.device, "as asked for")]),
    ]


def _rehearsed(
    chosen: Sequence[Setting], work: Path, device: Device, batch: int, precision: PrecisionSetting
) -> Rehearsal | None:
    """Takes real steps with these settings; None if they do not fit into the memory of the GPU."""
    values: dict[str, dict[str, Any]] = defaultdict(dict)
    for setting in chosen:
        values[setting.section][setting.key] = setting.value
    values["data"] |= {"root": str(work), "workers": 0, "cache": False}
    values["engine"] = {"steps": 10, "batch_size": batch, "precision": precision, "device": device}
    try:
        return api.rehearse(validate(dict(values), "init"), console=Console(quiet=True), steps=_TRIED)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _memory_mb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    except (AttributeError, ValueError, OSError):  # not on this system
        return float("inf")


def _head(request: Request, dataset: Dataset, facts: Facts) -> list[str]:
    return [
        f"{facts.labeled} labeled, {facts.unlabeled} unlabeled and {len(dataset.val)} validation images of "
        f"{request.images}; {len(facts.classes)} classes ({kind_of(facts)}).",
        "",
        f"  semiseg train {request.out}",
        f"  semiseg train {request.out} --baseline      also says what the unlabeled images were worth",
        f"  semiseg tune {request.out} --out tuned.yaml  measures which changes of color help",
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


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
