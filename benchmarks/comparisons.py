"""Writes docs/results.md from the comparisons in docs/results, and adds a comparison to them.

    python benchmarks/comparisons.py add NAME runs/wbc --title "White blood cells" --text "What was asked."
    python benchmarks/comparisons.py

A comparison is what `semiseg compare` or `semiseg table --out` wrote into a folder (comparison.json). NAME orders the
page. If it is there already, its rows and seeds stay and the new ones are added, those of the same name and seed in
place of the earlier ones. So a table grows, also after its runs were deleted.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from semiseg.report.comparison import Comparison, Row
from semiseg.report.comparison_files import as_values, from_values

ROOT = Path(__file__).parents[1]
GOALS = "goals.json"  # which rows of which comparisons the summary is made of
BEST = "best supervised"
NAMED = "as named"  # the number of images, where each row has its own
FOLDER, PAGE = ROOT / "docs/results", ROOT / "docs/results.md"

_HEAD = """# Results

Comparisons that were trained with this code. `python benchmarks/comparisons.py` writes this page from
`docs/results/*.json`; `python benchmarks/studies.py` lists the studies from number 10 on and trains what is missing.

- *last*, *best*: mIoU of the last and of the best evaluation on the validation images, %, mean ± deviation over seeds.
- *gain*: mean of the paired differences of *last* to the first row, same seed by same seed, ± half its 95 % interval
  (Student's t). An interval that contains 0 proves nothing. Of one seed there is no interval: such a row is a hint.
- *lost*: number of classes with an IoU below 1 %.
- *s*: median time of a step. Several runs shared the machine, so compare within a table only.

The small recipes have AdamW with learning rate 0.0005 since comparison 10. The earlier ones had SGD with 0.01, which
learns slower: see the comparisons of optimizers, and the last sections.
"""

_GOALS = """## What unlabeled images were worth

The row *recommended* of each pack against other rows of the same comparison: mean of the paired differences of the last
mIoU over the seeds that both have, ± half its 95 % interval. *lost*: classes lost more often (or less) than in *best
supervised*. Rows were chosen after their figures were known, which favors them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    add = commands.add_parser("add")
    add.add_argument("name")
    add.add_argument("folder", type=Path)
    add.add_argument("--title", help="of the section; it may be left out where NAME has one already")
    add.add_argument("--text", help="likewise")
    found = parser.parse_args()
    if found.command == "add":
        try:
            store(found.name, read(found.folder / "comparison.json"), found.title, found.text)
        except ValueError as error:
            parser.error(f"{found.folder}: {error}")
    PAGE.write_text(page(FOLDER), encoding="utf-8")


def read(path: Path) -> Comparison:
    """Returns the comparison of a comparison.json."""
    return from_values(_read(path))


def stored(name: str) -> Comparison | None:
    """Returns a comparison of `docs/results`; None if there is none of this name."""
    path = FOLDER / f"{name}.json"
    return from_values(_read(path)["comparison"]) if path.exists() else None


def store(name: str, comparison: Comparison, title: str | None = None, text: str | None = None) -> None:
    """Adds rows and seeds to a comparison of `docs/results`, or makes a new one.

    Args:
        name: its name.
        comparison: the new rows and seeds.
        title: of the section; None: as it is.
        text: what was asked, likewise.

    Raises:
        ValueError: a new one has no title or text, or the protocol is another than that of the earlier rows.
    """
    path = FOLDER / f"{name}.json"
    values = _read(path) if path.exists() else {}
    values |= {key: given for key, given in {"title": title, "text": text}.items() if given is not None}
    if missing := {"title", "text"} - values.keys():
        raise ValueError(f"{name} is new: write its --{' and --'.join(sorted(missing))}")
    if earlier := stored(name):
        comparison = merged(earlier, comparison)
    values["comparison"] = as_values(comparison)
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def merged(earlier: Comparison, new: Comparison) -> Comparison:
    """Adds the rows and seeds of a comparison to an earlier one.

    Raises:
        ValueError: their protocols differ.
    """
    for key, value in earlier.protocol.items():
        if key in new.protocol and new.protocol[key] != value:
            raise ValueError(f"has another {key} ({new.protocol[key]}) than the earlier comparison ({value})")
    rows = {row.name: row for row in earlier.rows}
    for row in new.rows:
        if old := rows.get(row.name):
            results = dict(sorted({**old.results, **row.results}.items()))
            left = {seed: steps for seed, steps in row.unfinished.items() if seed not in results}
            row = replace(row, results=results, unfinished=left)
        rows[row.name] = row
    made = {what: tuple(dict.fromkeys((*earlier.made.get(what, ()), *values))) for what, values in new.made.items()}
    return Comparison(tuple(rows.values()), new.classes, new.protocol, made)


def joined(results: Sequence[tuple[str, Comparison]], first: str) -> Comparison:
    """Makes one comparison of rows that have labels of their own, each compared for itself.

    Args:
        results: name of a row, and a comparison of this row alone; several of one row have seeds of their own.
        first: the row that others are compared with.
    """
    rows: dict[str, Row] = {}
    for name, comparison in results:
        (row,) = comparison.rows
        before = rows[name].results if name in rows else {}
        rows[name] = replace(row, name=name, results={**before, **row.results})
    _, longest = max(results, key=lambda result: result[1].protocol["labeled images"])
    made = {
        what: tuple(dict.fromkeys(value for _, each in results for value in each.made[what])) for what in longest.made
    }
    protocol = {**longest.protocol, "partition": "of its own for each row and seed"}
    return Comparison(tuple({first: rows[first], **rows}.values()), longest.classes, protocol, made)


def page(folder: Path) -> str:
    """Returns the whole page: what unlabeled images were worth on each pack, and then each comparison."""
    values = {path.stem: _read(path) for path in sorted(folder.glob("*.json"), key=_place) if path.name != GOALS}
    groups = _read(folder / GOALS) if (folder / GOALS).exists() else {}
    summary = [_GOALS] if groups else []
    summary += [f"### {title}\n\n{goals(packs, values)}" for title, packs in groups.items()]
    return "\n".join([_HEAD, *summary, *map(section, values.values())])


def _place(path: Path) -> tuple[int, str]:
    """Orders names by their number: 2-wbc before 10-methods."""
    number = path.stem.partition("-")[0]
    return int(number) if number.isdigit() else 0, path.stem


def goals(packs: dict[str, dict[str, str]], values: dict[str, dict[str, Any]]) -> str:
    """Returns a table of the gains that the project aims at, on each pack, and their means.

    Args:
        packs: by pack, which comparison and which of its rows are meant: `comparison`, `recommended`, and rows that
            it is compared with, by what they are.
        values: the comparisons by name.
    """
    others = list(
        dict.fromkeys(key for pack in packs.values() for key in pack if key not in ("comparison", "recommended"))
    )
    lines = [
        f"| pack | recommended | {' | '.join(f'- {other}' for other in others)} | lost |",
        f"|{' --- |' * (len(others) + 3)}",
    ]
    means: dict[str, list[float]] = {other: [] for other in others}
    for pack, named in packs.items():
        rows = {row.name: row for row in from_values(values[named["comparison"]]["comparison"]).rows}
        chosen = rows[named["recommended"]]
        cells = [pack, f"`{chosen.name}`, {len(chosen.results)} seeds"]
        for other in others:
            gain = chosen.gain(rows[named[other]]) if other in named else None
            cells.append(gain.in_percent() if gain else "")
            means[other] += [gain.mean] if gain else []
        lost, before = chosen.spread("lost"), rows[named[BEST]].spread("lost")
        cells.append(f"{lost.mean - before.mean:+.1f}" if lost and before else "")
        lines.append(f"| {' | '.join(cells)} |")
    over = [f"{100 * sum(found) / len(found):+.1f} ({len(found)} packs)" if found else "" for found in means.values()]
    lines.append(f"| mean | | {' | '.join(over)} | |")
    return "\n".join([*lines, ""])


def section(values: dict[str, Any]) -> str:
    """Returns one comparison: title, text, tables, and what they hold for."""
    comparison = values["comparison"]
    rows, protocol, made = comparison["rows"], comparison["protocol"], comparison["made"]
    head = ["", "seeds", "last", "best", "gain", "lost", "s", *comparison["classes"]]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        runs = list(row["runs"].values())
        if not runs:
            continue
        classes = [[run["iou"][index] for run in runs] for index in range(len(comparison["classes"]))]
        cells = [
            f"`{row['name']}`",
            ", ".join(row["runs"]),
            _spread(row["last"], "deviation"),
            _spread(row["best"], "deviation"),
            _spread(row["gain"], "half", sign="+"),
            f"{row['lost']['mean']:.1f}",
            f"{sum(run['step_s'] for run in runs) / len(runs):.2f}",
            *(_mean(each) for each in classes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    images = f"{protocol['labeled images']} labeled, {protocol['unlabeled images']} unlabeled"
    if protocol["labeled images"] == NAMED:
        images = f"Labeled and unlabeled images {NAMED}"
    images += f" and {protocol['validation images']} validation images (`{protocol['validation list']}`)"
    steps = f"{protocol['steps']} steps of {protocol['batch size']} labeled images"
    how = "; ".join(", ".join(made[key]) for key in ("commit", "precision", "machine"))
    notes = f"{images}; partition {protocol['partition']}; {steps}; commit {how}."
    notes += " Columns after *s* are the IoU of each class, last."
    return "\n".join([f"## {values['title']}", "", values["text"], "", *lines, "", notes, ""])


def _spread(value: dict[str, float | None] | None, kind: str, sign: str = "") -> str:
    if value is None:
        return ""
    spread = value[kind]
    return f"{100 * (value['mean'] or 0):{sign}.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.1f}" if known else "-"


if __name__ == "__main__":
    main()
