"""Recipes: YAML in, a validated `Recipe` out, and back."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from semiseg import data, methods
from semiseg.engine import schedule
from semiseg.engine.recipe import EngineConfig, Recipe
from semiseg.errors import UserError
from semiseg.models import build

SECTIONS = ("data", "model", "method", "optim", "engine")


def load(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe in a YAML file, with `a.b=c` settings on top (values are YAML too).

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such recipe; recipes/ has some to start from") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe ({error})") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe has the sections {', '.join(SECTIONS)}")
    for override in overrides:
        _override(values, override)
    return validate(values, str(path))


def validate(values: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain values; `where` stands at the head of error messages."""
    for key in values:
        if key not in SECTIONS:
            raise UserError(f"{where}: {key}: unknown section{_closest(str(key), SECTIONS)}")
    section = {}
    for key in SECTIONS:
        section[key] = values.get(key) or {}
        if not isinstance(section[key], dict):
            raise UserError(f"{where}: {key}: is a section with keys, not {section[key]!r}")
    method_values = dict(section["method"])
    for key, name, known in (("data", "layout", data.layouts()), ("method", "name", methods.names())):
        if not isinstance(section[key].get(name), str):
            raise UserError(f"{where}: {key}.{name}: is missing; choose one of {', '.join(known)}")
    method_name = method_values.pop("name")
    layout = data.layout_module(section["data"]["layout"])
    return Recipe(
        data=_section(layout.Config, section["data"], f"{where}: data"),
        model=_section(build.Config, section["model"], f"{where}: model"),
        method_name=method_name,
        method=_section(methods.load(method_name).Config, method_values, f"{where}: method"),
        optim=_section(schedule.Config, section["optim"], f"{where}: optim"),
        engine=_section(EngineConfig, section["engine"], f"{where}: engine"),
    )


def dump(recipe: Recipe) -> str:
    """YAML of a complete recipe, which `load` accepts."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys in which two recipes, as plain values, differ: `section.key: old -> new`."""
    found = []
    for section in SECTIONS:
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                found.append(f"{section}.{key}: {before.get(key)} -> {after.get(key)}")
    return found


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise UserError(f"{where}: is not YAML{line}: {getattr(error, 'problem', None) or error}") from error


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) < 2:
        raise UserError(f"--set {override}: write it as section.key=value, e.g. engine.steps=100")
    node = values
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(f"--set {override}: {part} is a value, not a section")
    node[parts[-1]] = _parse(text, f"--set {override}")


def _section(config: type[Any], values: dict[str, Any], where: str) -> Any:
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_error(error, config, where)) from error


def _first_error(error: ValidationError, config: type[BaseModel], where: str) -> str:
    """One line for the first of the errors, and how many there are besides."""
    errors = error.errors(include_url=False)
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"])
    place = f"{where}.{key}" if key else where
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_closest(key, list(config.model_fields))}"
    elif first["type"] == "missing":
        message = "is missing"
    else:
        shown = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        message = first["msg"].removeprefix("Value error, ") + shown
    more = f"; {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{place}: {message}{more}".replace("\n", " ")


def _closest(key: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
