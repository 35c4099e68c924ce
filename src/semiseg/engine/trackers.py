"""Shows a training live in TensorBoard, Weights & Biases or MLflow, through Accelerate's trackers.

Their packages are imported only if they are used. Only the first process of a run logs.
"""

import importlib.util
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from semiseg.engine.runtime import Runtime
from semiseg.errors import UserError, first_line
from semiseg.recipe.engine import Tracker
from semiseg.recipe.load import dump
from semiseg.recipe.recipe import Recipe
from semiseg.runs import Run, write_atomically

_PROJECT = "semiseg"  # of Weights & Biases and of MLflow, if the environment names no other
_UNUSUAL = re.compile(r"[^\w\-. :/]")  # MLflow refuses other characters in the name of a curve
_NOT_PLAIN = re.compile(r"[^a-zA-Z0-9_\-. /]")  # and these in the name of a picture

OnLost = Callable[[str, str], None]  # the name of a tracker, and why it shows no more


def check(trackers: Sequence[Tracker] | None) -> None:
    """Checks before a run that the packages of the trackers are installed.

    Raises:
        UserError: one of them is not.
    """
    for name in trackers or ():
        if not _is_installed(name):
            raise UserError(
                f"engine.trackers: the package {name} is not installed; pip install {name}, or leave it out"
            )


