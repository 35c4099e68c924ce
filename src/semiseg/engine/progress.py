"""Shows the progress of a run, and of commands that count images.

On a terminal it is a bar, in a notebook one line that changes, elsewhere a line every few seconds. A notebook needs no
widgets for it, and its cell gets one more line only for an evaluation.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semiseg.percent import miou_percent

FIRST_S = 5.0  # until the first line
EVERY_S = 12.0  # between two lines; they stay within 15 s if a step takes up to 3 s longer than the one before
_REDRAW_S = 0.5  # between two changes of the line in a notebook
_RECENT = 20  # steps; losses and speed are means over the last ones
_SHOWN = ("loss", "labeled", "unlabeled", "easiness")

Clock = Callable[[], float]  # s


def draws_bars(console: Console) -> bool:
    """Returns whether the console is a terminal that can draw bars.

    The terminal of a notebook's `!command` cannot, nor one that cannot redraw a line (TERM=dumb), e.g. in Emacs.
    """
    return console.is_terminal and not console.is_dumb_terminal and not _in_notebook(console)


def _in_notebook(console: Console) -> bool:
    """Returns whether the console is the cell of a notebook: of its kernel, or of a command that a cell runs."""
    return console.is_jupyter or (console.is_terminal and "JPY_PARENT_PID" in os.environ)  # a kernel has this


class _Cell:
    """A line in the cell of a notebook that is written over again and again, as its stream allows with a return.

    Args:
        console: the console of the cell.
        clock: gives the time, s.
    """

    def __init__(self, console: Console, clock: Clock) -> None:
        self.console, self.clock = console, clock
        self.width, self.drawn_at = 0, -math.inf  # of the line that stands there now

    def show(self, text: str, last: bool = False) -> None:
        """Replaces the line, unless that was done a moment ago; the last text always."""
        if last or self.clock() - self.drawn_at >= _REDRAW_S:
            self._write(text)
            self.width, self.drawn_at = len(text), self.clock()

    def keep(self, text: str = "") -> None:
        """Replaces the line by one that stays; an empty text keeps the one that is there."""
        if text or self.width:
            self._write(f"{text}\n" if text else "\n")
            self.width, self.drawn_at = 0, -math.inf

    def _write(self, text: str) -> None:
        if not self.console.quiet:
            line, end = text.rstrip("\n"), "\n" if text.endswith("\n") else ""
            over = f"\r{line.ljust(self.width)}" if line else ""
            self.console.file.write(over + end)
            self.console.file.flush()


class _Pace:
    """Decides when to print a line.

    It reads the clock only after each step or image. It expects the next step to take as long as this one. If the next
    step would end after the due time, the line is due now.
    """

    def __init__(self, now: float) -> None:
        self.due_at = now + FIRST_S
        self.asked_at: float | None = None

    def due(self, now: float) -> bool:
        """Returns whether the caller must print a line now. If so, it sets the due time of the next line."""
        gap = 0.0 if self.asked_at is None else now - self.asked_at  # the first step is slower than the others
        self.asked_at = now
        if now < self.due_at and now + gap <= self.due_at:
            return False
        self.printed(now)
        return True

    def printed(self, now: float) -> None:
        """Sets the due time of the next line, after a line was printed."""
        self.due_at = now + EVERY_S


class ProgressBar:
    """A `Reporter` that shows losses, mIoU, mean easiness, images a second and the time left.

    On a terminal it draws a bar. In a notebook it changes one line, and keeps a line of each evaluation. Elsewhere it
    prints a line after each evaluation, and lines between evaluations: the first one within 10 s of the first step,
    then at least one every 15 s, unless a single step takes longer. Once an evaluation was timed, the time left
    includes the remaining evaluations.

    Args:
        title: the name of the run.
        num_steps: steps of the whole run.
        eval_every: steps between evaluations.
        console: where to draw or print.
        clock: gives the time, s.
    """

    def __init__(
        self, title: str, num_steps: int, eval_every: int, console: Console, clock: Clock = time.monotonic
    ) -> None:
        self.title, self.num_steps, self.eval_every, self.console = title, num_steps, eval_every, console
        self.clock = clock
        self.draws, self.cell = draws_bars(console), _Cell(console, clock) if _in_notebook(console) else None
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),  # a folder may have the name [/bold]
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self.draws,
        )
        self.task = self.bar.add_task(title, total=num_steps, status="")
        self.done: int | None = None  # number of completed steps; None: not known yet
        self.losses: deque[dict[str, float]] = deque(maxlen=_RECENT)
        self.first_step_s = 0.0  # it includes the start of loader processes, so other steps are faster
        self.step_s: deque[float] = deque(maxlen=_RECENT)
        self.evaluation_s = 0.0
        self.images_per_step = 0
        self.miou = ""
        self.since = clock()  # when the last step or evaluation ended
        self.pace = _Pace(self.since)

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()
        if self.cell:
            self.cell.keep()

    def on_step(self, record: dict[str, Any]) -> None:
        """Moves the bar, or prints a line if one is due."""
        now = self.clock()
        if self.done is None:
            self.first_step_s = now - self.since
        else:
            self.step_s.append(now - self.since)
        self.since, self.done, self.images_per_step = now, record["step"], record["images_per_step"]
        self.losses.append({name: record[name] for name in _SHOWN if name in record})
        if self.draws:
            self._update(self._status(), self.miou, self._left())
        elif self.cell:
            self.cell.show(self._text(self._status(), self.miou, self._left()))
        elif self.pace.due(now):
            self._line(self._status(), self._left())

    def on_train(self, record: dict[str, Any]) -> None:
        """Does nothing: each step of the record was shown."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Shows how many images of an evaluation are done."""
        if self.draws:
            self._update(f"evaluating {done}/{total}")
        elif self.cell:
            self.cell.show(self._text(f"evaluating: {_of(done, total, 'images')}"))
        elif done < total and self.pace.due(self.clock()):
            self._line(f"evaluating: {_of(done, total, 'images')}")

    def on_scores(self, record: dict[str, Any]) -> None:
        """Shows the new mIoU."""
        now = self.clock()
        self.evaluation_s, self.since = now - self.since, now
        others = list(record.get("networks", {}).items())[1:]  # the first one is that of the record
        beside = ", ".join(f"{name} {miou_percent(scores['miou'], scores['iou'])}" for name, scores in others)
        self.miou = f"mIoU {miou_percent(record['miou'], record['iou'])}" + (f" ({beside})" if beside else "")
        self.done = record["step"]
        self._update(self._status(), self.miou, self._left())
        if self.cell:
            self.cell.keep(self._text(self.miou, self._status(), self._left()))
        elif not self.draws:
            self._line(self.miou, self._status(), self._left())
            self.pace.printed(now)

    def on_event(self, event: dict[str, Any]) -> None:
        """Prints advice, and notes about skipped images or restarted loader processes."""
        if event["event"] == "skipped":
            self._note(f"{len(event['files'])} images cannot be read and were skipped, e.g. {event['files'][0]}")
        elif event["event"] == "advice":
            self._note(event["text"])
        elif event["event"] == "tracker lost":
            self._note(f"{event['tracker']} shows no more of this run ({event['reason']}); the training goes on")
        elif event["event"] == "loader restarted":
            self._note(f"step {event['step']}: loader processes died and were started again ({event['reason']})")

    def _status(self) -> str:
        """Returns the losses and the images a second of the last steps, as text."""
        known = [losses for losses in self.losses if losses]
        parts = [f"{name} {fmean(losses[name] for losses in known):.3f}" for name in (known[-1] if known else ())]
        if seconds := self._step_s():
            parts.append(f"{self.images_per_step / seconds:.1f} img/s")
        return "  ".join(parts)

    def _left(self) -> str:
        if self.done is None or self.done >= self.num_steps or not (seconds := self._step_s()):
            return ""
        evaluations = math.ceil(self.num_steps / self.eval_every) - self.done // self.eval_every
        return _left((self.num_steps - self.done) * seconds + evaluations * self.evaluation_s)

    def _step_s(self) -> float:
        return fmean(self.step_s) if self.step_s else self.first_step_s

    def _note(self, text: str) -> None:
        if self.cell:
            self.cell.keep()
        self.console.print(f"note: {text}", highlight=False, style="yellow", markup=False, emoji=False, soft_wrap=True)

    def _line(self, *parts: str) -> None:
        _print(self.console, self._text(*parts))

    def _text(self, *parts: str) -> str:
        step = f"step {self.done} of {self.num_steps}" if self.done is not None else ""
        return f"{self.title}: {_joined(step, *parts)}"

    def _update(self, *parts: str) -> None:
        self.bar.update(self.task, completed=self.done, status=_joined(*parts))


