"""Recipes for the figures that the iMAS paper publishes: Tables 2 to 5, Figures 2 and 3.

`CELLS` is the table of all of them, with the published figures and what the authors' logs say. Each file is one of the
recipes `official/...` with the cell's changes, so every setting is that of the authors' code.
"""

import copy
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from semiseg.errors import UserError
from semiseg.files import expanded, replacing
from semiseg.recipe import file as recipe_file

_WIDTH = 118


@dataclass(frozen=True)
class Cell:
    """One training of the paper.

    Attributes:
        place: the table or figure.
        data: the dataset, with its partition protocol.
        labels: number of labeled images.
        depth: of the encoder: ResNet-50 or ResNet-101.
        stride: output stride.
        method: name of the method.
        published: the paper's mIoU, percent; None if the paper prints no number.
        log: mIoU in the authors' logs, `best (last)` of the evaluated network; empty if there is no log.
        note: what is peculiar to this cell, e.g. where paper and logs differ.
        name: end of the file's name; empty: the network.
        changes: settings of the method that differ from those of the official recipe.
    """

    place: str
    data: Literal["VOC blended", "VOC classic", "Cityscapes"]
    labels: int
    depth: Literal[50, 101]
    stride: Literal[8, 16]
    method: Literal["imas", "supervised"]
    published: float | None
    log: str = ""
    note: str = ""
    name: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Returns the path of the file, e.g. `table-2/imas-662-r50-os16.yaml`."""
        folder = self.place.lower().replace(" ", "-")
        end = self.name or f"{self.labels}-r{self.depth}-os{self.stride}"
        return Path(folder) / f"{self.method}-{end}.yaml"

    @property
    def gpus(self) -> int:
        """Returns the number of the authors' GPUs, which share 16 labeled images a step."""
        if self.method == "supervised":
            return 2
        return 8 if self.stride == 8 else 4

    @property
    def epoch(self) -> int:
        """Returns the steps of one of the authors' epochs.

        For iMAS it is a round of the unlabeled images, the last batch dropped (D37), for supervised training a round of
        the labeled ones; their loader of VOC then keeps the last batch, that of Cityscapes drops it.
        """
        pool = (2975 if self.data == "Cityscapes" else 10582) - self.labels
        images = self.labels if self.method == "supervised" else pool
        batches = math.ceil(images / self.gpus) * self.gpus / 16
        return math.ceil(batches) if self.method == "supervised" and self.data != "Cityscapes" else int(batches)

    @property
    def epochs(self) -> int:
        """Returns the number of the authors' epochs."""
        return 240 if self.data == "Cityscapes" else 80

    @property
    def hours(self) -> str:
        """Returns how long the authors' training took, or what follows from their other trainings."""
        if self.method == "supervised":
            known, where = ("9-16" if self.data == "Cityscapes" else "1-4"), "two GPUs"
        elif self.data == "Cityscapes":
            known, where = ("29-49", "eight V100") if self.stride == 8 else ("31-44", "four V100")
        elif self.stride == 8:
            known = "19-28" if self.depth == 50 else "22-36"
            return (
                f"{known} on eight V100 (inferred: output stride 16 took {known[:2]} or more on four, and on "
                "Cityscapes eight at output stride 8 took up to 1.15 times as long as four at 16)"
            )
        else:
            known, where = ("19-24" if self.depth == 50 else "22-32"), "four V100"
        inferred = " of other runs with this network (inferred: this one has no log)" if not self.log else ""
        return f"{known} on {where}, as their logs say{inferred}"


