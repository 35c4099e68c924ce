"""Finds the YAML file of a recipe and reads it as plain values.

Reading executes no code from the file, and takes little time and memory, even if the file comes from somebody else.
This module does not import torch, so the command line can check a recipe before it loads torch.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from semiseg.errors import UserError
from semiseg.files import expanded, read_text

SECTIONS = ("data", "model", "method", "optim", "engine")
FREE = (  # settings that do not change the result of a run
    "data.root",
    "data.workers",
    "data.cache",
    "data.on_unreadable",
    "engine.device",
    "engine.compile",
    "engine.keep_checkpoints",
    "engine.keep_every",
    "engine.pseudo_label_images",
    "engine.pictures",
    "engine.trackers",
)

OF_FOLDER = "recipe.yaml"  # the recipe of a folder that `semiseg init` made
_SHIPPED = Path(__file__).parents[1] / "recipes"
_MOST_BYTES, _MOST_DIGITS = 100_000, 100
_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first one where PyYAML was built with libyaml
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def shipped() -> dict[str, Path]:
    """Lists the recipes that come with semiseg by name: `folder` (for own data) is first, `official/...` are last."""
    paths = {path.relative_to(_SHIPPED).with_suffix("").as_posix(): path for path in _SHIPPED.rglob("*.yaml")}
    order = sorted(paths, key=lambda name: (name != "folder", name.startswith("official/"), name))
    return {name: paths[name] for name in order}


def summary(path: Path) -> str:
    """Returns the comment in the first line of a recipe: what the recipe is, in a few words."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def text(name: str) -> str:
    """Returns the YAML of a recipe that comes with semiseg, with its comments.

    Raises:
        UserError: no recipe has this name.
    """
    known = shipped()
    if name not in known:
        raise UserError(f"{name}: there is no such recipe{_closest(name)}; `semiseg recipes` lists them")
    return known[name].read_text(encoding="utf-8")


def write(name: str, out: Path) -> None:
    """Writes a recipe that comes with semiseg to the new file `out`, which the user can edit.

    Raises:
        UserError: no recipe has this name, the file exists, or its folder does not.
    """
    content = text(name)
    with new(out).open("x", encoding="utf-8") as file:
        file.write(content)


def new(out: Path) -> Path:
    """Returns the path of a file that is to be written, with `~` expanded.

    Raises:
        UserError: the file exists, or its folder does not.
    """
    out = expanded(out)
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder; make it, or name another file with --out")
    if out.exists() or out.is_symlink():  # a link to nothing is no new file
        raise UserError(f"{out}: exists already; name another file with --out")
    return out


def find(recipe: Path) -> Path:
    """Returns the file of a recipe: of the user, in a folder that `semiseg init` made, or one that comes with semiseg.

    Raises:
        UserError: there is no such recipe.
    """
    recipe = expanded(recipe)
    if recipe.is_file():
        return recipe
    if (recipe / OF_FOLDER).is_file():
        return recipe / OF_FOLDER
    if found := shipped().get(recipe.as_posix()):
        return found
    if recipe.exists():
        return recipe
    close = _closest(recipe.as_posix())
    raise UserError(f"{recipe}: there is no such recipe{close}; name a file, or one that `semiseg recipes` lists")


def run_name(recipe: Path) -> str:
    """Returns the default name of a recipe's run directory.

    For a file it is the file name without its suffix, for a folder its name. For a recipe that comes with semiseg it is
    the whole name:

    >>> run_name(Path("official/voc"))
    'official-voc'
    """
    if (expanded(recipe) / OF_FOLDER).is_file():
        return expanded(recipe).resolve().name
    return recipe.stem if find(recipe) == expanded(recipe) else recipe.as_posix().replace("/", "-")


def read(path: Path) -> dict[Any, Any]:
    """Reads the values of a recipe. It does not validate them.

    Args:
        path: a file, or the name of a recipe that comes with semiseg.

    Raises:
        UserError: there is no such recipe, it is a folder without one, it is not YAML, or its YAML is not a mapping.
    """
    path = find(path)
    if path.is_dir():
        from semiseg.recipe.folders import no_recipe  # it imports numpy, which takes time

        raise no_recipe(path)
    values = parse(read_text(path, "a recipe", _MOST_BYTES), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe has the sections {', '.join(SECTIONS)}")
    return values


def read_as_text(path: Path) -> dict[Any, Any]:
    """Reads the values of a recipe that `read` accepts, each as the text that stands in the file, e.g. `no`."""
    return as_text(read_text(find(path), "a recipe", _MOST_BYTES))


def section(path: Path, name: str) -> dict[Any, Any]:
    """Reads one section of a recipe that semiseg wrote, e.g. of a run, in a tenth of the time of `read`.

    Args:
        path: the file. Its sections start at the first column, as semiseg writes them.
        name: one of `SECTIONS`.

    Raises:
        UserError: the file has no such section, or it is not YAML.
    """
    lines = re.search(rf"^{name}:.*(?:\n(?:[ #].*)?)*", read_text(path, "a recipe", _MOST_BYTES), re.MULTILINE)
    try:
        found = yaml.load(lines[0], _FAST)[name] if lines else None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: {name}: is not YAML") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: has no section {name}; put back what semiseg wrote there")
    return found


def as_text(text: str) -> Any:
    """Returns the value of a YAML text that `parse` accepts. All scalars in it are texts, e.g. `2024-05-01`."""
    return yaml.load(text, yaml.BaseLoader)


def parse(text: str, where: str) -> Any:
    """Returns the value of a YAML text. Error messages begin with `where`.

    Raises:
        UserError: the text is not YAML, or it uses what no recipe needs: aliases, a key twice, numbers of very many
            digits, deep nesting.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{where}: is nested too deeply; a recipe has sections, keys and values") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two come from invalid dates and numbers
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{where}: is not YAML{line}: {problem}") from error


def _closest(name: str) -> str:
    close = difflib.get_close_matches(name.removesuffix(".yaml"), shipped())
    return f" (did you mean {' or '.join(close)}?)" if close else ""


class _Loader(yaml.SafeLoader):
    """Loads plain values, but no aliases: a few lines with aliases of aliases can become terabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, "recipes have no aliases (*); write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} occurs twice; remove one", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: ScalarNode | MappingNode) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _MOST_DIGITS:
            problem = f"a number of more than {_MOST_DIGITS} digits"
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)
