"""Reads ahead and writes behind in threads, so that the device does not wait for files."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Reader(Generic[Key, Value]):
    """Calls a function on keys in threads, and yields the results in order.

    Args:
        read: what to call. Its errors are raised when the result is asked for.
        threads: number of threads.
        ahead: number of results that may wait.

    Attributes:
        waited_s: how long the caller has waited for results.
    """

    def __init__(self, read: Callable[[Key], Value], threads: int, ahead: int) -> None:
        self.read, self.threads, self.ahead = read, threads, ahead
        self.waited_s = 0.0

    def __call__(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Callable[[], Value]]]:
        """Yields each key with a function that waits for its result."""
        waiting: deque[tuple[Key, Future[Value]]] = deque()
        pool = ThreadPoolExecutor(self.threads, "semiseg-read")
        try:
            for key in keys:
                waiting.append((key, pool.submit(self.read, key)))
                if len(waiting) > self.ahead:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    def _next(self, waiting: deque[tuple[Key, Future[Value]]]) -> tuple[Key, Callable[[], Value]]:
        key, future = waiting.popleft()

        def result() -> Value:
            start = time.perf_counter()
            try:
                return future.result()
            finally:
                self.waited_s += time.perf_counter() - start

        return key, result


class Writer:
    """Calls functions in threads. After one that fails, no further one starts.

    Args:
        threads: number of threads. With one thread functions are called in order.
        behind: number of functions that may wait; `submit` then waits, too.
        on_done: called in the thread of the caller after each function, in order.

    Attributes:
        waited_s: how long the caller has waited for functions.
    """

    def __init__(self, threads: int, behind: int, on_done: Callable[[], None]) -> None:
        self.behind, self.on_done = behind, on_done
        self.waited_s = 0.0
        self.pool = ThreadPoolExecutor(threads, "semiseg-write")
        self.waiting: deque[Future[None]] = deque()
        self.failed = threading.Event()

    def submit(self, work: Callable[[], None]) -> None:
        """Calls a function later. Raises the error of an earlier one."""
        self.waiting.append(self.pool.submit(self._guarded, work))
        while self.waiting and (len(self.waiting) > self.behind or self.waiting[0].done()):
            self._collect()

    def finish(self) -> None:
        """Waits for all functions."""
        while self.waiting:
            self._collect()

    def _collect(self) -> None:
        start = time.perf_counter()
        try:
            self.waiting.popleft().result()
        finally:
            self.waited_s += time.perf_counter() - start
        self.on_done()

    def _guarded(self, work: Callable[[], None]) -> None:
        if self.failed.is_set():
            return
        try:
            work()
        except BaseException:
            self.failed.set()
            raise


@contextmanager
def writing(threads: int, behind: int, on_done: Callable[[], None]) -> Iterator[Writer]:
    """Gives a writer. At the end all its functions are done; if the block fails, those that wait are dropped."""
    writer = Writer(threads, behind, on_done)
    try:
        yield writer
        writer.finish()
    except BaseException:
        writer.failed.set()
        raise
    finally:
        writer.pool.shutdown()
