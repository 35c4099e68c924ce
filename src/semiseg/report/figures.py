"""Figures of a paper from run directories: bars, sweeps, hardness, pictures, each as SVG and PNG.

They are the kinds of Figure 2 (bars of ablations), 3a and 3b (sweeps), 3c (hardness) and 4 (pictures) of iMAS.
"""

import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semiseg.errors import UserError
from semiseg.files import expanded
from semiseg.recipe.file import FREE
from semiseg.report.hardness import course
from semiseg.report.pictures import Picture
from semiseg.report.reading import Group, read

Draw = Callable[[Any], None]  # draws into a figure of matplotlib

_WIDTH, _HEIGHT = 6.4, 4.0  # inches
_CELL = 1.6  # inches, width of a picture
_TITLE = 0.3  # inches
_MOST_PICTURES = 8  # rows
_SAME = ("engine.seed", *FREE)


def write(paths: Sequence[Path], out: Path, overwrite: bool) -> list[str]:
    """Writes the figures that the runs have something to show for.

    Args:
        paths: run directories, or folders of them.
        out: the folder.
        overwrite: whether figures in a folder that is there are replaced. Its other files stay.

    Returns:
        The names of the figures, e.g. `bars`. Each is a file NAME.svg and one NAME.png.

    Raises:
        UserError: a package is missing, a folder has no run, a file is damaged, the folder exists, or the runs have no
            evaluation and no hardness yet.
    """
    out = expanded(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; name another folder with --out, or use --overwrite")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder; make it, or name another one with --out")
    try:
        figure, matplotlib = importlib.import_module("matplotlib.figure"), importlib.import_module("matplotlib")
    except ImportError as error:
        raise UserError('figures need the package matplotlib: pip install "semiseg[report]"') from error
    drawn = figures(read(paths))
    if not drawn:
        raise UserError("figures: the runs have no evaluation and no hardness yet; train further, or name other runs")
    out.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "semiseg", "svg.fonttype": "none"}):
        for name, draw in drawn.items():
            sheet = figure.Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
            draw(sheet)
            sheet.savefig(out / f"{name}.svg", metadata={"Date": None})
            sheet.savefig(out / f"{name}.png", dpi=200)
    return [*drawn]


def figures(groups: Sequence[Group]) -> dict[str, Draw]:
    """Returns the figures by name, as functions that draw them."""
    known = [(group, found) for group in groups if (found := last_miou(group))]
    drawn: dict[str, Draw] = {}
    if known:
        drawn["bars"] = lambda sheet: _bars(sheet, known)
    for key, lines in sweeps(known).items():
        drawn[f"sweep-{key}"] = lambda sheet, key=key, lines=lines: _sweep(sheet, key, lines)
    hard = [group for group in groups if any(len(each.run.hardness_table()) for each in group.members)]
    if hard:
        drawn["hardness"] = lambda sheet: _hardness(sheet, hard)
    if shown := shared_pictures(groups):
        drawn["pictures"] = lambda sheet: _pictures(sheet, groups, shown)
    return drawn


def last_miou(group: Group) -> list[float]:
    """Returns the mIoU of the last evaluation of each seed, in %."""
    return [100 * each.val[-1]["miou"] for each in group.members if each.val]


Line = list[tuple[float, list[float]]]  # a setting's value, and the mIoU of each seed


def sweeps(known: Sequence[tuple[Group, list[float]]]) -> dict[str, dict[str, Line]]:
    """Finds the numbers that differ between runs which are otherwise alike.

    Returns:
        For each such setting its lines: a name (what else tells the lines apart), and the values in order.
    """
    settings = [group.first.settings() for group, _ in known]
    differs = [
        key
        for key in dict.fromkeys(key for each in settings for key in each)
        if key not in _SAME and len({json.dumps(each.get(key), default=str) for each in settings}) > 1
    ]
    found: dict[str, dict[str, Line]] = {}
    for key in differs:
        lines: dict[str, Line] = {}
        for each, (_, scores) in zip(settings, known, strict=True):
            value = each.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                rest = ", ".join(f"{other} {each.get(other)}" for other in differs if other != key)
                lines.setdefault(rest, []).append((float(value), scores))
        kept = {rest: sorted(line) for rest, line in lines.items() if len(line) > 1}
        if kept:
            found[key] = kept
    return found


