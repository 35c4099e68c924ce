"""Makes tables of runs: last and best mIoU, and the IoU of each class."""

from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from semiseg.errors import UserError
from semiseg.percent import miou_percent, percent
from semiseg.runs import Run


def class_names(run: Run) -> list[str]:
    """Returns the names of a run's classes.

    Raises:
        UserError: environment.json does not contain them. An earlier semiseg did not write them; its checkpoints have a
            format that this one does not read.
    """
    try:
        return [str(name) for name in run.environment()["classes"]["names"]]
    except (LookupError, TypeError) as error:
        raise UserError(
            f"{run.path / 'environment.json'}: names no classes; put back what semiseg wrote there, or train again "
            "(an earlier semiseg did not write them)"
        ) from error


def step_seconds(record: dict[str, Any]) -> float:
    """Computes the time of a step, s, from a training record. An earlier semiseg wrote paces below 0.005 as 0."""
    return float(record["images_per_step"] / max(record["images_per_second"], 0.005))


def seconds(run: Run) -> float:
    """Computes the training time without evaluations, s: images / (images a second), summed over the records."""
    total, before = 0.0, 0
    for record in run.metrics("train"):
        total += (record["step"] - before) * step_seconds(record)
        before = record["step"]
    return total


def compare(runs: dict[str, Run], classes: Sequence[str]) -> Table:
    """Makes a table with one column for each run: last and best mIoU, last IoU of each class, training time."""
    table = Table("", *(Column(Text(name)) for name in runs), title="mIoU and IoU in %, on the validation images")
    last = {name: run.last() for name, run in runs.items()}
    best = {name: run.best() for name, run in runs.items()}
    others = _other_networks(list(last.values()))
    table.add_row("mIoU, last", *(_bold(_miou(record)) for record in last.values()))
    table.add_row(
        "mIoU, best (step)",
        *(f"{_miou(r)} ({r['step']})" if r else "-" for r in best.values()),
        end_section=not others,
    )
    for name in others:
        each = [(record or {}).get("networks", {}).get(name) for record in last.values()]
        table.add_row(f"mIoU of {name}, last", *map(_miou, each), end_section=name == others[-1])
    for index, name in enumerate(classes):
        table.add_row(Text(name), *(percent(record and record["iou"][index]) for record in last.values()))
    table.add_section()
    table.add_row("training, s", *(f"{seconds(run):.0f}" for run in runs.values()))
    return table


def worth(run: Run, baseline: Run, classes: Sequence[str]) -> Table:
    """Makes a table of what unlabeled images were worth: IoU with them, without them, and the difference, in points.

    Args:
        run: a complete run.
        baseline: a complete supervised run from the same weights, on the same labels.
        classes: the names of the classes.
    """
    table = Table("", "with unlabeled images", "without", "difference", title="IoU in %, last; one seed")
    with_them, without = run.last(), baseline.last()
    assert with_them is not None, "the run is complete"
    assert without is not None, "the run is complete"
    rows = [("mIoU", with_them["miou"], without["miou"]), *zip(classes, with_them["iou"], without["iou"], strict=True)]
    for number, (name, one, other) in enumerate(rows):
        difference = "-" if one is None or other is None else f"{100 * (one - other):+.2f}"
        cells = [percent(one), percent(other), difference]
        table.add_row(Text(name), *(map(_bold, cells) if number == 0 else cells), end_section=number == 0)
    table.add_section()
    table.add_row("training, s", f"{seconds(run):.0f}", f"{seconds(baseline):.0f}", "")
    return table


def better(run: Run, baseline: Run) -> Run:
    """Returns the one of two complete runs whose last mIoU, which `worth` shows, is higher."""
    with_them, without = run.last(), baseline.last()
    assert with_them is not None, "the run is complete"
    assert without is not None, "the run is complete"
    return baseline if without["miou"] > with_them["miou"] else run


def scores_table(miou: float, accuracy: float, iou: Sequence[float | None], classes: Sequence[str]) -> Table:
    """Makes a table of one evaluation: IoU of each class, mIoU and pixel accuracy."""
    table = Table("class", "IoU, %")
    for name, value in zip(classes, iou, strict=True):
        table.add_row(Text(name), percent(value))
    table.add_section()
    table.add_row(_bold("mIoU"), _bold(miou_percent(miou, iou)))
    table.add_row("pixel accuracy", percent(accuracy))
    return table


def rehearsal(found: dict[str, float]) -> Table:
    """Makes a table of what each process of a run would need."""
    table = Table("", "expected", title="dry run: real steps, nothing written")
    table.add_row("memory, training step", f"{found['train_mb']:.0f} MB")
    table.add_row("memory, with an evaluation", f"{found['evaluate_mb']:.0f} MB")
    table.add_row("a step", f"{found['step_s']:.2f} s")
    table.add_row("an evaluation", f"{found['evaluation_s']:.0f} s")
    table.add_row("the whole run", f"{found['hours']:.2f} h")
    table.add_row("room on disk", f"{found['disk_mb']:.0f} MB")
    return table


def _bold(text: str) -> Text:
    return Text(text, style="bold")


def _other_networks(records: list[dict[str, Any] | None]) -> list[str]:
    """Returns the names of networks that were evaluated beside the first one of a run, in order."""
    named = [name for record in records if record for name in list(record.get("networks", {}))[1:]]
    return list(dict.fromkeys(named))


def _miou(record: dict[str, Any] | None) -> str:
    return miou_percent(record["miou"], record["iou"]) if record else "-"
