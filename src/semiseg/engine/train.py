"""Runs the training loop."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from semiseg.data.dataset import Dataset
from semiseg.engine import checkpoint, pseudo_quality
from semiseg.engine.advice import untried
from semiseg.engine.evaluate import evaluate
from semiseg.engine.gallery import Gallery
from semiseg.engine.log import Log, NotFiniteError
from semiseg.engine.reporter import Reporter, Several, Silent
from semiseg.engine.runtime import Runtime
from semiseg.engine.saving import Saver
from semiseg.engine.setup import Setup
from semiseg.engine.signals import StopRequest
from semiseg.engine.trackers import Tracking
from semiseg.errors import Interrupted, UserError, first_line
from semiseg.method import predictor
from semiseg.recipe.recipe import Recipe
from semiseg.runs import Run
from semiseg.types import LoadedBatch


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
        _Training(Setup(recipe, dataset, runtime), run, reporter or Silent(), request).run_to_the_end()


_PICTURES = 4  # of an evaluation that trackers show


class _Training:
    """The state of a run in training."""

    def __init__(self, setup: Setup, run: Run, reporter: Reporter, request: StopRequest) -> None:
        self.setup, self.run, self.request = setup, run, request
        self.recipe, self.dataset, self.runtime = setup.recipe, setup.dataset, setup.runtime
        self.method, self.stepper = setup.method, setup.stepper
        newest = checkpoint.newest(run.checkpoints)
        self.saver = Saver(setup, run)
        self.done, self.evaluated = self.saver.resume(newest)  # completed steps: now, and at the last evaluation
        self.tracking = Tracking(run, self.dataset.classes.names, self._on_lost)
        self.reporter = Several(reporter, self.tracking) if self.runtime.is_main else Silent()
        left = untried(self.recipe.to_dict())
        self.log = Log(run, self.runtime, self.dataset, self.reporter, setup.images_per_step, self.done, left)
        if newest is not None:
            self.log.restore(newest)
        self.stepper.optimizers.set_lr(max(self.done - 1, 0), self.recipe.engine.steps)
        self.between_steps = True

    def run_to_the_end(self) -> None:
        steps = range(self.done, self.recipe.engine.steps)
        if self.runtime.is_main and self.evaluated < steps.stop:
            self.tracking.start(self.recipe, self.runtime, self.done)
        batches = iter(self.setup.train_loader(steps, lambda step, reason: self._on_restart(step, reason)))
        self.val = self.setup.eval_loader(self.dataset.val, lambda _, reason: self._on_restart(self.done, reason))
        self.measured = pseudo_quality.samples(self.dataset, self.recipe.engine.pseudo_label_images)
        self.stepper.start()
        if self.evaluated < steps.stop:
            self.log.event("resumed" if self.done else "started", self.done, **self.runtime.describe())
        with closing(self.tracking), closing(self.val), self._saving_on_error():
            if self.done:
                self._finish_step()  # the interruption may have come before the last step was finished
            for step in steps:
                loaded = self._next(batches)
                self.between_steps = False
                losses = self.stepper.take(step, loaded)
                self.log.step(step + 1, losses, loaded, self.request.signum != 0, self.stepper.pseudo_shares)
                self.done, self.between_steps = step + 1, True
                self._stop_if_asked()
                self._finish_step()
                self._stop_if_asked()

    def _finish_step(self) -> None:
        """Writes the record, evaluates and saves a checkpoint if they are due. A second call changes nothing."""
        cfg, done = self.recipe.engine, self.done
        last = done == cfg.steps
        evaluates = last or done % cfg.evaluation_interval == 0
        saves = cfg.saves_after(done)
        if evaluates or saves or done % cfg.log_every == 0:
            self.log.flush(done, self.stepper.optimizers.lr)
        if evaluates and self.evaluated < done:
            self._evaluate()
            self.evaluated = done
            self.log.advise(done, cfg.steps)
        self.tracking.complete(done)
        if evaluates:
            self.saver.save_if_best(done, self.log)
        if saves:
            self.saver.save(done, self.log)

    def _evaluate(self) -> None:
        networks, num_classes, config = self.method.evaluated(), len(self.dataset.classes), self.recipe.engine.evaluate
        gallery = Gallery(self.dataset, self.recipe.engine.pictures, self.runtime)
        scores = evaluate(networks, self.val, num_classes, config, self.runtime, self._on_image, gallery.add)
        quality = None
        if self.measured:
            items = self.setup.eval_loader(self.measured, workers=0)
            best = predictor(self.method)
            quality = pseudo_quality.measure(best, items, num_classes, config, self.runtime, self._on_measured)
        self.log.scores(self.done, scores, quality)
        gallery.write(self.run, self.done, scores, last=self.done == self.recipe.engine.steps)
        if self.tracking.shows_pictures:
            self.tracking.pictures(self.done, gallery.overlays(_PICTURES))

    def _on_lost(self, tracker: str, reason: str) -> None:
        self.log.event("tracker lost", self.done, tracker=tracker, reason=reason)

    def _next(self, batches: Iterator[LoadedBatch]) -> LoadedBatch:
        with self.log.waiting(), self._stopping_at_once():
            loaded = next(batches)
        return loaded.to(self.runtime.device)

    def _on_restart(self, step: int, reason: str) -> None:
        self.log.event("loader restarted", step, reason=reason)

    def _on_image(self, images: int, first: int = 0, last: int | None = None) -> None:
        done = min(first + images * self.runtime.world_size, last or len(self.dataset.val))
        self.reporter.on_evaluation(done, len(self.dataset.val) + len(self.measured))
        if self.request.signum:  # do not wait for the other processes: an evaluation takes long
            raise self._interrupted()

    def _on_measured(self, images: int) -> None:
        before = len(self.dataset.val)
        self._on_image(images, before, before + len(self.measured))

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
            between = self.between_steps and self.done > 0
            saved = self.saver.save_after_error(self.done, self.log, error) if between else ""
            if not between and not isinstance(error, Interrupted):
                with suppress(UserError):  # perhaps events.jsonl cannot be written
                    self.log.event("failed", self.done, reason=first_line(error))
            if isinstance(error, UserError):
                raise UserError(f"{self.runtime.name}{error}{saved}") from error
            if isinstance(error, Interrupted):
                raise Interrupted(f"{error}{saved}", error.signum) from error
            raise
