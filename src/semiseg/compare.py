"""Compares methods on one recipe: same labels, same initial weights, same steps, same evaluation, several seeds."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from semiseg import api, data, queue, self_train
from semiseg.data.dataset import Dataset
from semiseg.engine.lock import Lock
from semiseg.engine.runtime import Runtime
from semiseg.engine.setup import check_settings
from semiseg.errors import Interrupted, UserError
from semiseg.recipe import file as recipe_file
from semiseg.recipe.file import FREE
from semiseg.recipe.load import changes_of_result, load_recipe, override, shortened
from semiseg.recipe.recipe import Recipe
from semiseg.report import comparison_files
from semiseg.report.comparison import Comparison, read
from semiseg.runs import RESULT_STAGE, Run, seed_folder

# What a method may change beside its own settings. All else is alike in a comparison.
_CHANGEABLE = ("method", "optim", "data.labeled_order", "data.temperature", "data.crop", "data.scale", "data.flip")

BASELINE = "supervised"


@dataclass(frozen=True)
class Entry:
    """A method with settings, as `--methods` names it.

    Attributes:
        name: its name in tables; also that of its folder, but for characters that are no letters, digits or `._=+-`.
        method: the name of the method.
        changes: settings, e.g. `method.loss=standard`.
    """

    name: str
    method: str
    changes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Returns the name of the folder of its runs."""
        return re.sub(r"[^A-Za-z0-9._=+-]+", "-", re.sub(r"[{}\[\]\"' ]", "", self.name)).strip("-.")


def entries(text: str) -> list[Entry]:
    """Reads the methods of a comparison: `name`, `name:setting=value:...`, or `name in tables=name:...`.

    Settings are those of the method, or have the name of their section, e.g. `optim.lr`. Values are YAML.

    Raises:
        UserError: an entry has no name, a setting no value, or two entries have the same folder.

    Example:
        >>> for entry in entries("supervised, imas:loss=standard, mild=imas:optim.lr=0.1:strong={pool: jitter}"):
        ...     print(entry.name, entry.method, entry.changes)
        supervised supervised ()
        imas:loss=standard imas ('method.loss=standard',)
        mild imas ('optim.lr=0.1', 'method.strong={pool: jitter}')
    """
    found: list[Entry] = []
    for part in _split(text, ","):
        head, *settings = _split(part, ":")
        name, equals, method = head.rpartition("=")
        changes = []
        for setting in settings:
            key, given, value = setting.partition("=")
            if not given or not key.strip():
                raise UserError(f"--methods {part}: write a setting as key=value, e.g. imas:threshold=0.9")
            key = key.strip()
            changes.append(f"{key if '.' in key else f'method.{key}'}={value.strip()}")
        found.append(Entry((name if equals else part).strip(), method.strip(), tuple(changes)))
    return _checked(found)


def _checked(named: Sequence[Entry]) -> list[Entry]:
    """Raises an error if two entries have one folder, or an entry changes what is alike for all."""
    folders: dict[str, Entry] = {}
    for entry in named:
        if not entry.method or not entry.folder:
            raise UserError(
                "--methods: write names of methods with commas between, e.g. supervised,imas; a name needs a letter or "
                "digit of ASCII"
            )
        if other := folders.get(entry.folder.casefold()):
            raise UserError(f"--methods {entry.name}: has the same name as {other.name}; give it another: NAME=METHOD")
        for change in entry.changes:
            key = change.partition("=")[0]
            if not _is_of(key, _CHANGEABLE):
                raise UserError(
                    f"--methods {entry.name}: {key} is alike for all methods of a comparison; change it for all with "
                    "--set"
                )
        folders[entry.folder.casefold()] = entry
    return list(named)


def plan(recipe: Recipe, entry: Entry, seed: int) -> Recipe:
    """Makes the recipe of an entry.

    An entry of the recipe's own method starts from the recipe's settings of it. Another method starts from its own
    defaults, with the recipe's augmentation and loss of labeled images. Otherwise what class weights are worth would
    look like a gain from unlabeled images.

    Raises:
        UserError: there is no such method, or a setting is wrong.
    """
    changes = list(entry.changes)
    if entry.method != recipe.method_name:
        changes.insert(0, f"method={json.dumps({'name': entry.method, **recipe.of_labels})}")
    try:
        return override(recipe, [*changes, f"engine.seed={seed}"])
    except UserError as error:
        raise UserError(f"--methods {entry.name}: {str(error).removeprefix('recipe: ')}") from error


