"""Writes a report: one HTML file with everything in it, which asks for nothing from a network."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiseg.errors import UserError
from semiseg.files import expanded
from semiseg.report import charts, facts, shown
from semiseg.report.reading import Group, read
from semiseg.report.table import class_names
from semiseg.runs import write_atomically

_TEMPLATE = Path(__file__).parent / "template"


def write(paths: Sequence[Path], out: Path, overwrite: bool = False) -> list[str]:
    """Writes a report of runs into one HTML file.

    Args:
        paths: run directories, or folders of them.
        out: the file.
        overwrite: whether a file that is there is replaced.

    Returns:
        What a reader must know of single runs, one line each.

    Raises:
        UserError: a package is missing, a folder has no run, a file is damaged or cannot be written, or it exists.
    """
    target = _target(expanded(out), overwrite)
    plotly, jinja2 = _needed("plotly.offline"), _needed("jinja2")
    groups = read(paths)
    write_atomically(target, _page(groups, plotly.get_plotlyjs(), jinja2))
    return notes(groups)


def notes(groups: Sequence[Group]) -> list[str]:
    """Returns what a reader must know of single runs. What holds for several of them is one line."""
    names: dict[str, list[str]] = {}
    for each in (member for group in groups for member in group.members):
        for note in each.notes:
            names.setdefault(note, []).append(each.name)
    return [f"{', '.join(of)}: {note}" for note, of in names.items()]


def _target(out: Path, overwrite: bool) -> Path:
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file, e.g. {out / 'report.html'}")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; name another file with --out, or use --overwrite")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder; make it, or name another file with --out")
    return out


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(f'a report needs the package {package}: pip install "semiseg[report]"') from error


def _page(groups: Sequence[Group], plotly: str, jinja2: Any) -> str:
    sections = charts.sections(groups)
    classes = groups[0].first.environment["classes"]
    data: dict[str, Any] = {
        "runs": [
            {"name": group.name, "color": charts.COLORS[i % len(charts.COLORS)]} for i, group in enumerate(groups)
        ],
        "charts": {
            chart.id: {"traces": chart.traces, "layout": chart.layout} for one in sections for chart in one.charts
        },
        "images": shown.images(groups),
        "confusions": shown.confusions(groups),
        "classes": class_names(groups[0].first.run),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=", ".join(group.name for group in groups)[:120],
        groups=groups,
        several=any(len(group.members) > 1 for group in groups),
        colors=[run["color"] for run in data["runs"]],
        notes=notes(groups),
        results=facts.results(groups),
        class_lines=facts.classes(groups),
        sections=sections,
        images=data["images"],
        unlabeled=shown.unlabeled(groups),
        confusions=data["confusions"],
        class_colors=[
            (name, "#{:02x}{:02x}{:02x}".format(*color))
            for name, color in zip(classes["names"], classes.get("colors") or [], strict=False)
        ],
        settings=facts.settings(groups),
        environment=facts.environment(groups),
        events=[(each.name, facts.events(each)) for group in groups for each in group.members],
        css=(_TEMPLATE / "page.css").read_text(encoding="utf-8"),
        js=(_TEMPLATE / "page.js").read_text(encoding="utf-8"),
        plotly=plotly.replace("</script", "<\\/script"),
        data=_json(data),
    )


def _json(values: Any) -> str:
    """Writes JSON that may stand inside a script element: no text in it can end the element."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
