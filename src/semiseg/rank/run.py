"""Ranks images by what their labels would be worth, and writes the ranking."""

import csv
import io
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor

from semiseg import data
from semiseg.data import twins
from semiseg.data.dataset import Dataset, Sample
from semiseg.engine import checkpoint, state
from semiseg.engine.checkpoint import Checkpoint
from semiseg.engine.predict import Predictor
from semiseg.engine.predict_files import Item, Options, find, overlay_path, predict_items
from semiseg.engine.progress import counting, say
from semiseg.errors import UserError
from semiseg.files import filling
from semiseg.hardness import class_to_ignore
from semiseg.rank.choose import Chosen, choose
from semiseg.rank.look import Compared, Looked, look
from semiseg.rank.measures import alike
from semiseg.rank.page import Figure, page
from semiseg.rank.pair import make_pair
from semiseg.rank.request import ANNOTATIONS, MASKS, PAGE, TABLE, Request, check
from semiseg.rank.why import why
from semiseg.recipe.file import OF_FOLDER
from semiseg.recipe.load import load_recipe
from semiseg.rng import fold_in
from semiseg.runs import Run

_CONFIDENT = 0.95  # tau of methods that do not use Eq. 7 themselves; iMAS's own default
_SAME = 0.9  # cosine of centered features from which images are near-duplicates (docs/decisions/0016)


@dataclass(frozen=True)
class Ranked:
    """One row of a ranking.

    Attributes:
        item: the image.
        value: what it was ranked by; a small margin is a high rank.
        why: why it was chosen.
    """

    item: Item
    value: float
    why: str


@dataclass(frozen=True)
class Ranking:
    """A ranking.

    Attributes:
        by: what the images were ranked by.
        rows: the images, the most valuable first.
        root: the root folder of the run's data.
    """

    by: str
    rows: tuple[Ranked, ...]
    root: Path

    def next_command(self, out: Path) -> str:
        """Returns the command that takes the corrected labels into the folder that `semiseg init` made."""
        folder = str(self.root) if (self.root / OF_FOLDER).is_file() else "FOLDER"
        return f"semiseg init {shlex.quote(folder)} --update --labelme {shlex.quote(str(out / ANNOTATIONS))}"


def rank(request: Request, console: Console | None = None) -> Ranking:
    """Ranks images without labels, and writes the ranking with the present predictions into a folder.

    Args:
        request: what to rank.
        console: shows notes and the progress. None: nothing is shown.

    Returns:
        The ranking, as it stands in `ranking.csv`.

    Raises:
        UserError: the request is wrong, the run has no checkpoint, or no image is left. Then nothing is written.
    """
    console = console or Console(quiet=True)
    out = check(request)
    run = state.opened(Run(request.run))
    recipe = load_recipe(run.config, [*request.overrides])
    source = _checkpoint(run, recipe.engine.steps, console)
    dataset = data.load(recipe.data)
    items = _without_known(_found(request, out, console), dataset, console)
    _refuse_same_names(items)
    predictor, other = make_pair(source, request.device)
    by = _measure(request, other, source.recipe["method"]["name"], console)
    with counting("looking", console) as count:
        looked = look(items, predictor, other, _compared(source), count)
    if looked.broken:
        _note(console, f"{len(looked.broken)} images cannot be read and are left out, e.g. {looked.broken[0]}")
    iou = [] if by == "random" else _iou(run, source, console)
    values = _values(by, looked, request.seed or 0)
    chosen = _choose(by, values, looked, iou, dataset, request.count, console)
    shown = (1 - values if by == "margin" else values).tolist()
    rows = tuple(
        Ranked(looked.items[one.number], shown[one.number], why(one, by, looked, predictor.classes.names, iou))
        for one in chosen
    )
    if len(rows) < request.count:
        _note(console, f"only {len(rows)} of {request.count} images are left to choose")
    with filling(out) as work:
        _write(work, run, source, by, rows, predictor, console)
    return Ranking(by, rows, recipe.data.root)


def _checkpoint(run: Run, steps: int, console: Console) -> Checkpoint:
    """Returns the best checkpoint of a complete run, and the newest of another one."""
    newest = checkpoint.newest(run.checkpoints)
    if newest is not None and newest.step >= steps:
        return checkpoint.newest(run.checkpoints, "best") or newest
    found = newest or checkpoint.newest(run.checkpoints, "best")
    if found is None:
        raise UserError(f"{run.path}: has no checkpoint yet; train it first")
    _note(console, f"the run is not complete ({found.step} of {steps} steps); its newest checkpoint is used")
    return found


def _found(request: Request, out: Path, console: Console) -> list[Item]:
    items = find(request.images, out, lambda unused: _note(console, str(unused)))
    for item in items:
        if item.frame is not None:
            raise UserError(f"{item.file}: is a video; save the frames that you could label as images first")
    return items


def _refuse_same_names(items: Sequence[Item]) -> None:
    below: dict[Path, Item] = {}
    for item in items:
        if (same := below.setdefault(item.below, item)) is not item:
            raise UserError(f"{item.file}: would have the same outputs as {same.file}; name the folder above both")


def _without_known(items: Sequence[Item], dataset: Dataset, console: Console) -> list[Item]:
    """Removes the images that are labeled already, for training or for validation, and those that no training uses."""
    left, why = [*items], {}
    for what, samples in (("labeled already", _labeled(dataset)), ("for tests", dataset.tests)):
        known = {os.path.realpath(sample.image) for sample in samples}
        before, left = len(left), [item for item in left if os.path.realpath(item.file) not in known]
        if number := before - len(left):
            why[what] = number
    if not left:
        raise UserError(f"all {len(items)} images are {' or '.join(why)}; name images without labels")
    for what, number in why.items():
        say(console, f"{number} of {len(items)} images are {what} and are not ranked")
    return left