def shared_pictures(groups: Sequence[Group]) -> list[str]:
    """Returns the names of the validation images of which every run with pictures has one; at most eight."""
    each = [[one.name for one in group.first.pictures.images] for group in groups if group.first.pictures]
    return [name for name in (each[0] if each else []) if all(name in names for names in each)][:_MOST_PICTURES]


def _bars(sheet: Any, known: Sequence[tuple[Group, list[float]]]) -> None:
    axes = sheet.add_subplot()
    means, spreads = [mean(scores) for _, scores in known], [_deviation(scores) for _, scores in known]
    places = range(len(known))
    bars = axes.bar(places, means, yerr=spreads, capsize=4, color=[f"C{place % 10}" for place in places])
    axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
    axes.set_xticks(places, [group.name for group, _ in known], rotation=20, ha="right")
    lowest = min(value - np.nan_to_num(spread) for value, spread in zip(means, spreads, strict=True))
    axes.set_ylim(bottom=max(0.0, 10 * (lowest // 10 - (lowest % 10 < 5))))
    axes.set_ylabel("mIoU, %")


def _sweep(sheet: Any, key: str, lines: dict[str, Line]) -> None:
    axes = sheet.add_subplot()
    for rest, line in lines.items():
        means, spreads = [mean(scores) for _, scores in line], [_deviation(scores) for _, scores in line]
        axes.errorbar([value for value, _ in line], means, yerr=spreads, marker="o", capsize=4, label=rest or None)
    axes.set_xlabel(key)
    axes.set_ylabel("mIoU, %")
    if len(lines) > 1:
        axes.legend(fontsize="small")


def _hardness(sheet: Any, groups: Sequence[Group]) -> None:
    axes = sheet.add_subplot()
    for group in groups:
        tables = [table for each in group.members if len(table := each.run.hardness_table())]
        everyone = np.concatenate(tables)
        curve = course(everyone, int(everyone[:, 0].max()))
        (line,) = axes.plot(curve.steps, curve.values, label=group.name)
        axes.fill_between(curve.band_steps, curve.low, curve.high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("hardness, mean and standard deviation")
    axes.legend(fontsize="small")


def _pictures(sheet: Any, groups: Sequence[Group], names: Sequence[str]) -> None:
    having = [group for group in groups if group.first.pictures]
    images = [_pixels(having[0].first.run.pictures / _picture(having[0], name).image) for name in names]
    heights = [_CELL * image.shape[0] / image.shape[1] for image in images]
    sheet.set_size_inches(_CELL * (2 + len(having)), sum(heights) + _TITLE)
    cells = sheet.subplots(len(names), 2 + len(having), squeeze=False, gridspec_kw={"height_ratios": heights})
    for number, (row, name) in enumerate(zip(cells, names, strict=True)):
        one = _picture(having[0], name)
        folder = having[0].first.run.pictures
        shown = [("image", folder / one.image), ("truth", folder / one.truth)]
        for group in having:
            own = _picture(group, name)
            shown.append((group.name, group.first.run.pictures / next(iter(own.predictions.values()))))
        for cell, (title, path) in zip(row, shown, strict=True):
            cell.imshow(_pixels(path), interpolation="nearest")
            cell.set_axis_off()
            if number == 0:
                cell.set_title(title, fontsize="small")


def _picture(group: Group, name: str) -> Picture:
    pictures = group.first.pictures
    assert pictures is not None
    return next(one for one in pictures.images if one.name == name)


def _pixels(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete the folder pictures for figures without it"
        ) from error


def _deviation(scores: Sequence[float]) -> float:
    return stdev(scores) if len(scores) > 1 else math.nan  # one seed has none, and matplotlib draws none
