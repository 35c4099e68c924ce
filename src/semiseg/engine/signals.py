"""Ctrl-C and SIGTERM: asked to stop, a run stops where nothing is lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signum: the signal that asked first, 0 for none.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.ctrl_c = 0

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
        self.signum = self.signum or signum
        self.ctrl_c += signum == signal.SIGINT
        if self.ctrl_c > 1:
            raise KeyboardInterrupt


@contextmanager
def leaving_at_once(advice: str = "", says: bool = True) -> Iterator[None]:
    """While this is open, SIGTERM and Ctrl-C end the process at once, with one line on stderr.

    For times when there is nothing to lose. An exception would be late, since imports and checks take long, and might
    be swallowed on its way out of them.

    Args:
        advice: what follows in the line after `stopped by SIGTERM`.
        says: whether there is a line.
    """

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        if says:
            os.write(2, f"semiseg: stopped by {signal.Signals(signum).name}{advice}\n".encode())
        os._exit(128 + signum)

    before = {signum: signal.signal(signum, leave) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
