"""Proposes what the values or colors of masks mean, for masks that nobody has described yet."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from semiseg.data.masks import Color, Content, hex_color, shares
from semiseg.errors import UserError
from semiseg.init.colors import colors as colors_of
from semiseg.types import IGNORE, voc_color

_MOST_CLASSES = 254
_RARE, _MANY = 0.25, 32  # of many values, the share of all but the most frequent ones that soft edges make
_BACKGROUND = 0.4  # a value 0 with this share of the pixels is taken for the background
_BLENDED = 0.05  # share of pixels between their neighbors at edges; drawn masks have fewer


@dataclass(frozen=True)
class Reading:
    """A meaning of the masks.

    Attributes:
        names: the classes.
        colors: their colors.
        why: one sentence: what the masks hold, and what it is taken for.
        values: stored value -> class index or IGNORE, for `data.values`; None if values are class indices.
        background: the class that means "nothing of interest"; None if there is none.
        ignored: colors of pixels that do not count.
        doubt: another meaning that the masks may have, in words; None if there is none.
        other: the reading of that meaning.
        likely: whether this reading counts if nobody answers the doubt.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    why: str
    values: dict[int, int] | None = None
    background: int | None = None
    ignored: tuple[Color, ...] = ()
    doubt: str | None = None
    other: "Reading | None" = field(default=None, repr=False)
    likely: bool = True


def propose(masks: Mapping[Path, Content], names: Sequence[str] | None = None) -> Reading:
    """Proposes the classes of masks.

    Args:
        masks: what each mask file stores.
        names: the names of the classes in the order of their values, if they are known.

    Raises:
        UserError: the masks hold one value only, both values and colors, more values than classes are possible, or
            another number of them than there are names.
    """
    pixels: Counter[int | Color] = Counter()
    palette: dict[int, Color] = {}
    for content in masks.values():
        gray = content.colored and all(len({*key}) == 1 for key in content.counts if isinstance(key, tuple))
        for key, number in content.counts.items():
            pixels[key[0] if gray and isinstance(key, tuple) else key] += number
        palette |= {value: color for value, color in content.palette.items() if isinstance(value, int)}
    colors = [key for key in pixels if isinstance(key, tuple)]
    if colors and len(colors) < len(pixels):
        first = {content.colored: path for path, content in masks.items()}
        raise UserError(
            f"--masks: some masks store colors, e.g. {first[True]}, and others values, e.g. {first[False]}; export all "
            "in one way"
        )
    _refuse_soft_edges(masks, pixels)
    if names is not None and len(set(names)) < max(2, len(names)):
        raise UserError("--classes: write two or more names, each once, with commas between")
    if colors:
        return _by_color({key: pixels[key] for key in colors}, names)
    values = {key: number for key, number in sorted(pixels.items()) if isinstance(key, int)}
    if list(values) == [0, 1, IGNORE] and not any({1, IGNORE} <= content.counts.keys() for content in masks.values()):
        return _two_annotators(values, names)
    return _by_value(values, palette, names)


def _refuse_soft_edges(masks: Mapping[Path, Content], pixels: Mapping[int | Color, int]) -> None:
    total = sum(pixels.values())
    rare = total - sum(sorted(pixels.values())[-_MANY:])
    blended = [path for path, content in masks.items() if content.blended > _BLENDED]
    soft = len(pixels) > 2 and 2 * len(blended) > len(masks)
    if soft or len(pixels) > _MOST_CLASSES + 1 or (len(pixels) > _MANY and (blended or rare < _RARE * total)):
        example = blended[0] if blended else next(iter(masks))
        raise UserError(
            f"{example}: the masks hold {len(pixels)} different values or colors, as soft edges, JPEG or object "
            "numbers make them; export them as index masks without antialiasing, resize them with nearest neighbor"
        )
    if len(pixels) < 2:
        raise UserError(
            f"{next(iter(masks))}: all masks hold one value only ({shares(pixels, total)}): there is nothing to tell "
            "apart; are these the right files?"
        )


