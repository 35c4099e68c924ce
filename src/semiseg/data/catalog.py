"""The images below a root folder, and which of them a line of a split list means."""

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from semiseg.data.dataset import Sample
from semiseg.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # ends a line, steers a terminal, or is no UTF-8


def scan(folder: Path) -> dict[str, Path]:
    """Every image file below `folder`, hidden ones excepted: path below it without extension -> file, sorted.

    Raises:
        UserError: two files differ in nothing but their extension, or a name cannot stand in a list.
    """
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if CONTROL.search(stem):
            raise UserError(f"{path}: has a control character or a broken byte in its name; rename it")
        if stem in found:
            raise UserError(f"{path}: has the same name as {found[stem].name}; rename or remove one of the two")
        found[stem] = path
    return dict(sorted(found.items()))


def _files(top: Path) -> Iterator[Path]:
    """Every file below `top`, links followed. A folder is entered once, by its own name first, so that loops end."""
    entered: set[str] = set()
    waiting = [top]
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0)):  # goes past links to folders
            real = os.path.realpath(parent)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            waiting += [path for name in sorted(folders) if (path := Path(parent, name)).is_symlink()]
            yield from (Path(parent, name) for name in names)


class Catalog:
    """All images of a layout, found by id as published split lists write them.

    A text means the image with that name; failing that, the one with that path below the root; failing that, the images
    whose path ends with it. Extensions and the layout's own suffix may be there or not.
    """

    def __init__(self, root: Path, samples: Iterable[Sample], suffix: str = "") -> None:
        self.root = root
        self.samples = tuple(samples)
        self._suffix = suffix
        self._exact: dict[str, Sample] = {}
        self._tails: dict[str, list[Sample]] = defaultdict(list)
        for sample in self.samples:
            parts = self._key(sample.image.relative_to(root).as_posix()).split("/")
            self._exact["/".join(parts)] = sample
            for start in range(len(parts)):
                self._tails["/".join(parts[start:])].append(sample)
        self._exact |= {sample.name: sample for sample in self.samples}

    def find(self, text: str) -> list[Sample]:
        """The images that `text` can mean: none, one, or several where it is ambiguous."""
        path = text.replace("\\", "/").removeprefix("./")
        below_root = path.removeprefix(f"{self.root.as_posix()}/")
        for key in (path.lstrip("/"), self._key(path.lstrip("/")), self._key(below_root)):
            if key in self._exact:
                return [self._exact[key]]
            if key in self._tails:
                return self._tails[key]
        return []

    def closest(self, text: str) -> str | None:
        """The name most like `text`, if one is alike: what a mistyped line may have meant."""
        wanted = self._key(text.replace("\\", "/").lstrip("/"))
        names = [sample.name for sample in self.samples]
        for key in (wanted, wanted.rpartition("/")[2]):
            if close := difflib.get_close_matches(key, names, n=1):
                return close[0]
        return None

    def _key(self, path: str) -> str:
        stem, dot, extension = path.rpartition(".")
        return (stem if f"{dot}{extension}".lower() in SUFFIXES else path).removesuffix(self._suffix)
