"""A recipe's YAML as plain values: a stranger's file executes nothing, and ends soon and small.

Nothing heavy is imported here, so that the command line can look at a recipe before it loads torch.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from semiseg.errors import UserError
from semiseg.files import read_text

SECTIONS = ("data", "model", "method", "optim", "engine")

_SHIPPED = Path(__file__).parent / "recipes"
_MOST_BYTES, _MOST_DIGITS = 100_000, 100
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def shipped() -> dict[str, Path]:
    """The recipes that come with semiseg, by name: `folder`, `voc`, `official/voc` ..."""
    return {path.relative_to(_SHIPPED).with_suffix("").as_posix(): path for path in sorted(_SHIPPED.rglob("*.yaml"))}


def find(recipe: Path) -> Path:
    """The file of a recipe: a file of the user's, or the one that comes with semiseg under this name.

    Raises:
        UserError: there is neither.
    """
    if recipe.is_file():
        return recipe
    known = shipped()
    if found := known.get(recipe.as_posix()):
        return found
    if recipe.exists():
        return recipe
    raise UserError(f"{recipe}: there is no such recipe; name a file, or one that `semiseg recipes` lists")


def read(path: Path) -> dict[Any, Any]:
    """The values in a recipe, not yet validated.

    Args:
        path: a file, or the name of a recipe that comes with semiseg.

    Raises:
        UserError: there is no such recipe, or it is not YAML, or no mapping.
    """
    path = find(path)
    values = parse(read_text(path, "a recipe", _MOST_BYTES), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe has the sections {', '.join(SECTIONS)}")
    return values


def parse(text: str, where: str) -> Any:
    """The value that YAML text stands for; `where` stands at the head of error messages.

    Raises:
        UserError: it is not YAML, or YAML that no recipe needs: aliases, a key twice, endless numbers, deep nesting.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{where}: is nested too deeply; a recipe has sections, keys and values") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two of dates and numbers that are none
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{where}: is not YAML{line}: {problem}") from error


class _Loader(yaml.SafeLoader):
    """Plain values, without that in YAML which grows: a few lines of aliases of aliases are terabytes."""

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