def _labeled(dataset: Dataset) -> list[Sample]:
    return [sample for sample in (*dataset.labeled, *dataset.val) if not sample.pseudo]


def _measure(request: Request, other: Predictor | None, method: str, console: Console) -> str:
    if other is None and request.by == "hardness":
        raise UserError(
            f"--by hardness: needs two networks, and the run's method, {method}, has one; use --by entropy, or train "
            "a method with a teacher, e.g. imas"
        )
    if other is None and request.by is None:
        _note(console, f"the run's method, {method}, has one network, so hardness cannot be computed; entropy is used")
    return request.by or ("hardness" if other is not None else "entropy")


def _compared(source: Checkpoint) -> Compared:
    """Returns the settings of Eq. 7: those of a method that uses it itself, otherwise iMAS's defaults."""
    method = source.recipe["method"]
    if "ignore_class" in method:
        return Compared(method["threshold"], class_to_ignore(method["ignore_class"], source.classes))
    return Compared(_CONFIDENT, source.classes.background)


def _iou(run: Run, source: Checkpoint, console: Console) -> list[float | None]:
    """Returns the validation IoU of each class at the checkpoint, or before it; empty if there is none."""
    records = [record for record in run.metrics("val") if record["step"] <= source.step]
    if not records:
        _note(console, "the run has no validation yet, so the ranking does not know the classes on which it is weak")
        return []
    return list(records[-1]["iou"])


def weakness(iou: Sequence[float | None], num_classes: int) -> Float[Tensor, " c"]:
    """Returns 1 - IoU of each class; of a class that was not measured, the mean of the others."""
    known = [value for value in iou if value is not None]
    if not known:
        return torch.zeros(num_classes)
    mean = sum(known) / len(known)
    return torch.tensor([1 - (mean if value is None else value) for value in iou])


def _values(by: str, looked: Looked, seed: int) -> Float[Tensor, " n"]:
    """Returns what images are ranked by, the larger the better; of a margin it is 1 - margin."""
    if by == "hardness":
        assert looked.hardness is not None
        return looked.hardness
    if by == "random":
        draws = [torch.rand((), generator=fold_in(seed, "rank", item.name)) for item in looked.items]
        return torch.stack(draws)
    return {"entropy": looked.entropy, "margin": looked.closeness}[by]


def _choose(
    by: str,
    values: Float[Tensor, " n"],
    looked: Looked,
    iou: Sequence[float | None],
    dataset: Dataset,
    count: int,
    console: Console,
) -> list[Chosen]:
    num_classes = looked.presence.shape[1]
    if by == "random":  # what others are compared with: no choice at all
        none = torch.zeros(len(values), dtype=torch.bool)
        return choose(values, values, looked.presence, torch.zeros(num_classes), lambda number: none, (), count)
    near, taken = _near_duplicates(looked.items, _labeled(dataset), console)
    if taken:
        first = looked.items[taken[0]].name
        say(console, f"{len(taken)} near-duplicates of labeled images are left out, e.g. {first}")

    def is_like(number: int) -> Bool[Tensor, " n"]:
        found = alike(looked.features, number, _SAME)
        found[near[number]] = True
        return found

    weak = weakness(iou, num_classes)
    return choose(values, looked.entropy, looked.presence, weak, is_like, taken, count)


def _near_duplicates(
    items: Sequence[Item], labeled: Sequence[Sample], console: Console
) -> tuple[dict[int, list[int]], list[int]]:
    """Compares the pixels of small copies of all images.

    Returns:
        The near-duplicates of each image, and the images that are near-duplicates of labeled ones.
    """
    samples = [*(Sample(item.name, item.file) for item in items), *labeled]
    with counting("looking for near-duplicates", console) as count:
        pairs = twins.pairs(samples, count)
    near: dict[int, list[int]] = defaultdict(list)
    taken = set()
    for first, second in pairs:
        if second >= len(items):
            taken |= {first} if first < len(items) else set()
        else:
            near[first].append(second)
            near[second].append(first)
    return near, sorted(taken)


def _write(
    work: Path,
    run: Run,
    source: Checkpoint,
    by: str,
    rows: Sequence[Ranked],
    predictor: Predictor,
    console: Console,
) -> None:
    items = [row.item for row in rows]
    for place, kinds in ((ANNOTATIONS, ("coco", "labelme")), (MASKS, ("masks", "overlays"))):
        with counting(f"writing {place}", console) as count:
            predict_items(predictor, items, work / place, count, options=Options(kinds), runtime=predictor.runtime)
    (work / TABLE).write_text(table(by, rows), encoding="utf-8", errors="surrogateescape")
    figures = [
        Figure(
            number,
            row.item.file,
            row.item.name,
            overlay_path(row.item, work / MASKS),
            f"{by} {row.value:.2f}",
            row.why,
        )
        for number, row in enumerate(rows, 1)
    ]
    about = f"{len(rows)} images that are worth labeling next, by {by}; predictions of step {source.step} of {run.path}"
    text = page("What to label next", about, predictor.classes, figures, predictor.white)
    (work / PAGE).write_text(text, encoding="utf-8", errors="surrogateescape")


def table(by: str, rows: Sequence[Ranked]) -> str:
    """Returns the ranking as CSV: file, rank, the measure, why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", by, "why"))
    for number, row in enumerate(rows, 1):
        writer.writerow((row.item.file, number, f"{row.value:.4f}", row.why))
    return text.getvalue()


def _note(console: Console, text: str) -> None:
    say(console, f"note: {text}", "yellow")
