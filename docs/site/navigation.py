"""Expands the patterns in the navigation of mkdocs.yml (mkdocs calls `on_config`)."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Replaces the patterns in the navigation by the pages that they match."""
    config.nav = expanded(config.nav, Path(config.docs_dir))
    return config


def expanded(nav: list[Any], docs: Path) -> list[Any]:
    """Returns the navigation with pages in place of patterns such as `methods/*.md`, in alphabetical order.

    A pattern leaves out the pages that have an entry of their own.

    Args:
        nav: entries: a path, a pattern, or `{title: path}`, `{title: entries}`.
        docs: the folder of the pages.
    """
    return _expanded(nav, docs, set(pages(nav)))


def pages(nav: list[Any]) -> list[str]:
    """Returns the paths and patterns of a navigation, in order."""
    found = []
    for entry in nav:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            found += [target] if isinstance(target, str) else pages(target)
    return found


def _expanded(nav: list[Any], docs: Path, named: set[str]) -> list[Any]:
    result: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            changed = {t: _expanded(e, docs, named) if isinstance(e, list) else e for t, e in entry.items()}
            result.append(changed)
        elif "*" in entry:
            matching = sorted(path.relative_to(docs).as_posix() for path in docs.glob(entry))
            result += [page for page in matching if page not in named]
        else:
            result.append(entry)
    return result