def _tables() -> Iterator[Cell]:
    blended: tuple[tuple[int, Any, float, str, float, str, float], ...] = (
        # labels, depth, supervised, its log, iMAS, its log, iMAS at output stride 8
        (662, 50, 63.8, "63.82 (63.57)", 74.8, "74.75 (72.96)", 75.9),
        (1323, 50, 69.0, "69.03 (67.70)", 76.5, "76.60 (75.71), and of a second run 76.21 (75.54)", 76.7),
        (2646, 50, 72.5, "72.52 (72.09)", 77.0, "76.98 (76.66)", 77.1),
        (662, 101, 67.4, "67.42 (67.00)", 76.5, "76.48 (75.92)", 77.2),
        (1323, 101, 72.1, "72.12 (71.62)", 77.9, "77.85 (77.43, stopped after 73 epochs)", 78.4),
        (2646, 101, 74.7, "74.75 (74.37)", 78.1, "78.08 (77.42, stopped after 76 epochs)", 79.3),
    )
    for labels, depth, supervised, its_log, imas, log, fine in blended:
        note = "D46: 76.54 is the best of the student in the second run." if (labels, depth) == (1323, 50) else ""
        yield Cell("Table 2", "VOC blended", labels, depth, 16, "supervised", supervised, its_log)
        yield Cell("Table 2", "VOC blended", labels, depth, 16, "imas", imas, log, note)
        yield Cell("Table 2", "VOC blended", labels, depth, 8, "imas", fine)
    classic = (
        # labels, supervised, its log, iMAS, its log, iMAS at output stride 8, what is peculiar
        (92, 45.5, "45.46 (45.08)", 68.8, "68.78 (67.85, stopped after 27 epochs), and of a second run 68.67 (65.89, "
         "stopped after 28 epochs)", 70.0, ""),
        (183, 57.5, "57.53 (56.11)", 74.4, "74.42 (71.06)", 75.3, "Their teacher is best after 12 of 80 epochs and "
         "then loses 3.4 points (D42)."),
        (366, 66.6, "66.60 (65.71)", 78.5, "78.45 (77.42, stopped after 30 epochs), and of a second run 77.54 (75.86)",
         79.1, ""),
        (732, 70.4, "70.35 (69.83)", 79.5, "79.74 (76.95)", 80.2, "The log of the run behind 79.5 is missing; the one "
         "that is there says 79.74."),
        (1464, 72.9, "", 81.2, "81.16 (80.44), and of a second run 80.97 (80.77, stopped after 33 epochs)", 82.0, ""),
    )  # fmt: skip
    for labels, supervised, its_log, imas, log, fine, note in classic:
        yield Cell("Table 3", "VOC classic", labels, 101, 16, "supervised", supervised, its_log)
        yield Cell("Table 3", "VOC classic", labels, 101, 16, "imas", imas, log, note)
        yield Cell("Table 3", "VOC classic", labels, 101, 8, "imas", fine)
    swapped = (
        "D44: the folders of their two logs of 744 labels are swapped, and so are the printed figures: by the heads of "
        "the logs output stride 16 has 78.22, and 8 has 78.12."
    )
    cityscapes = (
        # labels, supervised, its log, iMAS, its log, iMAS at output stride 8, its log, what is peculiar
        (186, 64.0, "63.98 (63.14)", 74.3, "74.31 (73.03)", 75.2, "75.16 (73.66)", ""),
        (372, 69.2, "69.21 (69.00)", 77.4, "77.43 (76.77)", 78.0, "78.27 (77.88)", ""),
        (744, 73.0, "73.02 (72.06, stopped after 183 epochs)", 78.1, "78.22 (77.10)", 78.2, "78.12 (76.65)", swapped),
        (1488, 76.4, "76.37 (75.88)", 79.3, "79.30 (78.98)", 80.2, "80.21 (79.39)", ""),
    )
    for labels, supervised, its_log, imas, log, fine, fine_log, note in cityscapes:
        no_aux = "By its log this run has no auxiliary head (D38)." if labels == 1488 else ""
        differs = "D45: Table 4 prints 78.0, the text 78.1, the log says 78.27." if labels == 372 else note
        yield Cell("Table 4", "Cityscapes", labels, 50, 16, "supervised", supervised, its_log, no_aux)
        yield Cell("Table 4", "Cityscapes", labels, 50, 16, "imas", imas, log, note)
        yield Cell("Table 4", "Cityscapes", labels, 50, 8, "imas", fine, fine_log, differs)


# Only weak views, or only CutMix: the student learns the weak view in place of the strong one.
_NO_INTENSITY = {"strong": {"ops": ["identity"], "num_ops": 1}, "intensity": "standard"}
_NO_CUTMIX = {"cutmix": "standard", "cutmix_probability": 0.0}


