"""Chooses the settings that name COCO or LabelMe files and their classes. The files are read directly."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from semiseg.data.annotated import IGNORED, Annotation, class_table
from semiseg.data.classes import read_classes
from semiseg.data.layouts import coco, labelme
from semiseg.data.masks import hex_color
from semiseg.engine.progress import say
from semiseg.errors import UserError, listed
from semiseg.init.colors import colors
from semiseg.init.request import Request
from semiseg.init.settings import Setting
from semiseg.types import ClassTable

_SHOWN = 12  # names in a message
_AS_IT_IS = ("RLE", "points")  # kinds of objects that have no other plural


def section(request: Request, work: Path, console: Console) -> list[Setting]:
    """Returns the settings that name annotations and classes; says what was found, and writes classes.txt.

    Raises:
        UserError: a file is wrong, or an object belongs to none of the given classes.
    """
    config: coco.Config | labelme.Config
    if request.coco is not None:
        config = coco.Config(root=work, images=request.images, annotations=request.coco)
        labels, annotations = coco.objects(config)
        what, kinds = "COCO", Counter(polygon=0, RLE=0, crowd=0)
    else:
        config = labelme.Config(root=work, images=request.images, annotations=request.labelme)
        labels, annotations = labelme.objects(config)
        what, kinds = "LabelMe", Counter[str]()
    table = _table(request, labels, config)
    kinds.update(thing.kind for one in annotations for thing in one.things)
    shown = ", ".join(f"{n} {kind}" + "s" * (n != 1 and kind not in _AS_IT_IS) for kind, n in kinds.items())
    images = sum(bool(one.things) for one in annotations)
    rest = "" if table.background is None else f"; pixels in no object are {table.names[table.background]}"
    say(console, f"annotations: {what}; objects in {images} image{'s' * (images != 1)}: {shown or 'none'}{rest}")
    _check(annotations, table, request)
    return [
        Setting("data", "layout", config.layout, "the annotations are read directly: change them, and train again"),
        Setting("data", "root", str(request.out), "moved? set it to the new place"),
        Setting("data", "images", str(request.images), ""),
        Setting("data", "annotations", str(request.coco or request.labelme), ""),
        *_written(table, request, work, console),
    ]


def _table(request: Request, labels: Sequence[str], config: coco.Config | labelme.Config) -> ClassTable:
    """Returns the given classes, or those of the labels, with bright colors where no file states any."""
    where = str(request.coco or request.labelme)
    if request.classes is None:
        table = class_table(labels, config, where)
    elif Path(request.classes).is_file():
        file = Path(request.classes).absolute()
        table = class_table(labels, config.model_copy(update={"classes": file}), where)
        if read_classes(file, None)[1]:
            return table
    else:
        names = [name.strip() for name in request.classes.split(",") if name.strip()]
        table = class_table(names, config, "--classes")
    return ClassTable(table.names, colors(len(table), background=table.background == 0), table.background)


def _check(annotations: Sequence[Annotation], table: ClassTable, request: Request) -> None:
    """Raises a UserError if an object belongs to no class."""
    found = Counter(thing.label for one in annotations for thing in one.things)
    unknown = sorted(found.keys() - {*table.names, IGNORED})
    if unknown:
        raise UserError(
            f"--classes: {request.coco or request.labelme} has objects called {listed(unknown, _SHOWN)}, and the "
            f"classes are {', '.join(table.names[:_SHOWN])}; name these, too, or leave --classes out"
        )


def _written(table: ClassTable, request: Request, work: Path, console: Console) -> list[Setting]:
    """Writes the classes, and returns the setting that names their file, unless a file cannot hold their names."""
    path = work / "classes.txt"
    lines = [f"{name} {hex_color(color)}\n" for name, color in zip(table.names, table.colors, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    try:
        if read_classes(path, None)[0].names == table.names:
            why = "change colors there; names are those of the annotations, and the order must stay"
            return [Setting("data", "classes", "classes.txt", why)]
    except UserError:
        if request.classes is not None:
            raise UserError("--classes: write two or more names, each once, with commas between") from None
    path.unlink()
    say(console, "note: a list of classes cannot hold these names; the classes are those of the annotations", "yellow")
    return []