def _by_color(pixels: dict[Color, int], names: Sequence[str] | None) -> Reading:
    """Each color is a class; black comes first, then the most frequent ones, or VOC's in their order.

    VOC's color of void is ignored.
    """
    order = sorted(pixels, key=lambda color: (color != (0, 0, 0), -pixels[color], color))
    what = f"color masks with {len(order)} colors: {shares({key: pixels[key] for key in order}, sum(pixels.values()))}"
    ignored: tuple[Color, ...] = ()
    void, palette = voc_color(IGNORE), {voc_color(index) for index in range(IGNORE + 1)}
    if void in pixels and len(order) > 2 and palette.issuperset(order) and (names is None or len(names) < len(order)):
        ignored, order = (void,), [color for color in order if color != void]
        what += f"; {hex_color(void)}, VOC's color of borders, is ignored"
    of_voc = [voc_color(index) for index in range(len(order))]
    order = of_voc if {*order} == {*of_voc} else order
    if names is not None and len(names) == len(order) - 1 and order[0] == (0, 0, 0):
        ignored, order = (*ignored, (0, 0, 0)), order[1:]
        what += "; black, which has no name, is ignored"
    if names is not None and len(names) != len(order):
        raise UserError(
            f"--classes: names {len(names)} classes, but the masks hold {len(order)} colors "
            f"({', '.join(map(hex_color, order))}); name each, or give a file with lines such as 'road #804080'"
        )
    background = 0 if order[0] == (0, 0, 0) else None
    found = tuple(names) if names else tuple(
        "background" if index == background else f"color_{hex_color(color)[1:]}" for index, color in enumerate(order)
    )  # fmt: skip
    if len(found) < 2:
        raise UserError(f"--masks: {what}; two classes are needed")
    doubt = None
    if names is not None and not _are_paired(order, found):
        pairs = ", ".join(f"{hex_color(color)} is {name}" for color, name in zip(order, found, strict=True))
        doubt = f"the order of the names says nothing about colors; is this right: {pairs}?"
    return Reading(
        found, tuple(order), f"{what}; each color is a class", None, background, ignored, doubt, likely=False
    )


def _are_paired(colors: Sequence[Color], names: Sequence[str]) -> bool:
    """Returns whether the order of names says which color is which: VOC's colors, or black and one other color."""
    if list(colors) == [voc_color(index) for index in range(len(colors))]:
        return True
    return len(colors) == 2 and colors[0] == (0, 0, 0) and names[0] == "background"


def _by_value(values: dict[int, int], palette: Mapping[int, Color], names: Sequence[str] | None) -> Reading:
    total, found = sum(values.values()), list(values)
    kind = "palette" if palette and any(len({*color}) > 1 for color in palette.values()) else "gray"
    what = f"{kind} masks with the values {shares(values, total)}"
    others = [value for value in found if value != IGNORE and value >= 0]  # -1 is a common "not labeled"
    count = None if names is None else len(names)
    in_order = others == list(range(len(others)))
    if len(found) == 2 and count in (None, 2):  # one class and the rest, e.g. 0 and 255
        return _two(found, values, palette, names, what)
    if count is not None and all(0 <= value < count for value in others) and len(found) != count:
        return _reading(range(count), palette, names, f"{what}: class indices{_void(found)}", values, total)
    if in_order and count in (None, len(others)):
        return _reading(others, palette, names, f"{what}: class indices{_void(found)}", values, total)
    if others == list(range(1, len(others) + 1)) and count in (None, len(others)):
        why = f"{what}: class numbers from 1 on{_void(found)}"
        return _reading(others, palette, names, why, values, total)
    if in_order and count == len(others) - 1:  # class numbers from 1 on, and 0 has no name
        first = _reading(others[1:], palette, names, f"{what}: class numbers from 1 on; 0 is ignored", values, total)
        return _with(first, f"{count} names for the values {', '.join(map(str, others))}; is 0 not labeled (ignored)?")
    if count not in (None, len(found), len(others)):
        raise UserError(
            f"--classes: names {count} classes, but the {what.replace('masks with', 'masks have')}; name each value in "
            f"its order, and {IGNORE} only if it is a class"
        )
    if min(found) < 0 and in_order:
        return _reading(others, palette, names, f"{what}: class indices; negative values are ignored", values, total)
    as_class = _reading(found, palette, names, f"{what}: each value is a class", values, total)
    as_void = _reading(others, palette, names, f"{what}: each value is a class{_void(found)}", values, total)
    if IGNORE in found and count == len(found) and all(value < count for value in others):  # one shows in no mask
        some = _reading(range(count), palette, names, f"{what}: class indices{_void(found)}", values, total)
        doubt = f"{count} names for the values {', '.join(map(str, found))}; is 255 not labeled (ignored)?"
        return _with(some, doubt, as_class)
    if IGNORE not in found or count == len(found):
        return as_class
    if count == len(others):
        return as_void
    gaps = {after - before for before, after in itertools.pairwise(found)}
    stretched = max(gaps) - min(gaps) <= 2  # e.g. 0, 128, 255
    first, second = (as_class, as_void) if stretched else (as_void, as_class)
    meaning = "a class" if stretched else "not labeled (ignored)"
    return _with(first, doubt=f"the masks hold {', '.join(map(str, found))}; is 255 {meaning}?", other=second)


