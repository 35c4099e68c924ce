"""Plans a prediction of files: what to write where, and what is there already. Mistakes are found here."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.data.read import read_header
from semiseg.engine.predict_files import summaries
from semiseg.engine.predict_files.inputs import CannotReadError, Item
from semiseg.engine.predict_files.model import Model
from semiseg.engine.predict_files.options import KINDS, POLYGONS, Options
from semiseg.engine.predict_files.outputs import OUTPUTS
from semiseg.engine.predict_files.raster import LARGE, MOST
from semiseg.errors import UserError


@dataclass(frozen=True)
class Task:
    """An image of which some outputs are missing.

    Attributes:
        item: the image.
        missing: kinds of outputs to write, with their files.
    """

    item: Item
    missing: dict[str, Path]


class Plan:
    """Knows the outputs of each image, and which of them are there.

    Attributes:
        others: files of other kinds that stay beside the new ones and are of another prediction. `tasks` finds them.
    """

    def __init__(self, model: Model, options: Options, out: Path, rank: int, world_size: int) -> None:
        self.model, self.options, self.out = model, options, out
        self.rank, self.world_size = rank, world_size
        self.kinds = [kind for kind in KINDS if kind in options.write]
        predicting = model.fingerprint() + repr(options.predicting).encode()
        self.predictor = hashlib.blake2b(predicting, digest_size=16).digest()
        traced = self.predictor + repr(options.tracing).encode()
        self.tracing = hashlib.blake2b(traced, digest_size=16).digest()
        self.content: dict[Path, bytes] = {}
        self.others: tuple[Path, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """Returns what tells this predictor and its options from others, by the kind of a part."""
        return {"areas": self.predictor.hex(), "coco": self.tracing.hex()}

    def tasks(self, items: Sequence[Item]) -> tuple[list[Task], int]:
        """Returns this process's images with missing outputs, and how many of its images have none.

        Raises:
            UserError: a file exists that may not be replaced, two images would have the same output, an output is not
                made of such an image, or the output folder cannot be written into.
        """
        _check_frames(items, self.options)
        _check_permission(self.out)
        owners: dict[Path, str] = {
            self.out / name: f"the summary {name}" for kind, name in summaries.NAMES.items() if kind in self.kinds
        }
        planned: list[Task] = []
        others: dict[Path, None] = {}
        for item in items:
            paths = {kind: OUTPUTS[kind].path(item, self.out) for kind in self.kinds}
            for path in paths.values():
                if path in owners:
                    raise UserError(
                        f"{item.file}: its output would be that of {owners[path]}, {path}; rename one of the two"
                    )
                owners[path] = str(item.file)
            planned.append(
                Task(item, {kind: path for kind, path in paths.items() if not self._is_there(item, kind, path)})
            )
            others |= dict.fromkeys(self._others(planned[-1]))
        self.others = tuple(others)
        replaced = {path for task in planned for kind, path in task.missing.items() if kind in self.digests}
        summaries.check(self.out, self.kinds, self.digests, replaced, self.model.classes)
        if "probabilities" in self.kinds:
            for task in planned:
                _check_size(task)
        own = planned[self.rank :: self.world_size]
        left = [task for task in own if task.missing]
        return left, len(own) - len(left)

    def mark(self, item: Item, kind: str) -> str:
        """Returns the mark of an output."""
        digest = hashlib.blake2b(self.tracing if kind in POLYGONS else self.predictor, digest_size=16)
        digest.update(self._content(item.file))
        digest.update(b"" if item.frame is None else str(item.frame).encode())
        return digest.hexdigest()

    def forget(self, item: Item) -> None:
        """Forgets the digest of an image file, which is not needed again."""
        if item.frame is None:
            self.content.pop(item.file, None)

    def _content(self, file: Path) -> bytes:
        if file not in self.content:
            self.content[file] = _digest_of(file)
        return self.content[file]

    def _is_there(self, item: Item, kind: str, path: Path) -> bool:
        if not path.exists():
            return False
        output = OUTPUTS[kind]
        if (mark := output.mark(path)) is None:
            raise UserError(f"{path}: exists already; name another folder with --out")
        if mark == self.mark(item, kind):
            return True
        if not self.options.overwrite:
            raise UserError(
                f"{path}: exists already, from another checkpoint or another {item.file.name}, or with other options; "
                "name another folder with --out, or replace it with --overwrite"
            )
        if not output.is_unchanged(path):
            raise UserError(
                f"{path}: exists already, and was changed after it was written; move it, or name another folder with "
                "--out"
            )
        return False

    def _others(self, task: Task) -> list[Path]:
        """Returns files of an image that are of another prediction and of kinds that are not asked for.

        The mark of polygons depends on their options, too. So they are compared only if other files are replaced.
        """
        replaces = any(path.exists() for path in task.missing.values())
        found = []
        for kind in KINDS:
            if kind in self.kinds or (kind in POLYGONS and not replaces):
                continue
            path = OUTPUTS[kind].path(task.item, self.out)
            if path.exists() and OUTPUTS[kind].mark(path) not in (None, self.mark(task.item, kind)):
                found.append(self.out / summaries.NAMES[kind] if kind in self.digests else path)
        return found


def check_window(options: Options, model: Model) -> None:
    """Refuses windows in which a network sees too little.

    Raises:
        UserError: the window is too small.
    """
    if options.window is not None and options.window < model.least_window:
        raise UserError(
            f"--window {options.window}: is too small for this network; use {model.least_window} or more, better the "
            "size of the training crops"
        )


def _digest_of(file: Path) -> bytes:
    if not file.is_file():  # a pipe would block; reading it says what is wrong
        return b""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise CannotReadError(f"{file}: cannot be read ({error.strerror})") from error


def _check_permission(out: Path) -> None:
    place = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: no permission to write into {place}; name another folder")


def _check_size(task: Task) -> None:
    if task.item.frame is not None or "probabilities" not in task.missing:
        return
    try:
        height, width = read_header(task.item.file, most=MOST).size
    except UserError:  # reported later, when others are written
        return
    if height * width > LARGE:
        raise UserError(
            f"{task.item.file}: has {width} x {height} pixels; probabilities are written for at most {LARGE} pixels; "
            "leave probabilities out of --write"
        )


def _check_frames(items: Sequence[Item], options: Options) -> None:
    for item in items:
        for kind in POLYGONS:
            if item.frame is not None and kind in options.write:
                raise UserError(
                    f"{item.file}: is a video, and --write {kind} is about image files; save its frames as images first"
                )
