"""Reads `Example:` in docstrings as mkdocstrings reads `Examples:`: as code and what it prints."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Changes the heading of the section before mkdocstrings reads the docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of one module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
