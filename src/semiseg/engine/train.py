"""The training loop, in the order in which things happen."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from semiseg.augment.views import make_batch
from semiseg.data.dataset import Dataset
from semiseg.data.loader import eval_loader, train_loader
from semiseg.engine import checkpoint
from semiseg.engine.evaluate import evaluate
from semiseg.engine.recipe import Recipe, build_method
from semiseg.engine.runtime import Runtime
from semiseg.engine.schedule import build_optimizer, set_lr
from semiseg.errors import UserError
from semiseg.method import SemiMethod
from semiseg.metrics import Scores
from semiseg.rng import seed_global
from semiseg.runs import Run
from semiseg.types import LoadedBatch, Losses, Progress


@runtime_checkable
class Reporter(Protocol):
    """Who is told how training goes."""

    def on_train(self, record: dict[str, Any]) -> None:
        """A training record was logged."""

    def on_evaluation(self, done: int, total: int) -> None:
        """`done` of `total` validation images were evaluated."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """A validation record was logged."""


class Silent:
    """Tells nobody."""

    def on_train(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Nothing."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """Nothing."""


def train(recipe: Recipe, dataset: Dataset, run: Run, reporter: Reporter | None = None) -> None:
    """Trains to the end of the recipe, from the run's newest checkpoint if it has one.

    Every random decision is a function of seed and step, so a resumed run takes the same steps as an uninterrupted
    one. The run directory must have been started.

    Raises:
        UserError: the loss is no longer finite, or an image cannot be read.
    """
    cfg = recipe.engine
    reporter = reporter or Silent()
    runtime = Runtime(cfg.device, cfg.precision)
    method = build_method(recipe, dataset.classes).to(runtime.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(recipe.optim, method)
    start = _resume(run, method, optimizer, runtime)
    if start >= cfg.steps:
        return
    per_process, rest = divmod(cfg.batch_size, runtime.world_size)
    if rest:
        raise UserError(f"engine.batch_size: {cfg.batch_size} is no multiple of the {runtime.world_size} processes")

    batches = iter(
        train_loader(
            dataset,
            recipe.data,
            batch_size=per_process,
            unlabeled=method.views.unlabeled,
            seed=cfg.seed,
            start=start,
            num_steps=cfg.steps,
            rank=runtime.rank,
            world_size=runtime.world_size,
        )
    )
    val = eval_loader(
        dataset.val,
        dataset,
        recipe.data,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    method.train()
    wrapped, wrapped_optimizer = runtime.prepare(method, optimizer)
    normalise = method.predictor().normalisation
    log = _Log(run, runtime, reporter, cfg.batch_size * (2 if method.views.unlabeled else 1), start)

    for step in range(start, cfg.steps):
        lr = recipe.optim.lr_at(step, cfg.steps)
        set_lr(wrapped_optimizer, lr)
        with log.waiting():
            loaded = next(batches).to(runtime.device)
        batch = make_batch(loaded, method.views, normalise, cfg.seed, step, runtime.rank)
        seed_global(cfg.seed, "step", step, runtime.rank)  # dropout; after the loader, which draws when it starts
        losses = wrapped(batch, Progress(step, cfg.steps, cfg.seed, runtime.rank))
        runtime.step(wrapped_optimizer, losses.total)
        method.after_step(step)
        done = step + 1
        log.step(done, losses, loaded)
        last = done == cfg.steps
        if last or done % cfg.log_every == 0:
            log.flush(done, lr)
        if last or done % cfg.evaluation_interval == 0:
            log.flush(done, lr)
            result = evaluate(
                method.predictor(), val, len(dataset.classes), cfg.evaluate, runtime, log.evaluated(len(dataset.val))
            )
            log.scores(done, result)
            if runtime.is_main and run.best() == run.last():
                _save(run, recipe, dataset, method, done)
        if last or done % cfg.checkpoint_interval == 0:
            log.flush(done, lr)
            if runtime.is_main:
                _save(run, recipe, dataset, method, done, optimizer, runtime)
                checkpoint.prune(run.checkpoints, cfg.keep_checkpoints)


@dataclass
class _Log:
    """Collects what steps yield, on the device, and writes it at intervals: the only place that waits for it."""

    run: Run
    runtime: Runtime
    reporter: Reporter
    images_per_step: int
    flushed: int  # completed steps at the last flush
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    losses: list[dict[str, Tensor]] = field(default_factory=list)
    hardness: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times the wait for the loader."""
        entered = time.perf_counter()
        yield
        self.waited += time.perf_counter() - entered

    def step(self, done: int, losses: Losses, loaded: LoadedBatch) -> None:
        """Keeps one step's results."""
        self.losses.append({"loss": losses.total.detach(), **losses.scalars})
        if losses.hardness is not None:
            self.hardness.append((done, loaded.index, losses.hardness))

    def flush(self, done: int, lr: float) -> None:
        """Writes one training record, the mean over the steps since the last one, and their hardness."""
        if done == self.flushed:
            return
        mean = {name: torch.stack([step[name] for step in self.losses]).mean() for name in self.losses[0]}
        values = self.runtime.mean(mean)
        rows = self._hardness_rows()
        if values["loss"] != values["loss"] or abs(values["loss"]) == float("inf"):
            raise UserError(
                f"{self.run.path}: the loss is {values['loss']} between steps {self.flushed} and {done}; "
                "lower optim.lr, or use engine.precision: bf16 or fp32"
            )
        now = time.perf_counter()
        record = {"kind": "train", "step": done, **{name: round(value, 6) for name, value in values.items()}, "lr": lr}
        record["images_per_step"] = self.images_per_step
        record["images_per_second"] = round(self.images_per_step * (done - self.flushed) / (now - self.since), 2)
        record["waited"] = round(self.waited / (now - self.since), 4)
        if self.runtime.is_main:
            self.run.log(record)
            self.run.log_hardness(rows)
            self.reporter.on_train(record)
        self.losses.clear()
        self.hardness.clear()
        self.flushed, self.since, self.waited = done, now, 0.0

    def _hardness_rows(self) -> list[tuple[int, int, float]]:
        rows = []
        for done, index, hardness in self.hardness:
            everywhere = zip(self.runtime.gather(index).tolist(), self.runtime.gather(hardness).tolist(), strict=True)
            rows += [(done, i, h) for i, h in everywhere]
        return rows

    def evaluated(self, total: int) -> Callable[[int], None]:
        """What tells the reporter how far an evaluation is."""
        return lambda done: self.reporter.on_evaluation(min(done * self.runtime.world_size, total), total)

    def scores(self, done: int, result: Scores) -> None:
        """Writes one validation record."""
        record = {
            "kind": "val",
            "step": done,
            "miou": result.miou,
            "accuracy": result.accuracy,
            "iou": [None if value != value else value for value in result.iou],
        }
        if self.runtime.is_main:
            self.run.log(record)
            self.reporter.on_scores(record)
        self.since = time.perf_counter()  # an evaluation is not training time


