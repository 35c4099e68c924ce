"""Writes a recipe as YAML, each setting with its reason as a comment."""

from collections.abc import Sequence
from typing import Any

import yaml

from semiseg.init.settings import Setting
from semiseg.recipe.file import SECTIONS

_USUAL = {  # reasons of settings that state none
    ("data", "images"): "all photographs; those without a label are the unlabeled ones",
    ("data", "masks"): "as given; labels that are added there are used when training starts anew",
    ("data", "annotations"): "as given; what is added there is used when training starts anew",
    ("engine", "save_every"): "a checkpoint at each evaluation; a run that was interrupted goes on from the last one",
}
MADE = "# Made by semiseg init."
_WIDTH = 120


def text(head: Sequence[str], settings: Sequence[Setting]) -> str:
    """Writes the recipe.

    Args:
        head: lines of the comment at the top.
        settings: the settings, in the order in which they are written within their sections.
    """
    lines = [MADE, *(f"# {line}".rstrip() for line in head)]
    for section in SECTIONS:
        own = [setting for setting in settings if setting.section == section]
        if own:
            lines.append(f"{section}:")
        for setting in own:
            lines += _line(setting)
    return "\n".join(lines) + "\n"


def _line(setting: Setting) -> list[str]:
    line = f"  {setting.key}: {value(setting.value)}"
    why = setting.why or _USUAL.get((setting.section, setting.key))
    if not why:
        return [line]
    with_reason = f"{line}  # {why}"
    return [with_reason] if len(with_reason) <= _WIDTH else [f"  # {why}", line]


def value(plain: Any) -> str:
    """Writes a plain value as it stands in a recipe."""
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
