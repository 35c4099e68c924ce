"""Groups of processes that train together."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import semiseg


@dataclass(frozen=True)
class Ended:
    """One process of a group: exit code (minus the signal), what it printed and returned, when it ended."""

    code: int | None
    out: str
    err: str
    found: Any
    at: float | None


@pytest.fixture(scope="session")
def environ() -> dict[str, str]:
    """Of processes that tests start: the semiseg that is tested, a thread each, no terminal."""
    paths = [str(Path(semiseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environ = os.environ | {
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    environ.pop("FORCE_COLOR", None)
    return environ


Processes = Callable[..., list[Ended]]


@pytest.fixture(scope="session")
def processes(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """processes(2, "train", ...) -> how the two processes ended that ran this function of scenarios.py together.

    With agent=True the agent of torchrun starts them; how it ended is the last of the list.
    """
    command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
    launcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def ask(**order: Any) -> Any:
        print(json.dumps(order), file=launcher.stdin, flush=True)
        return json.loads(launcher.stdout.readline())

    def processes(count: int, scenario: str, /, agent: bool = False, **values: Any) -> list[Ended]:
        folder = tmp_path_factory.mktemp(scenario)
        pids = ask(order="start", folder=str(folder), scenario=scenario, values=values, count=count, agent=agent)
        ends = ask(order="wait", pids=pids, seconds=120)
        ends = [(None, None)] * count + ends if agent else ends
        return [_ended(folder, str(name), *end) for name, end in zip([*range(count), "agent"], ends, strict=False)]

    yield processes
    print(json.dumps({"order": "leave"}), file=launcher.stdin, flush=True)
    launcher.stdin.close()
    assert launcher.wait(60) == 0
    launcher.stdout.close()


def _ended(folder: Path, name: str, code: int | None, at: float | None) -> Ended:
    found = folder / f"{name}.pickle"
    out, err = ((folder / f"{name}.{kind}").read_text() for kind in ("out", "err"))
    return Ended(code, out, err, pickle.loads(found.read_bytes()) if found.exists() else None, at)


@pytest.fixture(scope="session")
def gentle(recipe: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """gentle("imas", ...) -> a recipe of 20 steps for the small network that rounding errors do not grow in.

    Over its steps, CutMix fires and does not fire, hardness takes many values, and some images are padded.
    """

    def gentle(method: str, engine: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        own = {"threshold": 0.5, "ema_decay": 0.9} if method == "imas" else {}
        every = {"steps": 20, "batch_size": 12, "log_every": 1, "eval_every": 10, "save_every": 10}
        return recipe(
            method,
            data={"crop": 20},
            method=own | settings,
            optim={"lr": 0.005},
            engine=every | (engine or {}),
        )

    return gentle