def _resume(run: Run, method: SemiMethod, optimizer: torch.optim.Optimizer, runtime: Runtime) -> int:
    """Loads the newest checkpoint of the run, if any; returns the number of steps that are done."""
    newest = checkpoint.newest(run.checkpoints)
    if newest is None:
        if runtime.is_main:
            run.rewind(0)
        return 0
    method.load_state_dict(newest.model_state())
    checkpoint.load_optimizer_tensors(optimizer, newest.optimizer_state())
    runtime.load_scaler_state(newest.scaler)
    if runtime.is_main:
        run.rewind(newest.step)
    return newest.step


def _save(
    run: Run,
    recipe: Recipe,
    dataset: Dataset,
    method: SemiMethod,
    done: int,
    optimizer: torch.optim.Optimizer | None = None,
    runtime: Runtime | None = None,
) -> None:
    """A resumable checkpoint, or the best one where no optimizer is given."""
    checkpoint.save(
        run.checkpoints,
        step=done,
        recipe=recipe.to_dict(),
        classes=dataset.classes,
        normalisation=method.predictor().normalisation,
        model=method.state_dict(),
        optimizer=None if optimizer is None else checkpoint.optimizer_tensors(optimizer),
        scaler=None if runtime is None else runtime.scaler_state(),
    )
