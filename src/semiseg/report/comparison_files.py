"""Writes a comparison as text for a terminal, CSV, LaTeX and JSON."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from semiseg.report.comparison import Comparison, Interval, Result, Row, Spread
from semiseg.runs import write_atomically

_SCORES: dict[str, Callable[[Row, Row], str]] = {
    "seeds": lambda row, first: str(len(row.results)),
    "last": lambda row, first: _percent(row.spread("last")),
    "best": lambda row, first: _percent(row.spread("best")),
    "gain": lambda row, first: "" if row is first else _percent(row.gain(first)),
    "lost": lambda row, first: _number(row.spread("lost"), 1),
}
_COST: dict[str, Callable[[Row, Row], str]] = {
    "s a step": lambda row, first: _number(row.spread("step_s"), 3),
    "peak memory, MB": lambda row, first: _number(row.spread("memory_mb"), 0),
    "trained parameters": lambda row, first: _number(row.spread("parameters"), 0),
}


def write(comparison: Comparison, folder: Path) -> None:
    """Writes comparison.txt, .csv, .tex and .json into a folder, in place of earlier ones."""
    page = Console(width=200, file=io.StringIO(), color_system=None, force_terminal=False)
    with page.capture() as captured:
        page.print(text(comparison))
    texts = {"txt": captured.get(), "csv": to_csv(comparison), "tex": to_latex(comparison), "json": to_json(comparison)}
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in texts.items():
        write_atomically(folder / f"comparison.{suffix}", content)


def text(comparison: Comparison) -> Group:
    """Makes tables for a terminal: scores, IoU of each class, cost; and lines on what the numbers mean."""
    classes = Table("IoU, last", *(Column(Text(row.name), overflow="fold") for row in comparison.rows))
    for index, name in enumerate(comparison.classes):
        classes.add_row(Text(name), *(_percent(row.class_iou(index)) for row in comparison.rows))
    lines = Text("\n".join(notes(comparison)))
    return Group(_table(comparison, _SCORES), classes, _table(comparison, _COST), lines)


def _table(comparison: Comparison, columns: dict[str, Callable[[Row, Row], str]]) -> Table:
    table = Table(Column(overflow="fold"), *(Column(name, no_wrap=True) for name in columns))
    for row in comparison.rows:
        table.add_row(Text(row.name), *(column(row, comparison.rows[0]) for column in columns.values()))
    return table


def notes(comparison: Comparison) -> list[str]:
    """Says in lines what the numbers mean, what they hold for, and which runs are not counted."""
    protocol, first = comparison.protocol, comparison.rows[0].name
    lines = [
        "last, best: mIoU of the last and of the best evaluation, %, mean and standard deviation over seeds",
        f"gain: paired difference of the last mIoU to {first} ± half its 95 % interval; lost: classes below 1 %",
        f"{protocol['labeled images']} labeled and {protocol['unlabeled images']} unlabeled images (partition "
        f"{protocol['partition']}), {protocol['validation images']} validation images; {protocol['steps']} steps of "
        f"{protocol['batch size']} labeled images; seeds {', '.join(map(str, comparison.seeds))}",
        "; ".join(f"{what} {', '.join(values)}" for what, values in comparison.made.items()),
    ]
    lines += [
        f"{row.name}: learned masks that an earlier run or stage had predicted, whose steps are not counted here"
        for row in comparison.rows
        if any(result.pseudo_labeled for result in row.results.values())
    ]
    if incomplete := sum(len(row.unfinished) for row in comparison.rows):
        of_all = incomplete + sum(len(row.results) for row in comparison.rows)
        lines.append(f"incomplete: {incomplete} of {of_all} runs")
    lines += [
        f"not counted: {row.name} with seed {seed}, {steps} of {protocol['steps']} steps"
        for row in comparison.rows
        for seed, steps in row.unfinished.items()
    ]
    lines += [f"not counted: {row.name}, not started" for row in comparison.rows if not (row.results or row.unfinished)]
    lines += [f"note: several: {what}" for what, values in comparison.made.items() if len(values) > 1]
    return lines


def to_csv(comparison: Comparison) -> str:
    """Writes one line for each row: numbers without rounding, IoU and mIoU as shares."""
    file, first = io.StringIO(), comparison.rows[0]
    writer = csv.writer(file, lineterminator="\n")
    values = ("last", "best", "lost", "step_s", "memory_mb", "parameters")
    heads = [f"{value} {kind}" for value in values for kind in ("mean", "deviation")]
    classes = [f"IoU of {name}" for name in comparison.classes]
    writer.writerow(["name", "seeds", *heads, f"gain over {first.name}", "gain half interval", *classes])
    for row in comparison.rows:
        spreads = [cell for value in values for cell in _pair(row.spread(value))]
        gain = None if row is first else row.gain(first)
        means = [spread and spread.mean for spread in map(row.class_iou, range(len(comparison.classes)))]
        writer.writerow([row.name, len(row.results), *spreads, *_pair(gain), *means])
    return file.getvalue()


def to_latex(comparison: Comparison) -> str:
    """Writes a tabular for a paper: rows with scores and cost."""
    columns, first = _SCORES | _COST, comparison.rows[0]
    lines = [["", *columns]]
    lines += [[row.name, *(column(row, first) for column in columns.values())] for row in comparison.rows]
    head, *body = [" & ".join(map(_escaped, cells)) + r" \\" for cells in lines]
    begin, end = r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\end{tabular}"
    return "\n".join([*(f"% {line}" for line in notes(comparison)), begin, rf"{head} \hline", *body, end, ""])


def to_json(comparison: Comparison) -> str:
    """Writes everything: each run's numbers, the spreads and the differences, IoU and mIoU as shares."""
    return json.dumps(as_values(comparison), indent=1) + "\n"


