"""Saves a run in training, and resumes it."""

from contextlib import suppress

import torch

from semiseg.engine import checkpoint
from semiseg.engine.log import Log, NotFiniteError
from semiseg.engine.setup import Setup
from semiseg.errors import Interrupted, UserError
from semiseg.method import predictor
from semiseg.runs import Run


class Saver:
    """Saves the checkpoints of a run, and loads the newest one.

    Args:
        setup: the method and the optimizers.
        run: the run directory.
    """

    def __init__(self, setup: Setup, run: Run) -> None:
        self.setup, self.run = setup, run
        self.method, self.optimizers, self.runtime = setup.method, setup.stepper.optimizers, setup.runtime

    def resume(self, newest: checkpoint.Checkpoint | None) -> tuple[int, int]:
        """Loads a checkpoint, if any, and cuts off what the run wrote after it.

        Returns:
            The number of completed steps, and this number at the last evaluation.

        Raises:
            UserError: the processes do not see the same checkpoint, or it is from another network.
        """
        runtime, done = self.runtime, 0
        if newest is not None:
            done = newest.step
            newest.load_model(self.method)
            self.optimizers.load(self.method, newest.optimizer_state())
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

    def save(self, done: int, log: Log) -> None:
        """Saves a checkpoint from which the run can resume, and deletes old ones. Only the first process writes."""
        if self.runtime.is_main:
            self._write(done, log, resumable=True)
            engine = self.setup.recipe.engine
            checkpoint.prune(self.run.checkpoints, engine.keep_checkpoints, engine.keep_every)

    def save_if_best(self, done: int, log: Log) -> None:
        """Saves a checkpoint without the state of the optimizers if the last evaluation is the best one."""
        if self.runtime.is_main and (best := self.run.best()) and best["step"] == done:
            self._write(done, log, resumable=False)

    def save_after_error(self, done: int, log: Log, error: BaseException) -> str:
        """Saves the completed steps. Returns the end of the error message, which says whether they are saved."""
        interrupted = isinstance(error, Interrupted)  # then all processes have completed the same step
        saved = f"{', which' if interrupted else f'; step {done}'} is saved; the same command goes on"
        if not self.runtime.is_main:
            return saved if interrupted else ""
        try:
            self.run.rewind(log.hardness_written)  # the last line may be incomplete
            log.write_hardness()
            self.save(done, log)
        except (UserError, OSError) as second:
            said_already = str(second) in str(error)
            return f"; step {done} " + ("is not saved" if said_already else f"cannot be saved: {second}")
        with suppress(UserError):  # perhaps events.jsonl cannot be written either
            log.event("stopped", done, reason=str(error))
        return saved

    def _write(self, done: int, log: Log, resumable: bool) -> None:
        floats = [value for value in self.method.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in floats]).all():
            log.event("failed", done, reason="weights are not finite")
            raise NotFiniteError(
                f"{self.run.path}: weights are not finite after step {done}; lower optim.lr, or "
                "use engine.precision: bf16 or fp32; earlier checkpoints are kept"
            )
        self.run.sync()
        checkpoint.save(
            self.run.checkpoints,
            step=done,
            recipe=self.setup.recipe.to_dict(),
            classes=self.setup.dataset.classes,
            normalization=predictor(self.method)[0].normalization,
            predictor=self._names_of_predictors(),
            model=self.method.state_dict(),
            optimizer=self.optimizers.tensors(self.method) if resumable else None,
            scaler=self.runtime.scaler_state(),
            pending=log.pending(),
            skipped=log.skipped,
            seconds=log.seconds(),
            waited=log.waited if log.steps else 0.0,
        )

    def _names_of_predictors(self) -> list[str]:
        names = {module: name for name, module in self.method.named_modules()}
        return [names[network] for network in predictor(self.method)]
