"""Compares methods over seeds: means, spread, and the paired difference to the first method.

A row of the comparison is one recipe with several seeds. Two rows with the same seed start from the same weights and
see the same labeled images in the same order, so their difference is taken seed by seed: what the seeds have in common
cancels in the difference. Everything is read from run directories.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.engine.advice import lost_classes
from semiseg.errors import UserError
from semiseg.files import expanded
from semiseg.recipe import file as recipe_file
from semiseg.recipe.file import FREE
from semiseg.report.table import class_names, step_seconds
from semiseg.runs import RESULT_STAGE, Run, seed_folder

# Student's t: 97.5 % of the distribution with 1, 2, ... degrees of freedom lie below these values.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a value over seeds; the deviation of one value is None."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Computes them; None without any value."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def in_percent(self) -> str:
        """Writes a share in percent, e.g. `76.2 ± 1.3`."""
        return f"{100 * self.mean:.1f}" + ("" if self.deviation is None else f" ± {100 * self.deviation:.1f}")


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences and the half width of its 95 % interval (Student's t); None for a single pair."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Interval | None":
        """Computes them; None without any pair.

        Example:
            The standard deviation of 1, 2, 3 is 1, and t is 4.303 with two degrees of freedom.

            >>> found = Interval.of([1.0, 2.0, 3.0])
            >>> found.mean, round(found.half, 3)
            (2.0, 2.484)
        """
        if not differences:
            return None
        if len(differences) == 1:
            return cls(differences[0], None)
        t = _T[min(len(differences) - 2, len(_T) - 1)]  # a little too wide above 30 degrees
        half = t * statistics.stdev(differences) / math.sqrt(len(differences))
        return cls(statistics.fmean(differences), half)

    def in_percent(self) -> str:
        """Writes a difference of shares in percent with the half width of its interval, e.g. `+2.0 ± 2.5`."""
        return f"{100 * self.mean:+.1f}" + ("" if self.half is None else f" ± {100 * self.half:.1f}")


@dataclass(frozen=True)
class Result:
    """The result of a complete run.

    Attributes:
        last: mIoU of the last evaluation.
        best: the highest mIoU of all evaluations.
        iou: IoU of each class at the last evaluation; None for a class that occurs nowhere.
        step_s: median time of a step, s, without evaluations.
        memory_mb: peak memory of a process, MB.
        parameters: number of trained parameters; None if an earlier semiseg made the run.
        pixels: number of pixels of each class in the validation masks; None if an earlier semiseg read the run.
        pseudo_labeled: number of unlabeled images with a mask that an earlier run had predicted (`data.pseudo`, ST++).
    """

    last: float
    best: float
    iou: tuple[float | None, ...]
    step_s: float
    memory_mb: float
    parameters: int | None
    pixels: tuple[int, ...] | None = None
    pseudo_labeled: int = 0

    @property
    def lost(self) -> int:
        """Returns the number of classes whose IoU is below 1 %, though validation masks show them."""
        return len(lost_classes(self.iou, self.pixels))


@dataclass(frozen=True)
class Row:
    """The runs of one recipe.

    Attributes:
        name: what the recipe is called in tables.
        results: the complete runs by seed.
        unfinished: completed steps of the other runs by seed.
    """

    name: str
    results: Mapping[int, Result]
    unfinished: Mapping[int, int]

    def spread(self, value: str) -> Spread | None:
        """Computes the spread of an attribute of the results over the seeds."""
        found = [getattr(result, value) for result in self.results.values()]
        return Spread.of([float(each) for each in found if each is not None])

    def class_iou(self, index: int) -> Spread | None:
        """Computes the spread of the IoU of a class over the seeds."""
        found = [result.iou[index] for result in self.results.values()]
        return Spread.of([value for value in found if value is not None])

    def gain(self, first: "Row") -> Interval | None:
        """Computes the paired difference of the last mIoU to another row, over the seeds that both have."""
        seeds = self.results.keys() & first.results.keys()
        return Interval.of([self.results[seed].last - first.results[seed].last for seed in sorted(seeds)])


@dataclass(frozen=True)
class Comparison:
    """Several recipes under one protocol.

    Attributes:
        rows: the recipes; gains are differences to the first one.
        classes: the names of the classes.
        protocol: what all runs have in common: labels, steps, evaluation.
        made: how they were made: commits, machines, precisions.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    protocol: Mapping[str, Any]
    made: Mapping[str, tuple[str, ...]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Returns the seeds that any run has."""
        return tuple(sorted({seed for row in self.rows for seed in (*row.results, *row.unfinished)}))


@dataclass(frozen=True)
class _Started:
    """A run that was started: its directory, its recipe and its environment."""

    run: Run
    recipe: dict[str, Any]
    environment: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> "_Started":
        found = cls(run, recipe_file.read(run.config), run.environment())
        try:
            found.protocol, found.kept, found.seed, found.result, found.network  # noqa: B018 - whether they can be read
        except (LookupError, TypeError, AttributeError, statistics.StatisticsError) as error:
            raise UserError(
                f"{run.path}: is no run of semiseg, or is damaged ({type(error).__name__}: {error}); leave it out"
            ) from error
        return found

    @property
    def seed(self) -> int:
        return self.recipe["engine"]["seed"]

    @property
    def protocol(self) -> dict[str, Any]:
        """Returns what must be alike in all runs of a table."""
        engine, data, labels = self.recipe["engine"], self.recipe["data"], self.environment["labels"]
        side, masks = data.get("val_long_side", "same"), self.run.masks("labels")
        return {
            "labeled images": labels["labeled"],
            "partition": labels["partition"],
            "unlabeled images": labels["unlabeled"] + labels.get("pseudo_labeled", 0),
            "validation images": labels["val"],
            **({"hash of the validation images": labels["val_partition"]} if "val_partition" in labels else {}),
            **_hashes(masks),
            "validation list": str(data.get("val")),
            "classes": ", ".join(class_names(self.run)),
            "steps": engine["steps"],
            "batch size": engine["batch_size"],
            "steps between evaluations": engine.get("eval_every") or max(1, engine["steps"] // 10),
            "size in evaluation": data.get("long_side") if side == "same" else side,
            **{f"masks ({key})": str(data.get(key)) for key in ("values", "colors", "mask_orientation")},
            "evaluation": ", ".join(f"{key} {value}" for key, value in engine["evaluate"].items() if value is not None),
        }

    @property
    def network(self) -> str:
        """Returns the names of architecture and encoder, and where its weights are from."""
        model = self.recipe["model"]
        return f"{model['architecture']} with {model['encoder']} (weights: {model.get('weights') or 'none'})"

    @property
    def kept(self) -> dict[str, Any]:
        """Returns the settings that all runs of a row share."""
        settings = {
            f"{section}.{key}": value for section, values in self.recipe.items() for key, value in values.items()
        }
        return {key: value for key, value in settings.items() if key not in ("engine.seed", "engine.precision", *FREE)}

    @property
    def result(self) -> Result | int:
        """Returns the result of the run, or the number of its completed steps."""
        last, best, train = self.run.last(), self.run.best(), self.run.metrics("train")
        if last is None or best is None or last["step"] < self.recipe["engine"]["steps"]:
            return max((record["step"] for record in (*train, last) if record), default=0)
        return Result(
            last=last["miou"],
            best=best["miou"],
            iou=tuple(last["iou"]),
            step_s=statistics.median(map(step_seconds, train)),
            memory_mb=float(max(record["peak_memory_mb"] for record in train)),
            parameters=self.environment.get("trained_parameters"),
            pixels=None if (pixels := self.run.val_pixels()) is None else tuple(pixels),
            pseudo_labeled=self.environment["labels"].get("pseudo_labeled", 0),
        )


def read(runs: Mapping[str, Iterable[Run]]) -> Comparison:
    """Reads run directories. Runs that are not complete do not count; a row without any has no numbers.

    Args:
        runs: the runs of each row, by its name.

    Raises:
        UserError: no run was started, two runs of a row have the same seed, the runs of a row differ in more than their
            seed, or runs differ in labels, steps or evaluation and so cannot stand in one table.
    """
    started = {name: [_Started.of(run) for run in members if run.exists()] for name, members in runs.items()}
    every = [each for members in started.values() for each in members]
    if not every:
        raise UserError(f"{', '.join(runs)}: no run was started yet")
    protocol = every[0].protocol
    for each in every:
        _refuse_difference(every[0], each, "protocol", "such runs cannot stand in one table")
    return Comparison(
        rows=tuple(_row(name, members) for name, members in started.items()),
        classes=tuple(class_names(every[0].run)),
        protocol=protocol,
        made={
            "commit": _distinct(each.environment.get("commit") for each in every),
            "machine": _distinct(_machine(each.environment) for each in every),
            "network": _distinct(each.network for each in every),
            "precision": _distinct(each.environment.get("precision", {}).get("used") for each in every),
        },
    )


def rows_of(paths: Sequence[Path]) -> dict[str, list[Run]]:
    """Finds the runs below folders, and names their rows.

    A run directory `<name>/seed-<n>`, as `semiseg compare` makes them, belongs to row `<name>`, and of stages there the
    last one; any other run directory is a row of its own. A row `supervised` comes first.

    Raises:
        UserError: a folder has no run.
    """
    rows: dict[str, list[Run]] = {}
    for path in map(expanded, paths):
        runs = (
            [Run(path)]
            if Run(path).exists()
            else [
                Run(each.parent)
                for each in sorted(path.rglob("config.yaml"))
                if (each.parent / "environment.json").exists()
                and (seed_folder(each.parent) in (None, each.parent) or each.parent.name == RESULT_STAGE)
            ]
        )
        if not runs:
            raise UserError(f"{path}: has no run; name run directories, or folders of them")
        for run in runs:
            folder = seed_folder(run.path.resolve())
            row = folder.parent.name if folder else str(run.path)
            if run not in rows.setdefault(row, []):
                rows[row].append(run)
    return with_baseline(rows, "supervised") if "supervised" in rows else rows


def with_baseline(runs: dict[str, list[Run]], name: str) -> dict[str, list[Run]]:
    """Puts a row first, so that gains are differences to it.

    Raises:
        UserError: there is no such row.
    """
    if name not in runs:
        raise UserError(f"--baseline {name}: there is no such row; choose one of {', '.join(runs)}")
    return {name: runs[name], **runs}


def _row(name: str, members: Sequence[_Started]) -> Row:
    results: dict[int, Result | int] = {}
    for each in members:
        if each.seed in results:
            raise UserError(f"{each.run.path}: {name} has seed {each.seed} twice; name one of the two runs")
        _refuse_difference(members[0], each, "kept", f"the runs of {name} may differ in their seed only")
        results[each.seed] = each.result
    ordered = sorted(results.items())
    complete = {seed: result for seed, result in ordered if isinstance(result, Result)}
    return Row(name, complete, {seed: steps for seed, steps in ordered if isinstance(steps, int)})


def _refuse_difference(one: _Started, other: _Started, what: str, why: str) -> None:
    ours, theirs = getattr(one, what), getattr(other, what)
    for key in [key for key in ours if key in theirs]:  # an earlier semiseg did not have every setting
        if ours[key] != theirs[key]:
            raise UserError(
                f"{other.run.path}: has another {key} ({theirs[key]}) than {one.run.path} ({ours[key]}); {why}"
            )


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values))


def _hashes(masks: Mapping[str, str]) -> dict[str, str]:
    """Returns hashes of what masks show. An earlier semiseg wrote no digests of masks, or not those of their pixels."""
    parts = {name: digest.partition("-") for name, digest in masks.items()}
    found = {"hash of the masks": _digest({name: counted for name, (counted, _, _) in parts.items()})} if masks else {}
    if masks and all(pixels for _, _, pixels in parts.values()):
        found["hash of the masks' pixels"] = _digest({name: pixels for name, (_, _, pixels) in parts.items()})
    return found


def _digest(masks: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(masks, sort_keys=True).encode()).hexdigest()[:12]


def _machine(environment: dict[str, Any]) -> str:
    machine = environment.get("machine", {})
    return ", ".join(machine.get("gpus") or [f"{machine.get('cpu')}, {machine.get('threads')} threads"])
