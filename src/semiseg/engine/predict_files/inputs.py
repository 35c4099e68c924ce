"""Finds what is to be predicted: image files, folders, patterns and videos."""

import glob
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from semiseg.data.dataset import Unused
from semiseg.data.formats import MISSING, SUFFIXES
from semiseg.data.scan import scan
from semiseg.engine.predict_files import geo, video
from semiseg.engine.predict_files.raster import has_rasterio
from semiseg.errors import UserError
from semiseg.files import expanded, mark_of


class CannotReadError(UserError):
    """An image to predict cannot be read. Others can."""


@dataclass(frozen=True)
class Item:
    """One image to predict: a file, or a frame of a video.

    Attributes:
        file: the image or the video.
        below: where its outputs are, below the output folder and without an extension.
        name: what summaries call it: the path below the folder that was given.
        frame: the number of the frame, from 1 on; None: the file is an image.
    """

    file: Path
    below: Path
    name: str
    frame: int | None = None


def find(
    given: Iterable[Path | str], out: Path, on_unused: Callable[[Unused], None] = lambda unused: None
) -> list[Item]:
    """Finds the images to predict, in the order in which they are given. Each is in the list once.

    Masks and overlays that an earlier prediction wrote into the output folder are left out: a pattern may match them.

    Args:
        given: image files, videos, folders, or patterns as `glob` has them, with `**` for folders of any depth.
        out: the output folder.
        on_unused: called with files in the folders that are no images, and with those that a prediction wrote.

    Raises:
        UserError: there is no such file, a pattern matches nothing, a folder has no images or contains the output
            folder, only files that a prediction wrote are left, or a video cannot be read.
    """
    items: dict[tuple[Path, int | None, Path], Item] = {}
    written: dict[Path, None] = {}
    for word in given:
        for base, file in _files(str(word), out, on_unused):
            if _is_prediction(file, out):
                written[file] = None
                continue
            relative = file.relative_to(base)
            if file.suffix.lower() in video.SUFFIXES:
                folder = relative.with_suffix("")
                found = [
                    Item(file, folder / f"{frame:06}", f"{relative.as_posix()}/{frame:06}", frame)
                    for frame in range(1, video.count_frames(file) + 1)
                ]
            else:
                found = [Item(file, relative.with_suffix(""), relative.as_posix())]
            items |= {(item.file.absolute(), item.frame, item.below): item for item in found}
    if written:
        if not items:
            raise UserError(f"{next(iter(written))}: was written by a prediction into {out}; name photographs")
        on_unused(Unused("files that a prediction wrote into the output folder, not predicted", tuple(written)))
    return list(items.values())


def _is_prediction(file: Path, out: Path) -> bool:
    """Returns whether a file is a mask or an overlay that a prediction wrote into the output folder."""
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(out)):  # resolve() fails for circular links
        return False
    mark = geo.mark_of if file.suffix.lower() in geo.SUFFIXES and has_rasterio() else mark_of
    return mark(file) is not None


def _files(word: str, out: Path, on_unused: Callable[[Unused], None]) -> list[tuple[Path, Path]]:
    """Returns the files that one argument names, each with the folder that output paths start from."""
    path = expanded(Path(word))
    if path.is_file():
        return [(path.parent, path)]
    if path.is_dir():
        return [(path, file) for file in _in_folder(path, out, on_unused)]
    if glob.has_magic(word):
        return _matching(path, on_unused)
    raise UserError(f"{word}: there is no such image or folder")


def _in_folder(folder: Path, out: Path, on_unused: Callable[[Unused], None]) -> list[Path]:
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--out {out}: is inside {folder}, so masks would be predicted as images next time; name a folder outside"
        )
    found = scan(folder)
    videos: list[Path] = []
    for others in found.unused:
        moving = [file for file in others.files if file.suffix.lower() in video.SUFFIXES and others.matters]
        videos += moving
        rest = tuple(file for file in others.files if file not in moving)
        if rest and others.matters and (found.images or videos):
            on_unused(replace(others, files=rest))
    if not found.images and not videos:
        others_ = f" ({found.unused[0]})" if found.unused else ""
        raise UserError(f"{folder}: holds no images{others_}")
    return [*found.images.values(), *sorted(videos)]


def _matching(pattern: Path, on_unused: Callable[[Unused], None]) -> list[tuple[Path, Path]]:
    paths = sorted(Path(found) for found in glob.glob(str(pattern), recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    files = [path for path in paths if path.is_file()]
    if not files:
        only = "only folders; add /* for the files in them" if paths else "nothing"
        raise UserError(f"{pattern}: the pattern matches {only}")
    known = [file for file in files if file.suffix.lower() in SUFFIXES | video.SUFFIXES]
    if not known:
        remedy = MISSING.get(files[0].suffix.lower())
        raise UserError(f"{pattern}: matches no image, only e.g. {files[0]}" + (f"; {remedy}" if remedy else ""))
    if others := tuple(file for file in files if file not in known):
        on_unused(Unused("files that match and are no images, not used", others))
    parts = pattern.parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    return [(base, file) for file in known]
