import io
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from rich.console import Console

from semiseg.engine import progress
from semiseg.engine.progress import ProgressBar, counting
from semiseg.engine.train import Reporter

LOSSES = {"loss": 1.25, "labeled": 1.0, "unlabeled": 0.25, "easiness": 0.625, "ramp": 3.0}


class Clock:
    """A clock that a test sets, s."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log(io.StringIO):
    """A log file that stores the time of each line."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.times = clock, []

    def write(self, text: str) -> int:
        self.times += [self.clock() - 1000] * text.count("\n")
        return super().write(text)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock) -> Log:
    return Log(clock)


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def console(file: io.StringIO, terminal: bool = False) -> Console:
    return Console(file=file, force_terminal=terminal, force_interactive=terminal, width=160, color_system=None)


def steps(bar: ProgressBar, clock: Clock, *seconds: float, start: int = 0) -> None:
    """Takes steps of so many seconds each."""
    for step, taken in enumerate(seconds, start + 1):
        clock.now += taken
        bar.on_step({"step": step, "images_per_step": 16, **LOSSES})


def shown(terminal: bool, title: str = "first") -> str:
    clock, file = Clock(), io.StringIO()
    with ProgressBar(title, 10, 5, console(file, terminal), clock) as bar:
        assert isinstance(bar, Reporter)
        steps(bar, clock, *[2] * 5)
        bar.on_train({"step": 5, "images_per_second": 8.0, **LOSSES})
        for done in range(1, 5):
            clock.now += 5
            bar.on_evaluation(done, 4)
        bar.on_scores({"step": 5, "miou": 0.4567, "iou": [0.2, 0.8]})
    return file.getvalue()


def test_a_terminal_shows_a_bar():
    text = shown(terminal=True)
    for words in ("first", "5/10", "loss 1.250", "unlabeled 0.250", "easiness 0.625", "8.0 img/s", "mIoU 45.67"):
        assert words in text
    assert "0:00:30 left" in text
    assert "evaluating" not in text  # it was quicker than the bar is drawn
    assert "step" not in text  # no lines


def test_a_terminal_shows_how_far_an_evaluation_is(clock):
    file = io.StringIO()
    with ProgressBar("first", 10, 5, console(file, terminal=True), clock) as bar:
        bar.on_evaluation(3, 4)
    assert "evaluating 3/4" in file.getvalue()


def test_elsewhere_lines():
    each = "loss 1.250 labeled 1.000 unlabeled 0.250 easiness 0.625 8.0 img/s"
    assert [" ".join(line.split()) for line in shown(terminal=False).splitlines()] == [
        f"first: step 2 of 10 {each} 0:00:16 left",  # nothing is known of evaluations yet
        "first: step 5 of 10 evaluating: 1 of 4 images",
        "first: step 5 of 10 evaluating: 3 of 4 images",
        f"first: step 5 of 10 mIoU 45.67 {each} 0:00:30 left",  # five steps of 2 s and an evaluation of 20 s
    ]


@pytest.mark.parametrize("seconds", [0.01, 0.3, 1, 2.5, 4, 5, 7, 9, 11, 14])
def test_a_line_at_least_every_15_seconds(clock, log, seconds):
    with ProgressBar("first", 10**6, 10**6, console(log), clock) as bar:
        steps(bar, clock, *[seconds] * round(600 / seconds))
    first, *_ = log.times
    assert first <= max(seconds, 10)
    gaps = [later - earlier for earlier, later in pairwise([*log.times, 600])]
    assert max(gaps) <= 15
    assert min(gaps[:-1]) + seconds > progress.EVERY_S  # the step after would have been too late


def test_a_step_that_is_slower_than_the_one_before(clock, log):
    with ProgressBar("first", 1000, 1000, console(log), clock) as bar:
        steps(bar, clock, *[1, 4, 2, 5] * 100)
    assert max(later - earlier for earlier, later in pairwise(log.times)) <= 15


def test_a_slow_first_step_is_told_at_once(clock, log):
    with ProgressBar("first", 100, 100, console(log), clock) as bar:
        steps(bar, clock, 60, 30, 30)
    assert log.times == [60, 90, 120]
    left = re.findall(r"([\d.]+) img/s  (\S+) left", log.getvalue())
    assert left == [("0.3", "1:39:00"), ("0.5", "0:49:00"), ("0.5", "0:48:30")]  # the first is no measure of the others


