"""Handles Ctrl-C and SIGTERM: a run stops after the current step, when everything can be saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class StopRequest:
    """Records whether this process was asked to stop.

    Attributes:
        signum: the first signal that asked for it; 0 if there was none.
        ctrl_c: how often Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.ctrl_c = 0

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Makes SIGTERM and Ctrl-C only record a request, inside this context. A second Ctrl-C raises an exception.

        Only the main thread can handle signals. In another thread the context changes nothing.
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
    """Makes SIGTERM and Ctrl-C end the process at once, inside this context, with one line on stderr.

    It is for times when there is nothing to save. An exception would come late, because imports and checks take long,
    and the code that it passes through might catch it.

    Args:
        advice: the end of the line, after `stopped by SIGTERM`.
        says: whether the line is printed.
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
