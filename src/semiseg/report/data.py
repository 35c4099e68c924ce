"""Makes tables of what the check of the data has found."""

from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from semiseg.data.check import Report
from semiseg.data.masks import hex_color, percent
from semiseg.types import IGNORE, ClassTable

_MOST_ROWS = 64  # values or colors of masks that are shown


def tables(report: Report, classes: ClassTable) -> list[Table]:
    """Makes three tables: images of each list, values or colors of the masks, classes in each list."""
    return [_lists(report), _values(report, classes.names), _classes(report, classes)]


def _lists(report: Report) -> Table:
    table = Table("list", _right("images"), _right("smallest, px"), _right("largest, px"), title="images")
    for name, part in report.parts.items():
        table.add_row(name, str(part.images), *([_size(size) for size in part.sizes] if part.sizes else ["-", "-"]))
    return table


def _values(report: Report, classes: Sequence[str]) -> Table:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(report.kinds.items()))
    table = Table("value or color", _right("pixels"), _right("masks"), "class", title=f"masks: {kinds}")
    meaning, total = report.meaning, sum(report.meaning.pixels.values())
    keys = sorted(meaning.pixels, key=lambda key: (1, meaning.classes[key]) if isinstance(key, tuple) else (0, key))
    for key in keys[:_MOST_ROWS]:
        shown = hex_color(key) if isinstance(key, tuple) else str(key)
        name = _name(meaning.classes[key], classes)
        table.add_row(shown, percent(meaning.pixels[key], total), str(meaning.files[key]), name)
    if len(keys) > _MOST_ROWS:
        table.add_row(f"{len(keys) - _MOST_ROWS} more", "", "", "")
    return table


def _classes(report: Report, classes: ClassTable) -> Table:
    labeled, val = report.parts["labeled"], report.parts["validation"]
    shown = list(range(len(classes))) + [IGNORE] * (IGNORE in labeled.masks or IGNORE in val.masks)
    table = Table(
        "class",
        "color",
        *(_right(text) for text in ("labeled\npixels", "labeled\nmasks", "validation\npixels", "validation\nmasks")),
        title="classes",
    )
    for index in shown:
        cells = [
            text
            for part in (labeled, val)
            for text in (percent(part.pixels.get(index, 0), sum(part.pixels.values())), str(part.masks.get(index, 0)))
        ]
        color = "" if index == IGNORE else hex_color(classes.colors[index])
        table.add_row(_name(index, classes.names), color, *cells)
    return table


def _name(index: int, classes: Sequence[str]) -> Text:
    return Text("ignored" if index == IGNORE else f"{index} {classes[index]}")


def _right(header: str) -> Column:
    return Column(header, justify="right")


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