@contextmanager
def counting(
    doing: str, console: Console, unit: str = "images", clock: Clock = time.monotonic
) -> Iterator[Callable[[int, int], None]]:
    """Shows how many images a command has processed.

    On a terminal it draws a bar, in a notebook it changes one line. Elsewhere it prints a line after 5 s, and then one
    every 12 s. If the command ends earlier, it prints no line.

    Args:
        doing: the name of the activity, e.g. "predicting".
        console: where to draw or print.
        unit: what is counted.
        clock: gives the time, s.

    Yields:
        A function to call after each image, with the number of images that are done and the number of all images.
    """
    bar = Progress(
        TextColumn(doing),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not draws_bars(console),
    )
    cell = _Cell(console, clock) if _in_notebook(console) else None
    task, pace = bar.add_task(doing, total=None), _Pace(clock())
    first: tuple[float, int] | None = None  # when the first image was done, and how many were done then

    def count(done: int, total: int) -> None:
        nonlocal first
        now = clock()
        first = first or (now, done)
        bar.update(task, completed=done, total=total)
        if draws_bars(console) or not (cell or (done < total and pace.due(now))):
            return
        left = _left((now - first[0]) / (done - first[1]) * (total - done)) if first[1] < done < total else ""
        text = f"{doing}: {_joined(_of(done, total, unit), left)}"
        if cell:
            cell.show(text, last=done >= total)
        else:
            _print(console, text)

    try:
        with bar:
            yield count
    finally:
        if cell:
            cell.keep()


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def _of(done: int, total: int, unit: str) -> str:
    return f"{done} of {total} {unit}"


def _left(seconds: float) -> str:
    """Formats the time left as hours, minutes and seconds, e.g. "2:10:05 left"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints a text as it is."""
    console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
