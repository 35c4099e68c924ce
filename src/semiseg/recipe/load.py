"""Reads recipes from YAML, validates them, and writes them."""

import difflib
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from semiseg import data, methods, optim
from semiseg.errors import UserError, listed
from semiseg.models import build
from semiseg.recipe import file as recipe_file
from semiseg.recipe.engine import EngineConfig
from semiseg.recipe.file import FREE, SECTIONS
from semiseg.recipe.recipe import Recipe

_RENAMED = {"unlabeled_ramp": "ramp", "consistency_ramp": "ramp", "confidence": "threshold"}  # settings of methods
_SHOWN = 5  # differences in a message


def load_recipe(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads the recipe in a YAML file and applies `a.b=c` settings (values are YAML; `a={...}` replaces a section).

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    return _overridden(recipe_file.read(path), recipe_file.read_as_text(path), overrides, str(path))


def override(recipe: Recipe, overrides: list[str] | tuple[str, ...]) -> Recipe:
    """Applies `a.b=c` settings to a recipe, as `load_recipe` does.

    Raises:
        UserError: a key is unknown, or a value does not fit.
    """
    return _overridden(recipe.to_dict(), {}, overrides, "recipe")


def validate(values: dict[Any, Any], where: str, texts: dict[Any, Any] | None = None) -> Recipe:
    """Makes a recipe from plain values. Error messages begin with `where`.

    Args:
        values: the values, section by section.
        where: the file that they come from.
        texts: the same values as the user wrote them, if they come from YAML.
    """
    for key in values:
        if key not in SECTIONS:
            raise UserError(f"{where}: {key}: unknown section{_closest(str(key), SECTIONS)}")
    section = {}
    for key in SECTIONS:
        section[key] = values.get(key) or {}
        if not isinstance(section[key], dict):
            raise UserError(f"{where}: {key}: is a section with keys, not {_short(section[key])}")
    method_values = dict(section["method"])
    for key, name, known in (("data", "layout", data.layouts.names()), ("method", "name", methods.names())):
        value = section[key].get(name)
        if not isinstance(value, str):
            raise UserError(f"{where}: {key}.{name}: is missing; choose one of {', '.join(known)}")
        if not all(part.isidentifier() for part in value.split(".")):  # it may be the dotted name of a module
            raise UserError(f"{where}: {key}.{name}: there is no {_short(value)}; choose one of {', '.join(known)}")
    method_name = method_values.pop("name")
    written = {key: text if isinstance(text := (texts or {}).get(key), dict) else {} for key in SECTIONS}
    layout = data.layouts.module(section["data"]["layout"])
    return Recipe(
        data=_section(layout.Config, section["data"], written["data"], f"{where}: data"),
        model=_section(build.Config, section["model"], written["model"], f"{where}: model"),
        method_name=method_name,
        method=_section(methods.load(method_name).Config, method_values, written["method"], f"{where}: method"),
        optim=_section(optim.Config, section["optim"], written["optim"], f"{where}: optim"),
        engine=_section(EngineConfig, section["engine"], written["engine"], f"{where}: engine"),
    )


def dump(recipe: Recipe) -> str:
    """Writes a complete recipe as YAML, which `load_recipe` accepts."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the keys in which two recipes (as plain values) differ: `section.key: old -> new`."""
    found = []
    for section in SECTIONS:
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                found.append(f"{section}.{key}: {before.get(key)} -> {after.get(key)}")
    return found


def changes_of_result(old: Recipe, new: Recipe) -> list[str]:
    """Lists the `differences` that make a run another one. `engine.precision: auto` is no difference."""
    if new.engine.precision == "auto":
        new = new.computed_in(old.engine.precision)
    found = differences(old.to_dict(), new.to_dict())
    return [change for change in found if change.partition(":")[0] not in FREE]


def shortened(changes: Sequence[str]) -> str:
    """Writes what `differences` has found for a message, the first five."""
    return listed(changes, _SHOWN, "; ")


def _overridden(
    values: dict[Any, Any], texts: dict[Any, Any], overrides: list[str] | tuple[str, ...], where: str
) -> Recipe:
    for text in overrides:
        _override(values, texts, text)
    return validate(values, where, texts)


def _override(values: dict[Any, Any], texts: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or (len(parts) < 2 and parts[0] not in SECTIONS):
        raise UserError(f"--set {override}: write it as section.key=value, e.g. engine.steps=100")
    node = values
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(f"--set {override}: {part} is a value, not a section")
    node[parts[-1]] = _parsed(text, f"--set {override}", perhaps_text=len(parts) == 2)
    section = texts.setdefault(parts[0], {})
    if len(parts) == 2 and isinstance(section, dict):
        value = node[parts[-1]]
        section[parts[1]] = value if isinstance(value, str) and text.strip()[0] in "'\"" else text.strip()
    elif len(parts) == 1:
        texts[parts[0]] = recipe_file.as_text(text)


def _parsed(text: str, where: str, perhaps_text: bool) -> Any:
    """Returns the value of a YAML text. If it may be a path that is no YAML, an error is returned, not raised."""
    try:
        return recipe_file.parse(text, where)
    except UserError as error:
        if not perhaps_text:
            raise
        return error


def _section(config: type[Any], values: dict[Any, Any], texts: dict[Any, Any], where: str) -> Any:
    values = _text_where_wanted(config, values, texts)
    for value in values.values():
        if isinstance(value, UserError):
            raise value
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_error(error, config, values, where)) from error


def _text_where_wanted(config: type[BaseModel], values: dict[Any, Any], texts: dict[Any, Any]) -> dict[Any, Any]:
    """Puts back what the user wrote where a path or a name is wanted and YAML sees something else.

    YAML takes 2024-05-01 for a date, 123 for a number, `no` for false, `a: b` for a mapping, and `@x` for an error.
    Numbers, lists and null stay where the setting may also be one, e.g. data.background: 1, data.labeled: null.
    """
    changed = dict(values)
    for key, value in values.items():
        field, text = config.model_fields.get(key), texts.get(key)
        kinds = _kinds(field.annotation) if field else set()
        is_list = isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds)
        if kinds & {str, Path} and isinstance(text, str) and text and not is_list and type(value) not in kinds - {str}:
            changed[key] = text
    return changed


