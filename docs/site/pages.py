"""Writes the pages that are made from the code and from other pages: python docs/site/pages.py, or make docs-pages."""

from collections.abc import Iterable
from pathlib import Path

from semiseg import methods
from semiseg.recipe import file as recipe_file

DOCS = Path(__file__).parents[1]

METHODS = """# Methods

Each row is one setting of `method.name`. Data, network, optimizer and number of steps do not depend on it, so methods
can be compared. `semiseg methods` prints this list. (`make docs-pages` writes this page; do not edit it.)

These settings are the same for every method:

- `method.labeled`: a pool of operations on labeled images, e.g. `jitter`; `semiseg tune` chooses one.
- `method.labeled_loss`: the loss of labeled images, e.g. `{class_weights: inverse_sqrt}` for rare classes, or OHEM.
- `method.ramp`: share of the run in which the weight of unlabeled images rises, as exp(-5 (1 - t)^2); `1.0`: all of it.
  The default is the paper's, mostly 0: the whole weight from the first step on. In short runs with few labels that
  does harm ([results](../results.md)); try `1.0`. `supervised` and `st_pp` have none; of PS-MT it follows a cosine.
- `method.batch_norm`: `joint`, the default, normalizes labeled and unlabeled images of a step as one batch, where a
  method passes them together. With `apart` each kind has its own statistics, and the network is evaluated with those
  of labeled images. Which is better depends on the images ([results](../results.md)). `supervised` and `st_pp` have
  no such setting.

"""
RECIPES = """# Recipes

A recipe is one YAML file with all settings of a run. These come with semiseg. (`make docs-pages` writes this page; do
not edit it.)

```sh
semiseg recipes
semiseg recipes folder
semiseg recipes folder --out mine.yaml
semiseg train mine.yaml --set data.root=photos
```

The first command prints this list, the second a recipe, and the third writes it to a file that you can edit. For your
own photographs `semiseg init` writes a recipe that suits them ([tutorial](tutorial.md)).

"""
DECISIONS = """# Decisions

Why things are as they are. A later decision may replace an earlier one. (`make docs-pages` writes this page; do not
edit it.)

"""


def contents() -> dict[Path, str]:
    """Makes the pages: path and content of each."""
    recipes = ([f"`{name}`", recipe_file.summary(path)] for name, path in recipe_file.shipped().items())
    decisions = [path for path in sorted(DOCS.glob("decisions/*.md")) if path.name != "index.md"]
    return {
        DOCS / "methods/index.md": METHODS + table("`method.name`", "page", "what it is", rows=_methods()),
        DOCS / "recipes.md": RECIPES + table("recipe", "what it is", rows=recipes),
        DOCS / "decisions/index.md": DECISIONS + "".join(f"- [{_title(path)}]({path.name})\n" for path in decisions),
    }


def table(*head: str, rows: Iterable[list[str]]) -> str:
    r"""Makes a table in Markdown.

    Example:
        >>> print(table("a", "b", rows=[["1", "x | y"]]), end="")
        | a | b |
        | --- | --- |
        | 1 | x \| y |
    """
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _methods() -> Iterable[list[str]]:
    for name in methods.names():
        title = _title(DOCS / "methods" / f"{name}.md")
        yield [f"`{name}`", f"[{title}]({name}.md)", methods.summary(name).removeprefix(f"{title}: ")]


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


if __name__ == "__main__":
    for path, content in contents().items():
        path.write_text(content, encoding="utf-8")
