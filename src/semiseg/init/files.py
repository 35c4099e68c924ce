"""Chooses the settings that name the files of the data and say what masks mean."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from string import digits

from rich.console import Console

from semiseg.data.check import proposed_white
from semiseg.data.classes import read_classes
from semiseg.data.masks import Content, hex_color, read_stored
from semiseg.data.read import read_header, read_size
from semiseg.engine.progress import counting, say
from semiseg.errors import UserError
from semiseg.init import annotations, layers
from semiseg.init.colors import colors
from semiseg.init.masks import Masks, find, guess_folder, of_export, parts, unless_swapped
from semiseg.init.request import Ask, Request
from semiseg.init.settings import Setting
from semiseg.init.values import Reading, propose
from semiseg.types import IGNORE

_READ = 400  # files that are read to find out what they mean; the check reads all of them


def data_section(request: Request, work: Path, ask: Ask, console: Console) -> list[Setting]:
    """Returns the settings that name the files and say what masks mean; writes classes.txt and joined masks."""
    if request.coco is not None or request.labelme is not None:
        return annotations.section(request, work, console)
    sorted_into = parts(request.images) if request.masks is None else None
    if sorted_into is not None:
        return _of_parts(*sorted_into, request, work, ask, console)
    folder, table = of_export(request.masks or _guessed(request, ask))
    if table is not None and request.classes is None:
        say(console, f"masks: CVAT's Segmentation mask 1.1; names and colors of {table}")
        request = replace(request, classes=str(table))
    with unless_swapped(request.images, folder):
        found = find(request.images, folder)
        reading = _joined(found, request, work, ask, console) if found.layers else _read(found, request, ask, console)
    settings = [
        Setting("data", "layout", "folder", f"masks are files: {_how(found)}"),
        Setting("data", "root", str(request.out), "moved? set it to the new place"),
        Setting("data", "images", str(request.images), ""),
    ]
    if found.layers:
        settings.append(Setting("data", "masks", "masks", "joined from files of one class each; the originals stay"))
    else:
        settings.append(Setting("data", "masks", str(folder), ""))
        if found.suffix:
            settings.append(Setting("data", "mask_suffix", found.suffix, "what names of masks have more at the end"))
    return [*settings, *_meaning(reading, "classes.txt", work), *_reading_of_photographs(found)]


def _meaning(reading: Reading, classes: str, work: Path) -> list[Setting]:
    """Writes the class file, and returns the settings that say what masks mean."""
    lines = [f"{name} {hex_color(color)}\n" for name, color in zip(reading.names, reading.colors, strict=True)]
    (work / "classes.txt").write_text("".join(lines), encoding="utf-8")
    settings = [Setting("data", "classes", classes, "change names and colors there; the order must stay")]
    if reading.values is not None:
        settings.append(Setting("data", "values", reading.values, reading.why))
    if reading.ignored:
        ignored = {hex_color(color): IGNORE for color in reading.ignored}
        settings.append(Setting("data", "colors", ignored, "these colors are not labeled"))
    if reading.background is not None:
        background = reading.names[reading.background]
        settings.append(Setting("data", "background", background, "the class that means nothing of interest"))
    return settings


def _of_parts(images: str, masks: str, request: Request, work: Path, ask: Ask, console: Console) -> list[Setting]:
    """Images and masks are in folders below those of the parts, e.g. train/images and val/images."""
    each = [
        find(part / images, part / masks)
        for part in sorted(request.images.iterdir())
        if (part / images).is_dir() and (part / masks).is_dir()
    ]
    if any(found.layers or found.suffix != each[0].suffix for found in each):
        raise UserError(f"--images {request.images}: its parts name or store masks in different ways; give --masks")
    together = Masks(
        {f"{n} {name}": path for n, found in enumerate(each) for name, path in found.images.items()},
        request.images,
        {f"{n} {name}": path for n, found in enumerate(each) for name, path in found.files.items()},
    )
    reading = _read(together, request, ask, console)
    suffix = each[0].suffix
    return [
        Setting("data", "layout", "folder", f"masks are files: {_how(each[0])}"),
        Setting("data", "root", str(request.images), "its folders for training and validation are kept"),
        Setting("data", "images", images, ""),
        Setting("data", "masks", masks, ""),
        *([Setting("data", "mask_suffix", suffix, "what names of masks have more at the end")] if suffix else []),
        *_meaning(reading, str(request.out / "classes.txt"), work),
        *_reading_of_photographs(together),
    ]


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


def _joined(found: Masks, request: Request, work: Path, ask: Ask, console: Console) -> Reading:
    found = _asked(found, ask)
    with counting("joining masks", console) as count:
        names, overlaps = layers.merge(found.layers, work / "masks", count)
    if found.left:
        say(console, f"note: masks that belong to no image: {len(found.left)}, e.g. {found.left[0]}", "yellow")
    if overlaps:
        say(
            console,
            f"note: {overlaps} pixels are shown by masks of several classes; the class with fewer pixels counts",
            "yellow",
        )
    table = _given_names(request)
    if table is not None and sorted(table) not in (sorted(names), sorted(["background", *names])):
        raise UserError(f"--classes: names {', '.join(table)}, but the masks are called {', '.join(names)}")
    every = ("background", *names)
    say(console, f"masks: files of one class each ({', '.join(names)}), joined; the rest is background")
    return Reading(every, colors(len(every), background=True), "", None, 0)


def _asked(found: Masks, ask: Ask) -> Masks:
    """Asks whether names and numbers of files of one class each are those of classes, where that is in doubt."""
    names = sorted({of_class for each in found.layers.values() for of_class in each})
    said = ", ".join(names)
    if len(names) > 1 and all(len(each) == 1 for each in found.layers.values()):
        if not ask(f"no image has masks in two of the folders {said}; is each a class?", True):
            raise UserError(f"--masks {found.folder}: put the masks of all images into one folder, named as the images")
    elif len(names) > 1 and len({name.rstrip(digits) for name in names}) == 1:
        question = f"images have masks called {said}; is each a class, not an object?"
        if not ask(question, _is_one_hot(found)):
            name = names[0].rstrip(digits).strip(" _-.") or "object"
            joined = {image: {name: [*chain(*each.values())]} for image, each in found.layers.items()}
            return replace(found, layers=joined)
    return found


def _is_one_hot(found: Masks) -> bool:
    """Returns whether numbers at the ends of masks are classes: objects are counted anew in each image."""
    numbers = [sorted(int("0" + name[len(name.rstrip(digits)) :]) for name in each) for each in found.layers.values()]
    counted = all(each == list(range(each[0], each[0] + len(each))) and each[0] < 2 for each in numbers)
    return not counted or len({*map(len, numbers)}) == 1


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
    if reading.doubt is not None and not ask(reading.doubt, reading.likely):
        if not reading.likely:
            raise UserError(_without_colors(reading, request))
        if reading.other is None:
            raise UserError("--classes: give a file with one line for each class, its name and its color: road #804080")
        reading = reading.other
    say(console, f"masks: {reading.why}")
    return reading


def _without_colors(reading: Reading, request: Request) -> str:
    of_file = request.classes is not None and Path(request.classes).is_file()
    what = f"--classes {request.classes}: does" if of_file else "--classes: names do"
    remedy = "write the color behind each name" if of_file else "give a file with a line for each class"
    held = ", ".join(map(hex_color, reading.colors))
    return f"{what} not say which color is which; {remedy}, e.g. '{reading.names[0]} #RRGGBB' (the masks hold {held})"


def _given_names(request: Request) -> tuple[str, ...] | None:
    if request.classes is None:
        return None
    if Path(request.classes).is_file():
        return read_classes(Path(request.classes), None)[0].names
    return tuple(name.strip() for name in request.classes.split(",") if name.strip())


def _background(names: Sequence[str]) -> int | None:
    return names.index("background") if "background" in names else None
