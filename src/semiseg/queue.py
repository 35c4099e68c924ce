"""Runs trainings one after the other, each in a process of its own, on several devices or cores at once.

Every run can be stopped at any time and goes on later, so the queue can, too: it leaves out runs that are complete.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from semiseg.engine.progress import draws_bars
from semiseg.engine.signals import StopRequest
from semiseg.errors import Interrupted, UserError
from semiseg.files import writing
from semiseg.percent import miou_percent
from semiseg.recipe.load import changes_of_result, dump, load_recipe, shortened
from semiseg.recipe.recipe import Recipe
from semiseg.runs import Run

_POLL_S = 0.2
_LOOK_S = 2.0  # between two looks at the records of a run


@dataclass(frozen=True)
class Job:
    """One run of the queue.

    Attributes:
        name: what it is called, e.g. `imas, seed 1`.
        recipe: the file of its complete recipe.
        run: the run directory of its result.
        steps: optimizer steps of the recipe.
        stages: the folder of its stages, of which `run` is the last one; None: it has none. What the training prints
            goes to a file beside this folder, or beside the run directory: `<folder>.log`.
    """

    name: str
    recipe: Path
    run: Run
    steps: int
    stages: Path | None = None

    @property
    def folder(self) -> Path:
        """Returns the folder that the training writes into."""
        return self.stages or self.run.path

    @property
    def done(self) -> int:
        """Returns the step of the newest record."""
        if not self.run.exists():
            return 0
        return max((record["step"] for kind in ("train", "val") for record in self.run.metrics(kind)[-1:]), default=0)

    @property
    def complete(self) -> bool:
        """Returns whether the run was trained and evaluated to its end."""
        return self.run.exists() and (last := self.run.last()) is not None and last["step"] == self.steps

    @property
    def log(self) -> Path:
        """Returns the file with what the training prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def state(self) -> str:
        """Says how far the run is, e.g. `mIoU 76.20`."""
        last = self.run.last() if self.run.exists() else None
        return f"mIoU {miou_percent(last['miou'], last['iou'])}" if last else ""


def prepare(planned: Mapping[Job, Recipe], results: Mapping[Job, Recipe] | None = None) -> None:
    """Writes the recipe of each job to its file.

    Args:
        planned: the recipes of the jobs.
        results: those of their run directories, if they are others: of a job with stages that of the last one.

    Raises:
        UserError: the run directory of a job holds a run of another recipe. Then nothing is written.
    """
    for job, recipe in (results or planned).items():
        if not job.run.exists() or job.run.is_blank():
            continue
        if other := changes_of_result(load_recipe(job.run.config), recipe):
            raise UserError(
                f"{job.run.path}: holds a run of another recipe ({shortened(other)}); name another with --out"
            )
    for job, recipe in planned.items():
        with writing(job.recipe):
            job.recipe.parent.mkdir(parents=True, exist_ok=True)
            job.recipe.write_text(dump(recipe), encoding="utf-8")


class _Worker:
    """A process that trains a job."""

    def __init__(self, job: Job, device: str | None, threads: int) -> None:
        self.job, self.device, self.since = job, device, time.monotonic()
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        command = "train" if job.stages is None else "self-train"
        words = [sys.executable, "-m", "semiseg", command, str(job.recipe), "--out", str(job.folder)]
        words += [] if device is None else ["--set", "engine.device=cuda"]  # a wrong number is an error, not a CPU
        with writing(job.log), job.log.open("ab") as log:
            self.begin = log.tell()
            # A session of its own: Ctrl-C comes to the queue, which passes it on once.
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def why(self) -> str:
        """Says why the training ended: the signal that ended it, or the last line that it printed."""
        code = self.process.returncode
        if code < 0:
            guess = " (perhaps not enough memory)" if code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-code).name}{guess}; see {self.job.log}"
        lines = self.job.log.read_bytes()[self.begin :].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {code}; see {self.job.log}"


