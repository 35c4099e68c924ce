import math
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from semiseg.errors import UserError
from semiseg.report import table
from semiseg.runs import Run


def run(path: Path, *val: tuple[int, float, list[float | None]], train: tuple[tuple[int, int, float], ...] = ()) -> Run:
    """A run directory with these (step, mIoU, IoU) and (step, images a step, images a second)."""
    made = Run(path)
    made.start("", {}, [])
    for step, miou, iou in val:
        made.log({"kind": "val", "step": step, "miou": miou, "iou": iou})
    for step, images, speed in train:
        made.log({"kind": "train", "step": step, "images_per_step": images, "images_per_second": speed})
    return made


def printed(shown: Table) -> list[list[str]]:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    lines = [line.replace("┃", "│") for line in capture.get().splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_compare(tmp_path):
    first = run(tmp_path / "a", (10, 0.5, [0.25, 0.75]), (20, 0.4, [0.12345, None]), train=((20, 8, 16.0),))
    second = run(tmp_path / "b", (10, 0.5, [0.5, 0.5]), (20, 0.6, [1.0, 0.2]), train=((5, 16, 8.0), (20, 16, 10.0)))
    assert printed(table.compare({"one": first, "two": second}, ["sky", "tree"])) == [
        ["", "one", "two"],
        ["mIoU, last", "40.00 (1 class of 2)", "60.00"],
        ["mIoU, best (step)", "50.00 (10)", "60.00 (20)"],
        ["sky", "12.35", "100.00"],
        ["tree", "-", "20.00"],
        ["training, s", "10", "34"],
    ]


def test_names_are_no_markup(tmp_path):
    names = ["[/sky]", "[bold]x", ":smile:", r"\[a]", "Sky", "sky"]
    made = run(tmp_path / "a", (1, 0.5, [0.5] * 6))
    shown = printed(table.compare({"[/b]": made, "[red]:cat:": made}, names))
    assert shown[0] == ["", "[/b]", "[red]:cat:"]
    assert [row[0] for row in shown[3:9]] == names
    assert [row[0] for row in printed(table.scores_table(0.5, 0.5, [0.5] * 6, names))[1:7]] == names


def test_compare_before_the_first_evaluation(tmp_path):
    rows = printed(table.compare({"one": run(tmp_path / "a")}, ["sky"]))
    assert rows == [["", "one"], ["mIoU, last", "-"], ["mIoU, best (step)", "-"], ["sky", "-"], ["training, s", "0"]]


def test_seconds_leave_evaluations_out(tmp_path):
    assert table.seconds(run(tmp_path / "a", train=((2, 4, 8.0), (6, 4, 2.0)))) == 2 * 4 / 8 + 4 * 4 / 2


def test_a_pace_that_an_earlier_semiseg_rounded_to_zero():
    assert table.step_seconds({"images_per_step": 4, "images_per_second": 0.0}) == 800


def test_scores_table():
    rows = printed(table.scores_table(0.5, 0.875, [0.5, math.nan, 1 / 3], ["sky", "tree", "car"]))
    assert rows == [
        ["class", "IoU, %"],
        ["sky", "50.00"],
        ["tree", "-"],
        ["car", "33.33"],
        ["mIoU", "50.00"],
        ["pixel accuracy", "87.50"],
    ]


def test_the_miou_of_a_single_class_is_called_that(tmp_path):
    alone = [1.0, None, None]
    shown = printed(table.compare({"one": run(tmp_path / "a", (10, 1.0, alone))}, ["sky", "tree", "car"]))
    assert shown[1:3] == [
        ["mIoU, last", "100.00 (1 class of 3)"],
        ["mIoU, best (step)", "100.00 (1 class of 3) (10)"],
    ]
    shown = printed(table.scores_table(1.0, 1.0, [1.0, math.nan, math.nan], ["sky", "tree", "car"]))
    assert shown[4] == ["mIoU", "100.00 (1 class of 3)"]


def test_networks_beside_the_first_one_have_rows(tmp_path):
    one, other = run(tmp_path / "a", (10, 0.5, [0.4, 0.6])), run(tmp_path / "b", (10, 0.25, [0.2, 0.3]))
    each = {name: {"miou": miou, "iou": [miou, miou]} for name, miou in (("teacher", 0.75), ("student", 0.5))}
    one.log({"kind": "val", "step": 20, "miou": 0.75, "iou": [0.7, 0.8], "networks": each})
    shown = printed(table.compare({"one": one, "other": other}, ["sky", "tree"]))
    assert shown[1:5] == [
        ["mIoU, last", "75.00", "25.00"],
        ["mIoU, best (step)", "75.00 (20)", "25.00 (10)"],
        ["mIoU of student, last", "50.00", "-"],
        ["sky", "70.00", "20.00"],
    ]


def test_class_names(tmp_path, trained):
    """Nothing but the run directory's own files is read for them."""
    copy = Run(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    assert table.class_names(copy) == ["ground", "disc", "box", "star", "ring", "cloth"]


@pytest.mark.parametrize("environment", [{}, {"classes": {}}, {"classes": ["sky"]}, {"classes": {"names": 3}}])
def test_class_names_of_a_run_that_does_not_say(tmp_path, environment):
    made = Run(tmp_path / "a")
    made.start("", environment, [])
    with pytest.raises(UserError, match=r"a/environment.json: names no classes; put back .* train again") as caught:
        table.class_names(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[" * 9])
def test_class_names_of_a_broken_run(tmp_path, content):
    made = run(tmp_path / "a")
    (made.path / "environment.json").unlink()
    if content is not None:
        (made.path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=r"a/environment.json: (is damaged|cannot be read)"):
        table.class_names(made)


def test_the_better_of_a_run_and_its_baseline(tmp_path):
    weak, strong, alike = (run(tmp_path / f"{k}", (10, miou, [miou])) for k, miou in enumerate((0.4, 0.6, 0.4)))
    assert table.better(weak, strong) == strong
    assert table.better(strong, weak) == strong
    assert table.better(weak, alike) == weak
