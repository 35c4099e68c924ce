"""Makes the tables of a report: results, settings, environment, events."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semiseg.report.comparison import Spread
from semiseg.report.reading import Group, Reading
from semiseg.report.table import class_names, seconds

_MOST_EVENTS = 40


@dataclass(frozen=True)
class Line:
    """One line of a table: its head, a cell for each group, and whether the groups differ."""

    head: str
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Returns whether not all cells are alike."""
        return len(set(self.cells)) > 1


def results(groups: Sequence[Group]) -> list[Line]:
    """Makes the lines of results: mean and deviation over the seeds."""
    networks = dict.fromkeys(
        name
        for group in groups
        for each in group.members
        for record in each.val[-1:]
        for name in record.get("networks", {})
    )
    return [
        Line("seeds", tuple(", ".join(str(each.seed) for each in group.members) for group in groups)),
        Line("steps", tuple(_distinct(f"{each.done} of {each.steps}" for each in group.members) for group in groups)),
        _spread("mIoU, last, %", groups, lambda each: each.val[-1]["miou"] if each.val else None),
        *(_spread(f"mIoU of {name}, last, %", groups, lambda each, n=name: _of(each, n)) for name in networks),
        _spread("mIoU, best, %", groups, lambda each: max((record["miou"] for record in each.val), default=None)),
        _spread("pixel accuracy, last, %", groups, lambda each: each.val[-1].get("accuracy") if each.val else None),
        Line("training without evaluations, min", tuple(_minutes(group) for group in groups)),
        Line("images a second", tuple(_speed(group) for group in groups)),
        Line("peak memory, MB", tuple(_memory(group) for group in groups)),
    ]


def classes(groups: Sequence[Group]) -> list[Line]:
    """Makes the lines of the last IoU of each class."""
    return [
        _spread(name, groups, lambda each, i=index: each.val[-1]["iou"][i] if each.val else None)
        for index, name in enumerate(class_names(groups[0].first.run))
    ]


def settings(groups: Sequence[Group]) -> list[Line]:
    """Makes a line of each setting of the recipes."""
    each = [[member.settings() for member in group.members] for group in groups]
    keys = dict.fromkeys(key for members in each for values in members for key in values)
    return [
        Line(
            key,
            tuple(_distinct(_text(values[key]) if key in values else "-" for values in members) for members in each),
        )
        for key in keys
    ]


def environment(groups: Sequence[Group]) -> list[Line]:
    """Makes a line of each fact about how the runs were made."""
    each = [[_flat(member.environment) for member in group.members] for group in groups]
    keys = dict.fromkeys(key for members in each for values in members for key in values)
    return [Line(key, tuple(_distinct(values.get(key, "-") for values in members) for members in each)) for key in keys]


def events(reading: Reading) -> list[tuple[int, str, str]]:
    """Returns step, name and details of the newest events of a run."""
    found = []
    for event in reading.run.events()[-_MOST_EVENTS:]:
        details = {key: value for key, value in event.items() if key not in ("event", "step", "time", "sign")}
        says = details.pop("text", None) or ", ".join(f"{key} {_text(value)}" for key, value in details.items())
        found.append((event.get("step", 0), str(event.get("event", "")), str(says)[:500]))
    return found


def _spread(head: str, groups: Sequence[Group], value: Any) -> Line:
    cells = []
    for group in groups:
        found = [float(each) for each in map(value, group.members) if each is not None]
        spread = Spread.of(found)
        cells.append("-" if spread is None else f"{100 * spread.mean:.2f}" + _deviation(spread))
    return Line(head, tuple(cells))


def _deviation(spread: Spread) -> str:
    return "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"


def _of(reading: Reading, network: str) -> float | None:
    return reading.val[-1].get("networks", {}).get(network, {}).get("miou") if reading.val else None


def _minutes(group: Group) -> str:
    return f"{statistics.fmean(seconds(each.run) for each in group.members) / 60:.1f}"


def _speed(group: Group) -> str:
    found = [record["images_per_second"] for each in group.members for record in each.train]
    return f"{statistics.median(found):.3g}" if found else "-"


def _memory(group: Group) -> str:
    found = [record["peak_memory_mb"] for each in group.members for record in each.train]
    return str(max(found)) if found else "-"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Makes one level of nested values: `machine.cpu`. Classes are shown elsewhere."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if before == "" and key == "classes":
            continue
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        elif before == "" and key == "command" and isinstance(value, list):
            found[key] = " ".join(map(str, value))
        else:
            found[f"{before}{key}"] = _text(value)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