def compare(
    recipe: Recipe | Path | str,
    methods: str | Sequence[Entry],
    seeds: Sequence[int],
    out: Path | str,
    overrides: Iterable[str] = (),
    console: Console | None = None,
    minutes: float | None = None,
    at_once: int = 1,
    devices: Sequence[str] = (),
) -> Comparison:
    """Trains a recipe with several methods and seeds, and compares them. The same call goes on after an interruption.

    Complete runs of other methods and seeds that are in the folder stay in the tables, below those that are named.
    ST++ trains its three stages, each with the steps of the recipe; the last one stands in the tables.

    Args:
        recipe: a recipe, or its path or name.
        methods: the methods, as `entries` reads them; gains are differences to the first one.
        seeds: each method is trained once with each of them, the first seed with all methods first.
        out: folder of the runs `<name>/seed-<n>` and of the tables comparison.{txt,csv,tex,json}.
        overrides: settings that replace those of the recipe, for all methods.
        console: shows the progress. None: nothing is shown.
        minutes: when to stop; the running trainings save their completed steps, and the tables name the runs that are
            not complete. None: when all are complete.
        at_once: number of trainings at once.
        devices: numbers of GPUs; one training at once on each.

    Raises:
        UserError: a name or a setting is wrong, or the folder holds runs that cannot stand in one table with these, or
            another process works in it, before anything is written; or no training could be completed.
        Interrupted: the process received Ctrl-C, SIGTERM or SIGHUP. The completed steps are saved, and the tables show
            the runs that are complete.
    """
    until = None if minutes is None else time.monotonic() + 60 * minutes
    console, out = console or Console(quiet=True), api.folder(Path(out))
    base = _recipe(recipe, overrides)
    named = entries(methods) if isinstance(methods, str) else _checked(methods)
    planned = {(entry, seed): plan(base, entry, seed) for seed in seeds for entry in named}
    jobs = {key: _job(out, *key, each) for key, each in planned.items()}
    results = {jobs[key]: _result(each, jobs[key].stages) for key, each in planned.items()}
    dataset = data.load(base.data)
    if not all(job.complete for job in jobs.values()):
        for entry in named:  # mistakes are found now, not hours later when it is their turn
            _check(entry, planned[entry, seeds[0]], dataset)
    with Lock(Run(out)) as lock:
        lock.acquire()
        others = _others(out, [job.run for job in jobs.values()])
        for run in [run for runs in others.values() for run in runs]:
            _refuse_other_comparison(run, base, named)
        held = {job.run: of_run for job, of_run in results.items() if job.run.exists() and not job.run.is_blank()}
        held |= {run: _result(base, _stages(run)) for runs in others.values() for run in runs}
        _refuse_other_data(held, dataset, base, console)
        queue.prepare({jobs[key]: each for key, each in planned.items()}, results)

        def tables() -> Comparison:
            found = read(_rows(out, {entry: [jobs[entry, seed].run for seed in seeds] for entry in named}, others))
            found = _with_waiting(found, named, seeds)
            comparison_files.write(found, out)
            return found

        try:
            failed = queue.work(list(jobs.values()), console, at_once, devices, until)
        except Interrupted:
            if any(job.complete for job in jobs.values()):
                tables()
            raise
        if not any(job.run.exists() for job in jobs.values()):
            raise UserError(
                _failures(failed, len(jobs)) if failed else f"{out}: the time was over before a run was started"
            )
        found = tables()
    if failed:
        raise UserError(_failures(failed, len(jobs)))
    return found


def _others(out: Path, named: Sequence[Run]) -> dict[str, list[Run]]:
    """Finds the complete runs of earlier calls in a folder that are not named now, by the folder of their row."""
    found: dict[str, list[Run]] = {}
    for config in sorted([*out.glob("*/seed-*/config.yaml"), *out.glob(f"*/seed-*/{RESULT_STAGE}/config.yaml")]):
        run, engine = Run(config.parent), recipe_file.section(config, "engine")
        folder = _stages(run) or run.path
        if run in named or folder.name != f"seed-{engine.get('seed')}":  # e.g. a copy that somebody has made
            continue
        if (last := run.last()) and last["step"] == engine.get("steps"):
            found.setdefault(folder.parent.name, []).append(run)
    return found


def _stages(run: Run) -> Path | None:
    """Returns the folder of the stages of a run in the folder of a comparison; None if it has none."""
    folder = seed_folder(run.path)
    return None if folder == run.path else folder


def _result(planned: Recipe, stages: Path | None) -> Recipe:
    """Returns the recipe of the run that stands in the tables."""
    return planned if stages is None else self_train.result(planned, stages)[1]


def _refuse_other_data(held: Mapping[Run, Recipe], dataset: Dataset, base: Recipe, console: Console) -> None:
    """Checks that the runs that are there, of these recipes, saw the images and masks that are there now."""
    if not held:
        return
    masks = api.masks_of(dataset, base, console)
    for run, of_run in held.items():
        of_stages = of_run.data.pseudo != base.data.pseudo
        found = data.load(of_run.data) if of_stages else dataset
        api.refuse_other_images(run, of_run, found)
        api.refuse_other_masks(run, of_run, api.masks_of(found, of_run, console) if of_stages else masks)


