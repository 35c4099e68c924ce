"""Reads a list of classes in the forms that people and their label tools write.

A line is a class; class 0 stands first, and a line that starts with `#` is a comment. The forms:

    sky                       a name
    sky #0080ff               a name and its color
    sky,0,128,255             the same; commas, semicolons, tabs or spaces (class_dict.csv of CamVid, Supervisely)
    0 128 255 sky             the same, color first (label_colors.txt of CamVid)
    sky:0,128,255::           the same (labelmap.txt of CVAT)
    0: sky                    a number before each name, in any of these forms; the numbers are 0, 1, 2 ...

A header (`name,r,g,b`) is left out. So is `__ignore__` on the first line of LabelMe's labels.txt: it is no class.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from semiseg.data.catalog import CONTROL
from semiseg.data.lists import read_lines
from semiseg.errors import UserError
from semiseg.types import IGNORE, ClassTable, voc_color

Color = tuple[int, int, int]

_RGB = r"(?P<r>\d{1,9})(?P<gap>[\s,;]+)(?P<g>\d{1,9})[\s,;]+(?P<b>\d{1,9})"
_WITH_COLOR = (
    re.compile(rf"(?P<name>.+):(?:{_RGB})?:[^:]*:[^:]*"),
    re.compile(rf"(?P<name>.*?[^\s,;:])[\s,;:]+{_RGB}"),
    re.compile(rf"{_RGB}[\s,;:]+(?P<name>[^\d\s].*)"),
)
_HEX = re.compile(r"(.*?[^\s,;:])[\s,;:]+#([0-9a-fA-F]{6})")
_NUMBERED = re.compile(r"(-?\d{1,9})(?:\s*[:,;=]\s*|[.)]?\s+)(.+)")
_COLUMN_OF_NUMBERS = re.compile(r"[,;:=]\s*\d+\s*(?:[,;]|$)|^\d+[\s,;]+\d+[\s,;]")
_JSON = re.compile(r"\{|\[(?:\s*$|\s*[\"'{]|.*,)")  # `[sky]` is a name
_HEADER = {"id", "index", "value", "pixel", "number", "label", "labels", "class", "classes", "category", "name",
           "names", "class_name", "label_name", "color", "r", "g", "b", "red", "green", "blue"}  # fmt: skip
# Headers of one column
_HEADS = {"class", "classes", "name", "names", "label", "labels", "category", "class_name", "label_name"}
_FORMS = "write one class a line: name, or name #RRGGBB, or name,r,g,b"


def read_classes(path: Path, background: str | int | None) -> tuple[ClassTable, dict[Color, int]]:
    """Reads a class table from a text file.

    Args:
        path: the file. The module's docstring describes its forms.
        background: name or index of the class that means "nothing of interest".

    Returns:
        The table, where a class without a color gets that of VOC's palette; and color -> class index, for the colors
        that the file states.

    Raises:
        UserError: the file is missing, is in no form that is known, has fewer than 2 or more than 254 classes, has
            other numbers than 0, 1, 2 ..., a name or a color occurs twice, or `background` is none of the classes.
    """
    entries = _decimal_colors(_class_lines(path), path)
    entries = [_hex_color(name) if color is None else (name, color) for name, color in entries]
    names = _without_numbers([name for name, _ in entries], path)
    stated = [color for _, color in entries]
    _check_names(names, path)
    _check_colors(names, stated, path)
    table = ClassTable(
        names=tuple(names),
        colors=tuple(voc_color(index) if color is None else color for index, color in enumerate(stated)),
        background=_background_index(background, names, path),
    )
    return table, {color: index for index, color in enumerate(stated) if color is not None}


def _class_lines(path: Path) -> list[str]:
    """Returns the lines that are classes."""
    lines = [line for _, line in read_lines(path, "data.classes", most=100_000) if not line.startswith("#")]
    if path.suffix.lower() in (".json", ".yaml", ".yml", ".xml") or (lines and _JSON.match(lines[0])):
        raise UserError(f"{path}: is no plain list of classes (JSON, YAML or XML); {_FORMS}")
    if lines and lines[0] == "__ignore__":
        lines = lines[1:]
    if "__ignore__" in lines:
        raise UserError(f"{path}: __ignore__ is no class and must be the first line; its pixels are {IGNORE} in masks")
    return lines[1:] if lines and _is_header(lines[0]) else lines


def _is_header(line: str) -> bool:
    columns = re.split(r"[\s,;:]+", line.lower())
    is_table = re.search(r"[,;:\t]", line) or columns[-3:] in (["r", "g", "b"], ["red", "green", "blue"])
    return bool(is_table) and _HEADER.issuperset(filter(None, columns))


def _decimal_colors(lines: Sequence[str], path: Path) -> list[tuple[str, Color | None]]:
    """Splits each line into its name and its color, if the lines are in one of the forms with decimal colors."""
    for form in _WITH_COLOR:
        found = [form.fullmatch(line) for line in lines]
        if any(found):
            return [_name_and_color(match, line, path) for match, line in zip(found, lines, strict=True)]
    return [(line, None) for line in lines]


def _name_and_color(match: re.Match[str] | None, line: str, path: Path) -> tuple[str, Color | None]:
    if match is None:
        raise UserError(f"{path}: {line!r} has another form than other lines, which have a color; {_FORMS}")
    name, color = match["name"].strip().strip('"'), None
    if match["gap"]:
        color = (int(match["r"]), int(match["g"]), int(match["b"]))
        fourth = rf"{match['gap'].strip() or ' '}\s*\d+$"  # `zone 1,0,0,0` has none, `zone,1,0,0,0` has one
        if max(color) > 255 or re.search(fourth, name):
            raise UserError(f"{path}: {line!r} has no color of three numbers from 0 to 255; {_FORMS}")
    return name, color


def _hex_color(line: str) -> tuple[str, Color | None]:
    match = _HEX.fullmatch(line)
    if match is None:
        return line, None
    red, green, blue = bytes.fromhex(match[2])
    return match[1], (red, green, blue)


def _without_numbers(names: list[str], path: Path) -> list[str]:
    """Removes the numbers 0, 1, 2 ... before the names. Names are left alone unless every one has a number."""
    found = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    numbers = [int(match[1]) for match in found]
    if len(found) < len(names):
        if len(found) > 1 and numbers == list(range(len(names) - 1)):
            (other,) = {*names} - {match[0] for match in found}
            raise UserError(f"{path}: {other!r} has no number as all other lines have; remove it if it is a header")
        return names
    if numbers != list(range(len(numbers))):
        few = ", ".join(map(str, numbers[:6])) + (" ..." if numbers[6:] else "")
        raise UserError(
            f"{path}: the numbers before the names are {few}, not 0, 1, 2 ...; write the names alone, one a line, in "
            f"the order of the values in the masks{_advice(numbers)}"
        )
    return [match[2].strip('"') for match in found]


def _advice(numbers: list[int]) -> str:
    """Says what else to do about numbers that are not 0, 1, 2 ..."""
    if 0 not in numbers:
        return "; if 0 in the masks is the background, add a line for it at the top"
    if len(numbers) > 2 and numbers == [*range(len(numbers) - 1), IGNORE]:
        return f", without that of {IGNORE}: it means ignored and is no class"
    if numbers[0] == 0 and numbers == sorted(set(numbers)):
        return f", and set data.values={ {value: index for index, value in enumerate(numbers) if value != index} }"
    return ""


def _check_names(names: Sequence[str], path: Path) -> None:
    if len(names) == 1 and "," in names[0]:
        raise UserError(f"{path}: has one line, {names[0]!r}; {_FORMS}")
    if not names:
        raise UserError(f"{path}: has 0 classes (lines that start with # are comments); {_FORMS}")
    if len(names) == 1:
        raise UserError(
            f"{path}: has 1 class, {names[0]!r}; between 2 and 254 are needed: add the background as the first line "
            "(0 in the masks is the background)"
        )
    if not 2 <= len(names) <= 254:
        raise UserError(f"{path}: has {len(names)} classes; between 2 and 254 are needed, one name a line")
    if garbled := [name for name in names if CONTROL.search(name)]:
        raise UserError(f"{path}: class {garbled[0]!r} has a tab or another control character in its name; remove it")
    if columns := [name for name in names if _COLUMN_OF_NUMBERS.search(name)]:
        raise UserError(f"{path}: {columns[0]!r} has columns that are not understood; {_FORMS}")
    if names[0].lower() in _HEADS:
        raise UserError(
            f"{path}: class 0 is called {names[0]!r}; remove the line if it is a header, or rename the class"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: class {twice[0]!r} occurs twice; names must differ")


def _check_colors(names: Sequence[str], colors: Sequence[Color | None], path: Path) -> None:
    first: dict[Color, str] = {}
    for name, color in zip(names, colors, strict=True):
        if color is None:
            continue
        if color in first:
            raise UserError(f"{path}: classes {first[color]!r} and {name!r} have the same color {color}; change one")
        first[color] = name


def _background_index(background: str | int | None, names: Sequence[str], path: Path) -> int | None:
    if isinstance(background, str):
        if background not in names:
            raise UserError(f"data.background: no class {background!r} in {path}; known are {', '.join(names)}")
        return names.index(background)
    if background is not None and not 0 <= background < len(names):
        raise UserError(f"data.background: no class {background} in {path}; it has 0 to {len(names) - 1}")
    return background
