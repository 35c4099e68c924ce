"""SIGKILL at any moment: the same command resumes the run, which then equals an uninterrupted run bit by bit."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
from conftest import TRAIN


def in_the_middle_of_a_line(file: str, call: int) -> Callable[[], None]:
    """Kills the process when half of the `call`-th text is in a log."""
    calls = 0

    def around(append: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
        def torn(path: Path, text: str) -> None:
            nonlocal calls
            calls += path.name == file
            if path.name == file and calls == call:
                with path.open("a") as log:
                    log.write(text[: len(text) // 2])
                harness.die()
            append(path, text)

        return torn

    return lambda: harness.wrap("semiseg.runs._append", around)


def in_the_middle_of_tensors(call: int) -> Callable[[], None]:
    """Kills the process when half of the `call`-th file of tensors is written."""
    calls = 0

    def around(save_file: Callable[..., None]) -> Callable[..., None]:
        def torn(tensors: dict[str, Any], path: Path) -> None:
            nonlocal calls
            calls += 1
            save_file(tensors, path)
            if calls == call:
                os.truncate(path, path.stat().st_size // 2)
                harness.die()

        return torn

    return lambda: harness.wrap("semiseg.engine.checkpoint.save_file", around)


def in_the_middle_of_a_deletion() -> None:
    """Kills the process when the first file of a checkpoint is deleted."""

    def around(rmtree: Callable[..., None]) -> Callable[..., None]:
        def torn(folder: Path, **options: bool) -> None:
            if folder.exists() and "checkpoints" in folder.parts:
                next(folder.iterdir()).unlink()
                harness.die()
            rmtree(folder, **options)

        return torn

    harness.wrap("semiseg.engine.checkpoint.shutil.rmtree", around)


def before(where: str, call: int) -> Callable[[], None]:
    return lambda: harness.at(where, call, harness.die)


# In the order of their steps: best checkpoints after 4, 8, 12 where they are, resumable ones after 5, 10, 12. An
# evaluation counts the pixels of four images for teacher and student.
DEATHS = {
    "nothing but a folder": before("semiseg.runs._write", 1),
    "half a start": before("semiseg.runs._write", 3),
    "all of a start but its name": before("semiseg.runs.Path.replace", 6),
    "first step": before("semiseg.engine.step.make_batch", 1),
    "half a record": in_the_middle_of_a_line("metrics.jsonl", 2),
    "half of the best checkpoint": in_the_middle_of_tensors(1),
    "half of a checkpoint's weights": in_the_middle_of_tensors(2),
    "half of a checkpoint's momentum": in_the_middle_of_tensors(3),
    "a checkpoint without its name": before("semiseg.engine.checkpoint.Path.rename", 2),
    "half a line of events": in_the_middle_of_a_line("events.jsonl", 1),
    "a checkpoint just named": before("semiseg.engine.checkpoint.prune", 1),
    "half of the hardness": in_the_middle_of_a_line("hardness.csv", 1),
    "half rewound": before("semiseg.engine.checkpoint.rewind", 1),
    "an evaluation": before("semiseg.engine.evaluate.add_confusion", 4),
    "the last evaluation": before("semiseg.engine.evaluate.add_confusion", 14),
    "an old checkpoint half deleted": in_the_middle_of_a_deletion,
}


def test_killed_anywhere_again_and_again(here, semiseg, whole):
    folder = here()
    steps = []
    for moment, lay_trap in DEATHS.items():
        ended = semiseg(TRAIN, lay_trap)
        assert ended.code == 128 + signal.SIGKILL, (moment, ended)
        steps.append(harness.newest_step(folder / "run"))  # whole, or this fails
    assert steps == sorted(steps)
    assert set(steps) == {0, 5, 10, 12}
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []
    assert [path.name for path in folder.rglob(".*")] == []


def test_killed_at_random_moments_with_loader_processes(here, semiseg, whole):
    folder = here(data={"workers": 2})
    moments, killed = np.random.default_rng(0), 0
    while killed < 3:
        command = harness.Command(TRAIN)
        harness.until(lambda: (folder / "run").exists())
        time.sleep(moments.uniform(0, 0.5))
        if command.running():
            command.send(signal.SIGKILL)
        killed += command.wait().code == 128 + signal.SIGKILL
        if harness.newest_step(folder / "run") == 12:
            shutil.rmtree(folder / "run")  # it was quicker
    assert semiseg(TRAIN).code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_a_folder_with_something_else_in_it_is_no_half_started_run(here, semiseg):
    folder = here()
    (folder / "run").mkdir()
    (folder / "run" / "environment.json").write_text("mine")
    ended = semiseg(TRAIN)
    assert ended.code == 2
    assert "not empty" in ended.err
    assert [path.name for path in (folder / "run").iterdir()] == ["environment.json"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl", "hardness.csv"])
def test_a_log_is_read_and_written_behind_half_a_line(tmp_path, file):
    run = harness.Run(tmp_path / "run")
    run.start("", {}, ["a"])
    log: dict[str, Callable[[int], None]] = {
        "metrics.jsonl": lambda step: run.log({"kind": "val", "step": step, "miou": 0.5}),
        "events.jsonl": lambda step: run.event("started", step),
        "hardness.csv": lambda step: run.log_hardness([(step, 0, 0.5)]),
    }
    read: dict[str, Callable[[], list[int]]] = {
        "metrics.jsonl": lambda: [record["step"] for record in run.metrics("val")],
        "events.jsonl": lambda: [event["step"] for event in run.events()],
        "hardness.csv": lambda: [step for step, _, _ in run.hardness()],
    }
    for step in range(1, 4):
        log[file](step)
        with (run.path / file).open("a") as torn:
            torn.write("2,0,0." if file == "hardness.csv" else '{"kind": "val", "st')
        assert read[file]() == list(range(1, step + 1))


@pytest.mark.parametrize("dropped", [0, 1, 700, 20_000])
def test_a_long_history_is_cut_where_it_must_be(tmp_path, dropped):
    run, steps = harness.Run(tmp_path / "run"), 20_000  # a multiple of what is read at a time
    run.start("", {}, ["a", "b"])
    lines = [f"{step},{index},0.5000\n" for step in range(1, steps + 1) for index in (0, 1)]
    (run.path / "hardness.csv").write_text("step,index,hardness\n" + "".join(lines) + "20000,0,0.")
    run.rewind(steps - dropped)
    assert (run.path / "hardness.csv").read_text() == "step,index,hardness\n" + "".join(lines[: 2 * (steps - dropped)])
