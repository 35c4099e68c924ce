"""The same command twice at once, and the command after one that failed at its first steps."""

import signal
from pathlib import Path

import harness
from conftest import TRAIN


def test_the_second_is_refused_and_the_first_undisturbed(here, semiseg, whole):
    folder = here()

    def waits_for_the_second() -> None:
        harness.at("semiseg.engine.step.make_batch", 7, lambda: harness.until(Path("go").exists))

    first = harness.Command(TRAIN, waits_for_the_second)
    harness.until(lambda: harness.newest_step(folder / "run") == 5)
    harness.until(lambda: '"step": 6' in (folder / "run" / "metrics.jsonl").read_text())  # the last before it waits
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    second = semiseg(TRAIN)
    assert second.code == 2
    assert second.err.startswith(f"semiseg: run: process {first.pid} on ")
    assert second.err.count("\n") == 1
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before
    Path("go").touch()
    assert (first.wait().code, (folder / "run" / "train.lock").exists()) == (0, False)
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_two_that_start_at_once(here, semiseg, whole):
    """Neither finds a run directory; the first makes it while the second checks the data."""
    folder = here()

    def slow() -> None:
        harness.at("semiseg.api.check_files", 1, lambda: harness.until((folder / "run" / "config.yaml").exists))

    def waits_for_the_second() -> None:
        harness.at("semiseg.engine.step.make_batch", 1, lambda: harness.until(Path("go").exists))

    second = harness.Command(TRAIN, slow)
    first = harness.Command(TRAIN, waits_for_the_second)
    ended = second.wait()
    assert (ended.code, f"process {first.pid} on " in ended.err) == (2, True)
    Path("go").touch()
    assert first.wait().code == 0
    assert harness.differences(harness.left_behind(folder / "run"), whole) == []


def test_the_lock_of_a_killed_run_is_taken_over_in_a_line(here, semiseg):
    folder = here()
    killed = harness.Command(TRAIN, lambda: harness.at("semiseg.engine.step.make_batch", 7, harness.die))
    pid = killed.pid
    assert killed.wait().code == 128 + signal.SIGKILL
    assert (folder / "run" / "train.lock").exists()
    ended = semiseg(TRAIN)
    assert (ended.code, ended.err) == (0, "")
    (line,) = (line for line in ended.out.splitlines() if "takes over" in line)
    assert line.startswith(f"run: process {pid} on ")


def test_a_command_that_failed_at_its_first_steps_can_be_corrected(here, semiseg):
    """Nothing is lost if a directory without results is used for another recipe."""
    folder = here("supervised")
    wrong = f"{TRAIN} --set optim.lr=1.0e+30"
    for _ in range(2):
        ended = semiseg(wrong)
        assert (ended.code, "lower optim.lr" in ended.err) == (2, True)
        assert (folder / "run" / "config.yaml").exists()
    ended = semiseg(f"{TRAIN} --set engine.steps=1")
    assert (ended.code, ended.err) == (0, "")
    events = harness.Run(folder / "run").events()
    assert [event["event"] for event in events] == ["started"]
    assert "lr: 0.2\n" in (folder / "run" / "config.yaml").read_text()
    ended = semiseg(wrong)
    assert (ended.code, "holds a run of another recipe" in ended.err) == (2, True)
