"""Writes docs/performance.md from the results files: python benchmarks/report.py, or make bench-report."""

from collections.abc import Iterable

import common
from common import Record, shown
from methods import BOUND, COLUMNS
from targets import TARGETS, Target, found

PAGE = common.ROOT / "docs" / "performance.md"
ORDER = ("correctness", "training", "step", "memory", "smoke", "hardness", "views", "inputs", "loader", "evaluation",
         "predict", "checkpoint", "startup", "pages", "cheaper_hardness", "methods")  # fmt: skip
HEAD = """# Performance

Made by `make bench-report` from `benchmarks/results/`; `make bench` takes the figures of a CPU anew, and
`python benchmarks/gpu.py` those of a GPU. Do not edit.

Times are medians over repeats after a warm-up, with the interquartile range (IQR). Candidates take turns within one
run, so that whatever else the machine does falls on all alike: ratios within a run mean more than the times. `imas` is
the authors' code (github.com/ZhenZHAO/iMAS), `unimatch` that of another method (github.com/LiheYoung/UniMatch); both
are called from a checkout, as they ship: fp32, contiguous.
"""


def page(records: Iterable[Record]) -> str:
    """Makes the whole page."""
    ordered = sorted(records, key=lambda record: (ORDER.index(record.suite), record.device))
    return "\n".join([HEAD, *targets(ordered), *(line for record in ordered for line in section(record))])


def targets(records: list[Record]) -> list[str]:
    """Makes the table of all targets with what was measured."""
    rows = []
    for target in TARGETS:
        values = [(record, ratio) for record in records if (ratio := found(target, record))]
        head = [target.says, target.on.upper(), f"`{target.ratio}`", bound(target)]
        rows += [[*head, f"{ratio.value:.3g}", verdict(target, ratio, record)] for record, ratio in values] or [
            [*head, "", "not measured yet"]
        ]
    return ["## Targets", "", *table(["what", "where", "ratio", "target", "measured", "verdict"], rows), ""]


def section(record: Record) -> list[str]:
    """Makes the section of one results file."""
    machine = record.machine
    where = ", ".join(machine["gpus"]) or machine["cpu"]
    lines = [f"## {record.title} ({'GPU' if record.device.startswith('cuda') else 'CPU'})", ""]
    taken = [f"On {where}, {machine['threads']} CPU threads", f"commit {record.commit}", record.date]
    taken += [f"{name} {version}" for name, version in record.versions.items()]
    taken += [f"{name} at {commit}" for name, commit in record.peers.items()]
    lines += [", ".join(taken) + "."]
    if disturbed(record):
        lines += [f"**Provisional: other work took {record.others:.0%} of the cores' time meanwhile.**"]
    lines += ["", "; ".join(f"{name}: {value}" for name, value in record.settings.items()) + ".", ""]
    if record.suite == "methods":
        return [*lines, *costs(record), *(f"\n{note}" for note in record.notes), ""]
    figures = [[each.name, shown(each.median, each.unit), spread(each.iqr, each.repeats, each.unit), str(each.repeats)]
               for each in record.figures]  # fmt: skip
    lines += table(["what", "median", "IQR", "times"], figures)
    if record.phases:
        rows = [[p.name, shown(p.median, "s"), shown(p.iqr, "s"), f"{p.share:.1%}"] for p in record.phases]
        lines += ["", *table(["phase of a step", "median", "IQR", "share"], rows)]
    if record.ratios:
        lines += ["", *table(["ratio", "value", "target", "verdict"], [judged(record, r) for r in record.ratios])]
    rows = [[g.name, g.by, points(g), f"{g.exponent:.2f}"] for g in record.growth if g.exponent is not None]
    if rows:
        lines += ["", *table(["cost of", "by", "size: median (IQR)", "grows as size to the power of"], rows)]
    for by in dict.fromkeys(each.by for each in record.growth if each.exponent is None):
        lines += ["", *course(by, [each for each in record.growth if each.exponent is None and each.by == by])]
    return [*lines, *(f"\n{note}" for note in record.notes), ""]


def costs(record: Record) -> list[str]:
    """Makes the table of what a step of each method costs: a row for each method."""
    figures, ratios = ({each.name: each for each in found} for found in (record.figures, record.ratios))
    rows = []
    for name in dict.fromkeys(each.name.partition(", ")[0] for each in record.figures):
        cells = [shown(figures[f"{name}, {column}"].median, figures[f"{name}, {column}"].unit) for column in COLUMNS]
        cells[COLUMNS.index("step")] += f" ({spread(figures[f'{name}, step'].iqr, 2, 's')})"
        over = ratios[f"{name}, measured / needed"].value
        rows.append([
            name, *cells, f"{ratios[f'{name} / supervised'].value:.2f}", f"{over:.2f}",
            f"above {BOUND:.2f}" if over > BOUND else "",
        ])  # fmt: skip
    head = ["method", *(f"{column} (IQR)" if column == "step" else column for column in COLUMNS)]
    return table([*head, "step / supervised", "step / needed", ""], rows)


def points(growth: common.Growth) -> str:
    """Lists what was measured at each size."""
    return "; ".join(f"{p.size:g}: {shown(p.median, growth.unit)} ({shown(p.iqr, growth.unit)})" for p in growth.points)


def course(by: str, series: list[common.Growth]) -> list[str]:
    """Makes a table of series that follow no power law: one column for each size, empty where nothing was measured."""
    sizes = sorted({point.size for each in series for point in each.points})
    rows = []
    for each in series:
        found = {point.size: shown(point.median, each.unit) for point in each.points}
        rows.append([each.name, *(found.get(size, "") for size in sizes)])
    return table([f"by {by}", *(f"{size:g}" for size in sizes)], rows)


def judged(record: Record, ratio: common.Ratio) -> list[str]:
    """Makes the row of a ratio, with its target if it has one."""
    for target in TARGETS:
        if found(target, record) == ratio:
            return [ratio.name, f"{ratio.value:.3g}", bound(target), verdict(target, ratio, record)]
    return [ratio.name, f"{ratio.value:.3g}", "", ""]


def verdict(target: Target, ratio: common.Ratio, record: Record) -> str:
    """Says whether a target was met, and whether the result is provisional."""
    return target.verdict(ratio.value) + (" (provisional)" if disturbed(record) else "")


def disturbed(record: Record) -> bool:
    """Returns whether other work used the cores meanwhile, so that the record must be measured again."""
    return record.others is not None and record.others > 0.1


def bound(target: Target) -> str:
    """Writes the bound of a target, e.g. "at least 2"."""
    return f"{target.kind} {target.bound:.3g}"


def spread(iqr: float, repeats: int, unit: str) -> str:
    """Writes the interquartile range of what was measured more than once."""
    return shown(iqr, unit) if repeats > 1 else ""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Makes a table in Markdown."""
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(common.read()), encoding="utf-8")
    print(PAGE.relative_to(common.ROOT))


if __name__ == "__main__":
    main()