def _refuse_other_comparison(run: Run, base: Recipe, named: Sequence[Entry]) -> None:
    """Checks that the recipe of an earlier run is alike in all that is alike for the methods of a comparison.

    Raises:
        UserError: it is not, or the run has the name of a method with other settings.
    """
    held, stages = recipe_file.read(run.config), _stages(run)
    row = (stages or run.path).parent.name
    entry = next((each for each in named if each.folder.casefold() == row.casefold()), None)
    ours = _result(base if entry is None else plan(base, entry, base.engine.seed), stages).to_dict()
    free = (*FREE, "engine.seed", "engine.precision", *(() if entry else _CHANGEABLE))
    other = [
        f"{section}.{key}: {held[section][key]} -> {value}"
        for section, values in ours.items()
        for key, value in values.items()
        if key in (held.get(section) or {})  # an earlier semiseg did not have every setting
        and held[section][key] != value
        and not _is_of(f"{section}.{key}", free)
    ]
    if other:
        raise UserError(
            f"{run.path}: holds a run of another comparison ({shortened(other)}), which cannot stand in one table with "
            "these; name another folder with --out"
        )


def _rows(out: Path, named: Mapping[Entry, Sequence[Run]], others: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """Returns the runs of each row of the tables: those that are named now first. Earlier rows keep their names."""
    rows = {entry.name: [*runs, *others.get(entry.folder, ())] for entry, runs in named.items()}
    try:
        before = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["rows"]
        names = {Entry(row["name"], "").folder: row["name"] for row in before}
    except (OSError, ValueError, LookupError, TypeError):
        names = {}  # then a row has the name of its folder
    folders = {entry.folder for entry in named}
    return rows | {names.get(each, each): [*runs] for each, runs in others.items() if each not in folders}


def _with_waiting(found: Comparison, named: Sequence[Entry], seeds: Sequence[int]) -> Comparison:
    """Adds the runs that were not started yet, with 0 completed steps."""
    rows, names = [], {entry.name for entry in named}
    for row in found.rows:
        waiting = {seed: 0 for seed in seeds if row.name in names and seed not in row.results}
        rows.append(replace(row, unfinished=waiting | {**row.unfinished}))
    return replace(found, rows=tuple(rows))


def train_with_baseline(
    recipe: Recipe | Path | str, out: Path | str, overrides: Iterable[str] = (), console: Console | None = None
) -> tuple[Run, Run]:
    """Trains a recipe into `out`, and supervised training into `out`-baseline: same weights, same labels.

    The baseline augments and weighs labeled images as the recipe does.

    Raises:
        UserError: the recipe is supervised itself; or as `semiseg.train`.
    """
    whole = _recipe(recipe, overrides)
    if whole.method_name == BASELINE:
        raise UserError("--baseline: the recipe trains supervised itself; choose another method")
    out = api.folder(Path(out)).absolute()
    beside = out.with_name(f"{out.name}-baseline")
    supervised = plan(whole, Entry(BASELINE, BASELINE), whole.engine.seed)
    _refuse_other_baseline(Run(api.folder(beside)), supervised, console or Console(quiet=True))
    return api.train(whole, out, console=console), api.train(supervised, beside, console=console)


def _refuse_other_baseline(held: Run, supervised: Recipe, console: Console) -> None:
    """Checks that the baseline can be trained, or has been: now, not after hours when it is its turn."""
    if not held.exists() or held.is_blank():
        held.refuse_other_content()
        return
    if other := changes_of_result(load_recipe(held.config), supervised):
        raise UserError(
            f"{held.path}: holds a run of another recipe ({shortened(other)}); name another folder with --out"
        )
    dataset = data.load(supervised.data)
    api.refuse_other_images(held, supervised, dataset)
    api.refuse_other_masks(held, supervised, api.masks_of(dataset, supervised, console))


def _check(entry: Entry, planned: Recipe, dataset: Dataset) -> None:
    try:
        if planned.method_name == self_train.METHOD:
            self_train.check(planned)
            planned = self_train.first_stage(planned)  # the later ones learn masks that are not there yet
        check_settings(planned, dataset, Runtime("cpu"))
    except UserError as error:
        raise UserError(f"--methods {entry.name}: {error}") from error


def _failures(failed: Mapping[str, str], total: int) -> str:
    name, why = next(iter(failed.items()))
    return f"{len(failed)} of {total} runs failed; {name}: {why}"


def _recipe(recipe: Recipe | Path | str, overrides: Iterable[str]) -> Recipe:
    changes = list(overrides)
    return override(recipe, changes) if isinstance(recipe, Recipe) else load_recipe(Path(recipe), changes)


def _is_of(key: str, settings: Iterable[str]) -> bool:
    """Returns whether a setting is one of these, or in a section of them."""
    return any(f"{key}.".startswith(f"{each}.") for each in settings)


def _job(out: Path, entry: Entry, seed: int, planned: Recipe) -> queue.Job:
    path = out / entry.folder / f"seed-{seed}"
    stages = path if planned.method_name == self_train.METHOD else None
    run = Run(path if stages is None else self_train.result(planned, path)[0])
    return queue.Job(f"{entry.name}, seed {seed}", path.with_suffix(".yaml"), run, planned.engine.steps, stages)


def _split(text: str, separator: str) -> list[str]:
    """Splits a text at a separator that is in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
