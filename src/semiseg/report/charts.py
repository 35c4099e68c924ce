"""Makes the charts of a report, as plain values that plotly.js draws.

A trace belongs to a group of runs (`meta.run`), and in charts that show one thing of several, e.g. one class, to a
choice (`meta.choice`). The page shows the traces of the chosen runs and of the choice.
"""

import colorsys
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from semiseg.report.hardness import course, follow
from semiseg.report.reading import Group, Reading
from semiseg.report.series import Curve, Points, curve
from semiseg.report.table import class_names

# Colors of groups of runs: distinct, also for most color-blind readers, on white and on black.
COLORS = ("#3d85d1", "#e07b39", "#35a06b", "#c9518a", "#8d6bd0", "#a68a2c", "#2ba3ad", "#d05050", "#7f8c99", "#74a12e")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_BAND = 0.18  # opacity
_SIMILAR = 64  # largest difference of a channel, of 255
_KINDS = {"hardest": "#d05050", "easiest": "#35a06b", "most varied": "#8d6bd0"}  # of images, where one run is shown

# Numbers of training records: title and meaning. Methods may record others; they get a chart with their own name.
_LOSSES = {
    "loss": ("Loss", "The total loss."),
    "labeled": ("Loss on labeled images", "Before weights."),
    "unlabeled": ("Loss on unlabeled images", "Before the weight of unlabeled images."),
}
_SHARES = {
    "confident": ("Share of confident pixels", "Share of pixels whose confidence reaches the threshold, in %."),
    "easiness": ("Mean easiness", "1 minus hardness, mean over the unlabeled images of a step, in %."),
    "mixed": ("Share of steps with CutMix", "In %."),
}
_OF_ENGINE = {
    *("kind", "step", "lr", "gradient_norm", "pseudo_shares", "images_per_step", "images_per_second", "waited"),
    *("peak_memory_mb", "skipped"),
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        id: its name in the page.
        title: what it shows.
        caption: how to read it, in one or two sentences.
        traces: traces of plotly.js.
        layout: layout of plotly.js, without colors.
        choices: what can be chosen; without choices all traces are shown.
        chooses: what a choice is, e.g. `Class`.
        chosen: position of the choice that is shown first.
        follows: names of the traces that are shown only where the reader wants them, e.g. single images.
    """

    id: str
    title: str
    caption: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    choices: tuple[str, ...] = ()
    chooses: str = ""
    chosen: int = 0
    follows: tuple[str, ...] = ()

    def numbers(self) -> list[tuple[str, ...]]:
        """Returns the first, the lowest, the highest and the last value of each line, for readers of the text."""
        rows = []
        for trace in self.traces:
            if trace.get("fill") or not trace["y"]:
                continue
            name = " · ".join(filter(None, [trace["meta"].get("choice", ""), html.unescape(trace["name"])]))
            values = trace["y"]
            rows.append((name, *(f"{value:.4g}" for value in (values[0], min(values), max(values), values[-1]))))
        return rows


@dataclass(frozen=True)
class Section:
    """A part of the page with charts.

    Attributes:
        id: its name in the page.
        title: its heading.
        charts: its charts.
    """

    id: str
    title: str
    charts: list[Chart] = field(default_factory=list)


def sections(groups: Sequence[Group]) -> list[Section]:
    """Makes all charts for which the runs have numbers, in sections."""
    classes = class_names(groups[0].first.run)
    found = [
        Section("accuracy", "Accuracy", [_miou(groups), _one_class(groups, classes), _all_classes(groups, classes)]),
        Section("losses", "Losses", [_number(groups, key, *_LOSSES[key]) for key in _LOSSES]),
        Section("unlabeled", "Unlabeled images", _unlabeled(groups, classes)),
        Section("pseudo-labels", "Pseudo-labels", _pseudo_labels(groups, classes)),
        Section("optimization", "Optimization", [_gradient(groups), _rate(groups), *_others(groups)]),
    ]
    kept = [Section(one.id, one.title, [chart for chart in one.charts if chart.traces]) for one in found]
    return [one for one in kept if one.charts]


def _miou(groups: Sequence[Group]) -> Chart:
    traces: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        for place, network in enumerate(_networks(group)):
            curves = curve(
                [each.of_val(lambda record, n=network: _percent(_of(record, n, "miou"))) for each in group.members]
            )
            label = group.name + (f", {network}" if network else "")
            traces += _lines(curves, number, label, dash=_DASHES[place % len(_DASHES)])
    several = any(trace["line"].get("dash") != "solid" for trace in traces if "fill" not in trace)
    says = "Mean IoU on the validation images, in %."
    says += " Dashed lines: further networks of a method, e.g. the student beside its teacher." if several else ""
    return Chart("miou", "mIoU", says, traces, _layout("mIoU, %") | {"showlegend": several})


def _one_class(groups: Sequence[Group], classes: Sequence[str]) -> Chart:
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(classes):
        for number, group in enumerate(groups):
            found = [each.of_val(lambda record, i=index: _percent(record["iou"][i])) for each in group.members]
            traces += _lines(curve(found), number, group.name, choice=name)
    return Chart(
        "class", "IoU of one class", "In %. A class that occurs neither in masks nor in predictions has no IoU.",
        traces, _layout("IoU, %"), tuple(classes), "Class",
    )  # fmt: skip


def _all_classes(groups: Sequence[Group], classes: Sequence[str]) -> Chart:
    colors = class_colors(groups[0].first.environment["classes"].get("colors") or [], len(classes))
    dashes = _dashes(colors)
    traces: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        for index, name in enumerate(classes):
            found = [each.of_val(lambda record, i=index: _percent(record["iou"][i])) for each in group.members]
            lines = _lines(curve(found), number, name, choice=group.name, banded=False)
            traces += [trace | {"line": {"color": colors[index], "dash": dashes[index]}} for trace in lines]
    names = tuple(group.name for group in groups)
    layout = _layout("IoU, %") | {"showlegend": True}
    return Chart("classes", "IoU of all classes", "Of one run, in %.", traces, layout, names, "Run")


def _number(groups: Sequence[Group], key: str, title: str, caption: str, percent: bool = False) -> Chart:
    def points(reading: Reading) -> Points:
        found = reading.of_train(key)
        return {step: 100 * value for step, value in found.items()} if percent else found

    return Chart(_id(key), title, caption, _all(groups, points), _layout("%" if percent else ""))


def _gradient(groups: Sequence[Group]) -> Chart:
    traces = _all(groups, lambda reading: reading.of_train("gradient_norm"))
    layout = _layout("")
    values = [value for trace in traces for value in trace["y"] if value > 0]
    wide = bool(values) and max(values) > 100 * min(values)
    layout["yaxis"] |= {"type": "log", "dtick": 1 if wide else "D2"}  # D2: 2 and 5 of each decade, too
    return Chart(
        "gradient-norm",
        "Gradient norm",
        "Of all trained weights, before clipping; the axis is logarithmic.",
        traces,
        layout,
    )


def _rate(groups: Sequence[Group]) -> Chart:
    traces = _all(groups, lambda reading: reading.of_train("lr"))
    return Chart("lr", "Learning rate", "Of the encoder.", traces, _layout(""))


def _others(groups: Sequence[Group]) -> list[Chart]:
    """Makes a chart of every other number that a method records."""
    known = {*_LOSSES, *_SHARES, *_OF_ENGINE}
    keys = [key for group in groups for each in group.members for record in each.train[-1:] for key in record]
    return [
        _number(groups, key, key, "A number that the method records.")
        for key in dict.fromkeys(keys)
        if key not in known and any(each.of_train(key) for group in groups for each in group.members)
    ]


def _unlabeled(groups: Sequence[Group], classes: Sequence[str]) -> list[Chart]:
    return [
        _hardness(groups),
        *(_number(groups, key, *_SHARES[key], percent=True) for key in _SHARES),
        _shares_of_classes(groups, classes),
    ]


def _hardness(groups: Sequence[Group]) -> Chart:
    """Figure 3c of the iMAS paper."""
    traces: list[dict[str, Any]] = []
    names: list[str] = []
    for number, group in enumerate(groups):
        tables = [each.run.hardness_table() for each in group.members]
        last = max([1, *(each.done for each in group.members)])
        everyone = np.concatenate(tables)
        if not len(everyone):
            continue
        traces += _lines(course(everyone, last), number, group.name)
        place = group.members.index(group.first)
        for rank, one in enumerate(follow(tables[place], group.first.run.unlabeled())):
            label = f"{one.name} ({one.why}, {group.name})"
            names.append(label)
            trace = _line(one.curve.steps, one.curve.values, number, label, _DASHES[1 + rank % (len(_DASHES) - 1)])
            color = _KINDS[one.why] if len(groups) == 1 else _color(number)
            line = {**trace["line"], "color": color, "width": 1.5}
            traces.append(trace | {"line": line, "meta": {"run": number, "follow": label}})
    caption = "Line: mean over unlabeled images; band: standard deviation (Figure 3c of the iMAS paper)."
    return Chart("hardness", "Hardness", caption, traces, _layout("hardness"), follows=tuple(names))


def _shares_of_classes(groups: Sequence[Group], classes: Sequence[str]) -> Chart:
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(classes):
        for number, group in enumerate(groups):
            found = [
                {r["step"]: 100 * r["pseudo_shares"][index] for r in each.train if r.get("pseudo_shares")}
                for each in group.members
            ]
            traces += _lines(curve(found), number, group.name, choice=name)
    caption = "Share of all unlabeled pixels with a pseudo-label of this class, in %."
    return Chart("shares", "Pseudo-labels of a class", caption, traces, _layout("%"), tuple(classes), "Class")


def _pseudo_labels(groups: Sequence[Group], classes: Sequence[str]) -> list[Chart]:
    """Charts of their quality, where runs measured it on unlabeled images that have masks."""
    measured = [
        record["pseudo_labels"]
        for group in groups
        for each in group.members
        for record in each.val
        if record.get("pseudo_labels")
    ]
    if not measured:
        return []
    thresholds = sorted({threshold for quality in measured for threshold in quality["thresholds"]})
    shown = tuple(f"from {threshold:g}" for threshold in thresholds)
    kept = "Share of labeled pixels with a pseudo-label, in %."
    right = "Share of the pseudo-labels that are right, in %."
    precision = "Share of the pseudo-labels of a class that are right"
    recall = "Share of the pixels of a class that have the right pseudo-label"
    return [
        _by_threshold(groups, "kept", "Kept pseudo-labels", kept, thresholds, shown),
        _by_threshold(groups, "accuracy", "Right pseudo-labels", right, thresholds, shown),
        _of_class(groups, classes, "precision", "Precision of pseudo-labels", precision),
        _of_class(groups, classes, "recall", "Recall of pseudo-labels", recall),
    ]


def _by_threshold(
    groups: Sequence[Group], key: str, title: str, caption: str, thresholds: Sequence[float], shown: tuple[str, ...]
) -> Chart:
    traces: list[dict[str, Any]] = []
    for threshold, name in zip(thresholds, shown, strict=True):
        for number, group in enumerate(groups):
            found = [
                each.of_val(lambda record, t=threshold: _percent(_at(record.get("pseudo_labels"), t, key)))
                for each in group.members
            ]
            traces += _lines(curve(found), number, group.name, choice=name)
    chosen = max(thresholds.index(_threshold(group)) for group in groups if _threshold(group) in thresholds)
    return Chart(f"pseudo-{key}", title, caption, traces, _layout("%"), shown, "Confidence", chosen)


def _of_class(groups: Sequence[Group], classes: Sequence[str], key: str, title: str, caption: str) -> Chart:
    traces: list[dict[str, Any]] = []
    used = []  # thresholds
    for number, group in enumerate(groups):
        threshold = _threshold(group)
        used.append(f"{group.name} from {threshold:g}")
        for index, name in enumerate(classes):
            found = [
                each.of_val(
                    lambda record, t=threshold, i=index: _percent(
                        (_at(record.get("pseudo_labels"), t, key) or {i: None})[i]
                    )
                )
                for each in group.members
            ]
            traces += _lines(curve(found), number, group.name, choice=name)
    says = f"{caption}, in %; pseudo-labels of pixels with a confidence: {'; '.join(used)}."
    return Chart(f"pseudo-{key}", title, says, traces, _layout("%"), tuple(classes), "Class")


def _threshold(group: Group) -> float:
    """Returns the measured threshold that is nearest to the method's own one; without one, the lowest."""
    own = group.first.recipe["method"].get("threshold") or 0.0
    measured = [t for record in group.first.val for t in (record.get("pseudo_labels") or {}).get("thresholds", [])]
    return min(measured, key=lambda t: (abs(t - own), t), default=0.0)


def _at(quality: Mapping[str, Any] | None, threshold: float, key: str) -> Any:
    """Returns the value of a threshold; None if it was not measured."""
    if not quality or threshold not in quality["thresholds"]:
        return None
    return quality[key][quality["thresholds"].index(threshold)]


def _all(groups: Sequence[Group], points: Callable[[Reading], Points]) -> list[dict[str, Any]]:
    return [
        trace
        for number, group in enumerate(groups)
        for trace in _lines(curve([points(each) for each in group.members]), number, group.name)
    ]


def _lines(
    found: Curve, number: int, name: str, choice: str = "", dash: str = "solid", banded: bool = True
) -> list[dict[str, Any]]:
    """Makes the trace of a curve, and one of its band below it; none without points."""
    if not found.steps:
        return []
    meta = {"run": number, **({"choice": choice} if choice else {})}
    line = _line(found.steps, found.values, number, name, dash) | {"meta": meta}
    if not banded or not found.band_steps:
        return [line]
    area = {
        "type": "scatter", "mode": "lines", "name": html.escape(f"{name}, spread"), "meta": meta, "fill": "toself",
        "x": [*found.band_steps, *reversed(found.band_steps)],
        "y": _short([*found.low, *reversed(found.high)]),
        "line": {"width": 0, "color": _color(number)}, "opacity": 1, "fillcolor": _transparent(_color(number)),
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    return [area, line]


def _line(steps: Sequence[int], values: Sequence[float], number: int, name: str, dash: str) -> dict[str, Any]:
    few = len(steps) <= 30
    return {
        "type": "scatter", "mode": "lines+markers" if few else "lines", "name": html.escape(name),
        "x": [*steps], "y": _short(values), "line": {"color": _color(number), "dash": dash, "width": 2},
        "marker": {"size": 5}, "hovertemplate": "%{y:.4~g}",
    }  # fmt: skip


def _layout(unit: str) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero", "automargin": True},
        "yaxis": {"title": {"text": unit}, "rangemode": "nonnegative" if unit else "normal"},  # a loss may be negative
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "hovermode": "x unified",
        "showlegend": False,
    }


def _networks(group: Group) -> list[str]:
    """Returns the names of the evaluated networks; of a single one, an empty name."""
    found = [name for each in group.members for record in each.val[-1:] for name in record.get("networks", {})]
    return list(dict.fromkeys(found)) or [""]


def _of(record: Mapping[str, Any], network: str, key: str) -> Any:
    return record.get("networks", {}).get(network, {}).get(key) if network else record.get(key)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _short(values: Sequence[float]) -> list[float]:
    """Rounds to five digits: a page needs no more."""
    return [float(f"{value:.5g}") for value in values]


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _transparent(color: str) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{_BAND})"


def class_colors(colors: Sequence[Sequence[int]], number: int) -> list[str]:
    """Returns line colors of classes: their own ones, where these are seen on white and on black; brightness is moved.

    Example:
        Black becomes gray.

        >>> class_colors([(0, 0, 0), (128, 0, 0)], 2)
        ['#737373', '#e60000']
    """
    found = []
    for color in [*colors, *[(0, 0, 0)] * number][:number]:
        hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
        rgb = colorsys.hls_to_rgb(hue, min(0.6, max(0.45, light)), saturation)
        found.append("#" + "".join(f"{round(255 * value):02x}" for value in rgb))
    return found


def _dashes(colors: Sequence[str]) -> list[str]:
    """Returns the dash of each line, so that lines of similar colors differ in it."""
    rgb = np.array([[int(color[place : place + 2], 16) for place in (1, 3, 5)] for color in colors], dtype=int)
    similar = np.abs(rgb[:, None] - rgb[None]).max(-1) < _SIMILAR
    return [_DASHES[int(similar[index, :index].sum()) % len(_DASHES)] for index in range(len(colors))]


def _id(key: str) -> str:
    return "number-" + re.sub(r"[^A-Za-z0-9]+", "-", key)
