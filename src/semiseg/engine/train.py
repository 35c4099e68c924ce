"""Runs the training loop."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import torch

from semiseg.data.dataset import Dataset
from semiseg.data.loader import eval_loader, train_loader
from semiseg.engine import checkpoint
from semiseg.engine.evaluate import evaluate
from semiseg.engine.log import Log, NotFiniteError
from semiseg.engine.recipe import Recipe, build_method
from semiseg.engine.reporter import Reporter, Silent
from semiseg.engine.runtime import Runtime
from semiseg.engine.signals import StopRequest
from semiseg.engine.step import Stepper
from semiseg.errors import Interrupted, UserError
from semiseg.method import predictor
from semiseg.runs import Run


def train(
    recipe: Recipe, dataset: Dataset, run: Run, reporter: Reporter | None = None, runtime: Runtime | None = None
) -> None:
    """Trains to the end of the recipe. If the run has a checkpoint, training continues from the newest one.

    Every random decision depends only on seed and step. So a resumed run takes the same steps and writes the same
    records as an uninterrupted run. `Run.start` must have made the run directory.

    Args:
        recipe: the recipe of the run.
        dataset: the dataset of the recipe.
        run: the run directory.
        reporter: shows the progress. None: nothing is shown.
        runtime: where to compute. None: as the recipe says.

    Raises:
        UserError: an image cannot be read, or a file cannot be written. The completed steps are saved if possible.
        NotFiniteError: the loss is not a finite number. Earlier checkpoints are kept.
        Interrupted: the process received Ctrl-C, SIGTERM or SIGHUP. The completed steps are saved.
    """
    runtime = runtime or Runtime(recipe.engine.device, recipe.engine.precision)
    with StopRequest().listening() as request, runtime.together():
        _Training(recipe, dataset, run, reporter or Silent(), runtime, request).run_to_the_end()


class _Training:
    """The state of a run in training."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        run: Run,
        reporter: Reporter,
        runtime: Runtime,
        request: StopRequest,
    ) -> None:
        self.recipe, self.dataset, self.run, self.runtime, self.request = recipe, dataset, run, runtime, request
        cfg = recipe.engine
        method = build_method(recipe, dataset.classes)
        self.method = method.to(self.runtime.device).to(memory_format=torch.channels_last)
        self.stepper = Stepper(recipe, self.method, self.runtime)
        self.reporter = reporter if self.runtime.is_main else Silent()
        newest = checkpoint.newest(run.checkpoints)
        self.done, self.evaluated = self._resume(newest)  # numbers of completed steps: now, and at the last evaluation
        images_per_step = cfg.batch_size * (2 if method.views.unlabeled else 1)
        self.log = Log(run, self.runtime, dataset, self.reporter, images_per_step, self.done)
        if newest is not None:
            self.log.restore(newest)
        self.stepper.optimizers.set_lr(max(self.done - 1, 0), cfg.steps)
        self.between_steps = True

    def run_to_the_end(self) -> None:
        recipe, cfg, runtime = self.recipe, self.recipe.engine, self.runtime
        batches = iter(
            train_loader(
                self.dataset,
                recipe.data,
                batch_size=cfg.batch_size // runtime.world_size,
                unlabeled=self.method.views.unlabeled,
                seed=cfg.seed,
                start=self.done,
                num_steps=cfg.steps,
                rank=runtime.rank,
                world_size=runtime.world_size,
                on_restart=lambda step, reason: self.log.event("loader restarted", step, reason=reason),
            )
        )
        self.val = eval_loader(
            self.dataset.val,
            self.dataset,
            recipe.data,
            rank=runtime.rank,
            world_size=runtime.world_size,
            on_restart=lambda _, reason: self.log.event("loader restarted", self.done, reason=reason),
        )
        self.stepper.start()
        if self.evaluated < cfg.steps:
            self.log.event("resumed" if self.done else "started", self.done, **runtime.describe())
        with closing(self.val), self._saving_on_error():
            if self.done:
                self._finish_step()  # the interruption may have come before the last step was finished
            for step in range(self.done, cfg.steps):
                with self.log.waiting(), self._stopping_at_once():
                    loaded = next(batches)
                loaded = loaded.to(runtime.device)
                self.between_steps = False
                losses = self.stepper.take(step, loaded)
                self.log.step(step + 1, losses, loaded, self.request.signum != 0)
                self.done, self.between_steps = step + 1, True
                self._stop_if_asked()
                self._finish_step()
                self._stop_if_asked()

    def _finish_step(self) -> None:
        """Writes the record, evaluates and saves a checkpoint if they are due. A second call changes nothing."""
        cfg, done = self.recipe.engine, self.done
        last = done == cfg.steps
        evaluates = last or done % cfg.evaluation_interval == 0
        saves = last or done % cfg.checkpoint_interval == 0
        if evaluates or saves or done % cfg.log_every == 0:
            self.log.flush(done, self.stepper.optimizers.lr)
        if evaluates and self.evaluated < done:
            networks, num_classes = self.method.evaluated(), len(self.dataset.classes)
            self.log.scores(done, evaluate(networks, self.val, num_classes, cfg.evaluate, self.runtime, self._on_image))
            self.evaluated = done
        if evaluates and self.runtime.is_main and (best := self.run.best()) and best["step"] == done:
            self._save(resumable=False)
        if saves and self.runtime.is_main:
            self._save()
            checkpoint.prune(self.run.checkpoints, cfg.keep_checkpoints)

    def _on_image(self, images: int) -> None:
        total = len(self.dataset.val)
        self.reporter.on_evaluation(min(images * self.runtime.world_size, total), total)
        if self.request.signum:  # do not wait for the other processes: an evaluation takes long
            raise self._interrupted()

    def _stop_if_asked(self) -> None:
        if self.log.stop:
            raise self._interrupted()

    @contextmanager
    def _stopping_at_once(self) -> Iterator[None]:
        """Lets a signal end the wait for a batch, which may last. Several processes stop together, after a step."""
        if self.runtime.world_size > 1:
            yield
            return
        try:
            with self.request.at_once():
                yield
        except KeyboardInterrupt:
            if self.request.ctrl_c > 1:
                raise
            raise self._interrupted() from None

    def _interrupted(self) -> Interrupted:
        signum = self.request.signum or signal.SIGTERM  # 0: another process was asked to stop
        return Interrupted(f"{self.run.path}: stopped by {signal.Signals(signum).name} after step {self.done}", signum)

    @contextmanager
    def _saving_on_error(self) -> Iterator[None]:
        """Saves the completed steps if an error or a signal ends the run between two steps."""
        try:
            with self.runtime.together():
                yield
        except NotFiniteError:
            raise
        except (Exception, Interrupted) as error:
            saved = self._save_completed(error)
            if isinstance(error, UserError):
                raise UserError(f"{self.runtime.name}{error}{saved}") from error
            if isinstance(error, Interrupted):
                raise Interrupted(f"{error}{saved}", error.signum) from error
            raise

    def _save_completed(self, error: BaseException) -> str:
        """Saves the completed steps. Returns the end of the error message, which says whether they are saved."""
        if not self.between_steps or self.done == 0:
            return ""
        interrupted = isinstance(error, Interrupted)  # then all processes have completed the same step
        saved = f"{', which' if interrupted else f'; step {self.done}'} is saved; the same command goes on"
        if not self.runtime.is_main:
            return saved if interrupted else ""
        try:
            self.run.rewind(self.log.hardness_written)  # the last line may be incomplete
            self.log.write_hardness()
            self._save()
            checkpoint.prune(self.run.checkpoints, self.recipe.engine.keep_checkpoints)
        except (UserError, OSError) as second:
            said_already = str(second) in str(error)
            return f"; step {self.done} " + ("is not saved" if said_already else f"cannot be saved: {second}")
        with suppress(UserError):  # perhaps events.jsonl cannot be written either
            self.log.event("stopped", self.done, reason=str(error))
        return saved

    def _resume(self, newest: checkpoint.Checkpoint | None) -> tuple[int, int]:
        """Loads the newest checkpoint, if any. Returns the numbers of completed steps: now, and when last evaluated."""
        runtime = self.runtime
        done = 0
        if newest is not None:
            done = newest.step
            newest.load_model(self.method)
            self.stepper.optimizers.load(self.method, newest.optimizer_state())
            runtime.load_scaler_state(newest.scaler)
        if runtime.gather_lists([done]) != [done] * runtime.world_size:
            raise UserError(
                f"{self.run.path}: not every process sees the checkpoint of step {done}; the run directory must be on "
                "a file system that all machines share"
            )
        evaluated = 0
        if runtime.is_main:
            self.run.rewind(done)
            checkpoint.rewind(self.run.checkpoints, done)
            evaluated = record["step"] if (record := self.run.last()) else 0
        return done, runtime.gather_lists([evaluated])[0]

    def _save(self, resumable: bool = True) -> None:
        """Saves a checkpoint: one that a run can resume from, or the best one, which has no optimizer state.

        Raises:
            NotFiniteError: a weight is not a finite number.
        """
        floats = [value for value in self.method.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in floats]).all():
            raise NotFiniteError(
                f"{self.run.path}: weights are not finite after step {self.done}; lower optim.lr, or "
                "use engine.precision: bf16 or fp32; earlier checkpoints are kept"
            )
        self.run.sync()
        checkpoint.save(
            self.run.checkpoints,
            step=self.done,
            recipe=self.recipe.to_dict(),
            classes=self.dataset.classes,
            normalization=predictor(self.method)[0].normalization,
            predictor=self._names_of_predictors(),
            model=self.method.state_dict(),
            optimizer=self.stepper.optimizers.tensors(self.method) if resumable else None,
            scaler=self.runtime.scaler_state(),
            pending=self.log.pending(),
            skipped=self.log.skipped,
            seconds=self.log.seconds(),
            waited=self.log.waited if self.log.steps else 0.0,
        )

    def _names_of_predictors(self) -> list[str]:
        names = {module: name for name, module in self.method.named_modules()}
        return [names[network] for network in predictor(self.method)]