def work(
    jobs: Sequence[Job],
    console: Console,
    at_once: int = 1,
    devices: Sequence[str] = (),
    until: float | None = None,
) -> dict[str, str]:
    """Trains the jobs that are not complete, in their order.

    Args:
        jobs: the jobs.
        console: shows the progress.
        at_once: number of processes at once; they share the cores.
        devices: numbers of GPUs, as CUDA_VISIBLE_DEVICES names them; then one process trains on each.
        until: when to stop, as `time.monotonic` counts, s. Then the running ones save their completed steps.

    Returns:
        The jobs that failed, by name, and why.

    Raises:
        UserError: a device has no number, or a launcher has started several processes of this command.
        Interrupted: the process received Ctrl-C, SIGTERM or SIGHUP. The running jobs have saved their completed steps.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("this command starts its processes itself; start it without torchrun or accelerate launch")
    if not all(device.strip() for device in devices):
        raise UserError(f"--devices {','.join(devices)}: write numbers of GPUs with commas between, e.g. 0,1")
    waiting = deque(job for job in jobs if not job.complete)
    slots: list[str | None] = list(devices) or [None] * at_once
    threads = max(1, len(os.sched_getaffinity(0)) // len(slots)) if hasattr(os, "sched_getaffinity") else 1
    running: list[_Worker] = []
    failed: dict[str, str] = {}
    with StopRequest().listening() as request, _Board(jobs, console) as board:
        try:
            while (waiting or running) and not request.signum and (until is None or time.monotonic() < until):
                while waiting and len(running) < len(slots):
                    free = next(slot for slot in slots if slots.count(slot) > [w.device for w in running].count(slot))
                    running.append(_Worker(waiting.popleft(), free, threads))
                time.sleep(_POLL_S)
                for worker in [each for each in running if each.process.poll() is not None]:
                    running.remove(worker)
                    if not worker.job.complete:
                        failed[worker.job.name] = worker.why()
                    board.ended(worker.job, time.monotonic() - worker.since, failed.get(worker.job.name))
                board.look([worker.job for worker in running])
        finally:
            for worker in running:
                worker.process.send_signal(signal.SIGTERM)
            for worker in running:
                worker.process.wait()
        if request.signum:
            raise Interrupted(
                f"stopped by {signal.Signals(request.signum).name}; running trainings have saved their steps, and the "
                "same command goes on",
                request.signum,
            )
    return failed


class _Board:
    """Shows how many jobs are complete, and the running ones: bars on a terminal, or a line for each that ended."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.jobs, self.console, self.looked = jobs, console, 0.0
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not draws_bars(console),
        )
        complete = sum(job.complete for job in jobs)
        self.all = self.progress.add_task("runs", total=len(jobs), completed=complete, status="")
        self.bars: dict[str, TaskID] = {}
        if complete:
            self._say(f"{complete} of {len(jobs)} runs are complete already")
        if (first := next((job for job in jobs if not job.complete), None)) and not draws_bars(console):
            self._say(f"runs to train: {len(jobs) - complete}; each has a log, first {first.log}")

    def __enter__(self) -> "_Board":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def look(self, running: Sequence[Job]) -> None:
        """Moves the bars of the running jobs, now and then."""
        if not draws_bars(self.console) or time.monotonic() - self.looked < _LOOK_S:
            return
        self.looked = time.monotonic()
        for job in running:
            if job.name not in self.bars:
                self.bars[job.name] = self.progress.add_task(job.name, total=job.steps, status="")
            self.progress.update(self.bars[job.name], completed=job.done, status=job.state())

    def ended(self, job: Job, seconds: float, failure: str | None) -> None:
        """Says the result of a job."""
        if job.name in self.bars:
            self.progress.remove_task(self.bars.pop(job.name))
        self.progress.advance(self.all)
        minutes, rest = divmod(round(seconds), 60)
        self._say(f"{job.name}: {failure or f'{job.state()}, {minutes}:{rest:02d}'}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
