"""Finds the image files below a folder, and says which other files are not used."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from semiseg.data.catalog import CONTROL
from semiseg.data.dataset import Unused
from semiseg.data.formats import MISSING, SUFFIXES
from semiseg.errors import UserError

_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS = frozenset({"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found"})


@dataclass(frozen=True)
class Found:
    """The files below a folder.

    Attributes:
        images: path below the folder without extension -> image file, sorted.
        unused: the other files.
    """

    images: dict[str, Path]
    unused: tuple[Unused, ...]


def scan(folder: Path, without: Path | None = None) -> Found:
    """Finds every image file below `folder`. Hidden files and folders are left out, and those of operating systems.

    Args:
        folder: the folder to search, also through links.
        without: a folder below it that is left out, because its files have another purpose.

    Raises:
        UserError: two files differ only in their extension, or a name cannot be written into a list.
    """
    images: dict[str, Path] = {}
    unused: dict[tuple[str, str, bool], list[Path]] = defaultdict(list)
    left_out = os.path.realpath(without) if without else None
    for path in _paths(folder, left_out):
        if path.is_dir():
            unused["hidden folders, not searched", "", True].append(path)
        elif path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
            unused["hidden files, not used", "", False].append(path)
        elif path.suffix.lower() not in SUFFIXES:
            unused[*_why(path), True].append(path)
        else:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if CONTROL.search(stem):
                raise UserError(f"{path}: has a control character or a broken byte in its name; rename it")
            if stem in images:
                raise UserError(f"{path}: has the same name as {images[stem].name}; rename or remove one of the two")
            images[stem] = path
    return Found(
        dict(sorted(images.items())),
        tuple(Unused(what, tuple(sorted(files)), remedy, matters) for (what, remedy, matters), files in unused.items()),
    )


def without_used(unused: Iterable[Unused], used: Iterable[Path]) -> tuple[Unused, ...]:
    """Removes the files `used` from those that are not used."""
    ours = {os.path.abspath(path) for path in used}  # noqa: PTH100 - removes '..', too
    kept = [
        replace(one, files=tuple(path for path in one.files if os.path.abspath(path) not in ours))  # noqa: PTH100
        for one in unused
    ]
    return tuple(one for one in kept if one.files)


def _why(path: Path) -> tuple[str, str]:
    """Says what a file that is no readable image is, and what to do about it."""
    suffix = path.suffix.lower()
    what = f"{suffix} files, not used" if suffix else "files without an extension, not used"
    if suffix in MISSING:
        return what, f"to read them: {MISSING[suffix]}"
    return what, "if they are photographs or masks, convert them to JPEG or PNG"


def _paths(top: Path, left_out: str | None) -> Iterator[Path]:
    """Yields every file below `top`, also through links, and the hidden folders, which it does not enter.

    It enters each folder once, so that circular links end. It follows links last, so a folder below `top` that a link
    also leads to is entered under its own name.
    """
    entered: set[str] = {left_out} if left_out and left_out != os.path.realpath(top) else set()
    waiting = [top]
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0)):  # does not enter links to folders
            real = os.path.realpath(parent)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            hidden = [name for name in folders if name.startswith(".") or name.lower() in _SYSTEM_FOLDERS]
            yield from (Path(parent, name) for name in sorted(hidden))
            folders[:] = [name for name in folders if name not in hidden]
            waiting += [path for name in sorted(folders) if (path := Path(parent, name)).is_symlink()]
            yield from (Path(parent, name) for name in names)
