"""Looks at all images before the first one is predicted, and says what a user should know before he waits."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from semiseg.data.check import FEW, has_few_colors
from semiseg.data.dataset import Unused
from semiseg.data.read import has_more_pages, read_header, read_image
from semiseg.engine.predict_files.inputs import Item
from semiseg.engine.predict_files.raster import LARGE, MOST
from semiseg.errors import UserError, listed

SHOWN = 5  # broken images in a message
_DECODED = 8  # images of which the colors are counted


@dataclass(frozen=True)
class _Facts:
    """What the header of an image file tells: why it cannot be read, and what it may be."""

    error: str = ""
    has_pages: bool = False
    may_be_mask: bool = False


def look(items: Iterable[Item], on_note: Callable[[Unused], None]) -> None:
    """Looks at the image files, and calls `on_note` with what was found.

    It reads their headers alone, and decodes a few that may be masks. If no image can be read, the first error comes at
    once, and no note is needed.
    """
    files = [item.file for item in items if item.frame is None]
    with ThreadPoolExecutor() as threads:
        found = dict(zip(files, threads.map(_facts, files), strict=True))
        some = [file for file, facts in found.items() if facts.may_be_mask]
        some = some[:: -(-len(some) // _DECODED) or 1]
        flat = [file for file, shown in zip(some, threads.map(_is_flat, some), strict=True) if shown]
    broken = {file: facts.error for file, facts in found.items() if facts.error}
    if broken and len(broken) < len(found):
        what = f"images that cannot be read, while the other {len(found) - len(broken)} are predicted"
        on_note(Unused(what, tuple(broken), listed([*broken.values()], SHOWN, "; ")))
    if paged := [file for file, facts in found.items() if facts.has_pages]:
        what = "images with several pages or frames, of which the first one alone is predicted"
        on_note(Unused(what, tuple(paged), "save the others as files of their own"))
    if flat:
        what = f"images of {FEW} colors or less, as masks have them, among {len(some)} that were looked at"
        on_note(Unused(what, tuple(flat), "name photographs if these are masks"))


def _facts(file: Path) -> _Facts:
    try:
        header = read_header(file, most=MOST)
        lossless = header.format != "JPEG" and header.largest <= 255 and header.size[0] * header.size[1] <= LARGE
        return _Facts("", header.may_have_pages and has_more_pages(file, MOST), lossless)
    except UserError as error:
        return _Facts(str(error))


def _is_flat(file: Path) -> bool:
    try:
        return has_few_colors(read_image(file))
    except UserError:  # it is damaged behind its header; that is told later
        return False
