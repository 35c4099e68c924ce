"""Asks the process that trains a run to stop: it completes its step, saves a checkpoint and ends."""

import os
import pwd
import signal
import time
from collections.abc import Callable
from pathlib import Path

from semiseg.engine import lock
from semiseg.engine.lock import Holder
from semiseg.errors import UserError
from semiseg.runs import Run

_POLL_S = 0.2


def stop(run: Run, asked: Callable[[Holder], None] = lambda holder: None) -> bool:
    """Asks the training of a run to stop, and waits until it has ended. This takes as long as a step, or longer.

    Args:
        run: the run directory.
        asked: called when the process was asked, before the wait.

    Returns:
        Whether a process trained there.

    Raises:
        UserError: the process is on another machine, belongs to another user, or would not save its work.
    """
    found = lock.holder(run)
    if found is None or not found[1]:
        return False
    holder = found[0]
    if not holder.is_here:
        raise UserError(f"{run.path}: {holder} trains it; give this command on that machine")
    if not _handles(holder.process, signal.SIGTERM):
        raise UserError(
            f"{run.path}: {holder} trains it and does not wait for requests (it is still starting, or it trains in a "
            "thread of a Python program); try again, or stop that program itself"
        )
    try:
        os.kill(holder.process, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UserError(
            f"{run.path}: {holder} trains it and belongs to {_owner(run.lock)}; only this user can stop it"
        ) from error
    asked(holder)
    while lock.holder(run) == (holder, True):
        time.sleep(_POLL_S)
    return True


def _handles(process: int, signum: int) -> bool:
    """Returns whether a process handles a signal. If not, the signal would end it at once."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:  # another system than Linux, or the process has ended
        return True
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), None)
    return caught is None or bool(int(caught, 16) >> (signum - 1) & 1)


def _owner(path: Path) -> str:
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except (KeyError, OSError):
        return "another user"
