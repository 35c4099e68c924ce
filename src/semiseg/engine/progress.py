"""The progress bar of a run, and plain lines where there is no terminal."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SHOWN = (("loss", "loss"), ("labeled", "labeled"), ("unlabeled", "unlabeled"), ("easiness", "easiness"))


class ProgressBar:
    """A `Reporter` that draws losses, mIoU, mean easiness, images a second and the time left.

    Args:
        title: what is being trained.
        num_steps: steps of the whole run.
        console: where to draw; a line per evaluation is printed instead where it is no terminal.
    """

    def __init__(self, title: str, num_steps: int, console: Console) -> None:
        self.console = console
        self.title = title
        self.status, self.miou = "", ""
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),  # a folder may be called [/bold]
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=num_steps, status="")

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def on_train(self, record: dict[str, Any]) -> None:
        """Moves the bar."""
        parts = [f"{label} {record[name]:.3f}" for name, label in _SHOWN if name in record]
        self.status = "  ".join([*parts, f"{record['images_per_second']:.1f} img/s"])
        self._update(completed=record["step"])

    def on_evaluation(self, done: int, total: int) -> None:
        """Shows how far an evaluation is."""
        self.bar.update(self.task, status=f"evaluating {done}/{total}")

    def on_scores(self, record: dict[str, Any]) -> None:
        """Shows the new mIoU."""
        self.miou = f"mIoU {100 * record['miou']:.2f}"
        self._update()
        if not self.console.is_terminal:
            text = f"{self.title}: step {record['step']}  {self.miou}  {self.status}"
            self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def on_event(self, event: dict[str, Any]) -> None:
        """Prints what went wrong and was dealt with."""
        if event["event"] == "skipped":
            self._note(f"{len(event['files'])} images cannot be read and were skipped, e.g. {event['files'][0]}")
        elif event["event"] == "loader restarted":
            self._note(f"step {event['step']}: loader processes died and were started anew ({event['reason']})")

    def _note(self, text: str) -> None:
        self.console.print(f"note: {text}", highlight=False, style="yellow", markup=False, emoji=False, soft_wrap=True)

    def _update(self, completed: int | None = None) -> None:
        self.bar.update(self.task, completed=completed, status=f"{self.status}  {self.miou}")