def test_the_speed_is_that_of_the_last_steps(clock, log):
    with ProgressBar("first", 1000, 1000, console(log), clock) as bar:
        steps(bar, clock, *[0.1] * 100, *[1] * 100)
    assert "16.0 img/s  0:13:" in log.getvalue().splitlines()[-1]


def test_losses_are_means_of_the_last_steps(clock, log):
    with ProgressBar("first", 100, 100, console(log), clock) as bar:
        bar.on_step({"step": 1, "images_per_step": 16})  # on a GPU they are known a step later
        for step in range(2, 31):
            clock.now += 0.1
            bar.on_step({"step": step, "images_per_step": 16, "loss": float(step)})
        bar.on_scores({"step": 30, "miou": 0.5, "iou": [0.2, 0.8]})
    assert "loss 20.500" in log.getvalue()  # of steps 11 to 30


def test_a_quick_run_prints_no_line_but_that_of_its_evaluation(clock, log):
    with ProgressBar("first", 40, 40, console(log), clock) as bar:
        steps(bar, clock, *[0.1] * 40)
        bar.on_evaluation(1, 2)
        bar.on_scores({"step": 40, "miou": 0.5, "iou": [0.2, 0.8]})
    (line,) = log.getvalue().splitlines()
    assert line.startswith("first: step 40 of 40  mIoU 50.00  loss 1.250 ")
    assert line.endswith("160.0 img/s")  # nothing is left


def test_time_between_steps_that_an_evaluation_takes_is_no_step(clock, log):
    with ProgressBar("first", 100, 10, console(log), clock) as bar:
        for start in range(0, 90, 10):
            steps(bar, clock, *[1] * 10, start=start)
            clock.now += 50
            bar.on_scores({"step": start + 10, "miou": 0.5, "iou": [0.2, 0.8]})
        steps(bar, clock, *[1] * 9, start=90)
    assert all("16.0 img/s" in line for line in log.getvalue().splitlines())
    assert log.getvalue().splitlines()[-2].endswith("0:01:00 left")  # ten steps and the last evaluation, after 90


def test_a_resumed_run(clock, log):
    with ProgressBar("first", 100, 10, console(log), clock) as bar:
        clock.now += 6
        bar.on_evaluation(1, 4)  # due after the step at which it was interrupted
        clock.now += 1
        bar.on_scores({"step": 90, "miou": 0.5, "iou": [0.2, 0.8]})
        steps(bar, clock, *[2] * 8, start=90)
    lines = log.getvalue().splitlines()
    assert lines[:2] == ["first: evaluating: 1 of 4 images", "first: step 90 of 100  mIoU 50.00"]
    assert lines[2].startswith("first: step 96 of 100  loss")
    assert lines[2].endswith("8.0 img/s  0:00:15 left")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_miou_of_a_single_class_is_called_that(terminal):
    file = io.StringIO()
    with ProgressBar("first", 10, 5, console(file, terminal)) as bar:
        bar.on_scores({"step": 5, "miou": 1.0, "iou": [1.0, None, None]})
    assert "mIoU 100.00 (1 class of 3)" in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_networks_beside_the_first_one_are_shown(terminal):
    file = io.StringIO()
    student = {"miou": 0.25, "iou": [0.2, 0.3]}
    with ProgressBar("first", 10, 5, console(file, terminal)) as bar:
        bar.on_scores({"step": 5, "miou": 0.5, "iou": [0.5, 0.5], "networks": {"teacher": {}, "student": student}})
    assert "mIoU 50.00 (student 25.00)" in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("title", ["[/bold]", "[red]x", ":smile:"])
def test_a_title_is_no_markup(terminal, title):
    assert title in shown(terminal, title)


# commands that count


def count(clock: Clock, file: io.StringIO, seconds: float, total: int, terminal: bool = False) -> None:
    with counting("predicting", console(file, terminal), clock=clock) as told:
        clock.now += 3  # while a network is loaded
        for done in range(1, total + 1):
            clock.now += seconds
            told(done, total)


