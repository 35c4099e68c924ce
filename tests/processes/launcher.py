"""Starts the processes of a run in a moment: torch is imported once, each of them is a fork.

The fixture `processes` runs this as a script. It reads one JSON object a line and answers with one.
"""

import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scenarios


def start(folder: str, scenario: str, values: dict[str, Any], count: int, agent: bool) -> list[int]:
    """Starts `count` processes that run a scenario, or the agent of torchrun that starts them; returns their ids."""
    if agent:
        return [_fork(lambda: _agent(Path(folder), scenario, values, count))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(lambda rank=rank: _rank(Path(folder), scenario, values, rank, count, port)) for rank in range(count)]


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        os._exit(_code_of(work))
    return pid


def _code_of(work: Callable[[], None]) -> Any:
    """The exit code of a process that does this work."""
    code: Any = 1
    try:
        work()
        code = 0
    except SystemExit as exited:
        code = exited.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _rank(folder: Path, scenario: str, values: dict[str, Any], rank: int, count: int, port: int) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if count > 1:
        os.environ |= {name: str(value) for name, value in where.items()}
    _work(folder, scenario, values)


def _work(folder: Path, scenario: str, values: dict[str, Any]) -> None:
    rank = os.environ.get("RANK", "0")
    _print_to(folder / f"{rank}.out", folder / f"{rank}.err")
    found = getattr(scenarios, scenario)(**values)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def _print_to(*files: Path) -> None:
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)


def _agent(folder: Path, scenario: str, values: dict[str, Any], count: int) -> None:
    """What torchrun does, but that its workers are forks."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _print_to(folder / "agent.out", folder / "agent.err")
    config = LaunchConfig(
        1, 1, count, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", start_method="fork", max_restarts=0
    )
    try:
        elastic_launch(config, _worker)(folder, scenario, values)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error


def _worker(folder: Path, scenario: str, values: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what the agent does
    code = _code_of(lambda: _work(folder, scenario, values))
    if code:
        os._exit(code)  # else the agent waits for what this returns


def wait(pids: list[int], seconds: float) -> list[tuple[int, float]]:
    """How each process ended, as subprocess has it, and when. What is left after `seconds` is killed."""
    ended: dict[int, tuple[int, float]] = {}
    until = time.monotonic() + seconds
    while len(ended) < len(pids):
        for pid in set(pids) - ended.keys():
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = (os.waitstatus_to_exitcode(status), time.monotonic())
        time.sleep(0.01)
    return [ended[pid] for pid in pids]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        if order["order"] == "leave":  # the end of its input may not come: forks of the tests have it open, too
            break
        print(json.dumps({"start": start, "wait": wait}[order.pop("order")](**order)), file=answers, flush=True)
    os._exit(0)  # tidying up after torch takes seconds