class Tracking:
    """A `Reporter` that passes records and pictures on to trackers. Until `start` it has none and does nothing.

    Args:
        run: the run directory. TensorBoard's files go there, and trackers.json, by which a resumed run is known.
        classes: the names of the classes.
        on_lost: called when a tracker fails. It gets no more records, and the training goes on.
    """

    def __init__(self, run: Run, classes: Sequence[str], on_lost: OnLost) -> None:
        self.run, self.classes, self.on_lost = run, list(classes), on_lost
        self.trackers: dict[str, Any] = {}  # Accelerate's trackers by name
        self.without_pictures: set[str] = set()  # trackers that failed to show one
        self.told = 0  # the newest step of which a record was shown

    def start(self, recipe: Recipe, runtime: Runtime, done: int) -> None:
        """Starts the trackers, or goes on with them. Only the first process calls this.

        Args:
            recipe: `engine.trackers` names them; None: TensorBoard if it is installed.
            runtime: gives Accelerate's trackers.
            done: number of completed steps. TensorBoard forgets what it was told of later ones.

        Raises:
            UserError: a tracker that the recipe names cannot be started.
        """
        wanted = recipe.engine.trackers
        default: Sequence[Tracker] = ("tensorboard",) if _is_installed("tensorboard") else ()
        named = default if wanted is None else wanted
        known = _known(self.run) if done else {}
        for name in named:
            ids = known.setdefault(name, {})
            try:
                self.trackers[name] = _START[name](recipe, self.run, runtime, done, ids)
            except Exception as error:
                if wanted is not None:
                    raise UserError(
                        f"engine.trackers: {name} cannot be started ({first_line(error)}); correct this, or leave it "
                        "out"
                    ) from error
                self.on_lost(name, first_line(error))
        if ids_of := {name: ids for name, ids in known.items() if ids}:
            write_atomically(self.run.path / "trackers.json", json.dumps(ids_of, indent=2) + "\n")

    @property
    def shows_pictures(self) -> bool:
        """Returns whether a tracker shows pictures."""
        return bool(self.trackers.keys() - self.without_pictures)

    def on_step(self, record: dict[str, Any]) -> None:
        """Does nothing: each record is shown, not each step."""

    def on_train(self, record: dict[str, Any]) -> None:
        """Shows the numbers of a training record."""
        self._log(_train(record, self.classes), record["step"])

    def on_evaluation(self, done: int, total: int) -> None:
        """Does nothing."""

    def on_scores(self, record: dict[str, Any]) -> None:
        """Shows the scores of an evaluation, those of each class, too."""
        self._log(_scores(record, self.classes), record["step"])

    def on_event(self, event: dict[str, Any]) -> None:
        """Does nothing."""

    def pictures(self, done: int, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Shows pictures by name, after `done` completed steps.

        A tracker that fails here gets no more pictures, but still its curves: MLflow stores pictures elsewhere.
        """
        for kind in [name for name in self.trackers if name not in self.without_pictures]:
            try:
                for name, picture in pictures.items():
                    _show(kind, self.trackers[kind], f"predictions/{name}", picture, done)
            except Exception as error:
                self.without_pictures.add(kind)
                self.on_lost(f"{kind} (pictures)", first_line(error))

    def complete(self, done: int) -> None:
        """Says that everything of a step was shown.

        W&B keeps a step to itself until it hears of a later one, so a process that is killed would take the step along.
        """
        if self.told == done:
            self._each(lambda kind, tracker: tracker.log({}, step=done, commit=True) if kind == "wandb" else None)

    def close(self) -> None:
        """Ends the trackers, so that they show everything that they were told."""
        self._each(lambda kind, tracker: tracker.finish())
        self.trackers.clear()

    def _log(self, values: Iterator[tuple[str, Any]], step: int) -> None:
        known = {_usual(name): float(value) for name, value in values if isinstance(value, (int, float))}
        self._each(lambda kind, tracker: tracker.log(known, step=step))
        self.told = step

    def _each(self, tell: Callable[[str, Any], None]) -> None:
        for name, tracker in [*self.trackers.items()]:
            try:
                tell(name, tracker)
            except Exception as error:  # a server that is gone ends no training
                self.trackers.pop(name, None)
                self.on_lost(name, first_line(error))


def _train(record: dict[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the curves of a training record."""
    for key, value in record.items():
        if key not in ("kind", "step", "pseudo_shares"):
            yield f"train/{key}", value
    for name, share in zip(classes, record.get("pseudo_shares", ()), strict=False):
        yield f"pseudo-label share/{name}", share


def _scores(record: dict[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the curves of a validation record. Those of the first network have no name of a network."""
    others = [*record.get("networks", {}).items()][1:]
    for network, scores in [("", record), *((f" {name}", scores) for name, scores in others)]:
        yield f"val/miou{network}", scores["miou"]
        yield f"val/accuracy{network}", scores["accuracy"]
        for name, iou in zip(classes, scores["iou"], strict=True):
            yield f"iou{network}/{name}", iou
    quality = record.get("pseudo_labels", {})
    for key in ("kept", "accuracy"):
        for threshold, value in zip(quality.get("thresholds", ()), quality.get(key, ()), strict=True):
            yield f"pseudo-labels/{key} at {threshold:g}", value


def _usual(name: str) -> str:
    """Replaces what MLflow does not allow in a name. Names that would become alike stay different.

    Example:
        >>> _usual("iou/traffic light"), _usual("iou/(sky)"), _usual("iou/[sky]")
        ('iou/traffic light', 'iou/_x28sky_x29', 'iou/_x5bsky_x5d')
    """
    return _UNUSUAL.sub(_code, name)


def _plain(name: str) -> str:
    """Replaces what MLflow does not allow in the name of a picture.

    Example:
        >>> _plain("predictions/a:b"), _plain("predictions/Straße")
        ('predictions/a_x3ab', 'predictions/Stra_xdfe')
    """
    return _NOT_PLAIN.sub(_code, name)


def _code(found: re.Match[str]) -> str:
    return f"_x{ord(found[0]):x}"


def _show(kind: str, tracker: Any, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
    tag = _usual(name)
    if kind == "tensorboard":
        tracker.log_images({tag: picture[None]}, step=step, dataformats="NHWC")
    elif kind == "mlflow":  # Accelerate's tracker of MLflow has no pictures
        importlib.import_module("mlflow").log_image(picture, key=_plain(name), step=step)
    else:
        tracker.log_images({tag: [picture]}, step=step)


def _tensorboard(recipe: Recipe, run: Run, runtime: Runtime, done: int, known: dict[str, str]) -> Any:
    tracker = runtime.tracker("tensorboard", "tensorboard", run.path, {"purge_step": done + 1})
    if done == 0:
        tracker.log(
            {"recipe": "".join(f"    {line}\n" for line in dump(recipe).splitlines())}, step=0
        )  # Markdown: code
    return tracker


def _wandb(recipe: Recipe, run: Run, runtime: Runtime, done: int, known: dict[str, str]) -> Any:
    number = known.setdefault("id", uuid.uuid4().hex[:12])
    settings = {
        "id": number,
        "resume": "allow",
        "name": run.path.resolve().name,
        "dir": str(run.path),
        "config": recipe.to_dict(),
    }
    return runtime.tracker("wandb", os.environ.get("WANDB_PROJECT", _PROJECT), run.path, settings)


class _Continued:
    """MLflow's tracker of a resumed run. It leaves out the steps that were shown before: MLflow would show them twice.

    Args:
        tracker: Accelerate's tracker.
        run_id: the id of its run.
    """

    def __init__(self, tracker: Any, run_id: str) -> None:
        self.tracker = tracker
        client = importlib.import_module("mlflow").MlflowClient()
        self.shown = {
            curve: max((value.step for value in client.get_metric_history(run_id, curve)), default=0)
            for curve in ("train/loss", "val/miou")  # one of a training record, and one of a validation record
        }

    def log(self, values: Mapping[str, float], step: int) -> None:
        if all(step > shown for curve, shown in self.shown.items() if curve in values):
            self.tracker.log(values, step=step)

    def finish(self) -> None:
        self.tracker.finish()


def _mlflow(recipe: Recipe, run: Run, runtime: Runtime, done: int, known: dict[str, str]) -> Any:
    settings = {"run_id": known.get("run_id"), "run_name": run.path.resolve().name}
    tracker = runtime.tracker("mlflow", _PROJECT, run.path, settings)
    if "run_id" in known:
        return _Continued(tracker, known["run_id"])
    known["run_id"] = tracker.tracker.info.run_id
    sections = recipe.to_dict().items()
    tracker.store_init_configuration(
        {f"{section}.{key}": value for section, values in sections for key, value in values.items()}
    )
    return tracker


_START = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _known(run: Run) -> dict[str, dict[str, str]]:
    """Returns by which ids the trackers know this run."""
    try:
        return json.loads((run.path / "trackers.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run.path / 'trackers.json'}: cannot be read ({first_line(error)}); without it trackers show a new run"
        ) from error


def _is_installed(name: str) -> bool:
    """Returns whether a package is installed. A folder of that name in the current directory is none."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None
