"""What the masks of a dataset mean together: finds contradictions, and proposes the mapping that explains them.

A single mask is often sound by itself and wrong among the others, e.g. 0 and 255 beside 0 and 1.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.data.dataset import MaskCoding
from semiseg.data.masks import (
    NAME_COLORS,
    Color,
    Content,
    Key,
    Reading,
    class_of,
    follows_palette_of_voc,
    hex_color,
    percent,
    read_as,
    says_nothing,
    shares,
)
from semiseg.errors import UserError, listed
from semiseg.types import IGNORE, voc_color

_BLENDED = 0.05  # share of pixels between their neighbors at edges; drawn masks of our datasets have at most 0.04
_MANY = 3  # values beyond the classes and 255: then they are soft edges, instances or a photograph


@dataclass(frozen=True)
class Meaning:
    """What the masks of a dataset hold.

    Attributes:
        pixels: number of pixels of each value, or of each color of masks that are read by color.
        files: number of masks that hold it.
        classes: class of each value or color, or IGNORE.
        notes: what may be wrong, one sentence each.
    """

    pixels: dict[Key, int]
    files: dict[Key, int]
    classes: dict[Key, int]
    notes: tuple[str, ...]


def explain(masks: Mapping[Path, Content], coding: MaskCoding, names: Sequence[str], settable: bool) -> Meaning:
    """Finds the meaning of all masks together.

    Args:
        masks: what each mask file stores.
        coding: the meaning of values and colors.
        names: the names of the classes.
        settable: whether the layout has the settings data.values and data.colors.

    Raises:
        UserError: a mask contradicts itself, the others or the coding, or holds values or colors without meaning.
    """
    readings: dict[Path, Reading] = {}
    for path, content in masks.items():
        try:
            readings[path] = read_as(content, coding)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    _check_palettes(masks, readings)
    pixels: Counter[Key] = Counter()
    files: dict[Key, list[Path]] = defaultdict(list)
    classes: dict[Key, int | None] = {}
    for path, reading in readings.items():
        for key, number, index in _terms(masks[path], reading):
            pixels[key] += number
            files[key].append(path)
            classes[key] = index
    known = {key: index for key, index in classes.items() if index is not None}
    if unknown := {key for key in classes if key not in known}:
        holders = {path for key in unknown for path in files[key]}
        first = next(path for path in masks if path in holders)
        if colors := [key for key in unknown if isinstance(key, tuple)]:
            raise UserError(_unknown_colors(first, colors, pixels, coding))
        values = {value: number for value, number in pixels.items() if isinstance(value, int)}
        if not settable:
            raise UserError(
                f"{first}: the masks hold {shares(values, sum(values.values()))}; this layout knows 0 to "
                f"{coding.num_classes - 1} and {IGNORE}; is it in the right folder? (layout 'folder' can map "
                "values)"
            )
        raise UserError(
            f"data.values: {len(holders)} of {len(masks)} masks, e.g. {first}, hold {_numbers(unknown)}, neither a "
            f"class (0 to {coding.num_classes - 1}) nor {IGNORE} (ignored); {_proposal(values, files, coding, names)}"
        )
    if settable:
        _check_unnamed(coding, {key for key in pixels if isinstance(key, int)}, names)
    notes = _notes(files, pixels, coding, names) + _blended(masks)
    return Meaning(dict(pixels), {key: len(paths) for key, paths in files.items()}, known, notes)


def _terms(content: Content, reading: Reading) -> list[tuple[Key, int, int | None]]:
    """Lists what a mask holds, in the terms in which it is read: (value or color, number of pixels, class)."""
    found: list[tuple[Key, int, int | None]] = []
    for key, index in reading.classes.items():
        color = key if isinstance(key, tuple) else content.palette.get(key)
        term: Key = key
        if reading.by == "color" and color is not None:
            term = color
        elif reading.by == "gray" and color is not None:
            term = color[0]
        found.append((term, content.counts[key], index))
    return found


def _check_palettes(masks: Mapping[Path, Content], readings: Mapping[Path, Reading]) -> None:
    """Checks that a value has one color, and a color one value, in all palettes that are read by value.

    Palettes in which colors follow from values (gray levels, VOC's palette) need no check.
    """
    color_of: dict[Key, tuple[Color, Path]] = {}
    value_of: dict[Color, tuple[Key, Path]] = {}
    by_color = [path for path, reading in readings.items() if reading.by == "color" and masks[path].palette]
    for path, content in masks.items():
        if not content.palette or readings[path].by != "value" or follows_palette_of_voc(content):
            continue
        if says_nothing(content.palette) or all(color == (value,) * 3 for value, color in content.palette.items()):
            continue
        black = next((value for value, color in content.palette.items() if color == (0, 0, 0)), 0)
        if content.reduced and black:
            raise UserError(
                f"{path}: a program has numbered its palette anew: black has the value {black}, and value 0 is "
                f"{hex_color(content.palette.get(0, (0, 0, 0)))}; {NAME_COLORS}"
            )
        for value, color in content.palette.items():
            if by_color and color not in value_of and value:
                raise UserError(
                    f"{path}: the color {hex_color(color)} of its value {value} is no class's color, and other masks, "
                    f"e.g. {by_color[0]}, have to be read by color; {NAME_COLORS}"
                )
            old_color, one = color_of.setdefault(value, (color, path))
            old_value, other = value_of.setdefault(color, (value, path))
            if old_color != color or old_value != value:
                raise UserError(
                    f"{path}: its palette differs from that of {one if old_color != color else other}: value {value} "
                    f"is {hex_color(color)} here"
                    + (
                        f" and {hex_color(old_color)} there"
                        if old_color != color
                        else f", which is value {old_value} there"
                    )
                    + f"; so values are no class indices; {NAME_COLORS}"
                )


def _unknown_colors(path: Path, colors: Sequence[Color], pixels: Mapping[Key, int], coding: MaskCoding) -> str:
    total = sum(pixels.values())
    held: dict[Key, int] = {color: pixels[color] for color in sorted(colors, key=lambda color: -pixels[color])}
    if len(held) > coding.num_classes + _MANY and max(held.values()) / total < 0.9:
        rare = sum(sorted(held.values())[: -coding.num_classes])
        if rare < 0.25 * total:
            return (
                f"{path}: the masks are color images with {len(pixels)} colors for {coding.num_classes} classes, most "
                "of them rare, as soft edges make them; save them without antialiasing and without loss"
            )
    palette = {voc_color(index): index for index in range(coding.num_classes)} | {voc_color(IGNORE): IGNORE}
    if all(color in palette for color in pixels if isinstance(color, tuple)):
        mapping = {hex_color(color): palette[color] for color in sorted(colors, key=lambda color: palette[color])}
        remedy = (
            f"they are the first of VOC's palette: if your classes have that order, set data.colors={_text(mapping)}"
        )
    else:
        remedy = NAME_COLORS
    return f"{path}: the masks are color images and hold {shares(held, total)}, which no class has; {remedy}"


def _numbers(keys: Iterable[Key]) -> str:
    return listed([*map(str, sorted(key for key in keys if isinstance(key, int)))], 12)


def _blended(masks: Mapping[Path, Content]) -> tuple[str, ...]:
    """Notes masks whose edges show the values between two classes: they are other classes there, not invalid ones."""
    found = [path for path, content in masks.items() if content.blended > _BLENDED]
    if not found:
        return ()
    return (
        f"Masks with values between those of both sides at their edges: {len(found)} of {len(masks)}, e.g. {found[0]}; "
        "resizing or JPEG makes such pixels, and they count as other classes; export these masks again, resize with "
        "nearest neighbor.",
    )


def _proposal(
    values: dict[int, int], files: Mapping[Key, Sequence[Path]], coding: MaskCoding, names: Sequence[str]
) -> str:
    """Says which values all masks hold, and how to map them to classes."""
    total, found, n = sum(values.values()), sorted(values), coding.num_classes
    held = f"all values are {shares(values, total)}"
    unknown = [value for value in found if class_of(value, coding) is None]
    if coding.values:
        return f"{held}; name {'it' if len(unknown) == 1 else 'them'}, too, in data.values ({IGNORE}: ignored)"
    if len(found) > n + _MANY:
        rare = total - sum(sorted(values.values())[-n:])
        if rare < 0.25 * total:
            return (
                f"{held}: {len(found)} values for {n} classes, most of them rare, as soft edges make them (or instance "
                "numbers): save the masks without antialiasing and without loss, resize them with nearest neighbor, or "
                "threshold them"
            )
        return (
            f"{held}: {len(found)} values for {n} classes; are these instance numbers, or photographs? Name the class "
            f"of each in data.values, or {IGNORE} where it does not count"
        )
    others = [value for value in found if value != IGNORE]
    objects = [value for value in found if value]
    if n == 2 and len(objects) > 1 and 0 in found and _apart(objects, files):
        return (
            f"{held}, and no mask holds two of {_numbers(objects)}; if each of them means {names[1]}, set "
            f"data.values={_text(dict.fromkeys(objects, 1))}"
        )
    if others == list(range(n + 1)) and _apart([0, n], files):
        return (
            f"{held}, and no mask holds both 0 and {n}; do some masks start at 0 and others, e.g. {files[n][0]}, at 1? "
            "Then export them in the same way"
        )
    if others == list(range(n + 1)):
        shifted = {0: IGNORE} | {value: value - 1 for value in range(1, n + 1)}
        return (
            f"{held}: one value more than there are classes ({', '.join(names[:12])}); if 0 is the background, add a "
            "line for it at the top of the class file; if the masks start at 1 and 0 does not count, set "
            f"data.values={_text(shifted)}"
        )
    if others == list(range(1, n + 1)):
        return f"{held}; if the masks start at 1, set data.values={_mapping(others, names)}"
    if unknown == [value for value in unknown if value < 0]:
        return f"{held}; if negative values do not count, set data.values={_text(dict.fromkeys(unknown, IGNORE))}"
    if order := _in_order(found, others, n):
        return f"{held}; if that is the order of the classes, set data.values={_mapping(order, names)}"
    example = dict.fromkeys([*unknown[:12], *(value for value in found if value == IGNORE)], "CLASS")
    return f"{held}; say which class each is, or {IGNORE} where it does not count: data.values={_text(example)}"


def _apart(values: Sequence[int], files: Mapping[Key, Sequence[Path]]) -> bool:
    """Returns whether no mask holds two of these values."""
    holders = [path for value in values for path in files[value]]
    return len(holders) == len({*holders})


def _in_order(found: Sequence[int], others: Sequence[int], n: int) -> list[int] | None:
    """Returns the values of class 0, class 1 ..., if they can be guessed; None otherwise."""
    if len(found) == n:
        return list(found)
    if len(others) == n:
        return list(others)
    for stretched in (
        [255 * index // (n - 1) for index in range(n)],
        [round(255 * index / (n - 1)) for index in range(n)],
    ):
        if {*found} <= {*stretched}:
            return stretched
    return None


def _mapping(order: Sequence[int], names: Sequence[str]) -> str:
    """Writes a mapping of values in the order of the classes, with names: `{127: 1, 255: 2} (127 is disc, ...)`."""
    changed = {value: index for index, value in enumerate(order) if value or index}
    said = ", ".join(f"{value} is {names[index]}" for value, index in list(changed.items())[:12])
    return f"{_text(changed)} ({said})"


def _text(mapping: Mapping[int, object] | Mapping[str, object]) -> str:
    inner = ", ".join(f"{repr(key).replace(chr(39), chr(34))}: {value}" for key, value in mapping.items())
    return "'{" + inner + "}'"


def _check_unnamed(coding: MaskCoding, values: set[int], names: Sequence[str]) -> None:
    """Checks that no value that data.values does not name means the same class as one that it names.

    Raises:
        UserError: there is one.
    """
    named = coding.values or {}
    for value in sorted(values - named.keys()):
        same = [other for other, index in named.items() if index == value and index != IGNORE]
        if same:
            raise UserError(
                f"data.values: the masks hold {value}, which it does not name and which so means class {value} "
                f"({names[value]}), as {same[0]} does; name it, too: {value}: {IGNORE} if it does not count, "
                f"{value}: {value} if it is that class"
            )


def _notes(
    files: Mapping[Key, Sequence[Path]], pixels: Mapping[Key, int], coding: MaskCoding, names: Sequence[str]
) -> tuple[str, ...]:
    """Finds uses of 255 that may be wrong.

    Raises:
        UserError: of two classes, one half of the masks holds 0 and 1 and the other half 0 and 255.
    """
    if IGNORE in (coding.values or {}) or not files.get(IGNORE):
        return ()
    total = sum(pixels.values())
    if coding.values:
        return (
            f"{IGNORE} ({percent(pixels[IGNORE], total)} of the labeled pixels) is ignored, because data.values does "
            f"not name it; write {IGNORE}: {IGNORE} if that is right, or its class.",
        )
    classes = {path for key, paths in files.items() if key not in (0, IGNORE) for path in paths}
    with_zero = {*files.get(0, ())}
    bare = [path for path in files[IGNORE] if path not in classes and path in with_zero]
    if not bare or not classes:
        return ()
    what = f"{len(bare)} masks, e.g. {bare[0]}, hold 0 and {IGNORE} and no other class"
    fixed = f"data.values={_text({1: 1, IGNORE: 1})}" if coding.num_classes == 2 else "data.values"
    if coding.num_classes == 2 and not classes & {*files[IGNORE]}:
        raise UserError(
            f"data.values: {what}, and {len(classes)}, e.g. {min(classes)}, hold 1 and no {IGNORE}; if both mean "
            f"{names[1]}, set {fixed}; if {IGNORE} is to be ignored, set data.values={_text({IGNORE: IGNORE})}"
        )
    return (f"{what}: {IGNORE} is ignored; if it means a class there, name it with {fixed}.",)