def as_values(comparison: Comparison) -> dict[str, Any]:
    """Returns everything as plain values."""
    first = comparison.rows[0]
    return {
        "protocol": dict(comparison.protocol),
        "made": {what: list(values) for what, values in comparison.made.items()},
        "classes": list(comparison.classes),
        "gains over": first.name,
        "rows": [
            {
                "name": row.name,
                "runs": {str(seed): asdict(result) for seed, result in row.results.items()},
                "unfinished": {str(seed): steps for seed, steps in row.unfinished.items()},
                "last": _values(row.spread("last")),
                "best": _values(row.spread("best")),
                "lost": _values(row.spread("lost")),
                "gain": None if row is first else _values(row.gain(first)),
            }
            for row in comparison.rows
        ],
    }


def from_values(values: dict[str, Any]) -> Comparison:
    """Makes a comparison from what `as_values` returned, for more rows or seeds beside it."""
    return Comparison(
        rows=tuple(
            Row(
                name=row["name"],
                results={int(seed): _result(run) for seed, run in row["runs"].items()},
                unfinished={int(seed): steps for seed, steps in row["unfinished"].items()},
            )
            for row in values["rows"]
        ),
        classes=tuple(values["classes"]),
        protocol=values["protocol"],
        made={what: tuple(each) for what, each in values["made"].items()},
    )


def _result(values: dict[str, Any]) -> Result:
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Result(**plain)


def _percent(value: Spread | Interval | None) -> str:
    return "-" if value is None else value.in_percent()


def _number(spread: Spread | None, digits: int) -> str:
    return "-" if spread is None else f"{spread.mean:.{digits}f}"


def _pair(value: Spread | Interval | None) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    return value.mean, value.deviation if isinstance(value, Spread) else value.half


def _values(value: Spread | Interval | None) -> dict[str, float | None] | None:
    return None if value is None else asdict(value)


def _escaped(text: str) -> str:
    special = {"±": "$\\pm$", "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {c: f"${c}$" for c in "<>|"}  # other signs in TeX's old fonts
    special |= {c: f"{{{c}}}" for c in "[*"}  # at the start of a line they would belong to the \\ before it
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
