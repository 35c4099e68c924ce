"""Runs commands in separate processes, injects faults into them, and reads the files of their runs."""

import gc
import importlib
import json
import multiprocessing
import os
import resource
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from semiseg import api, cli  # noqa: F401  (forked processes have it imported)
from semiseg.errors import UserError
from semiseg.models import build
from semiseg.models.build import Network
from semiseg.runs import Run

MEASURED = ("images_per_second", "waited", "peak_memory_mb")
Action = Callable[[], object]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (that of the shell, so 137 for SIGKILL) and what it said."""

    code: int
    out: str
    err: str


class Command:
    """`semiseg <arguments>` in a child process and process group, forked from here: it need not import anything.

    Args:
        arguments: as on the command line.
        prepare: called in the child first, to lay traps there.
    """

    network: ClassVar[Callable[..., Network] | None] = None  # what children train instead of the recipe's

    def __init__(self, arguments: str, prepare: Action = lambda: None) -> None:
        self.streams = [os.pipe(), os.pipe()]
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a process with threads is forked
            self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, prepare)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)  # here and in the child: whoever is first
        for _, write in self.streams:
            os.close(write)

    def _become(self, arguments: str, prepare: Action) -> None:
        """Never returns."""
        code: Any = 1
        try:
            gc.freeze()  # what the parent has is not the child's to close
            os.setpgid(0, 0)
            for number, (_, write) in enumerate(self.streams, 1):
                os.dup2(write, number)
            for ends in self.streams:
                for end in ends:
                    os.close(end)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            sys.argv = ["semiseg", *shlex.split(arguments)]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)
            if self.network and arguments.startswith("train "):
                build.build = self.network
            prepare()
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(code)

    def send(self, signum: int) -> None:
        """A signal to the process alone."""
        os.kill(self.pid, signum)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self, seconds: float = 120) -> Ended:
        """How it ended. Whatever it left running goes too."""
        until(lambda: not self.running(), seconds, lambda: os.killpg(self.pid, signal.SIGKILL))
        with suppress(ProcessLookupError):  # it ended before it had a group of its own
            os.killpg(self.pid, signal.SIGKILL)  # loader processes that it left; the process itself is not reaped yet
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        said = []
        for read, _ in self.streams:
            with os.fdopen(read, encoding="utf-8") as file:
                said.append(file.read())
        return Ended(code if code >= 0 else 128 - code, *said)


def until(condition: Callable[[], object], seconds: float = 60, otherwise: Action = lambda: None) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            otherwise()
            raise AssertionError(f"nothing happened in {seconds} seconds")
        time.sleep(0.002)


def wrap(where: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a function or method, e.g. `semiseg.runs.Run.log`, by what `around` makes of it; for children."""
    parts = where.split(".")
    count = next(n for n in range(len(parts), 0, -1) if _is_module(".".join(parts[:n])))
    target: Any = importlib.import_module(".".join(parts[:count]))
    for name in parts[count:-1]:
        target = getattr(target, name)
    setattr(target, parts[-1], around(getattr(target, parts[-1])))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def at(where: str, call: int, action: Action) -> None:
    """Has `action` happen before the `call`-th call of a function, in this process or in a child."""
    calls = 0

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                action()
            return function(*args, **kwargs)

        return counting

    wrap(where, around)


def signal_itself(signum: int) -> None:
    """Sends a signal to this process, as `kill` would, but at a known moment."""
    os.kill(os.getpid(), signum)


def signal_group(signum: int) -> None:
    """Sends a signal to this process and its loader processes, as Ctrl-C in a terminal does."""
    os.killpg(0, signum)


def die() -> None:
    """Ends this process with SIGKILL: it flushes nothing and cleans nothing up."""
    signal_itself(signal.SIGKILL)


def kill_a_loader_process() -> None:
    """Kills the youngest loader process."""
    youngest = max(multiprocessing.active_children(), key=lambda process: process.pid or 0)
    os.kill(youngest.pid or 0, signal.SIGKILL)


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Has the kernel refuse every write beyond `size` bytes (EFBIG), in the middle, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left_behind(path: Path) -> dict[str, Any]:
    """Reads all files of a run, without events.jsonl, times and memory. Equal runs have equal results here."""
    run = Run(path)
    left: dict[str, Any] = {"hardness.csv": (path / "hardness.csv").read_text(encoding="utf-8")}
    for kind in ("train", "val"):
        left[kind] = [
            {key: value for key, value in record.items() if key not in MEASURED} for record in run.metrics(kind)
        ]
    for folder in sorted(run.checkpoints.iterdir()):
        for file in sorted(folder.iterdir()):
            name = f"{folder.name}/{file.name}"
            if file.suffix == ".json":
                state = json.loads(file.read_text(encoding="utf-8"))
                left[name] = {key: value for key, value in state.items() if key != "recipe"}  # workers may differ
            else:
                left[name] = load_file(file)
    return left


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Lists where the files of two runs differ, even in a single bit."""
    if type(one) is not type(other):
        return [f"{where}: {type(one)} and {type(other)}"]
    if isinstance(one, dict):
        found = [f"{where}: only one has {key}" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            found += differences(one[key], other[key], f"{where}/{key}")
        return found
    if isinstance(one, list) and len(one) == len(other):
        return [
            line for n, pair in enumerate(zip(one, other, strict=True)) for line in differences(*pair, f"{where}[{n}]")
        ]
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and torch.equal(one, other)
        return [] if alike else [f"{where}: tensors differ"]
    return [] if one == other else [f"{where}: {str(one)[:200]!r} and {str(other)[:200]!r}"]


def newest_step(path: Path) -> int:
    """Completed steps of the newest checkpoint, 0 for none. Its tensors are whole and finite, or this fails."""
    folders = sorted((path / "checkpoints").glob("step-*"))
    if not folders:
        return 0
    for file in ("model.safetensors", "optimizer.safetensors"):
        for name, value in load_file(folders[-1] / file).items():
            assert not value.is_floating_point() or value.isfinite().all(), f"{folders[-1]}: {name} is not finite"
    return json.loads((folders[-1] / "state.json").read_text(encoding="utf-8"))["step"]


def steps_logged(path: Path) -> int:
    """The last step that has a training record, 0 for none."""
    try:
        return max((record["step"] for record in Run(path).metrics("train")), default=0)
    except UserError:  # there is no such file yet
        return 0
