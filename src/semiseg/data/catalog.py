"""Finds the image that a line of a split list means."""

import difflib
import functools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from semiseg.data.dataset import Sample
from semiseg.data.formats import SUFFIXES

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line ends, terminal control, no UTF-8


def folded(name: str) -> str:
    """Returns what names have in common that differ in case only, or in how they write accents (macOS has its own way).

    Example:
        >>> folded("E\u0301te") == folded("\u00e9TE")
        True
    """
    return unicodedata.normalize("NFC", name).casefold()


class Catalog:
    """All images of a layout, found by their ids in published split lists.

    A text means the image with that name. If there is none, it means the image with that path below the root, and then
    the images whose path ends with the text, and then those that differ in case only. At last it is a path on this
    machine, absolute or below the current folder. Extensions and the layout's own suffix may be left out.
    """

    def __init__(self, root: Path, samples: Iterable[Sample], suffix: str = "") -> None:
        self.root = root
        self.samples = tuple(samples)
        self._suffix = suffix
        self._real = functools.cache(os.path.realpath)  # few folders hold many files
        self._exact: dict[str, Sample] = {}
        self._tails: dict[str, list[Sample]] = defaultdict(list)
        self._places = {self._place(str(sample.image)): sample for sample in self.samples}
        for sample in self.samples:
            image = sample.image.relative_to(root) if sample.image.is_relative_to(root) else sample.image
            parts = self._key(image.as_posix().lstrip("/")).split("/")
            self._exact["/".join(parts)] = sample
            for start in range(len(parts)):
                self._tails["/".join(parts[start:])].append(sample)
        self._exact |= {sample.name: sample for sample in self.samples}

    def find(self, text: str) -> list[Sample]:
        """Returns the images that `text` can mean: none, one, or several if it is ambiguous."""
        if CONTROL.search(text):
            return []
        path = text.replace("\\", "/").removeprefix("./")
        place = self._place(path)
        if path.startswith("/") and place in self._places:  # before a path below the root that ends in the same way
            return [self._places[place]]
        for key in (text, path.lstrip("/"), self._key(path.lstrip("/"))):
            if key in self._exact:
                return [self._exact[key]]
            if key in self._tails:
                return self._tails[key]
        if found := self._folded.get(folded(self._key(path.lstrip("/")))):
            return found
        return [self._places[place]] if place in self._places else []

    @functools.cached_property
    def _folded(self) -> dict[str, list[Sample]]:
        """The same as `_tails` for names that differ in case only; most lists never need it."""
        found: dict[str, list[Sample]] = defaultdict(list)
        for tail, samples in self._tails.items():
            found[folded(tail)] += samples
        return found

    def is_elsewhere(self, path: str, sample: Sample) -> bool:
        """Whether `path` leads into another folder of images than the sample's, and names occur in both folders.

        Then a sample of the same name is another image: that of `path` is missing.
        """
        own = self._folders[sample.name.rpartition("/")[0]]
        parts = path.split("/")[:-1]
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        named = next((self._folders[tail] for tail in tails if tail in self._folders), own)
        return named is not own and not named.isdisjoint(own)

    @functools.cached_property
    def _folders(self) -> dict[str, set[str]]:
        """Folder of images -> the names in it."""
        found: dict[str, set[str]] = defaultdict(set)
        for sample in self.samples:
            folder, _, name = sample.name.rpartition("/")
            found[folder].add(name)
        return dict(found)

    def is_below_root(self, path: Path) -> bool:
        """Whether `path` leads through the root, by whatever links, and not out of it again."""
        root = self._real(str(self.root))
        through = next((parent for parent in path.parents if self._real(str(parent)) == root), None)
        return through is not None and ".." not in path.relative_to(through).parts

    def closest(self, text: str) -> str | None:
        """Returns the name that is most similar to `text`, for a hint about a typing error; None if none is similar."""
        wanted = self._key(text.replace("\\", "/").lstrip("/"))
        names = [sample.name for sample in self.samples]
        for key in (wanted, wanted.rpartition("/")[2]):
            if close := difflib.get_close_matches(key, names, n=1):
                return close[0]
        return None

    def _place(self, path: str) -> str:
        """Returns the one path of a file to which several paths can lead; the file itself may be a link."""
        folder, name = os.path.split(path)
        return f"{self._real(folder or '.')}/{self._key(name)}"

    def _key(self, path: str) -> str:
        stem, dot, extension = path.rpartition(".")
        return (stem if f"{dot}{extension}".lower() in SUFFIXES else path).removesuffix(self._suffix)
