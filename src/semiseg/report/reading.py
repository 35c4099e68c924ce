"""Reads run directories for a report: what they recorded, which of them are one recipe with several seeds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.errors import UserError
from semiseg.recipe import file as recipe_file
from semiseg.recipe.file import FREE
from semiseg.report import pictures
from semiseg.report.comparison import rows_of
from semiseg.report.pictures import Pictures
from semiseg.report.series import Points
from semiseg.report.table import class_names
from semiseg.runs import Run, seed_folder


@dataclass(frozen=True)
class Reading:
    """One run, as far as it is.

    Attributes:
        run: the run directory.
        name: its shortest distinct name.
        recipe: the values of its recipe, by section.
        environment: how it was made.
        train: the training records.
        val: the validation records.
        pictures: what its pictures show; None if it has none.
        notes: what a reader of the report must know, one line each.
    """

    run: Run
    name: str
    recipe: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    pictures: Pictures | None
    notes: tuple[str, ...]

    @property
    def done(self) -> int:
        """Returns the number of completed steps, as far as they are recorded."""
        return max([0, *(record["step"] for record in (*self.train[-1:], *self.val[-1:]))])

    @property
    def steps(self) -> int:
        """Returns the number of steps of the whole run."""
        return self.recipe["engine"]["steps"]

    @property
    def seed(self) -> int:
        """Returns the seed."""
        return self.recipe["engine"].get("seed", 0)

    def settings(self) -> dict[str, Any]:
        """Returns all settings, e.g. `optim.lr`."""
        return {f"{section}.{key}": value for section, values in self.recipe.items() for key, value in values.items()}

    def of_train(self, key: str) -> Points:
        """Returns a number of the training records by step; infinite values are not recorded."""
        return {record["step"]: float(record[key]) for record in self.train if _is_number(record.get(key))}

    def of_val(self, value: Callable[[dict[str, Any]], Any]) -> Points:
        """Returns what `value` takes from each validation record, by step; None is left out."""
        found = ((record["step"], value(record)) for record in self.val)
        return {step: float(each) for step, each in found if _is_number(each)}


@dataclass(frozen=True)
class Group:
    """Runs of one recipe with several seeds, or a single run."""

    name: str
    members: tuple[Reading, ...]

    @property
    def first(self) -> Reading:
        """Returns the member that stands for all where only one can be shown, e.g. for pictures."""
        return next((each for each in self.members if each.pictures), self.members[0])


def read(paths: Sequence[Path]) -> list[Group]:
    """Reads the runs below the folders. Runs whose recipes differ in the seed only are one group.

    Raises:
        UserError: a folder has no run, a file is damaged, or two runs have different classes.
    """
    runs = {run.path.resolve(): run for members in rows_of(paths).values() for run in members}
    readings = [_read(run, name) for run, name in zip(runs.values(), _names([*runs]), strict=True)]
    for other in readings[1:]:
        if class_names(other.run) != class_names(readings[0].run):
            raise UserError(
                f"{other.run.path}: has other classes ({', '.join(class_names(other.run)[:4])} ...) than "
                f"{readings[0].run.path} ({', '.join(class_names(readings[0].run)[:4])} ...); write a report of each"
            )
    groups: dict[str, list[Reading]] = {}
    for each in readings:
        kept = {key: value for key, value in each.settings().items() if key not in ("engine.seed", *FREE)}
        groups.setdefault(json.dumps(kept, sort_keys=True, default=str), []).append(each)
    split = [part for members in groups.values() for part in _one_of_each_seed(members)]
    return [Group(name, tuple(part)) for name, part in zip(_names(_places(split)), split, strict=True)]


def _read(run: Run, name: str) -> Reading:
    recipe, environment, index = recipe_file.read(run.config), run.environment(), pictures.read(run)
    try:
        if not all(isinstance(section, dict) for section in recipe.values()):
            raise TypeError("config.yaml has no sections")
        found = Reading(run, name, recipe, environment, run.metrics("train"), run.metrics("val"), index, ())
        class_names(run), found.settings(), found.seed
        if not isinstance(found.steps, int):
            raise TypeError("engine.steps")
        _check(found)
        return Reading(**{**vars(found), "notes": tuple(_notes(found))})
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run.path}: is no run of semiseg, or is damaged ({type(error).__name__}: {error}); leave it out"
        ) from error


def _check(found: Reading) -> None:
    """Raises an error of Python if a record lacks what every report shows."""
    classes = len(class_names(found.run))
    for record in (*found.train, *found.val):
        record["step"] + 0
    for record in found.val:
        if len(record["iou"]) != classes or not _is_number(record["miou"]):
            raise TypeError(f"step {record['step']}: not one IoU for each of {classes} classes")


def _notes(found: Reading) -> list[str]:
    notes = []
    if found.done < found.steps:
        notes.append(f"not complete: {found.done} of {found.steps} steps are recorded")
    if not found.val:
        notes.append("no evaluation yet")
    elif found.pictures is None and found.recipe["engine"].get("pictures") == 0:
        notes.append("no pictures: engine.pictures is 0")
    elif found.pictures is None:
        notes.append("no pictures: an earlier semiseg made it, or the folder pictures was removed")
    if not any(found.run.checkpoints.glob("*-*")):
        notes.append("no checkpoint")
    return notes


def _names(paths: list[Path]) -> list[str]:
    """Returns for each path as many of its last parts as make it distinct.

    Example:
        >>> _names([Path("/runs/imas/seed-0"), Path("/runs/imas/seed-1"), Path("/runs/gct/seed-0")])
        ['imas/seed-0', 'seed-1', 'gct/seed-0']
    """
    lengths = [1] * len(paths)
    names = [path.name for path in paths]
    while len(set(names)) < len(names):
        for index, path in enumerate(paths):
            if names.count(names[index]) > 1:
                lengths[index] = min(lengths[index] + 1, len(path.parts))
        names = ["/".join(path.parts[-length:]) for path, length in zip(paths, lengths, strict=True)]
    return names


def _one_of_each_seed(members: list[Reading]) -> list[list[Reading]]:
    """Splits runs of one recipe, so that no part has a seed twice."""
    parts: list[list[Reading]] = []
    for each in members:
        part = next((part for part in parts if each.seed not in {other.seed for other in part}), None)
        if part is None:
            parts.append([each])
        else:
            part.append(each)
    return parts


def _places(groups: list[list[Reading]]) -> list[Path]:
    """Returns a folder that names each group: of `NAME/seed-N`, as compare makes them, NAME; else the first member."""
    first = [members[0].run.path.resolve() for members in groups]
    above = [folder.parent if (folder := seed_folder(path)) else path for path in first]
    return [path if above.count(other) > 1 else other for path, other in zip(first, above, strict=True)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
