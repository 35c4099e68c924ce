"""Handles Ctrl-C, SIGTERM and SIGHUP: a run stops after the current step, when everything can be saved.

SIGHUP comes when the terminal goes away. A process that ignores it from its start on (nohup) goes on ignoring it.
"""

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from semiseg.errors import UserError


class StopRequest:
    """Records whether this process was asked to stop.

    Attributes:
        signum: the first signal that asked for it; 0 if there was none.
        ctrl_c: how often Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.ctrl_c = 0
        self.waits = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Makes these signals only record a request, inside this context. A second Ctrl-C raises an exception.

        Only the main thread can handle signals. In another thread the context changes nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {signum: signal.signal(signum, self._ask) for signum in _stopping()}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Makes the first request raise an exception inside this context, where the process only waits."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        self.ctrl_c += signum == signal.SIGINT
        if signum == signal.SIGHUP:
            _discard_output()
        if self.ctrl_c > 1 or self.waits:
            raise KeyboardInterrupt


def _stopping() -> list[signal.Signals]:
    """Returns the signals that ask a process to stop."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def _discard_output() -> None:
    """Discards what is printed from now on, unless into a file: printing on a lost terminal would be an error."""
    with suppress(OSError):
        if not stat.S_ISREG(os.fstat(1).st_mode):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)


@contextmanager
def leaving_at_once(advice: str = "", says: bool = True) -> Iterator[None]:
    """Makes these signals end the process at once, inside this context, with one line on stderr.

    It is for times when there is nothing to save. An exception would come late, because imports and checks take long,
    and the code that it passes through might catch it. A launcher sends SIGTERM to all processes when one of them
    dies: while a UserError ends a process that prints, it ignores these signals, because its line says more.

    Args:
        advice: the end of the line, after `stopped by SIGTERM`.
        says: whether this process prints; of several, only the first one does.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        if says and isinstance(sys.exception(), UserError):
            return
        if says:
            with suppress(OSError):  # the terminal is gone
                os.write(2, f"semiseg: stopped by {signal.Signals(signum).name}{advice}\n".encode())
        os._exit(128 + signum)

    before = {signum: signal.signal(signum, leave) for signum in _stopping()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
