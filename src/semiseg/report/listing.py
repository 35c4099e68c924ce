"""Makes a table of many runs: how far each one is."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from semiseg.engine.state import State
from semiseg.percent import miou_percent

_STYLES = {"running": "green", "failed": "red", "broken": "red"}


def table(states: Sequence[State], below: Path) -> Table:
    """Makes a table with a row for each run.

    Args:
        states: the states of the runs.
        below: the folder in which they were found; names are relative to it.
    """
    found = Table(
        Column("run", overflow="fold", min_width=10),
        Column("method", overflow="fold", min_width=8),
        Column("labels", min_width=8),
        Column("steps", justify="right", no_wrap=True, min_width=9),
        Column("mIoU, last", min_width=10),
        Column("state", min_width=8),
        Column("changed", no_wrap=True, min_width=11),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for state in states:
        shown = f"{state.kind} {state.why}" if state.kind == "running" and state.why else state.kind
        cells = [Text(_name(state, below))]
        if state.kind == "broken":
            cells += [Text("-")] * 4
        else:
            counts = f"{state.labeled} of {state.images}", f"{state.done}/{state.steps}"
            cells += [Text(text) for text in (state.method, *counts, _miou(state))]
        found.add_row(*cells, Text(shown, style=_STYLES.get(state.kind, "")), _when(state.changed))
    return found


def faults(states: Sequence[State], below: Path) -> list[str]:
    """Returns a line for each run that failed or is broken: why."""
    return [f"{_name(state, below)}: {state.why}" for state in states if state.kind in ("failed", "broken")]


def _when(changed: datetime | None) -> str:
    """Returns month, day and time of this year, and the date of an earlier one."""
    if changed is None:
        return "-"
    return f"{changed:%m-%d %H:%M}" if changed.year == datetime.now(changed.tzinfo).year else f"{changed:%Y-%m-%d}"


def _name(state: State, below: Path) -> str:
    """Returns the path of a run below the folder, or its own name if it is the folder itself."""
    name = state.run.path.relative_to(below).as_posix()
    return state.run.path.resolve().name if name == "." else name


def _miou(state: State) -> str:
    """Returns the mIoU of each network, e.g. `50.00 (student 25.00)`."""
    each = {name: miou_percent(scores["miou"], scores["iou"]) for name, scores in state.scores.items()}
    first, *_ = [*each.values(), "-"]
    others = ", ".join(f"{name} {miou}" for name, miou in [*each.items()][1:])
    return f"{first} ({others})" if others else first
