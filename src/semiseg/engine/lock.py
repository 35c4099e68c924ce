"""Lets only one command at a time train in a run directory, or in a folder of `compare` (docs/decisions/0009).

The command locks the file `train.lock` in the directory (a POSIX lock) and writes into it who it is. Linux releases the
lock when the process ends, however it ends; a process that ends in order also removes the file. Some network file
systems have no such locks, or keep them on one machine. So a file that was left is not believed blindly: its process is
looked up on this machine, and a process on another machine is expected to touch the file every few seconds.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from semiseg.errors import UserError
from semiseg.files import writing
from semiseg.runs import Run

_BEAT_S = 3.0  # between two touches
_WATCH_S = 10.0  # how long the file of another machine is watched
_FRESH_S = 60.0  # how old the last touch from another machine may be, on two clocks that differ a little

# Files that this process has locked, by device and inode: opening and closing such a file again would release its lock.
_held: dict[tuple[int, int], "Holder"] = {}


@dataclass(frozen=True)
class Holder:
    """The process that trains in a run directory.

    Attributes:
        host: the name of its machine.
        process: its id there.
        born: when it was started, as Linux counts; another process that has the same id later has another value.
        since: when it locked the directory, for users.
    """

    host: str
    process: int
    born: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (since {self.since})"

    @property
    def is_here(self) -> bool:
        """Returns whether it is a process of this machine."""
        return self.host == socket.gethostname()

    def lives(self, file: int) -> bool:
        """Returns whether this process still runs. For one on another machine this takes some seconds."""
        if self.is_here:
            return _born(self.process) == self.born
        touched, end = os.fstat(file).st_mtime_ns, time.monotonic() + _WATCH_S
        while os.fstat(file).st_mtime_ns == touched:
            if time.monotonic() > end:
                return False
            time.sleep(_WATCH_S / 50)
        return True


class Lock:
    """The right to train in a run directory. As a context it releases the lock at its end, if it was acquired.

    Args:
        run: the run directory. `acquire` makes it.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.file: int | None = None  # closing another descriptor of the same file would release its lock, too
        self.released = threading.Event()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.file is not None:
            self.released.set()
            with suppress(OSError):
                self.run.lock.unlink()  # before the lock is released: later it may be somebody else's
            _held.pop(_identity(os.fstat(self.file)), None)
            os.close(self.file)
            self.file = None

    def acquire(self) -> Holder | None:
        """Locks the run directory. Returns the process that held it before, if it ended without releasing it.

        Raises:
            UserError: another process trains in this directory, or the lock cannot be written.
        """
        path = self.run.lock
        with writing(self.run.path):
            self.run.path.mkdir(parents=True, exist_ok=True)
            file, free = _open(path)
        before = _read(file)
        if not free or (before and before.lives(file)):
            os.close(file)
            raise UserError(
                f"{self.run.path}: {before or 'another process'} trains here; wait for it or stop it, or name another "
                f"directory with --out (only if it is gone for sure: delete {path})"
            )
        self.file = file
        now = datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="seconds")
        holder = Holder(socket.gethostname(), os.getpid(), _born(os.getpid()), now)
        with writing(path):
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(asdict(holder)).encode() + b"\n", 0)
        _held[_identity(os.fstat(file))] = holder
        threading.Thread(target=_touch, args=(file, self.released), daemon=True).start()
        return before


def holder(run: Run) -> tuple[Holder, bool] | None:
    """Returns who stands in the lock file of a run, and whether it seems to run. None: nobody. It takes no time.

    Of a process on another machine it is known when it touched the file last. Two clocks are compared here, so the
    answer is for users to read; `Lock.acquire` does not rely on it.
    """
    try:
        status = run.lock.stat()
        if own := _held.get(_identity(status)):
            return own, True
        file = os.open(run.lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        found = _read(file)
    finally:
        os.close(file)
    if found is None:
        return None
    if found.is_here:
        return found, _born(found.process) == found.born
    return found, abs(time.time() - status.st_mtime) < _FRESH_S


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open(path: Path) -> tuple[int, bool]:
    """Opens the file or makes it, and tries to lock it. Returns it, and whether nobody else has locked it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return file, False
            return file, True  # a file system without locks: what stands in the file decides
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file, True
        os.close(file)  # its holder has removed it in the meantime


def _read(file: int) -> Holder | None:
    """Returns who stands in the file: nobody if it is new, or if a full disk left it empty."""
    try:
        return Holder(**json.loads(os.pread(file, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _touch(file: int, released: threading.Event) -> None:
    while not released.wait(_BEAT_S):
        with suppress(OSError):
            os.utime(file)


def _born(process: int) -> str:
    """Returns when a process was started; empty if there is no such process, or it has ended."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if Path("/proc/self/stat").exists() else _unknown(process)
    return "" if state in "ZX" else rest[18]  # Z: ended, but its parent has not noticed it yet


def _unknown(process: int) -> str:
    """As `_born`, on systems that do not show when a process was started."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # the process of another user
        pass
    return "unknown"