def _two_annotators(values: Mapping[int, int], names: Sequence[str] | None) -> Reading:
    """Some masks hold 0 and 1, others 0 and 255: one object, drawn by two programs."""
    what = f"gray masks with the values {shares(values, sum(values.values()))}"
    given = tuple(names) if names is not None and len(names) == 2 else ("background", "object")
    colors = colors_of(2, background=True)
    why = f"{what}: 1 in some and 255 in others mean {given[1]}"
    other = Reading(given, colors, f"{what}: 255 is not labeled (ignored)", {IGNORE: IGNORE}, 0)
    doubt = f"some masks hold 0 and 1, others 0 and 255; do 1 and 255 both mean {given[1]}?"
    return Reading(given, colors, why, {1: 1, IGNORE: 1}, 0, (), doubt, other)


def _two(
    found: Sequence[int],
    counts: Mapping[int, int],
    palette: Mapping[int, Color],
    names: Sequence[str] | None,
    what: str,
) -> Reading:
    """Two values: the smaller one is the background. 0 and 255 may also be one class and what is not labeled."""
    given = tuple(names) if names else ("background", "object")
    colors = tuple(palette.get(value, (0, 0, 0)) for value in found)
    if len({*colors}) < 2 or kind_is_gray(palette):
        colors = colors_of(2, background=True)
    values = {value: index for index, value in enumerate(found) if value != index} or None
    why = f"{what}: {found[0]} is {given[0]}, {found[1]} is {given[1]}"
    return Reading(given, colors, why, values, 0)


def kind_is_gray(palette: Mapping[int, Color]) -> bool:
    """Returns whether a palette has shades of gray only."""
    return all(len({*color}) == 1 for color in palette.values())


def _reading(
    order: Sequence[int] | range,
    palette: Mapping[int, Color],
    names: Sequence[str] | None,
    why: str,
    counts: Mapping[int, int],
    total: int,
) -> Reading:
    """Makes the reading in which `order` lists the value of class 0, class 1 ..., and other values are ignored."""
    values = {value: index for index, value in enumerate(order) if value != index}
    values |= {value: IGNORE for value in counts if value not in order and value != IGNORE}
    if values and IGNORE in counts and IGNORE not in values:
        values[IGNORE] = IGNORE
    if names is None:
        first_is_rest = next(iter(order)) == 0 and counts.get(0, 0) >= _BACKGROUND * total
        given = tuple(
            "background" if first_is_rest and not index else f"class_{value}" for index, value in enumerate(order)
        )
    else:
        given = tuple(names)
    background = given.index("background") if "background" in given else None
    stated = [palette.get(value) for value in order]
    usable = len({*stated} - {None}) == len(stated) and not kind_is_gray(palette)
    bright = colors_of(len(stated), background=background == 0)
    colors = tuple(color if usable and color else bright[index] for index, color in enumerate(stated))
    return Reading(given, colors, why, values or None, background)


def _void(found: Sequence[int]) -> str:
    return f"; {IGNORE} is not labeled (ignored)" if IGNORE in found else ""


def _with(reading: Reading, doubt: str, other: Reading | None = None) -> Reading:
    return Reading(
        reading.names, reading.colors, reading.why, reading.values, reading.background, reading.ignored, doubt, other
    )