def _ablation() -> Iterator[Cell]:
    reading = (
        "The paper does not say whether the two unmarked columns of the table are the standard operation or nothing. "
        "Here they are the standard operation; in the files of figure-2 they are nothing."
    )
    rows = (("none", None, ()), ("loss", 75.5, ("loss",)), ("intensity", 76.5, ("intensity",)),
            ("cutmix", 76.9, ("cutmix",)), ("all", 77.9, ("loss", "intensity", "cutmix")))  # fmt: skip
    for name, published, adaptive in rows:
        changes = {key: "adaptive" if key in adaptive else "standard" for key in ("loss", "intensity", "cutmix")}
        log = "77.85 (77.43, stopped after 73 epochs)" if name == "all" else ""
        note = reading if published and name != "all" else ""
        if published is None:
            note = "The table has no such row: it is what the three adaptations start from."
        yield Cell("Table 5", "VOC blended", 1323, 101, 16, "imas", published, log, note, f"adaptive-{name}", changes)
    yield Cell("Table 5", "VOC blended", 1323, 101, 16, "supervised", 72.1, "72.12 (71.62)", name="1323-r101-os16")
    alone: tuple[tuple[str, float, dict[str, Any]], ...] = (
        ("loss", 75.5, _NO_INTENSITY | _NO_CUTMIX),
        ("intensity", 76.5, {"loss": "standard"} | _NO_CUTMIX),
        ("cutmix", 76.9, {"loss": "standard"} | _NO_INTENSITY),
    )
    for key, printed, nothing_else in alone:
        for kind in ("standard", "adaptive"):
            note = "The paper draws this figure as bars and prints no number: one operation alone, with no other."
            if kind == "adaptive":
                note += f" If Table 5 is meant so, too (table-5 has the other reading), this run has {printed}."
            name, changes = f"{key}-{kind}", nothing_else | {key: kind}
            yield Cell("Figure 2", "VOC blended", 1323, 101, 16, "imas", None, note=note, name=name, changes=changes)


def _sweeps() -> Iterator[Cell]:
    drawn = (
        "The paper draws this figure as curves and prints no number; the values of the grid are ours. It does not name "
        "the encoder; of their logs of 1323 labels with one value that is not the default all are with ResNet-50."
    )
    voc = {("unlabeled_weight", 3.0): (76.5, "76.60 (75.71), and of a second run 76.21 (75.54)"),
           ("unlabeled_weight", 4.0): (None, "76.20 (74.57)"),
           ("threshold", 0.8): (None, "76.95 (74.84)"), ("threshold", 0.85): (None, "76.36 (74.38)"),
           ("threshold", 0.95): (76.5, "76.60 (75.71), and of a second run 76.21 (75.54)")}  # fmt: skip
    default = (77.4, "77.43 (76.77)")
    cityscapes = {("unlabeled_weight", 3.0): default, ("threshold", 0.7): default}
    known: tuple[tuple[Literal["VOC blended", "Cityscapes"], int, dict[tuple[str, float], Any]], ...] = (
        ("VOC blended", 1323, voc),
        ("Cityscapes", 372, cityscapes),
    )
    for data, labels, figures in known:
        for place, key, word, values in (
            ("Figure 3a", "unlabeled_weight", "weight", (1.0, 2.0, 3.0, 4.0, 5.0)),
            ("Figure 3b", "threshold", "threshold", (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
        ):
            for value in values:
                published, log = figures.get((key, value), (None, ""))
                name = f"{data.split()[0].lower()}-{word}-{value:g}"
                note = drawn if published is None else f"{drawn} These are the default settings."
                yield Cell(place, data, labels, 50, 16, "imas", published, log, note, name, {key: value})


CELLS = (*_tables(), *_ablation(), *_sweeps())


@cache
def _official(name: str) -> dict[str, Any]:
    return recipe_file.read(Path(name))


def values(cell: Cell) -> dict[str, Any]:
    """Makes the recipe of a cell, as plain values, from an official one."""
    city = cell.data == "Cityscapes"
    recipe = copy.deepcopy(_official("official/cityscapes" if city else "official/voc"))
    for key in ("labeled", "unlabeled"):
        recipe["data"][key] = f"splits/{cell.labels}/{key}.txt"
    model, method, engine = recipe["model"], recipe["method"], recipe["engine"]
    rates = [12, 24, 36] if cell.stride == 8 else [6, 12, 18]
    model |= {"encoder": f"tu-resnet{cell.depth}s", "output_stride": cell.stride}
    model["options"]["decoder_atrous_rates"] = rates
    if city:
        method["labeled_loss"]["min_kept"] = 100_000 * cell.gpus  # D27: they count on each GPU, ours the whole batch
    if cell.method == "supervised":
        loss = {"labeled_loss": method["labeled_loss"]} if city else {}
        recipe["method"] = {"name": "supervised", **loss}
    else:
        method |= {"copy_steps": cell.epoch, **cell.changes}
    engine |= {"steps": cell.epochs * cell.epoch, "eval_every": cell.epoch, "save_every": cell.epoch}
    return recipe


def head(cell: Cell) -> str:
    """Makes the comment at the beginning of a cell's file."""
    method = "Supervised" if cell.method == "supervised" else "iMAS"
    about = f", {cell.name}" if cell.changes else ""
    title = f"{method}, {cell.place} of the iMAS paper{about}."
    root = "PATH/cityscapes" if cell.data == "Cityscapes" else "PATH/VOC2012"
    folder = "cityscapes" if cell.data == "Cityscapes" else "pascal"
    published = "none" if cell.published is None else f"{cell.published:.1f} mIoU ({_source(cell)})"
    log = f"{cell.log}, best (last) evaluation" if cell.log else "none of this run"
    processes = f"torchrun --nproc_per_node {cell.gpus} -m semiseg train ..."
    share = {2: "half", 4: "a quarter", 8: "an eighth"}[cell.gpus]
    paragraphs = [
        f"{cell.data}, {cell.labels} labels, ResNet-{cell.depth}, output stride {cell.stride}.",
        "",
        f"  semiseg train {cell.path.as_posix()} --set data.root={root} \\",
        f"    --set data.labeled=PATH/{cell.labels}/labeled.txt --set data.unlabeled=PATH/{cell.labels}/unlabeled.txt",
        "",
        f"The lists are in data/splits/{folder} of the authors' repository.",
        f"hardware: theirs were {cell.gpus} GPUs with {16 // cell.gpus} labeled images each ({processes}); or one GPU "
        f"and engine.micro_batch_size={16 // cell.gpus}, whose batch norm sees {share} of a batch then.",
        f"hours: {cell.hours}. Not measured here.",
        f"published: {published}. Not run by us yet.",
        f"their logs: {log}.",
        *_differences(cell),
    ]
    lines = [title]
    for paragraph in paragraphs:
        indented = paragraph.startswith(" ")
        lines += [paragraph] if indented or not paragraph else textwrap.wrap(paragraph, _WIDTH, break_long_words=False)
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _source(cell: Cell) -> str:
    drawn = cell.place.startswith("Figure 3")
    table = ("Table 4" if cell.data == "Cityscapes" else "Table 2") if drawn else cell.place
    return f"{table}; the best evaluation on the validation images, D42"


def _differences(cell: Cell) -> Iterator[str]:
    if cell.note:
        yield cell.note
    if cell.method == "supervised":
        yield (
            f"Their baseline takes {cell.epochs} rounds of the labeled images, far fewer steps than iMAS, with a "
            "network without multi-grid (D38). With equal steps: the iMAS file and --baseline."
        )
    elif cell.stride == 8 and cell.data != "Cityscapes":
        yield "D47: there is no log or configuration of output stride 8 on VOC; GPUs and steps are inferred."
    yield "Settings are those of the authors' code; docs/methods/imas.md explains D-numbers, and what no setting mends."


def text(cell: Cell) -> str:
    """Makes the file of a cell."""
    return head(cell) + yaml.safe_dump(values(cell), sort_keys=False, default_flow_style=None, width=_WIDTH)


def write(out: Path, overwrite: bool = False) -> list[Path]:
    """Writes the recipes of all cells into the folder `out`, which is made if needed. Returns their files.

    Args:
        out: the folder, with `~` expanded.
        overwrite: whether files that exist already are replaced. Other files in the folder are never touched.

    Raises:
        UserError: a file exists already, and `overwrite` is false. Then nothing is written.
    """
    files = {expanded(out) / cell.path: cell for cell in CELLS}
    if not overwrite and (there := [file for file in files if file.exists() or file.is_symlink()]):
        more = f" and {len(there) - 1} more" if there[1:] else ""
        raise UserError(f"{there[0]}{more}: exists already; name another folder with --out, or give --overwrite")
    for file, cell in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as aside:
            aside.write_text(text(cell), encoding="utf-8")
    return list(files)
