"""Collects the results of the steps of a run and writes them to the run directory."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semiseg.data.dataset import Dataset
from semiseg.engine.advice import advice
from semiseg.engine.checkpoint import Checkpoint
from semiseg.engine.reporter import Reporter
from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError
from semiseg.metrics import Scores
from semiseg.runs import Run
from semiseg.types import LoadedBatch, Losses

_PSEUDO = "pseudo-labels of class "  # the names of scalars that become one list in a record


class NotFiniteError(UserError):
    """A loss or a weight is not a finite number. The run stops and saves nothing."""


@dataclass(frozen=True)
class _Step:
    """The results of one step, over all processes, on the device."""

    done: int  # completed steps
    scalars: Tensor  # the loss, the scalars of the method, and the number of processes that were asked to stop
    index: Tensor | None = None  # of the images: labeled and unlabeled of the first process, then of the second ...
    num_labeled: int = 0  # of each process
    hardness: Tensor | None = None  # of the unlabeled images


class Log:
    """Collects the results of steps on the device and writes them at intervals.

    On a CPU the host reads the results of a step at once. On a GPU it reads them after it has started the next step: by
    then they are usually computed, so the host does not wait.

    Args:
        run: the run directory. Only the first process writes to it.
        runtime: the runtime of the run.
        dataset: gives the names of the images of a bad batch.
        reporter: shows the progress. On all processes but the first it is silent.
        images_per_step: number of labeled and unlabeled images of a step, over all processes.
        done: number of completed steps.
        untried: settings that may help rare classes and that the recipe does not have.
    """

    def __init__(
        self,
        run: Run,
        runtime: Runtime,
        dataset: Dataset,
        reporter: Reporter,
        images_per_step: int,
        done: int,
        untried: Sequence[str] = (),
    ) -> None:
        self.run, self.runtime, self.dataset, self.reporter = run, runtime, dataset, reporter
        self.images_per_step, self.untried = images_per_step, untried
        self.names: list[str] = []
        self.steps: list[_Step] = []  # steps that are in no record yet
        self.skipped: list[str] = []  # files that this process could not read in these steps
        self.written = self.hardness_written = done
        self.stop = False  # whether any process was asked to stop; it changes at the same step in all processes
        self._restart_clock(done)

    def _restart_clock(self, done: int) -> None:
        self.clock, self.clock_step, self.waited = time.perf_counter(), done, 0.0

    def restore(self, saved: Checkpoint) -> None:
        """Restores from a checkpoint the results of the steps that are in no record yet."""
        if not saved.pending:
            return
        values = [*saved.pending.values(), [0.0] * len(next(iter(saved.pending.values())))]  # 0: no request to stop
        rows = torch.tensor(values, device=self.runtime.device).T
        self.names = [*saved.pending, "stop"]
        self.written -= len(rows)
        self.steps = [_Step(self.written + n, row) for n, row in enumerate(rows.unbind(), 1)]
        self.skipped = list(saved.skipped) if self.runtime.is_main else []
        self._restart_clock(self.written)
        self.clock -= saved.seconds
        self.waited = saved.waited

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures how long the caller waits for the loader."""
        entered = time.perf_counter()
        yield
        self.waited += time.perf_counter() - entered

    def step(
        self, done: int, losses: Losses, loaded: LoadedBatch, stop: bool, pseudo_shares: Tensor | None = None
    ) -> None:
        """Stores the results of a step, and whether this process was asked to stop.

        Args:
            done: number of completed steps.
            losses: this process's share of the losses.
            loaded: its share of the batch.
            stop: whether it was asked to stop.
            pseudo_shares: share of all unlabeled pixels with a pseudo-label of each class, alike on all processes.

        Raises:
            NotFiniteError: the loss of a step is not a finite number.
        """
        shares = [] if pseudo_shares is None else [*pseudo_shares[: len(self.dataset.classes)]]
        of_all = [share / self.runtime.world_size for share in shares]  # the sum over processes is formed below
        self.names = ["loss", *losses.scalars, *(f"{_PSEUDO}{index}" for index in range(len(shares))), "stop"]
        asked = torch.full_like(losses.total, float(stop))  # torch.tensor would wait until it has copied the value
        scalars = torch.stack([losses.total.detach(), *losses.scalars.values(), *of_all, asked])
        index = self.runtime.gather(torch.cat([loaded.labeled_index, loaded.index]))
        hardness = None if losses.hardness is None else self.runtime.gather(losses.hardness)
        num_labeled = len(loaded.labeled_index)
        self.steps.append(_Step(done, self.runtime.sum(scalars.float()), index, num_labeled, hardness))
        self.skipped += loaded.skipped
        known = self.steps[-1:] if self.runtime.device.type == "cpu" else self.steps[-2:-1]
        losses_known = {name: value for step in known for name, value in self._read(step).items()}
        self.reporter.on_step({"step": done, "images_per_step": self.images_per_step, **losses_known})

    def _read(self, step: _Step) -> dict[str, float]:
        """Copies the scalars of a step to the host and checks them. Returns them by name."""
        *values, stop = step.scalars.tolist()
        self.stop = self.stop or stop > 0
        if not math.isfinite(values[0]):
            raise NotFiniteError(self._bad_batch(step, values[0]))
        named = dict(zip(self.names, values, strict=False))
        return {name: value for name, value in named.items() if not name.startswith(_PSEUDO)}

    def _bad_batch(self, step: _Step, loss: float) -> str:
        assert step.index is not None, "only finite steps are pending in a checkpoint"
        labeled, unlabeled = [], []
        for share in step.index.view(self.runtime.world_size, -1).tolist():
            labeled += [self.dataset.labeled[index].name for index in share[: step.num_labeled]]
            unlabeled += [self.dataset.unlabeled[index].name for index in share[step.num_labeled :]]
        if self.runtime.is_main:
            self.run.event("not finite", step.done, loss=str(loss), labeled=labeled, unlabeled=unlabeled)
        images = f"labeled {', '.join(labeled)}" + (f"; unlabeled {', '.join(unlabeled)}" if unlabeled else "")
        return (
            f"{self.run.path}: the loss of step {step.done} is {loss}; its images are {images}; "
            "lower optim.lr, or use engine.precision: bf16 or fp32; earlier checkpoints are kept"
        )

    def flush(self, done: int, lr: float) -> None:
        """Writes one training record, the mean over the steps since the last record, and the hardness of these steps.

        Raises:
            NotFiniteError: the loss of a step is not a finite number.
        """
        if done == self.written:
            return
        self._read(self.steps[-1])
        self.write_hardness()
        now = time.perf_counter()
        means = dict(zip(self.names, torch.stack([step.scalars for step in self.steps]).mean(0).tolist(), strict=True))
        means.pop("stop")
        seconds, images = now - self.clock, self.images_per_step * (done - self.clock_step)
        # the gradient norm of a step that overflows in fp16 is infinite, which JSON does not have
        known = {name: round(value, 6) if math.isfinite(value) else None for name, value in means.items()}
        shares = [known.pop(name) for name in [*known] if name.startswith(_PSEUDO)]
        record: dict[str, Any] = {"kind": "train", "step": done, **known, "lr": lr}
        if shares:
            record["pseudo_shares"] = shares
        record["images_per_step"] = self.images_per_step
        record["images_per_second"] = float(f"{images / seconds:.4g}")  # a process may wait for days (Ctrl-Z)
        record["waited"] = round(self.waited / seconds, 4)
        record["peak_memory_mb"] = round(self.runtime.peak_memory_mb())
        skipped = self.runtime.gather_lists(self.skipped)
        if skipped:
            record["skipped"] = len(skipped)
        if self.runtime.is_main:
            self.run.log(record)
        self.written = done
        self.steps.clear()
        self.skipped = []
        self._restart_clock(done)
        self.reporter.on_train(record)
        if skipped:
            self.event("skipped", done, files=sorted(set(skipped)))

    def write_hardness(self) -> None:
        """Writes the hardness of the steps that have no record yet."""
        fresh = [step for step in self.steps if step.done > self.hardness_written]
        if fresh and fresh[0].hardness is not None and self.runtime.is_main:
            self.run.log_hardness([row for step in fresh for row in self._hardness_rows(step)])
        self.hardness_written = max([self.hardness_written, *(step.done for step in fresh)])

    def _hardness_rows(self, step: _Step) -> list[tuple[int, int, float]]:
        assert step.index is not None
        assert step.hardness is not None
        shares = step.index.view(self.runtime.world_size, -1)[:, step.num_labeled :]  # the unlabeled images
        pairs = zip(shares.flatten().tolist(), step.hardness.tolist(), strict=True)
        return [(step.done, index, hardness) for index, hardness in pairs]

    def pending(self) -> dict[str, list[float]]:
        """Returns the scalars of the steps that have no record yet, for a checkpoint between two records."""
        if not self.steps:
            return {}
        columns = torch.stack([step.scalars for step in self.steps]).T.tolist()
        return dict(zip(self.names[:-1], columns, strict=False))

    def seconds(self) -> float:
        """Returns the time since the last training record, s; 0 if no step was taken since. Checkpoints contain it."""
        return time.perf_counter() - self.clock if self.steps else 0.0

    def event(self, event: str, done: int, **details: Any) -> None:
        """Appends an event to events.jsonl and passes it to the reporter."""
        if self.runtime.is_main:
            self.run.event(event, done, **details)
        self.reporter.on_event({"event": event, "step": done, **details})

    def advise(self, done: int, steps: int) -> None:
        """Says what the records show to be wrong, each sign once in a run."""
        if not self.runtime.is_main:
            return
        said = {event["sign"] for event in self.run.events() if event["event"] == "advice"}
        names = self.dataset.classes.names
        found = advice(self.run.metrics("train"), self.run.metrics("val"), steps, names, self.untried)
        for sign, text in found.items():
            if sign not in said:
                self.event("advice", done, sign=sign, text=text)

    def scores(self, done: int, results: dict[str, Scores], pseudo_labels: dict[str, Any] | None = None) -> None:
        """Writes one validation record: the scores of the first network, and of each one if there are several.

        Args:
            done: number of completed steps.
            results: the scores by network.
            pseudo_labels: their quality, if it was measured.
        """
        each = {name: _plain(result) for name, result in results.items()}
        record = {"kind": "val", "step": done, **next(iter(each.values()))}
        if len(each) > 1:
            record["networks"] = each
        if pseudo_labels is not None:
            record["pseudo_labels"] = pseudo_labels
        if self.runtime.is_main:
            self.run.log(record)
        self.reporter.on_scores(record)
        self._restart_clock(done)  # the time of an evaluation is not training time


def _plain(result: Scores) -> dict[str, Any]:
    iou = [None if value != value else value for value in result.iou]
    return {"miou": result.miou, "accuracy": result.accuracy, "iou": iou}
