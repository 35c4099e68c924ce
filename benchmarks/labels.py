"""What labels are worth by how they were chosen: `semiseg rank` against chance, on a pack with all its masks.

    python benchmarks/labels.py small/wbc --data ~/data/wbc --count 5 --base METHOD --then METHOD --out runs/labels/wbc

With each seed, `--base` is trained first. Then each rule of `semiseg rank` chooses `--count` unlabeled images with this
run; the pack's masks are their labels. `--then` is trained anew with them and the first labels: same steps, same seed.
The row `none` has the first labels alone. Methods are written as `semiseg compare --methods` takes them. The same
command goes on after an interruption. It writes comparison.json into `--out`, for `benchmarks/comparisons.py add`.
"""

import argparse
import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comparisons
from rich.console import Console

from semiseg import compare as comparing
from semiseg import data
from semiseg.data.dataset import Dataset
from semiseg.rank import Request, rank
from semiseg.rank.request import TABLE
from semiseg.recipe.load import load_recipe
from semiseg.report import comparison_files
from semiseg.report.comparison import Comparison

NONE = "none"
RULES = (NONE, "random", "entropy", "margin", "hardness")
FIRST = "random"  # what the others are compared with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="root folder of the pack")
    parser.add_argument("--base", required=True, help="the method whose networks rank; it needs two of them")
    parser.add_argument("--then", required=True, help="the method that is trained with the labels")
    parser.add_argument("--count", type=int, required=True, help="how many labels are added")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], help="a setting for all trainings")
    parser.add_argument("--out", type=Path, required=True)
    found = parser.parse_args()
    settings = [f"data.root={found.data.expanduser().absolute()}", *found.set]
    study = Study(found.recipe, settings, found.base, found.then, found.count, found.out)
    seeds = [int(seed) for seed in found.seeds.split(",")]
    results = [study.train(rule, seed) for seed in seeds for rule in RULES]
    comparison_files.write(comparisons.joined(results, FIRST), found.out)


@dataclass
class Study:
    """The trainings of one pack.

    Attributes:
        recipe: what is trained.
        settings: settings for all trainings.
        base: the method whose networks rank.
        then: the method that is trained with the labels.
        count: how many labels are added.
        out: folder of all runs.
    """

    recipe: Path
    settings: list[str]
    base: str
    then: str
    count: int
    out: Path

    @cached_property
    def dataset(self) -> Dataset:
        """Returns the images and the first labels."""
        return data.load(load_recipe(self.recipe, self.settings).data)

    def train(self, rule: str, seed: int) -> tuple[str, Comparison]:
        """Trains with the labels of one rule; the base is trained first, unless it is there."""
        added = [] if rule == NONE else self.ranked(rule, seed)
        lists = self.out / "lists" / f"{rule}-{seed}"
        lists.mkdir(parents=True, exist_ok=True)
        names = {
            "labeled": [sample.name for sample in self.dataset.labeled] + added,
            "unlabeled": [sample.name for sample in self.dataset.unlabeled if sample.name not in added],
        }
        for kind, of_list in names.items():
            (lists / f"{kind}.txt").write_text("".join(f"{name}\n" for name in of_list), encoding="utf-8")
        settings = [f"data.{kind}={lists.absolute()}/{kind}.txt" for kind in names]
        out = self.out / f"seed-{seed}" / rule  # a folder for each: its runs share their labels
        return rule, self.compare(self.then, seed, out, settings)

    def ranked(self, rule: str, seed: int) -> list[str]:
        """Returns the names of the images that a rule chooses, the most valuable first."""
        self.compare(self.base, seed, self.out / "base", [])
        (entry,) = comparing.entries(self.base)
        ranking = self.out / "rankings" / f"{rule}-{seed}"
        if not (ranking / TABLE).exists():
            images = [sample.image for sample in self.dataset.unlabeled]
            run = self.out / "base" / entry.folder / f"seed-{seed}"
            draw = seed if rule == "random" else None
            rank(Request(run, images, ranking, self.count, rule, draw, device="cpu"), Console())
        name_of = {sample.image.resolve(): sample.name for sample in self.dataset.unlabeled}
        with (ranking / TABLE).open(encoding="utf-8", newline="") as file:
            return [name_of[Path(row["file"]).resolve()] for row in csv.DictReader(file)]

    def compare(self, method: str, seed: int, out: Path, settings: list[str]) -> Comparison:
        return comparing.compare(self.recipe, method, [seed], out, [*self.settings, *settings], Console())


if __name__ == "__main__":
    main()
