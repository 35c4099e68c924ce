"""Ctrl-C and SIGTERM: asked to stop, a run stops where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signum: the signal that asked first, 0 for none.
    """

    def __init__(self) -> None:
        self.signum = 0

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """While this is open, SIGTERM and Ctrl-C are requests; a second Ctrl-C is an ordinary one again.

        Python leaves signals to the main thread: in another one nobody listens, and they do what they always did.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {signum: signal.signal(signum, self._ask) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum
