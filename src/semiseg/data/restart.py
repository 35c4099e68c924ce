"""A DataLoader whose worker processes may die: new ones take over."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader

from semiseg.data.cache import SHARED, free, megabytes
from semiseg.errors import UserError, first_line

T = TypeVar("T", covariant=True)
OnRestart = Callable[[int, str], None]

_MAX_DEATHS = 3  # worker deaths before the next batch: then new workers do not help


class RestartingLoader(DataLoader[T], Generic[T]):
    """A DataLoader that replaces dead worker processes, and raises a UserError of a worker unchanged."""

    def __init__(self, items: torch.utils.data.Dataset[T], keys: range, on_restart: OnRestart, **options: Any) -> None:
        super().__init__(items, batch_size=None, sampler=keys, worker_init_fn=_init_worker, **options)
        self.keys, self.on_restart, self.options = keys, on_restart, options

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        done, deaths = 0, 0  # items yielded, and restarts since the last one
        rest: DataLoader[T] = self
        batches: Iterator[T] | None = None
        while done < len(self.keys):
            try:
                if batches is None:
                    batches = self._workers_of(rest)  # kept workers may have died since the last item
                item = next(batches)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not _is_death(error):
                    raise
                self._iterator = batches = None
                deaths += 1
                if deaths == _MAX_DEATHS:
                    raise UserError(
                        f"data.workers: loader processes died {deaths} times in a row ({first_line(error)}); "
                        f"if memory is short{_free_of_it()}, use fewer than {self.num_workers}, or 0"
                    ) from error
                self.on_restart(self.keys[done], first_line(error))
                rest = DataLoader(
                    self.dataset, batch_size=None, sampler=self.keys[done:], worker_init_fn=_init_worker, **self.options
                )
                continue
            if isinstance(item, UserError):
                self._iterator = batches = None  # ends the workers now, whoever keeps the error and with it this frame
                raise item
            yield item
            done, deaths = done + 1, 0

    def close(self) -> None:
        """Ends the workers now. The garbage collector alone would leave them running."""
        self._iterator = None

    def _workers_of(self, loader: DataLoader[T]) -> Iterator[T]:
        """Starts workers, without torch's handler of SIGCHLD.

        torch's handler raises an error at any point of the training process as soon as a worker dies. Without it, the
        death is noticed when the worker's next item is fetched.
        """
        if threading.current_thread() is not threading.main_thread() or not loader.num_workers:
            return DataLoader.__iter__(loader)
        before = signal.getsignal(signal.SIGCHLD)
        try:
            return DataLoader.__iter__(loader)
        finally:
            signal.signal(signal.SIGCHLD, before)


def _init_worker(_: int) -> None:
    warnings.filterwarnings("ignore", module="PIL")  # as the command line does; a spawned process starts anew
    # A batch that cannot be sent, e.g. because shared memory is full, would be lost, and the training process would
    # wait for it without end. So the worker ends; that is noticed.
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    sys.excepthook = _say_unless_broken_off
    for signum in (signal.SIGINT, signal.SIGHUP):  # they go to all processes; only the training process acts on them
        signal.signal(signum, signal.SIG_IGN)


def _say_unless_broken_off(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error of a worker's thread as Python does, unless the training process ended while it fetched a batch.

    The thread that hands over the memory of batches calls this. Ctrl-C may end the fetching at any time.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end(error: Exception, item: object) -> NoReturn:
    os._exit(1)


def _is_death(error: Exception) -> bool:
    """Returns whether a worker died: the error is torch's, or the connection broke while a batch was fetched."""
    broken_off = isinstance(error, (ConnectionError, EOFError)) and "in DataLoader worker process" not in str(error)
    return broken_off or "DataLoader worker (pid" in str(error)


def restarting(
    items: torch.utils.data.Dataset[T], keys: range, workers: int, keep_workers: bool, on_restart: OnRestart
) -> RestartingLoader[T]:
    """Makes a loader of the items with these keys. With `keep_workers` its workers live until it is closed."""
    # torch gives each worker one thread, so workers do not slow down the training process more than needed
    return RestartingLoader(
        items,
        keys,
        on_restart,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=keep_workers and workers > 0,
    )


def _free_of_it() -> str:
    short = f" ({SHARED} has {megabytes(free())} free; in a container docker run --shm-size gives it more)"
    return short if SHARED.is_dir() else ""
