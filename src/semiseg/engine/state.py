"""Says of run directories how far they are: running, finished, stopped or failed.

It reads files only, and does not import torch: `semiseg runs` shows many runs at once.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from semiseg.engine import lock
from semiseg.errors import UserError, listed
from semiseg.recipe import file as recipe_file
from semiseg.runs import Run

Kind = Literal["running", "finished", "stopped", "failed", "broken"]

_FILES = ("config.yaml", "environment.json", "events.jsonl", "hardness.csv", "metrics.jsonl", "unlabeled.txt")
_SHOWN = 5  # runs in a message
_ENOUGH = 3  # of these files make a folder a run; other programs write a config.yaml or a metrics.jsonl, too
_BY_SIGNAL = ": stopped by SIG"  # in the reason of an event "stopped" (engine/train.py)
_ENDS = ("started", "resumed", "stopped", "failed", "not finite")  # events that say whether a run goes on


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        run: its directory.
        kind: running: a process trains it. finished: trained and evaluated to its end. stopped: the same command goes
            on with it. failed: an error or a killed process ended it. broken: its files cannot be read.
        why: the reason of `failed` and `broken`; where a run trains that is on another machine.
        method: the name of its method.
        labeled: number of its labeled images.
        images: number of all its training images.
        steps: optimizer steps of the recipe.
        done: completed steps, as far as they are recorded.
        scores: the scores of each network at the last evaluation, the first network first; empty before it.
        changed: when its records or its events changed last.
    """

    run: Run
    kind: Kind
    why: str = ""
    method: str = ""
    labeled: int = 0
    images: int = 0
    steps: int = 0
    done: int = 0
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changed: datetime | None = None


def opened(run: Run) -> Run:
    """Returns a run after checking that it exists.

    Raises:
        UserError: there is no run in the directory. If it is the folder of a recipe, or a folder of runs, the message
            names the run, or some of the runs.
    """
    path = run.path
    if run.exists() or not path.is_dir():
        return run.open()
    if (path / recipe_file.OF_FOLDER).is_file():
        own = Run(Path("runs") / recipe_file.run_name(path))
        what = f"name its run: {own.path}" if own.exists() else f"train it: semiseg train {shlex.quote(str(path))}"
        raise UserError(f"{path}: is not a run directory, but a folder that init made; {what}")
    inner = [each for depth in ("*", "*/*") for each in path.glob(f"{depth}/config.yaml")]
    if runs := [str(file.parent) for file in sorted(inner) if _is_run(file.parent)]:
        raise UserError(f"{path}: is not a run directory, but a folder of runs; name one of {listed(runs, _SHOWN)}")
    return run.open()


def find(folder: Path) -> Iterator[Run]:
    """Finds the runs in a folder and below it, in the order of their names. It follows links to folders.

    Folders that are no runs are passed over. Nothing is looked for inside a run.
    """
    yield from _below(folder, set())


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Run]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        if _is_run(folder):
            yield Run(folder)
            return
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # a folder that cannot be read
        return
    for path in inner:
        yield from _below(path, seen)


def _is_run(folder: Path) -> bool:
    return sum((folder / name).is_file() for name in _FILES) >= _ENOUGH


def read(run: Run) -> State:
    """Reads the state of a run. A directory that cannot be read has the state `broken`."""
    try:
        return _read(run)
    except UserError as error:
        return State(run, "broken", str(error))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return State(run, "broken", f"{run.path}: is damaged ({type(error).__name__}: {error})")


def _read(run: Run) -> State:
    holder = lock.holder(run)  # first: a run that ends meanwhile has written everything before
    method = str(recipe_file.section(run.config, "method")["name"])
    steps = int(recipe_file.section(run.config, "engine")["steps"])
    labels = run.environment()["labels"]
    newest, last = run.newest("train", "val"), run.last()
    events = [event for event in run.events() if event["event"] in _ENDS]
    kind, why = _kind(holder, events, last is not None and last["step"] >= steps)
    completed = [event["step"] for event in events[-1:] if event["event"] != "not finite"]
    done = max([*completed, newest["step"]] if newest else completed, default=0)
    return State(
        run,
        kind,
        why,
        method,
        labeled=int(labels["labeled"]),
        images=sum(int(labels.get(name, 0)) for name in ("labeled", "pseudo_labeled", "unlabeled")),
        steps=steps,
        done=int(done),
        scores=last.get("networks") or {"": {name: last[name] for name in ("miou", "iou")}} if last else {},
        changed=_changed(run),
    )


def _kind(holder: tuple[lock.Holder, bool] | None, events: list[dict[str, Any]], complete: bool) -> tuple[Kind, str]:
    if holder and holder[1]:
        return "running", "" if holder[0].is_here else f"on {holder[0].host}"
    if complete:
        return "finished", ""
    if holder:
        return "failed", f"{holder[0]} has ended without a word"
    last = events[-1] if events else {"event": "started"}
    if last["event"] == "not finite":
        return "failed", f"the loss of step {last['step']} was {last['loss']}"
    if last["event"] == "failed" or (last["event"] == "stopped" and _BY_SIGNAL not in last["reason"]):
        return "failed", str(last["reason"])
    return "stopped", ""


def _changed(run: Run) -> datetime | None:
    times = [path.stat().st_mtime for name in ("metrics.jsonl", "events.jsonl") if (path := run.path / name).exists()]
    return datetime.fromtimestamp(max(times), UTC).astimezone() if times else None