def _kinds(annotation: Any) -> set[Any]:
    """Returns the types that a setting may have, e.g. {str, int, NoneType} of `str | Annotated[int, ...] | None`."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for member in get_args(annotation) for kind in _kinds(member)}
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    return {annotation}


def _first_error(error: ValidationError, config: type[BaseModel], values: dict[Any, Any], where: str) -> str:
    """Makes one line from the first wrong key and the number of other wrong keys."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        found[_place(detail, values)].append(detail)
    first_place = next(iter(found))
    place = max(
        (other for other in found if other[: len(first_place)] == first_place), key=len
    )  # a union has several errors
    details = found[place]
    first = details[0]
    if first["type"] == "extra_forbidden":
        known = _known(config, first["loc"][:-1])
        if (renamed := _RENAMED.get(place[-1])) in known:
            message = f"is called {renamed} now; rename it there, its value stays as it is"
        else:
            message = f"unknown key{_closest(place[-1], known)}"
    elif first["type"] == "missing" and place[-1:] == (first["loc"][-1],):
        message = "is missing"
    else:
        message = ", or ".join(dict.fromkeys(map(_message, details)))  # one for each allowed type
        got = f"got {_short(first['input'])}"
        if not isinstance(first["input"], dict) and got not in message:
            message += f" ({got})"
    others = [other for other in found if other != place[: len(other)]]
    more = f"; {len(others)} more" if others else ""
    return f"{'.'.join((where, *place))}: {message}{more}".replace("\n", " ")


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "should have more values"
    return detail["msg"].removeprefix("Value error, ").replace("Input should", "should")


def _place(detail: ErrorDetails, values: Any) -> tuple[str, ...]:
    """Returns the keys that lead to an error. pydantic's location also has the types that it tried for a value."""
    place = []
    for part in detail["loc"]:
        in_list = isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values)
        if in_list or (isinstance(values, dict) and part in values):
            values = values[part]
        elif not (isinstance(values, dict) and detail["type"] == "missing"):
            continue
        place.append(str(part))
    return tuple(place)


def _known(config: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Returns the known keys of the section at pydantic's location `loc` below `config`."""
    tagged: dict[Any, type[BaseModel]] = {}
    for part in loc:
        if part in tagged:
            config = tagged[part]
        elif field := config.model_fields.get(str(part)):
            tagged = dict(_sections(field.annotation))
            config = next(iter(tagged.values()), config)
    return list(config.model_fields)


def _sections(annotation: Any, tag: str | None = None) -> Iterator[tuple[str | None, type[BaseModel]]]:
    """Yields the kinds of section that a setting may have, with the tags by which pydantic's locations name them."""
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        yield from _sections(annotation, next((note.tag for note in notes if isinstance(note, Tag)), tag))
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _sections(member)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield tag, annotation


def _short(value: Any) -> str:
    """Returns the `repr` of a value, shortened if it is long."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 100, 100
    return short.repr(value)


def _closest(key: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
