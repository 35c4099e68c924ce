"""Estimates memory, hours and disk space of a run from a few real steps."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from semiseg.data.dataset import Dataset, Sample
from semiseg.data.read import fit, read_size
from semiseg.engine.evaluate import evaluate
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import Setup
from semiseg.recipe.recipe import Recipe

_WARM_UP = 2  # steps
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
    """

    train_mb: float
    evaluate_mb: float
    step_s: float
    evaluation_s: float
    hours: float
    disk_mb: float
    loss: float


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
    )
    return found if runtime.is_main else None


def _pixels(sample: Sample, long_side: int | None) -> int:
    height, width = fit(*read_size(sample.image), long_side)
    return height * width


def _megabytes(tensors: dict[str, torch.Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
