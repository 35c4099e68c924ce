"""Finds the image that a line of a split list means."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from semiseg.data.dataset import Sample
from semiseg.data.formats import SUFFIXES

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line ends, terminal control, no UTF-8


class Catalog:
    """All images of a layout, found by their ids in published split lists.

    A text means the image with that name. If there is none, it means the image with that path below the root, and then
    the images whose path ends with the text. Extensions and the layout's own suffix may be left out.
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
        """Returns the images that `text` can mean: none, one, or several if it is ambiguous."""
        path = text.replace("\\", "/").removeprefix("./")
        below_root = path.removeprefix(f"{self.root.as_posix()}/")
        for key in (path.lstrip("/"), self._key(path.lstrip("/")), self._key(below_root)):
            if key in self._exact:
                return [self._exact[key]]
            if key in self._tails:
                return self._tails[key]
        return []

    def closest(self, text: str) -> str | None:
        """Returns the name that is most similar to `text`, for a hint about a typing error; None if none is similar."""
        wanted = self._key(text.replace("\\", "/").lstrip("/"))
        names = [sample.name for sample in self.samples]
        for key in (wanted, wanted.rpartition("/")[2]):
            if close := difflib.get_close_matches(key, names, n=1):
                return close[0]
        return None

    def _key(self, path: str) -> str:
        stem, dot, extension = path.rpartition(".")
        return (stem if f"{dot}{extension}".lower() in SUFFIXES else path).removesuffix(self._suffix)