def test_counting_prints_lines(clock, log):
    count(clock, log, 0.5, 60)
    assert log.getvalue().splitlines() == [
        "predicting: 4 of 60 images  0:00:28 left",
        "predicting: 28 of 60 images  0:00:16 left",
        "predicting: 52 of 60 images  0:00:04 left",
    ]
    assert log.times == [5, 17, 29]


def test_counting_is_silent_when_it_is_done_soon(clock, log):
    count(clock, log, 0.019, 100)
    assert log.getvalue() == ""


@pytest.mark.parametrize(("total", "lines"), [(1, 0), (3, 2)])
def test_slow_images_are_told_one_by_one(clock, log, total, lines):
    count(clock, log, 20, total)
    assert len(log.times) == lines  # after the last one comes what the command has to say


def test_counting_on_a_terminal(clock, log):
    count(clock, log, 20, 3, terminal=True)
    assert "3/3 images" in log.getvalue()
    assert "of 3" not in log.getvalue()


def test_a_terminal_that_cannot_redraw_gets_lines(clock, log, monkeypatch):
    """A bar would show nothing at all there, e.g. in a shell inside Emacs."""
    monkeypatch.setenv("TERM", "dumb")
    count(clock, log, 20, 3, terminal=True)
    assert "predicting: 2 of 3 images" in log.getvalue()


# notebooks


def notebook(file: io.StringIO) -> Console:
    """The console of a kernel. What it prints apart goes into the same file here."""
    made = console(file)
    made.is_jupyter = True
    return made


def cell(text: str) -> list[str]:
    """The lines that the cell shows: what follows a return replaces what stands before it."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.fixture(params=["kernel", "command"])
def in_notebook(request, monkeypatch) -> Callable[[io.StringIO], Console]:
    """A kernel, or a command that a cell runs: on a terminal that cannot draw bars."""
    monkeypatch.setattr(Console, "print", lambda self, text, **_: print(text, file=self.file))  # a kernel displays it
    if request.param == "kernel":
        return notebook
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    return lambda file: console(file, terminal=True)


def test_a_notebook_shows_one_line_and_keeps_evaluations(clock, in_notebook):
    file = io.StringIO()
    with ProgressBar("first", 200, 100, in_notebook(file), clock) as bar:
        steps(bar, clock, *[0.1] * 100)
        assert len(cell(file.getvalue())) == 1
        assert file.getvalue().count("\r") == 20  # each half second
        bar.on_evaluation(1, 4)
        clock.now += 1
        bar.on_evaluation(2, 4)
        assert cell(file.getvalue()) == ["first: step 100 of 200  evaluating: 2 of 4 images"]
        bar.on_scores({"step": 100, "miou": 0.4567, "iou": [0.2, 0.8]})
        steps(bar, clock, *[1] * 2, start=100)
        bar.on_event({"event": "advice", "text": "look"})
        steps(bar, clock, 1, start=102)
    kept, before, note, after, end = cell(file.getvalue())
    assert kept.startswith("first: step 100 of 200  mIoU 45.67  loss 1.250")
    assert before.startswith("first: step 102 of 200  loss 1.250")
    assert note == "note: look"
    assert after.startswith("first: step 103 of 200")
    assert end == ""
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("seconds", [1, 0.01])
def test_counting_in_a_notebook(clock, in_notebook, seconds):
    file = io.StringIO()
    with counting("predicting", in_notebook(file), clock=clock) as told:
        for done in range(1, 4):
            clock.now += seconds
            told(done, 3)
    assert cell(file.getvalue()) == ["predicting: 3 of 3 images", ""]


def test_a_quiet_console_of_a_notebook_shows_nothing(clock):
    file = io.StringIO()
    quiet = notebook(file)
    quiet.quiet = True
    with ProgressBar("first", 10, 5, quiet, clock) as bar:
        steps(bar, clock, *[2] * 5)
        bar.on_scores({"step": 5, "miou": 0.4567, "iou": [0.2, 0.8]})
    assert file.getvalue() == ""


def test_a_command_of_a_notebook_that_writes_to_a_file_prints_lines(clock, log, monkeypatch):
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    count(clock, log, 20, 3)
    assert len(log.times) == 2
