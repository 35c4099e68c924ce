"""Estimates memory, hours and disk space of a run from a few real steps."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from semiseg.data.dataset import Dataset, Sample
from semiseg.data.read import fit, read_size
from semiseg.engine.evaluate import evaluate
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import Setup
from semiseg.recipe.recipe import Recipe

_WARM_UP = 2  # steps
_BUSY = 0.2  # share of the time that threads wait for a processor; 0.06 was measured where nobody else computed
_ROW_BYTES = 20  # size of a line of hardness.csv: one unlabeled image of one step


@dataclass(frozen=True)
class Rehearsal:
    """What each process of a run would need.

    Attributes:
        train_mb: peak memory of a step, MB; on a CPU the resident memory of the process, without loader processes.
        evaluate_mb: peak memory after the largest validation image was evaluated, MB.
        step_s: median time of a step with the wait for its images, s.
        evaluation_s: time of an evaluation, s, from the time of the largest image and the pixels of all images.
        hours: time of all steps and evaluations; other work is not counted.
        disk_mb: peak disk space, MB: checkpoints, with the one that is being written, and hardness.csv.
        loss: loss of the last step.
        waited: share of the time in which threads were ready, but had to wait for a processor that others used; 0 on
            systems that do not say it.
    """

    train_mb: float
    evaluate_mb: float
    step_s: float
    evaluation_s: float
    hours: float
    disk_mb: float
    loss: float
    waited: float = 0.0

    @property
    def busy(self) -> str | None:
        """Says that the machine is busy, so that the times may be wrong; None if it is not."""
        if self.waited < _BUSY:
            return None
        return (
            f"the machine is busy: during the trial {100 * self.waited:.0f} % of the computing time was waiting for "
            "processors that other programs used"
        )


def rehearse(
    recipe: Recipe,
    dataset: Dataset,
    runtime: Runtime,
    steps: int = 3,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Rehearsal | None:
    """Takes real steps and evaluates the largest validation image. It writes nothing to disk.

    Args:
        recipe: the recipe of the run.
        dataset: the dataset of the recipe.
        runtime: where to compute.
        steps: number of steps to take. The first two warm up, the others are timed.
        on_step: called with the number of steps that are done and the number of all steps.

    Returns:
        The estimates; None on all processes but the first.
    """
    with runtime.together():
        return _rehearse(recipe, dataset, runtime, min(steps, recipe.engine.steps), on_step)


def _rehearse(
    recipe: Recipe, dataset: Dataset, runtime: Runtime, steps: int, on_step: Callable[[int, int], None]
) -> Rehearsal | None:
    cfg, setup = recipe.engine, Setup(recipe, dataset, runtime)
    method, stepper = setup.method, setup.stepper
    stepper.start()
    before = _processor_times()
    seconds, begin = [], time.perf_counter()
    for step, loaded in enumerate(setup.train_loader(range(steps))):
        losses = stepper.take(step, loaded.to(runtime.device))
        loss = runtime.sum(losses.total).item()  # waits for the device
        seconds.append(time.perf_counter() - begin)
        on_step(step + 1, steps)
        begin = time.perf_counter()
    step_s = statistics.median(seconds[_WARM_UP:] or seconds[-1:])
    train_mb = runtime.peak_memory_mb()

    pixels = {sample: _pixels(sample, recipe.data.eval_long_side) for sample in dataset.val}
    largest = max(dataset.val, key=lambda sample: pixels[sample])
    items = setup.eval_loader([largest] * runtime.world_size, workers=0)
    for _ in range(2):  # first a warm-up: libraries choose their kernels for images of this size
        begin = time.perf_counter()
        evaluate(method.evaluated(), items, len(dataset.classes), cfg.evaluate, runtime)
    evaluation_s = (time.perf_counter() - begin) * sum(pixels.values()) / pixels[largest] / runtime.world_size

    waited = _share_of_waiting(before, _processor_times())

    evaluations = len({*range(cfg.evaluation_interval, cfg.steps + 1, cfg.evaluation_interval), cfg.steps})
    best = math.ceil(cfg.checkpoint_interval / cfg.evaluation_interval)  # at most, until old ones are deleted
    model_mb = _megabytes(method.state_dict())
    resumable_mb = model_mb + _megabytes(stepper.optimizers.tensors(method))
    kept = cfg.keep_checkpoints + (cfg.steps // cfg.keep_every if cfg.keep_every else 0)  # at most
    hardness_mb = _ROW_BYTES * cfg.steps * cfg.batch_size / 1e6 if losses.hardness is not None else 0.0
    found = Rehearsal(
        train_mb=train_mb,
        evaluate_mb=runtime.peak_memory_mb(),
        step_s=step_s,
        evaluation_s=evaluation_s,
        hours=(cfg.steps * step_s + evaluations * evaluation_s) / 3600,
        disk_mb=(kept + 1) * resumable_mb + (1 + best) * model_mb + hardness_mb,
        loss=loss,
        waited=waited,
    )
    return found if runtime.is_main else None


def _processor_times() -> dict[str, tuple[int, int]]:
    """Returns of each thread how long it ran, and how long it was ready and waited for a processor, ns.

    Linux says it; on other systems there are no threads in the result.
    """
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            ran, waited, _ = path.read_text(encoding="ascii").split()
        except (OSError, ValueError):  # the thread has ended
            continue
        times[path.parent.name] = int(ran), int(waited)
    return times


def _share_of_waiting(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float:
    """Computes the share of waiting between two calls of `_processor_times`, over all threads.

    Example:
        >>> _share_of_waiting({"1": (5, 5)}, {"1": (25, 5), "2": (10, 10)})
        0.25
    """
    ran = sum(times[0] - before.get(thread, (0, 0))[0] for thread, times in after.items())
    waited = sum(times[1] - before.get(thread, (0, 0))[1] for thread, times in after.items())
    return waited / (ran + waited) if ran + waited else 0.0


def _pixels(sample: Sample, long_side: int | None) -> int:
    height, width = fit(*read_size(sample.image), long_side)
    return height * width


def _megabytes(tensors: dict[str, torch.Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
